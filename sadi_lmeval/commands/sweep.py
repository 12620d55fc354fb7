"""``sadi-lmeval sweep``: grids of settings on tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sadi_lmeval.commands.arguments import (
    add_host_options,
    chosen_arms,
    listed,
    loaded_model,
    model_arguments,
)
from sadi_lmeval.controls import PROMPT_ONLY
from sadi_lmeval.errors import UserError

if TYPE_CHECKING:
    from sadi_lmeval.methods.arm import Arm
    from sadi_lmeval.settings import SearchSpace


def add(commands: Any) -> None:
    """Describe the command's options."""
    sweep = commands.add_parser(
        "sweep",
        help="try grids of settings on tasks; one JSON line a setting and task",
        description="Try every setting of a grid on tasks, all from one pass over the prompts. An "
        "interrupted sweep is resumed by the same command.",
    )
    add_host_options(sweep)
    sweep.add_argument(
        "--methods",
        help="comma-separated arms (default: those of SADI's paper; an unknown name lists what "
        "there is); `all` stands for every method's",
    )
    sweep.add_argument(
        "--grid",
        help="what is tried instead of each method's own: 1/2x4/9, the values of its numbers in "
        "order; or one option a number, as --top_k 1,2 --delta 4,9",
    )
    sweep.add_argument(
        "--split",
        choices=("dev", "test"),
        default="dev",
        help="dev: held-out training documents, from which a setting may be chosen; test: the "
        "documents that the task scores, from which none may (default: %(default)s)",
    )
    sweep.add_argument("--max_settings", type=int, default=1000, help="default: %(default)s")
    sweep.add_argument("--output", type=Path, required=True, help="the JSONL file")
    sweep.add_argument("--heatmaps", type=Path, help="a folder for heatmaps (PNG)")
    sweep.set_defaults(run=run)


def run(given: argparse.Namespace, rest: Sequence[str], command: object) -> None:
    # Here, so that --help costs no import of torch.
    from sadi_lmeval.methods.arm import read_arms
    from sadi_lmeval.methods.registry import UNSTEERED
    from sadi_lmeval.reports.heatmap import check_can_draw, check_folder, draw_heatmaps

    methods = [name for name in chosen_arms(given.methods) if name != UNSTEERED]
    if PROMPT_ONLY in methods:
        raise UserError(
            f"--methods {given.methods}: {PROMPT_ONLY} has no settings to try; compare has that row"
        )
    if not methods:
        raise UserError(
            f"--methods {given.methods}: the unsteered model is always tried; name a method that "
            "steers"
        )
    names = listed("tasks", given.tasks)
    plain = read_arms(methods, _needed(given.model_args, methods))
    spaces = _spaces(given, _of_axes(rest, plain), plain)
    count = sum(len((spaces.get(m) or plain[m].search_space()).settings) for m in methods)
    if count > given.max_settings:
        raise UserError(
            f"{count} settings: at most --max_settings {given.max_settings} are tried; name a "
            "smaller grid, fewer methods, or a larger --max_settings"
        )
    if any(not space.settings for space in spaces.values()):
        raise UserError(
            "grid: strength 0 alone steers nothing; the unsteered model is always tried"
        )
    if given.limit is not None and not given.limit > 0:
        raise UserError(f"--limit {given.limit:g}: must be above 0")
    from sadi_lmeval.comparison.sweep import Sweep, check_output, sweep
    from sadi_lmeval.processes import joined
    from sadi_lmeval.storage.journal import held

    writes = joined().is_first
    if writes and given.heatmaps is not None:
        check_can_draw()
        check_folder(given.heatmaps)
    if writes:
        check_output(given.output)
    model, tasks = _load(given, names, plain, spaces)
    what = Sweep({name: model.arms[name] for name in methods}, spaces, given.split, given.limit)
    with held(given.output) if writes else nullcontext():
        lines = sweep(tasks, what, model.options, model, given.output)
    if not writes:
        return
    best = _best(lines)
    _print_best(best, plain, given.split)
    print(f"{len(lines)} settings: {given.output}")
    if given.heatmaps is not None:
        axes = {name: arm.axes for name, arm in plain.items()}
        for path in draw_heatmaps(lines, axes, best, given.heatmaps):
            print(f"heatmap: {path}")


def _needed(model_args: str, names: Sequence[str]) -> dict[str, Any]:
    """Read the arguments without which some arm is none."""
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.arguments import declared
    from sadi_lmeval.methods.registry import arm_named

    kinds = [kind for kind in (arm_named(name).method for name in names) if kind is not None]
    needed = {name for kind in kinds for name, own in declared(kind).items() if own.required}
    if not needed:
        return {}
    return {k: v for k, v in simple_parse_args_string(model_args).items() if k in needed}


def _axis_names(arms: Mapping[str, Arm]) -> list[str]:
    """Name the numbers of all arms' settings, each once."""
    return list(dict.fromkeys(name for arm in arms.values() for name in arm.axes.names))


def _of_axes(rest: Sequence[str], arms: Mapping[str, Arm]) -> dict[str, str]:
    """Read the options that are called like a number of some arm's settings."""
    parser = argparse.ArgumentParser(prog="sadi-lmeval sweep", add_help=False, allow_abbrev=False)
    for name in _axis_names(arms):
        parser.add_argument(f"--{name}")
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return {name: text for name, text in vars(options).items() if text is not None}


