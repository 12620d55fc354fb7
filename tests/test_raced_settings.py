"""A race: what is tried, noted down and known again, in one process and in several."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.tasks import load
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.some import some
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.sadi import AXES
from sadi_lmeval.model import model_class
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.steering import tuning
from sadi_lmeval.steering.fitting import fits_of
from sadi_lmeval.steering.objective import Judged
from sadi_lmeval.steering.outcome import outcome
from sadi_lmeval.steering.race import looks, stays
from sadi_lmeval.steering.rules import Array
from sadi_lmeval.steering.steering import candidates_of
from sadi_lmeval.steering.tuning import NOT_TRIED, Candidates, Trial, choose_settings
from sadi_lmeval.storage.journal import Journal

pytestmark = pytest.mark.quick

DOCUMENTS = 40
COUNTS = (6, 5)
"""Settings of two methods."""


class Listed(Edits):
    """Edits that are known by the column of a table."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self.site: Any = None
        self.scope, self.first_layers, self.layers = "prompt", [0] * count, [0]

    def digest(self, edit: int) -> str:
        return str(self.first + edit)

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        raise AssertionError("no model is run here")


class Read:
    """A model and its engine that read the score of every document out of a table.

    Attributes:
        asked: how often each document was scored under each column, ``[documents, columns]``.
    """

    def __init__(self, table: Array, processes: Processes = ALONE, after: int = 1 << 30) -> None:
        self.table, self.processes, self.after = table, processes, after
        self.engine = self
        self.asked = np.zeros(table.shape, dtype=int)

    def continuation(self, context: str, continuation: str) -> Continuation:
        return Continuation((int(context),), (0,))

    @contextmanager
    def sharing(self) -> Iterator[None]:
        yield

    def score_grid(
        self, requests: Sequence[Continuation], families: Sequence[Edits], done: Any
    ) -> None:
        columns = [0, *(int(f.digest(edit)) for f in families for edit in range(f.count))]
        assert len(set(columns)) == len(columns)
        for first, end in pairwise([*range(0, len(requests), 3), len(requests)]):
            if self.after <= 0:
                raise KeyboardInterrupt
            numbers = list(range(first, end))[::-1]
            documents = [requests[number].context[0] for number in numbers]
            self.asked[np.ix_(documents, columns)] += 1
            values = torch.tensor(self.table[np.ix_(documents, columns)]).T
            done(numbers, values, values > 0)
            self.after -= len(numbers)


