"""How a command is started in several processes, on one node and on two."""

from __future__ import annotations

import socket
import sys

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
LAUNCHERS: dict[str, list[tuple[str, ...]]] = {
    "one": [(sys.executable,)],
    "two": [(*TORCHRUN, "--standalone", "--nproc_per_node", "2")],
    "three": [(*TORCHRUN, "--standalone", "--nproc_per_node", "3")],
    "two nodes": [
        (*TORCHRUN, "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1")
        for node in (0, 1)
    ],
    # Its processes on CPUs are MPI's, so that it is tried with one.
    "accelerate": [
        (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    ],
}
"""Of each layout the command of every node."""


def launchers(layout: str) -> list[list[str]]:
    """The command of every node; the nodes of a run meet at a port that is free."""
    port = str(free_port())
    meeting = ["--master_addr", "127.0.0.1", "--master_port", port]
    return [[*each, *(meeting if "--nnodes" in each else ())] for each in LAUNCHERS[layout]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
