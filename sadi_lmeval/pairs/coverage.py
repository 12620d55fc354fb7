"""Which harness tasks the benchmark files cover, and whether their data is available."""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from huggingface_hub import constants, get_session
from lm_eval.tasks import TaskManager

from sadi_lmeval.errors import first_line
from sadi_lmeval.folders import task_configs
from sadi_lmeval.harness.run_tasks import task_manager
from sadi_lmeval.pairs.benchmark import Benchmark, read_benchmark
from sadi_lmeval.pairs.sources import splits_of_pairs
from sadi_lmeval.storage.yaml_files import yaml_files


class DataSet(NamedTuple):
    """Where the rows of a task come from.

    Attributes:
        path: a name on the hub, a folder, or a kind of file (``json``).
        name: of a configuration of it.
        data_files: the files' names as JSON; ``null`` where the task names none.
    """

    path: str
    name: str | None = None
    data_files: str = "null"


class Covered(NamedTuple):
    """Harness tasks that one name or pattern of a benchmark file covers.

    Attributes:
        named: the name or pattern.
        tasks: the harness's tasks; none where this release has none.
        recipe: of their pairs; None: the default of the kind of task.
        pairs_from: dataset splits, or how many folds of the one that is scored.
        scored: the dataset split that the harness scores.
        datasets: of the tasks, each once.
    """

    benchmark: str
    named: str
    tasks: list[str]
    recipe: str | None
    pairs_from: str
    scored: str
    datasets: list[DataSet]


def covered(folders: Iterable[Path]) -> list[Covered]:
    """List what the benchmark files cover, the user's folders before ours.

    Args:
        folders: the user's, with benchmark and task files.

    Raises:
        UserError: a faulty benchmark file.
    """
    folders = list(folders)
    manager = task_manager(folders)
    rows = []
    for folder in [*folders, task_configs()]:
        for path in yaml_files(folder):
            benchmark = read_benchmark(path)
            if benchmark is not None:
                rows += [_covered(benchmark, named, manager) for named in benchmark.tasks]
    return rows


def _covered(benchmark: Benchmark, named: str, manager: TaskManager) -> Covered:
    tasks = fnmatch.filter(manager.all_subtasks, named)
    settings: dict[str, Any] = (manager.task_index[tasks[0]].cfg or {}) if tasks else {}
    training, validation, test = (
        settings.get(f"{kind}_split") for kind in ("training", "validation", "test")
    )
    scored = str(test or validation or "")
    splits = splits_of_pairs(benchmark, training, validation, test)
    crossed = bool(tasks) and (not splits or scored in splits)
    every = [manager.task_index[task].cfg or {} for task in tasks]
    of_tasks = [data_set(settings) for settings in every if "dataset_path" in settings]
    return Covered(
        benchmark=benchmark.benchmark,
        named=named,
        tasks=tasks,
        recipe=benchmark.recipe,
        pairs_from=f"{benchmark.folds} folds" if crossed else "+".join(splits),
        scored=scored,
        datasets=list(dict.fromkeys(of_tasks)),
    )


_ALIKE = 4
"""Tasks in a row that are listed as one from so many on."""


def folded(rows: Iterable[Covered]) -> list[Covered]:
    """Put tasks in a row together that differ in the end of their names alone (MMLU's subjects).

    They have a benchmark, recipe and splits in common, and names that begin alike, up to an
    underscore.
    """

    def common(row: Covered) -> tuple[str, str | None, str, str]:
        return row.benchmark, row.recipe, row.pairs_from, row.scored

    found: list[Covered] = []
    for _, alike in itertools.groupby(rows, lambda row: (common(row), len(row.tasks) == 1)):
        part = list(alike)
        letters = zip(*(row.named for row in part), strict=False)
        same = (each[0] for each in itertools.takewhile(lambda each: len(set(each)) == 1, letters))
        begin, underscore, _ = "".join(same).rpartition("_")
        if len(part) < _ALIKE or len(part[0].tasks) != 1 or not begin:
            found += part
            continue
        tasks = [task for row in part for task in row.tasks]
        of_all = list(dict.fromkeys(dataset for row in part for dataset in row.datasets))
        name = f"{begin}{underscore}*"
        found.append(part[0]._replace(named=name, tasks=tasks, datasets=of_all))
    return found


def data_set(settings: Mapping[str, Any]) -> DataSet:
    """Give the data set that the settings of a harness task name."""
    files = (settings.get("dataset_kwargs") or {}).get("data_files")
    return DataSet(str(settings["dataset_path"]), settings.get("dataset_name"), json.dumps(files))


def reach(dataset: DataSet) -> str:
    """Say why a data set is not available now, in one line; empty where it is."""
    files = json.loads(dataset.data_files)
    try:
        datasets.load_dataset_builder(dataset.path, dataset.name, data_files=files)
    except Exception as error:  # datasets, hub and network raise many kinds
        return first_line(error) or type(error).__name__
    return ""


def without_network(seconds: float = 5.0) -> bool:
    """Return whether the hub does not answer at all; each data set would be waited for in vain."""
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # of whichever client the hub's library uses
        return True
    return False


def stay_offline() -> None:
    """Look at local folders and the cache alone from now on, as HF_HUB_OFFLINE=1 does."""
    datasets.config.HF_HUB_OFFLINE = True
    constants.HF_HUB_OFFLINE = True


def reached(
    rows: Iterable[Covered], progress: Callable[[list[Any]], Iterable[Any]]
) -> dict[DataSet, str]:
    """Say of each data set why it is not available now; an empty text where it is.

    Args:
        rows: that name the data sets.
        progress: shows how far it is, as ``tqdm`` does.
    """
    listed = list(dict.fromkeys(dataset for row in rows for dataset in row.datasets))
    return {dataset: reach(dataset) for dataset in progress(listed)}
