"""``sadi-lmeval fits``: what the cache holds, and how it is handed on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.settings import Setting

FORMATS = ("file", "gguf", "steered", "repo")


def add(commands: Any) -> None:
    """Describe the command's options."""
    fits = commands.add_parser(
        "fits",
        aliases=["masks"],
        help="list the fits in the cache, or export one",
        description="List the fits that runs have left in the cache: the model, the task, the "
        "method and the setting that was chosen. `fits export KEY` writes one for others.",
    )
    fits.add_argument("--cache_dir", type=Path, help="the folder (default: the user's cache)")
    fits.set_defaults(run=run)
    actions = fits.add_subparsers(dest="action")
    export = actions.add_parser(
        "export",
        help="write a fit for others",
        description="Write a fit with its setting: as a file of this package (file), as a control "
        "vector of llama.cpp (gguf), for the harness's own model `steered` (steered), or to a "
        "repository of the Hugging Face hub (repo).",
    )
    export.add_argument("key", help="of the fit, or its beginning")
    export.add_argument("--to", required=True, choices=FORMATS)
    export.add_argument(
        "--output", "-o", required=True, help="the file; with --to repo, user/repository"
    )
    export.add_argument("--method", help="where settings were chosen for several")
    export.add_argument(
        "--setting", default="", help="numbers in place of the chosen ones: layer=13,multiplier=1"
    )
    export.add_argument("--cache_dir", type=Path, default=argparse.SUPPRESS)


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    from sadi_lmeval.storage.store import default_folder

    folder = given.cache_dir or default_folder()
    if not folder.is_dir():
        if given.cache_dir is not None or given.action:
            raise UserError(f"{folder}: no such folder; no run has left a fit there")
        print(f"{folder} is not there yet: no run has left a fit.", file=sys.stderr)
        return
    if given.action == "export":
        _export(folder, given)
    else:
        print(_table(folder))


def _table(folder: Path) -> str:
    from pytablewriter import MarkdownTableWriter

    from sadi_lmeval.storage.kept_fits import kept_fits

    headers = ["key", "model", "task", "method", "setting", "made", "size"]
    rows = [
        (
            fit.key[:12],
            fit.card.get("model"),
            f"{fit.card.get('task')} ({fit.card.get('source')}{_labels(fit.card)})",
            fit.arm.get("method", "–"),
            "unsteered"
            if fit.of_choice.get("choice", {}).get("steers") is False
            else ", ".join(f"{name}={value:g}" for name, value in fit.setting.items()) or "–",
            f"{fit.made:%Y-%m-%d %H:%M}",
            f"{fit.file.stat().st_size / 1e6:.1f} MB",
        )
        for fit in kept_fits(folder)
    ]
    return str(MarkdownTableWriter(headers=headers, value_matrix=rows).dumps())


def _readable(method: str, setting: Mapping[str, float]) -> dict[str, float]:
    """Give the numbers of a setting as arguments: of the unsteered model that is the strength."""
    from sadi_lmeval.methods.registry import methods

    axes = methods()[method].axes
    if axes.steers(Setting(*setting.values())):
        return dict(setting)
    return {axis.name: 0.0 for axis in axes if axis.strength}


def _labels(card: Mapping[str, Any]) -> str:
    """Say which labels the pairs had, where they were not their own."""
    labels = card.get("labels", "gold")
    return "" if labels == "gold" else f", labels {labels}"


def _export(folder: Path, given: argparse.Namespace) -> None:
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.api.exporting import export
    from sadi_lmeval.api.steering_fit import load
    from sadi_lmeval.storage.kept_fits import find_fits

    found = find_fits(folder, given.key)
    mine = [fit for fit in found if given.method in (None, fit.arm.get("method"))]
    numbers = simple_parse_args_string(given.setting)
    if len(mine) > 1 and not numbers:
        which = "; ".join(f"{fit.arm['method']} {dict(fit.setting)}" for fit in mine)
        raise UserError(
            f"{given.key}: settings were chosen for {which}; pass --method or --setting"
        )
    steering: dict[str, Any] = {}
    if mine:
        arguments = {name: value for name, value in mine[0].arm.items() if value is not None}
        chosen = _readable(mine[0].arm["method"], mine[0].setting)
        if not {**chosen, **numbers}:
            raise UserError(f"{given.key}: no setting was taken for it; pass --setting")
        steering = {**arguments, **chosen}
    if given.method is not None:
        steering["method"] = given.method
    fit = load(found[0].file, **{**steering, **numbers})
    if mine:
        fit = fit.with_choice(mine[0].of_choice)
    if given.to == "repo":
        print(fit.push_to_hub(given.output))
    elif given.to == "file":
        print(fit.save(given.output))
    else:
        print(export(fit, given.output, given.to))
