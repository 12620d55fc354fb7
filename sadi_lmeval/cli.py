"""The command ``sadi-lmeval``."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError, first_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake costs one line and exit code 1."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = parser.parse_known_args(_joined(arguments))
    if rest and given.command != "compare":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if given.command == "sweep":
            _sweep(given)
        elif given.command == "compare":
            _compare(given, rest, shlex.join(["sadi-lmeval", *arguments]))
        else:
            _report(given)
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
        if joined and joined[-1] in ("--delta", "--top_k", "--grid") and argument[:1] == "-":
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
        help="try grids of settings on tasks; one JSON line a setting and task",
        description="Try every setting of a grid on tasks, all from one pass over the prompts. An "
        "interrupted sweep goes on where it was when the command is given again.",
    )
    _host_options(sweep)
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
    _report_options(compare)
    report = commands.add_parser(
        "report",
        help="rebuild tables and page from the records of comparisons, without a model",
        description="Rebuild every table from the records of one or more comparisons.",
    )
    report.add_argument("folders", nargs="+", type=Path, help="folders of comparisons")
    report.add_argument(
        "--output_path", "-o", type=Path, help="a folder (default: the first of the folders)"
    )
    _report_options(report)
    return parser


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--diagnostics",
        action="store_true",
        help="print how the answers changed: distributions, right to wrong, balanced accuracy",
    )
    parser.add_argument("--html", action="store_true", help="write report.html too")


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
    from sadi_lmeval.arms import arm, check_arms
    from sadi_lmeval.heatmap import check_can_draw, check_folder, draw_heatmaps
    from sadi_lmeval.methods import grid as usual_grid
    from sadi_lmeval.options import Options

    methods = [name for name in _listed("methods", given.methods) if name != "none"]
    check_arms(methods)
    names = _listed("tasks", given.tasks)
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

    from sadi_lmeval.sweep import Sweep, check_output, sweep

    check_output(given.output)
    largest = dict.fromkeys(methods, max(grid.where)) if grid is not None else {}
    model, tasks = _load(given, names, largest)
    what = Sweep(tuple(methods), grid, given.split, given.limit)
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
        usual.where if given.top_k is None else _listed("top_k", given.top_k),
        usual.strength if given.delta is None else _listed("delta", given.delta),
        "grid",
        of_all,
    )


def _compare(given: argparse.Namespace, rest: Sequence[str], command: str) -> None:
    from sadi_lmeval.arms import check_arms

    methods = _listed("methods", given.methods)
    check_arms(methods)
    if "none" not in methods:
        raise UserError("--methods: none is missing, which every method is compared with")
    _listed("tasks", given.tasks)
    if given.settings < 1:
        raise UserError(f"--settings {given.settings}: must be at least 1")

    from sadi_lmeval.compare import Comparison, check_folder, compare
    from sadi_lmeval.compared import ComparedModel
    from sadi_lmeval.host_options import host_options

    host = host_options(["--tasks", given.tasks, *rest])
    of_rows = ("selection", "steering")  # random and fixed are rows of their own
    arguments = _model_arguments(host.model_args, ("settings", "methods"), of_rows)
    tasks = host.task_names()
    what = Comparison(
        tuple(methods), tuple(tasks), given.settings, given.transfer, host.evaluation, command,
        host.log_samples,
    )  # fmt: skip
    check_folder(given.output_path, what)
    model = _loaded(ComparedModel, arguments)
    compare(model, what, given.output_path)
    _write_report([given.output_path], given.output_path, given)


def _report(given: argparse.Namespace) -> None:
    _write_report(given.folders, given.output_path or given.folders[0], given)


def _write_report(folders: Sequence[Path], output: Path, given: argparse.Namespace) -> None:
    from sadi_lmeval.report import report

    print(report(folders, output, given.html, given.diagnostics))


def _load(
    given: argparse.Namespace, names: list[str], largest: Mapping[str, int]
) -> tuple[Any, list[Any]]:
    """The tasks and the model; a faulty argument is refused before the model is loaded."""
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.model import SADI
    from sadi_lmeval.run_tasks import load_tasks

    arguments = _model_arguments(
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
    model = _loaded(SADI, arguments)
    if given.apply_chat_template:
        settings["chat_template"] = model.apply_chat_template
        model.chat_template(given.apply_chat_template)
    return model, tasks


def _model_arguments(
    arguments: dict[str, Any], instead: Sequence[str], also: Sequence[str] = ()
) -> dict[str, Any]:
    """Refuse model arguments that a command sets itself.

    Args:
        arguments: of ``--model_args``.
        instead: the command's options to name.
        also: what this command refuses beside what all do.
    """
    from sadi_lmeval.options import OF_METHODS

    refused = (*OF_METHODS, "grid", "max_settings", *also)
    ours = [name for name in refused if name in arguments]
    if ours:
        raise UserError(
            f"--model_args {', '.join(ours)}: several are tried; use "
            + ", ".join(f"--{name}" for name in instead)
        )
    if "mask" in arguments:
        raise UserError("--model_args mask: masks are made here; use mask_from=TASK")
    if "pretrained" not in arguments:
        raise UserError("--model_args: pretrained=MODEL is missing")
    return dict(arguments)


def _loaded(kind: Any, arguments: dict[str, Any]) -> Any:
    """The model; what cannot be loaded is told in one line."""
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


def _check_where(arguments: dict[str, Any], largest: Mapping[str, int]) -> None:
    """Refuse a K or layer that the model's configuration rules out, where that is to be had."""
    from transformers import AutoConfig

    from sadi_lmeval.arms import arm
    from sadi_lmeval.methods import check_where, site_of
    from sadi_lmeval.options import Options
    from sadi_lmeval.sites import entries_in

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


if __name__ == "__main__":
    sys.exit(main())
