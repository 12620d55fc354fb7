"""``sadi-lmeval compare``: each cell is that of a run alone, on equal terms, never made twice."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from lm_eval._cli.run import Run
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from helpers.generation import planned_texts
from helpers.once import once
from sadi_lmeval import cli
from sadi_lmeval.comparison import compare
from sadi_lmeval.comparison.compared import Answers, ComparedModel
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.identity.weights import weights_digest
from sadi_lmeval.methods.arm import read_arms
from sadi_lmeval.methods.sadi import AXES
from sadi_lmeval.pairs.sources import Known
from sadi_lmeval.passes import engine
from sadi_lmeval.passes.grid import grid_log_likelihoods
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.records.record import (
    FOLDER,
    Record,
    file_name,
    load_record,
    load_records,
    save_record,
    to_json,
)
from sadi_lmeval.settings import SearchSpace
from sadi_lmeval.steering import steering
from sadi_lmeval.steering.rules import Pick
from sadi_lmeval.steering.tuning import choose_settings
from sadi_lmeval.storage.fit_file import Fit, load_fit
from sadi_lmeval.storage.journal import Journal, held
from sadi_lmeval.types import Size
from sadi_lmeval.versions import versions

Command = Callable[..., list[str]]

ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("hf-sadi", {"method": "none"}),
    "sadi-head": ("hf-sadi", {"element": "head"}),
    "sadi-neuron": ("hf-sadi", {"element": "neuron"}),
    "sadi-hidden": ("hf-sadi", {"element": "hidden"}),
    "iti": ("hf-iti", {}),
    "caa": ("hf-caa", {}),
    "random": ("hf-sadi", {"element": "head", "selection": "random"}),
    "fixed": ("hf-sadi", {"element": "head", "steering": "fixed"}),
}
"""The methods that are compared, and the runs that steer so alone."""
STEERED = [method for method in ALONE if method != "none"]
TASKS = ["tiny_choice", "tiny_folds", "tiny_input", "tiny_text", "tiny_empty"]
SCORED = [0, 3, 20, 26, 40, 49]
"""Documents of both folds."""
SAMPLES = dict.fromkeys(TASKS, SCORED)
ENTRIES = {"head": 4, "neuron": 48, "hidden": 32}
SETTINGS = 4


def grid_of(method: str) -> str:
    """A method's own grid, as far as the tiny model goes, thinned, as a user writes it."""
    arm = read_arms([method], {})[method]
    assert arm.method is not None
    found = arm.search_space(Size(3, ENTRIES[arm.method.place[0]])).thinned(SETTINGS)
    assert 1 < len(found.settings) <= SETTINGS
    return "x".join("/".join(map(str, values)) for values in found.values)


@contextmanager
def quickly() -> Iterator[pytest.MonkeyPatch]:
    """Without the harness's own tasks, which take seconds to index, and without network."""
    with pytest.MonkeyPatch.context() as patch:
        init = partialmethod(TaskManager.__init__, include_defaults=False)
        patch.setattr(TaskManager, "__init__", init)
        patch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield patch


@pytest.fixture(autouse=True)
def without_the_harness_s_tasks() -> Iterator[None]:
    with quickly():
        yield


@pytest.fixture(scope="module")
def command(model_folder: Path, tasks_folder: Path) -> Command:
    """Arguments of the command: ``command(folder, "tiny_choice", "none,iti", "--limit", "4")``."""

    def arguments(
        output: Path,
        tasks: str,
        methods: str,
        *options: str,
        include: Path = tasks_folder,
        **model: Any,
    ) -> list[str]:
        model = {
            "pretrained": model_folder,
            "cache_dir": output.parent / "cache",
            "n_pairs": 12,
            "n_tune": 12,
            **model,
        }
        text = ",".join(f"{name}={value}" for name, value in model.items() if value is not None)
        given = ["compare", "--model_args", text, "--tasks", tasks, "--methods", methods]
        given += ["--include_path", str(include), "--output_path", str(output)]
        given += ["--settings", str(SETTINGS), "--batch_size", "4", "--device", "cpu"]
        return [*given, *options]

    return arguments


def record_of(folder: Path, task: str, method: str, mask_from: str | None = None) -> Record:
    return load_record(folder / FOLDER / file_name(task, method, mask_from))


def fit_named(name: str, near: Path) -> Fit:
    """A fit out of whatever cache there is beside a comparison."""
    return load_fit(next(near.parent.rglob(Path(name).name)))


def samples_of(folder: Path, method: str, task: str) -> list[dict[str, Any]]:
    """The harness's own samples of a method."""
    [path] = (folder / "harness" / method).glob(f"*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(sample: dict[str, Any]) -> list[Any]:
    """Log-likelihoods, or the generated text."""
    return [
        response if isinstance(response, str) else float(response[0])
        for response in sample["filtered_resps"]
    ]


def prompts(sample: dict[str, Any]) -> list[str]:
    given = sample["arguments"]
    if isinstance(given, dict):  # as the harness saves them
        return [each["arg_0"] for each in given.values()]
    return [each[0] for each in given]


PLACES = frozenset(["file", "cache_key", "sha256"])
"""Where what was measured is kept; its name depends on model arguments, its sum on rounding."""


def assert_alike(one: Any, other: Any, where: str = "") -> None:
    """The same but for rounding, and for the place of the cache."""
    if isinstance(one, dict):
        assert isinstance(other, dict), where
        assert one.keys() == other.keys(), where
        for key in one.keys() - PLACES:
            assert_alike(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple)), where
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_alike(a, b, f"{where}[{index}]")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-4), where
    else:
        assert one == other, where


def steering_of(record: Record) -> dict[str, Any]:
    """What a record says as a results file does: without what fits found, which is for pictures."""
    content = record.steering.to_json()
    for fit in content.get("fits", []):
        fit.pop("found", None)
    return content


def assert_scored_alike(
    folder: Path, method: str, task: str, run: dict[str, Any], record: Record | None = None
) -> None:
    """A cell is what a run of the harness gave: documents, answers, metrics, steering."""
    record = record_of(folder, task, method) if record is None else record
    theirs = run["samples"][task]
    assert record.documents == [digest(sample["doc"]) for sample in theirs]
    assert record.values == [sample[record.metric] for sample in theirs]
    assert record.metrics[record.metric][0] == run["results"][task][f"{record.metric},none"]
    for mine, sample in zip(samples_of(folder, method, task), theirs, strict=True):
        assert mine["doc"] == sample["doc"]
        assert prompts(mine) == prompts(sample)
        assert_alike(answers(mine), answers(sample), f"{task} under {method}")
    if "sadi" in run["config"]:
        assert_steered_alike(record, run["config"]["sadi"][task], folder)


def assert_steered_alike(record: Record, other: dict[str, Any], folder: Path) -> None:
    """By the same vectors and settings, chosen alike.

    A run of a method alone scores the unsteered model a little; a comparison has it as a row.
    """
    own = steering_of(record)
    assert "unsteered" not in own
    other = {name: value for name, value in other.items() if name != "unsteered"}
    assert_alike(own, other, f"{record.task} under {record.method}")
    for one, two in zip(own.get("fits", []), other.get("fits", []), strict=True):
        mine, theirs = fit_named(one["file"], folder).tensors, load_fit(Path(two["file"])).tensors
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=1e-4)


class Trials(list[tuple[str, list[str], int]]):
    """What was tuned: the task, its held-out documents and the number of methods."""

    def spy(self, patch: pytest.MonkeyPatch) -> None:
        inner = choose_settings

        def choose(trial: Any, candidates: Any, *rest: Any) -> Any:
            held_out = [digest(document) for document in trial.documents]
            self.append((trial.task.name, held_out, len(candidates)))
            return inner(trial, candidates, *rest)

        patch.setattr(steering, "choose_settings", choose)


