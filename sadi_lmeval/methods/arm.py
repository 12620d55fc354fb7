"""A method with its arguments, and what the user has fixed of its settings: one way of steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sadi_lmeval import arguments
from sadi_lmeval.controls import INSTRUCTION, PROMPT_ONLY, SHUFFLED
from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import (
    UNSTEERED,
    all_argument_names,
    argument_names,
    arm_named,
    arm_names,
    method_class,
)
from sadi_lmeval.options import NAMES, Options, read_options
from sadi_lmeval.settings import Axes, SearchSpace, read_search_space
from sadi_lmeval.types import Size

Number = float | Literal["auto"] | None
"""Of an axis: a number, ``auto`` where it is to be chosen, None where the user gives nothing."""

SETTING_NAMES = ("grid", "max_settings")
"""Arguments about settings that every method has beside its axes."""


@dataclass(frozen=True)
class Arm:
    """One way of steering, as a row of a table has it.

    Attributes:
        name: ``sadi-head``, ``random``, …; of a run alone the method's own.
        method: None: the unsteered model.
        options: what all methods share.
        given: of each axis what the user gave.
        space: the search space that the user gave, or None for the method's own.
        instruction: what stands before its prompts, and before those of no other arm; None: nothing
            does.
    """

    name: str
    method: Method | None
    options: Options
    given: tuple[Number, ...] = ()
    space: SearchSpace | None = None
    instruction: str | None = None

    @property
    def axes(self) -> Axes:
        return Axes() if self.method is None else self.method.axes

    @property
    def label(self) -> str:
        """The name of the row that it would be in a comparison, as far as one is like it."""
        if self.method is None or self.name != self.method.name:
            return self.name
        alike = {name: len(arm.sets) for name, arm in arm_names().items() if self.is_like(name)}
        label = max(alike, key=alike.__getitem__, default=self.name)
        return label + SHUFFLED if self.options.labels == "shuffled" else label

    @property
    def is_unsteered(self) -> bool:
        return self.method is None or any(
            axis.strength and number == 0
            for axis, number in zip(self.axes, self.given, strict=True)
        )

    @property
    def is_chosen(self) -> bool:
        """Whether the arguments leave a number to be chosen on held-out documents."""
        if self.is_unsteered:
            return False
        return "auto" in self._numbers() or self.space is not None

    def search_space(self, size: Size | None = None) -> SearchSpace:
        """List the settings to choose from.

        It is the user's or the method's own, a number that the user fixed in place of its values.
        Where some axes are given and others not, those have their usual values.

        Args:
            size: of the model's site, where known: the method's own goes no further.
        """
        assert self.method is not None
        space, numbers = self.space or self.method.search_space(size), self.given
        if self.space is None:
            numbers = self._numbers()
            usual = [a.name for a, g in zip(self.axes, self.given, strict=True) if g is None]
        for axis, number in zip(self.axes, numbers, strict=True):
            if number is None or number == "auto":
                continue
            most = None if size is None else axis.bound(size)
            if self.space is None and axis.name in usual and most is not None:
                number = min(number, most)  # a usual K goes no further than the model
            space = space.with_values(axis.name, number)
        return space

    def largest(self) -> dict[str, float]:
        """Give the largest number of each axis that the user asks for."""
        if self.space is not None:
            return self.search_space().largest()
        return {
            axis.name: number
            for axis, number in zip(self.axes, self.given, strict=True)
            if isinstance(number, (int, float))
        }

    def with_numbers(self, numbers: Mapping[str, float]) -> Arm:
        """Give the arm with numbers of a benchmark's file where the user gives none.

        What neither gives is chosen, where the user has given nothing at all.
        """
        rest: Number = "auto" if all(number is None for number in self.given) else None
        given = tuple(
            numbers.get(axis.name, rest) if number is None else number
            for axis, number in zip(self.axes, self.given, strict=True)
        )
        return replace(self, given=given)

    def with_numbers_of_fit(self, numbers: Mapping[str, float]) -> Arm:
        """Give the arm with the numbers of a fit's own setting, where the user gives none."""
        if not numbers or any(number is not None for number in self.given):
            return self
        return replace(self, given=tuple(numbers.get(name) for name in self.axes.names))

    def is_like(self, name: str) -> bool:
        """Return whether the arm of a name steers so, but for arguments that it leaves open."""
        other = arm_named(name)
        return type(self.method) is other.method and all(
            getattr(of, key) == value
            for of, sets in ((self.method, other.sets), (self.options, other.shared))
            for key, value in sets.items()
        )

    def record(self) -> dict[str, Any]:
        """Describe the method for results files and keys."""
        if self.method is not None:
            return self.method.record()
        said = {} if self.instruction is None else {"system_instruction": self.instruction}
        return {"method": UNSTEERED, **said}

    def _numbers(self) -> tuple[Number, ...]:
        """Complete what is given: ``auto`` if nothing is, the usual value, ``auto`` without one."""
        assert self.method is not None
        if all(number is None for number in self.given):
            return tuple("auto" for _ in self.given)
        return tuple(
            (usual if usual is not None else "auto") if number is None else number
            for number, usual in zip(self.given, self.method.usual, strict=True)
        )


