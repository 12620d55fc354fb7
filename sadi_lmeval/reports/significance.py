"""Whether two methods differ on the same documents: paired tests, scipy's and statsmodels' own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import bootstrap, permutation_test, sem, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

SEED = 0
RESAMPLES = 9999
LEVEL = 0.05
"""A difference whose adjusted p is below this is called significant."""
_FEW = 20
"""Documents that differ up to which signs are flipped, as a bootstrap of so few is too sure."""
_NUMBERS = 1 << 22
"""Resampled numbers held at a time, which bounds the memory."""


Test = Literal["mcnemar", "sign flips", "bootstrap"]


class PairedTest(NamedTuple):
    """A method against the unsteered model.

    Attributes:
        test: that ``p`` comes from.
        documents: with a finite value on both sides: all that is compared.
        unpaired: the other documents.
        difference: mean of the document-wise differences.
        stderr: its standard error; None for a single document.
        low: of the difference's 95 % interval (percentile bootstrap).
        high: of that interval.
        p: two-sided.
    """

    test: Test
    documents: int
    unpaired: int
    difference: float | None
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None


def compare_paired(
    values: Sequence[float | None], baseline: Sequence[float | None], seed: int = SEED
) -> PairedTest:
    """Compare two methods' values of the same documents.

    Where every value is 0 or 1, p is that of the exact McNemar test. Otherwise, where at most 20
    documents differ, it is that of the sign-flip test (exact up to 13); else twice the smaller
    share of bootstrap means on either side of 0, the sample counted as one of them, which goes with
    the percentile interval.

    Args:
        values: of each document; None or not finite: not compared.
        baseline: of the same documents.
        seed: of the bootstrap.
    """
    pairs = [
        (a, b)
        for a, b in zip(values, baseline, strict=True)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    count, unpaired = len(pairs), len(values) - len(pairs)
    if not pairs:
        return PairedTest("bootstrap", 0, unpaired, None, None, None, None, None)
    after, before = np.array(pairs, dtype=np.float64).T
    differences = after - before
    differing = int(np.count_nonzero(differences))
    binary = bool(np.isin(pairs, (0, 1)).all())
    low: float | None = None
    high: float | None = None
    p = 1.0
    test: Test = "bootstrap"
    if not differing:
        low, high = 0.0, 0.0
    elif count > 1:  # of one document there is nothing to resample
        drawn = bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, _NUMBERS // count),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = (float(end) for end in drawn.confidence_interval)
        means = drawn.bootstrap_distribution
        side = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
        p = min(1.0, 2 * side / (RESAMPLES + 1))
    if binary:
        table = [
            [int(((before == x) & (after == y)).sum()) for y in (0, 1)] for x in (0, 1)
        ]  # fmt: skip
        p, test = float(mcnemar(table, exact=True).pvalue), "mcnemar"
    elif 0 < differing <= _FEW:
        p, test = _flipped(differences[differences != 0], seed), "sign flips"
    return PairedTest(
        test,
        count,
        unpaired,
        float(differences.mean()),
        float(sem(differences)) if count > 1 else None,
        low,
        high,
        p,
    )


def _flipped(differences: np.ndarray, seed: int) -> float:
    """Give the sign-flip test's p: without a difference each would have either sign as often."""
    if len(differences) == 1:
        return 1.0
    test = permutation_test(
        (differences,),
        lambda values, axis: values.sum(axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


class Mean(NamedTuple):
    """The mean of several tasks' means, each of which counts alike.

    Attributes:
        value: the mean.
        stderr: its standard error; None where a task has one document alone.
        p: two-sided, that the mean is 0 (t test).
    """

    value: float
    stderr: float | None
    p: float | None


def mean_over_tasks(tasks: Sequence[Mapping[str, Sequence[float]]]) -> Mean:
    """Average tasks, with the error that documents in several of them make.

    What a document adds to the mean is summed over its tasks before it is squared: two tasks over
    the same documents are not two samples. Of tasks that share none this is the usual error, the
    root of the summed squares.

    Args:
        tasks: of each, the numbers of its documents by what identifies a document.
    """
    every = [np.concatenate([np.asarray(n, float) for n in task.values()]) for task in tasks]
    value = float(np.mean([numbers.mean() for numbers in every]))
    if any(len(numbers) < 2 for numbers in every):
        return Mean(value, None, None)
    added: dict[str, float] = {}
    for task, numbers in zip(tasks, every, strict=True):
        count, mean = len(numbers), float(numbers.mean())
        weight = math.sqrt(count / (count - 1)) / (count * len(tasks))
        for document, own in task.items():
            part = weight * (math.fsum(own) - len(own) * mean)
            added[document] = added.get(document, 0.0) + part
    stderr = math.hypot(*added.values())
    if stderr == 0:
        return Mean(value, 0.0, 1.0 if value == 0 else None)
    return Mean(value, stderr, float(2 * t.sf(abs(value) / stderr, len(added) - 1)))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Give Holm's adjustment of the p of one family; None stays None and does not count."""
    known = [value for value in p if value is not None]
    if not known:
        return list(p)
    adjusted = iter(multipletests(known, method="holm")[1])
    return [None if value is None else float(next(adjusted)) for value in p]
