"""Several processes, on one node and on two, give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from helpers import quick_host
from helpers.launchers import launchers
from sadi_lmeval.processes import ALONE
from sadi_lmeval.storage.fit_file import load_fit

pytestmark = pytest.mark.slow

TASKS = ("tiny_choice", "tiny_folds", "tiny_text")
SCORED = [0, 3, 9, 20, 26, 40, 49]
"""Documents of both folds."""
TUNED: dict[str, Any] = {
    "grid": "1/3x4/9",
    "rule": "best",
    "n_pairs": 13,
    "n_tune": 7,
    "negative": "hardest",
}
COMPARED = ("one", "two", "three", "two nodes")


def samples(documents: list[int]) -> str:
    return json.dumps(dict.fromkeys(TASKS, documents))


class Run(NamedTuple):
    """What a run left behind."""

    code: int
    output: str
    seconds: float
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        [file] = self.folder.joinpath("out").rglob("results_*.json")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def samples(self, task: str) -> dict[int, Any]:
        [file] = self.folder.joinpath("out").rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found = {line["doc_id"]: line for line in lines}
        assert len(found) == len(lines), "a document was scored twice"
        return found

    @property
    def masks(self) -> dict[str, Any]:
        return masks_in(self.folder / "cache")


def masks_in(cache: Path) -> dict[str, Any]:
    return {path.name: load_fit(path) for path in sorted(cache.glob("*.safetensors"))}


class Layouts:
    """Runs ``lm_eval`` on the tiny model in processes of some layout."""

    def __init__(self, model: Path, tasks: Path, place: Path) -> None:
        self.model, self.tasks, self.place = model, tasks, place

    def __call__(
        self,
        layout: str,
        name: str,
        *options: str,
        model: str = "hf-sadi",
        plain: bool = False,
        path: Path | None = None,
        **arguments: Any,
    ) -> Run:
        """A run; where it is ``plain``, of ``-m lm_eval`` as a user types it."""
        folder = self.place / name
        folder.mkdir()
        text = f"pretrained={self.model},cache_dir={folder / 'cache'}"
        text += "".join(f",{key}={value}" for key, value in arguments.items())
        command = ["-m", "lm_eval"] if plain else [quick_host.__file__]
        command += ["--model", model, "--model_args", text, "--device", "cpu"]
        command += ["--include_path", str(self.tasks), "--output_path", str(folder / "out")]
        command += ["--log_samples", "--batch_size", "4", *options]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.place / "datasets"),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            **({} if path is None else {"PYTHONPATH": str(path)}),
        }
        start = time.monotonic()
        nodes = [
            subprocess.Popen(
                [*launcher, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=folder,
            )
            for launcher in launchers(layout)
        ]
        outputs = [node.communicate(timeout=300)[0] for node in nodes]
        seconds = time.monotonic() - start
        return Run(max(abs(n.returncode) for n in nodes), "\n".join(outputs), seconds, folder)


@pytest.fixture(scope="module")
def layouts(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, tasks_folder: Path
) -> Layouts:
    return Layouts(model_folder, tasks_folder, tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def runs(layouts: Layouts) -> dict[str, Run]:
    """The same tasks, tuned, in every layout."""
    options = ("--tasks", ",".join(TASKS), "--samples", samples(SCORED))
    found = {}
    for layout in COMPARED:
        plain = layout == "two nodes"
        found[layout] = layouts(layout, layout.replace(" ", "_"), *options, plain=plain, **TUNED)
        assert found[layout].code == 0, found[layout].output[-3000:]
    return found


@pytest.fixture(scope="module")
def rounding(
    evaluate_once: Any, runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory
) -> float:
    """The greatest gap between masks of this process, which reads its pairs in other batches, and
    of another."""
    given: dict[str, Any] = {"top_k": 2, "delta": 3, "n_pairs": 13, "negative": "hardest"}
    gaps = [0.0]
    for size in (1, 8):
        cache = tmp_path_factory.mktemp(f"size_{size}")
        settings = {"batch_size": size, "samples": {task: [0, 30] for task in TASKS}}
        evaluate_once(*TASKS, limit=None, settings=settings, cache_dir=str(cache), **given)
        other = masks_in(cache)
        assert list(other) == list(runs["one"].masks)
        for mask, its in zip(runs["one"].masks.values(), other.values(), strict=True):
            gaps += [float((t - its.tensors[k]).abs().max()) for k, t in mask.tensors.items()]
    return max(gaps)


SEVERAL = COMPARED[1:]


@pytest.mark.parametrize("layout", SEVERAL)
def test_masks_are_those_of_one_process(runs: dict[str, Run], rounding: float, layout: str) -> None:
    assert 0 < rounding < 1e-5  # float32 values of about one
    bound = 3 * rounding
    one, several = runs["one"].masks, runs[layout].masks
    assert list(one) == list(several)
    assert len(one) == 4  # one a task, two of the cross-fitted one
    for name, mask in one.items():
        for key, tensor in mask.tensors.items():
            torch.testing.assert_close(several[name].tensors[key], tensor, atol=bound, rtol=0)


def test_prompts_are_answered_and_read_as_by_one_process(layouts: Layouts) -> None:
    """Of a method that is fitted on them; each process knows some activations and some answers."""
    options = ("--tasks", "letters_choice", "--limit", "7")
    given: dict[str, Any] = {"model": "hf-kappa", "n_pairs": 13, "layer": 1, "alpha": 4}
    one, two = (
        layouts(layout, f"prompts_{layout}", *options, **given) for layout in ("one", "two")
    )
    assert one.code == two.code == 0, one.output[-3000:] + two.output[-3000:]
    assert list(one.masks) == list(two.masks)
    for fit, other in zip(one.masks.values(), two.masks.values(), strict=True):
        assert fit.card["n_prompts"] == 13
        for key, tensor in fit.tensors.items():
            # Probes follow the rounding of what they are fitted to; a bias is not even penalised.
            torch.testing.assert_close(other.tensors[key], tensor, atol=1e-3, rtol=0)
            assert tensor.abs().max() > 0.1
    samples = [run.samples("letters_choice") for run in (one, two)]
    assert sorted(samples[0]) == sorted(samples[1]) == list(range(7))
    for number, sample in samples[0].items():
        for found, expected in zip(samples[1][number]["resps"], sample["resps"], strict=True):
            assert float(found[0][0]) == pytest.approx(float(expected[0][0]), abs=1e-3)


@pytest.mark.parametrize("layout", SEVERAL)
def test_settings_and_selected_entries_are_those_of_one_process(
    runs: dict[str, Run], layout: str
) -> None:
    one, several = (runs[each].results["config"]["sadi"] for each in ("one", layout))
    for task in TASKS:
        for mask, other in zip(one[task]["fits"], several[task]["fits"], strict=True):
            same = ("top_k", "delta", "selected", "cache_key", "n_pairs")
            assert {key: mask[key] for key in same} == {key: other[key] for key in same}
            assert mask["tuning"]["documents"] == other["tuning"]["documents"] == 7
            for row, its in zip(mask["tuning"]["table"], other["tuning"]["table"], strict=True):
                assert its["score"] == pytest.approx(row["score"], abs=1e-5)


@pytest.mark.parametrize("layout", SEVERAL)
def test_each_document_is_scored_once_and_as_in_one_process(
    runs: dict[str, Run], layout: str
) -> None:
    for task in TASKS:
        one, several = (runs[each].samples(task) for each in ("one", layout))
        assert len(several) == len(SCORED)
        assert sorted(several) == sorted(one)
        for number, sample in one.items():
            responses = [each[0] for each in several[number]["resps"]]
            for found, wanted in zip(responses, (each[0] for each in sample["resps"]), strict=True):
                if task == "tiny_text":
                    assert found == wanted
                else:
                    assert float(found[0]) == pytest.approx(float(wanted[0]), abs=1e-4)
        metrics = [runs[each].results["results"][task] for each in ("one", layout)]
        for key in ("acc,none", "exact_match,none"):
            assert metrics[1].get(key) == pytest.approx(metrics[0].get(key))


def test_fewer_documents_than_processes_do_not_hang(layouts: Layouts) -> None:
    options = ("--tasks", "tiny_choice,tiny_text", "--limit", "1")
    few: dict[str, Any] = {"top_k": 2, "delta": 3, "n_pairs": 8}
    found = layouts("two nodes", "few", *options, **few)
    assert found.code == 0, found.output[-3000:]
    for task in ("tiny_choice", "tiny_text"):
        assert list(found.samples(task)) == [0]
        assert found.results["n-samples"][task]["effective"] == 1


def test_the_probes_of_iti_are_those_of_one_process(
    layouts: Layouts, evaluate: Any, tmp_path: Path
) -> None:
    options = ("--tasks", "tiny_choice", "--limit", "4")
    given: dict[str, Any] = {"top_k": 3, "alpha": 5, "n_pairs": 24, "model": "hf-iti"}
    two = layouts("two", "iti_two", *options, **given)
    assert two.code == 0, two.output[-3000:]
    evaluate("tiny_choice", limit=4, **given)
    [mask], [other] = masks_in(tmp_path / "cache").values(), two.masks.values()
    for key, tensor in mask.tensors.items():
        torch.testing.assert_close(other.tensors[key], tensor, atol=1e-5, rtol=1e-5)


def test_a_process_that_fails_ends_the_run_with_its_error(
    layouts: Layouts, runs: dict[str, Run], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import sadi_lmeval.passes.activations as broken\n"
        "    def fail(*_):\n"
        "        raise MemoryError('planted')\n"
        "    broken._read = fail\n"
    )
    options = ("--tasks", "tiny_choice", "--limit", "4")
    given: dict[str, Any] = {"top_k": 2, "delta": 3, "n_pairs": 8}
    broken = layouts("two", "broken", *options, path=tmp_path, **given)
    assert broken.code != 0
    assert "MemoryError: planted" in broken.output
    assert broken.seconds < runs["two"].seconds + 60
    assert not list(broken.folder.rglob("results_*.json"))


def test_a_mask_of_several_processes_is_found_by_one(
    layouts: Layouts, runs: dict[str, Run]
) -> None:
    options = ("--tasks", ",".join(TASKS), "--samples", samples(SCORED))
    given = {**TUNED, "cache_dir": runs["three"].folder / "cache"}
    again = layouts("accelerate", "again", *options, plain=True, **given)
    assert again.code == 0, again.output[-3000:]
    assert "Pairs of" not in again.output
    assert "top_k and delta of" not in again.output  # the label of tuning


def test_alone_nothing_is_shared_or_waited_for() -> None:
    assert ALONE.shard(["a", "b", "c"]) == [(0, "a"), (1, "b"), (2, "c")]
    assert ALONE.broadcast(lambda: "said") == "said"
    assert ALONE.all_gather("part") == ["part"]
    assert ALONE.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
    assert ALONE.is_first
