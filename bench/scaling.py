"""Time and memory against the size of a run, as slopes, and what Python takes of a request.

    python bench/scaling.py [--quick] [CURVE ...]

Curves: documents tasks settings layers prompt plain processes; and requests. Each point is a
process of its own with a tiny random Llama on one core. Its time is that process's own on a
processor, user and system, so that others on the machine do not count; of several processes, the
sum. Its memory is what its peak rises by. The slope of a curve is that of a straight line through
the logarithms: 1 is linear, 0 is constant. The last step's own slope stands beside it, as what does
not grow hides what does.

Then, of many requests: the microseconds a request in the model, in the tokenizer, and in neither.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core

import datasets
import lm_eval
import memory
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.model import ManyArmsModel, model_class
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation

_WORDS = 200
"""Of the vocabulary, beside three signs."""
_GIVEN: dict[str, Any] = {
    "top_k": 2,
    "delta": 1.0,
    "n_pairs": 8,
    "device": "cpu",
    "batch_size": "auto",
}

Work = Callable[[], None]


class Curve(NamedTuple):
    """What grows.

    Attributes:
        prepare: makes what is measured, of a size, in an empty folder.
        sizes, quick: the sizes that are measured.
        steepest: the slope that time and memory may have.
    """

    what: str
    prepare: Callable[[int, Path], Work]
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    steepest: float = 1.0


class Cost(NamedTuple):
    """Of one point: seconds on a processor, and MB that the peak rises by."""

    seconds: float
    megabytes: float


# ---------------------------------------------------------------------- what is measured


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token a word."""
    words = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(_WORDS))]
    inner = Tokenizer(models.WordLevel(dict(zip(words, range(len(words)), strict=True)), "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def llama(layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_WORDS + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def phrase(draw: random.Random, least: int, most: int) -> str:
    words = (f"w{draw.randrange(_WORDS)}" for _ in range(draw.randint(least, most)))
    return " ".join(words)


def write_tasks(folder: Path, tasks: int, documents: int) -> list[str]:
    """Write tasks of two choices a document, with data of their own, and give their names."""
    draw = random.Random(0)
    names = []
    for task in range(tasks):
        name = f"task{task}"
        files = {"train": 20, "validation": documents}
        for split, count in files.items():
            with (folder / f"{name}-{split}.jsonl").open("w") as file:
                for number in range(count):
                    row = {
                        "question": f"{number} {phrase(draw, 6, 12)}",
                        "choices": [phrase(draw, 1, 2), phrase(draw, 1, 2)],
                        "label": draw.randrange(2),
                    }
                    file.write(json.dumps(row) + "\n")
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {s: str(folder / f"{name}-{s}.jsonl") for s in files}},
            "training_split": "train",
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        names.append(name)
    return names


def load_tasks(folder: Path, names: list[str]) -> dict[str, Any]:
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    datasets.disable_progress_bars()
    loaded: dict[str, Any] = TaskManager(include_path=str(folder), include_defaults=False).load(
        names
    )
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=1234)
    return loaded


def _evaluated(lm: Any, tasks: dict[str, Any]) -> None:
    lm_eval.evaluate(lm, tasks, bootstrap_iters=0, log_samples=False)


def _run(folder: Path, tasks: int, documents: int) -> Work:
    """A run of ``hf-sadi`` with a fixed setting, pairs included, the loading of data not."""
    loaded = load_tasks(folder, write_tasks(folder, tasks, documents))
    lm = model_class("sadi")(
        llama(), tokenizer=tokenizer(), cache_dir=str(folder / "fits"), **_GIVEN
    )
    return lambda: _evaluated(lm, loaded)


def documents(size: int, folder: Path) -> Work:
    return _run(folder, 1, size)


def tasks(size: int, folder: Path) -> Work:
    return _run(folder, size, 20)


def settings(size: int, folder: Path) -> Work:
    model = memory.tiny_model(130)
    engine, case = Engine(model, 0, None, 80), memory.Case(30, 20, size)
    return memory.tune(case, engine, find_site(model, "hidden"), folder)


