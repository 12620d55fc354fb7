"""The command ``sadi-lmeval``."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sadi_lmeval.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake costs one line and exit code 1."""
    given = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        _sweep(given)
    except UserError as error:
        print(f"sadi-lmeval: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsadi-lmeval: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--delta -2,9`` as ``--delta=-2,9``: a list may begin with a negative number."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--delta", "--top_k") and argument[:1] == "-":
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
    sweep = commands.add_parser(
        "sweep",
        help="try a grid of K and delta on tasks; one JSON line a setting and task",
        description="Try every setting of a grid on tasks, all from one pass over the prompts. An "
        "interrupted sweep goes on where it was when the command is given again.",
    )
    _host_options(sweep)
    sweep.add_argument(
        "--elements", default="head,neuron,hidden", help="comma-separated (default: %(default)s)"
    )
    sweep.add_argument("--top_k", help="comma-separated K (default: the reference code's)")
    sweep.add_argument("--delta", help="comma-separated delta (default: the reference code's)")
    sweep.add_argument(
        "--split",
        choices=("dev", "test"),
        default="dev",
        help="dev: held-out training documents, from which a setting may be chosen; test: the "
        "documents that the task scores, from which none may (default: %(default)s)",
    )
    sweep.add_argument("--max_settings", type=int, default=1000, help="default: %(default)s")
    sweep.add_argument("--output", type=Path, required=True, help="the JSONL file")
    sweep.add_argument("--heatmaps", type=Path, help="a folder for K × delta heatmaps (PNG)")
    return parser


def _host_options(parser: argparse.ArgumentParser) -> None:
    """Options that are called and mean what they do in ``lm_eval``."""
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


def _listed(name: str, text: str) -> list[str]:
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise UserError(f"--{name}: an empty list; name at least one, separated by commas")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise UserError(f"--{name}: {', '.join(twice)} named twice")
    return values


def _sweep(given: argparse.Namespace) -> None:
    # Here, so that --help and a faulty line cost no import of torch.
    from sadi_lmeval.errors import nearest
    from sadi_lmeval.heatmap import check_can_draw, check_folder, draw_heatmaps
    from sadi_lmeval.options import Element
    from sadi_lmeval.settings import REFERENCE, grid_of

    elements = _listed("elements", given.elements)
    for element in elements:
        if element not in get_args(Element):
            raise UserError(f"--elements {element}: {nearest(element, get_args(Element))}")
    names = _listed("tasks", given.tasks)
    grid = None
    if given.top_k is not None or given.delta is not None:
        if len(elements) > 1 and (given.top_k is None or given.delta is None):
            raise UserError("--top_k and --delta: with several elements give both, or neither")
        usual = REFERENCE[elements[0]]
        grid = grid_of(
            usual.top_k if given.top_k is None else _listed("top_k", given.top_k),
            usual.delta if given.delta is None else _listed("delta", given.delta),
            "grid",
        )
    count = sum(len((grid or REFERENCE[element]).settings) for element in elements)
    if count > given.max_settings:
        raise UserError(
            f"{count} settings: at most --max_settings {given.max_settings} are tried; name fewer "
            "K, delta or elements, or a larger --max_settings"
        )
    if grid is not None and not grid.settings:
        raise UserError("grid: delta 0 alone steers nothing; the unsteered model is always tried")
    if given.limit is not None and not given.limit > 0:
        raise UserError(f"--limit {given.limit:g}: must be above 0")
    if given.heatmaps is not None:
        check_can_draw()
        check_folder(given.heatmaps)

    from sadi_lmeval.sweep import Sweep, check_output, sweep

    check_output(given.output)
    model, tasks = _load(
        given, names, dict.fromkeys(elements, grid.top_k) if grid is not None else {}
    )
    what = Sweep(tuple(elements), grid, given.split, given.limit)  # type: ignore[arg-type]
    lines = sweep(tasks, what, model.options, model, given.output)
    _print_best(lines, given.split)
    print(f"{len(lines)} settings: {given.output}")
    if given.heatmaps is not None:
        for path in draw_heatmaps(lines, given.heatmaps):
            print(f"heatmap: {path}")


def _load(
    given: argparse.Namespace, names: list[str], top_k: Mapping[str, Sequence[int]]
) -> tuple[Any, list[Any]]:
    """The tasks and the model; a faulty argument is refused before the model is loaded."""
    import torch
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.model import SADI
    from sadi_lmeval.run_tasks import load_tasks

    arguments = simple_parse_args_string(given.model_args)
    ours = [
        name
        for name in ("method", "element", "top_k", "delta", "grid", "max_settings")
        if name in arguments
    ]
    if ours:
        raise UserError(
            f"--model_args {', '.join(ours)}: a sweep tries many; "
            "use --elements, --top_k, --delta, --max_settings"
        )
    if "mask" in arguments:
        raise UserError("--model_args mask: a sweep makes its own masks; use mask_from=TASK")
    if "pretrained" not in arguments:
        raise UserError("--model_args: pretrained=MODEL is missing")
    arguments |= {
        name: getattr(given, name)
        for name in ("device", "batch_size", "max_batch_size", "trust_remote_code")
        if getattr(given, name)
    }
    if not torch.cuda.is_available():
        arguments.setdefault("device", "cpu")  # the harness's own default is cuda
    size = arguments.setdefault("batch_size", "auto")
    if str(size).isdigit() and int(size):
        arguments["batch_size"] = int(size)
    elif not str(size).startswith("auto"):
        raise UserError(f"--batch_size {size}: must be a whole number of at least 1, or auto")
    if given.include_path is not None:
        arguments.setdefault("include_path", str(given.include_path))
    _check_top_k(arguments, top_k)
    include = [given.include_path] if given.include_path else []
    settings: dict[str, Any] = {
        "system_instruction": given.system_instruction,
        "apply_chat_template": bool(given.apply_chat_template),
        "fewshot_as_multiturn": given.fewshot_as_multiturn,
    }
    tasks = load_tasks(names, include, given.num_fewshot, settings)
    try:
        model = SADI(**arguments)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--model_args pretrained={arguments['pretrained']}: cannot be loaded ({reason})"
        ) from error
    if given.apply_chat_template:
        settings["chat_template"] = model.apply_chat_template
        model.chat_template(given.apply_chat_template)
    return model, tasks


