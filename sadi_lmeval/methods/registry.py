"""The methods that are installed: ours, and those of other packages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from sadi_lmeval.arguments import declared
from sadi_lmeval.controls import CONTROLS, PROMPT_ONLY, RANDOM, SHUFFLED, is_control
from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.methods.base import Method
from sadi_lmeval.plugins import loaded
from sadi_lmeval.registration import METHODS as GROUP

logger = logging.getLogger("lm_eval.sadi")

UNSTEERED = "none"
"""The arm of the unsteered model, which every other one is compared with."""
ALL = "all"
"""In a list of arms: every arm of every method."""


class ArmName(NamedTuple):
    """What stands behind the name of an arm.

    Attributes:
        method: None: the unsteered model.
        sets: the method's arguments that the name sets.
        usual: whether ``compare`` takes it by default.
        shared: the arguments of all methods that the name sets.
    """

    method: type[Method] | None
    sets: Mapping[str, Any]
    usual: bool
    shared: Mapping[str, Any]


@cache
def _points() -> dict[str, EntryPoint]:
    """List entry points by name, ours first; of two of one name the first counts."""
    points = sorted(entry_points(group=GROUP), key=lambda p: (not _is_ours(p), p.name))
    by_name: dict[str, EntryPoint] = {}
    for point in points:
        by_name.setdefault(point.name, point)
    return by_name


def _is_ours(point: EntryPoint) -> bool:
    return point.value.startswith("sadi_lmeval.")


def method_names() -> list[str]:
    """List the installed methods, without importing any."""
    return list(_points())


@cache
def method_class(name: str) -> type[Method]:
    """Load a method.

    Raises:
        UserError: there is no such method, which lists those that there are; or it cannot be
            loaded.
    """
    if name not in _points():
        raise UserError(f"unknown method {name!r}: {nearest(name, _points())}")
    point = _points()[name]
    method = loaded(point, "method")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method {name!r}: {point.value} is no subclass of sadi_lmeval.Method")
    if method.name != name:
        raise UserError(f"method {name!r}: {point.value} calls itself {method.name!r}")
    return method


@cache
def methods() -> dict[str, type[Method]]:
    """Load every method; a stranger's that cannot be loaded is left out, with a warning."""
    classes = {}
    for name, point in _points().items():
        try:
            classes[name] = method_class(name)
        except UserError as error:
            if _is_ours(point):
                raise
            logger.warning("%s; it is left out", error)
    return classes


@cache
def arm_names() -> dict[str, ArmName]:
    """List every arm: the unsteered one, those of each method, the ablations, ``prompt-only``.

    The shuffled control of each is not listed, see :func:`arm_named`.
    """
    every = {UNSTEERED: ArmName(None, {}, True, {})}
    for usual in (True, False):
        for name, method in methods().items():
            listed = method.arms if usual else method.ablations
            mine = usual and _is_ours(_points()[name])
            for arm, sets in listed.items():
                every.setdefault(arm, ArmName(method, sets, mine, {}))
    every[PROMPT_ONLY] = ArmName(None, {}, False, {})
    return every


def arm_named(name: str) -> ArmName:
    """Look an arm up; every one that steers has a control, ``NAME-shuffled``.

    Raises:
        UserError: there is none, naming the nearest ones.
    """
    every = arm_names()
    if name in every:
        return every[name]
    controlled = every.get(name.removesuffix(SHUFFLED))
    if controlled is None or controlled.method is None:
        raise UserError(f"unknown method {name!r}: {nearest(name, [*every, CONTROLS, ALL])}")
    return controlled._replace(usual=False, shared={"labels": "shuffled"})


def spelled_out(names: Sequence[str]) -> list[str]:
    """Put the rows that they stand for in place of ``all`` and ``controls`` in a list of arms.

    ``all`` are the unsteered model and every arm of every method, but for ablations; ``controls``
    are the shuffled control of every arm that is fitted, and two that there are once. An arm that
    is fitted on nothing has no labels to shuffle: it is left out with a line.

    Raises:
        UserError: no arm is there to be controlled.
    """
    every = [name for name in arm_names() if is_arm(name)]
    names = [n for name in names for n in ([UNSTEERED, *every] if name == ALL else [name])]
    names = list(dict.fromkeys(names))
    if CONTROLS not in names:
        return names
    listed = [name for name in names if name != CONTROLS]
    steer = [n for n in listed if arm_named(n).method is not None and not is_control(n)]
    if not steer:
        raise UserError(
            f"--methods {','.join(names)}: {CONTROLS} are of methods that steer; name one beside "
            "them, as in none,caa,controls"
        )
    unfitted = [name for name in steer if _is_unfitted(name)]
    if unfitted:
        logger.info(
            "%s: fitted on nothing, so %s has no shuffled control",
            ", ".join(unfitted), "it" if len(unfitted) == 1 else "each",
        )  # fmt: skip
    fitted = [name + SHUFFLED for name in steer if name not in unfitted]
    added = [*fitted, RANDOM, PROMPT_ONLY]
    return list(dict.fromkeys([*listed, *added]))


def _is_unfitted(name: str) -> bool:
    method = arm_named(name).method
    return method is not None and method.fitted_on == "nothing"


def is_arm(name: str) -> bool:
    """Return whether a name is among the arms of its method, not its ablations."""
    method = arm_named(name).method
    return method is not None and name in method.arms


def usual_arms() -> list[str]:
    """List the arms that commands take where the user names none."""
    return [name for name, arm in arm_names().items() if arm.usual]


def check_arm_names(names: Iterable[str]) -> None:
    """Refuse a name that no method has.

    Raises:
        UserError: naming the nearest ones.
    """
    for name in names:
        arm_named(name)


def argument_names(method: type[Method] | Method) -> frozenset[str]:
    """Name a method's own arguments, its axes among them: all of a class, else those it has."""
    return frozenset([*declared(method), *method.axes.names])


def all_argument_names() -> frozenset[str]:
    """Name the own arguments of every method."""
    return frozenset().union(*(argument_names(each) for each in methods().values()))
