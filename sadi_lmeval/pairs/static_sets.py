"""Hand-written pairs: for tasks whose own documents have nothing to contrast."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import RunTask, digest
from sadi_lmeval.pairs import templates
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.sources import Identity, question_digest, words

_ANSWERS = ("prompt", "positive", "negative")
_PROMPTS = ("positive_prompt", "negative_prompt", "completion")
_LARGEST = 64 * 1024 * 1024
"""Bytes of a file of pairs; larger ones are refused before they are read."""


def sides(row: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Give prompt and answer of the positive and of the negative side of a row."""
    if "completion" in row:
        return [(row[f"{side}_prompt"], row["completion"]) for side in ("positive", "negative")]
    return [(row["prompt"], row[side]) for side in ("positive", "negative")]


def check_row(row: object, source: str, messages: bool = False) -> None:
    """Refuse what is no pair.

    Args:
        row: of the texts ``prompt``, ``positive`` and ``negative``, or ``positive_prompt``,
            ``negative_prompt`` and ``completion``.
        source: where it stands, for the message.
        messages: whether a prompt may be a list of chat messages.

    Raises:
        UserError: saying what a row must be.
    """
    if isinstance(row, dict) and set(row) in (set(_ANSWERS), set(_PROMPTS)):
        prompts = {name for name in row if name.endswith("prompt")}
        given = all(
            _is_text(value) or (messages and name in prompts and _is_chat(value))
            for name, value in row.items()
        )
        if given and len({str(side) for side in sides(row)}) == 2:
            return
    raise UserError(
        f"{source}: must be a JSON object with the texts {', '.join(_ANSWERS)}, the last two "
        f"different, or {', '.join(_PROMPTS)}, the first two different"
    )


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a sign (\ud800) is no text
        return False
    return True


def _is_chat(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and set(message) == {"role", "content"}
            and all(_is_text(part) for part in message.values())
            for message in value
        )
    )


def read_static_set(path: Path) -> list[dict[str, str]]:
    """Read the pairs in a JSONL file, see :func:`check_row`.

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
        except (ValueError, RecursionError):
            pair = None
        check_row(pair, f"pairs {path}, line {number}")
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
        if len(pairs) == target:
            break
        questions = [words(prompt) for prompt, _ in sides(row)]
        if any(f" {question} " in asked for question in questions):
            continue
        texts = []
        for prompt, answer in sides(row):
            shown = {**row, "prompt": prompt}
            text = templates.rendered(recipe.prompt, shown, f"recipe {recipe.recipe}: prompt")
            context, delimiter = task.prompt(text)
            texts.append((context, delimiter + answer))
        known_as = Identity(digest(dict(row)), question_digest(questions[0]))
        pairs.append(Pair(texts[0], texts[1], dict(row), known_as))
    return pairs
