"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError, first_line


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are called and mean what they do in ``lm_eval``."""
    host = parser.add_argument_group("as in lm_eval")
    host.add_argument("--model_args", "-a", required=True, help="pretrained=…, as for hf-sadi")
    host.add_argument("--tasks", "-t", required=True, help="comma-separated tasks or groups")
    host.add_argument("--num_fewshot", "-f", type=int)
    host.add_argument("--batch_size", "-b", help="default: auto")
    host.add_argument("--max_batch_size", type=int)
    host.add_argument("--device")
    host.add_argument("--limit", "-L", type=float)
    host.add_argument("--include_path", type=Path)
    host.add_argument("--system_instruction")
    host.add_argument("--apply_chat_template", nargs="?", const=True, default=False)
    host.add_argument("--fewshot_as_multiturn", action="store_true")
    host.add_argument("--trust_remote_code", action="store_true")


def listed(name: str, text: str) -> list[str]:
    """Split a comma-separated list, none of it empty or named twice."""
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise UserError(f"--{name}: an empty list; name at least one, separated by commas")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise UserError(f"--{name}: {', '.join(twice)} named twice")
    return values


def chosen_arms(text: str | None) -> list[str]:
    """Read ``--methods``: arms by name; without it the usual ones.

    Raises:
        UserError: there is no such arm, or one is named twice.
    """
    from sadi_lmeval.methods.registry import check_arm_names, spelled_out, usual_arms

    if text is None:
        return usual_arms()
    names = spelled_out(listed("methods", text))
    check_arm_names(names)
    return names


def model_arguments(
    arguments: dict[str, Any], names: Sequence[str], instead: Sequence[str], every: bool
) -> dict[str, Any]:
    """Refuse model arguments that a command sets itself.

    Args:
        arguments: of ``--model_args``.
        names: of the arms.
        instead: the command's options to name.
        every: whether what any arm of their methods sets is refused, or only what these set. What
            another method takes, of which no arm sets it, is that one's.
    """
    from sadi_lmeval.methods.arm import SETTING_NAMES, set_by_arms
    from sadi_lmeval.methods.registry import argument_names, arm_named, methods

    axes = [name for method in methods().values() for name in method.axes.names]
    arms = [arm_named(name) for name in names]
    set_by_name = [key for arm in arms for key in (*arm.sets, *arm.shared)]
    if every:
        kinds = dict.fromkeys(arm.method for arm in arms if arm.method is not None)
        own = {kind: set_by_arms(kind) for kind in kinds}
        free = frozenset().union(*(argument_names(kind) - own[kind] for kind in kinds))
        set_by_name = [*(k for keys in own.values() for k in sorted(keys - free)), "labels"]
    refused = dict.fromkeys(["method", *axes, *set_by_name, *SETTING_NAMES])
    ours = [name for name in refused if name in arguments]
    if ours:
        raise UserError(
            f"--model_args {', '.join(ours)}: several are tried; use "
            + ", ".join(f"--{name}" for name in instead)
        )
    if "mask" in arguments:
        raise UserError("--model_args mask: fits are made here; use mask_from=TASK")
    if "pretrained" not in arguments:
        raise UserError("--model_args: pretrained=MODEL is missing")
    return dict(arguments)


def loaded_model(kind: Any, arguments: dict[str, Any]) -> Any:
    """Load the model; what cannot be loaded is a user's error in one line."""
    import torch

    if not torch.cuda.is_available():
        arguments.setdefault("device", "cpu")  # the harness's own default is cuda
    size = arguments.setdefault("batch_size", "auto")
    if str(size).isdigit() and int(size):
        arguments["batch_size"] = int(size)
    elif not str(size).startswith("auto"):
        raise UserError(f"--batch_size {size}: must be a whole number of at least 1, or auto")
    try:
        return kind(**arguments)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model_args pretrained={arguments['pretrained']}: cannot be loaded "
            f"({first_line(error)})"
        ) from error
