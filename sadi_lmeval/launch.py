"""What ``torchrun`` or ``accelerate launch`` tells a process that it has started."""

from __future__ import annotations

import os

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def launched() -> int:
    """Count the processes of the run, on all nodes; 1 where nothing has started several."""
    return _number(_SIZES, 1)


def launched_as() -> int:
    """Say which of them this one is."""
    return _number(_RANKS, 0)


def forget_the_others() -> None:
    """Have this process be one by itself, also for libraries that look."""
    for name in (*_SIZES, *_RANKS, *_LOCAL):
        os.environ.pop(name, None)


def _number(names: tuple[str, ...], otherwise: int) -> int:
    # accelerate takes MPI's processes for those of a run on CPUs alone.
    of_mpi = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on")
    for name in names if of_mpi else names[:1]:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return otherwise
