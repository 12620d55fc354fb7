"""Every ``hf-METHOD`` against its equations written out: fits, scores, texts.

What all methods have in common, in one test each; what is a method's own stands in its own file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import Measured
from helpers.equations import EQUATIONS
from helpers.equations.contract import Equations, Numbers
from helpers.loops import (
    assert_generated_as_the_loop_says,
    assert_scored_as_the_loop_says,
    plain_score,
    texts_of_pairs,
    tokens_of,
    tried,
)
from helpers.messages import one_line
from helpers.once import once
from helpers.results import masks_of, numbers, scores
from helpers.tasks import held_out_of, load, make_alike, make_task
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.methods.registry import method_class, method_names
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.types import Scope

each_method = pytest.mark.parametrize("method", EQUATIONS)


def task_of(method: str, task: str = "tiny_choice") -> str:
    """A task in the form in which the method is asked."""
    return EQUATIONS[method].form.tasks[task]


def each_method_with(*tasks: str) -> pytest.MarkDecorator:
    """Each method with each of some tasks that has a form for it."""
    asked = [
        (method, task_of(method, task))
        for method, equations in EQUATIONS.items()
        for task in tasks
        if task in equations.form.tasks
    ]
    return pytest.mark.parametrize(("method", "task"), asked)


def axes_of(method: str) -> tuple[str, ...]:
    return method_class(method)().axes.names


def given_to(method: str, **changes: Any) -> dict[str, Any]:
    return {**EQUATIONS[method].given, **changes}


def setting_of(method: str, given: Mapping[str, Any]) -> Numbers:
    return tuple(given[name] for name in axes_of(method))


def cases_of(listed: Callable[[Equations], Sequence[dict[str, Any]]], *tasks: str) -> list[Any]:
    """What each method's equations list, with each of some tasks that has a form for the method."""
    return [
        pytest.param(
            method,
            changes,
            task_of(method, task),
            id=" ".join([task, method, *(f"{k}={v}" for k, v in changes.items())]),
        )
        for method, equations in EQUATIONS.items()
        for changes in listed(equations)
        for task in tasks
        if task in equations.form.tasks
    ]


FOLDS = [0, 5, 11, 17, 24, 25, 28, 33, 40, 49]
"""Documents of both folds."""


def part_of(task: str) -> dict[str, Any]:
    """The documents that are scored of a task."""
    if not task.endswith("folds"):
        return {"limit": 12}
    return {"limit": None, "settings": {"samples": {task: FOLDS}}}


