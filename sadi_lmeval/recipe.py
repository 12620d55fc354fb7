"""Recipes: how a contrastive pair is made from a document."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.folders import contrastive_sets
from sadi_lmeval.yaml_files import read_yaml, yaml_files

Contrast = Literal["choice", "other_target", "wrong_number"]


@dataclass(frozen=True)
class Recipe:
    """One way to contrast a right with a wrong answer to the same prompt.

    Attributes:
        recipe: its name.
        contrast: ``choice``: the gold choice against a wrong choice of the same document;
            ``other_target``: the document's target against another document's;
            ``wrong_number``: the target against itself with its last number changed.
        description: what it is for, for people.
        gold: a jinja template over the document that gives the index of the gold choice, or a
            0/1 list over the choices; without it the task's own target decides.
    """

    recipe: str
    contrast: Contrast
    description: str = ""
    gold: str | None = None

    @property
    def digest(self) -> str:
        """sha256 of what changes the pairs (so not of the description)."""
        content = {k: v for k, v in asdict(self).items() if k not in ("description", "recipe")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_recipe(name: str, folders: list[Path]) -> Recipe:
    """The recipe called ``name``, or in the YAML file ``name``.

    Args:
        name: a recipe's name or a path that ends in ``.yaml``.
        folders: the user's folders, searched before the recipes of this package.

    Raises:
        UserError: no such recipe, or a faulty file (all its faults at once).
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe={name}: no such file")
        return _read(path)
    known: dict[str, Path] = {}
    for folder in [*folders, contrastive_sets()]:
        for path in yaml_files(folder):
            content = _content(path)
            if isinstance(content, dict) and "recipe" in content and "contrast" in content:
                known.setdefault(str(content["recipe"]), path)
    if name not in known:
        raise UserError(f"unknown recipe {name!r}: {nearest(name, known)}, or a path to a .yaml")
    return _read(known[name])


def _content(path: Path) -> Any:
    try:
        return read_yaml(path)
    except UserError:
        return None  # another tool's file: a harness task with !function, for one


def _read(path: Path) -> Recipe:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"recipe file {path}: must be a mapping with the keys recipe and contrast")
    names = {field.name for field in fields(Recipe)}
    faults = [
        f"unknown key {key!r} ({nearest(str(key), names)})" for key in content if key not in names
    ]
    faults += [f"missing key {key!r}" for key in ("recipe", "contrast") if key not in content]
    if "contrast" in content and content["contrast"] not in get_args(Contrast):
        given = str(content["contrast"])
        faults.append(f"contrast {given!r}: {nearest(given, get_args(Contrast))}")
    for key in ("recipe", "description", "gold"):
        if key in content and not isinstance(content[key], str):
            faults.append(f"{key} must be text, not {content[key]!r}")
    if faults:
        raise UserError(f"recipe file {path}: {'; '.join(faults)}")
    return Recipe(**content)
