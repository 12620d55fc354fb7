"""Arguments as dataclass fields: default, check and documentation stand in one place.

    @dataclass(frozen=True)
    class Mine:
        direction: str = choice("mean", ("mean", "probe"), "how the direction is found")

What reads a user's arguments, the messages about faults and the table in the README are all made
from these declarations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.errors import nearest

_KEY = "sadi_lmeval.argument"


class Argument(NamedTuple):
    """What is declared of an argument.

    Attributes:
        doc: one line.
        read: takes what the user gave; returns the value, or raises ``ValueError`` saying what is
            allowed.
        default: how the default is shown in tables.
        measured: whether what is measured of the pairs depends on it; an argument of a method for
            which this is false shares fits with every other value of it.
        is_file: whether the value is the path of a file, whose content counts.
        required: whether the user must give it.
    """

    doc: str
    read: Callable[[Any], Any]
    default: str
    measured: bool
    is_file: bool = False
    required: bool = False


def argument(
    default: Any,
    doc: str,
    read: Callable[[Any], Any],
    shown: str | None = None,
    measured: bool = True,
    is_file: bool = False,
    required: bool = False,
) -> Any:
    """Declare a field of a frozen dataclass as an argument.

    Args:
        default: its value where the user gives none.
        doc: one line.
        read: see :class:`Argument`.
        shown: how the default is shown in tables; None: as it is.
        measured, is_file, required: see :class:`Argument`.
    """
    text = shown if shown is not None else "" if default is None else f"`{default}`"
    declared = Argument(doc, read, text, measured, is_file, required)
    return dataclasses.field(default=default, metadata={_KEY: declared})


def choice(
    default: Any, allowed: Collection[str], doc: str, *, shown: str | None = None,
    measured: bool = True,
) -> Any:  # fmt: skip
    """Declare an argument that is one of some words."""

    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError(nearest(str(value), allowed))
        return str(value)

    return argument(default, doc, read, shown, measured)


def whole(
    default: Any, least: int, doc: str, *, shown: str | None = None, measured: bool = True
) -> Any:
    """Declare an argument that is a whole number."""

    def read(value: Any) -> int:
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"must be a whole number of at least {least}")
        return number

    return argument(default, doc, read, shown, measured)


def switch(default: bool, doc: str, *, shown: str | None = None, measured: bool = True) -> Any:
    """Declare an argument that is true or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value

    return argument(default, doc, read, shown or f"`{str(default).lower()}`", measured)


def number(
    default: Any, doc: str, *, least: float | None = None, most: float | None = None,
    shown: str | None = None, measured: bool = True,
) -> Any:  # fmt: skip
    """Declare an argument that is a finite number."""

    def read(value: Any) -> float:
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known or not math.isfinite(value):
            raise ValueError("must be a finite number")
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = [f"at least {least:g}"] if least is not None else []
            bounds += [f"at most {most:g}"] if most is not None else []
            raise ValueError(f"must be a number of {' and '.join(bounds)}")
        return float(value)

    return argument(default, doc, read, shown, measured)


def text(default: Any, doc: str, *, shown: str | None = None, measured: bool = True) -> Any:
    """Declare an argument that is any text."""
    return argument(default, doc, str, shown, measured)


def file(
    doc: str, *, shown: str | None = None, measured: bool = True, required: bool = False
) -> Any:
    """Declare an argument that is the path of a file."""

    def read(value: Any) -> str:
        if not Path(str(value)).is_file():
            raise ValueError("no such file")
        return str(value)

    shown = "required" if required else shown
    return argument(None, doc, read, shown, measured, is_file=True, required=required)


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_repository(source: str) -> bool:
    """Return whether a source is no file, but ``user/repository``, perhaps with ``@revision``."""
    return not Path(source).exists() and _REPOSITORY.fullmatch(source) is not None


def file_or_repository(doc: str, *, shown: str | None = None) -> Any:
    """Declare an argument that is the path of a file, or a repository of the hub."""

    def read(value: Any) -> str:
        if not Path(str(value)).is_file() and not is_repository(str(value)):
            raise ValueError("no such file, and no user/repository of the hub")
        return str(value)

    return argument(None, doc, read, shown)


def folder(doc: str, *, shown: str | None = None) -> Any:
    """Declare an argument that is the path of a folder."""

    def read(value: Any) -> str:
        if not Path(str(value)).is_dir():
            raise ValueError("no such folder")
        return str(value)

    return argument(None, doc, read, shown)


def declared(kind: Any) -> dict[str, Argument]:
    """Give the arguments of a dataclass by name, in their order."""
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(kind) if _KEY in f.metadata}


def recorded(one: Any) -> dict[str, Any]:
    """Give the values of a dataclass's arguments as results files and keys have them.

    A file counts by its name and its content, not by where it lies.
    """
    values = {}
    for name, argument in declared(one).items():
        value = getattr(one, name)
        if argument.is_file and value is not None:
            content = hashlib.sha256(Path(value).read_bytes()).hexdigest()
            value = f"{Path(value).name} sha256:{content[:16]}"
        values[name] = value
    return values


def read(
    kind: Any, given: Mapping[str, Any], complete: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Check what a user gave for the arguments of a dataclass; ``None`` is as if not given.

    Args:
        complete: whether a required argument that is missing is a fault.

    Returns:
        the values by name, and every fault as ``name=value: what is allowed``.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, one in declared(kind).items():
        value = given.get(name)
        if value is None:
            if one.required and complete:
                faults.append(f"{name}: is missing; {one.doc}")
            continue
        try:
            values[name] = one.read(value)
        except ValueError as error:
            faults.append(f"{name}={value}: {error}")
    return values, faults
