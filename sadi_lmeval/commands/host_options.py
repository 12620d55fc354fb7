"""The options of the harness's own command, read with its own parser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lm_eval._cli.run import Run
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.tasks import TaskManager

from sadi_lmeval.errors import UserError, first_line, nearest
from sadi_lmeval.harness.run_task import RunTask
from sadi_lmeval.harness.run_tasks import load_tasks
from sadi_lmeval.identity.task import task_digest

_REFUSED = (
    "model",
    "use_cache",
    "cache_requests",
    "wandb_args",
    "wandb_config_args",
    "trackio_args",
    "hf_hub_log_args",
    "show_config",
    "predict_only",
)
"""What has no meaning where several methods are scored: each of these is refused when given."""
_PASSED = (
    "num_fewshot",
    "limit",
    "samples",
    "check_integrity",
    "write_out",
    "system_instruction",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "gen_kwargs",
    "verbosity",
    "confirm_run_unsafe_code",
)


class HostOptions:
    """What the harness's command would be run with.

    Attributes:
        model_args: of the model, with the device and the batch size.
        evaluation: arguments of ``lm_eval.simple_evaluate``.
        log_samples: whether samples are written.
    """

    def __init__(self, config: EvaluatorConfig, given: argparse.Namespace) -> None:
        self._config = config
        self.model_args: dict[str, Any] = dict(config.model_args)
        for name in ("batch_size", "max_batch_size", "device", "trust_remote_code"):
            if getattr(given, name, None) is not None:
                self.model_args[name] = getattr(given, name)
        self.log_samples = bool(config.log_samples)
        self._manager: TaskManager = config.process_tasks(config.metadata)
        seeds = config.seed or [None] * 4
        names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        self.evaluation: dict[str, Any] = {
            **{name: getattr(config, name) for name in _PASSED},
            **dict(zip(names, seeds, strict=True)),
            "model_args": dict(config.model_args),
            "task_manager": self._manager,
        }

    def load_tasks(self, names: Sequence[str] | None = None) -> list[RunTask]:
        """Load tasks, those of groups and tags one by one.

        Args:
            names: of them; None: those of the command.

        Raises:
            UserError: one is not known, or cannot be scored here.
        """
        named = self._config.tasks if names is None else names
        if any(not isinstance(name, str) for name in named):
            raise UserError("--tasks: name tasks; for files of your own pass --include_path")
        for name in named:
            if name not in self._manager.all_tasks:
                raise UserError(f"unknown task {name!r}: {nearest(name, self._manager.all_tasks)}")
        shots = self.evaluation["num_fewshot"]
        tasks = load_tasks(list(named), [], shots, {}, self._manager)
        rolling = [task.name for task in tasks if task.output_type == "loglikelihood_rolling"]
        if rolling:
            raise UserError(
                f"task {rolling[0]} asks for loglikelihood_rolling, which has no prompt whose last "
                "token could be steered; leave it out"
            )
        self._refuse_changed([task for task in tasks if task.name not in named])
        return tasks

    def _refuse_changed(self, tasks: list[RunTask]) -> None:
        """Refuse tasks that are not what they are without the group that they are from."""
        names = [task.name for task in tasks if task.name in self._manager.all_tasks]
        shots = self.evaluation["num_fewshot"]
        ungrouped = load_tasks(names, [], shots, {}, self._manager) if names else []
        alone = {task.name: task_digest(task) for task in ungrouped}
        for task in tasks:
            if alone.get(task.name) != task_digest(task):
                raise UserError(
                    f"task {task.name}: its group gives it settings of its own, but tasks are "
                    "scored one by one here; name tasks that have their settings themselves"
                )


def host_options(arguments: Sequence[str]) -> HostOptions:
    """Read what is left of a command line as ``lm_eval run`` would.

    Raises:
        UserError: an option that is not available here, or that the harness refuses.
    """
    parser = argparse.ArgumentParser(prog="sadi-lmeval compare", usage="%(prog)s OPTION ...")
    Run.create(parser.add_subparsers(dest="command"))
    given = parser.parse_args(["run", *arguments])
    refused = [f"--{name}" for name in _REFUSED if getattr(given, name, None)]
    if refused:
        raise UserError(f"{', '.join(refused)}: not taken where several methods are scored")
    log_samples = getattr(given, "log_samples", False)
    given.log_samples = False  # it asks for an output path, which is ours
    if given.limit is not None and not given.limit > 0:
        raise UserError(f"--limit {given.limit:g}: must be above 0")
    try:
        config = EvaluatorConfig.from_cli(given)
        options = HostOptions(config, given)
    except UserError:
        raise
    except (ValueError, OSError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"options of lm_eval: {reason}") from None
    options.log_samples = bool(log_samples)
    return options
