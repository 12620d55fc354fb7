"""Is it steering, or a flipped label? What a method did to the answers that a model chooses."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sklearn.metrics import balanced_accuracy_score

from sadi_lmeval.records.record import Record
from sadi_lmeval.reports.significance import compare_paired


@dataclass(frozen=True)
class Diagnosis:
    """What changed between the unsteered model's answers and a method's.

    Attributes:
        majority: share of the most frequent right answer, which always giving it would score; None
            where right answers are not known, or where the right one is always listed at the same
            place, as in truthfulqa_mc1: places then tell nothing.
        gold: share of each right answer; empty where ``majority`` is None.
        before: share of each answer that the unsteered model chose; empty without choices.
        after: share of each answer that the method chose.
        right_to_wrong: documents that the unsteered model alone has right.
        wrong_to_right: documents that the method alone has right.
        balanced_before: mean over the right answers of the share of their documents that the
            unsteered model has right; None where ``majority`` is.
        balanced_after: the same of the method.
        not_finite: documents with a value that is not finite.
        warning: one line, or None.
    """

    majority: float | None
    gold: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    right_to_wrong: int
    wrong_to_right: int
    balanced_before: float | None
    balanced_after: float | None
    not_finite: int
    warning: str | None


def diagnose(record: Record, unsteered: Record | None) -> Diagnosis:
    """Compare the answers of a method with those of the unsteered model on the same documents.

    A gain is put down to a collapse of the answers where all of this holds:

    - the answers are labels, the same in every document: where they differ from document to
      document, their places are ours, and the model does not see them;
    - the metric improved;
    - the answer whose share rose most is more frequent than it was, beyond noise: the paired
      bootstrap's 95 % interval of the rise lies above 0;
    - balanced accuracy did not rise beyond noise (the interval of its rise does not lie above 0),
      or rose from below to no more than what one answer alone would score, one over the number of
      answers. A model that only gives one answer more often gains on that answer's documents what
      it loses on the others', and balanced accuracy, where all answers weigh the same, stays.

    Args:
        record: of the method.
        unsteered: of the same task and run; None: nothing is compared.
    """
    classes = _classes(record)
    gold = _shares(record, classes)
    before = _shares(unsteered, unsteered.chosen) if unsteered is not None else {}
    after = _shares(record, record.chosen)
    right, was = _right(record), _right(unsteered) if unsteered is not None else []
    moves = Counter(zip(was, right, strict=False))
    judged = [
        index
        for index, right_answer in enumerate(classes)
        if right_answer is not None
        and record.chosen[index] is not None
        and (unsteered is None or unsteered.chosen[index] is not None)
    ]
    balanced_after = _balanced(record, judged)
    balanced_before = _balanced(unsteered, judged) if unsteered is not None else None
    not_finite = sum(value is None for value in record.values)
    notes = []
    if unsteered is not None and balanced_after is not None and balanced_before is not None:
        top = max(after, key=lambda name: after[name] - before.get(name, 0.0))
        gain = _gain(record, unsteered)
        labelled = record.labels is not None
        collapsed = labelled and gain > 0 and _collapsed(record, unsteered, top)
        stayed = _balanced_stayed(record, unsteered, judged) if collapsed else None
        if stayed is not None:
            verb = "is" if stayed.surely else "may be"
            notes.append(
                f"{100 * gain:+.1f} points, but {_percent(after[top])} of its answers are {top!r} "
                f"({_percent(before.get(top, 0))} before; {_percent(gold.get(top, 0))} of the gold "
                f"answers are) and balanced accuracy {stayed.said} ({balanced_after:.2f}, before "
                f"{balanced_before:.2f}): the gain {verb} that label's share"
            )
    degenerate = record.steering.degenerate
    if degenerate > (unsteered.steering.degenerate if unsteered is not None else 0):
        notes.append(
            f"{degenerate} of {len(record.values)} texts are empty, or one short piece over and "
            "over"
        )
    if not_finite:
        notes.append(f"{not_finite} of {len(record.values)} documents have no finite value")
    source = "" if record.mask_from is None else f" (mask from {record.mask_from})"
    return Diagnosis(
        majority=max(gold.values(), default=None),
        gold=gold,
        before=before,
        after=after,
        right_to_wrong=moves[True, False],
        wrong_to_right=moves[False, True],
        balanced_before=balanced_before,
        balanced_after=balanced_after,
        not_finite=not_finite,
        warning=f"{record.method}{source} on {record.task}: {'; '.join(notes)}" if notes else None,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _name(record: Record, index: int) -> str:
    if record.labels is not None and 0 <= index < len(record.labels):
        return record.labels[index]
    return f"answer {index + 1}"


def _classes(record: Record) -> list[int | None]:
    """Give the first right answer of each document; all None where places tell nothing."""
    first = [gold[0] if gold else None for gold in record.gold]
    if record.labels is None and len(set(first) - {None}) < 2:
        return [None] * len(first)
    return first


def _shares(record: Record, answers: Sequence[int | None]) -> dict[str, float]:
    counts = Counter(index for index in answers if index is not None)
    shares: dict[str, float] = {}
    for index in sorted(counts):
        name = _name(record, index)
        shares[name] = shares.get(name, 0.0) + counts[index] / counts.total()
    return shares


def _right(record: Record) -> list[bool | None]:
    """Say whether each document is right: by its answer, or by a value of 0 or 1; else None."""
    return [
        chosen in gold if chosen is not None and gold else bool(value) if value in (0, 1) else None
        for chosen, gold, value in zip(record.chosen, record.gold, record.values, strict=True)
    ]


def _balanced(record: Record, judged: Sequence[int]) -> float | None:
    if not judged:
        return None
    right = _right(record)
    # Any right answer stands for the first, so that documents with several have one class.
    expected = [record.gold[index][0] for index in judged]
    given = [record.gold[i][0] if right[i] else record.chosen[i] for i in judged]
    with warnings.catch_warnings():
        # A chosen answer that is nowhere the right one is no fault.
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", message="A single label was found")
        return float(balanced_accuracy_score(expected, given))


def _gain(record: Record, unsteered: Record) -> float:
    pairs = [
        (a, b)
        for a, b in zip(record.values, unsteered.values, strict=True)
        if a is not None and b is not None
    ]
    gain = sum(a - b for a, b in pairs) / max(len(pairs), 1)
    return gain if record.higher_is_better else -gain


def _collapsed(record: Record, unsteered: Record, answer: str) -> bool:
    def given(of: Record) -> list[float | None]:
        return [None if i is None else float(_name(of, i) == answer) for i in of.chosen]

    rise = compare_paired(given(record), given(unsteered))
    return rise.low is not None and rise.low > 0


class _Stayed(NamedTuple):
    said: str
    surely: bool


def _balanced_stayed(record: Record, unsteered: Record, judged: Sequence[int]) -> _Stayed | None:
    """Say how balanced accuracy stayed as it was or where one answer alone has it; None if it rose.

    It is the mean of the documents' rightness, weighted against the frequency of their class, and
    so can be compared document by document.
    """
    counts = Counter(record.gold[index][0] for index in judged)

    def weighted(of: Record) -> list[float]:
        right = _right(of)
        weight = {name: len(judged) / (len(counts) * count) for name, count in counts.items()}
        return [bool(right[index]) * weight[record.gold[index][0]] for index in judged]

    after = weighted(record)
    rise = compare_paired(after, weighted(unsteered))
    if (rise.difference or 0.0) < 0.005:  # what two decimals show
        return _Stayed("did not rise", surely=True)
    if rise.low is None or rise.low <= 0:
        return _Stayed("did not rise beyond noise", surely=False)
    above = compare_paired(after, [1 / len(counts)] * len(judged))
    if above.low is None or above.low <= 0:
        return _Stayed("is not above that of one answer alone", surely=True)
    return None
