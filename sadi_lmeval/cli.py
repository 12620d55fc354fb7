"""The command ``sadi-lmeval``."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Sequence

from sadi_lmeval.commands import compare, condition, fits, pairs, plan, report, sweep, tasks
from sadi_lmeval.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake costs one line and exit code 1."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = parser.parse_known_args(_joined(arguments))
    # compare takes the harness's own options too, sweep one for each number of a setting.
    if rest and given.command not in ("compare", "sweep"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        given.run(given, rest, shlex.join(["sadi-lmeval", *arguments]))
    except UserError as error:
        print(f"sadi-lmeval: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsadi-lmeval: interrupted; re-run the same command to resume", file=sys.stderr)
        return 130
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
