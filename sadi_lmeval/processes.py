"""The processes of a run: how work is divided over them, and how results are collected."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from sadi_lmeval.errors import UserError
from sadi_lmeval.launch import launched

T = TypeVar("T")


class Processes:
    """The processes that ``torchrun`` or ``accelerate launch`` started, on all nodes together.

    Whatever waits for the others here must be called by all of them, in the same order.

    Attributes:
        rank: which of them this one is, over all nodes.
        count: how many there are.
        device: where tensors must be to be summed.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        """
        Args:
            device: where tensors must be to be summed: that of the model.
        """
        self.rank, self.count = rank, count
        self.device = device or torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """Take this process's part of some items, each with its index among all of them."""
        return list(enumerate(items))[self.rank :: self.count]

    @property
    def divide_batches(self) -> bool:
        """Whether it is batches that are divided, and every process is given all items."""
        return False

    @property
    def notes_down(self) -> bool:
        """Whether this process notes down work that is not finished: its own, or that of all."""
        return True

    def known(self, noted: T) -> T:
        """Take what has been noted down before: by this process, or by the one that does so."""
        return noted

    def run(self, jobs: Iterable[Callable[[], T]], for_all: bool = True) -> Iterator[T]:
        """Run jobs, and yield what came of each, in their order.

        Args:
            jobs: of this process, unless batches are divided: then the same for all.
            for_all: whether every process is to have the results, or the first one alone.
        """
        for job in jobs:
            yield job()

    def broadcast(self, answer: Callable[[], T]) -> T:
        """Let the first process answer and send the answer to all; the others wait for it."""
        if self.count == 1:
            return answer()
        box: list[Any] = [answer() if self.is_first else None]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[no-any-return]

    def all_gather(self, part: T) -> list[T]:
        """Collect every process's part, in order of rank, on all of them."""
        if self.count == 1:
            return [part]
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, part)
        return parts

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum every process's tensor, on the CPU, in the tensor's own type."""
        if self.count == 1:
            return tensor
        total = tensor.to(self.device)
        distributed.all_reduce(total)
        return total.cpu()


class Together(Processes):
    """Processes that all go through the same items, and divide the batches that these make.

    The batches are those of one process, whatever the number of processes, and results come in the
    same order: so each process has what one process would have, to the bit.
    """

    @property
    def divide_batches(self) -> bool:
        return self.count > 1

    @property
    def notes_down(self) -> bool:
        return self.is_first

    def known(self, noted: T) -> T:
        return self.broadcast(lambda: noted)

    def shard(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """Take all of the items."""
        return list(enumerate(items))

    def run(self, jobs: Iterable[Callable[[], T]], for_all: bool = True) -> Iterator[T]:
        """Run every ``count``-th of the jobs, and exchange what came of them in between."""
        if self.count == 1:
            yield from super().run(jobs, for_all)
            return
        left = iter(jobs)
        while turn := list(islice(left, self.count)):
            jobs_of_turn, mine = len(turn), turn[self.rank : self.rank + 1]
            turn.clear()  # what the others' jobs hold is theirs
            own = [job() for job in mine]
            parts = self.all_gather(own) if for_all else self._gather(own)
            for [result] in parts[:jobs_of_turn]:
                yield result

    def _gather(self, part: T) -> list[T]:
        """Collect every process's part on the first one; the others get none."""
        parts: list[Any] | None = [None] * self.count if self.is_first else None
        distributed.gather_object(part, parts, dst=0)
        return parts or []


@cache
def joined() -> Together:
    """Join the processes that a command was started in, as the harness does for its models.

    Raises:
        UserError: several were started, but they do not find each other.
    """
    if launched() == 1:
        return Together()
    if not getattr(torch, "accelerator", torch.cuda).is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        # Its own "cpu:0" has weights copied that are mapped from their file on "cpu", as in a run
        # of one process: memory for each process, and sums that round otherwise.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # Some process may be busy for long before it meets the others.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=52))])
    if accelerator.num_processes == 1:
        raise UserError(
            f"{launched()} processes were started, but on {accelerator.device} accelerate runs one "
            "by itself; start one, or pass ACCELERATE_USE_CPU=true"
        )
    leave_at_exit()
    return Together(accelerator.process_index, accelerator.num_processes, accelerator.device)


def leave_at_exit() -> None:
    """Have this process leave the group of all before its interpreter ends.

    A group's threads drop Python objects; one that does so while the interpreter is being taken
    down aborts the process after its work is done, and the run counts as failed.
    """
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


ALONE = Processes()
"""Of a run with one process."""
