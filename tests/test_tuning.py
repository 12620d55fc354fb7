"""A setting chosen in a run: the table is right, the choice follows from it, nothing is lost."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.results import numbers, scores
from helpers.tasks import load
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, digest
from sadi_lmeval.methods.arm import Arm, read_arm
from sadi_lmeval.methods.sadi import AXES, GRIDS, SADI, binary_mask, sadi_edit
from sadi_lmeval.model import SteeredModel, model_class
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.passes import engine
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.grid import grid_log_likelihoods
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.steering import steering, tuning
from sadi_lmeval.steering.fitting import fits_of
from sadi_lmeval.steering.outcome import Choice
from sadi_lmeval.steering.steering import candidates_of, prepare
from sadi_lmeval.steering.tuning import Candidates, Trial, choose_settings
from sadi_lmeval.storage import store
from sadi_lmeval.storage.atomic import write_checked
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.storage.journal import Journal

GRID = {"grid": "1/3/6x-2/4/9", "n_tune": 12}
Table = list[dict[str, Any]]


def masks_of(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    masks: list[dict[str, Any]] = results["config"]["sadi"][task]["fits"]
    return masks


def tuning_of(results: dict[str, Any], task: str) -> dict[str, Any]:
    [mask] = masks_of(results, task)
    tuning: dict[str, Any] = mask["tuning"]
    return tuning


def settings_of(table: Table) -> list[tuple[int, float]]:
    return [(row["top_k"], row["delta"]) for row in table]


def assert_same(one: Table, other: Table) -> None:
    assert settings_of(one) == settings_of(other)
    of_likelihood = ("likelihood_difference", "likelihood_difference_stderr")
    names = ("score", "stderr", "difference", "difference_stderr", "margin", *of_likelihood)
    for name in names:
        expected = [row[name] for row in other]
        assert [row[name] for row in one] == pytest.approx(expected, abs=1e-4), name


# ------------------------------------------------------------------ the table


def held_out_of(folder: Path, name: str, mask: int, **arguments: Any) -> list[Document]:
    options = read_arm("sadi", arguments).options
    plan = find_plan(load(folder, name), options)
    return draw(plan, plan.sources.sources[mask], options, AXES.names).held_out


def judged_alone(
    name: str,
    documents: Sequence[Document],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    edits: Edits | None,
    objective: str,
) -> list[tuple[float, float, float | None]]:
    """The objective, the margin and the likelihood of the right choice among all of each document,
    from one plain pass after another."""
    found: list[tuple[float, float, float | None]] = []
    for document in documents:
        context = tokenizer.encode(f"{document['question']} answer :")
        choice = name in ("tiny_choice", "tiny_folds")
        answers = document["choices"] if choice else [document["answer"]]
        values = []
        for answer in answers:
            tokens = tokenizer.encode(f" {answer}")
            request = Continuation(tuple(context), tuple(tokens), 0)
            [score] = log_likelihoods(
                Forward(model), [request], edits, 0, False, Bounds(1, 9999, 9999)
            )
            values.append(score)
        if choice:
            right = document["label"]
            likely = [value for value, _ in values]
            wrong = max(value for i, value in enumerate(likely) if i != right)
            share = math.exp(likely[right]) / sum(map(math.exp, likely))
            found.append(
                (float(np.argmax(likely) == right), likely[right] - wrong, math.log(share))
            )
        elif objective == "likelihood":
            found.append((values[0][0] / len(tokens), values[0][0], None))
        else:
            found.append((float(values[0][1]), values[0][0], None))
    return found


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tiny_choice", {}),
        ("tiny_choice", {"element": "neuron", "activations": "clean"}),
        ("tiny_folds", {"element": "hidden", "selection": "top_abs"}),
        ("tiny_text", {}),
        ("tiny_text", {"objective": "exact_match", "element": "hidden"}),
        ("tiny_word", {"steering": "fixed", "element": "neuron"}),
    ],
)
def test_the_table_holds_what_each_setting_scores_alone(
    evaluate: Any,
    tasks_folder: Path,
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    arguments: dict[str, Any],
) -> None:
    ours = {"grid": "1/5x-2/9", "n_tune": 8, "n_pairs": 12, **arguments}
    options = read_arm("sadi", ours).method
    assert isinstance(options, SADI)
    model = LlamaForCausalLM.from_pretrained(model_folder).eval()
    site = find_site(model, options.element, options.hidden_site)
    samples = {"samples": {name: [0, 1, 30]}}  # of both folds
    masks = masks_of(evaluate(name, limit=None, settings=samples, **ours), name)
    assert len(masks) == (2 if name == "tiny_folds" else 1)
    for index, mask in enumerate(masks):
        documents = held_out_of(tasks_folder, name, index, **ours)
        tuning = mask["tuning"]
        difference = load_fit(Path(mask["file"])).tensors["difference"]
        table: Table = []
        unsteered = before = np.zeros(0)
        for top_k, delta in [(0, 0.0), (1, -2.0), (1, 9.0), (5, -2.0), (5, 9.0)]:
            edits = None
            if top_k:
                chosen = binary_mask(difference.mean(dim=-1), top_k, options.selection, 0)
                edit = sadi_edit(chosen, difference, delta, options.steering)
                edits = DiagonalEdits(site, [edit], options.activations == "clean")
            found = judged_alone(name, documents, model, tokenizer, edits, tuning["objective"])
            values, margins, likely = (np.array(column) for column in zip(*found, strict=True))
            unsteered = unsteered if top_k else values
            before = before if top_k else likely
            chooses = None not in likely
            table.append(
                {
                    "top_k": top_k,
                    "delta": delta,
                    "score": values.mean(),
                    "stderr": stats.sem(values),
                    "difference": (values - unsteered).mean(),
                    "difference_stderr": stats.sem(values - unsteered),
                    "margin": margins.mean(),
                    "likelihood_difference": (likely - before).mean() if chooses else None,
                    "likelihood_difference_stderr": stats.sem(likely - before) if chooses else None,
                }
            )
        assert tuning["documents"] == len(documents) == 8
        assert_same(tuning["table"], table)
        assert len({round(row["margin"], 3) for row in table}) == 5


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("tiny_choice", "head"),
        ("tiny_choice", "neuron"),
        ("tiny_folds", "head"),
        ("tiny_text", "neuron"),
        ("tiny_word", "head"),
    ],
)
def test_the_best_of_the_table_is_chosen_and_steers_as_if_given_by_hand(
    evaluate: Any, name: str, element: str
) -> None:
    tuned = evaluate(name, limit=50, element=element, rule="best", **GRID)
    record = tuned["config"]["sadi"][name]
    json.dumps(record, allow_nan=False)
    found = scores(tuned, name)
    a_document = len(found) // 50
    for index, mask in enumerate(masks_of(tuned, name)):
        table = mask["tuning"]["table"]
        expected = [(0, 0.0), *((k, d) for k in (1, 3, 6) for d in (-2.0, 4.0, 9.0))]
        assert settings_of(table) == expected
        best = max(table, key=lambda r: (r["score"], r["margin"], -r["top_k"] * abs(r["delta"])))
        chosen = {"top_k": best["top_k"], "delta": best["delta"]}
        assert mask["tuning"]["chosen"] == chosen == {k: mask[k] for k in ("top_k", "delta")}
        assert chosen["top_k"] == len(mask["selected"])
        assert mask["tuning"]["rule"] == "best"
        assert 0 < mask["tuning"]["p_max"] <= 1
        given = chosen if best["top_k"] else {"delta": 0}
        by_hand = evaluate(name, limit=50, element=element, **given)
        if best["top_k"]:
            assert masks_of(by_hand, name)[index]["selected"] == mask["selected"]
            assert "tuning" not in masks_of(by_hand, name)[index]
        half = slice(25 * index * a_document, 25 * (index + 1) * a_document)
        part = half if name == "tiny_folds" else slice(None)
        if name == "tiny_text":
            assert found == scores(by_hand, name)
        else:
            same = numbers(by_hand, name)[part]
            assert numbers(tuned, name)[part] == pytest.approx(same, abs=1e-4)
    for key in ("top_k", "delta"):
        values = [mask[key] for mask in record["fits"]]
        assert record[key] == (values if len(set(values)) > 1 else values[0])


@pytest.mark.parametrize(
    ("name", "given", "rule"),
    [
        ("tiny_choice", {}, "sure"),
        ("tiny_choice", {"rule": "sure-or-backed"}, "sure-or-backed"),
        ("tiny_word", {}, "sure"),
        ("tiny_text", {}, "sure"),
    ],
)
@pytest.mark.parametrize("element", ["head", "neuron"])
def test_what_the_rule_of_a_task_takes_follows_from_the_table(
    evaluate: Any, name: str, given: dict[str, str], rule: str, element: str
) -> None:
    found = tuning_of(
        evaluate(name, element=element, **{**GRID, **given, "n_tune": 40, "race": False}), name
    )
    assert found["rule"] == rule
    table = found["table"]
    order = sorted(table, key=lambda r: (-r["score"], -r["margin"], r["top_k"] * abs(r["delta"])))
    backed = [
        row
        for row in order
        if rule == "sure-or-backed"
        and row["difference"] > 0
        and row["likelihood_difference"] > row["likelihood_difference_stderr"]
    ]
    sure = order if found["p_max"] <= 0.25 else []
    [taken, *_] = [*sure, *backed, table[0]]
    assert found["chosen"] == {"top_k": taken["top_k"], "delta": taken["delta"]}


def test_a_rule_by_name_is_followed_and_told(evaluate: Any) -> None:
    taken = {}
    for rule in ("best", "best-2se", "likely-1se", "sure-or-backed"):
        found = tuning_of(evaluate("tiny_choice", rule=rule, **GRID), "tiny_choice")
        assert found["rule"] == rule
        taken[rule] = found["chosen"], found["p_max"], found["table"]
    assert len({p_max for _, p_max, _ in taken.values()}) == 1
    assert all(table == taken["best"][2] for *_, table in taken.values())
    assert len({str(chosen) for chosen, *_ in taken.values()}) > 1


def test_a_rule_that_a_task_cannot_follow_is_refused_before_anything_is_scored(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    with pytest.raises(UserError, match=r"rule=backed: .*tiny_word"):
        evaluate("tiny_word", rule="backed", **GRID)


def test_the_unsteered_model_is_taken_where_every_setting_is_worse(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        found = evaluate("tiny_text", grid="3x-2/4")
    [mask] = masks_of(found, "tiny_text")
    assert mask["tuning"]["chosen"] == {"top_k": 0, "delta": 0.0}
    assert mask["selected"] == []
    assert scores(found, "tiny_text") == scores(evaluate("tiny_text", model="hf"), "tiny_text")
    assert "no setting of sadi-head beats the unsteered model" in caplog.text


def test_a_run_says_so_where_nothing_beats_the_unsteered_model(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        found = tuning_of(evaluate("tiny_choice", grid="1x9/10", n_tune=58), "tiny_choice")
        assert found["p_max"] <= 0.25
        assert "beats the unsteered model" not in caplog.text
        assert tuning_of(evaluate("tiny_word", **GRID), "tiny_word")["p_max"] > 0.25
    [line] = [line for line in caplog.messages if "beats the unsteered model" in line]
    for word in (
        "tiny_word",
        "no setting of sadi",
        "by more than chance may",
        "12 held-out documents",
    ):
        assert word in line


OVERFLOWING = {"grid": "2x4/3e38", "n_tune": 12}


def test_a_setting_without_finite_scores_is_in_the_table_and_never_chosen(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuning_of(evaluate("tiny_choice", **OVERFLOWING), "tiny_choice")
    assert found["table"][2]["not_finite"] == 12
    assert found["table"][2]["score"] is found["table"][2]["difference"] is None
    assert found["chosen"]["delta"] in (0.0, 4.0)
    json.dumps(found, allow_nan=False)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    again = evaluate("tiny_choice", **OVERFLOWING)
    assert tuning_of(again, "tiny_choice") == found


def test_a_setting_without_finite_scores_changes_no_other_s(evaluate: Any) -> None:
    """They are scored side by side in one pass."""
    found, expected = (
        tuning_of(evaluate("tiny_choice", grid=grid, n_tune=12), "tiny_choice")["table"][:2]
        for grid in ("2x4/3e38", "2x4/3")
    )
    assert_same(found, expected)


def test_a_run_goes_on_where_the_unsteered_model_is_not_finite(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: Any = grid_log_likelihoods

    def without_unsteered(*arguments: Any, done: Any, **named: Any) -> None:
        def told(which: list[int], values: Tensor, greedy: Tensor) -> None:
            values[0] = torch.nan
            done(which, values, greedy)

        inner(*arguments, done=told, **named)

    monkeypatch.setattr(engine, "grid_log_likelihoods", without_unsteered)
    found = tuning_of(evaluate("tiny_choice", **GRID), "tiny_choice")
    assert found["table"][0]["not_finite"] == 12
    assert found["chosen"]["top_k"] > 0
    assert found["p_max"] is None
    json.dumps(found, allow_nan=False)


# ------------------------------------------------------------------ what is tried


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [(k, d) for k in GRIDS["head"].values[0] for d in GRIDS["head"].values[1]]),
        ({"top_k": 3, "delta": "auto"}, [(3, d) for d in GRIDS["head"].values[1]]),
        ({"grid": "1/3x0/4"}, [(1, 4.0), (3, 4.0)]),
        ({"element": "neuron", "delta": 4, "top_k": "auto"},
         [(k, 4.0) for k in (3, 5, 10, 30, 50, 100)]),
    ],
)  # fmt: skip
def test_the_settings_are_those_of_the_grid_and_the_unsteered_model(
    evaluate: Any, arguments: dict[str, Any], expected: list[tuple[int, float]]
) -> None:
    found = tuning_of(evaluate("tiny_choice", n_tune=4, **arguments), "tiny_choice")
    assert settings_of(found["table"]) == [(0, 0.0), *expected]
    assert found["documents"] == 4


def test_as_many_settings_as_are_tried_are_allowed(evaluate: Any) -> None:
    given = {"top_k": "auto", "n_tune": 4}
    tried = tuning_of(evaluate("tiny_choice", **given), "tiny_choice")
    count = len(tried["table"]) - 1
    with pytest.raises(UserError, match=f"{count} settings"):
        evaluate("tiny_choice", max_settings=count - 1, **given)
    again = evaluate("tiny_choice", max_settings=count, **given)
    assert tuning_of(again, "tiny_choice") == tried


def test_a_grid_that_steers_nothing_is_refused_for_what_it_is(evaluate: Any) -> None:
    with pytest.raises(UserError) as caught:
        evaluate("tiny_choice", grid="1/2x0")
    assert "grid" in str(caught.value)
    assert "benchmark" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("tiny_choice", {"n_tune": 59}, ["70 documents", "leaves 58", "59 are needed"]),
        ("tiny_choice", {"n_pairs": 67}, ["67 of them", "leaves 3", "12 are needed"]),
        ("tiny_text", {"objective": "metric"}, ["objective=metric", "tiny_text"]),
        ("tiny_word", {"objective": "exact_match"}, ["objective=exact_match", "tiny_word"]),
    ],
)
def test_what_cannot_be_tuned_is_said_in_one_line(
    evaluate: Any, task: str, arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(task, **{**GRID, **arguments})
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_given_mask_is_tuned_on_documents_that_did_not_make_it(
    evaluate: Any, tasks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = masks_of(evaluate("tiny_choice", top_k=2, delta=3, seed=1), "tiny_choice")[0]["file"]
    seen: list[Document] = []

    def spying(trial: Any, *arguments: Any) -> Any:
        seen.extend(trial.documents)
        return choose_settings(trial, *arguments)

    monkeypatch.setattr(steering, "choose_settings", spying)
    found = evaluate("tiny_choice", mask=file, **GRID)
    made = set(load_fit(Path(file)).card["documents"])
    scored = {digest(document) for document in load(tasks_folder, "tiny_choice").evaluated()}
    assert len(made) == 12
    assert len(seen) == 12
    assert not {digest(document) for document in seen} & (made | scored)
    assert masks_of(found, "tiny_choice")[0]["file"] == file
    assert len(tuning_of(found, "tiny_choice")["table"]) == 10


# ------------------------------------------------------------------ the cache


def cached(folder: Path) -> Path:
    [file] = (folder / "cache").glob("*.tuning.json")
    return file


def test_a_second_run_takes_the_choice_from_the_cache(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate("tiny_choice", **GRID)
    kept = cached(tmp_path).read_bytes()
    assert not list((tmp_path / "cache").glob("*.jsonl"))
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    for limit in (10, 20):
        again = evaluate("tiny_choice", limit=limit, **GRID)
        assert tuning_of(again, "tiny_choice") == tuning_of(first, "tiny_choice")
    same = numbers(first, "tiny_choice")
    assert numbers(again, "tiny_choice")[:30] == pytest.approx(same, abs=1e-4)
    assert cached(tmp_path).read_bytes() == kept


CHANGES: list[dict[str, Any]] = [
    {"grid": "1/3/6x-2/4/8"},
    {"n_tune": 13},
    {"n_pairs": 13},
    {"seed": 1},
    {"selection": "bottom"},
    {"steering": "fixed"},
    {"activations": "clean"},
    {"settings": {"num_fewshot": 1}},
    {"rule": "best"},
]


def test_another_choice_is_not_taken_from_the_cache(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate("tiny_choice", **GRID)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    for change in CHANGES:
        with pytest.raises(TypeError):
            evaluate("tiny_choice", **{**GRID, **change})


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: list[Callable[[bytes], bytes]] = [
    flipped,
    lambda content: content[:-20],
    lambda content: b"",
    lambda content: b"\xff" + content,
]


def test_a_damaged_file_is_built_anew_with_a_warning(
    evaluate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = evaluate("tiny_choice", **GRID)
    file = cached(tmp_path)
    kept = file.read_bytes()
    for damage in DAMAGES:
        file.write_bytes(damage(kept))
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
            again = evaluate("tiny_choice", **GRID)
        assert f"{file}: damaged" in caplog.text
        assert tuning_of(again, "tiny_choice") == tuning_of(first, "tiny_choice")
        assert file.read_bytes() == kept


def test_a_file_of_another_run_is_not_believed(evaluate: Any, tmp_path: Path) -> None:
    first = evaluate("tiny_choice", **GRID)
    file = cached(tmp_path)
    evaluate("tiny_choice", grid="1/2x5/6", n_tune=12)
    [other] = {*(tmp_path / "cache").glob("*.tuning.json")} - {file}
    file.write_bytes(other.read_bytes())
    again = evaluate("tiny_choice", **GRID)
    assert tuning_of(again, "tiny_choice") == tuning_of(first, "tiny_choice")


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    evaluate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tuning_of(evaluate("tiny_choice", **GRID), "tiny_choice")
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        found = evaluate("tiny_choice", cache_dir=str(tmp_path / "file" / "in"), **GRID)
    assert "the choice of top_k and delta is used but is not kept" in caplog.text
    assert tuning_of(found, "tiny_choice") == expected


# ------------------------------------------------------------------ interruption


class Scored:
    """Takes the place of the grid's scoring: counts requests, and may interrupt it."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.requests: list[int] = []
        self.counts: list[list[int]] = []
        self.inner: Any = grid_log_likelihoods

    def __call__(self, forward: Any, requests: Any, families: Any, **named: Any) -> None:
        self.requests.append(len(requests))
        self.counts.append([family.count for family in families])
        done = named.pop("done")
        count = 0

        def told(which: list[int], values: Tensor, greedy: Tensor) -> None:
            nonlocal count
            done(which, values, greedy)
            count += len(which)
            if self.after is not None and count >= self.after:
                raise KeyboardInterrupt

        self.inner(forward, requests, families, done=told, **named)


