"""The command ``sadi-lmeval``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence

from sadi_lmeval.commands import compare, condition, fits, pairs, plan, report, sweep, tasks
from sadi_lmeval.errors import UserError
from sadi_lmeval.launch import forget_the_others, launched, launched_as
from sadi_lmeval.storage.yaml_files import files_looked_at_once

_IN_ALL = ("compare", "sweep")
"""Commands that every process of a run takes part in; the others are the first one's."""
_INTERRUPTED = "\nsadi-lmeval: interrupted; re-run the same command to resume"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake costs one line and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if launched() == 1:
        return _alone(arguments)
    if arguments[:1] and arguments[0] in _IN_ALL:
        return _in_all(arguments)
    if launched_as() > 0:
        return 0
    forget_the_others()
    return _alone(arguments)


def _alone(arguments: Sequence[str]) -> int:
    try:
        _run(arguments)
    except UserError as error:
        print(_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return 130
    return 0


def _in_all(arguments: Sequence[str]) -> int:
    """Run the command in every process; the first one speaks for all."""
    from sadi_lmeval.ending import CommonEnd
    from sadi_lmeval.processes import joined

    try:
        processes = joined()
        end = CommonEnd(processes)
    except (UserError, KeyboardInterrupt) as error:
        if launched_as() == 0:
            print(_line(error) if isinstance(error, UserError) else _INTERRUPTED, file=sys.stderr)
        else:
            time.sleep(_SECONDS_TO_SPEAK)  # the launcher ends all of them with the first that ends
        return 1 if isinstance(error, UserError) else 130
    if not processes.is_first:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the end)
    try:
        _run(arguments)
        end.leave()
    except SystemExit as error:  # of argparse, which has written why
        if error.code:
            end.fail(error.code if isinstance(error.code, int) else 1, None)
    except UserError as error:
        end.fail(1, _line(error))
    except KeyboardInterrupt:
        end.fail(130, _INTERRUPTED)
    except BaseException:
        where = f"process {processes.rank} of {processes.count}"
        text = f"{traceback.format_exc()}sadi-lmeval: error: {where} has failed"
        end.fail(1, text, foreseen=False)
    return 0


_SECONDS_TO_SPEAK = 3.0
"""In which the first process says why none of them can begin."""


def _run(arguments: Sequence[str]) -> None:
    parser = _parser()
    given, rest = parser.parse_known_args(_joined(arguments))
    # compare takes the harness's own options too, sweep one for each number of a setting.
    if rest and given.command not in _IN_ALL:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    with files_looked_at_once():
        given.run(given, rest, shlex.join(["sadi-lmeval", *arguments]))


def _line(error: UserError) -> str:
    return f"sadi-lmeval: error: {error}"


def _joined(arguments: Sequence[str]) -> list[str]:
    """Write ``--delta -2,9`` as ``--delta=-2,9``: a list may begin with a negative number."""
    joined: list[str] = []
    for argument in arguments:
        negative = argument[:1] == "-" and argument[1:2] in set("0123456789.")
        if joined and negative and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sadi-lmeval", description="Steering of language models inside lm-evaluation-harness."
    )
    parser.add_argument(
        "--version", action="version", version=importlib.metadata.version("sadi-lmeval")
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (tasks, pairs, condition, plan, sweep, compare, report, fits):
        command.add(commands)
    return parser
