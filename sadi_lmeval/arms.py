"""Ways of steering by name, as sweeps and comparisons list them: ``sadi-head``, ``iti``, …."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.options import Element, Options
from sadi_lmeval.settings import Parameters

_ARMS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    **{f"sadi-{element}": {"element": element} for element in get_args(Element)},
    # They have no clean activations, whatever SADI is to have.
    "iti": {"method": "iti", "activations": "live"},
    "caa": {"method": "caa", "activations": "live"},
    # The ablations of SADI's table 4.
    "random": {"element": "head", "selection": "random"},
    "fixed": {"element": "head", "steering": "fixed"},
    **{f"random-{e}": {"element": e, "selection": "random"} for e in ("neuron", "hidden")},
    **{f"fixed-{e}": {"element": e, "steering": "fixed"} for e in ("neuron", "hidden")},
}
NAMES = tuple(_ARMS)


def check_arms(names: list[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UserError: naming the nearest ones.
    """
    for name in names:
        if name not in _ARMS:
            raise UserError(f"unknown method {name!r}: {nearest(name, _ARMS)}")


def arm(name: str, shared: Options) -> Options:
    """The options of a way of steering.

    Args:
        name: a known one.
        shared: what the user gave for all of them.
    """
    return replace(shared, **{"method": "sadi", **_ARMS[name]})


def parameters_of(name: str) -> Parameters:
    """What a way of steering calls the two numbers of a setting."""
    return arm(name, Options()).parameters