class Counting:
    """How many requests were scored under how many edits at once, and how many one by one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.together: list[tuple[int, list[int]]] = []
        self.alone = 0
        grid_scores: Any = grid_log_likelihoods
        scores: Any = log_likelihoods

        def all_at_once(forward: Any, requests: Any, families: Any, **named: Any) -> None:
            self.together.append((len(requests), [family.count for family in families]))
            grid_scores(forward, requests, families, **named)

        def one_by_one(forward: Any, requests: Any, *rest: Any, **named: Any) -> None:
            self.alone += len(requests)
            scores(forward, requests, *rest, **named)

        patch.setattr(engine, "grid_log_likelihoods", all_at_once)
        patch.setattr(engine, "log_likelihoods", one_by_one)

    @property
    def requests(self) -> int:
        return sum(count for count, _ in self.together)


# ------------------------------------------------------------------ the numbers


class Whole(NamedTuple):
    folder: Path
    trials: Trials
    counted: Counting


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Whole:
    """Every method on tasks of every kind."""
    folder, trials = tmp_path_factory.mktemp("whole") / "out", Trials()
    options = ("--samples", json.dumps(SAMPLES), "--log_samples", "--html")
    with quickly() as patch:
        trials.spy(patch)
        counted = Counting(patch)
        # Always a setting, where there is one: methods that steer nothing would all be alike.
        given = command(folder, ",".join(TASKS), ",".join(ALONE), *options, rule="best")
        assert cli.main(given) == 0
    return Whole(folder, trials, counted)


@pytest.mark.parametrize("method", ALONE)
def test_each_cell_is_what_a_run_of_that_method_alone_gives(
    whole: Whole, evaluate: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    trials = Trials()
    trials.spy(monkeypatch)
    model, own = ALONE[method]
    of_grid = {"n_tune": 12, "grid": grid_of(method), "rule": "best"} if method != "none" else {}
    samples = {"samples": SAMPLES}
    run = evaluate(*TASKS, model=model, limit=None, settings=samples, **own, **of_grid)
    for task in TASKS:
        assert_scored_alike(whole.folder, method, task, run)
    held_out = [] if method == "none" else whole.trials
    assert [trial[:2] for trial in trials] == [trial[:2] for trial in held_out]


def test_the_unsteered_cells_are_those_of_the_harness_s_own_model(
    whole: Whole, evaluate: Any
) -> None:
    run = evaluate(*TASKS, model="hf", limit=None, settings={"samples": SAMPLES})
    for task in TASKS:
        assert_scored_alike(whole.folder, "none", task, run)


def test_methods_differ_from_the_unsteered_model_and_from_one_another(whole: Whole) -> None:
    """Or the tests above would say little."""
    found = {
        method: [answers(s) for task in TASKS for s in samples_of(whole.folder, method, task)]
        for method in ALONE
    }
    assert len({str(each) for each in found.values()}) == len(ALONE)


def test_the_harness_s_results_file_of_each_method_says_how_it_steered(whole: Whole) -> None:
    for method in ALONE:
        [path] = (whole.folder / "harness" / method).glob("*/results_*.json")
        results = json.loads(path.read_text())
        assert set(results["results"]) == set(TASKS)
        for task in TASKS:
            record = record_of(whole.folder, task, method)
            assert results["config"]["sadi"][task] == steering_of(record)
            found = results["results"][task][f"{record.metric},none"]
            assert found == record.metrics[record.metric][0]


def edits_of_passes(folder: Path, tasks: list[str], methods: list[str]) -> list[int]:
    """Of each pass that scores, under how many edits: under none of those that are not better."""
    found = []
    for task in tasks:
        of_methods = []
        for record in (record_of(folder, task, method) for method in methods):
            strength = record.steering.axes[1]
            masks = enumerate(masks_of(record))
            of_methods.append([fold if mask[strength] else None for fold, mask in masks])
        passes = set(zip(*of_methods, strict=True))
        found += [sum(edit is not None for edit in edits) for edits in passes]
    return sorted(found)


def test_records_keep_texts_and_what_fits_found_and_the_page_shows_them(whole: Whole) -> None:
    for task in TASKS:
        for method in ALONE:
            record = record_of(whole.folder, task, method)
            samples = samples_of(whole.folder, method, task)
            generated = task == "tiny_text"
            assert record.texts == ([answers(s)[0] for s in samples] if generated else [])
            assert record.prompts == ([prompts(s)[0] for s in samples] if generated else [])
            for fit in record.steering.fits:
                assert fit.found is not None
                tensors = fit_named(str(fit.file), whole.folder).tensors
                scores = tensors.get("accuracy")
                if scores is None:
                    scores = tensors["difference"].mean(dim=-1)
                assert torch.tensor(fit.found.rows) == pytest.approx(scores, rel=0.01)
    page = (whole.folder / "report.html").read_text(encoding="utf-8")
    assert "iti on tiny_choice: probe accuracy, 3 layers by 4 heads; " in page
    assert "on tiny_text <small>" in page
    [file] = (whole.folder / "harness" / "iti").glob("*/results_*.json")
    assert '"found"' not in file.read_text(encoding="utf-8")  # which is for other eyes


def test_all_methods_share_every_pass_over_prompts(whole: Whole) -> None:
    assert whole.counted.alone == 0
    tuned = [edits for _, edits in whole.counted.together if sum(edits) > len(STEERED)]
    scored = [edits for _, edits in whole.counted.together if sum(edits) <= len(STEERED)]
    assert len(tuned) == len(TASKS) + 1  # one task has two folds
    assert all(len(edits) == len(STEERED) for edits in tuned)
    assert len(scored) == len(TASKS)  # two folds, and the task that generates is not scored
    expected = edits_of_passes(whole.folder, [t for t in TASKS if t != "tiny_text"], STEERED)
    assert sorted(map(sum, scored)) == expected
    assert 0 < sum(expected) < len(expected) * len(STEERED)


def test_documents_for_which_no_setting_is_better_get_the_unsteered_model_s_answers_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sadi_lmeval.steering.tuning.pick", lambda *_: Pick(0, 1.0))
    counted, generated = Counting(monkeypatch), planned_texts(monkeypatch)
    folder, limit = tmp_path / "out", 6
    methods = "none,sadi-head,sadi-neuron,iti,caa"
    options = ("tiny_folds,tiny_text", methods, "--limit", str(limit), "--log_samples")
    counted.together.clear()
    assert cli.main(command(folder, *options)) == 0
    assert sum(generated) == limit
    assert counted.together[-1][1] == []  # the last pass, which scores, is under no edit
    for task in ("tiny_folds", "tiny_text"):
        expected = list(map(answers, samples_of(folder, "none", task)))
        for method in methods.split(",")[1:]:
            assert list(map(answers, samples_of(folder, method, task))) == expected
            masks = masks_of(record_of(folder, task, method))
            assert masks
            assert all(mask["tuning"]["p_max"] == 1 for mask in masks)


@pytest.mark.parametrize("arguments", [{"direction": "probe"}, {"mask_from": "tiny_choice"}])
def test_model_arguments_that_say_nothing_of_a_method_count_for_all(
    command: Command, evaluate: Any, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    options = ("--limit", "5", "--log_samples")
    assert cli.main(command(folder, "tiny_text", "none,sadi-head,iti", *options, **arguments)) == 0
    of_grid = {"n_tune": 12, "grid": grid_of("iti"), "cache_dir": str(tmp_path / "other")}
    run = evaluate("tiny_text", model="hf-iti", limit=5, **of_grid, **arguments)
    assert_scored_alike(folder, "iti", "tiny_text", run)
    for key, value in arguments.items():
        assert record_of(folder, "tiny_text", "iti").steering.to_json()[key] == value
    assert record_of(folder, "tiny_text", "none").steering.mask_from is None


# ------------------------------------------------------------------ equal terms


def masks_of(record: Record) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = record.steering.to_json()["fits"]
    return found


def cards_of(record: Record, folder: Path) -> list[dict[str, Any]]:
    return [fit_named(mask["file"], folder).card for mask in masks_of(record)]


@pytest.mark.parametrize("task", TASKS)
def test_every_method_has_the_same_pairs_folds_and_documents(whole: Whole, task: str) -> None:
    records = [record_of(whole.folder, task, method) for method in STEERED]
    first, cards = records[0], cards_of(records[0], whole.folder)
    unsteered = record_of(whole.folder, task, "none")
    assert len(cards) == (2 if task == "tiny_folds" else 1)
    for record in records:
        assert record.documents == first.documents == unsteered.documents
        assert record.gold == first.gold == unsteered.gold
        assert record.run == unsteered.run
        for name in ("folds", "pairs_from", "recipe"):
            assert getattr(record.steering, name) == getattr(first.steering, name)
        for card, mask, other in zip(
            cards_of(record, whole.folder), masks_of(record), cards, strict=True
        ):
            for name in ("source", "documents", "questions", "pairs_digest", "recipe_digest"):
                assert card[name] == other[name]
            assert mask["n_pairs"] == len(card["documents"]) == 12


@pytest.mark.parametrize("task", TASKS)
def test_every_method_is_tuned_on_the_same_documents_with_as_many_settings(
    whole: Whole, task: str
) -> None:
    of_task = [trial for trial in whole.trials if trial[0] == task]
    assert len(of_task) == (2 if task == "tiny_folds" else 1)
    assert all(methods == len(STEERED) for _, _, methods in of_task)
    for method in STEERED:
        for mask in masks_of(record_of(whole.folder, task, method)):
            unsteered, *table = mask["tuning"]["table"]
            assert list(unsteered.values())[:2] == [0, 0]
            assert 1 < len(table) <= SETTINGS
            assert mask["tuning"]["documents"] == 12
    objectives = {
        mask["tuning"]["objective"]
        for method in STEERED
        for mask in masks_of(record_of(whole.folder, task, method))
    }
    assert len(objectives) == 1


@pytest.mark.parametrize("most", [1, 3])
def test_no_method_tries_more_settings_than_were_asked_for(
    command: Command, tmp_path: Path, most: int
) -> None:
    methods = "none,sadi-neuron,sadi-hidden,iti,caa"
    options = ("--settings", str(most), "--limit", "3")
    assert cli.main(command(tmp_path / "out", "tiny_choice", methods, *options)) == 0
    for method in methods.split(",")[1:]:
        [mask] = masks_of(record_of(tmp_path / "out", "tiny_choice", method))
        assert 1 <= len(mask["tuning"]["table"]) - 1 <= most


# ------------------------------------------------------------------ no leaks


def rows(tasks_folder: Path, split: str) -> list[dict[str, Any]]:
    text = (tasks_folder / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_no_scored_document_helps_to_choose_how_it_is_scored(
    whole: Whole, tasks_folder: Path, task: str
) -> None:
    scored = [digest(row) for row in rows(tasks_folder, "validation")]
    held_out = [documents for name, documents, _ in whole.trials if name == task]
    for method in STEERED:
        record = record_of(whole.folder, task, method)
        assert record.documents == [scored[index] for index in SCORED]
        for fold, card in enumerate(cards_of(record, whole.folder)):
            first, last = (25 * fold, 25 * fold + 25) if task == "tiny_folds" else (0, 50)
            mine = set(scored[first:last])
            assert not mine & set(card["documents"])
            assert not mine & set(held_out[fold])
            assert not set(card["documents"]) & set(held_out[fold])


@pytest.fixture
def planted(tasks_folder: Path, tmp_path: Path) -> Path:
    """The task tiny_leak: twelve scored documents stand among its training documents as well.

    Half of them are spelt differently, and have other choices.
    """
    folder = tmp_path / "planted"
    folder.mkdir()
    validation = rows(tasks_folder, "validation")
    copies = [dict(row) for row in validation[:12]]
    for row in copies[:6]:
        row["question"] = "  ".join(row["question"].upper().split())
        row["answer"] += " the"
    train = [*copies, *rows(tasks_folder, "train")[:20]]
    for name, part in (("train", train), ("validation", validation)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    text = (tasks_folder / "tiny_choice.yaml").read_text()
    text = text.replace(str(tasks_folder), str(folder)).replace("tiny_choice", "tiny_leak")
    (folder / "tiny_leak.yaml").write_text(text)
    return folder


LEAK = ("tiny_leak", "none,sadi-head,caa", "--limit", "12")


def test_scored_documents_among_the_training_documents_are_left_out(
    command: Command, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials()
    trials.spy(monkeypatch)
    folder, few = tmp_path / "out", {"n_pairs": 10, "n_tune": 10}
    assert cli.main(command(folder, *LEAK, include=planted, **few)) == 0
    clean = {digest(row) for row in rows(planted, "train")[12:]}
    [(_, held_out, _)] = trials
    for method in ("sadi-head", "caa"):
        [card] = cards_of(record_of(folder, "tiny_leak", method), folder)
        assert len(card["documents"]) == len(held_out) == 10
        assert {*card["documents"], *held_out} == clean


def test_there_are_no_documents_but_those_that_are_not_scored(
    command: Command, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = command(tmp_path / "out", *LEAK, include=planted, n_pairs=11, n_tune=10)
    assert "10 are needed" in refused(more, capsys)
    assert records(tmp_path / "out") == {}


def test_pairs_that_are_scored_all_the_same_are_refused(
    command: Command,
    planted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The draw is blind here: the guard must see it."""
    monkeypatch.setattr(Known, "has", lambda self, document: False)
    folder = tmp_path / "out"
    said = refused(command(folder, *LEAK, include=planted, n_pairs=24, n_tune=8), capsys)
    assert "was built from a document that task tiny_leak scores" in said
    assert set(records(folder)) <= {"tiny_leak.none.json"}


