"""What a task's numbers depend on: its definition, and the code behind it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sadi_lmeval.harness.run_task import RunTask


def task_digest(task: RunTask) -> str:
    """Digest the task's whole definition and the module files behind its functions.

    Of its metadata the version alone counts: the harness adds every model argument to it.
    """
    config = task.task.config.to_dict()
    config["metadata"] = (config.get("metadata") or {}).get("version")
    functions = list(_functions([vars(task.task.config), type(task.task)]))
    content = {
        "config": config,
        "code": {str(folder.name): digest for folder, digest in _folders(functions)},
    }
    text = json.dumps(content, sort_keys=True, default=_name)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__name__)


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    """Yield every function and class in a task's configuration that is not the harness's own."""
    if isinstance(value, functools.partial):
        yield from _functions([value.func, value.args, value.keywords])
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _functions(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _functions(inner)
    elif callable(value):
        module = getattr(value, "__module__", None) or ""
        if not module.startswith(("lm_eval.api", "builtins")):
            yield value


def _folders(functions: list[Callable[..., Any]]) -> Iterator[tuple[Path, str]]:
    """Yield the folders of their modules, which may import one another, with a digest of each."""
    folders = set()
    for function in functions:
        try:
            folders.add(Path(inspect.getfile(function)).resolve().parent)
        except (TypeError, OSError):
            continue
    for folder in sorted(folders):
        content = hashlib.sha256()
        for path in sorted(folder.glob("*.py")):
            content.update(path.name.encode() + b"\0" + path.read_bytes())
        yield folder, content.hexdigest()
