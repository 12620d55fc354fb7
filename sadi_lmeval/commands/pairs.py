"""``sadi-lmeval pairs``: what a recipe makes of a task's documents."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sadi_lmeval.commands.arguments import loaded_model
from sadi_lmeval.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from sadi_lmeval.methods.arm import Arm


def add(commands: Any) -> None:
    """Describe the command's options."""
    pairs = commands.add_parser(
        "pairs",
        help="show the contrastive pairs that a recipe makes of a task",
        description="Show the contrastive pairs of a task: how many, examples with the contrasted "
        "part marked, the balance of lengths and labels, and warnings. No model is loaded, unless "
        "the pairs depend on one (negative=hardest, protocol=reference, --apply_chat_template).",
    )
    pairs.add_argument("task", help="a task's name")
    pairs.add_argument("--recipe", help="a name or a YAML file (default: the task's)")
    pairs.add_argument(
        "--model_args", "-a", default="", help="as for hf-sadi: n_pairs=…, negative=…, seed=…"
    )
    pairs.add_argument("--num_fewshot", "-f", type=int)
    pairs.add_argument("--include_path", type=Path)
    pairs.add_argument("--system_instruction")
    pairs.add_argument("--apply_chat_template", nargs="?", const=True, default=False)
    pairs.add_argument("--fewshot_as_multiturn", action="store_true")
    pairs.add_argument("--device")
    pairs.add_argument(
        "--examples", type=int, default=10, help="pairs to print (default: %(default)s)"
    )
    pairs.add_argument("--output", type=Path, help="a JSONL file for all pairs")
    pairs.set_defaults(run=run)


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.harness.run_tasks import limited, load_tasks, task_manager
    from sadi_lmeval.options import NAMES
    from sadi_lmeval.pairs.plan import draw, find_plan

    if given.examples < 0:
        raise UserError(f"--examples {given.examples}: must be at least 0")
    if given.num_fewshot is not None and given.num_fewshot < 0:
        raise UserError(f"--num_fewshot {given.num_fewshot}: must be at least 0")
    if given.output is not None and not given.output.parent.is_dir():
        raise UserError(f"--output {given.output}: no such folder")
    arguments = simple_parse_args_string(given.model_args)
    if given.recipe is not None:
        arguments["recipe"] = given.recipe
    if given.include_path is not None:
        arguments.setdefault("include_path", str(given.include_path))
    arm = _arm(arguments)
    options = arm.options
    needs_model = (
        options.negative == "hardest"
        or options.protocol == "reference"
        or bool(given.apply_chat_template)
    )
    if not needs_model:
        _refuse_misspelt(list(arguments))
    settings: dict[str, Any] = {
        "system_instruction": given.system_instruction,
        "apply_chat_template": bool(given.apply_chat_template),
        "fewshot_as_multiturn": given.fewshot_as_multiturn,
    }
    folders = [given.include_path] if given.include_path is not None else []
    manager = task_manager(folders)
    _refuse_a_group(given.task, manager)
    [task] = load_tasks([given.task], folders, given.num_fewshot, settings, manager)
    model = None
    if needs_model:
        shared = {name: getattr(options, name) for name in NAMES}
        model = _model(given, {**arguments, **shared})
        if given.apply_chat_template:
            settings["chat_template"] = model.apply_chat_template
            model.chat_template(given.apply_chat_template)
        task = limited(task, model.length_limit)
    plan = find_plan(task, options)
    lines: list[dict[str, Any]] = []
    origin = plan.source_task.name
    said = f"task {task.name}" + (f", pairs of {origin}" if origin != task.name else "")
    print(f"{said}, recipe {plan.recipe.recipe} ({plan.recipe.contrast})")
    for number, source in enumerate(plan.sources.sources):
        drawn = draw(plan, source, options, arm.axes.names if arm.is_chosen else (), model)
        lines += _shown(plan, source, drawn, 0 if number else given.examples)
        if plan.is_static:
            break  # the same for every fold
    if given.output is not None:
        _write(given.output, lines)


def _arm(arguments: dict[str, Any]) -> Arm:
    """Take our arguments out, and read them as the first method that has all of them would."""
    from sadi_lmeval.methods.arm import own_arguments, read_arm
    from sadi_lmeval.methods.registry import all_argument_names, argument_names, methods

    names = own_arguments(None)
    ours = {name: arguments.pop(name) for name in list(arguments) if name in names}
    of_method = all_argument_names() & set(ours)
    for name, method in methods().items():
        if of_method <= argument_names(method):
            return read_arm(name, ours)
    raise UserError(f"no method has {' and '.join(sorted(of_method))} together")


def _refuse_a_group(name: str, manager: TaskManager) -> None:
    """Refuse a group or tag before any of its data is loaded."""
    if name not in manager.task_index or name in manager.all_subtasks:
        return
    entry = manager.task_index[name]
    parts = (entry.cfg or {}).get("task") or sorted(entry.tags)
    names = [part if isinstance(part, str) else str(part.get("task")) for part in parts]
    listed = ", ".join(names if len(names) < 7 else [*names[:5], "…"])
    raise UserError(f"{name} is a group: name one of its tasks ({listed})")


def _refuse_misspelt(names: Sequence[str]) -> None:
    """Refuse what ``hf-sadi`` would refuse, where no model is loaded that does so."""
    others = dict.fromkeys(name for name in names if name not in ("pretrained", "delta_weights"))
    if others:
        from lm_eval.models.huggingface import HFLM

        from sadi_lmeval.options import refuse_unknown

        refuse_unknown(others, HFLM.__init__, None)


def _model(given: argparse.Namespace, arguments: dict[str, Any]) -> Any:
    from sadi_lmeval.model import ManyArmsModel

    if "pretrained" not in arguments:
        raise UserError(
            "the pairs depend on the model (negative=hardest, protocol=reference or "
            "--apply_chat_template): pass --model_args pretrained=MODEL"
        )
    if given.device:
        arguments["device"] = given.device
    return loaded_model(partial(ManyArmsModel, arm_names=["none"]), arguments)


def _shown(plan: Any, source: Any, drawn: Any, examples: int) -> list[dict[str, Any]]:
    """Print what one fit's pairs are like, and make their lines for the file."""
    from sadi_lmeval.pairs.pair_report import balance, line_of, marked, warnings

    origin = plan.pairs_from(source)
    sides = balance(drawn.pairs)
    held_out = f", {len(drawn.held_out)} held-out documents to tune on" if drawn.held_out else ""
    print(f"\n{origin}: {sides.pairs} pairs{held_out}")
    print(
        f"answers: {sides.positive_length:.1f} characters positive, {sides.negative_length:.1f} "
        f"negative; the positive is longer in {sides.positive_longer:.0%}, the negative in "
        f"{sides.negative_longer:.0%}"
    )
    for side, labels in (("positive", sides.positive_labels), ("negative", sides.negative_labels)):
        if labels:
            shares = (f"{label!r} {count / sides.pairs:.0%}" for label, count in labels.items())
            print(f"{side} labels: {', '.join(shares)}")
    for warning in warnings(drawn.pairs):
        print(f"warning: {warning}")
    for number, pair in enumerate(drawn.pairs[:examples], 1):
        positive, negative = marked(pair.positive, pair.negative)
        print(f"\n{number}. {pair.positive[0][-300:].strip()}")
        print(f"   + {positive.strip()}\n   - {negative.strip()}")
    return [line_of(pair, plan.source_task.name, origin) for pair in drawn.pairs]


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    from sadi_lmeval.storage.atomic import write_atomically

    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error})") from None
    print(f"\n{len(lines)} pairs: {path}", file=sys.stderr)
