"""Whether two methods differ on the same documents: paired tests, scipy's and statsmodels' own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import bootstrap, sem
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

SEED = 0
RESAMPLES = 9999
LEVEL = 0.05
"""A difference whose adjusted p is below this is called significant."""
_NUMBERS = 1 << 22
"""Resampled numbers held at a time, which bounds the memory."""


class Comparison(NamedTuple):
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

    test: Literal["mcnemar", "bootstrap"]
    documents: int
    unpaired: int
    difference: float | None
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None


def compare_paired(
    values: Sequence[float | None], baseline: Sequence[float | None], seed: int = SEED
) -> Comparison:
    """Compare two methods' values of the same documents.

    Where every value is 0 or 1, p is that of the exact McNemar test. Otherwise it is twice the
    smaller share of bootstrap means on either side of 0, the sample counted as one of them, which
    goes with the percentile interval. Few documents make a bootstrap too sure of itself (one alone
    would be certain), so its p is not let below the sign-flip test's least, 2 / 2^m for m documents
    that differ.

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
        return Comparison("bootstrap", 0, unpaired, None, None, None, None, None)
    after, before = np.array(pairs, dtype=np.float64).T
    differences = after - before
    differing = int(np.count_nonzero(differences))
    binary = bool(np.isin(pairs, (0, 1)).all())
    low: float | None = None
    high: float | None = None
    if not differing:
        low, high, p = 0.0, 0.0, 1.0
    elif count == 1:  # nothing to resample
        p = 1.0
    else:
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
        p = min(1.0, max(2 * side / (RESAMPLES + 1), 2.0 ** (1 - differing)))
    if binary:
        table = [
            [int(((before == x) & (after == y)).sum()) for y in (0, 1)] for x in (0, 1)
        ]  # fmt: skip
        p = float(mcnemar(table, exact=True).pvalue)
    return Comparison(
        "mcnemar" if binary else "bootstrap",
        count,
        unpaired,
        float(differences.mean()),
        float(sem(differences)) if count > 1 else None,
        low,
        high,
        p,
    )


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment of the p of one family; None stays None and does not count."""
    known = [value for value in p if value is not None]
    if not known:
        return list(p)
    adjusted = iter(multipletests(known, method="holm")[1])
    return [None if value is None else float(next(adjusted)) for value in p]