@pytest.fixture(autouse=True)
def by_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document is judged by the score of its only request."""

    def judge(task: Any, recipe: Any, document: Any, scores: Any, *_: Any) -> Judged:
        return Judged(scores[0][0], -scores[0][0])

    monkeypatch.setattr(tuning, "judge", judge)


@pytest.fixture(scope="module")
def table() -> Array:
    """Whether each document is right under the unsteered model and each setting."""
    random = np.random.default_rng(0)
    rights = [0.5, 0.1, 0.5, 0.9, 0.2, 0.05, 0.6, 0.4, 0.1, 0.8, 0.1, 0.1]
    return (random.random((DOCUMENTS, 1 + sum(COUNTS))) < rights).astype(float)


def families() -> list[Edits]:
    return [Listed(1, COUNTS[0]), Listed(1 + COUNTS[0], COUNTS[1])]


def a_trial(**named: Any) -> Trial:
    texts = [[(str(index), "")] for index in range(DOCUMENTS)]
    none: Any = None
    return Trial(none, none, [{}] * DOCUMENTS, texts, "metric", **{"rule": "best", **named})


def judged(model: Read, folder: Path | None, which: Sequence[int] = (0, 1), **named: Any) -> Array:
    rank = model.processes.rank
    journals = [
        Journal(None if folder is None else folder / f"{number}.{rank}.jsonl") for number in which
    ]
    chosen = [families()[number] for number in which]
    trial = a_trial(**{"race": True, **named})
    return tuning.judge_settings(trial, chosen, model, journals, "x")  # type: ignore[arg-type]


def tried_in(found: Array) -> list[int]:
    counts: list[int] = (found[..., 0] != NOT_TRIED).sum(0).tolist()
    return counts


def test_what_is_dropped_is_not_tried_again_and_all_else_is_as_without_a_race(
    table: Array,
) -> None:
    model, plain = Read(table), Read(table)
    found, whole = judged(model, None), judged(plain, None, race=False)
    assert (plain.asked == 1).all()
    tried = tried_in(found)
    assert model.asked.sum(0).tolist() == tried
    assert tried[0] == DOCUMENTS
    assert sorted(set(tried))[:2] == [10, 20]
    assert np.mean(tried) < 0.7 * DOCUMENTS
    for column, count in enumerate(tried):
        assert count in (*looks(DOCUMENTS), DOCUMENTS)
        np.testing.assert_array_equal(found[:count, column], whole[:count, column])
        assert (found[count:, column] == NOT_TRIED).all()


def test_a_method_is_raced_by_its_own_settings_alone(table: Array) -> None:
    together = judged(Read(table), None)
    first, second = (judged(Read(table), None, [number]) for number in (0, 1))
    assert tried_in(together) == [*tried_in(first), *tried_in(second)[1:]]
    for own, alone in ((np.r_[0:7], first), (np.r_[0, 7:12], second)):
        np.testing.assert_array_equal(together[:, own], alone)
        tried = np.full(alone.shape[1], DOCUMENTS)
        whole = judged(Read(table), None, race=False)[:, own]
        for seen in looks(DOCUMENTS):
            so_far = np.minimum(tried, seen)
            kept = stays("best", whole[:seen], so_far, DOCUMENTS)
            tried[(so_far == seen) & ~kept] = seen
        assert tried_in(alone) == tried.tolist()


@pytest.mark.parametrize("after", [1, 9, 12, 24, 25, 33, 39])
def test_interrupted_anywhere_a_race_goes_on_where_it_was(
    table: Array, tmp_path: Path, after: int
) -> None:
    expected = judged(Read(table), None)
    asked = np.zeros(table.shape, dtype=int)
    for _ in range(2):
        stopped = Read(table, after=after // 2)
        with pytest.raises(KeyboardInterrupt):
            judged(stopped, tmp_path)
        asked += stopped.asked
    last = Read(table)
    np.testing.assert_array_equal(judged(last, tmp_path), expected)
    asked += last.asked
    assert asked.max() == 1
    assert asked.sum(0).tolist() == tried_in(expected)
    nothing = Read(table)
    np.testing.assert_array_equal(judged(nothing, tmp_path), expected)
    assert not nothing.asked.any()


def test_notes_of_a_race_serve_other_combinations_of_methods(table: Array, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        judged(Read(table, after=25), tmp_path)
    alone = Read(table)
    np.testing.assert_array_equal(judged(alone, tmp_path, [1]), judged(Read(table), None, [1]))
    assert not alone.asked[:25].any()


def test_notes_without_what_a_race_needs_are_passed_over(table: Array, tmp_path: Path) -> None:
    expected = judged(Read(table), tmp_path / "right")
    for number, count in enumerate(COUNTS):
        right = [[1.0, -1.0, None]]
        Journal(tmp_path / f"{number}.0.jsonl").add(
            {"document": 3, "judged": right * 3, "settings": [0, 2]},  # not all that are left
            {"document": 4, "judged": right * 2, "settings": [count]},
            {"document": 5, "judged": right * 2, "settings": [-1]},
            {"document": 6, "judged": right * 2, "settings": ["x"]},
            {"document": 7, "judged": right * 2, "settings": 1},
            {"document": 8, "judged": right * 3, "settings": [1]},
        )
    found = Read(table)
    np.testing.assert_array_equal(judged(found, tmp_path), expected)
    assert found.asked[3:9, 0].all()


def test_notes_of_other_numbers_of_processes_are_known_as_far_as_they_go(
    table: Array, tmp_path: Path
) -> None:
    """Another process's notes lack what is left in this race: they are not taken in its place."""
    expected = judged(Read(table), None)
    for number in range(len(COUNTS)):
        lines = [{"document": i, "judged": [[1.0, -1.0, None]], "settings": []} for i in range(40)]
        Journal(tmp_path / f"{number}.1.jsonl").add(*lines)
    parts: list[Any] = [None] * 2
    barrier = threading.Barrier(2)
    models = [Read(table, InThreads(rank, parts, barrier)) for rank in range(2)]
    np.testing.assert_array_equal(in_threads(models, tmp_path)[0], expected)
    asked = np.sum([model.asked for model in models], axis=0)
    assert asked.sum(0).tolist() == tried_in(expected)


