"""What ``config.sadi`` says of a task comes back unchanged, for every method and way to steer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partialmethod
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from conftest import Evaluate
from helpers.equations import EQUATIONS
from helpers.vector_files import needed
from sadi_lmeval.methods.arm import read_arms
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import arm_names
from sadi_lmeval.records.steering import ChoiceRecord, SteeringRecord
from sadi_lmeval.types import Size

STEERED = [name for name, arm in arm_names().items() if arm.method and not needed(arm.method)]
"""That are fitted to pairs; of a vector out of a file see ``test_vector.py``."""
FITS = {"tiny_choice": 1, "tiny_folds": 2, "tiny_text": 1}
"""How many fits tasks have: of pairs of choices, of two folds, of pairs of targets."""
SIZE = Size(3, 4)
"""Of the tiny model's heads: it has no smaller site."""


@pytest.fixture(autouse=True)
def without_the_harness_s_tasks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        init = partialmethod(TaskManager.__init__, include_defaults=False)
        patch.setattr(TaskManager, "__init__", init)
        yield


def method_of(arm: str) -> Method:
    method = read_arms([arm], {})[arm].method
    assert method is not None
    return method


def numbers_of(arm: str, strength: float) -> dict[str, Any]:
    """A strength, and of the other axes the least number that steers; of both at most the most."""
    return {
        axis.name: min(
            strength if axis.strength else max(axis.least or 0, 1),
            math.inf if axis.most is None else axis.most,
        )
        for axis in method_of(arm).axes
    }


def come_back(found: dict[str, Any]) -> SteeringRecord:
    """Read a record, and see that nothing is lost and nothing added."""
    plain = json.loads(json.dumps(found, allow_nan=False))
    record = SteeringRecord.from_json(plain)
    again = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert again == plain
    assert SteeringRecord.from_json(again) == record
    return record


class Run:
    """A run of one arm on a task of each kind."""

    def __init__(self, evaluate: Evaluate, arm: str) -> None:
        self.arm, self._evaluate = arm, evaluate
        self.kind = method_of(arm).name
        self.tasks = EQUATIONS[self.kind].form.tasks
        self.fits = {task: count for task, count in FITS.items() if task in self.tasks}

    def entries(self, *tasks: str, **arguments: Any) -> dict[str, dict[str, Any]]:
        """What the results file says of each task, which are asked in the form for the method."""
        given = {**arm_names()[self.arm].sets, **arguments}
        plain = tasks or tuple(self.fits)
        asked = [self.tasks[task] for task in plain]
        samples = {"samples": {task: [0, 1, 30] for task in asked}}  # of both folds
        found: dict[str, dict[str, Any]] = self._evaluate(
            *asked, model=f"hf-{self.kind}", limit=None, settings=samples, **given
        )["config"]["sadi"]
        assert list(found) == asked
        return dict(zip(plain, found.values(), strict=True))

    def records(self, *tasks: str, **arguments: Any) -> dict[str, SteeringRecord]:
        """The same, read and written and read again."""
        entries = self.entries(*tasks, **arguments)
        return {task: come_back(entry) for task, entry in entries.items()}


@pytest.fixture(params=STEERED)
def run(evaluate: Evaluate, request: pytest.FixtureRequest) -> Run:
    return Run(evaluate, request.param)


def test_a_record_of_chosen_settings_survives_being_read_and_written(run: Run) -> None:
    space = method_of(run.arm).search_space(SIZE).thinned(3)
    grid = "x".join("/".join(map(str, values)) for values in space.values)
    records = run.records(grid=grid, n_tune=12)
    assert {task: len(record.fits) for task, record in records.items()} == run.fits
    for record in records.values():
        assert all(fit.tuning and len(fit.tuning.table) > 1 for fit in record.fits)
        assert record.setting.keys() == set(record.axes) == set(method_of(run.arm).axes.names)


def test_a_choice_of_an_earlier_release_says_what_it_said() -> None:
    for beats in (True, False):
        said = {"objective": "metric", "documents": 9, "chosen": {"top_k": 2}, "table": [{"a": 1}]}
        record = ChoiceRecord.from_json({**said, "beats_unsteered": beats})
        assert record is not None
        assert (record.rule, record.p_max, record.beats_unsteered) == (None, None, beats)
        assert record.to_json() == {**said, "beats_unsteered": beats}


def test_a_record_of_a_given_setting_survives_being_read_and_written(run: Run) -> None:
    numbers = numbers_of(run.arm, 3)
    records = run.records(**numbers)
    assert {task: len(record.fits) for task, record in records.items()} == run.fits
    for record in records.values():
        assert [(fit.setting, fit.tuning) for fit in record.fits] == [(numbers, None)] * len(
            record.fits
        )


@pytest.mark.parametrize(
    "run", [arm for arm in STEERED if any(a.strength for a in method_of(arm).axes)], indirect=True
)
def test_a_record_of_the_strength_0_survives_being_read_and_written(run: Run) -> None:
    records = run.records(**numbers_of(run.arm, 0))
    assert [record.fits for record in records.values()] == [()] * len(run.fits)


def test_a_record_of_a_method_that_is_switched_off_survives_being_read_and_written(
    run: Run,
) -> None:
    for record in run.records(method="none").values():
        assert (record.arguments, record.axes, record.fits) == ({"method": "none"}, (), ())


def test_a_record_of_another_task_s_fit_survives_being_read_and_written(run: Run) -> None:
    folds = run.tasks["tiny_folds"]
    records = run.records(**numbers_of(run.arm, 3), mask_from=folds)
    sources = {task: record.mask_from for task, record in records.items()}
    assert sources == {task: None if task == "tiny_folds" else folds for task in run.fits}
    assert len(sources) > 1


def test_a_record_of_a_fit_that_is_given_by_hand_survives_being_read_and_written(
    run: Run,
) -> None:
    numbers = numbers_of(run.arm, 3)
    [fit] = run.entries("tiny_choice", **numbers)["tiny_choice"]["fits"]
    [record] = run.records("tiny_choice", **numbers, mask=fit["file"]).values()
    assert record.fit_file == f"{fit['cache_key']}.safetensors"
    assert record.recipe is record.recipe_digest is record.pairs_from is None