def _spaces(
    given: argparse.Namespace, by_axis: Mapping[str, str], arms: Mapping[str, Arm]
) -> dict[str, SearchSpace]:
    """Read the user's search space for each arm; none where the user gives nothing."""
    from sadi_lmeval.settings import read_search_space, search_space_of

    if given.grid is None and not by_axis:
        return {}
    names = {name: arm.axes.names for name, arm in arms.items()}
    if len(set(names.values())) > 1:
        raise UserError(
            "a grid is of one kind of method: "
            + "; ".join(f"{name} has {' and '.join(own)}" for name, own in names.items())
        )
    options = " and ".join(f"--{name}" for name in next(iter(names.values())))
    if given.grid is not None:
        if by_axis:
            raise UserError(f"--grid was given with {options}: pass either")
        return {name: read_search_space(given.grid, arm.axes) for name, arm in arms.items()}
    if len(arms) > 1 and len(by_axis) < len(next(iter(names.values()))):
        raise UserError(f"{options}: with several methods give all of them, or none")
    lists = {name: listed(name, text) for name, text in by_axis.items()}
    spaces = {}
    for name, arm in arms.items():
        own = arm.search_space()
        values = zip(arm.axes.names, own.values, strict=True)
        spaces[name] = search_space_of([lists.get(n, v) for n, v in values], "grid", arm.axes)
    return spaces


def _load(
    given: argparse.Namespace,
    names: list[str],
    plain: Mapping[str, Arm],
    spaces: Mapping[str, SearchSpace],
) -> tuple[Any, list[Any]]:
    """Load the tasks and the model; a faulty argument is refused before the model is loaded."""
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.harness.run_tasks import limited, load_tasks
    from sadi_lmeval.methods.arm import own_arguments, read_arms
    from sadi_lmeval.model import ManyArmsModel

    methods, instead = list(plain), ("methods", *_axis_names(plain), "grid")
    arguments = model_arguments(
        simple_parse_args_string(given.model_args), methods, instead, every=False
    )
    arguments |= {
        name: getattr(given, name)
        for name in ("device", "batch_size", "max_batch_size", "trust_remote_code")
        if getattr(given, name)
    }
    if given.include_path is not None:
        arguments.setdefault("include_path", str(given.include_path))
    arms = read_arms(methods, {k: v for k, v in arguments.items() if k in own_arguments(None)})
    _check_sizes(arguments, arms, spaces)
    include = [given.include_path] if given.include_path else []
    settings: dict[str, Any] = {
        "system_instruction": given.system_instruction,
        "apply_chat_template": bool(given.apply_chat_template),
        "fewshot_as_multiturn": given.fewshot_as_multiturn,
    }
    tasks = load_tasks(names, include, given.num_fewshot, settings)
    model = loaded_model(partial(ManyArmsModel, arm_names=methods), arguments)
    if given.apply_chat_template:
        settings["chat_template"] = model.apply_chat_template
        model.chat_template(given.apply_chat_template)
    return model, [limited(task, model.length_limit) for task in tasks]


def _check_sizes(
    arguments: Mapping[str, Any], arms: Mapping[str, Arm], spaces: Mapping[str, SearchSpace]
) -> None:
    """Refuse a K or layer that the model's configuration rules out, where that can be read."""
    from transformers import AutoConfig

    from sadi_lmeval.architecture.sites import size_in

    names = ("revision", "trust_remote_code", "subfolder", "gguf_file")
    try:
        config = AutoConfig.from_pretrained(
            arguments["pretrained"], **{n: arguments[n] for n in names if n in arguments}
        )
    except (OSError, ValueError):
        return  # loading the model will say what is wrong
    for name, space in spaces.items():
        method = arms[name].method
        size = None if method is None else size_in(config, method.place[0])
        if method is not None and size is not None:
            space.axes.check(space.largest(), size, method.place[0])


_Best = dict[tuple[str, str], dict[str, Any]]
"""Of each task and arm the best line."""


def _best(lines: list[dict[str, Any]]) -> _Best:
    """Find the best line of each task and arm."""
    found: _Best = {}
    known = [line for line in lines if line["score"] is not None]
    for task, method in dict.fromkeys((line["task"], line["method"]) for line in known):
        mine = (line for line in known if (line["task"], line["method"]) == (task, method))
        found[task, method] = max(mine, key=_rank)
    return found


def _rank(line: dict[str, Any]) -> tuple[float, float, float]:
    """Give ties to the larger margin, then to the smaller edit, as where one is chosen."""
    size = line.get("edit_size", 0.0)  # there are lines of before that have none
    return round(line["score"], 9), round(line["margin"], 9), -size


def _print_best(found: _Best, arms: Mapping[str, Arm], split: str) -> None:
    """Print the best setting of each task and arm, named for what it is."""
    name = "best" if split == "dev" else "oracle: best on the scored documents"
    for (task, method), best in found.items():
        said, gain = "unsteered", ""
        if method in arms:
            chosen = ", ".join(f"{axis.short}={best[axis.name]:g}" for axis in arms[method].axes)
            said = f"{method} {name}: {chosen}"
            if best["difference"] is not None:
                gain = (
                    f", {best['difference']:+.4f} ± {best['difference_stderr']:.4f} from unsteered"
                )
        print(f"{task}: {said}: {best['score']:.4f} ± {best['stderr']:.4f}{gain}")
