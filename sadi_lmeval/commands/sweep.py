"""``sadi-lmeval sweep``: grids of settings on tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sadi_lmeval.commands.arguments import (
    add_host_options,
    listed,
    loaded_model,
    model_arguments,
)
from sadi_lmeval.errors import UserError


def add(commands: Any) -> None:
    """Describe the command's options."""
    sweep = commands.add_parser(
        "sweep",
        help="try grids of settings on tasks; one JSON line a setting and task",
        description="Try every setting of a grid on tasks, all from one pass over the prompts. An "
        "interrupted sweep goes on where it was when the command is given again.",
    )
    add_host_options(sweep)
    sweep.add_argument(
        "--methods",
        default="sadi-head,sadi-neuron,sadi-hidden",
        help="comma-separated, iti and caa too (default: %(default)s)",
    )
    sweep.add_argument("--top_k", help="comma-separated K of SADI (default: the reference code's)")
    sweep.add_argument("--delta", help="comma-separated delta (default: the reference code's)")
    sweep.add_argument("--grid", help="of any method: K or layer, then strength, as 1/2x4/9")
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


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    # Here, so that --help and a faulty line cost no import of torch.
    from sadi_lmeval.arms import arm, check_arms
    from sadi_lmeval.options import Options
    from sadi_lmeval.reports.heatmap import check_can_draw, check_folder, draw_heatmaps
    from sadi_lmeval.steering.methods import grid as usual_grid

    methods = [name for name in listed("methods", given.methods) if name != "none"]
    check_arms(methods)
    names = listed("tasks", given.tasks)
    grid = _grid(given, methods)
    count = sum(len((grid or usual_grid(arm(m, Options()))).settings) for m in methods)
    if count > given.max_settings:
        raise UserError(
            f"{count} settings: at most --max_settings {given.max_settings} are tried; name a "
            "smaller grid, fewer methods, or a larger --max_settings"
        )
    if grid is not None and not grid.settings:
        raise UserError(
            "grid: strength 0 alone steers nothing; the unsteered model is always tried"
        )
    if given.limit is not None and not given.limit > 0:
        raise UserError(f"--limit {given.limit:g}: must be above 0")
    if given.heatmaps is not None:
        check_can_draw()
        check_folder(given.heatmaps)

    from sadi_lmeval.comparison.sweep import Sweep, check_output, sweep
    from sadi_lmeval.storage.journal import held

    check_output(given.output)
    largest = dict.fromkeys(methods, max(grid.where)) if grid is not None else {}
    model, tasks = _load(given, names, largest)
    what = Sweep(tuple(methods), grid, given.split, given.limit)
    with held(given.output):
        lines = sweep(tasks, what, model.options, model, given.output)
    _print_best(lines, given.split)
    print(f"{len(lines)} settings: {given.output}")
    if given.heatmaps is not None:
        for path in draw_heatmaps(lines, given.heatmaps):
            print(f"heatmap: {path}")


def _grid(given: argparse.Namespace, methods: list[str]) -> Any:
    """The user's grid, or None."""
    from sadi_lmeval.arms import parameters_of
    from sadi_lmeval.settings import SADI_GRIDS, grid_of, read_grid

    if given.top_k is None and given.delta is None and given.grid is None:
        return None
    parameters = {name: parameters_of(name) for name in methods}
    if len(set(parameters.values())) > 1:
        raise UserError(
            "a grid is of one kind of method: "
            + "; ".join(f"{name} has {' and '.join(p)}" for name, p in parameters.items())
        )
    [of_all] = set(parameters.values())
    if given.grid is not None:
        if given.top_k is not None or given.delta is not None:
            raise UserError("--grid was given with --top_k or --delta: pass either")
        return read_grid(given.grid, of_all)
    if of_all != ("top_k", "delta"):
        raise UserError(f"--top_k and --delta: {methods[0]} has {' and '.join(of_all)}; use --grid")
    if len(methods) > 1 and (given.top_k is None or given.delta is None):
        raise UserError("--top_k and --delta: with several methods give both, or neither")
    usual = SADI_GRIDS[methods[0].rpartition("-")[2]] if "-" in methods[0] else SADI_GRIDS["head"]
    return grid_of(
        usual.where if given.top_k is None else listed("top_k", given.top_k),
        usual.strength if given.delta is None else listed("delta", given.delta),
        "grid",
        of_all,
    )


