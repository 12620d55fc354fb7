"""How good the scores of a document are: what K and delta are chosen by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.metrics import is_number, mean_metrics
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.options import Objective, RuleName
from sadi_lmeval.pairs.contrasts import gold_and_wrong
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.steering.rules import OF_LIKELIHOOD


class Judged(NamedTuple):
    """Of one document: the objective, the margin that decides between equals, and the likelihood.

    Objective and margin are nan where a score is not finite: such a setting is never chosen.

    Attributes:
        likelihood: log-likelihood of the right choices among all; None where there are no choices.
    """

    value: float
    margin: float
    likelihood: float | None = None


def resolved(objective: Objective, task: RunTask) -> Objective:
    """Say what ``auto`` means for a task.

    A generation task is judged by the log-likelihood of its target, a token: to generate under
    every setting would cost more than the run.

    Raises:
        UserError: the task has no such objective.
    """
    generates = task.output_type == "generate_until"
    if objective == "auto":
        return "likelihood" if generates else "metric"
    if objective == "metric" and generates:
        raise UserError(
            f"objective=metric: task {task.name} generates text, which is not done while tuning; "
            "pass objective=likelihood or objective=exact_match"
        )
    answers = generates or (objective == "exact_match" and task.output_type == "multiple_choice")
    if objective in ("likelihood", "exact_match") and not answers:
        raise UserError(
            f"objective={objective}: is for tasks that generate text; task {task.name} "
            f"({task.output_type}) is judged by objective=metric"
        )
    return objective


def resolved_rule(rule: RuleName, task: RunTask) -> RuleName:
    """Say what ``auto`` means, and whether a rule is one for a task.

    Raises:
        UserError: the rule goes by the likelihood of choices, and the task has none.
    """
    if rule == "auto":
        return "sure"
    if rule in OF_LIKELIHOOD and task.output_type != "multiple_choice":
        raise UserError(
            f"rule={rule}: goes by the likelihood of the right choice; task {task.name} "
            f"({task.output_type}) has no choices; pass rule=sure or rule=best"
        )
    return rule


def judge(
    task: RunTask,
    recipe: Recipe,
    document: Document,
    scores: Sequence[Score],
    lengths: Sequence[int],
    objective: Objective,
) -> Judged:
    """Judge the scores of one document's requests.

    Args:
        task: its metric decides: the first that is the mean of one number a document.
        recipe: says which choices are right.
        document: the document.
        scores: of each of its requests.
        lengths: tokens of each of its continuations.
        objective: not ``auto``.
    """
    if not all(math.isfinite(value) for value, _ in scores):
        return Judged(math.nan, math.nan)
    chooses = task.output_type == "multiple_choice"
    if objective != "metric" and not chooses:
        (value, greedy), a_token = scores[0], scores[0][0] / lengths[0]
        return Judged(float(greedy) if objective == "exact_match" else a_token, value)
    margin, likelihood = scores[0][0], None
    if chooses:
        right, wrong = gold_and_wrong(task, recipe, document)
        values = [value for value, _ in scores]
        known = bool(right and wrong)  # the harness scores documents without a gold choice too
        margin = max(values[i] for i in right) - max(values[i] for i in wrong) if known else 0.0
        among = np.logaddexp.reduce([values[i] for i in right]) - np.logaddexp.reduce(values)
        likelihood = float(among) if known else 0.0
    if objective == "exact_match":  # under teacher forcing: a right choice is the greedy one
        return Judged(float(any(scores[i][1] for i in right)), margin, likelihood)
    metrics = task.task.process_results(document, list(scores))
    better = task.task.higher_is_better()
    for name in mean_metrics(task.task, metrics):
        if is_number(metrics.get(name)):
            value = float(metrics[name]) * (1 if better.get(name, True) else -1)
            return Judged(value, margin, likelihood)
    return Judged(margin, margin, likelihood)
