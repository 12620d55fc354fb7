"""Commands in processes of their own, forked after everything is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from helpers import quick_host
from helpers.launchers import free_port

SERVER = """
import faulthandler, gc, importlib, json, os, signal, sys, threading, time
import tqdm

tqdm.tqdm.set_lock(threading.RLock())  # its own is shared with the forks: killed, they keep it
from helpers import quick_host
from lm_eval.__main__ import cli_evaluate
from transformers import AutoModelForCausalLM
from sadi_lmeval import cli, model
from sadi_lmeval.comparison import compare, sweep
from sadi_lmeval.commands import host_options
from sadi_lmeval.pairs import benchmark
from sadi_lmeval.reports import report

quick_host.hurry()
AutoModelForCausalLM.from_pretrained(sys.argv[1])  # imports most of transformers
benchmark.find_benchmark("none", [])  # parses the benchmark files
gc.freeze()  # statsmodels collects garbage at every call, in each fork


def run(program, arguments):
    if program == "sadi-lmeval":
        return cli.main(arguments)
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
    return 0


def kill_at(count, folder):
    '''Die before the count-th file in the folder is opened for writing, renamed or deleted, or
    when it has been written.'''
    left = count
    fsync = os.fsync

    def passed(path):
        nonlocal left
        left -= folder in str(path)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.truncate", "os.mkdir"):
            passed(arguments[0])

    def fsync_or_die(file):
        fsync(file)
        passed(os.readlink(f"/proc/self/fd/{file}"))

    sys.addaudithook(hook)
    os.fsync = fsync_or_die


def break_at(place):
    module, _, name = place.rpartition(".")

    def fail(*_, **__):
        raise MemoryError("planted")

    setattr(importlib.import_module(module), name, fail)


def begin(asked):
    child = os.fork()
    if child:
        return child
    # A shell has what it starts in the background ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(asked["environment"])
    output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(300, exit=True)  # a hang is a failure
    if asked["kill_at"]:
        kill_at(*asked["kill_at"])
    if asked["broken"]:
        break_at(asked["broken"])
    code = 1
    try:
        code = run(asked["program"], asked["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    start = time.monotonic()
    processes = [begin(asked) for asked in json.loads(line)]
    print(json.dumps(processes), flush=True)
    ended = {}
    for _ in processes:
        process, status = os.wait()
        ended[process] = os.waitstatus_to_exitcode(status), time.monotonic() - start
    print(json.dumps([ended[process] for process in processes]), flush=True)
"""
"""Reads lists of commands, begins those of a list at once, tells their processes, and then how and
after how many seconds each has ended."""


class Done(NamedTuple):
    """A command that has ended, or has been killed.

    Attributes:
        code: of its exit; below 0: the signal that it died of.
        output: what it wrote to stdout and stderr.
        seconds: from its beginning to its end.
    """

    code: int
    output: str
    seconds: float


Command = tuple[str, list[str]]


class Commands:
    """Runs ``lm_eval`` and ``sadi-lmeval`` in processes of their own, without their start-up.

    Attributes:
        model: the tiny model's folder.
        environment: variables that every command needs.
    """

    def __init__(self, model: Path, tasks: Path, folder: Path) -> None:
        self.model, self._tasks, self._folder = model, tasks, folder
        self.environment = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(quick_host.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            ).rstrip(os.pathsep),
        }
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
            cwd=folder,
            text=True,
        )
        self._count = 0

    def arguments(self, program: str, tasks: str, *options: str, **model_args: Any) -> list[str]:
        """A whole command line on the tiny model."""
        text = f"pretrained={self.model}"
        text += "".join(f",{name}={value}" for name, value in model_args.items())
        found = ["--model_args", text, "--tasks", tasks, "--include_path", str(self._tasks)]
        found += ["--device", "cpu", "--batch_size", "4", *options]
        return [*program.split()[1:], *found]

    def together(
        self,
        *commands: Command,
        kill_after: float | None = None,
        kill_at: tuple[int, Path] | None = None,
        environments: Sequence[Mapping[str, str]] = (),
        broken: str | None = None,
        interrupt_when: Path | None = None,
        kill_when: Path | None = None,
    ) -> list[Done]:
        """Commands that begin at once, until all have ended.

        Args:
            commands: program and arguments of each.
            kill_after: seconds after which the first of them is killed.
            kill_at: a number and a folder: each of them is killed at its step of that number on a
                file in the folder.
            environments: of each.
            broken: a function that raises ``MemoryError`` in the first of them.
            interrupt_when: a file; when it is there, all of them are interrupted.
            kill_when: a file; when it is there and not empty, the first of them is killed.
        """
        logs = [self._folder / f"{self._count + i}.log" for i, _ in enumerate(commands)]
        self._count += len(commands)
        step = None if kill_at is None else (kill_at[0], str(kill_at[1]))
        asked = [
            {
                "program": program.split()[0],
                "arguments": arguments,
                "log": str(log),
                "kill_at": step,
                "environment": dict(environments[i]) if environments else {},
                "broken": None if i else broken,
            }
            for i, ((program, arguments), log) in enumerate(zip(commands, logs, strict=True))
        ]
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        processes = json.loads(self._server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(processes[0], signal.SIGKILL)
        awaited = interrupt_when or kill_when
        if awaited is not None:
            while _lives(processes[0]) and not (awaited.exists() and awaited.stat().st_size):
                time.sleep(0.005)
            for process in processes if interrupt_when else processes[:1]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGINT if interrupt_when else signal.SIGKILL)
        ended = json.loads(self._server.stdout.readline())
        return [
            Done(code, log.read_text(errors="replace"), seconds)
            for log, (code, seconds) in zip(logs, ended, strict=True)
        ]

    def run(
        self,
        program: str,
        arguments: list[str],
        kill_after: float | None = None,
        kill_at: tuple[int, Path] | None = None,
    ) -> Done:
        """One command, until it has ended or is killed."""
        [found] = self.together((program, arguments), kill_after=kill_after, kill_at=kill_at)
        return found

    def spread(
        self, program: str, *arguments: list[str], killed: int = 0, **how: Any
    ) -> list[Done]:
        """One command in several processes, as ``torchrun`` starts them; in order of rank.

        Args:
            arguments: of each process.
            killed: the one that is killed, or broken, if one is.
            how: see :meth:`together`; ``kill_at`` is not among it.
        """
        port, count = str(free_port()), len(arguments)
        ranks = sorted(range(count), key=lambda rank: rank != killed)
        found = self.together(
            *((program, arguments[rank]) for rank in ranks),
            environments=[
                {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
                for rank in ranks
            ],
            **how,
        )
        return [found[ranks.index(rank)] for rank in range(count)]

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
