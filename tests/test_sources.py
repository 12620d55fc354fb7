"""Nothing that is scored has helped to make the mask that it is scored with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers.tasks import ANSWERS, CHOICE, NUMBER, OTHER, examples, load, make_task
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask, digest
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.benchmark import Benchmark
from sadi_lmeval.pairs.pairs import Pair, build_pairs
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.sources import (
    QUESTIONS_BY,
    Source,
    Sources,
    find_sources,
    identity,
    refuse_scored_documents,
)


def benchmark(**settings: Any) -> Benchmark:
    return Benchmark(benchmark="test", tasks=("x",), **settings)


def sources(
    task: RunTask, folds: int | None = None, source: RunTask | None = None, **settings: Any
) -> Sources:
    return find_sources(task, source or task, benchmark(**settings), folds)


def row(index: int, question: str | None = None, **fields: Any) -> Document:
    text = f"what is {index}" if question is None else question
    return {"question": text, "choices": ["a", "b", "c"], "label": index % 3, **fields}


def rows(start: int, count: int) -> list[Document]:
    return [row(i) for i in range(start, start + count)]


def usable(source: Source) -> list[Document]:
    return [document for document in source.documents if source.allowed(document)]


def questions(documents: list[Document]) -> list[str]:
    return [document["question"] for document in documents]


def card(task: RunTask, documents: list[Document]) -> dict[str, object]:
    """What a mask's card says of the documents of its pairs."""
    identities = [identity(task, document) for document in documents]
    return {
        "documents": [i.content for i in identities],
        "questions": [i.question for i in identities if i.question],
        "questions_by": QUESTIONS_BY,
    }


# ------------------------------------------------------------------ which split


def test_the_training_split_is_used_where_there_is_one(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_choice")
    found = sources(task)
    assert (found.split, found.folds, len(found.sources)) == ("train", None, 1)
    assert list(found.sources[0].documents) == list(task.task.training_docs())
    assert usable(found.sources[0]) == list(task.task.training_docs())
    assert {found.fit_of(document) for document in task.evaluated()} == {0}


def test_the_validation_split_is_used_where_the_test_split_is_scored(tmp_path: Path) -> None:
    task = make_task(tmp_path, "t", {"validation": rows(0, 10), "test": rows(10, 10)})
    found = sources(task)
    assert (found.split, found.folds) == ("validation", None)
    assert list(found.sources[0].documents) == rows(0, 10)


def test_the_benchmark_s_splits_come_first(tmp_path: Path) -> None:
    splits = {"train": rows(0, 5), "validation": rows(5, 5), "test": rows(10, 5)}
    task = make_task(tmp_path, "t", splits)
    found = sources(task, pairs_from=("validation", "train"))
    assert (found.split, found.folds) == ("validation+train", None)
    assert list(found.sources[0].documents) == rows(5, 5) + rows(0, 5)


def test_a_split_that_the_dataset_lacks_is_refused_with_the_nearest(tmp_path: Path) -> None:
    task = make_task(tmp_path, "t", {"validation": rows(0, 5), "test": rows(5, 5)})
    with pytest.raises(UserError, match=r"no split 'validaton'; did you mean 'validation'"):
        sources(task, pairs_from=("validaton",))


def test_a_task_with_its_scored_split_alone_is_cross_fitted(tasks_folder: Path) -> None:
    found = sources(load(tasks_folder, "tiny_folds"))
    assert (found.split, found.folds, len(found.sources)) == ("validation", 2, 2)
    assert sources(load(tasks_folder, "tiny_folds"), folds=5).folds == 5


def test_the_benchmark_says_the_number_of_folds_and_the_user_overrules_it(
    tasks_folder: Path,
) -> None:
    task = load(tasks_folder, "tiny_folds")
    assert len(find_sources(task, task, benchmark(folds=4), None).sources) == 4
    assert len(find_sources(task, task, benchmark(folds=4), 3).sources) == 3


@pytest.mark.parametrize("splits", [(), ("validation",), ("train", "validation")])
def test_a_source_split_that_is_scored_is_refused(
    tasks_folder: Path, splits: tuple[str, ...]
) -> None:
    name = "tiny_choice" if splits else "tiny_same_split"
    task = load(tasks_folder, name)
    with pytest.raises(UserError) as caught:
        sources(task, pairs_from=splits)
    said = str(caught.value)
    assert "\n" not in said
    assert all(words in said for words in (name, "'validation'", "folds=2", "pairs_from"))
    assert sources(task, folds=2, pairs_from=splits).folds == 2


# ------------------------------------------------------------------ documents in two splits


def test_training_documents_that_are_scored_too_are_left_out(tmp_path: Path) -> None:
    train = rows(0, 10)
    scored = [*rows(100, 5), row(3), row(7)]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored})
    kept = usable(sources(task).sources[0])
    assert questions(kept) == questions([r for i, r in enumerate(train) if i not in (3, 7)])


