"""Recipes: how a contrastive pair is made from a document."""

from __future__ import annotations

import hashlib
import json
import logging
import reprlib
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from sadi_lmeval.errors import UserError, first_line, nearest
from sadi_lmeval.folders import contrastive_sets
from sadi_lmeval.storage.yaml_files import once, read_if_ours, read_yaml, yaml_files

logger = logging.getLogger("lm_eval.sadi")

Contrast = Literal["choice", "other_target", "wrong_number", "answers", "static"]


class _Keys(NamedTuple):
    """The keys of a recipe file beside ``recipe``, ``contrast`` and ``description``."""

    needed: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()


_KEYS: dict[str, _Keys] = {
    "choice": _Keys(possible=("gold", "wrong")),
    "other_target": _Keys(possible=("answer",)),
    "wrong_number": _Keys(possible=("answer",)),
    "answers": _Keys(needed=("right", "wrong"), possible=("answer",)),
    "static": _Keys(needed=("pairs",), possible=("prompt",)),
}


@dataclass(frozen=True)
class Recipe:
    """One way to contrast a right with a wrong answer to the same prompt.

    The texts beside names are jinja templates over a document's fields.

    Attributes:
        recipe: its name.
        contrast: ``choice``: the gold choice against a wrong choice of the same document;
            ``other_target``: the document's target against another document's;
            ``wrong_number``: the target against itself with its last number changed;
            ``answers``: one of the document's right answers against one of its wrong ones;
            ``static``: pairs out of a file, whatever the task.
        description: what it is for, for people.
        gold: of ``choice``: the index of the gold choice, or a 0/1 list over the choices;
            without it the task's own target decides.
        right: of ``answers``: a text, or a list of them.
        wrong: of ``answers``: a text, or a list of them; of ``choice``: the indices of the wrong
            choices to contrast with, without it all of them.
        answer: the right answer as text, instead of the task's target.
        pairs: of ``static``: the JSONL file of the pairs.
        prompt: of ``static``: how the prompt of a pair is written.
    """

    recipe: str
    contrast: Contrast
    description: str = ""
    gold: str | None = None
    right: str | None = None
    wrong: str | None = None
    answer: str | None = None
    pairs: str | None = None
    prompt: str = "{{ prompt }}"

    @property
    def digest(self) -> str:
        """sha256 of what changes the pairs; those out of a file count by their texts."""
        apart = ("description", "recipe", "pairs")
        content = {k: v for k, v in asdict(self).items() if k not in apart}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_recipe(name: str, folders: list[Path]) -> Recipe:
    """Load the recipe called ``name``, or in the YAML file ``name``.

    Args:
        name: a recipe's name or a path that ends in ``.yaml``.
        folders: the user's folders, searched before the recipes of this package.

    Raises:
        UserError: no such recipe, or a faulty file (all its faults at once).
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not _is_file(path):
            raise UserError(f"recipe={name}: no such file")
        return _read(path)
    searched = [*folders, contrastive_sets()]
    known = once(("recipes", *searched), partial(_recipe_files, searched))
    if name not in known:
        raise UserError(f"unknown recipe {name!r}: {nearest(name, known)}, or a path to a .yaml")
    return _read(known[name])


def _recipe_files(folders: list[Path]) -> dict[str, Path]:
    """Find the recipes of folders by name; of one name the first."""
    known: dict[str, Path] = {}
    for folder in folders:
        for path in yaml_files(folder):
            try:
                content = read_if_ours(path, "contrast")
            except UserError as error:
                logger.warning("A recipe is passed over: %s", error)
                continue
            if isinstance(content, dict) and "recipe" in content and "contrast" in content:
                known.setdefault(str(content["recipe"]), path)
    return known


def _read(path: Path) -> Recipe:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"recipe file {path}: must be a mapping with the keys recipe and contrast")
    names = {field.name for field in fields(Recipe)}
    faults = [
        f"unknown key {key!r} ({nearest(str(key), names)})" for key in content if key not in names
    ]
    faults += [f"missing key {key!r}" for key in ("recipe", "contrast") if key not in content]
    contrast = content.get("contrast")
    if "contrast" in content and contrast not in get_args(Contrast):
        faults.append(f"contrast {str(contrast)!r}: {nearest(str(contrast), get_args(Contrast))}")
    elif contrast is not None:
        keys = _KEYS[contrast]
        of_others = names - {"recipe", "contrast", "description", *keys.needed, *keys.possible}
        faults += [f"contrast {contrast} has no {key}" for key in content if key in of_others]
        faults += [f"contrast {contrast} needs {key}" for key in keys.needed if key not in content]
    for key in names - {"contrast"}:
        if key in content and not isinstance(content[key], str):
            faults.append(f"{key} must be text, not {reprlib.repr(content[key])}")
    if not faults and "pairs" in content:
        content["pairs"], fault = _beside(path, content["pairs"])
        faults += [fault] if fault else []
    if faults:
        raise UserError(f"recipe file {path}: {'; '.join(faults)}")
    return Recipe(**content)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # too long a name, or none at all


def _beside(recipe: Path, name: str) -> tuple[str, str]:
    """Give the path of a file in the recipe's own folder, and what is wrong with it."""
    folder = recipe.resolve().parent
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        return "", f"pairs: no such file ({first_line(error)})"
    if path.parent != folder:
        return "", "pairs must be a file in the recipe's own folder"
    return str(path), "" if _is_file(path) else f"pairs: no such file ({path})"