# ------------------------------------------------------------------ never twice


SMALL = ("tiny_folds,tiny_text", "none,sadi-head,caa", "--limit", "5")


class Small(NamedTuple):
    folder: Path
    requests: int
    """That were scored in all."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Small:
    """A comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("small") / "out"
    with quickly() as patch:
        counted = Counting(patch)
        assert cli.main(command(folder, *SMALL)) == 0
    assert not (folder / "answers.jsonl").exists()
    return Small(folder, counted.requests)


def copied(small: Small, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small.folder, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / FOLDER).glob("*.json")}


def assert_same_records(folder: Path, other: Path) -> None:
    """But for the time that they took, and where."""
    assert set(records(folder)) == set(records(other))
    for name in records(folder):
        mine, theirs = (to_json(load_record(f / FOLDER / name)) for f in (folder, other))
        for content in (mine, theirs):
            del content["seconds"], content["command"]
        assert_alike(mine, theirs, name)


def test_an_identical_comparison_computes_nothing(
    command: Command, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(small, tmp_path)
    before = contents(folder)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    monkeypatch.setattr(engine, "log_likelihoods", None)
    monkeypatch.setattr(engine, "read_pairs", None)
    monkeypatch.setattr("lm_eval.simple_evaluate", None)
    assert cli.main(command(folder, *SMALL)) == 0
    assert contents(folder) == before
    # a part of it, in another order
    part = command(folder, "tiny_text", "caa,none", "--limit", "5", "--device", "cpu")
    assert cli.main([*part, "--batch_size", "2"]) == 0
    assert contents(folder) == before


def test_adding_a_method_to_a_finished_comparison_adds_only_that(
    command: Command, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(small, tmp_path)
    before, counted = records(folder), Counting(monkeypatch)
    assert cli.main(command(folder, SMALL[0], f"{SMALL[1]},iti", *SMALL[2:])) == 0
    after = records(folder)
    assert set(after) - set(before) == {"tiny_folds.iti.json", "tiny_text.iti.json"}
    assert {name: after[name] for name in before} == before
    tuned = [edits for _, edits in counted.together if sum(edits) > 1]
    scored = [sum(edits) for _, edits in counted.together if sum(edits) <= 1]
    assert all(len(edits) == 1 for edits in tuned)
    assert sorted(scored) == edits_of_passes(folder, ["tiny_folds"], ["iti"])
    assert not (folder / "answers.jsonl").exists()
    whole = tmp_path / "whole"
    assert cli.main(command(whole, SMALL[0], f"{SMALL[1]},iti", *SMALL[2:])) == 0
    assert_same_records(folder, whole)
    table = (folder / "leaderboard.md").read_text()
    assert table == (whole / "leaderboard.md").read_text()
    assert "| iti |" in table


def test_adding_a_task_to_a_finished_comparison_leaves_the_records_that_are_there(
    command: Command, small: Small, tmp_path: Path
) -> None:
    folder = copied(small, tmp_path)
    before = records(folder)
    assert cli.main(command(folder, f"{SMALL[0]},tiny_choice", *SMALL[1:])) == 0
    after = records(folder)
    assert len(after) == len(before) + 3
    assert {name: after[name] for name in before} == before


def test_a_record_that_was_taken_away_is_made_again_alone(
    command: Command, small: Small, tmp_path: Path
) -> None:
    folder = copied(small, tmp_path)
    lost = folder / FOLDER / "tiny_folds.caa.json"
    lost.unlink()
    before = records(folder)
    assert cli.main(command(folder, *SMALL)) == 0
    assert {name: content for name, content in records(folder).items() if name in before} == before
    assert_same_records(folder, small.folder)


def interrupting(inner: Any, count: int, after: bool, where: Callable[..., bool]) -> Any:
    """Interrupts the ``count``-th of some calls: before it is made, or after."""
    left = count

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        mine = where(*arguments)
        left -= mine
        if mine and not left and not after:
            raise KeyboardInterrupt
        found = inner(*arguments, **named)
        if mine and not left:
            raise KeyboardInterrupt
        return found

    return call


def always(*_: Any) -> bool:
    return True


def of_answers(journal: Journal, *lines: Any) -> bool:
    return bool(lines) and journal.path is not None and journal.path.name == "answers.jsonl"


def of_tuning(journal: Journal, *lines: Any) -> bool:
    return bool(lines) and not of_answers(journal, *lines)


MOMENTS: dict[str, tuple[Any, str, int, bool, Callable[..., bool]]] = {
    "pairs of another fold are read": (engine, "read_pairs", 2, False, always),
    "settings are tried": (Journal, "add", 2, True, of_tuning),
    "settings of another fold are tried": (Journal, "add", 7, False, of_tuning),
    "documents are scored": (Journal, "add", 1, True, of_answers),
    "text is generated": (Journal, "add", 4, True, of_answers),
    "the harness's results are written": (
        *(EvaluationTracker, "save_results_aggregated", 2, False, always),
    ),
    "one method is done": (compare, "save_record", 2, True, always),
    "records are written": (compare, "save_record", 3, True, always),
    "the last record is there": (compare, "save_record", 6, True, always),
}
FINISHED = {
    "the harness's results are written": 2,
    "one method is done": 2,
    "records are written": 3,
    "the last record is there": 6,
}
"""Records that are there by then."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_comparison_that_is_interrupted_goes_on_from_there(
    command: Command,
    small: Small,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    folder = tmp_path / "out"
    owner, name, count, after, where = MOMENTS[moment]
    with monkeypatch.context() as patch:
        first = Counting(patch)
        patch.setattr(owner, name, interrupting(getattr(owner, name), count, after, where))
        assert cli.main(command(folder, *SMALL)) == 130
    assert "re-run the same command to resume" in capsys.readouterr().err
    assert first.requests > 0
    before = records(folder)
    assert len(before) == FINISHED.get(moment, 0)
    assert not (folder / "leaderboard.md").exists()
    second = Counting(monkeypatch)
    assert cli.main(command(folder, *SMALL)) == 0
    assert_same_records(folder, small.folder)
    assert {name: content for name, content in records(folder).items() if name in before} == before
    assert not (folder / "answers.jsonl").exists()
    assert second.requests < small.requests  # or what was done has been done again
    if before:  # all has been scored by then
        assert second.together == []
    for method in SMALL[1].split(","):
        assert list((folder / "harness" / method).glob("*/results_*.json"))


def environment(tmp_path: Path) -> dict[str, str]:
    cache = str(tmp_path.parent / "datasets")
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def python(code: str, *arguments: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
        timeout=300,
    )


def test_answers_that_are_not_finite_are_not_noted_down(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    found = Answers(Journal(path))
    found.note({"a": (-1.5, True), "b": (float("nan"), False), "c": (float("-inf"), False)})
    found["d"] = "some text"
    Journal(path).add(5, {"key": "e"})
    path.write_text(path.read_text() + '0123abcd {"key": "f", "resp')
    again = Answers(Journal(path))
    assert again == {"a": (-1.5, True), "d": "some text"}
    assert set(found) == {"a", "b", "c", "d"}


# ------------------------------------------------------------------ mistakes


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out == ""
    last = said.err.splitlines()[-1]
    assert last.startswith("sadi-lmeval: error: ")
    assert said.err.count("sadi-lmeval: error: ") == 1
    return last


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be loaded."""
    monkeypatch.setattr(ComparedModel, "_create_model", None)


REFUSED = [
    ("--use_cache", "cache"),
    ("--cache_requests", "true"),
    ("--wandb_args", "project=mine"),
    ("--wandb_config_args", "a=1"),
    ("--trackio_args", "project=mine"),
    ("--hf_hub_log_args", "hub_results_org=mine"),
    ("--show_config",),
    ("--predict_only",),
    ("--model", "hf-sadi"),
]
"""Options of the harness that have no meaning here."""


@pytest.mark.parametrize(
    ("options", "model", "words"),
    [
        (("--methods", "none,sadi-heads"), {}, ["unknown method 'sadi-heads'", "'sadi-head'"]),
        (("--methods", "none,mlp"), {}, ["unknown method 'mlp'", "sadi-head"]),
        (("--methods", "none,iti,iti"), {}, ["--methods", "iti named twice"]),
        (("--methods", "none,none"), {}, ["--methods", "none named twice"]),
        (("--methods", "sadi-head,iti"), {}, ["--methods", "none is missing"]),
        (("--methods", " , "), {}, ["--methods", "empty list"]),
        (("--tasks", "tiny_choice,tiny_choice"), {}, ["--tasks", "tiny_choice named twice"]),
        (("--tasks", ""), {}, ["--tasks", "empty list"]),
        (("--tasks", "tiny_choise"), {}, ["tiny_choise"]),
        (("--tasks", "tiny_choice,tiny_rolling"), {}, ["tiny_rolling", "loglikelihood_rolling"]),
        (("--settings", "0"), {}, ["--settings 0", "at least 1"]),
        (("--settings", "-3"), {}, ["--settings -3", "at least 1"]),
        (("--limit", "0"), {}, ["--limit 0", "above 0"]),
        (("--limit", "-1"), {}, ["--limit -1", "above 0"]),
        (("--batch_size", "x"), {}, ["--batch_size x", "auto"]),
        (("--samples", '{"tiny_choice": [0]}', "--limit", "3"), {}, ["--samples", "--limit"]),
        (("--fewshot_as_multiturn",), {}, ["apply_chat_template"]),
        ((), {"top_k": 3}, ["--model_args top_k", "use --settings, --methods"]),
        ((), {"delta": 3, "alpha": 2}, ["--model_args alpha, delta"]),
        ((), {"layer": 1, "multiplier": 3}, ["--model_args layer, multiplier"]),
        ((), {"grid": "1x2", "element": "head"}, ["--model_args grid"]),
        ((), {"element": "head"}, ["element=head", "no method of none, iti has element"]),
        (
            *(("--methods", "none,sadi-head"), {"grid": "1x2", "element": "head"}),
            ["--model_args element, grid"],
        ),
        (("--methods", "none,caa"), {"direction": "probe"}, ["--model_args direction: several"]),
        ((), {"method": "none"}, ["--model_args method"]),
        ((), {"max_settings": 5}, ["--model_args max_settings"]),
        ((), {"mask": "mask.safetensors"}, ["--model_args mask", "mask_from=TASK"]),
        ((), {"baseline": "true"}, ["--model_args baseline", "is a row here"]),
        ((), {"pretrained": None}, ["--model_args", "pretrained=MODEL is missing"]),
        ((), {"n_pairs": 0}, ["n_pairs=0", "at least 1"]),
        ((), {"n_tune": "x", "folds": 1}, ["n_tune=x", "folds=1"]),
        ((), {"direction": "up"}, ["direction=up", "mass_mean"]),
        ((), {"n_pair": 5}, ["'n_pair'", "'n_pairs'"]),
        *[(options, {}, [options[0], "not taken"]) for options in REFUSED],
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_mistake_is_one_line_before_the_model_is_loaded_and_leaves_nothing(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    model: dict[str, Any],
    words: list[str],
) -> None:
    arguments = command(tmp_path / "out", "tiny_choice", "none,iti", *options, **model)
    said = refused(arguments, capsys)
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_harness_reach_its_own_parser_as_they_came() -> None:
    """Those that the help shows, and others; several values, values with signs, and none."""
    given = [
        *("--model_args", "pretrained=a,b=1", "c=2", "-L", "0.5", "--gen_kwargs", "top_p=1", "k=2"),
        *("--apply_chat_template", "--num_fewshot=3", "--metadata", '{"a": "-b c"}', "-s"),
        *("--system_instruction=--be kind", "--fewshot_as_multiturn", "false", "--write_out"),
        *("--seed", "1,2,3,4", "--trust_remote_code", "--batch_size", "auto:4", "--device", "cpu"),
    ]

    def of_harness(arguments: Sequence[str]) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        Run.create(parser.add_subparsers())
        return vars(parser.parse_args(["run", *arguments]))

    own = cli._parser()
    read, rest = own.parse_known_args(["compare", "-t", "x", "-o", "y", *given])
    assert of_harness([*read.passed, *rest]) == of_harness(given)


def test_help_shows_the_most_used_options_of_the_harness(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    said = capsys.readouterr().out
    for name in ("model_args", "limit", "num_fewshot", "batch_size", "apply_chat_template"):
        assert f"\n  --{name} " in said


@pytest.mark.parametrize(
    "options", [("--limitt", "3"), ("--top_k", "3"), ("--grid=1x2",), ("stray",), ("--delta", "1")]
)
@pytest.mark.usefixtures("no_model")
def test_an_unknown_option_is_told_as_argparse_does(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    arguments = command(tmp_path / "out", "tiny_choice", "none,iti", *options)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert f"unrecognized arguments: {options[0]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_comparison_writes_to_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path / "out" / FOLDER):
        said = refused(command(tmp_path / "out", "tiny_choice", "none,iti"), capsys)
    assert f"{tmp_path / 'out' / FOLDER}: another run is writing to it" in said
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/in/it"])
@pytest.mark.usefixtures("no_model")
def test_a_file_is_no_output_folder(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    said = refused(command(tmp_path / place, "tiny_choice", "none,iti"), capsys)
    assert f"--output_path {tmp_path / place}" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "model", "word"),
    [
        (("--limit", "4"), {}, "lm_eval's limit"),
        (("--settings", "3"), {}, "settings"),
        (("--num_fewshot", "1"), {}, "lm_eval's num_fewshot"),
        (("--apply_chat_template",), {}, "lm_eval's apply_chat_template"),
        (("--system_instruction", "the cat"), {}, "lm_eval's system_instruction"),
        (("--gen_kwargs", "max_gen_toks=2"), {}, "lm_eval's gen_kwargs"),
        (("--seed", "7"), {}, "random_seed"),
        ((), {"add_bos_token": True}, "--model_args"),
        ((), {"max_length": 20}, "--model_args"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_folder_with_another_run_s_records_is_refused_before_the_model_is_loaded(
    command: Command,
    small: Small,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    model: dict[str, Any],
    word: str,
) -> None:
    folder = copied(small, tmp_path)
    before = contents(folder)
    said = refused(command(folder, *SMALL, *options, **model), capsys)
    assert "holds another run's records" in said
    assert f"{word}" in said.partition("differs in")[2]
    assert contents(folder) == before


def test_a_folder_with_another_model_s_records_is_refused(
    command: Command,
    small: Small,
    tmp_path: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(small, tmp_path)
    before = contents(folder)
    other = changed_model(model_folder, tmp_path, "model.norm.weight", 1.5)
    for model, differs in (
        ({"pretrained": other}, "model"),
        ({"dtype": "bfloat16"}, "model"),
        ({"n_pairs": 13}, "n_pairs"),
        ({"seed": 1, "n_tune": 13}, "n_tune, seed"),
    ):
        said = refused(command(folder, *SMALL, **model), capsys)
        assert f"(it differs in {differs})" in said
        assert contents(folder) == before


def test_an_arm_whose_own_arguments_are_others_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arms that are not there yet may have any."""
    folder, task = tmp_path / "out", ("tiny_choice",)
    limit = ("--limit", "3")
    assert cli.main(command(folder, *task, "none,iti", *limit)) == 0
    before = contents(folder)
    for methods in ("none,iti", "none,iti,caa", "iti,none,sadi-head"):
        said = refused(command(folder, *task, methods, *limit, direction="probe"), capsys)
        assert "(it differs in direction)" in said
        assert contents(folder) == before
    given = {"activations": "clean"}
    assert cli.main(command(folder, *task, "none,sadi-head", *limit, **given)) == 0
    assert cli.main(command(folder, *task, "none,iti,caa", *limit)) == 0
    after = contents(folder)
    said = refused(command(folder, *task, "none,sadi-head", *limit), capsys)
    assert "(it differs in activations)" in said
    assert contents(folder) == after
    assert len(records(folder)) == 4


def changed_model(model_folder: Path, tmp_path: Path, weight: str, factor: float) -> Path:
    """The model with one of its weights multiplied."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "changed"))
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        dict(model.named_parameters())[weight].mul_(factor)
    model.save_pretrained(folder)
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path: Path) -> None:
    """One bit of a document's value."""
    content = bytearray(path.read_bytes())
    content[content.index(b'"values": [') + len(b'"values": [\n  ')] ^= 1
    path.write_bytes(content)


def of_another_run(path: Path) -> None:
    save_record(replace(load_record(path), run="0" * 32), path.parent.parent)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], list[str]]] = {
    "a record is cut off": ("records/tiny_text.caa.json", cut, ["cut off or damaged"]),
    "a record is empty": ("records/tiny_text.caa.json", lambda p: p.write_bytes(b""), ["damaged"]),
    "a record has a flipped bit": ("records/tiny_folds.none.json", flipped, ["checksum"]),
    "a record is no record": (
        *("records/tiny_text.caa.json", lambda p: p.write_text('{"a": 1}'), ["not a record"]),
    ),
    "a record is of another run": (
        *("records/tiny_text.caa.json", of_another_run, ["is not of the run of"]),
    ),
    "what the records have in common is cut off": ("comparison.json", cut, ["damaged"]),
    "what the records have in common is empty": (
        *("comparison.json", lambda p: p.write_bytes(b""), ["damaged"]),
    ),
    "what the records have in common was changed": (
        *("comparison.json", lambda p: p.write_text(p.read_text().replace("5.0", "4.0")), ["dama"]),
    ),
    "how an arm steers was changed": (
        *("comparison.json", lambda p: p.write_text(p.read_text().replace('"top"', '"bottom"'))),
        ["damaged"],
    ),
    "what the records have in common is not there": (
        *("comparison.json", Path.unlink, ["has records but no comparison.json"]),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("no_model")
def test_a_damaged_folder_is_refused_before_the_model_is_loaded_and_left_as_it_is(
    command: Command,
    small: Small,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    folder = copied(small, tmp_path)
    name, change, words = DAMAGES[damage]
    change(folder / name)
    before = contents(folder)
    said = refused(command(folder, *SMALL), capsys)
    assert all(word in said for word in [str(folder), *words]), said
    assert contents(folder) == before


def test_an_attempt_that_was_refused_does_not_claim_the_folder(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only the task's data tells is told when the model is there."""
    folder = tmp_path / "out"
    small = ("tiny_choice", "none,iti", "--limit", "3")
    assert "1000 are needed" in refused(command(folder, *small, n_tune=1000), capsys)
    assert records(folder) == {}
    assert cli.main(command(folder, *small, n_tune=12)) == 0
    assert len(records(folder)) == 2


# ------------------------------------------------------------------ edited in between

EDITED = "tiny_edited"
HELPERS = "def keep(documents):\n    return documents.filter(lambda row: row['label'] < 3)\n"
FILES: dict[str, str] = {
    "helpers.py": HELPERS,
    "own.yaml": "recipe: own\ncontrast: choice\ngold: '{{ label }}'\n",
    "fixed.yaml": "recipe: fixed\ncontrast: static\npairs: pairs.jsonl\n",
    "bench.yaml": f"benchmark: mine\ntasks: [{EDITED}]\nrecipe: own\n",
    "pairs.jsonl": "".join(
        json.dumps({"prompt": f"is the {word} {number} ?", "positive": "yes", "negative": "no"})
        + "\n"
        for number, word in enumerate("cat dog bird fish stone tree river house road sky".split())
    ),
}
"""Beside the task: what it and its pairs are made of."""


@pytest.fixture
def edited(tasks_folder: Path, tmp_path: Path) -> Path:
    return make_edited(tmp_path / "mine", tasks_folder)


def make_edited(folder: Path, tasks_folder: Path) -> Path:
    """A folder with the tasks tiny_edited and tiny_choice, and the files of the former."""
    folder.mkdir()
    text = (tasks_folder / "tiny_choice.yaml").read_text()
    (folder / "tiny_choice.yaml").write_text(text)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    text = text.replace("tiny_choice", EDITED) + "process_docs: !function helpers.keep\n"
    (folder / f"{EDITED}.yaml").write_text(text)
    return folder


class Change(NamedTuple):
    """An edit of a file.

    Attributes:
        file: its name.
        old, new: of its text.
        what: of the task the refusal is to name.
        recipe: of the pairs, as a model argument; None: the benchmark file names it.
    """

    file: str
    old: str
    new: str
    what: str
    recipe: str | None = None


TASK, RECIPE, PAIRS = "the task", "the recipe", "the pairs file"
CHANGES: dict[str, Change] = {
    "the prompt": Change(f"{EDITED}.yaml", "answer :", "the answer :", TASK),
    "the metrics": Change(f"{EDITED}.yaml", "higher_is_better: true", "higher_is_better: false",
                          TASK),
    "the version": Change(f"{EDITED}.yaml", "version: 1.0", "version: 2.0", TASK),
    "the code": Change("helpers.py", "< 3", "< 4", TASK),
    "the benchmark's recipe": Change("own.yaml", "{{ label }}", "{{ 0 + label }}", RECIPE),
    "the user's recipe": Change("own.yaml", "{{ label }}", "{{ 0 + label }}", RECIPE, "own"),
    "which recipe it is": Change("bench.yaml", "recipe: own", "recipe: right_wrong", RECIPE),
    "how many pairs": Change("bench.yaml", "recipe: own", "recipe: own\nn_pairs: 5", "the n_pairs"),
    "the splits of the pairs": Change("bench.yaml", "recipe: own",
                                      "recipe: own\npairs_from: [train, train]", "the pairs_from"),
    "the folds": Change("bench.yaml", "recipe: own", "recipe: own\nfolds: 3", "the folds"),
    "the numbers of an arm": Change("bench.yaml", "recipe: own",
                                    "recipe: own\nsettings: {iti: {top_k: 2, alpha: 3}}",
                                    "the settings"),
    "the prompt of a static set": Change("fixed.yaml", "pairs:", "prompt: '{{ prompt }} a'\npairs:",
                                         RECIPE, "fixed"),
    "a pair": Change("pairs.jsonl", "bird", "star", PAIRS, "fixed"),
}  # fmt: skip


def edit(folder: Path, change: Change) -> None:
    path = folder / change.file
    text = path.read_text()
    assert change.old in text
    path.write_text(text.replace(change.old, change.new))


RESUMED = (f"tiny_choice,{EDITED}", "none,iti", "--limit", "3")


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, command: Command, tasks_folder: Path
) -> Callable[..., Path]:
    """A comparison, interrupted and finished, beside the tasks: ``out``, ``interrupted``, ``mine``;
    once for the same arguments."""

    def run(**model: Any) -> Path:
        place = tmp_path_factory.mktemp("resumed")
        mine = make_edited(place / "mine", tasks_folder)
        first = command(place / "out", *RESUMED, include=mine, **model)
        with quickly() as patch:
            patch.setattr(compare, "save_record", interrupting(save_record, 3, True, always))
            assert cli.main(first) == 130
        shutil.copytree(place / "out", place / "interrupted")
        with quickly():
            assert cli.main(first) == 0
        return place

    found: Callable[..., Path] = once(run)
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_a_comparison_whose_task_recipe_or_pairs_were_edited_is_refused_by_name(
    command: Command,
    resumed: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    this, folder = CHANGES[change], tmp_path / "out"
    model: dict[str, Any] = {"recipe": this.recipe}
    model["n_pairs"] = None if this.what == "the n_pairs" else 6  # the user's counts for more
    shutil.copytree(resumed(**model), tmp_path, dirs_exist_ok=True)
    capsys.readouterr()
    model["include"] = tmp_path / "mine"
    edit(tmp_path / "mine", this)
    # finished, with another method, of that task alone, and not finished
    more = (RESUMED[0], "none,iti,caa", *RESUMED[2:])
    alone = (EDITED, *RESUMED[1:])
    for given, where in (
        *[(asked, folder) for asked in (RESUMED, more, alone)],
        (RESUMED, tmp_path / "interrupted"),
    ):
        before = contents(where)
        said = refused(command(where, *given, **model), capsys)
        assert str(where) in said
        differs = f"{this.what} of {EDITED}"
        if this.recipe is not None and given != alone:  # the user's is that of every task
            differs = f"{this.what} of tiny_choice, {differs}"
        assert f"(it differs in {differs})" in said
        assert contents(where) == before
    # Nothing was edited of the other task.
    others = ("tiny_choice", *more[1:])
    if this.recipe is None:
        assert cli.main(command(folder, *others, **model)) == 0
        assert len(records(folder)) == 5


def test_all_that_was_edited_is_named_at_once(
    command: Command, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    arguments = command(folder, *RESUMED, include=edited, recipe="fixed", n_pairs=6)
    assert cli.main(arguments) == 0
    before = contents(folder)
    for name in ("the prompt", "the prompt of a static set", "a pair"):
        edit(edited, CHANGES[name])
    said = refused(arguments, capsys)
    of_both = [f"{what} of {task}" for task in ("tiny_choice", EDITED) for what in (RECIPE, PAIRS)]
    of_both.insert(2, f"{TASK} of {EDITED}")
    assert f"(it differs in {', '.join(of_both)})" in said
    assert contents(folder) == before


def test_a_comparison_that_was_interrupted_while_scoring_is_refused_too(
    command: Command,
    edited: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are answers in the folder, but no record yet."""
    folder = tmp_path / "out"
    arguments = command(folder, *RESUMED, include=edited)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupting(Journal.add, 1, True, of_answers))
        assert cli.main(arguments) == 130
    assert records(folder) == {}
    before = contents(folder)
    assert before["answers.jsonl"]
    edit(edited, CHANGES["the prompt"])
    assert f"(it differs in {TASK} of {EDITED})" in refused(arguments, capsys)
    assert contents(folder) == before


def test_what_changes_no_pair_and_no_score_may_be_edited(
    command: Command, edited: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    arguments = command(folder, *RESUMED, include=edited)
    assert cli.main(arguments) == 0
    before = contents(folder)
    recipe = edited / "own.yaml"
    recipe.write_text(recipe.read_text() + "description: of people\n# a note\n")
    (edited / "fixed.yaml").write_text("recipe: fixed\ncontrast: choice\n")
    (edited / "bench.yaml").write_text(FILES["bench.yaml"].replace("mine", "ours") + "# a note\n")
    task = edited / f"{EDITED}.yaml"
    task.write_text("# a note\n" + task.read_text())
    assert cli.main(arguments) == 0
    assert contents(folder) == before


def test_a_comparison_whose_fits_are_of_a_task_that_was_edited_is_refused_by_name(
    command: Command, edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = tmp_path / "out", {"include": edited, "mask_from": EDITED}
    given = ("tiny_choice", "none,iti", "--limit", "3")
    assert cli.main(command(folder, *given, **model)) == 0
    before = contents(folder)
    edit(edited, CHANGES["the prompt"])
    more = ("tiny_choice", "none,iti,caa", *given[2:])
    said = refused(command(folder, *more, **model), capsys)
    assert EDITED in said.partition("differs in")[2], said
    assert contents(folder) == before


def test_a_model_that_is_not_there_is_told_in_one_line(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    said = refused(command(tmp_path / "out", "tiny_choice", "none", pretrained=nowhere), capsys)
    assert f"--model_args pretrained={nowhere}: cannot be loaded" in said
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ options of lm_eval


def test_options_of_lm_eval_do_what_they_do_there(
    command: Command, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engines = tmp_path / "out", []
    init = engine.Engine.__init__

    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        engines.append(named["rows"])
        init(self, *arguments, **named)

    monkeypatch.setattr(engine.Engine, "__init__", noted)
    options = ["--num_fewshot", "1", "--limit", "0.12", "--apply_chat_template"]
    options += ["--system_instruction", "the cat", "--gen_kwargs", "max_gen_toks=3"]
    options += ["--seed", "3", "--log_samples", "--batch_size", "2"]
    tasks = ("tiny_choice", "tiny_text")
    assert cli.main(command(folder, ",".join(tasks), "none,caa", *options)) == 0
    assert engines == [2]
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    settings = {
        "num_fewshot": 1,
        "apply_chat_template": True,
        "system_instruction": "the cat",
        "gen_kwargs": {"max_gen_toks": 3},
        **dict.fromkeys(seeds, 3),
    }
    own = {"n_tune": 12, "cache_dir": str(tmp_path / "other")}
    runs = {
        "none": evaluate(*tasks, model="hf", limit=0.12, settings=settings),
        "caa": evaluate(
            *tasks, model="hf-caa", limit=0.12, settings=settings, grid=grid_of("caa"), **own
        ),
    }
    for method, run in runs.items():
        for task in tasks:
            assert_scored_alike(folder, method, task, run)
            record = record_of(folder, task, method)
            assert len(record.documents) == 6
            assert (record.limit, record.num_fewshot) == (0.12, 1)
            assert record.seeds == {
                "random_seed": 3,
                "numpy_seed": 3,
                "torch_seed": 3,
                "fewshot_seed": 3,
                "seed": 0,
            }
    sample = samples_of(folder, "none", "tiny_text")[0]
    assert "<s> system : the cat </s>" in prompts(sample)[0]
    assert all(len(answers(s)[0].split()) <= 3 for s in samples_of(folder, "none", "tiny_text"))


def test_without_log_samples_there_are_none(small: Small) -> None:
    assert len(list(small.folder.glob("harness/*/*/results_*.json"))) == 3
    assert not list(small.folder.rglob("samples_*"))


def with_files(tasks_folder: Path, tmp_path: Path) -> Path:
    """The tiny tasks in another folder, to which files may be added."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in tasks_folder.glob("*.yaml"):
        shutil.copy(file, folder)
    return folder


def test_groups_and_patterns_stand_for_their_tasks(
    command: Command, tasks_folder: Path, tmp_path: Path
) -> None:
    included = with_files(tasks_folder, tmp_path)
    (included / "group.yaml").write_text("group: tiny_group\ntask: [tiny_choice, tiny_word]\n")
    folder = tmp_path / "out"
    tasks = "tiny_group,tiny_emp*,tiny_fold?"
    assert cli.main(command(folder, tasks, "none", "--limit", "2", include=included)) == 0
    names = ("tiny_choice", "tiny_word", "tiny_empty", "tiny_folds")
    assert set(records(folder)) == {file_name(task, "none", None) for task in names}


@pytest.mark.parametrize(
    ("group", "task"),
    [
        ("task: [{task: tiny_choice, num_fewshot: 2}, tiny_word]", "tiny_choice"),
        ("task: [tiny_word, {task: tiny_text, doc_to_text: 'question'}]", "tiny_text"),
        ("task: [tiny_word]\nnum_fewshot: 1", "tiny_word"),
        ("task: [OWN]", "own"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_a_group_that_changes_its_tasks_is_refused(
    command: Command,
    tasks_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    group: str,
    task: str,
) -> None:
    """They would be scored without what the group says."""
    included = with_files(tasks_folder, tmp_path)
    own = {**yaml.safe_load((tasks_folder / "tiny_choice.yaml").read_text()), "task": "own"}
    group = group.replace("OWN", json.dumps(own))
    (included / "group.yaml").write_text(f"group: tiny_group\n{group}\n")
    said = refused(command(tmp_path / "out", "tiny_group", "none", include=included), capsys)
    assert task in said
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ transfer


def test_transfer_scores_each_task_with_what_every_other_task_fitted(
    command: Command, evaluate: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    tasks, methods = ["tiny_choice", "tiny_folds", "tiny_text"], ["sadi-head", "iti"]
    samples = json.dumps({task: [0, 1, 30] for task in tasks})
    options = ("--transfer", "--samples", samples)
    assert cli.main(command(folder, ",".join(tasks), "none,sadi-head,iti", *options)) == 0
    moved = [(a, b) for a in tasks for b in tasks if a != b]
    expected = {file_name(task, method, None) for task in tasks for method in ["none", *methods]}
    expected |= {file_name(scored, method, fit) for fit, scored in moved for method in methods}
    assert set(records(folder)) == expected
    validation = [digest(row) for row in rows(tasks_folder, "validation")]
    splits = {"train": {digest(row) for row in rows(tasks_folder, "train")}}
    splits["validation"] = set(validation)
    for fit, scored in moved:
        for method in methods:
            record = record_of(folder, scored, method, fit)
            assert (record.task, record.mask_from) == (scored, fit)
            assert record.steering.mask_from == fit
            assert record.documents == record_of(folder, scored, "none").documents
            cards = cards_of(record, folder)
            assert len(cards) == (2 if fit == "tiny_folds" else 1)
            for fold, card in enumerate(cards):
                assert card["task"] == fit
                split = "validation" if fit == "tiny_folds" else "train"
                assert set(card["documents"]) <= splits[split]
                mine = validation[25 * fold : 25 * fold + 25]  # the tasks share their documents
                assert not set(card["documents"]) & set(mine)
    table = (folder / "leaderboard.md").read_text()
    for method in methods:
        matrix = table.partition(f"### Transfer of {method}")[2].split("###")[0]
        assert re.findall(r"^\| (tiny_\w+) \|", matrix, re.MULTILINE) == tasks
        assert "| fitted on \\ scored on | tiny_choice | tiny_folds | tiny_text |" in matrix
        assert "n/a" not in matrix
    run = evaluate(
        "tiny_text",
        model="hf-iti",
        limit=None,
        settings={"samples": {"tiny_text": [0, 1, 30]}},
        mask_from="tiny_folds",
        grid=grid_of("iti"),
        n_tune=12,
        cache_dir=str(tmp_path / "other"),
    )
    record = record_of(folder, "tiny_text", "iti", "tiny_folds")
    assert_steered_alike(record, run["config"]["sadi"]["tiny_text"], folder)
    assert record.values == [sample[record.metric] for sample in run["samples"]["tiny_text"]]


def test_a_transfer_that_goes_on_has_the_prompts_that_it_began_with(
    command: Command, tmp_path: Path
) -> None:
    """Only cells whose task is not the one that they were fitted on are left."""
    folder, whole = tmp_path / "out", tmp_path / "whole"
    given = ["tiny_choice,tiny_text", "none,caa", "--transfer", "--limit", "4"]
    given += ("--num_fewshot", "1", "--apply_chat_template", "--system_instruction", "the cat")
    assert cli.main(command(folder, *given, cache_dir=tmp_path / "one")) == 0
    shutil.copytree(folder, whole)
    lost = folder / FOLDER / file_name("tiny_text", "caa", "tiny_choice")
    lost.unlink()
    assert cli.main(command(folder, *given, cache_dir=tmp_path / "two")) == 0
    assert_same_records(folder, whole)


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("task", TASKS)
def test_records_tell_what_was_chosen_and_what_is_right(
    whole: Whole, tasks_folder: Path, task: str
) -> None:
    validation = rows(tasks_folder, "validation")
    for method in ALONE:
        record = record_of(whole.folder, task, method)
        samples = samples_of(whole.folder, method, task)
        assert (record.task, record.method, record.mask_from) == (task, method, None)
        assert record.labels is None
        if task == "tiny_text":
            assert record.chosen == [None] * len(SCORED)
            assert record.gold == [[]] * len(SCORED)
            assert record.metric == "exact_match"
            continue
        found = [answers(sample) for sample in samples]
        assert record.metric == "acc"
        assert record.gold == [[validation[index]["label"]] for index in SCORED]
        if task == "tiny_input":  # its requests are prompts, not choices, in the same order
            assert all(len(scores) == 3 for scores in found)
        assert record.chosen == [scores.index(max(scores)) for scores in found]
        right = [c in g for c, g in zip(record.chosen, record.gold, strict=True)]
        assert record.values == [float(each) for each in right]
        assert record.higher_is_better


@pytest.fixture
def yes_or_no(tasks_folder: Path, tmp_path: Path) -> Path:
    """The task tiny_yesno, whose choices are the same in every document."""
    folder = tmp_path / "own"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [{**row, "label": row["label"] % 2} for row in rows(tasks_folder, split)]
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    text = (tasks_folder / "tiny_choice.yaml").read_text()
    text = text.replace(str(tasks_folder), str(folder)).replace("tiny_choice", "tiny_yesno")
    text = text.replace("'{{choices}}'", "['no', 'yes']")
    assert "['no', 'yes']" in text
    (folder / "tiny_yesno.yaml").write_text(text)
    return folder


def test_records_of_yes_and_no_questions_have_their_labels_and_all_that_made_them(
    command: Command, yes_or_no: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    options = ("--limit", "9", "--diagnostics", "--log_samples")
    arguments = command(folder, "tiny_yesno", "none,sadi-head", *options, include=yes_or_no)
    assert cli.main(arguments) == 0
    labels = [row["label"] for row in rows(yes_or_no, "validation")[:9]]
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    for method in ("none", "sadi-head"):
        record = record_of(folder, "tiny_yesno", method)
        assert record.labels == ["no", "yes"]
        assert record.gold == [[label] for label in labels]
        found = [answers(sample) for sample in samples_of(folder, method, "tiny_yesno")]
        assert record.chosen == [int(yes > no) for no, yes in found]
        assert record.command == shlex.join(["sadi-lmeval", *arguments])
        assert record.versions == versions()
        assert record.model["model"] == model_folder.name
        assert record.model["weights_digest"] == weights_digest(model)
        assert record.model["dtype"] == "torch.float32"
        assert (record.limit, record.num_fewshot, record.task_version) == (9, 0, "1.0")
        assert record.seconds > 0
        known = json.loads((folder / "comparison.json").read_text())
        assert record.run == known["run"]
    board = json.loads((folder / "leaderboard.json").read_text())
    assert "tiny_yesno" in str(board)


REPORT = """
import sys
from sadi_lmeval import cli

code = cli.main(sys.argv[1:])
print("torch" in sys.modules, "lm_eval" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def test_a_report_makes_the_same_files_of_the_records_without_torch(
    whole: Whole, tmp_path: Path
) -> None:
    output = tmp_path / "report"
    shutil.copytree(whole.folder / FOLDER, tmp_path / "copy" / FOLDER)  # and of nothing else
    given = ("report", str(tmp_path / "copy"), "--output_path", str(output), "--html")
    done = python(REPORT, *given, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False False"
    made = contents(output)
    assert set(made) == {
        "leaderboard.md",
        "leaderboard.csv",
        "leaderboard.json",
        "model-index.yaml",
        "report.html",
    }
    for name, content in made.items():
        assert content == (whole.folder / name).read_bytes(), name
    assert done.stdout.rstrip("\n") == made["leaderboard.md"].decode().rstrip("\n")


# ------------------------------------------------------------------ not finite


def test_scores_that_are_not_finite_are_null_in_the_record_and_told(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A strength that was well on the held-out documents is too much for others."""
    huge = SearchSpace(AXES, ((2,), (1e38,)))
    monkeypatch.setattr("sadi_lmeval.methods.sadi.GRIDS", {"head": huge, "hidden": huge})
    monkeypatch.setattr("sadi_lmeval.steering.tuning.pick", lambda *_: Pick(1, 1.0))
    folder = tmp_path / "out"
    options = ("tiny_choice,tiny_word", "none,sadi-head,sadi-hidden", "--limit", "8")
    with caplog.at_level(logging.WARNING):
        assert cli.main(command(folder, *options, "--log_samples")) == 0
    told = [r.getMessage() for r in caplog.records if "are not finite" in r.getMessage()]
    assert len(told) >= 2
    finite = {}
    for method in ("none", "sadi-head", "sadi-hidden"):
        for task in ("tiny_choice", "tiny_word"):
            record = record_of(folder, task, method)
            found = [answers(sample) for sample in samples_of(folder, method, task)]
            sound = [all(abs(score) < float("inf") for score in scores) for scores in found]
            assert [value is not None for value in record.values] == sound
            if task == "tiny_choice":
                assert [chosen is not None for chosen in record.chosen] == sound
            assert (None not in record.metrics["acc"]) == all(sound)
            finite[method, task] = all(sound)
    assert finite["none", "tiny_choice"]
    assert finite["none", "tiny_word"]
    assert not finite["sadi-head", "tiny_choice"]
    assert not finite["sadi-hidden", "tiny_choice"]
    table = (folder / "leaderboard.md").read_text()
    assert re.search(r"^\| sadi-head \|.*n/a", table, re.MULTILINE)
    assert "sadi-head on tiny_choice: " in table
    assert "documents have no finite value" in table
    # the same again: nothing is scored for it, and nothing changes
    before = contents(folder)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    assert cli.main(command(folder, *options)) == 0
    assert contents(folder) == before


def test_a_model_that_overflows_unsteered_has_no_result_at_all(
    command: Command,
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = changed_model(model_folder, tmp_path, "model.norm.weight", 3e38)
    folder = tmp_path / "out"
    given = ("tiny_choice,tiny_text", "none,iti", "--limit", "4", "--html", "--diagnostics")
    with caplog.at_level(logging.WARNING):
        assert cli.main(command(folder, *given, pretrained=broken)) == 0
    assert any("are not finite" in r.getMessage() for r in caplog.records)
    for method in ("none", "iti"):
        record = record_of(folder, "tiny_choice", method)
        assert record.values == record.chosen == [None] * 4
        assert record.metrics["acc"] == [None, None]
        record = record_of(folder, "tiny_text", method)
        assert record.values == [None] * 4
        assert record.metrics["exact_match"] == [None, None]
        assert record.steering.not_finite == 4
    [mask] = masks_of(record_of(folder, "tiny_choice", "iti"))
    assert mask["tuning"]["chosen"] == {"top_k": 0, "alpha": 0.0}
    assert mask["tuning"]["p_max"] is None
    table = (folder / "leaderboard.md").read_text()
    assert re.search(r"^\| unsteered \| n/a", table, re.MULTILINE)


# ------------------------------------------------------------------ metrics


def included(tasks_folder: Path, folder: Path, task: str, base: str, **config: Any) -> Path:
    """A folder with a task that is another one but for some of its configuration."""
    folder.mkdir()
    content = yaml.safe_load((tasks_folder / f"{base}.yaml").read_text())
    text = yaml.safe_dump({**content, "task": task, **config})
    (folder / f"{task}.yaml").write_text(text)
    return folder


def metric(name: str, aggregation: str = "mean", higher: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher}


PERPLEXITY = metric("perplexity", "perplexity", False)


def test_a_metric_that_is_no_mean_of_the_documents_is_passed_over(
    command: Command, tasks_folder: Path, tmp_path: Path
) -> None:
    lists = [PERPLEXITY, metric("acc")]
    own = included(tasks_folder, tmp_path / "own", "tiny_ppl", "tiny_word", metric_list=lists)
    folder = tmp_path / "out"
    options = ("tiny_ppl", "none,iti", "--limit", "6")
    assert cli.main(command(folder, *options, include=own)) == 0
    for record in load_records([folder]):
        assert record.metric == "acc"
        known = [value for value in record.values if value is not None]
        assert record.metrics["acc"][0] == pytest.approx(np.mean(known))
        assert (record.metrics["perplexity"][0] or 0) > 1
    assert "| method | tiny_ppl (acc) |" in (folder / "leaderboard.md").read_text()


def test_a_task_without_a_mean_of_its_documents_is_refused_before_it_is_scored(
    command: Command,
    tasks_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = included(tasks_folder, tmp_path / "own", "tiny_ppl", "tiny_word",
                   metric_list=[PERPLEXITY])  # fmt: skip
    monkeypatch.setattr("lm_eval.simple_evaluate", None)
    said = refused(command(tmp_path / "out", "tiny_ppl", "none,iti", include=own), capsys)
    assert "task tiny_ppl: none of its metrics (perplexity)" in said


@pytest.mark.parametrize("name", ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"])
def test_the_answer_is_the_choice_that_the_metric_takes(
    command: Command, tasks_folder: Path, tmp_path: Path, name: str
) -> None:
    own = included(tasks_folder, tmp_path / "own", "tiny_norm", "tiny_choice",
                   metric_list=[metric(name)])  # fmt: skip
    folder = tmp_path / "out"
    assert cli.main(command(folder, "tiny_norm", "none", "--limit", "30", include=own)) == 0
    [record] = load_records([folder])
    right = [float(c in g) for c, g in zip(record.chosen, record.gold, strict=True)]
    assert right == record.values
    assert set(record.chosen) <= {0, 1, 2}
