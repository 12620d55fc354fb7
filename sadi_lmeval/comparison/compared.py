"""One loaded model that answers under many methods, all from one pass over the prompts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.joined import joined
from sadi_lmeval.generating import AUTO_GENERATION_ROWS
from sadi_lmeval.harness.response_cache import ResponseCache
from sadi_lmeval.methods.arm import Arm, read_arms
from sadi_lmeval.model import ManyArmsModel
from sadi_lmeval.passes.packing import UNSTEERED
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.steering.fitting import refuse_unsuited
from sadi_lmeval.steering.steering import TaskSteering, prepare
from sadi_lmeval.storage.journal import Journal


class Row(NamedTuple):
    """A row of the table: an arm, and the task that it is fitted to; None: the scored one."""

    arm: str
    mask_from: str | None = None


class Answers(dict[str, Any]):
    """Responses by key, each noted down in a file as soon as it is there."""

    def __init__(self, journal: Journal, processes: Processes = ALONE) -> None:
        """
        Args:
            journal: the file.
            processes: of the run: what the first one has noted down is known to all.
        """
        super().__init__()
        self._journal = journal
        for line in journal.lines:
            if isinstance(line, dict) and {"key", "response"} <= set(line):
                response = line["response"]
                self.setdefault(
                    line["key"], tuple(response) if isinstance(response, list) else response
                )
        journal.forget()
        self.update(processes.known(dict(self)))

    def __setitem__(self, key: str, response: Any) -> None:
        self.note({key: response})

    def note(self, responses: Mapping[str, Any]) -> None:
        """Keep several; one with a score that is not finite is not noted down."""
        self.update(responses)
        lines = [
            {"key": key, "response": response}
            for key, response in responses.items()
            if not isinstance(response, tuple) or math.isfinite(response[0])
        ]
        self._journal.add(*lines)


class ComparedModel(ManyArmsModel):
    """A model whose arms take turns at answering the same requests.

    The first arm that is asked has every other arm answer too, as they share the pass over the
    prompts; the others then find their answers. One that has an instruction before its prompts is
    asked by itself, after all others: what is prepared for these has prompts without it.
    """

    def _read_arms(self, given: dict[str, Any]) -> dict[str, Arm]:
        return read_arms(self._arm_names, given, by_name=True)

    def compare(
        self, rows: Mapping[Row, Arm], tasks: Mapping[Row, Collection[str]], answers: Answers
    ) -> None:
        """Set what is compared, before the first turn.

        Args:
            rows: with their arms.
            tasks: that each row is scored on.
            answers: what has been answered before.
        """
        self._rows, self._tasks_of = dict(rows), tasks
        self._prepared: dict[str, dict[Row, TaskSteering]] = {}
        self._answers = answers

    def turn(self, row: Row) -> None:
        """Let a row's arm answer from now on."""
        self._row, self.arm = row, self._rows[row]

    def steering_of(self, row: Row, task: str) -> TaskSteering:
        """Say how a task is steered in a row."""
        return self._prepared[task][row]

    def _begin_call(self) -> None:
        """Leave the model what it was: it belongs to the comparison."""

    def _prepare(self, requests: list[Instance]) -> None:
        self.cache_hook = ResponseCache(None)
        self.cache_hook.database = self._answers
        noted = self._run.by_name
        for name, task in noted.items():
            if name not in self._prepared:
                refuse_unsuited(task, [self._rows[row] for row in self._rows_on(name)])
        for name, task in noted.items():
            if name not in self._prepared:
                rows = self._rows_on(name)
                steering = prepare(task, self, [self._rows[row] for row in rows])
                self._prepared[name] = dict(zip(rows, steering, strict=True))
        mine = {name: self._prepared[name].get(self._row) for name in noted}
        self._use({name: steering for name, steering in mine.items() if steering is not None})

    def _loglikelihood(self, requests: list[Instance], disable_tqdm: bool) -> list[Score]:
        self._steer(requests)  # prepares every arm
        groups: dict[tuple[str, tuple[int, ...]], list[Instance]] = {}
        for request in requests:
            edits = tuple(each.edit_of(request.doc) for each in self._asked(request.task_name))
            groups.setdefault((request.task_name, edits), []).append(request)
        label = f"Scoring under {len(self._rows)} methods at once"
        # Where another row has had all answered, there is nothing to show.
        with tqdm(total=len(requests), desc=label, delay=3, disable=disable_tqdm) as bar:
            for (name, edits), alike in groups.items():
                self._answer(self._asked(name), edits, alike, bar)
        return super()._loglikelihood(requests, True)

    def _generate_until(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        which = self._steer(requests)  # prepares every arm, in all processes
        known = set(self._answers)
        mine = self._mine(requests, which)
        self._in_part = True
        try:
            texts = super()._generate_until([requests[i] for i in mine], disable_tqdm)
        finally:
            self._in_part = False
        fresh = {key: self._answers[key] for key in self._answers if key not in known}
        every: dict[int, str] = {}
        for of_process in self.processes.all_gather((dict(zip(mine, texts, strict=True)), fresh)):
            every |= of_process[0]
            self._answers.note({k: v for k, v in of_process[1].items() if k not in self._answers})
        return [every[index] for index in range(len(requests))]

    def _mine(self, requests: Sequence[Instance], which: Sequence[int]) -> list[int]:
        """List the requests of this process: whole batches as one process would make them.

        The harness generates the longest prompts first, as many at once as a batch has rows. Where
        it finds out how many these are, requests are dealt out one by one.

        Args:
            which: the edit of each.
        """
        alike: dict[tuple[str, int], list[tuple[int, str, int]]] = {}
        for index, (request, edit) in enumerate(zip(requests, which, strict=True)):
            prompt = request.args[0]
            of_batch = alike.setdefault((request.task_name, edit), [])
            of_batch.append((-len(self.tok_encode(prompt)), prompt, index))
        rows = AUTO_GENERATION_ROWS.get(self.device.type, 1)
        if self.batch_size != "auto":
            rows = int(self.batch_size)
        batches = [
            [index for *_, index in ordered[first : first + rows]]
            for ordered in map(sorted, alike.values())
            for first in range(0, len(ordered), rows)
        ]
        mine = batches[self.processes.rank :: self.processes.count]
        return sorted(index for batch in mine for index in batch)

    _in_part = False
    """Whether this process answers a part of the requests."""

    def _sum(self, counts: dict[str, int]) -> dict[str, int]:
        return super()._sum(counts) if self._in_part else counts

    def _rows_on(self, task: str) -> list[Row]:
        """List the rows that are scored on a task."""
        return [row for row in self._rows if task in self._tasks_of[row]]

    def _asked(self, task: str) -> list[TaskSteering]:
        """List how the rows steer a task whose prompts are those of the row whose turn it is."""
        prepared = self._prepared[task].values()
        return [each for each in prepared if each.arm.instruction == self.arm.instruction]

    def _answer(
        self,
        rows: Sequence[TaskSteering],
        chosen: Sequence[int],
        requests: Sequence[Instance],
        bar: Any,
    ) -> None:
        """Answer, under all arms at once, what some arm has not answered yet.

        Args:
            rows: of the table, as they steer the task.
            chosen: of each row the index of its edit for these requests.
            requests: alike in that.
            bar: shows how far it is.
        """
        families: dict[Any, list[Edits]] = {}
        places: list[tuple[Any, int] | None] = []
        digests = []
        for steering, index in zip(rows, chosen, strict=True):
            edits = None if index == UNSTEERED else steering.edits[index]
            digests.append(self.steering_digest(steering.arm, edits, 0))
            if edits is None:
                places.append(None)
                continue
            of_family = families.setdefault(edits.alike, [])
            places.append((edits.alike, len(of_family)))
            of_family.append(edits)
        joint = [joined(of_family) for of_family in families.values()]
        first, offsets = 1, {}
        for alike, family in zip(families, joint, strict=True):
            offsets[alike], first = first, first + family.count
        columns = [0 if place is None else offsets[place[0]] + place[1] for place in places]

        cache = ResponseCache(None)
        keys: list[list[str]] = [[] for _ in requests]
        for cache.steering in digests:
            for mine, request in zip(keys, requests, strict=True):
                mine.append(cache.key("loglikelihood", request.args))
        unknown = [i for i, of in enumerate(keys) if not all(key in self._answers for key in of)]
        left = self.processes.known(unknown)  # all score the same
        bar.update(len(requests) - len(left))

        def done(numbers: list[int], values: Tensor, greedy: Tensor) -> None:
            scores = zip(values[columns].T.tolist(), greedy[columns].T.tolist(), strict=True)
            self._answers.note(
                {
                    key: (value, flag)
                    for number, (sums, flags) in zip(numbers, scores, strict=True)
                    for key, value, flag in zip(keys[left[number]], sums, flags, strict=True)
                }
            )
            bar.update(len(numbers))

        if left:
            continuations = list(self.asked_of(requests[i] for i in left))
            self.engine.score_grid(continuations, joint, done)
