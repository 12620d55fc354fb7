"""``sadi-lmeval compare``: methods side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sadi_lmeval.commands.arguments import chosen_arms, listed, loaded_model, model_arguments
from sadi_lmeval.commands.report import add_report_options, write_report
from sadi_lmeval.errors import UserError


def add(commands: Any) -> None:
    """Describe the command's options."""
    compare = commands.add_parser(
        "compare",
        help="score tasks under several methods and test the differences",
        description="Score tasks under several methods: the model is loaded once, every method "
        "gets the same documents, pairs, folds and number of settings to choose from, and the "
        "prompts are computed once for all of them. Every other option of lm_eval is taken too. "
        "Re-run the same command to resume an interrupted comparison.",
    )
    compare.add_argument(
        "--methods",
        help="comma-separated arms (default: none, and those of every method of this package; "
        "an unknown name lists all)",
    )
    compare.add_argument("--tasks", "-t", required=True, help="comma-separated tasks or groups")
    compare.add_argument("--output_path", "-o", type=Path, required=True, help="a folder")
    compare.add_argument(
        "--settings",
        type=int,
        default=12,
        help="the most settings that each method may try while tuning (default: %(default)s)",
    )
    compare.add_argument(
        "--transfer", action="store_true", help="try each task's fits on every other task too"
    )
    add_report_options(compare)
    compare.set_defaults(run=run)


def run(given: argparse.Namespace, rest: Sequence[str], command: str) -> None:
    from sadi_lmeval.methods.registry import UNSTEERED

    methods = chosen_arms(given.methods)
    if UNSTEERED not in methods:
        raise UserError(f"--methods: {UNSTEERED} is missing, which every method is compared with")
    listed("tasks", given.tasks)
    if given.settings < 1:
        raise UserError(f"--settings {given.settings}: must be at least 1")

    from sadi_lmeval.commands.host_options import host_options
    from sadi_lmeval.comparison.compare import Comparison, check_folder, compare
    from sadi_lmeval.comparison.compared import ComparedModel
    from sadi_lmeval.records.record import FOLDER
    from sadi_lmeval.storage.journal import held

    host = host_options(["--tasks", given.tasks, *rest])
    # What some arm of a method sets makes a row of its own.
    arguments = model_arguments(host.model_args, methods, ("settings", "methods"), every=True)
    tasks = host.load_tasks()
    what = Comparison(
        tuple(methods), tuple(tasks), given.settings, given.transfer, host.evaluation, command,
        host.log_samples,
    )  # fmt: skip
    check_folder(given.output_path, what)
    model = loaded_model(partial(ComparedModel, arm_names=methods), arguments)
    with held(given.output_path / FOLDER):
        compare(model, what, given.output_path)
        write_report([given.output_path], given.output_path, given)
