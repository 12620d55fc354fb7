"""The tasks of a run: noted down while the harness builds its requests, or loaded.

The harness hands a model only requests. Pairs must be written exactly as the scoring will write
its prompts, so the ``Task`` objects themselves are noted down, with the arguments of
``build_all_requests``. Among these is the rank of the model that is scored, which the harness has
from the model itself: so a rank that knows its model says which run a task belongs to, and nothing
of a run is kept outside of its model.
"""

from __future__ import annotations

import functools
import inspect
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
from sadi_lmeval.harness.baseline import forget_baseline
from sadi_lmeval.harness.run_task import LengthLimit, RunTask

logger = logging.getLogger("lm_eval.sadi")

_MANAGER = "_sadi_lmeval_manager"
"""Attribute of a task: what has loaded it."""
_SHOTS = "_sadi_lmeval_num_fewshot"
"""Attribute of a task: the few-shot examples that it asks for itself."""
_GIVEN = "_sadi_lmeval_given_num_fewshot"
"""Attribute of a task: the ``--num_fewshot`` of the run that has loaded it, or None."""


class RunTasks:
    """The tasks whose requests the harness builds for one model, in that order.

    The harness builds the requests of all tasks of a run before it asks the first one. So a task
    that is noted after an answer belongs to a new run.
    """

    def __init__(self, limit: LengthLimit | None = None) -> None:
        """
        Args:
            limit: longer documents are left out of what the harness scores.
        """
        self.limit = limit
        self._tasks: dict[str, RunTask] = {}
        self._ended = False

    @property
    def by_name(self) -> dict[str, RunTask]:
        return dict(self._tasks)

    def note(self, task: Task, settings: dict[str, Any]) -> None:
        """Note down a task before its requests are built."""
        if self._ended:
            self._tasks, self._ended = {}, False
        manager = getattr(task, _MANAGER, None)
        noted = limited(RunTask(task, settings, None, manager, self._tasks), self.limit)
        self._tasks[noted.name] = noted

    def end(self) -> None:
        """Say that what is noted next belongs to another run."""
        self._ended = True


class RunRank(int):
    """The rank of a process, as a model of ours tells it: it knows the tasks of the model's run."""

    tasks: RunTasks

    def __new__(cls, rank: int, tasks: RunTasks) -> RunRank:
        self = super().__new__(cls, rank)
        self.tasks = tasks
        return self


def note_tasks() -> None:
    """Have the tasks of every model whose rank is a :class:`RunRank` noted down, from now on."""
    _compile_templates_once()
    build: Callable[..., None] = Task.build_all_requests
    load: Callable[..., Any] = TaskManager.load
    if getattr(build, "_notes_tasks", False):
        return

    @functools.wraps(build)
    def build_all_requests(self: Task, **settings: Any) -> None:
        rank = settings.get("rank")
        forget_baseline(self)
        if not isinstance(rank, RunRank):
            build(self, **settings)
            return
        settings["rank"] = int(rank)
        rank.tasks.note(self, settings)
        if settings.get("world_size", 1) > 1 and _has_no_document(self, settings):
            # The harness does not expect a process without documents (a limit below the number of
            # processes): it gets a request whose response no document asks for.
            settings = {**settings, "limit": 1, "samples": None, "rank": 0, "world_size": 1}
        try:
            build(self, **settings)
        except BaseException:
            rank.tasks.end()
            raise

    @functools.wraps(load)
    def load_tasks(self: TaskManager, *arguments: Any, **keywords: Any) -> Any:
        loaded = load(self, *arguments, **keywords)
        given = _given_num_fewshot()
        for task in loaded["tasks"].values():
            setattr(task, _MANAGER, self)
            setattr(task, _SHOTS, task.config.num_fewshot)
            setattr(task, _GIVEN, given)
        return loaded

    build_all_requests._notes_tasks = True  # type: ignore[attr-defined]
    Task.build_all_requests = build_all_requests
    TaskManager.load = load_tasks


