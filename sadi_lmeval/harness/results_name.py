"""The model's name in the harness's results, and the folder that they are written to."""

from __future__ import annotations

import functools
from typing import Any

from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.utils import simple_parse_args_string

from sadi_lmeval.registration import model_targets


@functools.cache
def name_results_by_the_model() -> None:
    """Have the harness take its names of our models' runs from what ``hf`` takes them from.

    It looks for ``delta`` among a run's arguments, which it takes for a model's delta weights.
    """
    log = GeneralConfigTracker.log_experiment_args

    @functools.wraps(log)
    def log_ours(self: Any, model_source: Any, model_args: Any, *others: Any, **named: Any) -> None:
        if model_source in model_targets():
            model_args = _host_arguments(model_args)
        log(self, model_source, model_args, *others, **named)

    GeneralConfigTracker.log_experiment_args = log_ours


def _host_arguments(given: Any) -> Any:
    """Name the arguments as ``hf`` calls them, without our ``delta``."""
    arguments = simple_parse_args_string(given) if isinstance(given, str) else given
    if not isinstance(arguments, dict):
        return given
    named = {key: value for key, value in arguments.items() if key != "delta"}
    return {"delta" if key == "delta_weights" else key: value for key, value in named.items()}
