"""A gain that is one answer's share is called that; a real one is not."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import balanced_accuracy_score

from helpers.records import answered, make_record
from sadi_lmeval.records.record import Record
from sadi_lmeval.reports.diagnostics import _balanced_stayed, diagnose
from sadi_lmeval.reports.significance import compare_paired

pytestmark = pytest.mark.quick

GOLD = [1] * 62 + [0] * 38


def noisy(accuracy: float, seed: int, gold: list[int] = GOLD, method: str = "none") -> Record:
    rng = random.Random(seed)
    return answered([g if rng.random() < accuracy else 1 - g for g in gold], gold, method=method)


def test_always_the_majority_answer_is_a_collapse() -> None:
    before = answered([0, 1] * 50, GOLD)
    found = diagnose(answered([1] * 100, GOLD, method="sadi-head"), before)
    assert found.warning is not None
    assert found.balanced_before == 0.5
    assert "(50 % before" in found.warning
    assert found.warning.startswith("sadi-head on boolq: +")
    assert "100 % of its answers are 'yes'" in found.warning
    assert "62 % of the gold answers are" in found.warning
    assert found.warning.endswith(
        "balanced accuracy did not rise (0.50, before 0.50): the gain is that label's share"
    )
    assert "\n" not in found.warning
    assert found.majority == pytest.approx(0.62)
    assert found.gold == pytest.approx({"no": 0.38, "yes": 0.62})
    assert found.after == {"yes": 1}
    assert found.balanced_after == 0.5


def test_a_rise_of_balanced_accuracy_within_noise_may_be_the_label_s_share() -> None:
    chosen = [1] * 36 + [0] * 26 + [1] * 19 + [0] * 19
    found = diagnose(answered(chosen, GOLD), answered([0] * 100, GOLD))
    assert found.warning is not None
    assert found.warning.endswith(
        "did not rise beyond noise (0.54, before 0.50): the gain may be that label's share"
    )


def test_one_answer_alone_is_a_collapse_from_below_chance_too() -> None:
    found = diagnose(answered([1] * 100, GOLD), noisy(0.3, 0))
    assert found.balanced_before is not None
    assert found.balanced_before < 0.4
    assert found.warning is not None
    assert "balanced accuracy is not above that of one answer alone" in found.warning


@pytest.mark.parametrize("seed", range(5))
def test_a_real_gain_is_no_collapse(seed: int) -> None:
    before, after = noisy(0.5, seed), noisy(0.85, seed + 100, method="sadi-head")
    assert diagnose(after, before).warning is None


def test_a_real_gain_of_a_model_that_also_leans_is_no_collapse() -> None:
    before = noisy(0.4, 1)
    gold = [[g] for g in GOLD]
    chosen = [1] * 62 + [0] * 30 + [1] * 8  # all of yes and most of no
    after = make_record(
        values=[float(c == g) for c, g in zip(chosen, GOLD, strict=True)], chosen=chosen, gold=gold
    )
    assert diagnose(after, before).warning is None


def test_a_collapse_that_loses_is_not_called_a_gain() -> None:
    assert diagnose(answered([0] * 100, GOLD, method="caa"), noisy(0.6, 0)).warning is None


def test_the_unsteered_model_against_itself_changes_nothing() -> None:
    record = noisy(0.6, 0)
    found = diagnose(record, record)
    assert (found.right_to_wrong, found.wrong_to_right, found.warning) == (0, 0, None)
    assert found.before == found.after
    assert found.balanced_before == found.balanced_after


def test_changes_of_mind_are_counted_by_the_right_answer() -> None:
    before = answered([1, 1, 0, 0, 1], [1, 0, 0, 1, 1])
    after = answered([1, 0, 1, 1, 1], [1, 0, 0, 1, 1], method="iti")
    found = diagnose(after, before)
    assert (found.right_to_wrong, found.wrong_to_right) == (1, 2)


def test_without_choices_values_of_0_and_1_tell_what_changed() -> None:
    nothing = {"chosen": [None] * 4, "gold": [[]] * 4, "labels": None}
    before = make_record(values=[1.0, 0.0, 0.0, 1.0], **nothing)
    after = make_record(values=[0.0, 1.0, 1.0, 1.0], method="iti", **nothing)
    found = diagnose(after, before)
    assert (found.right_to_wrong, found.wrong_to_right) == (1, 2)
    assert (found.majority, found.balanced_after, found.after) == (None, None, {})


def test_values_between_tell_nothing_of_right_and_wrong() -> None:
    nothing = {"chosen": [None] * 2, "gold": [[]] * 2, "labels": None}
    found = diagnose(
        make_record(values=[0.5, 0.2], **nothing), make_record(values=[0.1, 0.9], **nothing)
    )
    assert (found.right_to_wrong, found.wrong_to_right) == (0, 0)


def test_of_a_metric_that_is_a_share_the_answers_tell_what_changed() -> None:
    gold = [[0], [1], [1], [0]]
    before = make_record(values=[0.6, 0.4, 0.9, 0.1], chosen=[0, 0, 1, 1], gold=gold)
    after = make_record(values=[0.4, 0.7, 0.8, 0.9], chosen=[1, 1, 1, 0], gold=gold)
    found = diagnose(after, before)
    assert (found.right_to_wrong, found.wrong_to_right) == (1, 2)


@pytest.mark.parametrize("gold", [[[0]] * 4, [[0, 1], [0], [0, 1, 2], [0]]])
def test_where_the_right_answer_is_always_listed_first_places_tell_nothing(
    gold: list[list[int]],
) -> None:
    record = make_record(chosen=[0, 2, 1, 0], gold=gold, labels=None)
    found = diagnose(record, record)
    assert (found.majority, found.gold, found.balanced_before) == (None, {}, None)
    assert found.after == {"answer 1": 0.5, "answer 2": 0.25, "answer 3": 0.25}


def test_balanced_accuracy_is_scikit_learns() -> None:
    rng = random.Random(3)
    gold = [rng.choice([0, 0, 0, 1, 2]) for _ in range(80)]
    chosen: list[int | None] = [rng.randrange(4) for _ in gold]
    record = answered(chosen, gold, labels=["a", "b", "c", "d"])
    found = diagnose(record, record)
    clipped = [c if c in gold else -1 for c in chosen]
    with pytest.warns(UserWarning, match="y_pred"):
        assert found.balanced_after == balanced_accuracy_score(gold, clipped)


def test_any_of_several_right_answers_is_right() -> None:
    record = make_record(
        values=[1.0, 1.0, 0.0], chosen=[1, 2, 0], gold=[[0, 1], [2], [1, 2]], labels=None
    )
    # Classes 0, 2 and 1 by the first right answer; right, right, wrong.
    assert diagnose(record, record).balanced_after == pytest.approx(2 / 3)


def test_the_rise_of_balanced_accuracy_is_the_mean_of_the_weighted_documents() -> None:
    before, after = noisy(0.5, 0), noisy(0.7, 1)
    found = diagnose(after, before)
    assert found.balanced_after is not None
    assert found.balanced_before is not None
    weights = [100 / (2 * (62 if g else 38)) for g in GOLD]
    rise = compare_paired(
        [w * (v or 0) for w, v in zip(weights, after.values, strict=True)],
        [w * (v or 0) for w, v in zip(weights, before.values, strict=True)],
    )
    assert rise.difference == pytest.approx(found.balanced_after - found.balanced_before)
    assert rise.low is not None
    assert (_balanced_stayed(after, before, range(100)) is None) == (rise.low > 0)


def test_documents_that_are_not_finite_are_warned_of() -> None:
    record = make_record(values=[1.0, None, 0.0, None], method="caa", mask_from="rte")
    found = diagnose(record, None)
    assert found.not_finite == 2
    assert found.warning == "caa (mask from rte) on boolq: 2 of 4 documents have no finite value"


def test_without_the_unsteered_model_nothing_is_compared() -> None:
    found = diagnose(answered([1] * 100, GOLD), None)
    assert (found.before, found.balanced_before, found.right_to_wrong) == ({}, None, 0)
    assert found.warning is None


def test_places_that_the_model_does_not_see_explain_no_gain() -> None:
    before = answered([0, 1] * 50, GOLD, labels=None)
    found = diagnose(answered([1] * 100, GOLD, method="sadi-head", labels=None), before)
    assert found.warning is None
    assert found.after == {"answer 2": 1}
    assert found.majority == pytest.approx(0.62)


def test_an_answer_that_gains_its_share_without_being_the_most_frequent_is_told() -> None:
    before = answered([0] * 100, GOLD)
    found = diagnose(answered([0, 1] * 50, GOLD, method="sadi-head"), before)
    assert found.after == {"no": 0.5, "yes": 0.5}
    assert found.warning is not None
    assert "50 % of its answers are 'yes' (0 % before" in found.warning