def _given_num_fewshot() -> int | None:
    """Find the ``num_fewshot`` of the harness's ``simple_evaluate`` that is at work, if one is.

    It stands nowhere else: a task shows it only where it says another number itself.
    """
    frame = inspect.currentframe()
    while frame is not None:
        place = frame.f_globals.get("__name__"), frame.f_code.co_name
        if place == ("lm_eval.evaluator", "simple_evaluate"):
            given: int | None = frame.f_locals.get("num_fewshot")
            return given
        frame = frame.f_back
    return None


def limited(task: RunTask, limit: LengthLimit | None) -> RunTask:
    """Leave out a task's documents over a limit: the harness scores none of them any more."""
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
    """Return whether the harness gives this process none of a task's documents to score."""
    samples, documents = settings.get("samples"), len(task.eval_docs)
    count = len(samples) if samples else min(int(settings.get("limit") or documents), documents)
    return int(settings.get("rank", 0)) >= count


def with_all_metrics(of_tasks: dict[str, Any]) -> dict[str, Any]:
    """Complete a process's results by task: no values of a metric where it has none."""
    return {
        name: defaultdict(list, results) if isinstance(results, dict) else results
        for name, results in of_tasks.items()
    }


def _compile_templates_once() -> None:
    """Keep the harness's compiled templates.

    It compiles a template each time it renders it, which takes longer than to score a short text.
    """
    if not hasattr(harness.env.from_string, "cache_info"):
        harness.env.from_string = functools.lru_cache(maxsize=4096)(harness.env.from_string)


def task_manager(folders: Iterable[Path]) -> TaskManager:
    """Index the harness's tasks, and those in folders of the user's."""
    return TaskManager(include_path=[str(folder) for folder in folders] or None)


def load_task(name: str, folders: list[Path], like: RunTask | None) -> RunTask:
    """Load a task that is not part of the run, rendered with the settings of one that is, if any.

    Raises:
        UserError: the harness knows no such task, or it is a group, or its data is not available.
    """
    if like is not None and name in like.others:
        return like.others[name]
    manager = like.manager if like is not None else None
    if manager is None or name not in manager.all_subtasks:
        manager = task_manager(folders)
    if name not in manager.all_subtasks:
        raise UserError(f"unknown task {name!r}: {nearest(name, manager.all_subtasks)}")
    try:
        task = manager.load([name])["tasks"][name]
    except Exception as error:  # datasets raises many kinds: say which, in one line
        raise UserError(f"task {name}: cannot load its data ({error})") from error
    shots = None if like is None else _shots_of_the_run(like)
    if shots is not None and task.config.num_fewshot != 0:
        task.set_config("num_fewshot", shots)
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    if like is None:
        return RunTask(task, manager=manager)
    return RunTask(task, like.settings, like.limit, manager, like.others)


def _shots_of_the_run(like: RunTask) -> int | None:
    """Find the run's ``--num_fewshot``; None where it gives none.

    The harness puts it in place of what a task says, unless that is 0. Where the tasks were not
    loaded by its ``simple_evaluate``, one that says another number shows it.
    """
    given: int | None = getattr(like.task, _GIVEN, None)
    if given is not None:
        return given
    for task in (like, *like.others.values()):
        own = getattr(task.task, _SHOTS, 0)
        if own != 0 and task.num_fewshot != (own or 0):
            return task.num_fewshot
    return None


def load_tasks(
    names: list[str],
    folders: list[Path],
    num_fewshot: int | None,
    settings: dict[str, Any],
    manager: TaskManager | None = None,
) -> list[RunTask]:
    """Load tasks, and those of groups and tags, as the harness's command would run them.

    Args:
        names: of tasks, groups or tags.
        folders: with task files of the user's.
        num_fewshot: few-shot examples; None: as each task says.
        settings: how the run renders prompts.
        manager: what knows the tasks, instead of the folders.

    Raises:
        UserError: the harness knows no such name, or its data is not available.
    """
    if manager is None:
        manager = task_manager(folders)
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
        setattr(task, _GIVEN, num_fewshot)
        tasks.append(RunTask(task, settings, manager=manager))
    return tasks


_FEWSHOT_SEED = 1234
"""The harness's default."""
