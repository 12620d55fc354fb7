"""``sadi-lmeval condition``: when to steer, fitted to two lists of prompts."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

from sadi_lmeval.commands.arguments import loaded_model
from sadi_lmeval.errors import UserError, first_line
from sadi_lmeval.types import Token


def add(commands: Any) -> None:
    """Describe the command's options."""
    condition = commands.add_parser(
        "condition",
        help="fit a condition, for steering some prompts alone (when=FILE)",
        description="Fit what tells prompts that are to be steered from others, in every layer, at "
        "every site. The file is for when=FILE. Prompts come as JSON lines: texts, or objects with "
        "a prompt, as `sadi-lmeval pairs TASK --output FILE` writes them of documents that are not "
        "scored.",
    )
    condition.add_argument("--model_args", "-a", required=True, help="pretrained=…, as for hf-sadi")
    condition.add_argument(
        "--matching", type=Path, required=True, help="prompts that are to be steered"
    )
    condition.add_argument("--others", type=Path, required=True, help="prompts that are not")
    condition.add_argument(
        "--when_token",
        choices=get_args(Token),
        default="last",
        help="what of a prompt is read: its last token (default), or the mean over its tokens",
    )
    condition.add_argument("--output", type=Path, required=True, help="a safetensors file")
    condition.add_argument("--device")
    condition.add_argument("--batch_size", "-b", help="default: auto")
    condition.set_defaults(run=run)


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    sides = [read_prompts(path) for path in (given.matching, given.others)]
    if not given.output.parent.is_dir():
        raise UserError(f"--output {given.output}: no such folder")

    from lm_eval.utils import simple_parse_args_string
    from pytablewriter import MarkdownTableWriter

    from sadi_lmeval.model import ManyArmsModel
    from sadi_lmeval.steering.condition import fit_conditions, of_places
    from sadi_lmeval.storage.fit_file import save_fit

    arguments = simple_parse_args_string(given.model_args)
    if "pretrained" not in arguments:
        raise UserError("--model_args: pretrained=MODEL is missing")
    for name in ("device", "batch_size"):
        if getattr(given, name) is not None:
            arguments[name] = getattr(given, name)
    model = loaded_model(partial(ManyArmsModel, arm_names=["none"]), arguments)
    count = min(map(len, sides))
    matching, others = (side[:count] for side in sides)
    fit = fit_conditions(model, matching, others, "Prompts", given.when_token)
    try:
        save_fit(fit, given.output)
    except OSError as error:
        raise UserError(f"--output {given.output}: cannot be written ({error})") from None
    rows = []
    for name, found in of_places(fit).items():
        best = int(found.accuracy.argmax())
        side = "above" if found.above[best] else "below"
        right, threshold = float(found.accuracy[best]), float(found.threshold[best])
        rows.append([name, best, f"{threshold:.4f}", side, f"{right:.0%}"])
    read = "their last token" if given.when_token == "last" else "the mean over their tokens"
    print(f"{count} matching and {count} other prompts, {read}: {given.output}\n")
    headers = ["site", "best layer", "threshold", "steered", "of these prompts on their side"]
    print(MarkdownTableWriter(headers=headers, value_matrix=rows).dumps())


def read_prompts(path: Path) -> list[str]:
    """Read prompts, each once, in their order.

    Raises:
        UserError: the file cannot be read, or a line is neither a text nor has a prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    prompts: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        prompt = content.get("prompt") if isinstance(content, dict) else content
        if not isinstance(prompt, str):
            raise UserError(
                f'{path}: line {number} must be a JSON text, or an object with a "prompt"'
            )
        prompts[prompt] = None
    return list(prompts)
