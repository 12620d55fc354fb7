"""``sadi-lmeval compare``: methods side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sadi_lmeval.commands.arguments import (
    add_passed_options,
    chosen_arms,
    listed,
    loaded_model,
    model_arguments,
)
from sadi_lmeval.commands.report import add_report_options, write_report
from sadi_lmeval.controls import CONTROLS, INSTRUCTION, PROMPT_ONLY
from sadi_lmeval.errors import UserError


def add(commands: Any) -> None:
    """Describe the command's options."""
    compare = commands.add_parser(
        "compare",
        allow_abbrev=False,  # --model is an option of lm_eval, and no beginning of --model_args
        help="score tasks under several methods and test the differences",
        description="Score tasks under several methods: the model is loaded once, every method "
        "gets the same documents, pairs, folds and number of settings to choose from, and the "
        "prompts are computed once for all of them. Re-run the same command to resume an "
        "interrupted comparison.",
    )
    compare.add_argument(
        "--methods",
        help="comma-separated arms (default: none, and those of SADI's paper; an unknown name "
        "lists what there is); `all` stands for every method's, `controls` for the control rows",
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
        "--side_effects",
        metavar="TASKS",
        help="comma-separated tasks or groups: score these too with what is fitted to each task",
    )
    compare.add_argument(
        "--transfer", action="store_true", help="the tasks themselves as --side_effects"
    )
    compare.add_argument(
        "--prompt_only",
        metavar="TEXT",
        help=f"the instruction of the row {PROMPT_ONLY} (default: {INSTRUCTION})",
    )
    add_report_options(compare)
    add_passed_options(compare)
    compare.set_defaults(run=run)


def run(given: argparse.Namespace, rest: Sequence[str], command: str) -> None:
    from sadi_lmeval.methods.registry import UNSTEERED

    methods = chosen_arms(given.methods)
    if UNSTEERED not in methods:
        raise UserError(f"--methods: {UNSTEERED} is missing, which every method is compared with")
    listed("tasks", given.tasks)
    aside = [] if given.side_effects is None else listed("side_effects", given.side_effects)
    if given.prompt_only is not None:
        if PROMPT_ONLY not in methods:
            raise UserError(
                f"--prompt_only: --methods lists no {PROMPT_ONLY}; add it, or {CONTROLS}"
            )
        if not given.prompt_only.strip():
            raise UserError("--prompt_only: an empty instruction; leave it out for the default")
    if given.settings < 1:
        raise UserError(f"--settings {given.settings}: must be at least 1")

    from sadi_lmeval.commands.host_options import host_options
    from sadi_lmeval.comparison.compare import Comparison, check_folder, compare
    from sadi_lmeval.comparison.compared import ComparedModel
    from sadi_lmeval.processes import joined
    from sadi_lmeval.records.record import FOLDER
    from sadi_lmeval.storage.journal import held

    host = host_options(["--tasks", given.tasks, *given.passed, *rest])
    # What some arm of a method sets makes a row of its own.
    arguments = model_arguments(host.model_args, methods, ("settings", "methods"), every=True)
    tasks = host.load_tasks()
    others = host.load_tasks(aside) if aside else []
    if [task.name for task in others] == [task.name for task in tasks] and len(tasks) == 1:
        raise UserError(
            f"--side_effects {given.side_effects}: is the only task itself; name another one"
        )
    if given.transfer:
        others = [*tasks, *others]
    what = Comparison(
        tuple(methods), tuple(tasks), given.settings, tuple(others), host.evaluation, command,
        given.prompt_only or INSTRUCTION, host.log_samples,
    )  # fmt: skip
    writes = joined().is_first
    if writes:
        check_folder(given.output_path, what)
    model = loaded_model(partial(ComparedModel, arm_names=methods), arguments)
    with held(given.output_path / FOLDER) if writes else nullcontext():
        compare(model, what, given.output_path)
        if writes:
            write_report([given.output_path], given.output_path, given)
