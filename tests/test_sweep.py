"""The command ``sadi-lmeval sweep``: right numbers, a line each, and never work done twice."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from matplotlib.image import imread
from torch import Tensor

from sadi_lmeval import cli
from sadi_lmeval.commands.sweep import _best
from sadi_lmeval.comparison import sweep as module
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError
from sadi_lmeval.model import ManyArmsModel
from sadi_lmeval.passes import engine
from sadi_lmeval.passes.grid import grid_log_likelihoods
from sadi_lmeval.steering.tuning import Trial, judge_settings
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.storage.journal import held

Lines = list[dict[str, Any]]
Command = Callable[..., list[str]]
SMALL = ("--methods", "sadi-head,sadi-neuron", "--top_k", "1,5", "--delta=-2,9")
SETTINGS = [("none", 0, 0.0)] + [
    (method, k, d) for method in ("sadi-head", "sadi-neuron") for k in (1, 5) for d in (-2.0, 9.0)
]
NUMBERS = (
    *("score", "stderr", "difference", "difference_stderr", "margin"),
    *("likelihood_difference", "likelihood_difference_stderr"),
)


@pytest.fixture
def command(tmp_path: Path, model_folder: Path, tasks_folder: Path) -> Command:
    """Arguments of the command: ``command("tiny_choice", *SMALL, n_pairs=12)``."""

    def arguments(
        tasks: str, *options: str, include: Path = tasks_folder, host: bool = True, **model: Any
    ) -> list[str]:
        model = {
            "pretrained": model_folder,
            "cache_dir": tmp_path / "cache",
            "n_pairs": 12,
            "n_tune": 12,
            **model,
        }
        text = ",".join(f"{name}={value}" for name, value in model.items() if value is not None)
        given = ["sweep", "--model_args", text, "--tasks", tasks, "--include_path", str(include)]
        given += ["--output", str(tmp_path / "out.jsonl")]
        if host:
            given += ["--batch_size", "4", "--device", "cpu"]
        return [*given, *options]

    return arguments


@pytest.fixture(autouse=True)
def without_the_harness_s_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To index them takes seconds."""
    init = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(init, include_defaults=False))


def read(path: Path) -> Lines:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def keys(lines: Lines) -> list[tuple[str, str, int, float]]:
    return [(l["task"], l["method"], l.get("top_k", 0), l.get("delta", 0.0)) for l in lines]  # noqa: E741


def assert_same(one: Lines, other: Lines) -> None:
    """The same lines but for rounding, in any order."""
    assert len(one) == len(other)
    mine, theirs = (sorted(lines, key=lambda line: str(keys([line]))) for lines in (one, other))
    for a, b in zip(mine, theirs, strict=True):
        assert {k: v for k, v in a.items() if k not in NUMBERS} == {
            k: v for k, v in b.items() if k not in NUMBERS
        }
        assert [a[name] for name in NUMBERS] == pytest.approx(
            [b[name] for name in NUMBERS], abs=1e-4
        )