@pytest.fixture(scope="session")
def unsteered(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Callable[[str, str], Score]:
    """What the loop scores without an edit; once."""
    return once(
        lambda context, continuation: plain_score(
            harness_model, *tokens_of(tokenizer, context, continuation), "head", None
        )
    )


def scope_of(method: str, given: Mapping[str, Any]) -> Scope:
    scope: Scope = given.get("scope", EQUATIONS[method].scope)
    return scope


# ------------------------------------------------------------------ what is measured


@each_method_with("tiny_choice", "tiny_folds", "tiny_empty", "tiny_word")
def test_the_fit_is_that_of_plain_passes(
    evaluate_once: Any, measured: Measured, method: str, task: str
) -> None:
    """At the last token of each answer, in each layer."""
    given = given_to(method)
    results = evaluate_once(task, model=f"hf-{method}", **part_of(task), **given)
    masks = masks_of(results, task)
    assert len(masks) == (2 if task.endswith("folds") else 1)
    for index, mask in enumerate(masks):
        tensors = load_fit(Path(mask["file"])).tensors
        EQUATIONS[method].assert_measured(tensors, measured(method, task, index, **given))


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("method", "changes", "task"),
    cases_of(lambda e: e.cases, "tiny_choice", "tiny_folds", "tiny_empty", "tiny_input"),
)
def test_every_choice_scores_what_the_equations_say(
    evaluate_once: Any,
    measured: Measured,
    unsteered: Callable[[str, str], Score],
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    method: str,
    changes: dict[str, Any],
) -> None:
    equations, given = EQUATIONS[method], given_to(method, **changes)
    results = evaluate_once(task, model=f"hf-{method}", **part_of(task), **given)
    masks = masks_of(results, task)
    known = [measured(method, task, index, **given) for index in range(len(masks))]
    for mask, found in zip(masks, known, strict=True):
        places = equations.places(found, given)
        selected = mask.get("selected")
        assert (selected and {tuple(place) for place in selected}) == places

    def change_of(document: int) -> Any:
        return equations.change(known[document // 25 if task.endswith("folds") else 0], given)

    scored = tried(results, task)
    assert len(scored) == 3 * len(FOLDS if task.endswith("folds") else range(12))
    where, scope = equations.where(given), scope_of(method, given)
    assert_scored_as_the_loop_says(scored, harness_model, tokenizer, where, change_of, scope)
    plain = [unsteered(f.context, f.continuation) for f in scored]
    assert np.median([abs(f.score[0] - p[0]) for f, p in zip(scored, plain, strict=True)]) > 0.1


@each_method_with("alike")
def test_prompts_that_begin_and_end_alike_score_what_the_equations_say(
    run_task: Any,
    measured: Measured,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    task: str,
) -> None:
    """In batches of any size, and where every continuation gets a row of its own."""
    make_alike(tmp_path)
    equations, given = EQUATIONS[method], given_to(method)
    first = tried(run_task(task, f"hf-{method}", "auto", **given), task)
    assert len({one.context + one.continuation for one in first}) < len(first) - 10
    known = measured(method, task, folder=tmp_path, **given)
    change = equations.change(known, given)
    where, scope = equations.where(given), scope_of(method, given)
    assert_scored_as_the_loop_says(first, harness_model, tokenizer, where, lambda _: change, scope)
    for size, plainly in ((1, False), (3, False), (3, True)):
        if plainly:
            monkeypatch.setattr(Engine, "longest_branching_path", 0)
        found = tried(run_task(task, f"hf-{method}", size, **given), task)
        assert [one._replace(score=(0.0, one.score[1])) for one in found] == [
            one._replace(score=(0.0, one.score[1])) for one in first
        ]
        scored, expected = ([one.score[0] for one in each] for each in (found, first))
        assert scored == pytest.approx(expected, abs=1e-4)


@each_method
def test_prompts_cut_from_the_left_score_what_the_equations_say(
    evaluate: Any,
    measured: Measured,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    method: str,
) -> None:
    equations, given, task = EQUATIONS[method], given_to(method), task_of(method)
    results = evaluate(task, model=f"hf-{method}", max_length=9, **given)
    known = measured(method, task, max_length=9, **given)
    change = equations.change(known, given)
    assert_scored_as_the_loop_says(
        tried(results, task),
        harness_model,
        tokenizer,
        equations.where(given),
        lambda _: change,
        scope_of(method, given),
        max_length=9,
    )


@pytest.mark.parametrize(
    ("method", "changes", "task"), cases_of(lambda e: e.generated, "tiny_text")
)
def test_texts_are_those_of_a_loop_that_generates_token_for_token(
    evaluate: Any,
    measured: Measured,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    method: str,
    changes: dict[str, Any],
    task: str,
) -> None:
    """Where later tokens are edited, every generated one is."""
    equations, given = EQUATIONS[method], given_to(method, **changes)
    change = equations.change(measured(method, task, **given), given)
    batched, alone = (
        evaluate(task, model=f"hf-{method}", limit=15, settings={"batch_size": size}, **given)
        for size in (5, 1)
    )
    assert_generated_as_the_loop_says(
        batched,
        task,
        harness_model,
        tokenizer,
        equations.where(given),
        change,
        scope_of(method, given),
    )
    assert scores(alone, task) == scores(batched, task)


# ------------------------------------------------------------------ no document meets itself


@each_method
def test_a_planted_document_is_in_nothing_that_is_measured(
    run_task: Any, measured: Measured, tasks_folder: Path, tmp_path: Path, method: str
) -> None:
    train, scored = (
        [json.loads(line) for line in (tasks_folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "validation")
    )
    train, scored = train[:16], scored[:6]
    planted = [scored[1], scored[4], {**scored[2], "question": scored[2]["question"].upper()}]
    mixed = [*train[:5], planted[0], *train[5:9], planted[1], *train[9:], planted[2]]
    form = EQUATIONS[method].form
    task = make_task(tmp_path, "planted", {"train": mixed, "validation": scored}, **form.config)
    given = given_to(method, n_pairs=16)
    [mask] = masks_of(run_task("planted", f"hf-{method}", **given), "planted")
    fit = load_fit(Path(mask["file"]))
    of_the_task = {digest(d) for d in task.documents("train")}
    leaked = {digest(d) for d in task.evaluated()} | {digest(task.documents("train")[-1])}
    assert len(fit.card["documents"]) == len(set(fit.card["documents"])) == 16
    assert set(fit.card["documents"]) < of_the_task
    assert not set(fit.card["documents"]) & leaked
    texts = texts_of_pairs(tmp_path, "planted", method, n_pairs=16)
    assert not any(d["question"] in text for d in scored for pair in texts for text in pair)
    known = measured(method, "planted", folder=tmp_path, **given)
    EQUATIONS[method].assert_measured(fit.tensors, known)
    with pytest.raises(UserError, match="makes 16 contrastive pairs"):
        run_task("planted", f"hf-{method}", **{**given, "n_pairs": 17})


@each_method
def test_each_fold_is_steered_by_the_others_documents_alone(
    evaluate: Any, measured: Measured, method: str
) -> None:
    """All 25 of the other half: every one of them, and none of the own."""
    given, task = given_to(method, n_pairs=25), task_of(method, "tiny_folds")
    masks = masks_of(evaluate(task, model=f"hf-{method}", **part_of(task), **given), task)
    fits = [load_fit(Path(mask["file"])) for mask in masks]
    assert [len(set(fit.card["documents"])) for fit in fits] == [25, 25]
    assert not set(fits[0].card["documents"]) & set(fits[1].card["documents"])
    for index, fit in enumerate(fits):
        known = measured(method, task, index, **given)
        EQUATIONS[method].assert_measured(fit.tensors, known)


# ------------------------------------------------------------------ saved fits


@each_method
def test_a_saved_fit_steers_another_run(
    evaluate: Any, evaluate_once: Any, tmp_path: Path, method: str
) -> None:
    model, given, task = f"hf-{method}", given_to(method), task_of(method)
    part = part_of(task)
    own = evaluate_once(task, model=model, **part, **given)
    [mask] = masks_of(own, task)
    saved = {"mask": mask["file"], "cache_dir": str(tmp_path / "none")}
    saved |= {name: given[name] for name in axes_of(method)}
    other = evaluate(task, model=model, **part, **saved)
    assert numbers(other, task) == numbers(own, task)
    assert not (tmp_path / "none").exists()
    for arguments in EQUATIONS[method].served:
        fresh = evaluate_once(task, model=model, **part, **{**given, **arguments})
        again = evaluate(task, model=model, **part, **{**saved, **arguments})
        assert numbers(again, task) == numbers(fresh, task)
        assert numbers(again, task) != numbers(own, task)


@each_method
def test_a_fit_of_a_document_that_is_scored_is_refused(
    evaluate: Any, evaluate_once: Any, method: str
) -> None:
    model, given, task = f"hf-{method}", given_to(method), task_of(method)
    folds = task_of(method, "tiny_folds")
    masks = masks_of(evaluate_once(folds, model=model, **part_of(folds), **given), folds)
    with pytest.raises(UserError, match=f"a document that task {task} scores") as caught:
        evaluate(task, model=model, limit=50, mask=masks[0]["file"], **given)
    assert masks[0]["file"] in one_line(caught)


@pytest.mark.parametrize(
    ("giver", "arguments", "taker", "words"),
    [
        ("sadi", {}, "iti", "kind mean_difference, but this run has probes"),
        ("sadi", {}, "caa", "for element head, but this run has hidden"),
        ("sadi", {"element": "hidden"}, "caa", "for hidden_site=mlp, but this run has residual"),
        ("iti", {}, "sadi", "kind probes, but this run has mean_difference"),
        ("iti", {}, "caa", "kind probes, but this run has mean_difference"),
        ("caa", {}, "iti", "kind mean_difference, but this run has probes"),
        ("caa", {}, "sadi", "for element hidden, but this run has head"),
        ("caa", {}, "odesteer", "kind mean_difference, but this run has polynomial_classifier"),
        ("odesteer", {}, "spherical", "kind polynomial_classifier, but this run has mean_diff"),
    ],
)
def test_a_fit_of_another_method_is_refused(
    evaluate: Any, evaluate_once: Any, giver: str, arguments: dict[str, Any], taker: str, words: str
) -> None:
    given = given_to(giver, **arguments)
    results = evaluate_once("tiny_choice", model=f"hf-{giver}", **part_of("tiny_choice"), **given)
    [mask] = masks_of(results, "tiny_choice")
    with pytest.raises(UserError, match=words) as caught:
        evaluate("tiny_choice", model=f"hf-{taker}", mask=mask["file"], **given_to(taker))
    assert mask["file"] in one_line(caught)


# ------------------------------------------------------------------ what is chosen


@each_method
def test_a_setting_is_chosen_on_held_out_documents_by_what_it_scores_there(
    evaluate: Any,
    measured: Measured,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks_folder: Path,
    method: str,
) -> None:
    arguments, settings = EQUATIONS[method].chosen
    given, task = {**arguments, "n_pairs": 12, "rule": "best"}, task_of(method)
    results = evaluate(task, model=f"hf-{method}", **given)
    [mask] = masks_of(results, task)
    of_pairs, documents = held_out_of(tasks_folder, task, method, **given)
    scored = {digest(d) for d in load(tasks_folder, task).evaluated()}
    held_out = {digest(d) for d in documents}
    assert of_pairs == set(load_fit(Path(mask["file"])).card["documents"])
    assert len(held_out) == given["n_tune"]
    assert not held_out & (of_pairs | scored)

    equations, axes = EQUATIONS[method], axes_of(method)
    where, scope = equations.where(given), scope_of(method, given)
    known, table = measured(method, task, **given), []
    for setting in [None, *settings]:
        change = None
        if setting is not None:
            change = equations.change(known, {**given, **dict(zip(axes, setting, strict=True))})
        values, margins = [], []
        for document in documents:
            context = tokenizer.encode(equations.form.prompt(document))
            likely = [
                plain_score(
                    harness_model,
                    context,
                    tokenizer.encode(choice),
                    where,
                    change,
                    scope,
                )[0]
                for choice in equations.form.choices(document)
            ]
            values.append(float(np.argmax(likely) == document["label"]))
            right = likely.pop(document["label"])
            margins.append(right - max(likely))
        numbers = (0,) * len(axes) if setting is None else setting
        table.append((*numbers, np.mean(values), np.mean(margins)))
    tuning = mask["tuning"]
    found = [tuple(row[name] for name in (*axes, "score", "margin")) for row in tuning["table"]]
    assert found == [pytest.approx(row, abs=1e-4) for row in table]
    chosen = max(table, key=lambda row: row[-2:])
    assert tuning["chosen"] == dict(zip(axes, chosen, strict=False))
    record = results["config"]["sadi"][task]
    assert setting_of(method, record) == setting_of(method, mask) == chosen[:-2]
    foreign = {name for other in method_names() for name in axes_of(other)} - set(axes)
    assert not foreign & {*record, *mask, *tuning["table"][0]}
    assert "delta" in axes or "delta" not in json.dumps(record)


def table_of(results: dict[str, Any], method: str) -> list[Numbers]:
    [mask] = masks_of(results, task_of(method))
    return [setting_of(method, row) for row in mask["tuning"]["table"]]


TUNED = [(name, *case) for name, equations in EQUATIONS.items() for case in equations.narrowed]


@pytest.mark.parametrize(("method", "arguments", "settings"), TUNED)
def test_a_number_that_is_given_is_not_tuned(
    evaluate: Any, method: str, arguments: dict[str, Any], settings: list[Numbers]
) -> None:
    results = evaluate(task_of(method), model=f"hf-{method}", limit=1, n_tune=8, **arguments)
    assert table_of(results, method) == [(0,) * len(axes_of(method)), *settings]


FIXED = [(name, *case) for name, equations in EQUATIONS.items() for case in equations.usual]


@pytest.mark.parametrize(("method", "arguments", "setting"), FIXED)
def test_with_the_usual_numbers_nothing_is_tuned(
    evaluate: Any,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    arguments: dict[str, Any],
    setting: Numbers,
) -> None:
    monkeypatch.setattr(Engine, "score_grid", None)
    task = task_of(method)
    results = evaluate(task, model=f"hf-{method}", limit=1, **arguments)
    [mask] = masks_of(results, task)
    assert setting_of(method, mask) == setting
    assert "tuning" not in mask


# ------------------------------------------------------------------ the plain command

_RUN = """
import json, sys
from helpers import quick_host
from lm_eval.__main__ import cli_evaluate
quick_host.hurry()
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""


@pytest.mark.slow
def test_the_harness_s_own_command_knows_both_models_and_writes_what_they_chose(
    tmp_path: Path, model_folder: Path, tasks_folder: Path
) -> None:
    """Both in one interpreter, which takes as long to start as all other tests here."""
    runs = []
    for model, arguments in (
        ("hf-iti", "grid=1/5x-2/3,n_tune=8"),
        ("hf-caa", "multiplier=1,n_tune=8"),
    ):
        given = f"pretrained={model_folder},cache_dir={tmp_path / 'cache'},n_pairs=12,{arguments}"
        command = ["--model", model, "--model_args", given, "--tasks", "tiny_choice,tiny_text"]
        command += ["--device", "cpu", "--limit", "4", "--include_path", str(tasks_folder)]
        runs.append([*command, "--output_path", str(tmp_path / model)])
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(runs)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(" ", "").count("|tiny_choice|") == 2
    for model, names, settings in (
        ("hf-iti", ("top_k", "alpha"), [(0, 0), (1, -2), (1, 3), (5, -2), (5, 3)]),
        ("hf-caa", ("layer", "multiplier"), [(0, 0), (0, 1), (1, 1), (2, 1)]),
    ):
        [file] = (tmp_path / model).rglob("results_*.json")
        said = json.loads(file.read_text(encoding="utf-8"))["config"]["sadi"]
        assert set(said) == {"tiny_choice", "tiny_text"}
        for record in said.values():
            assert record["method"] == model.removeprefix("hf-")
            assert record["parameters"] == list(names)
            [mask] = record["fits"]
            rows = [tuple(row[name] for name in names) for row in mask["tuning"]["table"]]
            assert rows == settings
            assert set(mask["tuning"]["chosen"]) == set(names)
