"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.errors import UserError, first_line


class HostOption(NamedTuple):
    """An option that is called and means what it does in ``lm_eval``.

    Attributes:
        names: long and short.
        help: one line.
        metavar: of its value.
        kind: what sweep reads the value as; None: the option has no value.
        nargs: as the harness's own parser takes it.
    """

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    kind: Callable[[str], Any] | None = str
    nargs: str | int | None = None


HOST_OPTIONS = (
    HostOption(
        ("--model_args", "-a"), "pretrained=MODEL and more, as for hf-sadi", "ARGS", nargs="+"
    ),
    HostOption(("--tasks", "-t"), "comma-separated tasks or groups", "TASKS"),
    HostOption(("--num_fewshot", "-f"), "examples in each prompt", "N", int),
    HostOption(("--batch_size", "-b"), "documents at once (default: auto)", "N"),
    HostOption(("--max_batch_size",), "the most that auto tries", "N", int),
    HostOption(("--device",), "cuda, cuda:1, cpu, …", "DEVICE"),
    HostOption(("--limit", "-L"), "the first N documents of a task, or a share", "N", float),
    HostOption(("--include_path",), "a folder with tasks, recipes and benchmarks", "DIR", Path),
    HostOption(("--system_instruction",), "begins every prompt", "TEXT"),
    HostOption(
        ("--apply_chat_template",), "write prompts as chats (with that template)", "NAME", nargs="?"
    ),
    HostOption(("--fewshot_as_multiturn",), "examples as turns of the chat", None, None, nargs="?"),
    HostOption(("--trust_remote_code",), "run a model's or data set's own code", None, None, 0),
)
_ONLY_COMPARED = (
    HostOption(
        ("--gen_kwargs",), "of generation: temperature=0.7,max_gen_toks=64", "ARGS", nargs="+"
    ),
    HostOption(("--log_samples", "-s"), "keep every document's answers", None, None, 0),
    HostOption(("--seed",), "of the harness: one number, or four", "N"),
    HostOption(("--metadata",), "for tasks, as JSON or key=value", "ARGS", nargs="+"),
)
"""What sweep does not take."""


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Add options of ``lm_eval`` that a command reads itself."""
    host = parser.add_argument_group("as in lm_eval")
    for option in HOST_OPTIONS:
        required = option.names[0] in ("--model_args", "--tasks")
        more: dict[str, Any]
        if option.kind is None:
            more = {"action": "store_true"}
        elif option.nargs == "?":
            more = {"nargs": "?", "const": True, "default": False, "metavar": option.metavar}
        else:
            more = {"type": option.kind, "required": required, "metavar": option.metavar}
        host.add_argument(*option.names, help=option.help, **more)


def add_passed_options(parser: argparse.ArgumentParser) -> None:
    """Show the most used options of ``lm_eval``, and put them by as they came: ``passed``."""
    host = parser.add_argument_group("as in lm_eval (and most of its others: `lm_eval run --help`)")
    for option in (*HOST_OPTIONS, *_ONLY_COMPARED):
        if option.names[0] == "--tasks":  # read by the command itself
            continue
        host.add_argument(
            *option.names, help=option.help, metavar=option.metavar or "BOOL", nargs=option.nargs,
            action=_Passed,
        )  # fmt: skip
    parser.set_defaults(passed=())


class _Passed(argparse.Action):
    """Keeps an option with its values, for the harness's own parser."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, "passed", default=argparse.SUPPRESS, **settings)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = [] if values is None else values if isinstance(values, list) else [values]
        name = self.option_strings[0]
        # With "=", as a value may begin with a hyphen; several follow their option.
        words = [f"{name}={given[0]}"] if len(given) == 1 else [name, *given]
        namespace.passed = (*namespace.passed, *words)


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
    if "baseline" in arguments:
        raise UserError("--model_args baseline: the unsteered model is a row here; leave it out")
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
