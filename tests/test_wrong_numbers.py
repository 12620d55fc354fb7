"""Wrong numbers: near ones of the same form, the last of a text or of its box alone."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sadi_lmeval.pairs.wrong_numbers import with_wrong_number

pytestmark = pytest.mark.quick


def grouped(number: int) -> str:
    return f"{number:,}"


numbers = st.builds(
    lambda sign, whole, form, places, fraction: (
        sign + form(whole) + (f".{fraction:0{places}d}"[: places + 1] if places else "")
    ),
    st.sampled_from(["", "-"]),
    st.one_of(st.integers(0, 30), st.integers(0, 10**9)),
    st.sampled_from([str, grouped]),
    st.integers(0, 4),
    st.integers(0, 9),
)
words = st.text(
    st.characters(exclude_categories=["N", "C"], exclude_characters="-,."), max_size=8
).filter(lambda text: "\\boxed{" not in text)  # Hypothesis tries what our own modules say too
seeds = st.integers(0, 2**16)


@given(words, numbers, words, numbers, words, seeds)
@example("", "", "", "-1", "", 0)
@example("", "", "", "-1", "", 3)
@example("", "", "", "-0", "", 0)
@settings(max_examples=500)
def test_a_wrong_number_is_another_number_of_the_same_form_and_the_last_alone(
    start: str, first: str, middle: str, last: str, end: str, seed: int
) -> None:
    assume(middle or not first)
    before = f"{start}{first}{middle} "
    found = with_wrong_number(f"{before}{last}{end}", Random(seed))
    assert found is not None
    assert found.startswith(before)
    assert found.endswith(end)
    new = found[len(before) : len(found) - len(end)]
    assert re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", new), new
    old_value, new_value = (float(text.replace(",", "")) for text in (last, new))
    assert old_value != new_value
    assert len(new.partition(".")[2]) == len(last.partition(".")[2])
    assert ("," in new) == ("," in last and abs(new_value) >= 1000)
    if old_value:
        assert new.startswith("-") == last.startswith("-")
    else:
        assert not new.startswith("-") or last.startswith("-")


@given(st.text(st.sampled_from("0123456789-,. $ax"), max_size=20), seeds)
@settings(max_examples=500)
def test_whatever_a_text_says_its_last_number_alone_is_replaced(text: str, seed: int) -> None:
    found = with_wrong_number(text, Random(seed))
    if not any(sign.isdigit() for sign in text):
        assert found is None
        return
    assert found is not None
    assert found != text
    tail = re.search(r"[^0-9]*$", text)
    assert tail is not None
    assert found.endswith(tail.group())
    untouched = re.sub(r"[0-9.,-]*$", "", text[: tail.start()])
    assert found.startswith(untouched)


def test_a_wrong_number_is_near_and_follows_from_the_generator() -> None:
    assert with_wrong_number("x 1000 y", Random(5)) == with_wrong_number("x 1000 y", Random(5))
    found = {with_wrong_number("1000", Random(seed)) for seed in range(300)}
    values = sorted(int(str(text)) for text in found)
    assert values[0] >= 800
    assert values[-1] <= 1200
    assert len(values) > 100


def test_a_number_of_hundreds_of_digits_is_replaced_too() -> None:
    text = "so it is " + "7" * 400
    found = with_wrong_number(text, Random(0))
    assert found is not None
    assert found != text


@pytest.mark.parametrize("length", [1001, 5000])
def test_a_number_that_is_no_answer_by_its_length_makes_no_wrong_one(length: int) -> None:
    """Python refuses to read numbers of more than 4300 digits."""
    assert with_wrong_number("so it is " + "7" * length, Random(0)) is None


@pytest.mark.parametrize("text", ["", "none", "x = y", "one, two.", "- , . -"])
def test_a_text_without_a_number_has_no_wrong_one(text: str) -> None:
    assert with_wrong_number(text, Random(0)) is None


@pytest.mark.parametrize(
    ("before", "number", "after"),
    [
        ("the points are (3,", "4", ")"),
        ("a = 1, b = ", "22", ", and so on"),
        ("1,000,", "5", ""),
        ("in all ", "1,000", ", as we saw."),
        ("in all ", "1,234,567.50", "."),
        ("it costs $", "12.5", "."),
        ("the end is ", "7", "."),
        ("at 10:", "30", " h"),
        ("12 and 1234,", "56", ""),
    ],
)
def test_commas_and_points_that_are_none_of_the_number_stay(
    before: str, number: str, after: str
) -> None:
    for seed in range(20):
        found = with_wrong_number(f"{before}{number}{after}", Random(seed))
        assert found is not None
        assert found.startswith(before)
        assert found.endswith(after)
        new = found[len(before) : len(found) - len(after)]
        assert new != number
        assert re.fullmatch(r"[\d,.]*\d", new), new


# ------------------------------------------------------------------ boxes


@pytest.mark.parametrize(
    ("before", "box", "after"),
    [
        ("so \\boxed{", "12", "}."),
        ("so \\boxed{", "12", "} since 7 > 3"),
        ("first \\boxed{1}, then \\boxed{", "12", "} and 9"),
        ("so \\boxed{\\frac{3}{", "4", "}} of 100"),
        ("so \\boxed{x^{2} + ", "4", "x} of 100"),
        ("so \\boxed{\\text{about } ", "4", " \\text{ cm}} of 100"),
        ("it never ends \\boxed{\\frac{1}{", "4", "}"),
    ],
)
def test_in_a_text_with_boxes_the_last_number_of_the_last_box_alone_is_replaced(
    before: str, box: str, after: str
) -> None:
    for seed in range(20):
        found = with_wrong_number(f"{before}{box}{after}", Random(seed))
        assert found is not None
        assert found.startswith(before)
        assert found.endswith(after)
        new = found[len(before) : len(found) - len(after)]
        assert re.fullmatch(r"\d+", new), new
        assert int(new) != int(box)


@pytest.mark.parametrize("text", ["12 is \\boxed{x}", "\\boxed{} of 7", "5 \\boxed{\\pi}, 6"])
def test_a_box_without_a_number_makes_no_wrong_one(text: str) -> None:
    assert with_wrong_number(text, Random(0)) is None