def own_arguments(method: str | None) -> frozenset[str]:
    """Name all that a model of ours takes beside what the harness's own takes.

    Args:
        method: of the model; None: of a model that is steered by several.
    """
    names = {*NAMES, "method", *SETTING_NAMES, *all_argument_names()}
    if method is None:
        return frozenset(names)
    return frozenset(names | argument_names(method_class(method)) | {"baseline"})


def read_arm(method: str, given: Mapping[str, Any]) -> Arm:
    """Read the arguments of a model that is steered by one method.

    Args:
        method: its name.
        given: what the user gave, of the names in :func:`own_arguments` only.

    Raises:
        UserError: naming every fault at once.
    """
    options, faults = read_options(given)
    own: list[str] = []
    chosen = given.get("method")
    arm = _arm(method, method_class(method), given, options, own, steers=chosen != UNSTEERED)
    faults += _of_others(arm, given)
    if chosen not in (None, method, UNSTEERED):
        faults.append(f"method={chosen}: {nearest(str(chosen), (method, UNSTEERED))}")
    baseline = given.get("baseline")
    if baseline not in (None, True, False):
        faults.append(f"baseline={baseline}: must be true or false")
    elif baseline and chosen == UNSTEERED:
        faults.append(f"baseline={baseline}: method={UNSTEERED} is the baseline; pass one of them")
    faults += own
    if faults:
        raise UserError("; ".join(faults))
    if chosen == UNSTEERED:
        return Arm(UNSTEERED, None, options)
    _check_space(arm)
    return arm


def read_arms(
    names: Sequence[str], given: Mapping[str, Any], by_name: bool = False
) -> dict[str, Arm]:
    """Read the arguments of a model that is steered by several arms.

    An argument of a method counts for every arm whose method has it.

    Args:
        names: of arms.
        given: what the user gave.
        by_name: an argument does not count for a method of which some arm sets it: those arms are
            how it is given (see :func:`set_by_arms`).

    Raises:
        UserError: naming every fault at once; an argument that no arm has is one.
    """
    options, faults = read_options(given)
    own: list[str] = []
    arms: dict[str, Arm] = {}
    for name, (kind, sets, _, shared) in {name: arm_named(name) for name in names}.items():
        if kind is None:
            instruction = INSTRUCTION if name == PROMPT_ONLY else None
            arms[name] = Arm(name, None, options, instruction=instruction)
            continue
        taken = argument_names(kind) - (set_by_arms(kind) if by_name else frozenset())
        of_kind = {key: given[key] for key in taken if key in given}
        mine = replace(options, **shared)
        arms[name] = _arm(name, kind, {**of_kind, **sets}, mine, own)
    methods = [arm.method for arm in arms.values() if arm.method is not None]
    taken = frozenset(NAMES).union(*(argument_names(method) for method in methods))
    for name in given:
        if name not in taken and given[name] is not None:
            faults.append(
                f"{name}={given[name]}: no method of {', '.join(names)} has {name}; "
                f"{nearest(name, taken)}"
            )
    faults += own
    if faults:
        raise UserError("; ".join(dict.fromkeys(faults)))
    return arms


