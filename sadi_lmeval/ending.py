"""One end for all processes of a run: where one fails, the first says why, once, and all end.

A process that waits for the others in a collective cannot be told by one that has failed, and how
long it would wait is the backend's affair. So each holds a connection to the first: what has failed
is said there, and one that is killed closes it, on whatever node it was.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from sadi_lmeval.errors import UserError
from sadi_lmeval.processes import Processes

_JOINING = 60.0
"""Seconds in which every process connects to the first: all of them have just met."""
_PATIENCE = 30.0
"""Seconds after which a process that has failed ends, whether or not the first has said so."""
_CAUSE = 1.0
"""Seconds in which it is heard that another process has failed or was killed, before that is told
which came of it: a collective fails where the other side is gone."""


class CommonEnd:
    """Of the processes of a run, which all make one at the same time."""

    def __init__(self, processes: Processes) -> None:
        """
        Raises:
            UserError: not every process can connect to the first.
        """
        self._processes = processes
        self._ending = threading.Lock()
        self._links: dict[int, socket.socket] = {}
        server = _server() if processes.is_first else None
        secret, port = processes.broadcast(
            lambda: (secrets.token_hex(16), 0 if server is None else server.getsockname()[1])
        )
        address = os.environ.get("MASTER_ADDR", "127.0.0.1"), port
        try:
            if server is not None:
                self._accept(server, secret)
            else:
                self._links[0] = socket.create_connection(address, timeout=_JOINING)
                self._send(0, {"secret": secret, "rank": processes.rank})
        except OSError as error:
            raise UserError(
                f"not every process reaches the first one at port {port} of {address[0]} "
                f"({error}); let the nodes connect to each other's ports"
            ) from None
        for rank, link in self._links.items():
            link.settimeout(None)
            threading.Thread(target=self._listen, args=(rank, link), daemon=True).start()

    def fail(self, code: int, text: str | None, foreseen: bool = True) -> NoReturn:
        """End all processes.

        Args:
            code: that they exit with, not 0.
            text: what the first process writes to stderr; None: every process has failed alike, and
                the first one has written why.
            foreseen: whether this process itself is known to be the cause.
        """
        if not foreseen:
            time.sleep(_CAUSE)
        if self._processes.is_first:
            self._end(code, text)
        try:
            if text is not None:
                self._send(0, {"failed": code, "text": text})
            time.sleep(_PATIENCE)  # in which the first one ends this one
        except OSError:
            pass
        self._end(code, text)

    def leave(self) -> None:
        """Say, when all processes have come to their end, that this one has not failed."""
        self._processes.all_gather(None)
        for rank in self._links:
            try:
                self._send(rank, {"bye": True})
            except OSError:
                continue  # it has left

    def _accept(self, server: socket.socket, secret: str) -> None:
        until = time.monotonic() + _JOINING
        with server:
            while len(self._links) < self._processes.count - 1:
                server.settimeout(max(0.0, until - time.monotonic()))
                link, _ = server.accept()
                link.settimeout(_JOINING)
                said = _read(link)
                if said.get("secret") == secret:
                    self._links[said["rank"]] = link
                else:
                    link.close()  # somebody else on the network

    def _listen(self, rank: int, link: socket.socket) -> None:
        """Hear what another process says, until it leaves, or ends."""
        said = _read(link)
        if said.get("bye"):
            return
        if "end" in said:
            os._exit(said["end"])
        if "failed" in said:
            self._end(said["failed"], said["text"])
        known = self._processes.is_first or self._processes.rank == 1
        count = self._processes.count
        text = f"sadi-lmeval: error: process {rank} of {count} has ended without a word (killed?)"
        self._end(1, text if known else None)

    def _end(self, code: int, text: str | None) -> NoReturn:
        self._ending.acquire()  # for good: what fails later is not said
        if text is not None and sys.__stderr__ is not None:
            print(text, file=sys.__stderr__, flush=True)
        for rank in self._links if self._processes.is_first else ():
            try:
                self._send(rank, {"end": code})
            except OSError:
                continue  # it has ended
        os._exit(code)  # the main thread may wait for others in a collective

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        self._links[rank].sendall(json.dumps(message).encode() + b"\n")


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _read(link: socket.socket) -> dict[str, Any]:
    """Read a message; an empty one where the other side is gone, or sends none."""
    try:
        with link.makefile("rb") as file:
            content = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