def _check_top_k(arguments: dict[str, Any], top_k: Mapping[str, Sequence[int]]) -> None:
    """Refuse a K that the model's configuration rules out, where that is to be had."""
    from transformers import AutoConfig

    from sadi_lmeval.options import check_top_k
    from sadi_lmeval.sites import entries_in

    names = ("revision", "trust_remote_code", "subfolder", "gguf_file")
    try:
        config = AutoConfig.from_pretrained(
            arguments["pretrained"], **{n: arguments[n] for n in names if n in arguments}
        )
    except (OSError, ValueError):
        return  # loading the model will say what is wrong
    for element, numbers in top_k.items():
        entries = entries_in(config, element)  # type: ignore[arg-type]
        if entries is not None:
            check_top_k(max(numbers), *entries, element)


def _rank(line: dict[str, Any]) -> tuple[float, float, float]:
    """Ties go to the larger margin, then to the smaller edit, as they do while tuning."""
    size = line["top_k"] * abs(line["delta"])
    return round(line["score"], 9), round(line["margin"], 9), -size


def _print_best(lines: list[dict[str, Any]], split: str) -> None:
    """The best setting of each task and element, named for what it is."""
    name = "best" if split == "dev" else "oracle: best on the scored documents"
    found = [line for line in lines if line["score"] is not None]
    for task, element in dict.fromkeys((line["task"], line["element"]) for line in found):
        mine = [line for line in found if (line["task"], line["element"]) == (task, element)]
        best = max(mine, key=_rank)
        said = (
            "unsteered"
            if element == "none"
            else f"{element} {name}: K={best['top_k']}, delta={best['delta']:g}"
        )
        compared = element != "none" and best["difference"] is not None
        gain = "" if not compared else (
            f", {best['difference']:+.4f} ± {best['difference_stderr']:.4f} from unsteered"
        )  # fmt: skip
        print(f"{task}: {said}: {best['score']:.4f} ± {best['stderr']:.4f}{gain}")


if __name__ == "__main__":
    sys.exit(main())
