"""Errors a user can act on, shown as one line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from types import TracebackType


class UserError(ValueError):
    """A mistake in what the user gave: says what came, what is allowed and what to do."""


def first_line(error: BaseException) -> str:
    """Give what an error says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, allowed: Iterable[str], limit: int = 3) -> str:
    """List the allowed names, the most similar to ``name`` first if any are similar."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name.lower(), allowed, n=limit, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    if len(allowed) > _LISTED:
        return f"none of the {len(allowed)} that are known is spelt like it"
    return f"allowed: {', '.join(allowed)}"


_LISTED = 60
"""Names that an error message lists."""


def show_user_errors_as_one_line() -> None:
    """Print an uncaught :class:`UserError` as one line on stderr, without a traceback.

    The exit code stays 1. Programs that catch the exception see an ordinary ``ValueError``. A run
    that is interrupted says in a line that nothing is lost, but at an interactive prompt.
    """
    previous = sys.excepthook
    if getattr(previous, "_sadi_lmeval", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"sadi-lmeval: error: {error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt) and not hasattr(sys, "ps1"):
            print(
                "\nsadi-lmeval: interrupted; fits and tried settings are kept: the same command "
                "continues with them",
                file=sys.stderr,
            )
        else:
            previous(kind, error, trace)

    hook._sadi_lmeval = True  # type: ignore[attr-defined]
    sys.excepthook = hook
