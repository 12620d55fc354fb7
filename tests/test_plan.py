"""What is drawn for a mask: pairs and held-out documents that share nothing, and are not scored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pairs import CHOICE, OTHER, load, make_task

from sadi_lmeval.errors import UserError
from sadi_lmeval.options import Options
from sadi_lmeval.pairs import scored_texts
from sadi_lmeval.plan import Drawn, Plan, draw, find_plan, num_fewshot
from sadi_lmeval.run_tasks import Document, RunTask, digest
from sadi_lmeval.sources import Source


def row(number: int, question: str | None = None) -> Document:
    return {
        "question": question or f"question {number}",
        "choices": [f"a{number}", f"b{number}", f"c{number}"],
        "label": number % 3,
    }


def drawn(task: RunTask, options: Options, tuning: bool = True) -> Drawn:
    """For a task with one mask."""
    plan = find_plan(task, options)
    [source] = plan.sources.sources
    return draw(plan, source, options, tuning)


def split(found: Drawn) -> tuple[list[Document], list[Document]]:
    return [pair.document for pair in found.pairs], found.held_out


def contents(documents: list[Document]) -> set[str]:
    return {digest(document) for document in documents}


def questions(documents: list[Document]) -> set[str]:
    return {str(document["question"]) for document in documents}


# ------------------------------------------------------------------ nothing is shared


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_text", "tiny_word", "tiny_sum"])
@pytest.mark.parametrize("num_shots", [0, 2])
def test_pairs_held_out_and_scored_documents_share_nothing(
    tasks_folder: Path, name: str, num_shots: int
) -> None:
    task = load(tasks_folder, name, num_shots)
    for seed in range(3):
        pairs, held_out = split(drawn(task, Options(seed=seed)))
        assert len(pairs) >= 36
        assert len(held_out) >= 25
        every = [*pairs, *held_out, *task.evaluated()]
        assert len(contents(every)) == len(questions(every)) == len(every)


def test_a_training_document_that_is_also_scored_is_in_neither(tmp_path: Path) -> None:
    scored = [row(i) for i in range(100, 110)]
    train = [row(i) for i in range(40)]
    planted = [scored[3], scored[7], {**row(50), "question": scored[5]["question"].upper()}]
    train[5:5], train[20:20], train[30:30] = planted[:1], planted[1:2], planted[2:]
    task = make_task(tmp_path, "planted", {"train": train, "validation": scored})
    for seed in range(5):
        pairs, held_out = split(drawn(task, Options(seed=seed, n_pairs=30, n_tune=10)))
        assert len(pairs) + len(held_out) == 40
        assert not contents([*pairs, *held_out]) & contents(planted)


def test_a_question_is_never_both_in_a_pair_and_held_out(tmp_path: Path) -> None:
    train = [row(i, f"question {i // 2}") for i in range(60)]
    train += train[::4]  # and some documents twice
    task = make_task(tmp_path, "twice", {"train": train, "validation": [row(999)]})
    for seed in range(10):
        pairs, held_out = split(drawn(task, Options(seed=seed, n_pairs=20, n_tune=10)))
        assert (len(pairs), len(held_out)) == (20, 10)
        assert not questions(pairs) & questions(held_out)
        assert len(contents(held_out)) == 10


def test_few_shot_examples_are_neither_in_a_pair_nor_held_out(tmp_path: Path) -> None:
    rows = {"train": [row(i) for i in range(40)], "validation": [row(i) for i in range(100, 110)]}
    task = make_task(tmp_path, "shots", rows, num_fewshot=3)
    plan = find_plan(task, Options())
    [source] = plan.sources.sources
    for seed in range(5):
        options = Options(seed=seed, n_pairs=20, n_tune=16)
        found = draw(plan, source, options, tuning=True)
        pairs, held_out = split(found)
        texts = scored_texts(task, CHOICE, held_out, source.allowed, 3, seed)
        prompts = [context for [(context, _), *_] in texts]
        prompts += [pair.positive[0] for pair in found.pairs]
        examples = {part for prompt in prompts for part in prompt.split("\n\n")[:-1]}
        shown = {example.split(" ?")[0] for example in examples}
        assert len(shown) == 3
        assert shown <= questions(rows["train"])
        assert not shown & questions([*pairs, *held_out])
        assert all(prompt.split("\n\n")[-1].startswith("question") for prompt in prompts)


def test_a_document_with_the_question_of_a_few_shot_example_is_in_neither(tmp_path: Path) -> None:
    """Its prompt would show the question with its answer."""
    train = [row(i, f"question {i // 2}") for i in range(40)]
    task = make_task(tmp_path, "shown", {"train": train, "validation": [row(999)]}, num_fewshot=2)
    plan = find_plan(task, Options())
    [source] = plan.sources.sources
    for seed in range(5):
        options = Options(seed=seed, n_pairs=8)
        pairs, held_out = split(draw(plan, source, options, tuning=True))
        texts = scored_texts(task, CHOICE, held_out, source.allowed, 2, seed)
        shown = {part.split(" ?")[0] for part in texts[0][0][0].split("\n\n")[:-1]}
        assert len(shown) == 2
        assert not shown & questions([*pairs, *held_out])


def test_pairs_have_the_few_shot_examples_that_the_user_says() -> None:
    task = RunTask(None)  # type: ignore[arg-type]
    plan = Plan(task, task, None, None, None, None)  # type: ignore[arg-type]
    assert num_fewshot(plan, Options(pairs_num_fewshot=0)) == 0
    assert num_fewshot(plan, Options(pairs_num_fewshot=4)) == 4


# ------------------------------------------------------------------ folds


@pytest.mark.parametrize("folds", [2, 3])
def test_nothing_of_a_fold_made_its_mask_or_its_choice(tasks_folder: Path, folds: int) -> None:
    task = load(tasks_folder, "tiny_folds")
    options = Options(folds=folds)
    plan = find_plan(task, options)
    assert len(plan.sources.sources) == folds
    for fold, source in enumerate(plan.sources.sources):
        pairs, held_out = split(draw(plan, source, options, tuning=True))
        assert len(pairs) >= 12
        assert len(held_out) >= 10
        mine = [d for d in task.evaluated() if plan.sources.mask_of(d) == fold]
        assert len(mine) >= 50 // folds
        every = [*pairs, *held_out, *mine]
        assert len(contents(every)) == len(questions(every)) == len(every)


def test_a_fold_s_document_that_stands_in_another_fold_too_is_not_held_out_for_it(
    tmp_path: Path,
) -> None:
    rows = [row(i) for i in range(40)]
    rows[30] = rows[2]  # the same in the second half
    rows[33] = {**row(33), "question": rows[5]["question"]}  # and the same question
    task = make_task(tmp_path, "folded", {"validation": rows})
    plan = find_plan(task, Options())
    [first, second] = (draw(plan, s, Options(), tuning=True) for s in plan.sources.sources)
    pairs, held_out = split(first)
    assert len(pairs) + len(held_out) == 18  # without the two
    assert not questions([*pairs, *held_out]) & questions(rows[:20])
    pairs, held_out = split(second)
    assert not questions([*pairs, *held_out]) & questions([rows[33], *rows[20:30]])


# ------------------------------------------------------------------ how many


def few(task: RunTask, count: int) -> tuple[Plan, Source]:
    """A plan, and a source of the first ``count`` documents."""
    plan = find_plan(task, Options())
    [source] = plan.sources.sources
    return plan, source._replace(documents=list(source.documents)[:count])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RunTask:
    folder = tmp_path_factory.mktemp("many")
    rows = {"train": [row(i) for i in range(300)], "validation": [row(999)]}
    return make_task(folder, "many", rows)


@pytest.mark.parametrize(
    ("documents", "given", "pairs", "held_out"),
    [
        (300, {}, 150, 100),
        (250, {}, 150, 100),
        (100, {}, 60, 40),  # in the usual proportion
        (10, {}, 6, 4),
        (8, {}, 4, 4),
        (100, {"n_tune": 30}, 70, 30),  # what the user says is kept
        (100, {"n_tune": 90}, 10, 90),
        (100, {"n_pairs": 20}, 20, 80),
        (100, {"n_pairs": 90}, 90, 10),
        (300, {"n_pairs": 20}, 20, 100),
        (300, {"n_pairs": 250}, 250, 50),
        (100, {"n_pairs": 20, "n_tune": 30}, 20, 30),
        (100, {"n_pairs": 60, "n_tune": 40}, 60, 40),
    ],
)
def test_documents_are_shared_out_where_they_are_few(
    many: RunTask, documents: int, given: dict[str, int], pairs: int, held_out: int
) -> None:
    plan, source = few(many, documents)
    found = draw(plan, source, Options(**given), tuning=True)  # type: ignore[arg-type]
    assert (len(found.pairs), len(found.held_out)) == (pairs, held_out)


def test_without_tuning_nothing_is_held_out(many: RunTask) -> None:
    plan, source = few(many, 100)
    found = draw(plan, source, Options(), tuning=False)
    assert (len(found.pairs), found.held_out) == (100, [])


def test_the_same_number_of_pairs_is_of_the_same_documents_with_and_without_tuning(
    many: RunTask,
) -> None:
    plan, source = few(many, 100)
    for seed in range(3):
        options = Options(n_pairs=30, seed=seed)
        tuned, fixed = (draw(plan, source, options, tuning) for tuning in (True, False))
        assert tuned.pairs == fixed.pairs


def test_the_draw_follows_from_the_seed(many: RunTask) -> None:
    plan, source = few(many, 300)
    one, same = (draw(plan, source, Options(seed=4), tuning=True) for _ in range(2))
    assert one == same
    assert draw(plan, source, Options(seed=5), tuning=True).held_out != one.held_out


@pytest.mark.parametrize(
    ("documents", "given", "words"),
    [
        (7, {}, ["7 documents", "4 of them in the pairs", "leaves 3", "4 are needed"]),
        (3, {}, ["makes 3 contrastive pairs", "4 are needed"]),
        (100, {"n_pairs": 98}, ["100 documents", "98 of them in the pairs", "leaves 2"]),
        (100, {"n_pairs": 101}, ["makes 100", "100 documents", "101 are needed"]),
        (100, {"n_tune": 97}, ["100 documents", "leaves 96", "97 are needed"]),
        (100, {"n_pairs": 60, "n_tune": 41}, ["60 of them", "leaves 40", "41 are needed"]),
    ],
)
def test_too_few_documents_are_told_with_the_numbers_and_what_to_pass(
    many: RunTask, documents: int, given: dict[str, int], words: list[str]
) -> None:
    plan, source = few(many, documents)
    with pytest.raises(UserError) as caught:
        draw(plan, source, Options(**given), tuning=True)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ["task many", "train", "n_pairs", *words]), message


def test_a_choice_on_few_documents_is_warned_of(
    many: RunTask, caplog: pytest.LogCaptureFixture
) -> None:
    plan, source = few(many, 100)
    for n_tune, warned in ((20, False), (19, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
            draw(plan, source, Options(n_tune=n_tune), tuning=True)
        assert ("only 19 held-out documents" in caplog.text) is warned


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=40),
    st.none() | st.integers(1, 30),
    st.none() | st.integers(1, 30),
    st.integers(0, 5),
)
def test_whatever_the_documents_nothing_is_shared_and_what_the_user_says_is_kept(
    many: RunTask, numbers: list[int], n_pairs: int | None, n_tune: int | None, seed: int
) -> None:
    """Some documents twice, some questions in several documents."""
    plan, source = few(many, 0)
    documents = [row(i, f"question {i % 30}") for i in numbers]
    options = Options(n_pairs=n_pairs, n_tune=n_tune, seed=seed)
    try:
        found = draw(plan, source._replace(documents=documents), options, tuning=True)
    except UserError:
        return
    pairs, held_out = split(found)
    assert len(pairs) == n_pairs if n_pairs else len(pairs) >= 4
    assert len(held_out) == n_tune if n_tune else len(held_out) >= 4
    assert len(contents(held_out)) == len(held_out)
    assert not contents(pairs) & contents(held_out)
    assert not questions(pairs) & questions(held_out)


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_text"])
def test_what_is_scored_of_a_held_out_document_is_what_the_harness_would_score(
    tasks_folder: Path, name: str
) -> None:
    task = load(tasks_folder, name)
    documents = task.evaluated()[:3]
    recipe = CHOICE if name == "tiny_choice" else OTHER
    texts = scored_texts(task, recipe, documents, None, 0, 0)
    for document, found in zip(documents, texts, strict=True):
        context = f"{document['question']} answer :"
        expected: Any = [(context, f" {choice}") for choice in document["choices"]]
        if name == "tiny_text":
            expected = [(context, f" {document['answer']}")]
        assert found == expected