class InThreads(Processes):
    """Processes that are threads of this one."""

    def __init__(self, rank: int, parts: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(parts))
        self._parts, self._barrier = parts, barrier

    def all_gather(self, part: Any) -> list[Any]:
        self._parts[self.rank] = dict(part)
        self._barrier.wait(30)
        gathered = list(self._parts)
        self._barrier.wait(30)
        return gathered


def in_threads(models: list[Read], folder: Path) -> dict[int, Array]:
    """What each process of a race has found."""
    found: dict[int, Array] = {}

    def run(rank: int) -> None:
        found[rank] = judged(models[rank], folder)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_race_as_one(table: Array, tmp_path: Path, count: int) -> None:
    expected = judged(Read(table), None)
    parts: list[Any] = [None] * count
    barrier = threading.Barrier(count)
    models = [Read(table, InThreads(rank, parts, barrier)) for rank in range(count)]
    found = in_threads(models, tmp_path)
    for rank in range(count):
        np.testing.assert_array_equal(found[rank], expected)
    asked = np.sum([model.asked for model in models], axis=0)
    assert asked.max() == 1
    assert asked.sum(0).tolist() == tried_in(expected)
    # Killed, it is resumed by one process: its own part is known, and nothing is lost of it.
    last = Read(table)
    np.testing.assert_array_equal(judged(last, tmp_path), expected)
    assert not (last.asked & models[0].asked).any()


# ------------------------------------------------------------------ with a model


@pytest.fixture(scope="module")
def tried_for_real(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, tasks_folder: Path
) -> tuple[Trial, Candidates, Any]:
    """Settings of which some break the model, and a task that is judged by the likelihood."""
    folder = tmp_path_factory.mktemp("raced")
    model = model_class("sadi")(pretrained=str(model_folder), device="cpu", batch_size=8)
    shared = {"n_pairs": 8, "n_tune": DOCUMENTS, "cache_dir": str(folder), "element": "hidden"}
    arm = read_arm("sadi", {**shared, "grid": "3/16x-1/0.1/50/1e38"})
    task = load(tasks_folder, "tiny_text")
    plan = find_plan(task, arm.options)
    [source] = plan.sources.sources
    drawn = draw(plan, source, arm.options, AXES.names)
    [fitted] = fits_of(plan, source, drawn.pairs, [arm], model)
    assert arm.method is not None
    settings = arm.search_space(model.engine.site(*arm.method.place).size).settings
    texts = scored_texts(task, plan.own_recipe, drawn.held_out, source.allowed, 0, 0)
    trial = Trial(task, plan.recipe, drawn.held_out, texts, "auto", "best", race=True)
    return trial, candidates_of(arm, settings, fitted, model), model


@pytest.fixture
def by_the_model(monkeypatch: pytest.MonkeyPatch, by_the_score: None) -> None:
    from sadi_lmeval.steering.objective import judge

    monkeypatch.setattr(tuning, "judge", judge)


@pytest.mark.usefixtures("by_the_model")
def test_a_race_has_the_outcomes_of_no_race_and_says_on_how_many_documents(
    tried_for_real: tuple[Trial, Candidates, Any], tmp_path: Path
) -> None:
    trial, candidates, model = tried_for_real
    [raced] = choose_settings(trial, [candidates], model, tmp_path, "x")
    [whole] = choose_settings(trial._replace(race=False), [candidates], model, tmp_path, "x")
    assert len(list(tmp_path.glob("*.tuning.json"))) == 2  # neither is taken for the other
    assert raced.setting == whole.setting
    assert all(each.documents is None for each in whole.outcomes)
    dropped = [each for each in raced.outcomes if each.documents is not None]
    assert dropped
    assert raced.outcomes[0].documents is None
    rows = raced.record().to_json()["table"]
    assert [row["documents"] for row in rows] == [o.documents or 40 for o in raced.outcomes]
    full = tuning.judge_settings(
        trial._replace(race=False, objective="likelihood"),
        [candidates.edits], model, [Journal(None)], "x",
    )  # fmt: skip
    for column, each in enumerate(raced.outcomes):
        count = each.documents or DOCUMENTS
        expected = outcome(each.setting, full[:count, column], full[:count, 0], each.documents)
        assert list(each[1:7]) == pytest.approx(list(expected[1:7]), abs=1e-4)
        assert each.documents == expected.documents
    [again] = choose_settings(trial, [candidates], model, tmp_path, "x")
    assert again == raced


