"""Hand-written pairs: for tasks whose own documents have nothing to contrast."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import RunTask, digest
from sadi_lmeval.pairs import templates
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.sources import Identity, question_digest, words

_KEYS = ("prompt", "positive", "negative")
_LARGEST = 64 * 1024 * 1024
"""Bytes of a file of pairs; larger ones are refused before they are read."""


def read_static_set(path: Path) -> list[dict[str, str]]:
    """Read the pairs in a JSONL file, each of the texts ``prompt``, ``positive`` and ``negative``.

    Raises:
        UserError: naming the first line that is none.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"pairs {path}: larger than {_LARGEST >> 20} MB")
        with path.open(encoding="utf-8") as file:
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"pairs {path}: cannot be read ({error})") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            pair = json.loads(line)
            json.dumps(pair, ensure_ascii=False).encode()  # half of a sign (\ud800) is no text
        except (ValueError, RecursionError):
            pair = None
        if not (
            isinstance(pair, dict)
            and set(pair) == set(_KEYS)
            and all(isinstance(pair[key], str) and pair[key].strip() for key in _KEYS)
            and pair["positive"] != pair["negative"]
        ):
            raise UserError(
                f"pairs {path}, line {number}: must be a JSON object with the texts "
                f"{', '.join(_KEYS)}, the last two different"
            )
        pairs.append(pair)
    if not pairs:
        raise UserError(f"pairs {path}: is empty")
    return pairs


def static_pairs(
    scored: RunTask, task: RunTask, recipe: Recipe, target: int, seed: int
) -> list[Pair]:
    """Draw ``target`` pairs of a static set, or as many as there are.

    A pair whose prompt stands in the prompt of a document that is scored is left out. Several pairs
    may have one prompt.

    Args:
        scored: the task whose documents must not help to make the mask.
        task: says how the run renders prompts: chat template and system instruction.
        recipe: a static one.
        target: how many pairs.
        seed: of the draw.

    Raises:
        UserError: the file is faulty.
    """
    rows = read_static_set(Path(str(recipe.pairs)))
    asked = "\0".join(f" {words(scored.question(document))} " for document in scored.evaluated())
    pairs: list[Pair] = []
    for row in Random(seed).sample(rows, len(rows)):
        question = words(row["prompt"])
        if len(pairs) == target:
            break
        if f" {question} " in asked:
            continue
        prompt = templates.rendered(recipe.prompt, dict(row), f"recipe {recipe.recipe}: prompt")
        context, delimiter = task.prompt(prompt)
        known_as = Identity(digest(dict(row)), question_digest(question))
        positive, negative = ((context, delimiter + row[side]) for side in _KEYS[1:])
        pairs.append(Pair(positive, negative, dict(row), known_as))
    return pairs
