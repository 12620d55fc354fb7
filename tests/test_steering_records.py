"""What ``config.sadi`` says of a task comes back unchanged, for every method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from conftest import Evaluate
from lm_eval.tasks import TaskManager

from sadi_lmeval.methods.arm import read_arms
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import arm_names
from sadi_lmeval.records.steering import SteeringRecord
from sadi_lmeval.types import Size

STEERED = [name for name, arm in arm_names().items() if arm.method is not None]
TASKS = ("tiny_choice", "tiny_folds", "tiny_text")
"""One fit of pairs of choices, two fits, one fit of pairs of targets."""
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


def strengths(arm: str, value: float | None) -> dict[str, Any]:
    """A number of each axis: the least one, and of the strength another."""
    axes = method_of(arm).axes
    numbers = {axis.name: max(axis.least or 0, 1) for axis in axes if not axis.strength}
    return {**numbers, **{axis.name: value for axis in axes if axis.strength}}


def chosen_of_a_grid(arm: str, cache: Path) -> dict[str, Any]:
    space = method_of(arm).search_space(SIZE).thinned(3)
    return {"grid": "x".join("/".join(map(str, v)) for v in space.values), "n_tune": 12}


def given(arm: str, cache: Path) -> dict[str, Any]:
    return strengths(arm, 3)


def given_as_0(arm: str, cache: Path) -> dict[str, Any]:
    return strengths(arm, 0)


def switched_off(arm: str, cache: Path) -> dict[str, Any]:
    return {"method": "none"}


def fitted_to_another_task(arm: str, cache: Path) -> dict[str, Any]:
    return {**strengths(arm, 3), "mask_from": "tiny_folds"}


def fitted_by_hand(arm: str, cache: Path) -> dict[str, Any]:
    return {**strengths(arm, 3), "mask": str(next(cache.glob("*.safetensors")))}


WAYS = [
    chosen_of_a_grid,
    given,
    given_as_0,
    switched_off,
    fitted_to_another_task,
    fitted_by_hand,
]
"""The last takes a fit of those before it."""


def come_back(found: dict[str, Any]) -> SteeringRecord:
    """Read a record, and see that nothing is lost and nothing added."""
    plain = json.loads(json.dumps(found, allow_nan=False))
    record = SteeringRecord.from_json(plain)
    again = record.to_json()
    assert json.loads(json.dumps(again, allow_nan=False)) == plain
    assert SteeringRecord.from_json(again) == record
    return record


@pytest.mark.parametrize("arm", STEERED)
def test_a_record_of_every_method_survives_being_read_and_written_again(
    evaluate: Evaluate, tmp_path: Path, arm: str
) -> None:
    kind, cache = arm_names()[arm].method, tmp_path / "cache"
    assert kind is not None
    seen: dict[str, list[SteeringRecord]] = {}
    for way in WAYS:
        tasks = TASKS[:1] if way is fitted_by_hand else TASKS
        arguments = {**arm_names()[arm].sets, **way(arm, cache)}
        found = evaluate(*tasks, model=f"hf-{kind.name}", limit=3, **arguments)["config"]["sadi"]
        assert list(found) == list(tasks)
        seen[way.__name__] = [come_back(found[task]) for task in tasks]
        if way is given:  # a fit for the last
            for path in cache.glob("*.safetensors"):
                if path.name != found["tiny_choice"]["fits"][0]["cache_key"] + ".safetensors":
                    assert path.is_file()
    assert [len(r.fits) for r in seen["chosen_of_a_grid"]] == [1, 2, 1]
    assert all(fit.tuning is not None for r in seen["chosen_of_a_grid"] for fit in r.fits)
    assert all(fit.tuning is None for r in seen["given"] for fit in r.fits)
    assert [r.fits for r in seen["given_as_0"] + seen["switched_off"]] == [()] * 6
    assert {r.mask_from for r in seen["fitted_to_another_task"][::2]} == {"tiny_folds"}
    assert {r.fit_file is not None for r in seen["fitted_by_hand"]} == {True}