def _load(
    given: argparse.Namespace, names: list[str], largest: Mapping[str, int]
) -> tuple[Any, list[Any]]:
    """The tasks and the model; a faulty argument is refused before the model is loaded."""
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.harness.run_tasks import limited, load_tasks
    from sadi_lmeval.model import SADI

    arguments = model_arguments(
        simple_parse_args_string(given.model_args), ("methods", "top_k", "delta", "grid")
    )
    arguments |= {
        name: getattr(given, name)
        for name in ("device", "batch_size", "max_batch_size", "trust_remote_code")
        if getattr(given, name)
    }
    if given.include_path is not None:
        arguments.setdefault("include_path", str(given.include_path))
    _check_where(arguments, largest)
    include = [given.include_path] if given.include_path else []
    settings: dict[str, Any] = {
        "system_instruction": given.system_instruction,
        "apply_chat_template": bool(given.apply_chat_template),
        "fewshot_as_multiturn": given.fewshot_as_multiturn,
    }
    tasks = load_tasks(names, include, given.num_fewshot, settings)
    model = loaded_model(SADI, arguments)
    if given.apply_chat_template:
        settings["chat_template"] = model.apply_chat_template
        model.chat_template(given.apply_chat_template)
    return model, [limited(task, model.length_limit) for task in tasks]


def _check_where(arguments: dict[str, Any], largest: Mapping[str, int]) -> None:
    """Refuse a K or layer that the model's configuration rules out, where that is to be had."""
    from transformers import AutoConfig

    from sadi_lmeval.architecture.sites import entries_in
    from sadi_lmeval.arms import arm
    from sadi_lmeval.options import Options
    from sadi_lmeval.steering.methods import check_where, site_of

    names = ("revision", "trust_remote_code", "subfolder", "gguf_file")
    try:
        config = AutoConfig.from_pretrained(
            arguments["pretrained"], **{n: arguments[n] for n in names if n in arguments}
        )
    except (OSError, ValueError):
        return  # loading the model will say what is wrong
    for name, number in largest.items():
        options = arm(name, Options())
        entries = entries_in(config, site_of(options)[0])
        if entries is not None:
            check_where(number, *entries, options)


def _print_best(lines: list[dict[str, Any]], split: str) -> None:
    """The best setting of each task and method, named for what it is."""
    from sadi_lmeval.arms import parameters_of
    from sadi_lmeval.settings import Setting

    name = "best" if split == "dev" else "oracle: best on the scored documents"
    found = [line for line in lines if line["score"] is not None]
    for task, method in dict.fromkeys((line["task"], line["method"]) for line in found):
        parameters = parameters_of(method)

        def rank(line: dict[str, Any], names: Any = parameters) -> tuple[float, float, float]:
            """Ties go to the larger margin, then to the smaller edit, as they do while tuning."""
            size = Setting(*(line[name] for name in names)).size(names)
            return round(line["score"], 9), round(line["margin"], 9), -size

        best = max(
            (line for line in found if (line["task"], line["method"]) == (task, method)), key=rank
        )
        chosen = ", ".join(f"{'K' if key == 'top_k' else key}={best[key]:g}" for key in parameters)
        said = "unsteered" if method == "none" else f"{method} {name}: {chosen}"
        compared = method != "none" and best["difference"] is not None
        gain = "" if not compared else (
            f", {best['difference']:+.4f} ± {best['difference_stderr']:.4f} from unsteered"
        )  # fmt: skip
        print(f"{task}: {said}: {best['score']:.4f} ± {best['stderr']:.4f}{gain}")
