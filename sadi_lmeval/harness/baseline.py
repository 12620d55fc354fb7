"""The unsteered model's scores beside the steered ones, in the harness's own results.

A task that has been answered twice gives two more numbers of a document: ``METRIC_unsteered``, and
``METRIC_difference`` where the metric is the mean of one number a document. The harness makes of
them what it makes of the task's own: rows of its table with their standard errors, which of a
difference is that of paired documents, entries of its results file, and of its samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from sadi_lmeval.harness.metrics import is_number, mean_metrics

UNSTEERED = "_unsteered"
DIFFERENCE = "_difference"

_METHODS = ("apply_filters", "doc_iterator", "process_results", "aggregation", "higher_is_better")


class Baseline:
    """The unsteered responses to a task's requests, until the harness has made its results.

    Attributes:
        task: whose methods give the numbers of both, from the moment when its filters are applied:
            before that, settings are chosen by it.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._responses: dict[int, list[Any]] = {}
        self._of_document: dict[int, list[Instance]] = {}
        self._filters: Iterator[str] = iter(())
        self._filter: str | None = None
        self._document: int | None = None
        self._own: dict[str, Callable[..., Any]] = {n: getattr(task, n) for n in _METHODS}
        known = self._own["aggregation"]()
        self._unpaired = set(known) - set(mean_metrics(task, known))
        self._take("apply_filters")

    def note(self, request: Instance, response: Any) -> None:
        """Keep an unsteered response, in the order in which the harness keeps the steered ones."""
        self._responses.setdefault(id(request), []).append(response)

    def _take(self, *names: str) -> None:
        for name in names:
            setattr(self.task, name, getattr(self, f"_{name}"))

    def _apply_filters(self) -> Any:
        """Filter both kinds of responses; from now on the task gives the numbers of both."""
        steered = self.task.instances
        unsteered = [copy.copy(each) for each in steered]
        for mine, its in zip(unsteered, steered, strict=True):
            mine.resps, mine.filtered_resps = self._responses.get(id(its), []), {}
        self.task._instances = unsteered
        try:
            self._own["apply_filters"]()
        finally:
            self.task._instances = steered
        for each in sorted(unsteered, key=lambda instance: instance.idx):
            self._of_document.setdefault(each.doc_id, []).append(each)
        self._filters = iter(list(unsteered[0].filtered_resps))
        self._take(*_METHODS[1:])
        return self._own["apply_filters"]()

    def _doc_iterator(self, **which: Any) -> Iterator[tuple[int, Any]]:
        """Go through the documents once a filter, as the harness does, noting which is at hand."""
        self._filter = next(self._filters, None)
        for index, document in self._own["doc_iterator"](**which):
            self._document = index
            yield index, document
        self._filter = self._document = None

    def _process_results(self, document: Any, results: Sequence[Any]) -> dict[str, Any]:
        process = self._own["process_results"]
        steered: dict[str, Any] = process(document, results)
        if self._filter is None or self._document is None:
            return steered
        mine = [each.filtered_resps[self._filter] for each in self._of_document[self._document]]
        unsteered: dict[str, Any] = process(document, mine)
        differences = {
            name + DIFFERENCE: float(value) - float(unsteered[name])
            for name, value in steered.items()
            if name not in self._unpaired and is_number(value) and is_number(unsteered.get(name))
        }
        return {
            **steered,
            **{name + UNSTEERED: value for name, value in unsteered.items()},
            **differences,
        }

    def _aggregation(self) -> dict[str, Callable[..., Any]]:
        own = self._own["aggregation"]()
        return {
            **own,
            **{name + UNSTEERED: how for name, how in own.items()},
            **{name + DIFFERENCE: mean for name in own},
        }

    def _higher_is_better(self) -> dict[str, Any]:
        own = self._own["higher_is_better"]()
        ends = ("", UNSTEERED, DIFFERENCE)
        return {name + end: better for end in ends for name, better in own.items()}


def baseline_of(task: Task) -> Baseline:
    """Give the baseline of a task in this run."""
    known = getattr(vars(task).get("apply_filters"), "__self__", None)
    return known if isinstance(known, Baseline) else Baseline(task)


def forget_baseline(task: Task) -> None:
    """Give a task its own methods back; done before each run, whatever model is scored."""
    for name in _METHODS:
        if isinstance(getattr(vars(task).get(name), "__self__", None), Baseline):
            delattr(task, name)