@pytest.fixture
def undisturbed(evaluate: Any, tmp_path: Path) -> dict[str, Any]:
    return tuning_of(
        evaluate("tiny_choice", cache_dir=str(tmp_path / "other"), **GRID), "tiny_choice"
    )


def test_an_interrupted_choice_goes_on_where_it_was(
    evaluate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
) -> None:
    noted = 0
    for after in (1, 12, 6):
        spy = Scored(after)
        monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
        with pytest.raises(KeyboardInterrupt):
            evaluate("tiny_choice", **GRID)
        assert spy.requests == [3 * (12 - noted)]
        monkeypatch.undo()
        [notes] = (tmp_path / "cache").glob("*.tuning.jsonl")
        documents = [line["document"] for line in Journal(notes).lines]
        assert len(documents) == len(set(documents)) > noted
        noted = len(documents)
    assert 6 <= noted < 12
    assert not list((tmp_path / "cache").glob("*.tuning.json"))
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    found = tuning_of(evaluate("tiny_choice", **GRID), "tiny_choice")
    assert spy.requests == [3 * (12 - noted)]
    assert found["chosen"] == undisturbed["chosen"]
    assert_same(found["table"], undisturbed["table"])
    assert not notes.exists()


def test_all_but_the_last_step_done_is_not_done_again(
    evaluate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
) -> None:
    """Interrupted after the last document, before the outcome was written."""
    monkeypatch.setattr("sadi_lmeval.steering.tuning.pick", None)
    with pytest.raises(TypeError):
        evaluate("tiny_choice", **GRID)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    found = tuning_of(evaluate("tiny_choice", **GRID), "tiny_choice")
    assert_same(found["table"], undisturbed["table"])


