"""One loaded model that answers under many methods, all from one pass over the prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.harness.response_cache import ResponseCache
from sadi_lmeval.harness.run_tasks import tasks_of_the_run
from sadi_lmeval.interventions.edit import Edit, Edits
from sadi_lmeval.model import SteeredModel
from sadi_lmeval.options import Options, parse
from sadi_lmeval.passes.packing import UNSTEERED
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.steering.methods import joined, site_of
from sadi_lmeval.steering.steering import TaskSteering, prepare
from sadi_lmeval.storage.journal import Journal


class Arm(NamedTuple):
    """A method, and the task whose documents it is fitted and tuned on; None: the scored one."""

    method: str
    mask_from: str | None = None


class Answers(dict[str, Any]):
    """Responses by key, each noted down in a file as soon as it is there."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        for line in journal.lines:
            if isinstance(line, dict) and {"key", "response"} <= set(line):
                response = line["response"]
                self.setdefault(
                    line["key"], tuple(response) if isinstance(response, list) else response
                )

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


class ComparedModel(SteeredModel):
    """A model whose arms take turns at answering the same requests.

    The first arm that is asked has every other arm answer too, as they share the pass over the
    prompts; the others then find their answers.
    """

    def __init__(self, pretrained: Any, **arguments: Any) -> None:
        # The one argument that a single method other than SADI has.
        direction = parse({"direction": arguments.pop("direction", None)}, "iti").direction
        super().__init__(pretrained, **arguments)
        self.options = replace(self.options, direction=direction)

    def compare(self, arms: Mapping[Arm, Options], answers: Answers) -> None:
        """Set what is compared, before the first turn.

        Args:
            arms: their options.
            answers: what has been answered before.
        """
        self._arms = dict(arms)
        self._prepared: dict[str, dict[Arm, TaskSteering]] = {}
        self._answers = answers

    def turn(self, arm: Arm) -> None:
        """Let an arm answer from now on."""
        self._arm, self.options = arm, self._arms[arm]

    def _prepare(self, requests: list[Instance]) -> None:
        self.cache_hook = ResponseCache(None)
        self.cache_hook.database = self._answers
        noted = tasks_of_the_run()
        for name, task in noted.items():
            if name not in self._prepared:
                arms = [arm for arm in self._arms if arm.mask_from != name]
                steering = prepare(task, self, [self._arms[arm] for arm in arms])
                self._prepared[name] = dict(zip(arms, steering, strict=True))
        mine = {name: self._prepared[name].get(self._arm) for name in noted}
        self._use({name: steering for name, steering in mine.items() if steering is not None})

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Log-likelihood of each continuation under the arm whose turn it is."""
        self._steer(requests)  # prepares every arm
        groups: dict[tuple[str, tuple[int, ...]], list[Instance]] = {}
        for request in requests:
            steering = self._prepared[request.task_name].values()
            edits = tuple(each.edit_of(request.doc) for each in steering)
            groups.setdefault((request.task_name, edits), []).append(request)
        label = f"Scoring under {len(self._arms)} methods at once"
        with tqdm(total=len(requests), desc=label, disable=disable_tqdm) as bar:
            for (name, edits), alike in groups.items():
                self._answer(self._prepared[name], edits, alike, bar)
        return super().loglikelihood(requests, True)

    def _answer(
        self,
        arms: Mapping[Arm, TaskSteering],
        chosen: Sequence[int],
        requests: Sequence[Instance],
        bar: Any,
    ) -> None:
        """Answer, under all arms at once, what some arm has not answered yet.

        Args:
            arms: with their edits.
            chosen: of each arm the index of its edit for these requests.
            requests: alike in that.
            bar: shows how far it is.
        """
        families: dict[Any, tuple[Options, list[Edit]]] = {}
        places: list[tuple[Any, int] | None] = []
        digests = []
        for (arm, steering), index in zip(arms.items(), chosen, strict=True):
            options = self._arms[arm]
            edit = None if index == UNSTEERED else steering.edits[index]
            digests.append(self._digest(options, edit))
            if edit is None:
                places.append(None)
                continue
            alike = (options.method, site_of(options), options.activations)
            edits = families.setdefault(alike, (options, []))[1]
            places.append((alike, len(edits)))
            edits.append(edit)
        joint = [self._joined(options, edits) for options, edits in families.values()]
        first, offsets = 1, {}
        for alike, family in zip(families, joint, strict=True):
            offsets[alike], first = first, first + family.count
        rows = [0 if place is None else offsets[place[0]] + place[1] for place in places]

        cache = ResponseCache(None)
        keys: list[list[str]] = [[] for _ in requests]
        for cache.steering in digests:
            for mine, request in zip(keys, requests, strict=True):
                mine.append(cache.key("loglikelihood", request.args))
        left = [i for i, of in enumerate(keys) if not all(key in self._answers for key in of)]
        bar.update(len(requests) - len(left))

        def done(numbers: list[int], values: Tensor, greedy: Tensor) -> None:
            found = zip(values[rows].T.tolist(), greedy[rows].T.tolist(), strict=True)
            self._answers.note(
                {
                    key: (value, flag)
                    for number, (sums, flags) in zip(numbers, found, strict=True)
                    for key, value, flag in zip(keys[left[number]], sums, flags, strict=True)
                }
            )
            bar.update(len(numbers))

        if left:
            continuations = [self.continuation(*requests[i].args) for i in left]
            self.engine.score_grid(continuations, joint, done)

    def _digest(self, options: Options, edit: Edit | None) -> str:
        edits = None if edit is None else self._joined(options, [edit])
        return self.steering_digest(options, edits, 0)

    def _joined(self, options: Options, edits: list[Edit]) -> Edits:
        return joined(self.engine.site(*site_of(options)), edits, options)
