"""The harness's ``--use_cache``, keyed by how a request was steered.

The harness keys cached responses by the request's text alone, so another delta, K or task would
be answered with an earlier run's scores. Here a response is kept under the request, the edit
that it was given and the model; the harness's own look-ups always miss. Ours are JSON, where the
harness has pickles, which run what a stranger's file tells them to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from sqlitedict import SqliteDict

_OURS = "sadi-lmeval:"


class _OnlyOurs(SqliteDict):  # type: ignore[misc]
    """A response database that hides, and does not take, what is not under our keys."""

    def __contains__(self, key: object) -> bool:
        return str(key).startswith(_OURS) and bool(super().__contains__(key))

    def __setitem__(self, key: object, value: object) -> None:
        if str(key).startswith(_OURS):
            super().__setitem__(key, value)


class ResponseCache:
    """Takes the place of the harness's ``CacheHook``.

    Attributes:
        steering: a digest of the model and of the edit of the requests that are being answered;
            set it before a response is looked up or added.
    """

    def __init__(self, database: SqliteDict | None) -> None:
        self.database: Any = database
        self.steering = ""
        if database is not None:
            database.__class__ = _OnlyOurs
            database.encode, database.decode = json.dumps, _response

    def key(self, kind: str, arguments: Iterable[Any]) -> str:
        content = json.dumps([kind, self.steering, *arguments], default=str)
        return _OURS + hashlib.sha256(content.encode()).hexdigest()

    def get(self, kind: str, arguments: Iterable[Any]) -> Any | None:
        """Give the response to a request of a kind (``loglikelihood``, …), or None."""
        if self.database is None or not self.steering:
            return None
        response = self.database.get(self.key(kind, arguments))
        return response if _fits(kind, response) else None

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Keep a response; the name and the arguments are the harness's."""
        if self.database is not None and self.steering:
            self.database[self.key(attr, req)] = res


def _response(value: Any) -> Any:
    """Read a response out of the database; None where there is no JSON."""
    try:
        response = json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return None
    return tuple(response) if isinstance(response, list) else response


def _fits(kind: str, response: Any) -> bool:
    """Return whether it is an answer to such a request: a text, or a log-likelihood and a flag."""
    if kind == "generate_until":
        return isinstance(response, str)
    return isinstance(response, tuple) and list(map(type, response)) == [float, bool]