def test_a_training_document_is_known_by_its_question_whatever_its_index_says(
    tmp_path: Path,
) -> None:
    train = [row(i, idx=i) for i in range(10)]
    scored = [row(3, idx=900), row(4, question="  What IS\n4 ", idx=901), row(50, idx=902)]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored})
    kept = usable(sources(task).sources[0])
    assert [document["idx"] for document in kept] == [0, 1, 2, 5, 6, 7, 8, 9]


def test_signs_do_not_make_another_question(tmp_path: Path) -> None:
    train = [row(i, question=f"What is {i}") for i in range(10)]
    scored = [row(i, question=f"what is '{i}' ?") for i in range(3, 7)]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored})
    kept = usable(sources(task).sources[0])
    assert questions(kept) == [f"What is {i}" for i in (0, 1, 2, 7, 8, 9)]


def test_where_nothing_is_asked_a_document_is_known_by_its_choices(tmp_path: Path) -> None:
    def of(index: int, turned: bool = False, **fields: Any) -> Document:
        choices = [f"red {index}", f"blue {index}.", "green"]
        return row(index, choices=choices[::-1] if turned else choices, question="?!", **fields)

    train = [of(i, idx=i) for i in range(10)]
    scored = [of(i, turned=True, idx=900 + i) for i in range(3, 7)]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored},
                     doc_to_text="{{question}}")  # fmt: skip
    kept = usable(sources(task).sources[0])
    assert [document["idx"] for document in kept] == [0, 1, 2, 7, 8, 9]
    with pytest.raises(UserError, match="was built from a document that task t scores"):
        refuse_scored_documents(task, scored, card(task, train), "mask")


def test_a_question_that_many_scored_documents_share_identifies_none(tmp_path: Path) -> None:
    """Else a task whose prompt is the same for all would have no pairs at all."""
    train = [row(i, question="which is best", idx=i) for i in range(10)]
    scored = [row(i, question="which is best", idx=i) for i in range(100, 110)]
    task = make_task(tmp_path, "t", {"train": train, "validation": [*scored, train[4]]})
    kept = usable(sources(task).sources[0])
    assert [document["idx"] for document in kept] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_another_task_s_documents_are_left_out_where_they_are_scored(tmp_path: Path) -> None:
    scored = make_task(tmp_path, "one", {"validation": rows(0, 6)})
    other = make_task(tmp_path, "other", {"train": rows(4, 6), "validation": rows(90, 3)})
    found = sources(scored, source=other)
    assert found.task is other
    assert questions(usable(found.sources[0])) == questions(rows(6, 4))
    assert {found.fit_of(document) for document in scored.evaluated()} == {0}


# ------------------------------------------------------------------ cross-fitting


def assert_no_document_meets_itself(task: RunTask, found: Sources) -> None:
    """Neither its content nor its question is among the documents of its mask."""
    others = [[identity(task, d) for d in usable(source)] for source in found.sources]
    for document in task.evaluated():
        own, mask = identity(task, document), found.fit_of(document)
        assert own.content not in {other.content for other in others[mask]}
        assert own.question not in {other.question for other in others[mask]}


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_folds_are_contiguous_and_cover_the_whole_split(tasks_folder: Path, folds: int) -> None:
    task = load(tasks_folder, "tiny_folds")
    found = sources(task, folds)
    fold_of = [found.fit_of(document) for document in task.evaluated()]
    assert fold_of == sorted(fold_of)
    counts = Counter(fold_of)
    assert sorted(counts) == list(range(folds))
    assert max(counts.values()) - min(counts.values()) <= 1
    for fold, source in enumerate(found.sources):
        expected = [d for d, f in zip(task.evaluated(), fold_of, strict=True) if f != fold]
        assert list(source.documents) == expected == usable(source)
    assert_no_document_meets_itself(task, found)