def test_notes_that_are_not_this_choice_s_are_passed_over(
    evaluate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
) -> None:
    monkeypatch.setattr(engine, "grid_log_likelihoods", Scored(12))
    with pytest.raises(KeyboardInterrupt):
        evaluate("tiny_choice", **GRID)
    monkeypatch.undo()
    [notes] = (tmp_path / "cache").glob("*.tuning.jsonl")
    right = [[1.0, 1.0, -0.5]] * 10
    foreign = [
        5,
        None,
        {},
        {"document": 10, "judged": right[1:]},
        {"document": 12, "judged": right},
        {"document": -1, "judged": right},
        {"document": "x", "judged": right},
        {"document": 10, "judged": [["a", "b", None]] * 10},
        {"document": 10, "judged": [[]] * 10},
        {"document": 10, "judged": [[1.0, 1.0]] * 10},
    ]
    Journal(notes).add(*foreign)
    with notes.open("a") as file:
        file.write('0123abcd {"document": 10, "jud')
    found = tuning_of(evaluate("tiny_choice", **GRID), "tiny_choice")
    assert_same(found["table"], undisturbed["table"])


def test_a_score_that_is_not_finite_is_noted_and_known_again(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sadi_lmeval.steering.tuning.pick", None)
    with pytest.raises(TypeError):
        evaluate("tiny_choice", **OVERFLOWING)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    table = tuning_of(evaluate("tiny_choice", **OVERFLOWING), "tiny_choice")["table"]
    assert [row["not_finite"] for row in (table[0], table[2])] == [0, 12]


# ------------------------------------------------------------------ several methods

ARMS: list[tuple[str, dict[str, Any]]] = [
    ("sadi", {"element": "head", "grid": "1/5x-2/9"}),
    ("iti", {"grid": "2/5/9x3/-8"}),
    ("sadi", {"element": "neuron", "grid": "9x4", "activations": "clean"}),
    ("caa", {"grid": "0/2x1"}),
]
COUNTS = [4, 6, 1, 2]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> SteeredModel:
    return model_class("sadi")(pretrained=str(model_folder), device="cpu", batch_size=4)


@pytest.fixture(params=["tiny_choice", "tiny_text"])
def contending(
    request: pytest.FixtureRequest, model: SteeredModel, tasks_folder: Path, tmp_path: Path
) -> tuple[Trial, list[Candidates]]:
    """Twelve held-out documents, and what each of ARMS would try on them."""
    shared = {"n_pairs": 12, "n_tune": 12, "cache_dir": str(tmp_path / "masks")}
    arms = [read_arm(method, {**shared, **own}) for method, own in ARMS]
    task = load(tasks_folder, request.param)
    options = arms[0].options
    plan = find_plan(task, options)
    [source] = plan.sources.sources
    drawn = draw(plan, source, options, AXES.names)
    contenders = []
    for fitted, arm in zip(fits_of(plan, source, drawn.pairs, arms, model), arms, strict=True):
        assert arm.method is not None
        site = model.engine.site(*arm.method.place)
        settings = arm.search_space(site.size).settings
        contenders.append(candidates_of(arm, settings, fitted, model))
    assert [contender.edits.count for contender in contenders] == COUNTS
    texts = scored_texts(task, plan.own_recipe, drawn.held_out, source.allowed, 0, 0)
    return Trial(task, plan.recipe, drawn.held_out, texts, "auto"), contenders


def assert_alike(one: Choice, other: Choice) -> None:
    """The same but for rounding."""
    assert one._replace(outcomes=[]) == other._replace(outcomes=[])
    rows = [choice.record().table for choice in (one, other)]
    for mine, theirs in zip(*rows, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def kept_in(folder: Path) -> list[str]:
    """What a folder holds beside locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_several_methods_at_once_have_the_outcomes_of_each_alone(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, contenders = contending
    alone = [
        choose_settings(trial, [each], model, tmp_path / "alone", "x")[0] for each in contenders
    ]
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    together = choose_settings(trial, contenders, model, tmp_path / "together", "x")
    assert spy.counts == [COUNTS]
    for one, other, contender in zip(together, alone, contenders, strict=True):
        assert one.axes == contender.axes
        assert [o.setting for o in one.outcomes] == [one.axes.unsteered, *contender.settings]
        assert_alike(one, other)
    steered = [o.margin for found in together for o in found.outcomes[1:]]
    assert len({round(m or 0.0, 3) for m in steered}) == sum(COUNTS)
    assert kept_in(tmp_path / "together") == kept_in(tmp_path / "alone")
    assert len(kept_in(tmp_path / "together")) == 4


def test_of_several_methods_the_outcome_that_is_known_is_taken_and_the_others_are_tried(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, contenders = contending
    expected = choose_settings(trial, contenders, model, tmp_path / "other", "x")
    [known] = choose_settings(trial, contenders[1:2], model, tmp_path / "cache", "x")
    [file] = kept_in(tmp_path / "cache")
    before = (tmp_path / "cache" / file).read_bytes()
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    found = choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    assert spy.counts == [[4, 1, 2]]
    assert found[1] == known
    assert (tmp_path / "cache" / file).read_bytes() == before
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    assert choose_settings(trial, contenders[::-1], model, tmp_path / "cache", "x") == found[::-1]
    assert choose_settings(trial, contenders[2:3], model, tmp_path / "cache", "x") == found[2:3]


def test_a_damaged_outcome_of_several_is_tried_again_and_no_other(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trial, contenders = contending
    first = choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    choose_settings(trial, contenders[3:], model, tmp_path / "of the last", "x")
    [name] = kept_in(tmp_path / "of the last")
    file = tmp_path / "cache" / name
    file.write_bytes(flipped(file.read_bytes()))
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        again = choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    assert spy.counts == [[2]]
    assert f"{file}: damaged" in caplog.text
    assert again[:3] == first[:3]
    assert_alike(again[3], first[3])


def test_an_interrupted_choice_of_several_methods_goes_on_where_it_was(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, contenders = contending
    undisturbed = choose_settings(trial, contenders, model, tmp_path / "other", "x")
    a_document = len(trial.texts[0])
    monkeypatch.setattr(engine, "grid_log_likelihoods", Scored(6 * a_document))
    with pytest.raises(KeyboardInterrupt):
        choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    notes = [tmp_path / "cache" / name for name in kept_in(tmp_path / "cache")]
    [noted] = {len(path.read_text().splitlines()) for path in notes}
    assert len(notes) == 4
    assert 0 < noted < 12
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    found = choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    assert spy.requests == [a_document * (12 - noted)]
    for one, other in zip(found, undisturbed, strict=True):
        assert_alike(one, other)
    assert kept_in(tmp_path / "cache") == kept_in(tmp_path / "other")


def test_notes_of_interrupted_methods_serve_other_combinations_of_them(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, contenders = contending
    undisturbed = choose_settings(trial, contenders[:2], model, tmp_path / "other", "x")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "grid_log_likelihoods", Scored(6 * len(trial.texts[0])))
        with pytest.raises(KeyboardInterrupt):
            choose_settings(trial, contenders[:3], model, tmp_path / "cache", "x")
    notes = kept_in(tmp_path / "cache")
    assert len(notes) == 3
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    found = choose_settings(trial, contenders[:2], model, tmp_path / "cache", "x")
    assert spy.requests[0] < len(trial.texts[0]) * 12
    for one, other in zip(found, undisturbed, strict=True):
        assert_alike(one, other)
    [kept] = set(notes) & set(kept_in(tmp_path / "cache"))
    choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    assert spy.counts[1:] == [[1, 2]]
    assert kept not in kept_in(tmp_path / "cache")


@pytest.mark.parametrize("outcomes", [0, 1, 3, 4])
def test_killed_while_the_outcomes_are_written_nothing_is_done_again_or_left(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: int,
) -> None:
    trial, contenders = contending
    undisturbed = choose_settings(trial, contenders, model, tmp_path / "other", "x")
    saved: list[Path] = []

    def killed(folder: Path, key: str) -> None:
        raise KeyboardInterrupt

    def save(path: Path, content: Any) -> None:
        if len(saved) == outcomes:
            raise KeyboardInterrupt
        saved.append(path)
        write_checked(path, content)

    monkeypatch.setattr(store, "write_checked", save)
    monkeypatch.setattr(tuning, "remove_journals", killed)
    with pytest.raises(KeyboardInterrupt):
        choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    assert len(saved) == outcomes
    monkeypatch.undo()
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    found = choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    for one, other in zip(found, undisturbed, strict=True):
        assert_alike(one, other)
    assert kept_in(tmp_path / "cache") == kept_in(tmp_path / "other")


def test_a_method_that_is_named_twice_is_tried_once(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, contenders = contending
    spy = Scored()
    monkeypatch.setattr(engine, "grid_log_likelihoods", spy)
    one, other, third = choose_settings(
        trial, [contenders[0], contenders[3], contenders[0]], model, tmp_path / "cache", "x"
    )
    assert spy.counts == [[4, 2]]
    assert one == third != other


def test_outcomes_of_several_methods_that_cannot_be_kept_cost_a_warning_only(
    contending: tuple[Trial, list[Candidates]],
    model: SteeredModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trial, contenders = contending
    expected = choose_settings(trial, contenders, model, tmp_path / "cache", "x")
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        found = choose_settings(trial, contenders, model, tmp_path / "file" / "in", "x")
    assert found == expected
    [message] = caplog.messages
    assert "is not kept" in message
    assert "cache_dir=FOLDER" in message


def test_methods_that_are_prepared_together_are_steered_as_each_alone(
    model: SteeredModel, tasks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen, given and unsteered ones, in two folds; what is known of one is not done again."""
    task = load(tasks_folder, "tiny_folds")

    def arms(folder: str) -> list[Arm]:
        shared = {"n_pairs": 10, "n_tune": 8, "cache_dir": str(tmp_path / folder)}
        given: list[tuple[str, dict[str, Any]]] = [
            *ARMS, ("sadi", {"top_k": 3, "delta": 4}), ("sadi", {"method": "none"}),
            ("caa", {"layer": 1}), ("iti", {"alpha": 0})]  # fmt: skip
        return [read_arm(method, {**shared, **own}) for method, own in given]

    alone = [prepare(task, model, [options])[0] for options in arms("alone")]
    together = prepare(task, model, arms("together"))
    for one, other in zip(together, alone, strict=True):
        assert len(one.edits) == len(other.edits) == len(one.fits)
        for mine, theirs in zip(one.fits, other.fits, strict=True):
            assert mine.fitted.key == theirs.fitted.key
            assert mine.fitted.fit.digest == theirs.fitted.fit.digest
            assert (mine.setting, mine.selected) == (theirs.setting, theirs.selected)
            assert mine.edits.digest(0) == theirs.edits.digest(0)
            assert (mine.choice is None) == (theirs.choice is None)
            if mine.choice is not None and theirs.choice is not None:
                assert_alike(mine.choice, theirs.choice)
        documents = task.evaluated()
        assert [one.fit_of(d) for d in documents] == [other.fit_of(d) for d in documents]
    assert [len(each.edits) for each in together] == [2, 2, 2, 2, 2, 0, 2, 0]
    assert kept_in(tmp_path / "together") == kept_in(tmp_path / "alone")
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    monkeypatch.setattr(engine, "read_pairs", None)
    for one, other in zip(prepare(task, model, arms("alone")), alone, strict=True):
        assert one.record == other.record


# ------------------------------------------------------------------ folds


@pytest.mark.parametrize(
    ("limits", "folds"),
    [({"limit": 5}, [0]), ({"settings": {"samples": {"tiny_folds": [30, 31]}}, "limit": None}, [1]),
     ({"limit": 30}, [0, 1])],
    ids=["first", "second", "both"],
)  # fmt: skip
def test_folds_are_fitted_and_tuned_where_a_document_of_theirs_is_scored(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], folds: list[int]
) -> None:
    whole = evaluate("tiny_folds", limit=50, **GRID)
    tuned: list[str] = []

    def watched(*arguments: Any) -> list[Choice]:
        tuned.append(arguments[4])
        return choose_settings(*arguments)

    monkeypatch.setattr(steering, "choose_settings", watched)
    found = evaluate("tiny_folds", **limits, **GRID)
    assert [
        f"fold {fold + 1} of 2 left out" in label for fold, label in zip(folds, tuned, strict=True)
    ]
    expected = masks_of(whole, "tiny_folds")
    assert masks_of(found, "tiny_folds") == [expected[fold] for fold in folds]
    samples = {sample["doc_id"]: sample["resps"] for sample in whole["samples"]["tiny_folds"]}
    for sample in found["samples"]["tiny_folds"]:
        scored = [float(response[0][0]) for response in sample["resps"]]
        before = [float(response[0][0]) for response in samples[sample["doc_id"]]]
        assert scored == pytest.approx(before, abs=1e-4)


# ------------------------------------------------------------------ method=none


@pytest.mark.parametrize("name", ["tiny_folds", "tiny_word", "tiny_text"])
def test_method_none_scores_as_hf_and_needs_no_mask(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(engine, "read_pairs", None)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    found, plain = evaluate(name, method="none"), evaluate(name, model="hf")
    if name == "tiny_text":
        assert scores(found, name) == scores(plain, name)
    else:
        assert numbers(found, name) == pytest.approx(numbers(plain, name), abs=1e-4)
    record = found["config"]["sadi"][name]
    assert set(record) == {"method", "parameters", "version", "task_digest", "not_finite"}
    assert (record["method"], record["parameters"], record["not_finite"]) == ("none", [], 0)
    assert not (tmp_path / "cache").exists()


def test_method_none_takes_rolling_log_likelihoods(evaluate: Any) -> None:
    found = evaluate("tiny_rolling", "tiny_choice", method="none")
    plain = evaluate("tiny_rolling", "tiny_choice", model="hf")
    for name in ("tiny_rolling", "tiny_choice"):
        ours = [np.atleast_1d(score)[0] for score in scores(found, name)]
        theirs = [np.atleast_1d(score)[0] for score in scores(plain, name)]
        assert ours == pytest.approx(theirs, abs=1e-4)
    key = "word_perplexity,none"
    rolling, expected = (r["results"]["tiny_rolling"][key] for r in (found, plain))
    assert rolling == pytest.approx(expected)
