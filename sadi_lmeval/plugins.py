"""What other packages bring in by their entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from sadi_lmeval.errors import UserError, first_line


def loaded(point: EntryPoint, what: str) -> Any:
    """Load what an entry point names.

    Args:
        point: of a package, ours or a stranger's.
        what: it is, for the message.

    Raises:
        UserError: it cannot be loaded, in one line.
    """
    try:
        return point.load()
    except Exception as error:  # a stranger's code: anything may come
        raise UserError(
            f"{what} {point.name!r} of {point.value} cannot be loaded ({first_line(error)})"
        ) from error
