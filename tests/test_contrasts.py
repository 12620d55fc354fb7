"""Right and wrong answers to a document: what the recipe or the task says, and nothing unsound."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers.tasks import CHOICE, NUMBER, OTHER, everything, load, make_task
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.pairs.contrasts import (
    answers,
    contrasted_choices,
    gold_and_wrong,
    right_answer,
    right_texts,
    target,
)
from sadi_lmeval.pairs.recipe import Recipe

ANSWERS = Recipe("mine", "answers", right="{{ good }}", wrong="{{ bad }}")
GENERATION: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}

# ------------------------------------------------------------------ choices


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (None, [2], [0, 1]),
        ("{{ label }}", [2], [0, 1]),
        ("{{ [label, 0] }}", [0], [1, 2]),  # a list is one of 0 and 1 over the choices
        ("{{ [0, 1, 1] }}", [1, 2], [0]),
        ("1", [1], [0, 2]),
        ("7", [], []),
        ("{{ [0, 0, 0] }}", [], []),
    ],
)
def test_gold_and_wrong_choices_follow_from_the_recipe_or_the_task(
    tmp_path: Path, gold: str | None, right: list[int], wrong: list[int]
) -> None:
    row = {"question": "q", "choices": ["a", "b", "c"], "label": 2}
    task = make_task(tmp_path, "gold", {"validation": [row]})
    assert gold_and_wrong(task, Recipe("r", "choice", gold=gold), row) == (right, wrong)


def test_a_gold_answer_given_as_text_or_as_a_list_is_understood(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["a", "b", "c"], "label": 0, "gold": "b", "golds": [0, 2]}
    task = make_task(tmp_path, "text", {"validation": [row]}, doc_to_target="gold")
    assert gold_and_wrong(task, CHOICE, row) == ([1], [0, 2])
    task = make_task(tmp_path, "list", {"validation": [row]}, doc_to_target="golds")
    assert gold_and_wrong(task, CHOICE, row) == ([0, 2], [1])


@pytest.mark.parametrize("gold", ["{{ nothing }}", "{{ question }}", "{{ label", "[0, 1"])
def test_a_gold_template_that_gives_no_index_is_the_user_s_error(tmp_path: Path, gold: str) -> None:
    row = {"question": "what is it", "choices": ["a", "b", "c"], "label": 2}
    task = make_task(tmp_path, "gold", {"validation": [row]})
    with pytest.raises(UserError) as caught:
        gold_and_wrong(task, Recipe("mine", "choice", gold=gold), row)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def choosing(folder: Path, label: int = 2) -> tuple[RunTask, Document]:
    """A task of one document with five choices, and the document."""
    row = {"question": "q", "choices": list("abcde"), "label": label, "far": [0, 1]}
    return make_task(folder, "five", {"validation": [row]}), row


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (None, [0, 1, 3, 4]),
        ("{{ far }}", [0, 1]),
        ("[4]", [4]),
        ("{{ [[4], [3], [0, 4], [1], [0]][label] }}", [0, 4]),
        ("[]", []),
    ],
)
def test_the_recipe_says_which_wrong_choices_are_contrasted(
    tmp_path: Path, wrong: str | None, expected: list[int]
) -> None:
    task, row = choosing(tmp_path)
    assert contrasted_choices(task, Recipe("r", "choice", wrong=wrong), row) == ([2], expected)


@pytest.mark.parametrize(
    "wrong",
    [
        "{{ [label] }}",  # the right one
        "[0, 2]",
        "[5]",
        "[-1]",
        "[0.0]",
        "[False]",
        "0",
        "(0, 1)",
        "{0: 1}",
        "['a']",
        "[[0], [1]]",
        "[[4], [3], [0, 4], [1], [0]]",  # the label was forgotten
        "{{ choices }}",
        "{{ question }}",
        "{{ nothing }}",
    ],
)
def test_a_list_of_wrong_choices_that_are_none_is_the_user_s_error(
    tmp_path: Path, wrong: str
) -> None:
    task, row = choosing(tmp_path)
    with pytest.raises(UserError) as caught:
        contrasted_choices(task, Recipe("mine", "choice", wrong=wrong), row)
    assert "mine" in str(caught.value)
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_document_without_a_gold_choice_is_not_asked_for_its_wrong_ones(tmp_path: Path) -> None:
    task, row = choosing(tmp_path, label=-1)
    wrong = "{{ [[4], [3]][label] }}"
    assert contrasted_choices(task, Recipe("r", "choice", wrong=wrong), row) == ([], [])


@pytest.mark.parametrize("contrast", [gold_and_wrong, contrasted_choices])
def test_a_task_without_choices_is_refused_with_the_recipes_for_it(
    tasks_folder: Path, contrast: Any
) -> None:
    task = load(tasks_folder, "tiny_text")
    with pytest.raises(UserError, match=r"tiny_text has none; pass recipe=other_target") as caught:
        contrast(task, CHOICE, task.evaluated()[0])
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ texts


def open_task(folder: Path, rows: list[Document], target: str = "answer") -> RunTask:
    return make_task(folder, "open", {"validation": rows}, doc_to_target=target, **GENERATION)


def drawn(
    task: RunTask, recipe: Recipe, documents: list[Document], index: int = 0, seeds: int = 40
) -> set[tuple[str, str] | None]:
    """What is drawn for a document with any of many seeds."""
    return {
        answers(task, recipe, documents, index, everything, Random(seed)) for seed in range(seeds)
    }


def test_each_right_answer_is_drawn_with_each_wrong_one_at_times(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "x", "good": ["a", "b"], "bad": ["c", "d", "e"]}
    found = drawn(open_task(tmp_path, [row]), ANSWERS, [row], seeds=200)
    assert found == {(right, wrong) for right in "ab" for wrong in "cde"}


def test_an_answer_that_is_right_is_never_the_wrong_one(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "x", "good": ["a", "b"], "bad": ["b", "c", "a"]}
    found = drawn(open_task(tmp_path, [row]), ANSWERS, [row])
    assert found == {("a", "c"), ("b", "c")}


@pytest.mark.parametrize(
    ("good", "bad"),
    [([], ["c"]), (["a"], []), (["a"], ["a"]), (["", "  "], ["c"]), (["a"], ["\n"]), ("", "c")],
)
def test_a_document_that_lacks_a_side_makes_no_pair(tmp_path: Path, good: Any, bad: Any) -> None:
    row = {"question": "q", "answer": "x", "good": good, "bad": bad}
    assert drawn(open_task(tmp_path, [row]), ANSWERS, [row]) == {None}


def test_one_text_is_as_good_as_a_list_of_one(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "x", "good": "it is so", "bad": ["[sic] it is not"]}
    single = Recipe("r", "answers", right="{{ good }}", wrong="{{ bad[0] }}")
    found = drawn(open_task(tmp_path, [row]), single, [row])
    assert found == drawn(open_task(tmp_path, [row]), ANSWERS, [row])
    assert found == {("it is so", "[sic] it is not")}


def test_a_wrong_number_may_stand_in_an_answer_of_the_recipe_s_own(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "no number", "solution": "it is 40"}
    task = open_task(tmp_path, [row])
    assert drawn(task, NUMBER, [row]) == {None}
    worked = Recipe("r", "wrong_number", answer="{{ solution }}")
    for found in drawn(task, worked, [row]):
        assert found is not None
        assert found[0] == "it is 40"
        assert found[1].startswith("it is ")
        assert found[1] != found[0]


@pytest.mark.parametrize("recipe", [OTHER, NUMBER, ANSWERS])
def test_what_is_drawn_follows_from_the_generator(tmp_path: Path, recipe: Recipe) -> None:
    rows = [
        {"question": f"q{i}", "answer": f"is {i}", "good": ["a", "b"], "bad": ["c", "d"]}
        for i in range(30)
    ]
    task = open_task(tmp_path, rows)
    for index in range(5):
        one, same = (answers(task, recipe, rows, index, everything, Random(7)) for _ in range(2))
        assert one == same
        assert len(drawn(task, recipe, rows, index)) > 1


def test_an_answer_that_is_not_allowed_is_nobody_s_wrong_one(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"is {i}"} for i in range(12)]
    task = open_task(tmp_path, rows)

    def even(document: Document) -> bool:
        return int(document["question"][1:]) % 2 == 0

    found = {answers(task, OTHER, rows, 0, even, Random(seed)) for seed in range(100)}
    assert found == {("is 0", f"is {i}") for i in range(2, 12, 2)}


def test_another_document_s_answer_may_be_what_the_recipe_says_and_differs_from_its_own(
    tmp_path: Path,
) -> None:
    rows = [{"question": f"q{i}", "answer": f"x{i}", "kind": f"kind {i % 3}"} for i in range(12)]
    task = open_task(tmp_path, rows)
    recipe = Recipe("r", "other_target", answer="{{ kind }}")
    for index in range(3):
        others = {("kind 0", "kind 1", "kind 2")[i] for i in range(3) if i != index}
        found = drawn(task, recipe, rows, index, seeds=60)
        assert found == {(f"kind {index}", other) for other in others}


# ------------------------------------------------------------------ the right answer alone


def test_the_right_answer_is_what_the_recipe_says_or_the_task_s_target(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "x", "good": ["a", "b"], "bad": ["c"], "solution": "y"}
    task = open_task(tmp_path, [row])
    assert right_answer(task, OTHER, row) == "x"
    assert right_answer(task, Recipe("r", "wrong_number", answer="{{ solution }}"), row) == "y"
    assert right_answer(task, ANSWERS, row) == "a"
    both = Recipe("r", "answers", right="{{ good }}", wrong="{{ bad }}", answer="{{ solution }}")
    assert right_answer(task, both, row) == "y"
    assert right_texts(both, row) == ["a", "b"]
    assert right_answer(task, ANSWERS, {**row, "good": []}) == ""


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        (Recipe("mine", "answers", right="{{ nothing }}", wrong="{{ bad }}"), "right"),
        (Recipe("mine", "answers", right="{{ good }}", wrong="{{ nothing }}"), "wrong"),
        (Recipe("mine", "wrong_number", answer="{{ nothing }}"), "answer"),
    ],
)
def test_a_field_that_the_document_lacks_is_told_with_the_recipe_and_its_key(
    tmp_path: Path, recipe: Recipe, key: str
) -> None:
    row = {"question": "q", "answer": "x", "good": ["a"], "bad": ["c"]}
    with pytest.raises(UserError, match=f"recipe mine: {key} .*'nothing' is undefined") as caught:
        answers(open_task(tmp_path, [row]), recipe, [row], 0, everything, Random(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "expected"),
    [("x", "x"), (["x", "y"], "x"), ([], ""), (7, "7"), ("", "")],
)
def test_the_target_is_text_the_first_where_there_are_several(
    tmp_path: Path, field: Any, expected: str
) -> None:
    row = {"question": "q", "answer": field}
    assert target(open_task(tmp_path, [row]), row) == expected


def test_the_target_of_a_document_with_choices_is_the_text_of_the_gold_one(tmp_path: Path) -> None:
    task, row = choosing(tmp_path, label=3)
    assert target(task, row) == "d"
