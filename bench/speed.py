"""Speed and memory against the harness's ``hf``, as ratios measured alternately in one process.

    python bench/speed.py [ROW ...] [--rounds 3] [--model FOLDER] [--data FOLDER] [--device cpu]

Rows: mc1 winogrande copa boolq mmlu grid-mc1 grid-boolq mask generate generate-gsm8k memory
(default: all).
``--data`` is a folder to run in, in which the harness finds the data sets when there is no hub.
The model is SmolLM2-135M-Instruct in float32 unless ``--model`` names another. Each row also checks
that what is compared is equal, and ends with exit code 1 if it is not. The rounds of a grid are
parts of its documents, as one pass of all settings over all of them takes long.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROWS = {
    "mc1": ("truthfulqa_mc1", 100, None, 8.0),
    "winogrande": ("winogrande", 100, None, 1.2),
    "copa": ("copa", 100, None, 1.3),
    "boolq": ("boolq", 100, None, 1.15),
    "mmlu": ("mmlu_anatomy", 60, 5, 6.0),
}
"""Of each scoring row: task, documents, few-shot examples, wanted speed-up."""
GRIDS = {"grid-mc1": ("truthfulqa_mc1", 25.0), "grid-boolq": ("boolq", 8.0)}
"""Of each grid row: task, most passes of hf."""
TEXTS = {
    "generate": ("triviaqa", 50, None, 0.8),
    "generate-gsm8k": ("gsm8k", 24, 5, 0.5),
}
"""Of each row of generated texts: task, documents, few-shot examples, most of the time of hf."""
SIZES = (1, 8, 32)
TOLERANCE = 1e-4
"""Of log-likelihoods, relative to their size above 1: float32 holds seven digits."""


class Bench:
    """The models of a run; each is loaded once."""

    def __init__(self, model: str, rounds: int, folder: Path, device: str = "cpu") -> None:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from sadi_lmeval.model import model_class

        self.path, self.rounds, self.folder, self.device = model, rounds, folder, device
        self.manager = TaskManager()
        self._sadi = model_class("sadi")
        self._hf: Any = None
        self._hflm = HFLM
        self.failed = False
        self.sizes: dict[tuple[str, int | None], int] = {}

    def plain(self, size: int) -> Any:
        if self._hf is None:
            self._hf = self._hflm(pretrained=self.path, device=self.device)
        self._hf.batch_size_per_gpu = size
        return self._hf

    def steered(self, **arguments: Any) -> Any:
        arguments = {"batch_size": "auto", "cache_dir": str(self.folder), **arguments}
        return self._sadi(pretrained=self.path, device=self.device, **arguments)

    def tasks(self, name: str, shots: int | None) -> dict[str, Any]:
        loaded: dict[str, Any] = self.manager.load([name])
        for task in loaded["tasks"].values():
            task.set_config("num_fewshot", shots or task.config.num_fewshot or 0)
            task.set_fewshot_seed(seed=1234)
        return loaded

    def evaluate(self, lm: Any, name: str, documents: int | range, shots: int | None) -> Timed:
        """Time ``lm_eval.evaluate`` on freshly loaded tasks, their loading not counted.

        Args:
            documents: how many of the first, or which.
        """
        import lm_eval

        tasks = self.tasks(name, shots)
        first = range(documents) if isinstance(documents, int) else documents
        start = time.perf_counter()
        found = lm_eval.evaluate(lm, tasks, samples={name: list(first)}, bootstrap_iters=0)
        seconds = time.perf_counter() - start
        responses = [s["filtered_resps"] for s in found["samples"][name]]
        return Timed(seconds, responses)

    def arithmetic(self, theirs: Callable[[], Any], ours: Callable[[], Any], lm: Any) -> float:
        """Our multiplications as a part of those of hf, unpadded."""
        with multiplications(self.plain(1).model) as there:
            theirs()
        with multiplications(lm.model) as here:
            ours()
        return here[0] / there[0]

    def check(self, what: str, gap: float, allowed: float = TOLERANCE) -> str:
        if not gap <= allowed:
            self.failed = True
            return f"NOT EQUAL: {what} differ by {gap:.1e}"
        return f"{what} equal within {gap:.0e}"


class Timed(NamedTuple):
    """Seconds, and what came out."""

    seconds: float
    result: Any


@contextmanager
def multiplications(model: Any) -> Iterator[list[int]]:
    """Count the multiplications of the decoder blocks' and the head's weights, padding included.

    They are the arithmetic that is there to be saved; attention's own is not counted.
    """
    from sadi_lmeval.architecture.sites import decoder_blocks

    total = [0]

    def counter(size: int) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            total[0] += size * (arguments[0].numel() // arguments[0].shape[-1])

        return hook

    handles = []
    # Not of the blocks themselves: a pass that begins at a later layer calls those below, too.
    for block in decoder_blocks(model):
        for module in block.modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.dim() == 2:
                handles.append(module.register_forward_hook(counter(weight.numel())))
    head = model.get_output_embeddings()
    handles.append(head.register_forward_hook(counter(head.weight.numel())))
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def best_size(bench: Bench, name: str, limit: int, shots: int | None) -> int:
    """The batch size at which hf is fastest, on a fifth of the documents."""
    if (name, shots) in bench.sizes:
        return bench.sizes[name, shots]
    part = max(10, limit // 5)
    times = {size: bench.evaluate(bench.plain(size), name, part, shots)[0] for size in SIZES}
    said = ", ".join(f"{size}: {seconds:.1f} s" for size, seconds in times.items())
    print(f"  hf by batch size, {part} documents: {said}", flush=True)
    size = bench.sizes[name, shots] = min(times, key=lambda s: times[s])
    return size


def scoring(bench: Bench, row: str) -> str:
    name, limit, shots, wanted = ROWS[row]
    lm = bench.steered(element="head", top_k=6, delta=9)
    bench.evaluate(lm, name, 2, shots)  # fits and keeps the fit
    size = best_size(bench, name, limit, shots)
    ours, theirs = [], []
    for _ in range(bench.rounds):
        theirs.append(bench.evaluate(bench.plain(size), name, limit, shots).seconds)
        seconds, steered = bench.evaluate(lm, name, limit, shots)
        ours.append(seconds)
    known, lm.engine.longest_branching_path = lm.engine.longest_branching_path, 0  # the plain way
    plain = bench.evaluate(lm, name, min(limit, 10), shots)[1]
    equal = bench.check("steered scores", gap_of(steered[: len(plain)], plain))
    lm.engine.longest_branching_path = known  # not tried again: the trial's tokens would count
    floor = bench.arithmetic(
        lambda: bench.evaluate(bench.plain(1), name, min(limit, 10), shots),
        lambda: bench.evaluate(lm, name, min(limit, 10), shots),
        lm,
    )
    ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
    return (
        f"{ratio:.2f} times faster than hf at batch size {size} (wanted {wanted}; by arithmetic "
        f"{1 / floor:.1f} on 10 documents); {equal}"
    )


def gap_of(one: Any, other: Any) -> float:
    """The largest difference of log-likelihoods, relative to their size above 1."""
    flat = zip(scores_of(one), scores_of(other), strict=True)
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in flat)


def scores_of(responses: Iterable[Any]) -> list[float]:
    return [float(score) for document in responses for score, _ in document]


def _these(which: range, documents: list[Any], limit: float | None) -> list[Any]:
    return documents[which.start : which.stop]


def grid(bench: Bench, row: str) -> str:
    import torch

    from sadi_lmeval.comparison.sweep import Sweep, parts_of, sweep
    from sadi_lmeval.harness.run_tasks import load_tasks
    from sadi_lmeval.methods.arm import read_arm
    from sadi_lmeval.passes.packing import Continuation
    from sadi_lmeval.passes.scoring import log_likelihoods
    from sadi_lmeval.steering.steering import candidates_of

    name, most = GRIDS[row]
    limit = 50
    lm = bench.steered()
    arms = {f"sadi-{e}": read_arm("sadi", {"element": e}) for e in ("head", "neuron", "hidden")}
    what = Sweep(arms, {}, "test", limit)
    tasks = load_tasks([name], [], None, {})
    parts = parts_of(tasks[0], what, lm.options, lm)  # fits and keeps the fits
    size = best_size(bench, name, limit, None)
    ours, theirs = [], []
    for number in range(bench.rounds):  # a round is one part of the documents: all come once
        mine = range(number * limit // bench.rounds, (number + 1) * limit // bench.rounds)
        theirs.append(bench.evaluate(bench.plain(size), name, mine, None).seconds)
        limited = partial(_these, mine)
        start = time.perf_counter()
        with patch("sadi_lmeval.comparison.sweep._limited", limited):
            lines = sweep(tasks, what, lm.options, lm, bench.folder / f"{row}.{number}.jsonl")
        ours.append(time.perf_counter() - start)
        said = f"hf {theirs[-1]:.1f} s, all settings {ours[-1]:.1f} s"
        print(f"  {len(mine)} documents: {said}", flush=True)
    gap = 0.0
    part = parts[0]
    requests = [lm.continuation(*text) for text in part.trial.texts[0]]
    for name_of_arm, fitted in part.fits.items():
        every = what.settings(name_of_arm, lm)
        settings = every[:: len(every) // 4]
        family = candidates_of(arms[name_of_arm], settings, fitted, lm).edits
        told: list[tuple[list[int], torch.Tensor, torch.Tensor]] = []
        lm.engine.score_grid(requests, [family], lambda *scores: told.append(scores))  # noqa: B023
        shared = {n: values[1:, i] for numbers, values, _ in told for i, n in enumerate(numbers)}
        for edit in range(len(settings)):
            plainly = log_likelihoods(
                lm.engine.forward,
                [Continuation(r.context, r.tokens, edit) for r in requests],
                family,
                0,
                False,
                lm.engine.bounds,
            )
            for number, (value, _) in enumerate(plainly):
                there = float(shared[number][edit])
                gap = max(gap, abs(there - value) / max(1.0, abs(value)))
    equal = bench.check("sampled settings and the plain way", gap)
    ratio = statistics.median(o / t for t, o in zip(theirs, ours, strict=True))
    return (
        f"{len(lines) - 1} settings in {ratio:.2f} passes of hf at batch size {size}, over all "
        f"documents {sum(ours) / sum(theirs):.2f} (wanted at most {most:g}); {equal}"
    )


def mask(bench: Bench, row: str) -> str:
    import torch

    from sadi_lmeval.harness.run_tasks import load_tasks
    from sadi_lmeval.methods.collectors import MeanDifference
    from sadi_lmeval.pairs.plan import draw, find_plan
    from sadi_lmeval.passes.activations import TokenPair, read_pairs

    lm = bench.steered(n_pairs=150, top_k=6, delta=9)
    [task] = load_tasks(["boolq"], [], None, {})
    plan = find_plan(task, lm.options)
    pairs = [
        TokenPair(lm.encode(*p.positive), lm.encode(*p.negative))
        for p in draw(plan, plan.sources.sources[0], lm.options, ()).pairs
    ]
    site = lm.engine.site("head", "mlp")

    def plainly(size: int) -> torch.Tensor:
        """D from right-padded batches of plain forward passes, logits left out."""
        texts = [(pair.positive, 1) for pair in pairs] + [(pair.negative, -1) for pair in pairs]
        texts.sort(key=lambda text: -len(text[0]))
        total = torch.zeros(site.layers, site.width, dtype=torch.float64)
        taken: list[torch.Tensor] = []
        handles = [
            module.register_forward_pre_hook(lambda m, a: taken.append(a[0]))
            for module in site.modules
        ]
        for first in range(0, len(texts), size):
            batch = texts[first : first + size]
            width = max(len(text) for text, _ in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            seen = torch.zeros(len(batch), width, dtype=torch.long)
            for i, (text, _) in enumerate(batch):
                ids[i, : len(text)], seen[i, : len(text)] = torch.tensor(text), 1
            taken.clear()
            given = {"input_ids": ids.to(lm.device), "attention_mask": seen.to(lm.device)}
            with torch.no_grad():
                lm.model.model(**given, use_cache=False)
            for i, (text, sign) in enumerate(batch):
                total += sign * torch.stack([a[i, len(text) - 1] for a in taken]).double().cpu()
        for handle in handles:
            handle.remove()
        return (total / len(pairs)).float()

    sizes = {}
    for size in SIZES:
        start = time.perf_counter()
        expected = plainly(size)
        sizes[size] = time.perf_counter() - start
    size = min(sizes, key=lambda s: sizes[s])
    theirs, ours = [sizes[size]], []
    for number in range(bench.rounds):
        start = time.perf_counter()
        mean = MeanDifference(site, len(pairs))
        readers = [(site, mean)]
        label = f"mask, round {number + 1}"
        read_pairs(lm.engine.forward, readers, pairs, 0, True, lm.engine.bounds, label)
        found = mean.tensors(label)["difference"]
        ours.append(time.perf_counter() - start)
        if number + 1 < bench.rounds:
            start = time.perf_counter()
            plainly(size)
            theirs.append(time.perf_counter() - start)
    equal = bench.check("D", float((found.flatten(1) - expected).abs().max()))
    ratio = statistics.median(o / t for t, o in zip(theirs, ours, strict=True))
    return f"{ratio:.2f} of a plain pass's time, batch size {size} (wanted at most 0.75); {equal}"


def generate(bench: Bench, row: str) -> str:
    name, limit, shots, wanted = TEXTS[row]
    # Every edit is made, but the texts stay those of hf: as many tokens are asked for.
    sizes: tuple[int | str, ...] = (8, "auto")
    ours: dict[int | str, list[float]] = {size: [] for size in sizes}
    arms = {
        size: bench.steered(element="head", top_k=6, delta=1e-7, batch_size=size) for size in sizes
    }
    bench.evaluate(arms[8], name, 2, shots)  # fits and keeps the fit
    odd = 0
    for _ in range(bench.rounds):
        theirs, expected = bench.evaluate(bench.plain(8), name, limit, shots)
        for size, lm in arms.items():
            seconds, same = bench.evaluate(lm, name, limit, shots)
            ours[size].append(seconds / theirs)
            odd += sum(one != other for one, other in zip(same, expected, strict=True))
    equal = bench.check("texts at delta 1e-7", float(odd), 0.0)
    said = ", ".join(f"{statistics.median(ours[size]):.2f} at batch size {size}" for size in sizes)
    return f"of the time of hf at batch size 8: {said} (wanted at most {wanted}); {equal}"


def memory(bench: Bench, row: str) -> str:
    peaks = {}
    for arm in ("hf", "hf-sadi"):
        command = [sys.executable, __file__, "--peak", arm, "--model", bench.path]
        command += ["--data", os.getcwd(), "--cache", str(bench.folder), "--device", bench.device]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[arm] = json.loads(done.stdout.strip().splitlines()[-1])
    return "; ".join(
        f"{task}: {peaks['hf-sadi'][task] / peaks['hf'][task]:.2f} of hf's peak memory"
        for task in peaks["hf"]
    ) + ", batch size 8 (wanted at most 1.15)"  # fmt: skip


def peak(bench: Bench, arm: str) -> None:
    """Print the peak memory of scoring each task, that of loading the model not counted (Linux).

    On a GPU it is the device's.
    """
    import torch

    on_gpu = bench.device.startswith("cuda")
    lm = bench.plain(8) if arm == "hf" else bench.steered(top_k=6, delta=9, batch_size=8)
    peaks = {}
    for name, limit in (("truthfulqa_mc1", 8), ("boolq", 16)):
        bench.evaluate(lm, name, 2, None)  # fits and keeps the fit
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        bench.evaluate(lm, name, limit, None)
        status = Path("/proc/self/status").read_text()
        there = torch.cuda.max_memory_allocated() if on_gpu else 0
        peaks[name] = there or int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps(peaks))


def main(arguments: list[str] | None = None) -> int:
    runs: dict[str, Callable[[Bench, str], str]] = {
        **dict.fromkeys(ROWS, scoring),
        **dict.fromkeys(GRIDS, grid),
        "mask": mask,
        **dict.fromkeys(TEXTS, generate),
        "memory": memory,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help=", ".join(runs))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.rows) - set(runs))
    if unknown:
        parser.error(f"unknown row {', '.join(unknown)}; rows are {', '.join(runs)}")
    from offline import run_quietly_in

    with run_quietly_in(given.data) as folder:
        if given.model is None:
            from smollm2 import default_folder, smollm2

            given.model = str(smollm2(default_folder()))
        bench = Bench(given.model, given.rounds, given.cache or folder, given.device)
        if given.peak:
            peak(bench, given.peak)
            return 0
        for row in given.rows or runs:
            print(f"{row}: {runs[row](bench, row)}", flush=True)
    return int(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
