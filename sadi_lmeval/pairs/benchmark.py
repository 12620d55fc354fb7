"""Which recipe, split and defaults go with which benchmark: the files of ``task_configs``."""

from __future__ import annotations

import fnmatch
import reprlib
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.folders import task_configs
from sadi_lmeval.methods.registry import arm_named, arm_names
from sadi_lmeval.storage.yaml_files import once, read_if_ours, yaml_files


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark file says of the harness tasks that it covers.

    Attributes:
        benchmark: its name, for people.
        tasks: harness task names or patterns (``mmlu_*``).
        recipe: the name of the recipe; None: the default for the kind of task.
        pairs_from: dataset splits that the pairs come from; empty: the training split, else the
            validation split if the test split is scored, else cross-fitting.
        folds: the number of folds where a task is cross-fitted.
        n_pairs: how many pairs a method is fitted on.
        settings: numbers of a setting by arm, where the user gives none; what is named here is
            not chosen.
    """

    benchmark: str
    tasks: tuple[str, ...]
    recipe: str | None = None
    pairs_from: tuple[str, ...] = ()
    folds: int = 2
    n_pairs: int | None = None
    settings: dict[str, dict[str, float]] = field(default_factory=dict)


def find_benchmark(task: str, folders: list[Path]) -> Benchmark:
    """Find the first benchmark that names ``task``, the user's folders before ours.

    A name counts more than a pattern, a longer pattern more than a shorter one. A task that no file
    names gets the defaults.

    Raises:
        UserError: a faulty benchmark file (all its faults at once).
    """
    for folder in [*folders, task_configs()]:
        best: tuple[int, Benchmark | None] = 0, None
        for path in yaml_files(folder):
            benchmark = once(("benchmark", path), partial(read_benchmark, path))
            if benchmark is None:
                continue
            if task in benchmark.tasks:
                return benchmark
            fitting = [len(each) for each in benchmark.tasks if fnmatch.fnmatchcase(task, each)]
            if max(fitting, default=0) > best[0]:
                best = max(fitting), benchmark
        if best[1] is not None:
            return best[1]
    return Benchmark(benchmark=task, tasks=(task,))


def read_benchmark(path: Path) -> Benchmark | None:
    """Read the benchmark in a YAML file; None where the file is something else.

    Raises:
        UserError: the file has the key ``benchmark`` but is faulty.
    """
    content = read_if_ours(path, "benchmark")
    if not isinstance(content, dict) or "benchmark" not in content:
        return None
    faults = _faults(content)
    if faults:
        raise UserError(f"benchmark file {path}: {'; '.join(faults)}")
    for key in ("tasks", "pairs_from"):
        if key in content:
            content[key] = tuple(content[key])
    return Benchmark(**content)


def _faults(content: dict[str, Any]) -> list[str]:
    names = {each.name for each in fields(Benchmark)}
    faults = [f"unknown key {k!r} ({nearest(str(k), names)})" for k in content if k not in names]
    if not isinstance(content["benchmark"], str):
        faults.append(f"benchmark must be a name, not {reprlib.repr(content['benchmark'])}")
    if not _texts(content.get("tasks")):
        faults.append("tasks must be a list of harness task names")
    if "pairs_from" in content and not _texts(content["pairs_from"]):
        faults.append("pairs_from must be a list of dataset splits")
    for key, least in (("folds", 2), ("n_pairs", 1)):
        value = content.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            faults.append(
                f"{key} must be a whole number of at least {least}, not {reprlib.repr(value)}"
            )
    if not isinstance(content.get("recipe", ""), str):
        faults.append(f"recipe must be a name, not {reprlib.repr(content['recipe'])}")
    if "settings" in content:
        faults += _of_settings(content["settings"])
    return faults


def _of_settings(given: object) -> list[str]:
    """List what is wrong with numbers by arm."""
    if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
        return ["settings must map arms to numbers by name, as {sadi-head: {top_k: 6}}"]
    faults = []
    for name, numbers in given.items():
        try:
            method, sets, *_ = arm_named(str(name))
        except UserError:
            method, sets = None, {}
        if method is None:
            faults.append(f"settings of {name!r}: {nearest(str(name), arm_names())}")
            continue
        axes = {axis.name: axis for axis in method(**sets).axes}
        for key, value in numbers.items():
            if key not in axes:
                faults.append(f"settings of {name}: {key!r}: {nearest(str(key), axes)}")
            elif not isinstance(value, (int, float)) or axes[key].read(value) is None:
                shown = reprlib.repr(value)
                faults.append(f"settings of {name}: {key} must be {axes[key].allowed}, not {shown}")
    return faults


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