@pytest.mark.parametrize("folds", [2, 3])
def test_a_document_that_stands_twice_in_the_split_never_meets_itself(
    tmp_path: Path, folds: int
) -> None:
    scored = [*rows(0, 10), row(2), *rows(10, 8), row(2), row(12)]
    task = make_task(tmp_path, "t", {"validation": scored})
    found = sources(task, folds)
    assert_no_document_meets_itself(task, found)
    assert len({found.fit_of(d) for d in task.evaluated() if d["question"] == "what is 2"}) == 1
    assert all(len(usable(source)) >= 8 for source in found.sources)


@pytest.mark.parametrize("folds", [2, 3])
def test_a_question_that_stands_twice_never_meets_itself_whatever_its_index_says(
    tmp_path: Path, folds: int
) -> None:
    scored = [row(i % 12, idx=i) for i in range(24)]
    scored += [row(i, idx=i) for i in range(30, 40)]
    task = make_task(tmp_path, "t", {"validation": scored})
    found = sources(task, folds)
    assert_no_document_meets_itself(task, found)
    for index, source in enumerate(found.sources):
        own = [d for d in task.evaluated() if found.fit_of(d) == index]
        refuse_scored_documents(task, own, card(task, usable(source)), "mask")


def shuffling(task: RunTask) -> None:
    """Have the task put its choices, which stand in its prompt, in another order each time."""
    draw = Random(0)

    def shuffled(documents: Any) -> list[Document]:
        return [{**d, "choices": draw.sample(d["choices"], 3)} for d in documents]

    task.task.config.process_docs = shuffled


def test_documents_that_come_out_otherwise_each_time_keep_their_folds(tmp_path: Path) -> None:
    scored = [row(i, choices=[f"a {i}", f"b {i}", f"c {i}"]) for i in range(60)]
    task = make_task(tmp_path, "t", {"validation": scored},
                     doc_to_text="{{question}} {{choices|join(', ')}}")  # fmt: skip
    shuffling(task)
    task.task.build_all_requests()
    found = sources(task, 2)
    requested = {request.doc_id: request.doc for request in task.task.instances}
    assert [found.fit_of(requested[i]) for i in range(60)] == [0] * 30 + [1] * 30
    for fold, source in enumerate(found.sources):
        left_out = {
            requested[i]["question"] for i in requested if found.fit_of(requested[i]) == fold
        }
        assert not left_out & set(questions(usable(source)))


def test_a_scored_document_of_no_fold_is_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path, "t", {"validation": rows(0, 20)})
    found = sources(task, 2)
    with pytest.raises(UserError, match="task t: a scored document is in none of the 2 folds"):
        found.fit_of(row(99))


def test_fewer_documents_than_folds_are_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path, "t", {"validation": rows(0, 3)})
    with pytest.raises(UserError, match="3 documents are too few for 4 folds"):
        sources(task, 4)


def test_a_limited_run_divides_the_whole_split_all_the_same(tasks_folder: Path) -> None:
    """The first ten documents of 50 all stand in the first fold."""
    task = load(tasks_folder, "tiny_folds")
    task.task.build_all_requests(limit=10)
    found = sources(task)
    assert {found.fit_of(instance.doc) for instance in task.task.instances} == {0}


@pytest.mark.parametrize("folds", [2, 5])
def test_the_few_shot_examples_of_a_mask_s_pairs_are_not_scored_with_it(
    tasks_folder: Path, folds: int
) -> None:
    """An example shows its answer, so it helps to make the mask as a pair does."""
    task = load(tasks_folder, "tiny_folds", num_fewshot=3)
    found = sources(task, folds)
    for fold, source in enumerate(found.sources):
        scored = {f"{d['question']} answer :" for d in task.evaluated() if found.fit_of(d) == fold}
        pairs = build_pairs(task, CHOICE, source.documents, source.allowed, 8, 3, seed=0)
        for shown in {shown for pair in pairs for shown in examples(pair)}:
            assert not any(shown.startswith(question) for question in scored)


# ------------------------------------------------------------------ the guard


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_input"])
def test_the_guard_lets_through_what_the_sources_give(tasks_folder: Path, name: str) -> None:
    task = load(tasks_folder, name)
    found = sources(task)
    for index, source in enumerate(found.sources):
        scored = [d for d in task.evaluated() if found.fit_of(d) == index]
        assert scored
        refuse_scored_documents(task, scored, card(task, usable(source)), source.label)


