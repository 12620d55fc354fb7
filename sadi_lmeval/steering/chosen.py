"""What a fit's card says of the setting that was chosen for it, and on which documents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sadi_lmeval.harness.metrics import mean_metrics
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.pairs.sources import identity
from sadi_lmeval.steering.outcome import Choice

_OF_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""A data set; any other path may be one of this machine's, which is nobody else's."""


def card_of(
    choice: Choice, task: RunTask, documents: Sequence[Document], arm: Mapping[str, Any]
) -> dict[str, Any]:
    """Say how the chosen setting did beside the unsteered model, and on which documents.

    Args:
        choice: that was made.
        task: that the documents were judged by.
        documents: that it was made on.
        arm: the method with its arguments.

    Returns:
        ``choice``, the numbers; and ``chosen_on``, what the documents are known by: a setting that
        was chosen on them may no more be scored on them than a fit on its pairs.
    """
    metric, sign = _metric(task, choice.objective)
    taken, plain = choice.outcomes[choice.chosen], choice.outcomes[0]
    steers = choice.axes.steers(choice.setting)
    known = [identity(task, document) for document in documents]
    config = task.task.config
    of_the_hub = _OF_THE_HUB.fullmatch(str(config.dataset_path)) is not None
    return {
        "choice": {
            "arm": dict(arm),
            "setting": choice.axes.named(choice.setting) if steers else {},
            "steers": steers,
            "task": task.name,
            "dataset": config.dataset_path if of_the_hub else None,
            "dataset_config": config.dataset_name if of_the_hub else None,
            "metric": metric,
            "rule": choice.rule,
            "n_documents": choice.documents,
            "n_settings": len(choice.outcomes) - 1,
            "unsteered": _signed(plain.score, sign),
            "score": _signed(taken.score, sign),
            "score_stderr": taken.stderr,
            "difference": _signed(taken.difference, sign),
            "difference_stderr": taken.difference_stderr,
            "p_max": choice.p_max,
        },
        "chosen_on": {
            "documents": [each.content for each in known],
            "questions": [each.question for each in known if each.question],
        },
    }


def _metric(task: RunTask, objective: str) -> tuple[str, int]:
    """Name what an objective is, and say whether the tuning has turned its sign."""
    if objective == "exact_match":
        return "exact_match", 1
    if objective == "likelihood":
        return "log_likelihood_per_token", 1
    better = task.task.higher_is_better()
    names = mean_metrics(task.task, ())
    return (names[0], 1 if better.get(names[0], True) else -1) if names else ("margin", 1)


def _signed(value: float | None, sign: int) -> float | None:
    return None if value is None else sign * value
