"""Commands that repeat a part of a comparison, without the folders of the machine it ran on."""

from __future__ import annotations

import re
import shlex

from sadi_lmeval.reports.leaderboard import UNSTEERED

_PLACE = re.compile(
    r"(?<![\w.~:/\\…-])(?:/|[A-Za-z]:\\+)(?:[^\s,'\"=:/\\]+[/\\]+)*(?=[^\s,'\"=:/\\])"
)
"""The folders of an absolute path, up to its last part."""
_ONE_VALUE = ("--methods", "--output_path", "-o")


def without_places(text: str) -> str:
    """Shorten absolute paths to their last part: ``/home/me/models/llama`` to ``…/llama``."""
    return _PLACE.sub("…/", text)


def command_of(command: str, method: str) -> str:
    """Give the command that makes one row alone, and the unsteered one that it is compared with.

    It is the comparison's own, so that the row has the same documents, pairs and settings. Another
    command is given as it is.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return without_places(command)
    if words[:2] != ["sadi-lmeval", "compare"]:
        return without_places(command)
    kept, skips = [], False
    for word in words:
        if skips:
            skips = False
        elif word in _ONE_VALUE:
            skips = True
        elif word.partition("=")[0] not in _ONE_VALUE:
            kept.append(word)
    methods = method if method == UNSTEERED else f"{UNSTEERED},{method}"
    kept += ["--methods", methods, "--output_path", "DIR"]
    return without_places(" ".join(word if _is_plain(word) else shlex.quote(word) for word in kept))


def _is_plain(word: str) -> bool:
    return re.fullmatch(r"[\w@%+=:,./…-]+", word) is not None