def test_the_guard_names_a_planted_document(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_choice")
    scored = task.evaluated()
    pairs_of = card(task, [*task.documents("train"), scored[7]])
    with pytest.raises(UserError) as caught:
        refuse_scored_documents(task, scored, pairs_of, "mine.safetensors")
    said = str(caught.value)
    assert "\n" not in said
    for words in ("mine.safetensors", "tiny_choice", scored[7]["question"], digest(scored[7])):
        assert words in said
    refuse_scored_documents(task, scored[:7] + scored[8:], pairs_of, "mine.safetensors")


def test_the_guard_knows_a_planted_question_whatever_its_index_says(tmp_path: Path) -> None:
    scored = [row(i, idx=i) for i in range(10)]
    task = make_task(tmp_path, "t", {"validation": scored})
    planted = row(4, idx=77)
    with pytest.raises(UserError, match="what is 4"):
        refuse_scored_documents(task, scored, card(task, [planted]), "mask")


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 11])
def test_the_guard_lets_through_a_part_of_what_it_lets_through_as_a_whole(
    tmp_path: Path, limit: int
) -> None:
    """With ``--limit``, or divided over processes, fewer documents share a common prompt."""
    train = [row(i, question="which is best", idx=i) for i in range(10)]
    scored = [row(i, question="which is best", idx=i) for i in range(100, 111)]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored})
    pairs_of = card(task, usable(sources(task).sources[0]))
    refuse_scored_documents(task, task.evaluated(), pairs_of, "mask")
    refuse_scored_documents(task, task.evaluated()[:limit], pairs_of, "mask")


@pytest.mark.parametrize("folds", [2, 3])
def test_the_guard_lets_through_what_cross_fitting_gives_where_many_share_a_question(
    tmp_path: Path, folds: int
) -> None:
    scored = [row(i, question="which is best", idx=i) for i in range(14)]
    scored += [row(i, idx=i) for i in range(20, 30)]
    task = make_task(tmp_path, "t", {"validation": scored})
    found = sources(task, folds)
    for index, source in enumerate(found.sources):
        own = [d for d in task.evaluated() if found.fit_of(d) == index]
        refuse_scored_documents(task, own, card(task, usable(source)), source.label)


# ------------------------------------------------------------------ a planted document, by contrast

NAMED = Recipe("named", "choice", wrong="{{ [(label + 1) % 3] }}")
GENERATION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "answer",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CONTRASTS = [
    (CHOICE, {}),
    (NAMED, {}),
    (OTHER, GENERATION),
    (NUMBER, GENERATION),
    (ANSWERS, GENERATION),
]
contrasts = pytest.mark.parametrize(
    ("recipe", "config"), CONTRASTS, ids=[recipe.recipe for recipe, _ in CONTRASTS]
)


def answered(index: int, **fields: Any) -> Document:
    return row(index, **{"answer": f"it is {index}", **fields})


def of_pairs(pairs: list[Pair]) -> dict[str, object]:
    """What a mask's card says of its pairs."""
    return {
        "documents": [pair.known_as.content for pair in pairs],
        "questions": [pair.known_as.question for pair in pairs],
        "questions_by": QUESTIONS_BY,
    }


@contrasts
def test_a_planted_document_makes_no_pair_and_a_mask_of_it_is_refused(
    tmp_path: Path, recipe: Recipe, config: dict[str, Any]
) -> None:
    scored = [answered(i, idx=i) for i in range(100, 106)]
    spaced = answered(104, idx=104, question=" What  is 104")
    planted = [scored[1], answered(103, idx=7), spaced]
    train = [*(answered(i, idx=i) for i in range(12)), *planted]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored}, **config)
    [source] = sources(task).sources
    for negative in ("random", "all") if recipe.contrast == "choice" else ("random",):
        for seed in range(3):
            drawn = (100, 0, seed, negative)
            pairs = build_pairs(task, recipe, source.documents, source.allowed, *drawn)  # type: ignore[arg-type]
            assert {pair.document["question"] for pair in pairs} == set(questions(train[:12]))
            shown = [text for pair in pairs for text in (*pair.positive, *pair.negative)]
            assert not any(f"is {i}" in text for text in shown for i in (101, 103, 104))
            refuse_scored_documents(task, scored, of_pairs(pairs), "mask")
    for document in planted:
        pairs = build_pairs(task, recipe, train, document.__eq__, 1, 0, 0)
        if recipe is OTHER:  # no other answer is allowed
            continue
        assert [pair.document for pair in pairs] == [document]
        with pytest.raises(UserError, match="was built from a document that task t scores"):
            refuse_scored_documents(task, scored, of_pairs(pairs), "mask")


