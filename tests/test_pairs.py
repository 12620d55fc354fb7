"""Contrastive pairs: written as the harness writes its requests, seeded, and never leaking."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.tasks import (
    ANSWERS,
    CHAT,
    CHOICE,
    NUMBER,
    OTHER,
    everything,
    examples,
    harness_requests,
    load,
    make_task,
    words,
)
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, LengthLimit, RunTask, digest
from sadi_lmeval.pairs.contrasts import target
from sadi_lmeval.pairs.pairs import Pair, build_pairs
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.sources import identity

TASKS = [
    ("tiny_choice", CHOICE),
    ("tiny_folds", CHOICE),
    ("tiny_input", CHOICE),
    ("tiny_empty", CHOICE),
    ("tiny_text", OTHER),
    ("tiny_word", OTHER),
    ("tiny_sum", NUMBER),
    ("tiny_sum", OTHER),
    ("tiny_text", ANSWERS),
]
PLAIN: dict[str, Any] = {}
GENERATED = {"output_type": "generate_until", "doc_to_choice": None}


def draw(
    task: RunTask,
    recipe: Recipe,
    wanted: int = 12,
    num_fewshot: int = 0,
    seed: int = 0,
    documents: Sequence[Document] | None = None,
    allowed: Callable[[Document], bool] = everything,
    **more: Any,
) -> list[Pair]:
    documents = task.evaluated() if documents is None else documents
    return build_pairs(task, recipe, documents, allowed, wanted, num_fewshot, seed, **more)


# ------------------------------------------------------------------ the texts


@pytest.mark.parametrize("settings", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize(("name", "recipe"), TASKS)
def test_a_pair_is_written_as_the_harness_writes_its_requests(
    tasks_folder: Path, name: str, recipe: Recipe, settings: dict[str, Any]
) -> None:
    task = load(tasks_folder, name, **settings)
    requests = harness_requests(task)
    pairs = draw(task, recipe)
    assert len(pairs) == 12
    delimiter = "" if settings else " "
    for positive, negative, document, _ in pairs:
        theirs = requests[digest(document)]
        if recipe is CHOICE and name != "tiny_input":
            label = document["label"]
            assert positive == theirs[label]
            assert negative in [theirs[i] for i in range(3) if i != label]
        elif recipe is CHOICE:
            label = document["label"]
            whole = ["".join(each) for each in theirs]
            assert "".join(positive) == whole[label]
            assert "".join(negative) in [whole[i] for i in range(3) if i != label]
        elif recipe is ANSWERS:
            assert positive == (theirs[0][0], delimiter + document["answer"])
            assert negative[0] == theirs[0][0]
            assert negative[1] in [delimiter + choice for choice in document["choices"]]
        elif name == "tiny_word":
            assert positive == theirs[0]
            assert negative[1].startswith(" ")
        else:
            answer = document["answer" if name == "tiny_text" else "working"]
            assert positive == (theirs[0][0], delimiter + answer)


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize(("name", "recipe"), TASKS)
def test_both_texts_of_a_pair_share_their_prompt_and_differ_in_the_answer(
    tasks_folder: Path, name: str, recipe: Recipe, num_fewshot: int
) -> None:
    task = load(tasks_folder, name, num_fewshot)
    for positive, negative, *_ in draw(task, recipe, num_fewshot=num_fewshot):
        assert positive[0] == negative[0]
        assert positive[1] != negative[1]
        assert "".join(positive).count("\n\n") == num_fewshot


def test_a_few_shot_prompt_ends_as_the_prompt_without_examples(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_choice", 2)
    for pair in draw(task, CHOICE, num_fewshot=2):
        last = pair.positive[0].split("\n\n")[-1]
        assert last == f"{pair.document['question']} answer :"


def test_every_gold_and_every_wrong_choice_is_drawn_at_times(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["a", "b", "c", "d", "e"], "labels": [0, 1, 0, 1, 0]}
    rows = [{**row, "question": f"q {i}", "label": 1} for i in range(60)]
    task = make_task(tmp_path, "many", {"validation": rows})
    pairs = draw(task, Recipe("mc2", "choice", gold="{{ labels }}"), wanted=60)
    assert {pair.positive[1] for pair in pairs} == {" b", " d"}
    assert {pair.negative[1] for pair in pairs} == {" a", " c", " e"}


def test_a_task_without_choices_is_told_what_to_do(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_text")
    with pytest.raises(UserError, match=r"tiny_text has none; pass recipe=other_target"):
        draw(task, CHOICE)


def test_a_pair_is_known_as_its_document_is(tasks_folder: Path) -> None:
    for name, recipe in TASKS:
        task = load(tasks_folder, name)
        for pair in draw(task, recipe):
            assert pair.known_as == identity(task, pair.document)
            assert pair.known_as.content == digest(pair.document)


# ------------------------------------------------------------------ options within the prompt


def blanks(folder: Path, options: list[tuple[str, str]], text: str, **more: Any) -> RunTask:
    """A task like WinoGrande: each option in the blank is a prompt, what follows is the answer."""
    rows = [
        {
            "before": text.partition("_")[0].replace("N", str(i)),
            "after": text.partition("_")[2].strip(),
            "options": list(pair),
            "label": i % 2,
        }
        for i, pair in enumerate(options)
    ]
    return make_task(
        folder,
        "blanks",
        {"validation": rows},
        doc_to_text="label",
        doc_to_target="after",
        doc_to_choice="{{ [before + options[0], before + options[1]] }}",
        **more,
    )


OPTIONS = [
    ("the cat", "the dog"),
    ("Ann", "Anna"),
    ("Ann", "Ann Lee"),
    ("cat", "dog"),
    ("the old cat", "the old dog"),
    ("x", "y"),
]


@pytest.mark.parametrize("text", ["In house N sat _ and ate .", "_ sat and ate .", "N _ ."])
def test_options_within_the_prompts_leave_one_prompt_and_the_whole_texts_as_they_are(
    tmp_path: Path, text: str
) -> None:
    task = blanks(tmp_path, OPTIONS, text)
    pairs = draw(task, CHOICE)
    assert len(pairs) == len(OPTIONS)
    for pair in pairs:
        label, before = pair.document["label"], pair.document["before"]
        whole = [before + o + " " + pair.document["after"] for o in pair.document["options"]]
        assert pair.positive[0] == pair.negative[0]
        assert "".join(pair.positive) == whole[label]
        assert "".join(pair.negative) == whole[1 - label]
        prompt = pair.positive[0]
        assert prompt == prompt.rstrip()
        assert prompt.startswith(before.rstrip())
        for answer in (pair.positive[1], pair.negative[1]):
            assert answer.strip()
            assert not prompt or answer[0] == " "  # no word is cut in two


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("text", ["In house N sat _ and ate .", "_ sat in house N and ate ."])
def test_the_one_prompt_shows_every_example_and_nothing_of_the_options(
    tmp_path: Path, text: str, num_fewshot: int
) -> None:
    options = [(f"cat{i}", f"dog{i}") for i in range(12)]
    task = blanks(tmp_path, options, text, num_fewshot=num_fewshot)
    texts = {digest(d): task.texts(d, 0) for d in task.evaluated()}
    for pair in draw(task, CHOICE, wanted=8, num_fewshot=num_fewshot):
        prompt = pair.positive[0]
        *shown, last = [part for part in "".join(pair.positive).split("\n\n") if part]
        assert len(shown) == num_fewshot
        assert last == "".join(texts[digest(pair.document)][pair.document["label"]])
        assert all(example in prompt for example in shown)
        assert not any(option in prompt for option in pair.document["options"])


def test_options_of_a_task_without_a_prompt_in_common_have_an_empty_one(
    tasks_folder: Path,
) -> None:
    task = load(tasks_folder, "tiny_input")
    requests = {digest(d): ["".join(t) for t in task.texts(d, 0)] for d in task.evaluated()}
    for pair in draw(task, CHOICE, wanted=50):
        assert pair.positive[0] == pair.negative[0]
        theirs = requests[digest(pair.document)]
        assert "".join(pair.positive) == theirs[pair.document["label"]]
        assert "".join(pair.negative) in theirs


# ------------------------------------------------------------------ which wrong choices


def many_choices(folder: Path, documents: int = 9) -> RunTask:
    """Documents with 2 to 5 choices."""
    rows = [
        {"question": f"q {i}", "choices": [f"{c}{i}" for c in "abcde"[: 2 + i % 4]], "label": i % 2}
        for i in range(documents)
    ]
    return make_task(folder, "several", {"validation": rows})


@pytest.mark.parametrize("wanted", [1, 2, 3, 5, 8, 13, 22, 23, 100])
def test_all_makes_one_pair_a_wrong_choice_and_never_more_than_are_wanted(
    tmp_path: Path, wanted: int
) -> None:
    task = many_choices(tmp_path)
    pairs = draw(task, CHOICE, wanted, negative="all")
    assert len(pairs) == min(wanted, sum(len(d["choices"]) - 1 for d in task.evaluated()))
    assert len({(pair.positive, pair.negative) for pair in pairs}) == len(pairs)
    of_document: dict[str, list[Pair]] = {}
    for pair in pairs:
        of_document.setdefault(pair.document["question"], []).append(pair)
    *whole, last = of_document.values()
    for each in [*whole, last]:
        document = each[0].document
        wrong = [f" {c}" for i, c in enumerate(document["choices"]) if i != document["label"]]
        found = [pair.negative[1] for pair in each]
        assert found == wrong if each is not last else found == wrong[: len(found)]
        assert {pair.positive[1] for pair in each} == {f" {document['choices'][document['label']]}"}


def test_all_takes_those_wrong_choices_alone_that_the_recipe_names(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}", "choices": list("abcde"), "label": 2} for i in range(4)]
    task = make_task(tmp_path, "named", {"validation": rows})
    recipe = Recipe("r", "choice", wrong="[0, 4]")
    found = draw(task, recipe, 100, negative="all")
    assert [pair.negative[1] for pair in found] == [" a", " e"] * 4
    for seed in range(5):
        drawn = {pair.negative[1] for pair in draw(task, recipe, 100, seed=seed)}
        assert drawn <= {" a", " e"}


def test_hardest_takes_the_wrong_choice_that_it_is_told(tmp_path: Path) -> None:
    task = many_choices(tmp_path)
    asked: list[list[list[tuple[str, str]]]] = []

    def last(wrongs: Any) -> list[int]:
        asked.append(wrongs)
        return [len(each) - 1 for each in wrongs]

    pairs = draw(task, CHOICE, 100, negative="hardest", likes=last)
    assert len(asked) == 1
    for pair, wrongs in zip(pairs, asked[0], strict=True):
        document = pair.document
        texts = [text for i, text in enumerate(task.texts(document, 0)) if i != document["label"]]
        assert wrongs == texts
        assert pair.negative == texts[-1]


@pytest.mark.parametrize("negative", ["random", "all", "hardest"])
def test_the_documents_and_right_answers_are_the_same_whichever_wrong_ones_are_taken(
    tmp_path: Path, negative: str
) -> None:
    task = many_choices(tmp_path, 30)
    more: dict[str, Any] = {"likes": lambda wrongs: [0] * len(wrongs)}
    found = draw(task, CHOICE, 12, negative=negative, **more)
    assert found == draw(many_choices(tmp_path, 30), CHOICE, 12, negative=negative, **more)
    usual = draw(task, CHOICE, 12)
    documents = dict.fromkeys(pair.document["question"] for pair in found)
    assert list(documents) == [pair.document["question"] for pair in usual][: len(documents)]
    positives = {pair.document["question"]: pair.positive for pair in usual}
    assert all(pair.positive == positives[pair.document["question"]] for pair in found)


# ------------------------------------------------------------------ how long


@pytest.mark.parametrize(("name", "recipe"), TASKS)
@pytest.mark.parametrize("most", [3, 12, 15, 1000])
def test_no_text_of_a_pair_is_longer_than_the_limit(
    tasks_folder: Path, name: str, recipe: Recipe, most: int
) -> None:
    task = load(tasks_folder, name)
    limit = LengthLimit(most, words)
    found = draw(replace(task, limit=limit), recipe, 1000)
    for pair in found:
        assert words("".join(pair.positive)) <= most
        assert words("".join(pair.negative)) <= most
    unlimited = draw(task, recipe, 1000)
    assert {pair.document["question"] for pair in found} <= {
        pair.document["question"] for pair in unlimited
    }
    if most == 1000:
        assert found == unlimited
    elif name not in ("tiny_input", "tiny_empty"):
        assert len(found) < len(unlimited)


def test_a_document_fits_if_every_one_of_its_texts_does(tmp_path: Path) -> None:
    row = {"question": "one two", "choices": ["three", "three four five"], "label": 0}
    task = make_task(tmp_path, "fits", {"validation": [row]})
    assert words("".join(task.texts(row, 0)[1])) == 6
    assert task.fits(row)
    assert replace(task, limit=LengthLimit(6, words)).fits(row)
    assert not replace(task, limit=LengthLimit(5, words)).fits(row)


def test_an_answer_counts_with_its_prompt(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_text")
    document = task.evaluated()[0]
    prompt = words(f"{document['question']} answer :")
    for more in (0, 1, 2):
        limited = replace(task, limit=LengthLimit(prompt + more, words))
        assert limited.fits(document)
        assert limited.fits(document, "a") is (more >= 1)
        assert limited.fits(document, "a", "a b") is (more >= 2)
        assert limited.fits(document, "a b", "a") is (more >= 2)


# ------------------------------------------------------------------ the draw


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize(("name", "recipe"), TASKS)
def test_the_same_seed_draws_the_same_pairs_and_another_does_not(
    tasks_folder: Path, name: str, recipe: Recipe, num_fewshot: int
) -> None:
    one = draw(load(tasks_folder, name, num_fewshot), recipe, num_fewshot=num_fewshot)
    random.seed(99)
    task = load(tasks_folder, name, num_fewshot)
    task.task.set_fewshot_seed(77)
    assert draw(task, recipe, num_fewshot=num_fewshot) == one
    assert draw(task, recipe, num_fewshot=num_fewshot) == one
    assert draw(task, recipe, num_fewshot=num_fewshot, seed=1) != one


def test_more_pairs_with_the_same_seed_are_of_the_same_documents_first(
    tasks_folder: Path,
) -> None:
    task = load(tasks_folder, "tiny_choice")
    few, many = (draw(task, CHOICE, wanted=wanted) for wanted in (5, 20))
    assert [pair.document for pair in many[:5]] == [pair.document for pair in few]


def test_no_document_makes_two_pairs_and_all_are_used_if_need_be(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_choice")
    pairs = draw(task, CHOICE, wanted=1000)
    assert len(pairs) == 50
    assert len({digest(pair.document) for pair in pairs}) == 50


@pytest.mark.parametrize(("name", "recipe"), TASKS)
def test_a_document_that_is_not_allowed_gives_neither_a_prompt_nor_an_answer(
    tasks_folder: Path, name: str, recipe: Recipe
) -> None:
    task = load(tasks_folder, name)
    documents = task.evaluated()
    allowed = {digest(document) for document in documents[::2]}
    pairs = draw(task, recipe, 1000, allowed=lambda document: digest(document) in allowed)
    assert 20 <= len(pairs) <= 25
    assert {digest(pair.document) for pair in pairs} <= allowed
    if recipe is OTHER:
        answers = {target(task, document) for document in documents[::2]}
        assert {pair.negative[1].strip() for pair in pairs} <= {a.strip() for a in answers}


def test_documents_that_make_no_pair_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "choices": ["a", "b"], "label": label}
        for i, label in enumerate([0, 5, 1, -1])
    ]
    task = make_task(tmp_path, "some", {"validation": rows})
    assert sorted(p.document["question"] for p in draw(task, CHOICE)) == ["q0", "q2"]


def test_an_answer_without_a_number_makes_no_pair_of_numbers(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": a} for i, a in enumerate(["is 5", "none", "", "7"])]
    options: dict[str, Any] = {**GENERATED, "doc_to_target": "answer"}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    task = make_task(tmp_path, "sums", {"validation": rows}, metric_list=metrics, **options)
    assert sorted(p.document["question"] for p in draw(task, NUMBER)) == ["q0", "q3"]


def test_another_document_s_answer_is_none_of_this_document_s(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "answers": answers}
        for i, answers in enumerate([["Red", "crimson"], ["red"], ["CRIMSON "], ["blue"], [""]])
    ]
    options: dict[str, Any] = {**GENERATED, "doc_to_target": "answers"}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    task = make_task(tmp_path, "open", {"validation": rows}, metric_list=metrics, **options)
    for seed in range(10):
        for positive, negative, document, _ in draw(task, OTHER, seed=seed):
            own = {answer.strip().lower() for answer in document["answers"]}
            assert positive[1].strip().lower() in own
            assert negative[1].strip()
            assert negative[1].strip().lower() not in own


# ------------------------------------------------------------------ few-shot examples


@pytest.mark.parametrize(
    ("name", "recipe"), [("tiny_choice", CHOICE), ("tiny_folds", CHOICE), ("tiny_text", OTHER)]
)
@pytest.mark.parametrize("wanted", [12, 40])
def test_few_shot_examples_are_never_documents_of_the_pairs(
    tasks_folder: Path, name: str, recipe: Recipe, wanted: int
) -> None:
    task = load(tasks_folder, name, 3)
    documents = task.few_shot_documents()
    pairs = draw(task, recipe, wanted, num_fewshot=3, documents=documents)
    assert len(pairs) == wanted
    questions = [f"{pair.document['question']} answer :" for pair in pairs]
    for pair in pairs:
        assert len(examples(pair)) == 3
        for shown in examples(pair):
            assert not any(shown.startswith(question) for question in questions)


@pytest.mark.parametrize("wanted", [66, 67, 68, 69, 70, 150])
@pytest.mark.parametrize("name", ["tiny_choice", "tiny_sum"])
def test_examples_are_left_where_the_pairs_would_take_every_document(
    tasks_folder: Path, name: str, wanted: int
) -> None:
    """The training split has 70 documents, and the examples come from it too."""
    recipe = CHOICE if name == "tiny_choice" else NUMBER
    task = load(tasks_folder, name, 2)
    documents = task.documents("train")
    pairs = draw(task, recipe, wanted, num_fewshot=2, documents=documents)
    assert len(pairs) >= 60
    assert all(len(examples(pair)) == 2 for pair in pairs)
    questions = [f"{pair.document['question']} answer :" for pair in pairs]
    for shown in examples(pairs[0]):
        assert not any(shown.startswith(question) for question in questions)


def state(task: RunTask) -> tuple[Any, ...]:
    """What the harness's own draws depend on."""
    sampler = task.task.sampler
    return sampler.rnd.getstate(), list(sampler.fewshot_docs()), random.getstate()


def test_the_harness_draws_the_same_examples_before_and_after_pairs(tasks_folder: Path) -> None:
    def contexts(task: RunTask) -> list[Any]:
        return list(harness_requests(task).values())

    untouched = contexts(load(tasks_folder, "tiny_choice", 3))
    task = load(tasks_folder, "tiny_choice", 3)
    rnd, before = task.task.sampler.rnd, state(task)
    draw(task, CHOICE, num_fewshot=3)
    assert task.task.sampler.rnd is rnd
    assert state(task) == before
    assert contexts(task) == untouched


def test_the_sampler_is_restored_after_an_error(
    tasks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load(tasks_folder, "tiny_choice", 3)
    rnd, before = task.task.sampler.rnd, state(task)

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(task.task, "construct_requests", fail)
    with pytest.raises(KeyboardInterrupt):
        draw(task, CHOICE, num_fewshot=3)
    assert task.task.sampler.rnd is rnd
    assert state(task) == before
