"""What is said of pairs: the balance of their sides, what is wrong with them, and what differs."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sadi_lmeval.pairs.pair_report import balance, line_of, marked, warnings
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.sources import Identity


def pair(positive: str, negative: str, prompt: str = "ask :", other: str | None = None) -> Pair:
    texts = (prompt, positive), (prompt if other is None else other, negative)
    return Pair(*texts, {"prompt": prompt}, Identity("the content", "the question"))


BALANCED = [
    pair(" yes", " now"),
    pair(" now", " yes"),
    pair(" four", " two"),
    pair(" two", " six7"),
]

# ------------------------------------------------------------------ balance


def test_lengths_are_those_of_the_answers_without_the_space_before_them() -> None:
    found = balance([pair(" ab", "  abcd"), pair("\nabcd ", " ab"), pair(" abc", "abcde")])
    assert found.pairs == 3
    assert found.positive_length == pytest.approx((2 + 4 + 3) / 3)
    assert found.negative_length == pytest.approx((4 + 2 + 5) / 3)
    assert found.positive_longer == pytest.approx(1 / 3)
    assert found.negative_longer == pytest.approx(2 / 3)


def test_answers_of_one_length_are_longer_on_neither_side() -> None:
    found = balance([pair(" ab", " cd"), pair(" ab ", " cd")])
    assert (found.positive_longer, found.negative_longer) == (0, 0)


def test_labels_are_counted_on_each_side_the_most_frequent_first() -> None:
    found = balance([pair(" no", " yes"), pair(" yes", " no"), pair("yes", " no")])
    assert list(found.positive_labels.items()) == [("yes", 2), ("no", 1)]
    assert list(found.negative_labels.items()) == [("no", 2), ("yes", 1)]


@pytest.mark.parametrize(("different", "counted"), [(10, True), (11, False)])
def test_more_than_ten_different_answers_are_no_labels(different: int, counted: bool) -> None:
    pairs = [pair(f" {number}", f" {number + 1}") for number in range(different - 1)]
    found = balance(pairs)
    assert bool(found.positive_labels) is bool(found.negative_labels) is counted


# ------------------------------------------------------------------ warnings


def test_balanced_pairs_are_no_cause_for_a_warning() -> None:
    assert list(warnings(BALANCED)) == []


def test_a_side_whose_answers_are_all_the_same_is_told() -> None:
    constant = [pair(" yes", f" {n}ab") for n in range(3)] + [pair(" yes", " a")] * 3
    assert list(warnings(constant)) == ["every positive answer is the same: 'yes'"]
    turned = [pair(each.negative[1], each.positive[1]) for each in constant]
    assert list(warnings(turned)) == ["every negative answer is the same: 'yes'"]


def test_a_single_pair_is_not_said_to_have_the_same_answer_throughout() -> None:
    assert list(warnings([pair(" yes", " now")])) == []
    assert len(list(warnings([pair(" yes", " now")] * 2))) == 2


@pytest.mark.parametrize(("longer", "told"), [(3, False), (4, True), (5, True)])
def test_a_side_that_is_mostly_the_longer_one_is_told(longer: int, told: bool) -> None:
    pairs = [pair(f" {n} long", f" {n}") for n in range(longer)]
    pairs += [pair(f" {n}", f" {n} long") for n in range(longer, 5)]
    share = f"{longer / 5:.0%}"
    assert list(warnings(pairs)) == (
        [f"the positive answer is the longer one in {share} of the pairs"] if told else []
    )
    turned = [pair(each.negative[1], each.positive[1]) for each in pairs]
    assert list(warnings(turned)) == (
        [f"the negative answer is the longer one in {share} of the pairs"] if told else []
    )


def test_pairs_with_two_prompts_or_no_difference_are_counted() -> None:
    odd = [pair(" a", " b", other="other :"), pair(" c", " c"), pair(" d", " d")]
    assert list(warnings([*BALANCED, *odd])) == [
        "1 pairs have two different prompts",
        "2 pairs have the same text on both sides",
    ]


def test_the_same_answer_to_another_prompt_is_a_difference() -> None:
    pairs = [*BALANCED, pair(" c", " c", other="other :")]
    assert list(warnings(pairs)) == ["1 pairs have two different prompts"]


# ------------------------------------------------------------------ the part that differs


@pytest.mark.parametrize(
    ("positive", "negative", "first", "second"),
    [
        (" Eight", " Ten", " «Eight»", " «Ten»"),
        (
            " 3 + 4 = 7\n#### 7",
            " 3 + 4 = 7\n#### 9",
            " 3 + 4 = 7\n#### «7»",
            " 3 + 4 = 7\n#### «9»",
        ),
        (" the old cat was fed", " the new cat was fed", " the «old» cat was fed", None),
        (" red cat", " blue green cat", " «red» cat", " «blue green» cat"),
        (" Eight", " Eight legs", " Eight«»", " Eight «legs»"),
        (" a a", " a a a", " a a«»", " a a «a»"),
        (" same", " same", " same«»", " same«»"),
        (" Peru", " Persia", " «Peru»", " «Persia»"),  # words, not letters
    ],
)
def test_the_words_that_differ_are_marked(
    positive: str, negative: str, first: str, second: str | None
) -> None:
    found = marked(("ask :", positive), ("ask :", negative))
    assert found[0] == first
    assert second is None or found[1] == second
    assert marked(("ask :", negative), ("ask :", positive)) == found[::-1]


WORDS = st.lists(st.sampled_from(["a", "b", "cd", "7."]), max_size=6)


@given(WORDS, WORDS)
def test_marks_add_nothing_else_and_all_outside_them_is_shared(
    one: list[str], other: list[str]
) -> None:
    texts = ["".join(f" {word}" for word in words) for words in (one, other)]
    found = marked(("", texts[0]), ("", texts[1]))
    assert [each.replace("«", "").replace("»", "") for each in found] == texts
    outside = [re.fullmatch(r"([^«»]*)«([^«»]*)»([^«»]*)", each) for each in found]
    before, after = ({each.group(n).rstrip() for each in outside if each} for n in (1, 3))
    assert len(before) == len(after) == 1
    inside = [each.group(2).split() for each in outside if each]
    if all(inside):  # nothing more could be left outside
        assert inside[0][0] != inside[1][0]
        assert inside[0][-1] != inside[1][-1]


# ------------------------------------------------------------------ lines


def test_a_line_has_prompt_answers_and_where_they_are_from() -> None:
    line = line_of(pair(" «ja»\n", " nein"), "mine", "fold 1 of 2 left out")
    assert json.loads(json.dumps(line)) == {
        "task": "mine",
        "pairs_from": "fold 1 of 2 left out",
        "prompt": "ask :",
        "positive": " «ja»\n",
        "negative": " nein",
        "document": "the content",
    }


def test_a_second_prompt_stands_in_the_line_only_where_there_is_one() -> None:
    assert "negative_prompt" not in line_of(pair(" a", " b"), "mine", "train")
    line = line_of(pair(" a", " b", other="other :"), "mine", "train")
    assert (line["prompt"], line["negative_prompt"]) == ("ask :", "other :")
