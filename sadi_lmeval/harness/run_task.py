"""A harness task, with the settings that the run renders its prompts with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lm_eval.api.samplers import FirstNSampler
from lm_eval.api.task import Task
from lm_eval.api.utils import Message, messages_to_text
from lm_eval.tasks import TaskManager

from sadi_lmeval.errors import UserError, nearest

Document = dict[str, Any]
Text = tuple[str, str]
"""(context, continuation) as the harness scores them."""


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
        manager: what has loaded the task, where that is known.
        others: the tasks of the same run by name.
    """

    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    limit: LengthLimit | None = None
    manager: TaskManager | None = field(default=None, repr=False, compare=False)
    others: Mapping[str, RunTask] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return str(self.task.config.task)

    @property
    def output_type(self) -> str:
        return str(self.task.OUTPUT_TYPE)

    @property
    def num_fewshot(self) -> int:
        return int(self.task.config.num_fewshot or 0)

    def included_folders(self) -> list[Path]:
        """List the folders of the run's ``--include_path``, where benchmarks and recipes may be."""
        included = getattr(self.manager, "include_path", None)
        paths = included if isinstance(included, (list, tuple)) else [included] if included else []
        return [Path(path) for path in paths]

    def evaluated(self) -> list[Document]:
        """List every document of the split that the harness scores, whatever ``--limit`` says.

        Those that the run has made requests of are as they stand there: what a task does to its
        documents may come out otherwise each time.
        """
        documents: list[Document] = list(self.task.eval_docs)
        samples = self.settings.get("samples")  # the harness counts documents among these
        places = sorted(set(samples)) if samples else range(len(documents))
        for request in getattr(self.task, "instances", None) or ():
            if request.doc != documents[request.doc_id]:
                documents[places[request.doc_id]] = request.doc
        return documents

    def asked(self) -> list[Document]:
        """List the documents that this process has requests of; where none are made yet, all."""
        requests = getattr(self.task, "instances", None) or ()
        by_place: dict[int, Document] = {request.doc_id: request.doc for request in requests}
        return list(by_place.values()) or self.evaluated()

    def evaluated_split(self) -> str | None:
        config = self.task.config
        split: str | None = config.test_split or config.validation_split
        return split

    def documents(self, split: str) -> Sequence[Document]:
        """Give the documents of a dataset split, processed as the task processes its own.

        Raises:
            UserError: the dataset has no such split.
        """
        dataset = self.task.dataset
        if split not in dataset:
            raise UserError(f"task {self.name}: no split {split!r}; {nearest(split, dataset)}")
        process = self.task.config.process_docs
        # Not as a list: of a split of 400,000 documents a few hundred are read.
        documents: Sequence[Document] = process(dataset[split]) if process else dataset[split]
        return documents

    def texts(self, document: Document, num_fewshot: int) -> list[Text]:
        """Give the (context, continuation) of every request for a document, as scoring writes them.

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
            # squadv2 asks for the log-likelihood of "unanswerable" beside.
            texts = [each for each in requests if each.request_type == "generate_until"]
            return [(request.args[0], "") for request in texts]
        return [(request.args[0], request.args[1]) for request in requests]

    def prompt(self, text: str) -> Text:
        """Write a prompt of no document as this run would, and give what its answer begins with."""
        system = self.settings.get("system_instruction")
        messages = [Message("system", system)] if system else []
        messages.append(Message("user", text))
        if not self.settings.get("apply_chat_template"):
            return messages_to_text(messages), " "
        return self.settings["chat_template"]([each.to_dict() for each in messages]), ""

    def fits(self, document: Document, *answers: str) -> bool:
        """Return whether all texts of a document, without few-shot examples, are within the limit.

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
        """Give what stands between a prompt and its answer as text in this run."""
        if self.output_type == "loglikelihood":
            return ""
        config = self.task.config
        if self.settings.get("apply_chat_template"):
            prefix = config.gen_prefix
            return str(config.target_delimiter) if prefix and not prefix[-1].isspace() else ""
        return str(config.target_delimiter)

    def question(self, document: Document) -> str:
        """Give the document's own part of the prompt: no few-shot examples, no chat template."""
        text = self.task.doc_to_text(document)
        if isinstance(text, str):
            return text
        return "\n".join(self.choices(document))

    def choices(self, document: Document) -> list[str]:
        """List the document's choices; none where it has none."""
        if self.task.config.doc_to_choice is None:
            return []
        return [str(choice) for choice in self.task.doc_to_choice(document)]

    def few_shot_documents(self) -> list[Document]:
        """List what the harness draws the few-shot examples of this task from."""
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
    """Make a document's identity: sha256 of its content, the first 32 hexadecimal digits."""
    content = json.dumps(document, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