@contrasts
@pytest.mark.parametrize("folds", [2, 3])
def test_no_pair_of_a_fold_s_mask_is_of_the_fold(
    tmp_path: Path, recipe: Recipe, config: dict[str, Any], folds: int
) -> None:
    scored = [answered(i) for i in range(24)]
    scored[20] = scored[2]
    task = make_task(tmp_path, "t", {"validation": scored}, **config)
    found = sources(task, folds)
    for fold, source in enumerate(found.sources):
        pairs = build_pairs(task, recipe, source.documents, source.allowed, 100, 0, 0)
        own = [d for d in task.evaluated() if found.fit_of(d) == fold]
        assert len(pairs) >= 8
        assert not {p.document["question"] for p in pairs} & set(questions(own))
        if recipe is OTHER:
            answers = {pair.negative[1].strip() for pair in pairs}
            assert not answers & {document["answer"] for document in own}
        refuse_scored_documents(task, own, of_pairs(pairs), source.label)


@pytest.mark.parametrize("config", [{}, GENERATION], ids=["choice", "generation"])
@pytest.mark.parametrize(
    "question",
    ["what is 3", " WHAT is\n3 ?", "think well : what is 3", "what is 3 or what is it not ?"],
)
def test_a_static_pair_whose_prompt_a_scored_document_holds_is_left_out(
    tmp_path: Path, config: dict[str, Any], question: str
) -> None:
    rows_of_set = [
        {"prompt": f"what is {i}", "positive": "good .", "negative": "bad ."} for i in range(3, 9)
    ]
    text = "".join(json.dumps(each) + "\n" for each in rows_of_set)
    (tmp_path / "set.jsonl").write_text(text, encoding="utf-8")
    recipe = tmp_path / "static.yaml"
    recipe.write_text("recipe: mine\ncontrast: static\npairs: set.jsonl\n", encoding="utf-8")
    scored = [answered(20), answered(21, question=question), answered(22)]
    train = [answered(i) for i in range(100, 120)]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored}, **config)
    options = Options(recipe=str(recipe))
    plan = find_plan(task, options)
    pairs = draw(plan, plan.sources.sources[0], options, ()).pairs
    assert {p.document["prompt"] for p in pairs} == {f"what is {i}" for i in range(4, 9)}
    refuse_scored_documents(task, scored, of_pairs(pairs), "mask")


def test_a_mask_of_a_static_pair_whose_prompt_is_scored_is_refused(tmp_path: Path) -> None:
    """A mask file of another run, whose task did not score that question."""
    prompts = ["what is 3 ?", "what is 4 ?", "what is 5 ?", "what is 6 ?"]
    lines = [json.dumps({"prompt": p, "positive": "good", "negative": "bad"}) for p in prompts]
    (tmp_path / "set.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = tmp_path / "static.yaml"
    recipe.write_text("recipe: mine\ncontrast: static\npairs: set.jsonl\n", encoding="utf-8")
    options = Options(recipe=str(recipe))
    harmless = make_task(tmp_path, "one", {"validation": [answered(50), answered(51)]})
    plan = find_plan(harmless, options)
    pairs = draw(plan, plan.sources.sources[0], options, ()).pairs
    assert len(pairs) == 4
    other = make_task(tmp_path, "other", {"validation": [answered(50), answered(5)]})
    refuse_scored_documents(harmless, harmless.evaluated(), of_pairs(pairs), "mask")
    with pytest.raises(UserError, match="task other scores: 'what is 5"):
        refuse_scored_documents(other, other.evaluated(), of_pairs(pairs), "mask")


def test_a_fit_of_an_earlier_release_is_refused_by_its_questions_too(tmp_path: Path) -> None:
    train = [row(i, idx=i) for i in range(6)]
    scored = [row(30, idx=30), row(4, idx=31, question=" What is 4")]
    task = make_task(tmp_path, "t", {"train": train, "validation": scored})
    asked = [digest({"question": " ".join(task.question(d).split()).lower()}) for d in train]
    earlier: dict[str, object] = {"documents": [digest(d) for d in train], "questions": asked}
    with pytest.raises(UserError, match="was built from a document that task t scores"):
        refuse_scored_documents(task, scored, earlier, "mask")
    refuse_scored_documents(task, scored[:1], earlier, "mask")


def test_a_card_without_documents_refuses_nothing(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_choice")
    cards: list[dict[str, Any]] = [{}, {"documents": None, "questions": "text"}, {"documents": []}]
    for empty in cards:
        refuse_scored_documents(task, task.evaluated(), empty, "mask")