def layers(size: int, folder: Path) -> Work:
    """Pairs, a steered scoring and a grid of eight settings, one in each eighth of the layers."""
    model, draw = llama(size), random.Random(0)
    engine = Engine(model, 0, None, 256)
    site = find_site(model, "hidden")

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, _WORDS) for _ in range(count))

    pairs = [TokenPair(list(words(12)), list(words(12))) for _ in range(16)]
    prompts = [words(20) for _ in range(40)]
    requests = [Continuation(prompt, words(2), 0) for prompt in prompts for _ in range(2)]
    gains = torch.zeros(8, site.layers, site.width)
    for number in range(8):
        gains[number, number * site.layers // 8, number] = 1.0
    edits = DiagonalEdits(site, [Edit(gain) for gain in gains])

    def run() -> None:
        engine.read([(site, MeanDifference(site, len(pairs)))], pairs, "Pairs")
        engine.score(requests, edits, lambda scores: None)
        engine.score_grid(requests, [edits], lambda *scores: None)

    return run


def prompt(size: int, folder: Path) -> Work:
    model = memory.tiny_model(size + 100)
    engine = Engine(model, 0, None, size + 50)
    return memory.score_long(memory.Case(prompt=size), engine, find_site(model, "hidden"))


def plain(size: int, folder: Path) -> Work:
    """The same prompt once, by nothing but the model: attention's own part grows as its square."""
    model = memory.tiny_model(size + 100)
    ids = torch.randint(3, 60, (1, size))

    def run() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

    return run


CURVES = {
    "documents": Curve(
        "documents of one task", documents, (100, 1000, 10_000, 100_000), (100, 1000)
    ),
    "tasks": Curve("tasks of 20 documents, with their pairs", tasks, (1, 10, 50, 200), (1, 10)),
    "settings": Curve("settings over 20 documents", settings, (1, 10, 100, 1000), (10, 100)),
    "layers": Curve("layers", layers, (2, 8, 20, 80), (2, 8)),
    "prompt": Curve(
        "tokens of a prompt with four answers, scored and under 2 settings",
        prompt,
        (100, 1000, 10_000, 30_000),
        (100, 1000),
        2.0,
    ),
    "plain": Curve(
        "tokens of a prompt, one plain pass", plain, (100, 1000, 10_000, 30_000), (100, 1000), 2.0
    ),
}  # fmt: skip
_PROCESSES = ((1, 2, 3, 4), (1, 2))
_SHARED = (2000, 400)
"""Documents that several processes divide among them, and with ``--quick``."""


# ---------------------------------------------------------------------- measuring


def measure(prepare: Callable[[int, Path], Work], size: int) -> Cost:
    """Measure one point in a process of its own."""
    context = multiprocessing.get_context("fork")  # what is imported is imported once
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as name:
            first, then = Path(name, "first"), Path(name, "then")
            first.mkdir()
            then.mkdir()
            prepare(2, first)()  # what happens once in a process
            run = prepare(size, then)
            before = resource.getrusage(resource.RUSAGE_SELF)
            run()
            after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        theirs.send(Cost(spent, (after.ru_maxrss - before.ru_maxrss) / 1024))

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        cost: Cost = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{prepare.__name__} of {size} ended with {process.exitcode}") from None
    process.join()
    return cost


def _launched(processes: int, documents: int) -> Cost:
    """Have processes divide the documents of a task: their seconds together, the highest peak."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama().save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        write_tasks(folder, 1, documents)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), __file__, "--rank", name]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = [json.loads(path.read_text()) for path in folder.glob("rank*.json")]
        if done.returncode or len(found) != processes:
            raise RuntimeError(f"{processes} processes: {done.stderr[-2000:]}")
    return Cost(sum(seconds for seconds, _ in found), max(peak for _, peak in found))


def _rank(folder: Path) -> None:
    """Be one of several processes."""
    torch.set_num_threads(1)
    loaded = load_tasks(folder, ["task0"])
    lm = model_class("sadi")(str(folder / "model"), cache_dir=str(folder / "fits"), **_GIVEN)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    _evaluated(lm, loaded)
    spent = time.process_time() - start
    risen = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    (folder / f"rank{int(lm.rank)}.json").write_text(json.dumps([spent, risen]))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Give the slope of the straight line through the logarithms, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )


_LEAST = 1.0
"""MB: what a peak rises by less is what an allocator does."""


def row_of(what: str, sizes: Sequence[int], costs: Sequence[Cost], steepest: str) -> str:
    seconds = [cost.seconds for cost in costs]
    peaks = [max(_LEAST, cost.megabytes) for cost in costs]
    cells = [
        what,
        ", ".join(f"{size:,}" for size in sizes),
        ", ".join(f"{value:.3g}" for value in seconds),
        f"{slope(sizes, seconds):.2f}, {slope(sizes[-2:], seconds[-2:]):.2f}",
        ", ".join(f"{cost.megabytes:.0f}" for cost in costs),
        f"{slope(sizes, peaks):.2f}, {slope(sizes[-2:], peaks[-2:]):.2f}",
        steepest,
    ]
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------- a request's own time


class Outside(NamedTuple):
    """Microseconds a request: in the model, in the tokenizer, and in neither."""

    model: float
    tokenizer: float
    rest: float


@contextmanager
def _timed(holder: Any, name: str) -> Iterator[list[float]]:
    """Sum the seconds in a method of an object."""
    spent, inner = [0.0], getattr(holder, name)

    @functools.wraps(inner)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.process_time()
        try:
            return inner(*arguments, **keywords)
        finally:
            spent[0] += time.process_time() - start

    setattr(holder, name, timed)
    try:
        yield spent
    finally:
        setattr(holder, name, inner)


def requests_of(count: int, choices: int) -> list[Instance]:
    """Make requests as the harness does, so many of each document."""
    draw, made = random.Random(0), []
    for number in range(count // choices):
        context = phrase(draw, 15, 35)
        document = {"question": context, "number": number}
        for choice in range(choices):
            arguments = (context, " " + phrase(draw, 1, 3))
            made.append(Instance("loglikelihood", document, arguments, choice, ("task", number, 1)))
    return made


def outside(count: int, choices: int, what: str) -> Outside:
    """Measure what requests take outside of the model.

    Args:
        what: score: answered as the harness asks; grid: under two settings; pairs: read.
    """
    torch.set_num_threads(1)
    model, words = llama(), tokenizer()
    lm = ManyArmsModel(model, ["none"], tokenizer=words, device="cpu", batch_size="auto")
    requests = requests_of(count, choices)
    site = lm.engine.site("hidden", "residual")
    edits = DiagonalEdits(site, [Edit(torch.ones(site.layers, site.width))] * 2)

    def run(part: list[Instance]) -> None:
        if what == "score":
            lm.loglikelihood(part, disable_tqdm=True)
            return
        asked = lm.continuations([request.args for request in part])
        if what == "grid":
            lm.engine.score_grid(asked, [edits], lambda *scores: None)
            return
        texts = [[*each.context, *each.tokens] for each in asked]
        pairs = [TokenPair(*two) for two in zip(texts[::2], texts[1::2], strict=True)]
        lm.engine.read([(site, MeanDifference(site, len(pairs)))], pairs, "Pairs")

    run(requests[:40])  # what happens once
    with _timed(model, "forward") as forward, _timed(words, "_encode_plus") as encoding:
        start = time.process_time()
        run(requests)
        spent = time.process_time() - start
    rest = spent - forward[0] - encoding[0]
    return Outside(*(1e6 * part / len(requests) for part in (forward[0], encoding[0], rest)))


REQUESTS = {
    "scored, one a prompt": (1, "score", 1),
    "scored, four a prompt": (4, "score", 1),
    "under two settings, four a prompt": (4, "grid", 4),
    "pairs": (2, "pairs", 4),
}
"""Of each row: requests a prompt, what is done, and by how much fewer requests than the others."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("curves", nargs="*", help=f"{', '.join(CURVES)}, processes, requests")
    parser.add_argument("--quick", action="store_true", help="small sizes: under a minute")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.rank:
        _rank(given.rank)
        return
    names = [*CURVES, "processes", "requests"]
    unknown = sorted(set(given.curves) - set(names))
    if unknown:
        parser.error(f"unknown curve {', '.join(unknown)}; curves are {', '.join(names)}")
    asked = given.curves or names
    curves = [name for name in asked if name != "requests"]
    if curves:
        print(
            "| what grows | sizes | seconds on a processor | slope, last step's "
            "| peak rises by, MB | slope, last step's | at most |\n|---|---|---|---|---|---|---|"
        )
    for name in curves:
        if name == "processes":
            counts, shared = _PROCESSES[given.quick], _SHARED[given.quick]
            what = f"processes that divide {shared:,} documents"
            costs = [_launched(count, shared) for count in counts]
            print(row_of(what, counts, costs, "0 beside a constant each"), flush=True)
            continue
        curve = CURVES[name]
        sizes = curve.quick if given.quick else curve.sizes
        costs = [measure(curve.prepare, size) for size in sizes]
        print(row_of(curve.what, sizes, costs, f"{curve.steepest:g}"), flush=True)
    if "requests" in asked:
        count = 4_000 if given.quick else 100_000
        print(
            f"\n| of {count:,} requests | requests | µs a request in the model | in the tokenizer "
            "| in neither |\n|---|---|---|---|---|"
        )
        for row, (choices, what, part) in REQUESTS.items():
            found = outside(count // part, choices, what)
            cells = " | ".join(f"{value:.1f}" for value in found)
            print(f"| {row} | {count // part:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
