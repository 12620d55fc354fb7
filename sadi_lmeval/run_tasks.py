"""The harness's task objects of a run, with the settings that the run renders prompts with.

The harness hands a model only requests. Pairs must be written exactly as the scoring will write
its prompts, so the ``Task`` objects themselves are noted down, with the arguments of
``build_all_requests``, while the harness builds its requests.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lm_eval import utils as harness
from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import Task
from lm_eval.api.utils import Message, messages_to_text
from lm_eval.tasks import TaskManager

from sadi_lmeval.errors import UserError, first_line, nearest

logger = logging.getLogger("lm_eval.sadi")

Document = dict[str, Any]
Text = tuple[str, str]
"""(context, continuation) as the harness scores them."""

_noted: dict[str, RunTask] = {}
_limits: list[LengthLimit] = []
_managers: list[TaskManager] = []


class LengthLimit(NamedTuple):
    """How long a text may be; the reference code of SADI leaves out those of over 700 tokens.

    Attributes:
        tokens: at most.
        count: of a text.
    """

    tokens: int
    count: Callable[[str], int]


@dataclass(frozen=True)
class RunTask:
    """A harness task and how the run renders its documents.

    Attributes:
        settings: of the harness's ``build_all_requests``.
        limit: how long the texts of a document may be that takes part in anything.
    """

    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    limit: LengthLimit | None = None

    @property
    def name(self) -> str:
        return str(self.task.config.task)

    @property
    def output_type(self) -> str:
        return str(self.task.OUTPUT_TYPE)

    @property
    def num_fewshot(self) -> int:
        return int(self.task.config.num_fewshot or 0)

    def evaluated(self) -> list[Document]:
        """Every document of the split that the harness scores, whatever ``--limit`` says."""
        return list(self.task.eval_docs)

    def evaluated_split(self) -> str | None:
        config = self.task.config
        split: str | None = config.test_split or config.validation_split
        return split

    def documents(self, split: str) -> Sequence[Document]:
        """The documents of a dataset split, processed as the task processes its own.

        Raises:
            UserError: the dataset has no such split.
        """
        dataset = self.task.dataset
        if split not in dataset:
            raise UserError(f"task {self.name}: no split {split!r}; {nearest(split, dataset)}")
        process = self.task.config.process_docs
        # Not as a list: of a split of 400,000 documents a few hundred are read.
        found: Sequence[Document] = process(dataset[split]) if process else dataset[split]
        return found

    def texts(self, document: Document, num_fewshot: int) -> list[Text]:
        """The (context, continuation) of every request for a document, as scoring writes them.

        For a ``generate_until`` task the continuation is empty.
        """
        task, settings = self.task, self.settings
        context = task.fewshot_context(
            document,
            num_fewshot=num_fewshot,
            system_instruction=settings.get("system_instruction"),
            apply_chat_template=settings.get("apply_chat_template", False),
            fewshot_as_multiturn=settings.get("fewshot_as_multiturn", False),
            chat_template=settings.get("chat_template"),
            gen_prefix=task.doc_to_prefix(document),
        )
        requests = task.construct_requests(
            doc=document,
            ctx=context,
            metadata=(self.name, 0, 1),
            apply_chat_template=settings.get("apply_chat_template", False),
            chat_template=settings.get("chat_template"),
        )
        if not isinstance(requests, list):
            requests = [requests]
        if self.output_type == "generate_until":
            return [(request.args[0], "") for request in requests]
        return [(request.args[0], request.args[1]) for request in requests]

    def prompt(self, text: str) -> Text:
        """A prompt of no document as this run would write it, and what its answer begins with."""
        system = self.settings.get("system_instruction")
        messages = [Message("system", system)] if system else []
        messages.append(Message("user", text))
        if not self.settings.get("apply_chat_template"):
            return messages_to_text(messages), " "
        return self.settings["chat_template"]([each.to_dict() for each in messages]), ""

    def fits(self, document: Document, *answers: str) -> bool:
        """Whether all texts of a document, without few-shot examples, are within the limit.

        Args:
            document: of the task.
            answers: to it, where it has no choices.
        """
        if self.limit is None:
            return True
        count, delimiter = self.limit.count, self.answer_delimiter()
        texts = [
            context + (continuation if answer is None else delimiter + answer)
            for context, continuation in self.texts(document, 0)
            for answer in answers or (None,)
        ]
        return all(count(text) <= self.limit.tokens for text in texts)

    def answer_delimiter(self) -> str:
        """What stands between a prompt and its answer as text in this run."""
        if self.output_type == "loglikelihood":
            return ""
        config = self.task.config
        if self.settings.get("apply_chat_template"):
            prefix = config.gen_prefix
            return str(config.target_delimiter) if prefix and not prefix[-1].isspace() else ""
        return str(config.target_delimiter)

    def question(self, document: Document) -> str:
        """The document's own part of the prompt: no few-shot examples, no chat template."""
        text = self.task.doc_to_text(document)
        if isinstance(text, str):
            return text
        return "\n".join(map(str, self.task.doc_to_choice(document)))

    def few_shot_documents(self) -> list[Document]:
        """What the harness draws the few-shot examples of this task from."""
        sampler = getattr(self.task, "sampler", None)
        return [] if sampler is None else list(sampler.fewshot_docs())

    @property
    def shows_first_examples(self) -> bool:
        """Whether the task shows the first documents of its pool (MMLU), not random ones."""
        return isinstance(getattr(self.task, "sampler", None), FirstNSampler)

    @contextmanager
    def few_shot_pool(self, examples: list[Document], seed: int) -> Iterator[None]:
        """Draw the few-shot examples of every prompt from ``examples``, always the same ones.

        As all prompts begin with them, they are computed once. The task's sampler is as before
        afterwards, so the harness's draws do not change.
        """
        sampler = getattr(self.task, "sampler", None)
        if sampler is None or not examples:
            yield
            return
        before = sampler.rnd, sampler.df, sampler._loaded
        sampler.rnd, sampler.df, sampler._loaded = _Repeating(seed), examples, True
        try:
            yield
        finally:
            sampler.rnd, sampler.df, sampler._loaded = before


class _Repeating(Random):
    """A generator whose every sample starts from its seed."""

    def __init__(self, seed: int) -> None:
        self.first = seed
        super().__init__(seed)

    def sample(self, population: Any, k: int, **keywords: Any) -> list[Any]:
        self.seed(self.first)
        return super().sample(population, k, **keywords)


def digest(document: Document) -> str:
    """A document's identity: sha256 of its content, the first 32 hexadecimal digits."""
    content = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


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


def load_task(name: str, folders: list[Path], like: RunTask | None) -> RunTask:
    """A task that is not part of the run, rendered with the settings of one that is, if any.

    Raises:
        UserError: the harness knows no such task, or it is a group, or its data cannot be had.
    """
    if name in _noted:
        return _noted[name]
    manager = _managers[0] if _managers else None
    if manager is None or name not in manager.all_subtasks:
        manager = TaskManager(include_path=[str(folder) for folder in folders] or None)
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
        manager = TaskManager(include_path=[str(folder) for folder in folders] or None)
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
