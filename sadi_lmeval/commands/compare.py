"""``sadi-lmeval compare``: methods side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.commands.arguments import listed, loaded_model, model_arguments
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
        "An interrupted comparison goes on where it was when the command is given again.",
    )
    compare.add_argument(
        "--methods",
        default="none,sadi-head,sadi-neuron,sadi-hidden,iti,caa",
        help="comma-separated; random and fixed too (default: %(default)s)",
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
        "--transfer", action="store_true", help="try each task's masks on every other task too"
    )
    add_report_options(compare)
    compare.set_defaults(run=run)


def run(given: argparse.Namespace, rest: Sequence[str], command: str) -> None:
    from sadi_lmeval.arms import check_arms

    methods = listed("methods", given.methods)
    check_arms(methods)
    if "none" not in methods:
        raise UserError("--methods: none is missing, which every method is compared with")
    listed("tasks", given.tasks)
    if given.settings < 1:
        raise UserError(f"--settings {given.settings}: must be at least 1")

    from sadi_lmeval.comparison.compare import Comparison, check_folder, compare
    from sadi_lmeval.comparison.compared import ComparedModel
    from sadi_lmeval.harness.host_options import host_options
    from sadi_lmeval.reports.record import FOLDER
    from sadi_lmeval.storage.journal import held

    host = host_options(["--tasks", given.tasks, *rest])
    of_rows = ("selection", "steering")  # random and fixed are rows of their own
    arguments = model_arguments(host.model_args, ("settings", "methods"), of_rows)
    tasks = host.task_names()
    what = Comparison(
        tuple(methods), tuple(tasks), given.settings, given.transfer, host.evaluation, command,
        host.log_samples,
    )  # fmt: skip
    check_folder(given.output_path, what)
    model = loaded_model(ComparedModel, arguments)
    with held(given.output_path / FOLDER):
        compare(model, what, given.output_path)
        write_report([given.output_path], given.output_path, given)