@pytest.fixture
def sweep(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process; the lines of its output file."""

    def run(tasks: str, *options: str, **model: Any) -> Lines:
        code = cli.main(command(tasks, *options, **model))
        assert code == 0, capsys.readouterr().err
        return read(tmp_path / "out.jsonl")

    return run


# ------------------------------------------------------------------ the numbers


@pytest.mark.parametrize(
    ("task", "element", "model"),
    [
        ("tiny_choice", "head", {}),
        ("tiny_text", "neuron", {"objective": "exact_match"}),
        ("tiny_word", "neuron", {"activations": "clean"}),
        ("tiny_word", "neuron", {"selection": "top_abs", "activations": "clean"}),
    ],
)
def test_dev_lines_are_those_of_the_tuning_of_a_run(
    sweep: Any, evaluate: Any, task: str, element: str, model: dict[str, Any]
) -> None:
    lines = sweep(task, *SMALL, **model)
    assert keys(lines) == [(task, *setting) for setting in SETTINGS]
    run = evaluate(task, limit=2, element=element, grid="1/5x-2/9", n_tune=12, **model)
    [mask] = run["config"]["sadi"][task]["fits"]
    mine = [line for line in lines if line["method"] in ("none", f"sadi-{element}")]
    assert [line["element"] for line in mine] == ["none"] + 4 * [element]
    assert not {"top_k", "delta", "selection"} & set(mine[0])  # which has no numbers
    for line, row in zip(mine, mask["tuning"]["table"], strict=True):
        assert keys([line])[0][2:] == (row["top_k"], row["delta"])
        expected = [row[name] for name in NUMBERS]
        assert [line[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-4)
        assert line["objective"] == mask["tuning"]["objective"]
        assert line["fits"] == ([] if line["method"] == "none" else [mask["cache_key"]])
    for line in lines:
        assert (line["split"], line["documents"], line["not_finite"]) == ("dev", 12, 0)
        if line["method"] != "none":  # which selects nothing
            assert line["selection"] == model.get("selection", "top")
        assert line["run"] == lines[0]["run"]


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random-neuron": ("hf-sadi", {"element": "neuron", "selection": "random"}),
    "fixed": ("hf-sadi", {"element": "head", "steering": "fixed"}),
    "iti": ("hf-iti", {}),
    "caa": ("hf-caa", {}),
}
"""Methods beside the elements of SADI, and the runs that steer so."""


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_text"])
@pytest.mark.parametrize("method", OTHERS)
def test_dev_lines_of_every_other_method_are_those_of_the_tuning_of_a_run(
    sweep: Any, evaluate: Any, method: str, task: str
) -> None:
    grid = "1/2x-2/9"
    lines = sweep(task, "--methods", method, "--grid", grid)
    model, own = OTHERS[method]
    run = evaluate(task, limit=2, model=model, grid=grid, n_tune=12, **own)
    [mask] = run["config"]["sadi"][task]["fits"]
    names = run["config"]["sadi"][task]["parameters"]
    assert [line["method"] for line in lines] == ["none"] + 4 * [method]
    unsteered, *table = mask["tuning"]["table"]
    for line, row in zip(lines, [unsteered, *table], strict=True):
        assert line["score"] == pytest.approx(row["score"], abs=1e-4)
        assert line["difference"] == pytest.approx(row["difference"], abs=1e-4)
        assert line["margin"] == pytest.approx(row["margin"], abs=1e-4)
    for line, row in zip(lines[1:], table, strict=True):
        assert [line[name] for name in names] == [row[name] for name in names]
        assert line["fits"] == [mask["cache_key"]]
        assert ("selection" in line) == (model == "hf-sadi")
        for key, value in own.items():
            assert line[key] == value


def test_the_best_of_equal_lines_is_that_of_the_smallest_edit_as_the_fit_has_it(
    sweep: Any, tmp_path: Path
) -> None:
    lines = sweep("tiny_choice", "--methods", "austeer", "--grid", "2/60x-2/9")
    [file] = (tmp_path / "cache").rglob("*.safetensors")
    tensors = load_fit(file).tensors
    sizes = {line["top_k"]: line["edit_size"] for line in lines if line.get("alpha") == 9}
    shares = sorted((torch.maximum(tensors["up"], tensors["down"]) / 12).flatten().tolist())
    for top_k, size in sizes.items():
        assert size == pytest.approx(9 * sum(shares[-top_k:]), rel=1e-5)
    assert sizes[60] < 30 * sizes[2]  # not as K: those of the first rise or fall more alike
    alike = [{**line, "score": 0.5, "margin": 1.0} for line in lines if line["method"] != "none"]
    [best] = _best(alike).values()
    assert (best["top_k"], best["alpha"]) == (2, -2)


def test_methods_of_every_kind_stand_in_one_sweep_each_with_its_own_grid_and_names(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Counting()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    lines = sweep("tiny_choice", "--methods", "sadi-neuron,iti,caa", n_tune=4)
    by_method: dict[str, Lines] = {}
    for line in lines:
        by_method.setdefault(line["method"], []).append(line)
    # the model has 144 neurons, 12 heads and 3 layers
    assert {name: len(found) for name, found in by_method.items()} == {
        "none": 1,
        "sadi-neuron": 6 * 6,
        "iti": 5,
        "caa": 3 * 4,
    }
    assert spy.settings == [[36, 5, 12]]
    assert {line["top_k"] for line in by_method["iti"]} == {12}
    assert sorted({line["alpha"] for line in by_method["iti"]}) == [10, 15, 20, 25, 30]
    assert {line["layer"] for line in by_method["caa"]} == {0, 1, 2}
    assert not {"delta", "top_k", "alpha"} & set(by_method["caa"][0])
    assert len({line["run"] for line in lines}) == 1
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    again = sweep("tiny_choice", "--methods", "sadi-neuron,iti,caa", n_tune=4)
    assert again == lines
    assert sweep("tiny_choice", "--methods", "caa", n_tune=4) == lines


def test_dev_lines_of_a_cross_fitted_task_are_over_the_held_out_documents_of_all_folds(
    sweep: Any, evaluate: Any
) -> None:
    [none, line] = sweep("tiny_folds", "--methods", "sadi-head", "--top_k", "5", "--delta", "9")
    run = evaluate("tiny_folds", limit=50, grid="5x9/10", n_tune=12)
    tables = [mask["tuning"]["table"] for mask in run["config"]["sadi"]["tiny_folds"]["fits"]]
    assert none["documents"] == line["documents"] == 24
    for found, row in ((none, 0), (line, 1)):
        for name in ("score", "difference", "margin"):
            expected = sum(table[row][name] for table in tables) / 2
            assert found[name] == pytest.approx(expected, abs=1e-4)
    assert len(line["fits"]) == 2


@pytest.mark.parametrize(
    ("task", "element", "options", "limit", "settings"),
    [
        ("tiny_choice", "hidden", (), None, {}),
        ("tiny_folds", "head", ("--limit", "40"), 40, {}),
        ("tiny_word", "head", ("--limit", "10"), 10, {}),
        ("tiny_folds", "neuron", ("--num_fewshot", "1", "--limit", "0.6"), 30, {"num_fewshot": 1}),
        (
            "tiny_choice",
            "head",
            ("--apply_chat_template", "--system_instruction", "the cat", "--limit", "20"),
            20,
            {"apply_chat_template": True, "system_instruction": "the cat"},
        ),
    ],
)
def test_test_lines_are_the_scores_of_runs_with_fixed_settings(
    sweep: Any,
    evaluate: Any,
    task: str,
    element: str,
    options: tuple[str, ...],
    limit: int | None,
    settings: dict[str, Any],
) -> None:
    grid = ("--methods", f"sadi-{element}", "--top_k", "3", "--delta", "9", "--split", "test")
    lines = sweep(task, *grid, *options)
    plain = evaluate(task, model="hf", limit=limit, settings=settings)
    steered = evaluate(task, limit=limit, settings=settings, element=element, top_k=3, delta=9)
    expected = [run["results"][task]["acc,none"] for run in (plain, steered)]
    assert [line["score"] for line in lines] == pytest.approx(expected)
    assert all(line["documents"] == (limit or 50) for line in lines)
    assert all(line["split"] == "test" for line in lines)
    masks = steered["config"]["sadi"][task]["fits"]
    assert lines[1]["fits"] == [mask["cache_key"] for mask in masks]


def test_the_dev_split_says_best_and_the_test_split_oracle(
    sweep: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    sweep("tiny_choice", *grid)
    said = capsys.readouterr().out
    assert "sadi-head best: K=3, delta=9" in said
    assert "oracle" not in said
    sweep("tiny_choice", *grid, "--split", "test")
    assert "oracle: best on the scored documents" in capsys.readouterr().out


def test_two_tasks_have_their_own_lines(sweep: Any) -> None:
    together = sweep("tiny_choice,tiny_text", *SMALL)
    expected = [(t, *s) for t in ("tiny_choice", "tiny_text") for s in SETTINGS]
    assert keys(together) == expected
    assert len({line["run"] for line in together}) == 2


def test_a_sweep_without_a_grid_tries_the_reference_code_s(sweep: Any) -> None:
    lines = sweep("tiny_choice", "--methods", "sadi-head", n_tune=4)
    assert len(lines) == 97
    assert len(set(keys(lines))) == 97


def test_a_document_without_a_right_choice_is_scored_in_the_test_split(
    sweep: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    """The harness counts it as wrong; no pair and no held-out document is such a one."""
    rows = [json.loads(line) for line in (tasks_folder / "validation.jsonl").open()][:6]
    rows[2]["label"] = -1
    (tmp_path / "own").mkdir()
    data = tmp_path / "own" / "validation.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (tasks_folder / "tiny_choice.yaml").read_text()
    text = text.replace(str(tasks_folder / "validation.jsonl"), str(data))
    (tmp_path / "own" / "own.yaml").write_text(text.replace("tiny_choice", "tiny_unknown"))
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9", "--split", "test")
    lines = sweep("tiny_unknown", *grid, include=tmp_path / "own")
    assert [line["documents"] for line in lines] == [6, 6]


def test_a_document_under_a_setting_is_kept_as_three_numbers(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 bytes, and no object of its own, which takes ten times that."""
    kept: list[tuple[int, int]] = []

    def watched(trial: Trial, families: Sequence[Edits], *others: Any) -> Any:
        gc.collect()
        tracemalloc.start()
        try:
            found = judge_settings(trial, families, *others)
            gc.collect()
            kept.append((len(found) * len(found[0]), tracemalloc.get_traced_memory()[0]))
        finally:
            tracemalloc.stop()
        return found

    monkeypatch.setattr(module, "judge_settings", watched)
    grid = "--top_k", "1,2,3,4,5", f"--delta={','.join(map(str, range(1, 41)))}"
    assert len(sweep("tiny_choice", "--methods", "sadi-head", *grid)) == 201
    [(cells, size)] = kept
    assert cells == 12 * 201
    assert size / cells < 80


# ------------------------------------------------------------------ what the run is told


def copied(tasks_folder: Path, folder: Path) -> Path:
    """The tiny tasks in another folder, to which files may be added."""
    folder.mkdir()
    for file in tasks_folder.glob("*.yaml"):
        shutil.copy(file, folder)
    return folder


def test_a_benchmark_file_in_the_included_folder_counts(
    sweep: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    folder = copied(tasks_folder, tmp_path / "mine")
    (folder / "bench.yaml").write_text("benchmark: mine\ntasks: [tiny_choice]\nn_pairs: 60\n")
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    lines = sweep("tiny_choice", *grid, include=folder, n_pairs=None, n_tune=None)
    assert [line["documents"] for line in lines] == [43, 43]  # 70 shared out as 60 to 100


def test_masks_may_come_from_another_task_of_the_included_folder(
    sweep: Any, evaluate: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    folder = copied(tasks_folder, tmp_path / "mine")
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    lines = sweep("tiny_text", *grid, include=folder, mask_from="tiny_choice")
    run = evaluate("tiny_text", mask_from="tiny_choice", grid="3x9/10", n_tune=12)
    [mask] = run["config"]["sadi"]["tiny_text"]["fits"]
    for line, row in zip(lines, mask["tuning"]["table"][:2], strict=True):
        assert line["score"] == pytest.approx(row["score"], abs=1e-4)


@pytest.mark.parametrize("model", [{}, {"device": "cpu"}])
def test_device_and_batch_size_need_not_be_given(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    """Without ``--device`` it is the harness's business where the model goes."""
    init = ManyArmsModel.__init__

    def on_this_machine(self: ManyArmsModel, pretrained: str, **arguments: Any) -> None:
        assert arguments.setdefault("device", "cpu") == "cpu"
        init(self, pretrained, **arguments)

    monkeypatch.setattr(ManyArmsModel, "__init__", on_this_machine)
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    assert len(sweep("tiny_choice", *grid, host=False, **model)) == 2


def test_a_list_of_numbers_may_begin_with_a_negative_one(sweep: Any) -> None:
    lines = sweep("tiny_choice", "--methods", "sadi-head", "--top_k", "3", "--delta", "-2,9")
    assert [line.get("delta") for line in lines] == [None, -2.0, 9.0]


# ------------------------------------------------------------------ never twice


class Counting:
    """Takes the place of the grid's scoring: what it was asked for; may interrupt it."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.requests: list[int] = []
        self.settings: list[list[int]] = []
        self.inner: Any = grid_log_likelihoods

    def __call__(self, forward: Any, requests: Any, families: Any, **named: Any) -> None:
        self.requests.append(len(requests))
        self.settings.append([family.count for family in families])
        done = named.pop("done")

        def told(which: list[int], *scores: Any) -> None:
            done(which, *scores)
            if self.after is not None:
                self.after -= len(which)
                if self.after <= 0:
                    raise KeyboardInterrupt

        self.inner(forward, requests, families, done=told, **named)


def test_the_same_command_computes_nothing_again(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep("tiny_choice,tiny_folds", *SMALL)
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    monkeypatch.setattr(engine, "read_pairs", None)
    sweep("tiny_choice,tiny_folds", *SMALL)
    sweep(
        "tiny_folds", "--methods", "sadi-head,sadi-neuron", "--top_k", "5", "--delta", "9"
    )  # a part of it
    assert (tmp_path / "out.jsonl").read_bytes() == before
    with pytest.raises(TypeError):
        sweep("tiny_choice", *SMALL, seed=1)


@pytest.mark.parametrize(
    ("options", "new"),
    [
        (("--methods", "sadi-head,sadi-neuron", "--top_k", "1", "--delta=-2,9"), [2, 2]),
        (("--methods", "sadi-head", "--top_k", "1", "--delta=-2,9"), [2, 4]),
        (("--methods", "sadi-neuron", "--top_k", "1,5", "--delta=-2,9"), [4]),
    ],
    ids=["more K", "more K and another method", "another method"],
)
def test_a_larger_grid_computes_only_what_is_new(
    sweep: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    new: list[int],
) -> None:
    whole = sweep("tiny_choice", *SMALL)
    (tmp_path / "out.jsonl").unlink()
    first = sweep("tiny_choice", *options)
    spy = Counting()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    grown = sweep("tiny_choice", *SMALL)
    assert grown[: len(first)] == first
    assert [[count for count in counts if count] for counts in spy.settings] == [new]
    assert_same(grown, whole)


def test_other_runs_stand_in_the_same_file(sweep: Any) -> None:
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    sweep("tiny_choice", *grid)
    sweep("tiny_choice", *grid, seed=1)
    lines = sweep("tiny_choice", *grid, "--split", "test")
    assert len(lines) == 6
    assert len({line["run"] for line in lines}) == 3


def test_an_interrupted_sweep_goes_on_where_it_was(
    command: Command,
    sweep: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """36 requests of each of two tasks, interrupted in the first and in the second."""
    undisturbed = sweep("tiny_choice,tiny_folds", *SMALL)
    (tmp_path / "out.jsonl").unlink()
    asked = []
    for after in (12, 50, 30):
        spy = Counting(after)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "grid_log_likelihoods", spy)
            assert cli.main(command("tiny_choice,tiny_folds", *SMALL)) == 130
        assert "re-run the same command to resume" in capsys.readouterr().err
        assert list(tmp_path.glob("out.jsonl.*"))
        asked.append(spy.requests)
    assert asked[0] == [36]
    assert 0 < asked[1][0] <= 24
    assert asked[1][1] == 36  # the next task, or its first fold
    assert len(read(tmp_path / "out.jsonl")) == 9
    spy = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "grid_log_likelihoods", spy)
        assert_same(sweep("tiny_choice,tiny_folds", *SMALL), undisturbed)
    assert sum(spy.requests) < 72
    assert not list(tmp_path.glob("out.jsonl.*"))


def environment(tmp_path: Path) -> dict[str, str]:
    cache = str(tmp_path.parent / "datasets")
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


@pytest.mark.slow
def test_the_command_itself_writes_lines_and_heatmaps(
    command: Command, sweep: Any, tmp_path: Path
) -> None:
    expected = sweep("tiny_choice", *SMALL)
    (tmp_path / "out.jsonl").unlink()
    images = ("--heatmaps", str(tmp_path / "images"))
    arguments = command("tiny_choice", *SMALL, *images)
    done = subprocess.run(
        [sys.executable, "-m", "sadi_lmeval", *arguments],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert_same(read(tmp_path / "out.jsonl"), expected)
    assert "tiny_choice: unsteered: " in done.stdout
    assert len(list((tmp_path / "images").glob("*.png"))) == 2


# ------------------------------------------------------------------ heatmaps


def test_heatmaps_are_drawn_one_a_task_and_method(sweep: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for _ in range(2):  # the second time all lines are there already
        sweep("tiny_choice,tiny_text", *SMALL, "--heatmaps", str(folder))
        names = {
            f"{task}.sadi-{element}.png"
            for task in ("tiny_choice", "tiny_text")
            for element in ("head", "neuron")
        }
        assert {path.name for path in folder.iterdir()} == names
        for path in folder.iterdir():
            assert imread(path).std() > 0
            path.unlink()


def test_a_sweep_ends_well_where_the_unsteered_model_is_not_finite(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner: Any = grid_log_likelihoods

    def without_unsteered(*arguments: Any, done: Any, **named: Any) -> None:
        def told(which: list[int], values: Tensor, greedy: Tensor) -> None:
            values[0] = torch.nan
            done(which, values, greedy)

        inner(*arguments, done=told, **named)

    monkeypatch.setattr(engine, "grid_log_likelihoods", without_unsteered)
    folder = tmp_path / "images"
    lines = sweep("tiny_choice", *SMALL, "--heatmaps", str(folder))
    assert lines[0]["not_finite"] == 12
    assert all(line["difference"] is None for line in lines)
    assert all(line["score"] is not None for line in lines[1:])
    assert "tiny_choice: sadi-head best: K=" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 2


# ------------------------------------------------------------------ mistakes


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[-1].startswith("sadi-lmeval: error: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    return lines[-1] if len(lines) == 1 else said.err


@pytest.mark.parametrize(
    ("options", "model", "words"),
    [
        (("--methods", "sadi-heads"), {}, ["unknown method 'sadi-heads'", "'sadi-head'"]),
        (("--methods", "sadi-head,mlp"), {}, ["unknown method 'mlp'", "sadi-head, sadi-hidden"]),
        (("--methods", ""), {}, ["--methods", "empty list"]),
        (("--methods", "iti,iti"), {}, ["--methods", "iti named twice"]),
        (("--tasks", ""), {}, ["--tasks", "empty list"]),
        (("--tasks", " , "), {}, ["--tasks", "empty list"]),
        (("--tasks", "tiny_choice,tiny_choice"), {}, ["--tasks", "tiny_choice named twice"]),
        (("--tasks", "tiny_choise"), {}, ["'tiny_choise'", "'tiny_choice'"]),
        (("--top_k", ","), {}, ["--top_k", "empty list"]),
        (("--delta", ""), {}, ["--delta", "empty list"]),
        (("--top_k", "1,2,1"), {}, ["--top_k", "1 named twice"]),
        (("--top_k", "0,x"), {}, ["'0'", "'x'"]),
        (("--top_k", "1.5", "--delta", "nan,inf"), {}, ["'1.5'", "'nan'", "'inf'"]),
        (("--delta", "0"), {}, ["strength 0 alone steers nothing"]),
        (
            ("--methods", "sadi-head,sadi-neuron", "--top_k", "1"),
            {},
            ["--top_k and --delta", "give all of them"],
        ),
        (("--methods", "sadi-head,caa", "--grid", "1x2"), {}, ["a grid is of one kind of method"]),
        (("--grid", "1x2", "--delta", "3"), {}, ["--grid was given with --top_k and --delta"]),
        (("--grid", "1/2"), {}, ["grid=1/2", "1/2/4x4/9"]),
        (("--grid", "1x0"), {}, ["strength 0 alone steers nothing"]),
        (("--methods", "caa", "--grid", "0/3x1"), {}, ["layer=3", "layers 0 to 2"]),
        (("--methods", "iti", "--grid", "13x1"), {}, ["top_k=13", "12 entries"]),
        ((), {"alpha": 3}, ["--model_args alpha", "--grid"]),
        ((), {"layer": 1, "multiplier": 3}, ["--model_args layer, multiplier"]),
        (("--top_k", "1,13", "--delta", "1"), {}, ["top_k=13", "12 entries", "3 layers of 4"]),
        (("--methods", "sadi-head,sadi-neuron", "--top_k", "13", "--delta", "1"), {}, ["top_k=13"]),
        (("--methods", "sadi-hidden", "--top_k", "97"), {}, ["top_k=97", "96 entries"]),
        (("--max_settings", "95"), {}, ["96 settings", "--max_settings 95"]),
        ((), {"pretrained": None}, ["--model_args", "pretrained=MODEL is missing"]),
        ((), {"top_k": 3}, ["--model_args top_k", "use --methods, --top_k, --delta, --grid"]),
        ((), {"grid": "1x2", "element": "head"}, ["element, grid"]),
        ((), {"n_tune": 0}, ["n_tune=0", "at least 1"]),
        ((), {"objective": "acc"}, ["objective=acc"]),
        ((), {"selction": "top"}, ["'selction'", "'selection'"]),
        (("--limit", "0"), {}, ["limit"]),
        (("--limit", "-1"), {}, ["limit"]),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    model: dict[str, Any],
    words: list[str],
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    arguments = command("tiny_choice", "--methods", "sadi-head", *options, **model)
    said = refused(arguments, capsys)
    assert all(word in said for word in words), said


def test_an_option_of_no_named_method_is_told_as_argparse_does(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for methods, option in (("iti", "--delta"), ("caa", "--top_k"), ("sadi-head", "--layer")):
        with pytest.raises(SystemExit) as caught:
            cli.main(command("tiny_choice", "--methods", methods, option, "1"))
        assert caught.value.code == 2
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err


PROBES = ("--methods", "iti", "--top_k", "2", "--alpha", "-8,3")
DIRECTIONS = ("mass_mean", "probe")


def test_the_numbers_of_every_method_are_options_and_its_arguments_model_arguments(
    sweep: Any, evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines of one argument are never taken for those of another."""
    runs, said = {}, {}
    for direction in DIRECTIONS:
        runs[direction] = sweep("tiny_choice", *PROBES, direction=direction)
        said[direction] = capsys.readouterr().out
    lines = runs["probe"]
    assert lines[:3] == runs["mass_mean"]
    steered = [line for line in lines if line["method"] == "iti"]
    assert [(line["direction"], line["alpha"]) for line in steered] == [
        ("mass_mean", -8.0), ("mass_mean", 3.0), ("probe", -8.0), ("probe", 3.0)]  # fmt: skip
    assert len(lines) == 5
    assert len({line["margin"] for line in steered}) == 4
    assert steered[0]["fits"] == steered[2]["fits"]  # what is measured is the same
    assert [line["arm"] for line in steered] == 2 * [steered[0]["arm"]] + 2 * [steered[2]["arm"]]
    assert steered[0]["arm"] != steered[2]["arm"]
    assert said["mass_mean"] != said["probe"]
    for direction in DIRECTIONS:
        assert sweep("tiny_choice", *PROBES, direction=direction) == lines
        assert capsys.readouterr().out == said[direction]
        own = [line for line in steered if line["direction"] == direction]
        run = evaluate("tiny_choice", model="hf-iti", grid="2x-8/3", n_tune=12, direction=direction)
        [fit] = run["config"]["sadi"]["tiny_choice"]["fits"]
        for line, row in zip([lines[0], *own], fit["tuning"]["table"], strict=True):
            expected = [row[name] for name in NUMBERS]
            assert [line[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-4)


def test_notes_of_an_interrupted_sweep_are_not_taken_for_those_of_another_argument(
    command: Command, sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = sweep("tiny_choice", *PROBES, direction="probe")
    (tmp_path / "out.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "grid_log_likelihoods", Counting(after=20))
        assert cli.main(command("tiny_choice", *PROBES, direction="mass_mean")) == 130
    assert list(tmp_path.glob("out.jsonl.*"))
    spy = Counting()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    assert_same(sweep("tiny_choice", *PROBES, direction="probe"), undisturbed)
    assert spy.requests == [36]


def test_of_one_method_a_number_may_be_named_alone(sweep: Any) -> None:
    lines = sweep("tiny_choice", "--methods", "iti", "--top_k", "1")
    assert [(line.get("top_k"), line.get("alpha")) for line in lines] == [
        (None, None), *((1, alpha) for alpha in (10.0, 15.0, 20.0, 25.0, 30.0))]  # fmt: skip


@pytest.mark.parametrize("grid", [(), ("--grid", "1x2")])
def test_the_unsteered_model_alone_is_refused_or_swept(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], grid: tuple[str, ...]
) -> None:
    if cli.main(command("tiny_choice", "--methods", "none", *grid)) == 1:
        assert capsys.readouterr().err.splitlines()[-1].startswith("sadi-lmeval: error: ")
    else:
        assert [line["method"] for line in read(tmp_path / "out.jsonl")] == ["none"]


def test_a_given_mask_is_refused_or_used(
    command: Command, evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluate("tiny_choice", top_k=2, delta=3, seed=5)
    file = run["config"]["sadi"]["tiny_choice"]["fits"][0]["file"]
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    if cli.main(command("tiny_choice", *grid, mask=file)) == 1:
        assert "mask" in capsys.readouterr().err.splitlines()[-1]
    else:
        assert read(tmp_path / "out.jsonl")[1]["fits"] == [file]


def test_a_file_that_another_sweep_writes_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path / "out.jsonl"):
        said = refused(command("tiny_choice", *SMALL), capsys)
    assert f"{tmp_path / 'out.jsonl'}: another run is writing to it" in said
    assert list(tmp_path.glob("out*")) == []


def test_a_mistake_leaves_no_file(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (("--tasks", "tiny_choise"), ("--top_k", "13"), ("--delta", "x")):
        refused(command("tiny_choice", "--methods", "sadi-head", *options), capsys)
        assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_heatmaps_are_refused_before_anything_is_done(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "matplotlib" else find(name, *more),
    )
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    folder = tmp_path / "images"
    said = refused(command("tiny_choice", *SMALL, "--heatmaps", str(folder)), capsys)
    assert "pip install 'sadi-lmeval[plot]'" in said
    assert not folder.exists()
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_can_no_longer_be_written_is_an_error_and_the_work_is_kept(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk fills up while the settings are tried."""
    inner, count = Path.open, grid_log_likelihoods
    full = False

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        if full and self.name == "out.jsonl":
            raise OSError(28, "No space left on device")
        return inner(self, *arguments, **named)

    def scored(*arguments: Any, **named: Any) -> None:
        nonlocal full
        full = True
        count(*arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(engine, "grid_log_likelihoods", scored)
    assert cli.main(command("tiny_choice", *SMALL)) == 1
    assert "out.jsonl" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.glob("out.jsonl.*"))


def test_heatmaps_that_cannot_be_written_are_refused_in_one_line(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").write_text("mine")
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    images = ("--heatmaps", str(tmp_path / "images"))
    assert cli.main(command("tiny_choice", *grid, *images)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sadi-lmeval: error: ")
    assert "images" in said
    assert (tmp_path / "images").read_text() == "mine"


def test_what_the_task_cannot_do_is_one_line(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--methods", "sadi-head", "--top_k", "3", "--delta", "9")
    for task, model, words in (
        ("tiny_rolling", {}, "loglikelihood_rolling"),
        ("tiny_choice", {"n_tune": 59}, "59 are needed"),
        ("tiny_choice", {"n_pairs": 71}, "71 are needed"),
        ("tiny_text", {"objective": "metric"}, "objective=metric"),
        ("tiny_same_split", {}, "folds=2"),
    ):
        capsys.readouterr()
        assert cli.main(command(task, *grid, **model)) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("sadi-lmeval: error: ")
        assert words in said


OWN = json.dumps({"run": "r", "task": "t", "method": "none", "top_k": 0, "delta": 0.0}) + "\n"


@pytest.mark.parametrize(
    "content",
    [
        b"mine\n",
        b"mine",
        b"a,b\n1,2\n",
        b"5",
        b'{"a": 1}\n',
        b'{"a": 1}',
        b'{\n  "a": 1\n}\n',
        b"\x89PNG\r\n\x1a\n\x00",
        b"\n",
        (OWN + "mine\n").encode(),
        (OWN + '{"a": 1}\n' + OWN).encode(),
        b'["run", "task", "method", "top_k", "delta"]\n',
        b'{"run": "r", "task": "t", "element": "none", "top_k": 0, "delta": 0.0}\n',
    ],
)
def test_a_file_that_no_sweep_wrote_is_refused_and_left_as_it_is(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    def load(*_: Any) -> None:
        raise UserError("the file was taken")

    monkeypatch.setattr("sadi_lmeval.commands.sweep._load", load)
    output = tmp_path / "out.jsonl"
    output.write_bytes(content)
    said = refused(command("tiny_choice", *SMALL), capsys)
    assert f"output {output}" in said
    assert output.read_bytes() == content


def test_a_folder_is_no_output_file(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.jsonl").mkdir()
    assert "cannot be used" in refused(command("tiny_choice", *SMALL), capsys)
    (tmp_path / "out.jsonl").rmdir()
    (tmp_path / "file").write_text("")
    arguments = command("tiny_choice", *SMALL, "--output", str(tmp_path / "file" / "out.jsonl"))
    assert "cannot be used" in refused(arguments, capsys)


# ------------------------------------------------------------------ controls


def test_shuffled_labels_are_other_lines_of_the_same_file(command: Command, tmp_path: Path) -> None:
    """Whether they are asked for by an arm's name or by the argument."""
    grid = ("--layer", "0,1", "--multiplier", "1")

    def lines(methods: str, **model: Any) -> Lines:
        before = (tmp_path / "out.jsonl").read_text() if (tmp_path / "out.jsonl").exists() else ""
        given = command("tiny_choice", "--methods", methods, *grid, "--limit", "6", **model)
        assert cli.main(given) == 0
        text = (tmp_path / "out.jsonl").read_text()
        assert text.startswith(before)
        return [json.loads(line) for line in text[len(before) :].splitlines()]

    gold = {line.get("layer"): line for line in lines("caa")}
    by_argument = {line.get("layer"): line for line in lines("caa", labels="shuffled")}
    by_name = {line.get("layer"): line for line in lines("caa-shuffled")}
    assert set(gold) == {None, 0, 1}
    assert set(by_argument) == set(by_name) == {0, 1}  # the unsteered model is there already
    for layer in (0, 1):
        one, other = by_argument[layer], by_name[layer]
        assert (one["method"], other["method"]) == ("caa", "caa-shuffled")
        assert one["labels"] == other["labels"] == "shuffled"
        assert "labels" not in gold[layer]
        assert one["fits"] == other["fits"] != gold[layer]["fits"]
        assert one["margin"] == other["margin"] != gold[layer]["margin"]
    assert lines("caa") == lines("caa", labels="shuffled") == []


def test_a_prompt_alone_has_nothing_to_sweep(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for methods in ("prompt-only", "caa,controls"):
        assert cli.main(command("tiny_choice", "--methods", methods)) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"--methods {methods}: prompt-only has no settings to try" in said