@pytest.mark.usefixtures("by_the_model")
def test_few_documents_have_the_choice_and_the_key_of_no_race(
    tried_for_real: tuple[Trial, Candidates, Any], tmp_path: Path
) -> None:
    trial, candidates, model = tried_for_real
    few = trial._replace(documents=trial.documents[:20], texts=trial.texts[:20])
    first = choose_settings(few, [candidates], model, tmp_path, "x")
    [kept] = tmp_path.glob("*.tuning.json")
    content = kept.read_bytes()
    assert choose_settings(few._replace(race=False), [candidates], model, tmp_path, "x") == first
    kept.unlink()
    choose_settings(few._replace(race=False), [candidates], model, tmp_path, "x")
    assert kept.read_bytes() == content


@pytest.mark.usefixtures("by_the_model")
def test_a_race_goes_on_where_no_setting_is_finite(
    tried_for_real: tuple[Trial, Candidates, Any], tmp_path: Path
) -> None:
    trial, candidates, model = tried_for_real
    last = len(candidates.settings) - 1
    edits = some(candidates.edits, [last])
    assert candidates.settings[last][-1] == 1e38
    broken = candidates._replace(settings=candidates.settings[last:], edits=edits)
    [found] = choose_settings(trial, [broken], model, tmp_path, "x")
    assert [o.documents for o in found.outcomes] == [None, 10]
    assert 0 < found.outcomes[1].not_finite <= 10
    assert (found.chosen, found.p_max) == (0, 1.0)


@pytest.mark.usefixtures("by_the_model")
def test_some_edits_of_a_family_are_those_edits(
    tried_for_real: tuple[Trial, Candidates, Any],
) -> None:
    edits = tried_for_real[1].edits
    assert some(edits, range(edits.count)) is edits
    part = some(edits, [5, 2])
    assert (part.count, part.scope, part.alike) == (2, edits.scope, edits.alike)
    assert [part.digest(n) for n in (0, 1)] == [edits.digest(n) for n in (5, 2)]
    assert part.first_layers == [edits.first_layers[n] for n in (5, 2)]
    assert part.shift(0) == edits.shift(5)
    rows, which = torch.randn(3, edits.site.width), torch.tensor([1, 0, 1])
    for layer in part.layers:
        expected = edits.apply(layer, rows, torch.tensor([2, 5, 2]))
        assert torch.equal(part.apply(layer, rows, which), expected)
    assert set(edits.layers) - set(part.layers) <= set(range(min(part.first_layers)))


@pytest.mark.usefixtures("by_the_model")
def test_what_prompts_begin_with_is_computed_once_for_all_rounds(
    tried_for_real: tuple[Trial, Candidates, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few-shot examples, at each look anew, would cost more than the race spares."""
    trial, candidates, model = tried_for_real
    examples = " ".join(f"{context} answer" for [[context, _]] in trial.texts[:6]) + " "
    trial = trial._replace(texts=[[(examples + c, a)] for [(c, a)] in trial.texts])
    run, computed = model.engine.forward._run, []

    def watched(batch: Any, *arguments: Any) -> Tensor:
        logits: Tensor = run(batch, *arguments)
        if not len(logits):  # a beginning: none of its tokens predicts what is scored
            computed.append(batch.input_ids.numel())
        return logits

    monkeypatch.setattr(model.engine.forward, "_run", watched)
    choose_settings(trial, [candidates], model, tmp_path, "x")
    begins = len(model.tok_encode(examples))
    assert len(trial.looks) == 3
    assert begins - 2 <= sum(computed) < 2 * begins
    assert not model.engine.forward._prefixes