def set_by_arms(kind: type[Method]) -> frozenset[str]:
    """Name the arguments of a method that make rows of their own: those that some arm sets."""
    mine = [each for each in arm_names().values() if each.method is kind]
    return frozenset(key for each in mine for key in each.sets)


def _of_others(arm: Arm, given: Mapping[str, Any]) -> list[str]:
    """List the faults of giving a method the arguments of others, or of itself otherwise."""
    assert arm.method is not None
    foreign = all_argument_names() - argument_names(arm.method)
    otherwise = {axis.name: axis.only for axis in type(arm.method).axes if axis.only}
    faults = []
    for name in [name for name in given if name in foreign and given[name] is not None]:
        has = f"{name}={given[name]}: hf-{arm.method.name} has"
        if name in otherwise:
            argument, value = otherwise[name]
            faults.append(f"{has} {name} only with {argument}={value}; pass both or neither")
            continue
        faults.append(
            f"{has} no {name}; where and how strongly it steers are {' and '.join(arm.axes.names)}"
        )
    return faults


def _arm(
    name: str,
    kind: type[Method],
    given: Mapping[str, Any],
    options: Options,
    faults: list[str],
    steers: bool = True,
) -> Arm:
    """Make an arm; what is faulty is left out, and listed in ``faults``.

    Args:
        steers: whether what the method cannot do without must be there.
    """
    values, own = arguments.read(kind, given, complete=steers)
    faults += own
    for key, value in kind.protocols.get(options.protocol, {}).items():
        if values.setdefault(key, value) != value:
            faults.append(
                f"{key}={values[key]}: protocol={options.protocol} means {key}={value}; pass either"
            )
    method = kind(**values)
    numbers: list[Number] = []
    for axis in method.axes:
        value = given.get(axis.name)
        number: Number = "auto" if value == "auto" else None
        if value is not None and value != "auto":
            number = axis.read(value) if isinstance(value, (int, float)) else None
            if number is None:
                faults.append(
                    f"{axis.name}={value}: must be {axis.allowed} or auto{_hint(axis.name)}"
                )
        numbers.append(number)
    space = None
    if given.get("grid") is not None:
        try:
            space = read_search_space(given["grid"], method.axes)
        except UserError as error:
            faults.append(str(error))
        if all(number is not None and number != "auto" for number in numbers):
            names = " and ".join(method.axes.names)
            faults.append(f"grid= was given with a fixed {names}: pass either")
    return Arm(name, method, options, tuple(numbers), space)


def _hint(name: str) -> str:
    """Tell where the harness's own model has an argument of this name too."""
    if name != "delta":
        return ""
    return " (steering strength; for the harness's delta weights pass delta_weights=PATH)"


def _check_space(arm: Arm) -> None:
    """Refuse a search space that is too large, or steers nothing."""
    if not arm.is_chosen:
        return
    count, most = len(arm.search_space().settings), arm.options.max_settings
    if count > most:
        raise UserError(
            f"grid of {count} settings: at most max_settings={most} are tried; pass a smaller "
            "grid= or a larger max_settings="
        )
    if not count:
        strengths = [axis for axis in arm.axes if axis.strength] or arm.axes
        name = " and ".join(axis.name for axis in strengths)
        raise UserError(
            f"grid: {name} 0 alone steers nothing, and the unsteered model is always tried; "
            f"pass another {name}"
        )
