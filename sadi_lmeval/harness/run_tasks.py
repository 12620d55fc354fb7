"""The tasks of a run: noted down while the harness builds its requests, or loaded.

The harness hands a model only requests. Pairs must be written exactly as the scoring will write
its prompts, so the ``Task`` objects themselves are noted down, with the arguments of
``build_all_requests``.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval import utils as harness
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from sadi_lmeval.errors import UserError, first_line, nearest
from sadi_lmeval.harness.run_task import LengthLimit, RunTask

logger = logging.getLogger("lm_eval.sadi")

_noted: dict[str, RunTask] = {}
_limits: list[LengthLimit] = []
_managers: list[TaskManager] = []


def note_tasks_of_the_run(limit: LengthLimit | None = None) -> None:
    """Start noting down the tasks whose requests the harness builds from now on.

    Args:
        limit: longer documents are left out of what the harness scores.
    """
    _noted.clear()
    _limits[:] = [] if limit is None else [limit]
    _managers.clear()
    _compile_templates_once()
    build: Callable[..., None] = Task.build_all_requests
    load: Callable[..., Any] = TaskManager.load
    if getattr(build, "_notes_tasks", False):
        return

    @functools.wraps(build)
    def build_all_requests(self: Task, **settings: Any) -> None:
        task = limited(RunTask(self, settings), _limits[0] if _limits else None)
        _noted[task.name] = task
        if settings.get("world_size", 1) > 1 and _has_no_document(self, settings):
            # The harness does not expect a process without documents (a limit below the number of
            # processes): it gets a request whose response no document asks for.
            settings = {**settings, "limit": 1, "samples": None, "rank": 0, "world_size": 1}
        build(self, **settings)

    @functools.wraps(load)
    def load_tasks(self: TaskManager, *arguments: Any, **keywords: Any) -> Any:
        _managers[:] = [self]
        return load(self, *arguments, **keywords)

    build_all_requests._notes_tasks = True  # type: ignore[attr-defined]
    Task.build_all_requests = build_all_requests
    TaskManager.load = load_tasks


def limited(task: RunTask, limit: LengthLimit | None) -> RunTask:
    """A task without the documents over a limit: the harness scores none of them any more."""
    if limit is None:
        return task
    task = replace(task, limit=limit)
    documents = task.task.eval_docs
    kept = [index for index, each in enumerate(documents) if task.fits(each)]
    if len(kept) == len(documents):
        return task
    logger.warning(
        "Task %s: %d of %d documents are over %d tokens and left out",
        task.name,
        len(documents) - len(kept),
        len(documents),
        limit.tokens,
    )
    fitting = documents.select(kept)
    name = "test_docs" if task.task.has_test_docs() else "validation_docs"
    setattr(task.task, name, lambda: fitting)
    return task


def _has_no_document(task: Task, settings: dict[str, Any]) -> bool:
    """Whether the harness gives this process none of a task's documents to score."""
    samples, documents = settings.get("samples"), len(task.eval_docs)
    count = len(samples) if samples else min(int(settings.get("limit") or documents), documents)
    return int(settings.get("rank", 0)) >= count


def with_all_metrics(of_tasks: dict[str, Any]) -> dict[str, Any]:
    """A process's results by task, no values of a metric where it has none."""
    return {
        name: defaultdict(list, found) if isinstance(found, dict) else found
        for name, found in of_tasks.items()
    }


def _compile_templates_once() -> None:
    """Keep the harness's compiled templates.

    It compiles a template each time it renders it, which takes longer than to score a short text.
    """
    if not hasattr(harness.env.from_string, "cache_info"):
        harness.env.from_string = functools.lru_cache(maxsize=4096)(harness.env.from_string)


def tasks_of_the_run() -> dict[str, RunTask]:
    """The noted tasks by name, in the order in which their requests were built."""
    return dict(_noted)


def included_folders() -> list[Path]:
    """The folders of the run's ``--include_path``: benchmark and recipe files may stand there."""
    included = _managers[0].include_path if _managers else None
    paths = included if isinstance(included, (list, tuple)) else [included] if included else []
    return [Path(path) for path in paths]


def task_manager(folders: Iterable[Path]) -> TaskManager:
    """The harness's tasks, and those in folders of the user's."""
    return TaskManager(include_path=[str(folder) for folder in folders] or None)


def load_task(name: str, folders: list[Path], like: RunTask | None) -> RunTask:
    """A task that is not part of the run, rendered with the settings of one that is, if any.

    Raises:
        UserError: the harness knows no such task, or it is a group, or its data cannot be had.
    """
    if name in _noted:
        return _noted[name]
    manager = _managers[0] if _managers else None
    if manager is None or name not in manager.all_subtasks:
        manager = task_manager(folders)
    if name not in manager.all_subtasks:
        raise UserError(f"unknown task {name!r}: {nearest(name, manager.all_subtasks)}")
    try:
        task = manager.load([name])["tasks"][name]
    except Exception as error:  # datasets raises many kinds: say which, in one line
        raise UserError(f"task {name}: cannot load its data ({error})") from error
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    return RunTask(task, like.settings if like else {}, like.limit if like else None)


def load_tasks(
    names: list[str],
    folders: list[Path],
    num_fewshot: int | None,
    settings: dict[str, Any],
    manager: TaskManager | None = None,
) -> list[RunTask]:
    """Tasks, and those of groups and tags, as the harness's command would run them.

    Args:
        names: of tasks, groups or tags.
        folders: with task files of the user's.
        num_fewshot: few-shot examples; None: as each task says.
        settings: how the run renders prompts.
        manager: what knows the tasks, instead of the folders.

    Raises:
        UserError: the harness knows no such name, or its data cannot be had.
    """
    if manager is None:
        manager = task_manager(folders)
    _managers[:] = [manager]
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"unknown task {name!r}: {nearest(name, manager.all_tasks)}")
    try:
        loaded = manager.load(names)["tasks"]
    except Exception as error:  # datasets raises many kinds: say which, in one line
        reason = first_line(error)
        raise UserError(f"tasks {', '.join(names)}: cannot load their data ({reason})") from error
    tasks = []
    for task in loaded.values():
        given = task.config.num_fewshot
        if num_fewshot is not None and given != 0:
            task.set_config("num_fewshot", num_fewshot)
        elif given is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        tasks.append(RunTask(task, settings))
    return tasks


_FEWSHOT_SEED = 1234
"""The harness's default."""
