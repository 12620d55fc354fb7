"""The processes of a run: how work is divided over them, and how results are collected."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


class Processes:
    """The processes that ``torchrun`` or ``accelerate launch`` started, on all nodes together.

    Whatever waits for the others here must be called by all of them, in the same order.

    Attributes:
        rank: which of them this one is, over all nodes.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        """
        Args:
            device: where tensors must be to be summed: that of the model.
        """
        self.rank, self.count = rank, count
        self._device = device or torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """Take this process's part of some items, each with its index among all of them."""
        return list(enumerate(items))[self.rank :: self.count]

    def broadcast(self, answer: Callable[[], T]) -> T:
        """Let the first process answer and send the answer to all; the others wait for it."""
        if self.count == 1:
            return answer()
        box: list[Any] = [answer() if self.is_first else None]
        distributed.broadcast_object_list(box, src=0, device=self._device)
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
        total = tensor.to(self._device)
        distributed.all_reduce(total)
        return total.cpu()


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
