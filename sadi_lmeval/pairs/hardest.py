"""How the unsteered model likes answers, and which wrong one it likes best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from sadi_lmeval.harness.run_task import Text
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.identity.model import model_identity
from sadi_lmeval.pairs.pairs import Likes
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.storage.store import Kind, get_or_build, read_kept, write_kept
from sadi_lmeval.versions import versions

T = TypeVar("T")


def hardest(model: SteerableModel, folder: Path | None) -> Likes:
    """Make a function that gives, of each document's wrong answers, the index of the likeliest one.

    What it finds is kept in the cache, as the pairs must be known before their fit is looked for.

    Args:
        model: scores, unsteered.
        folder: of the cache; one that cannot be written costs time, nothing else.
    """

    def likes(answers: Sequence[Sequence[Text]]) -> list[int]:
        sizes = [len(each) for each in answers]

        def load(path: Path, key: str) -> list[int]:
            indices = read_kept(path, key)
            if not (
                isinstance(indices, list)
                and len(indices) == len(sizes)
                and all(type(i) is int and 0 <= i < n for i, n in zip(indices, sizes, strict=True))
            ):
                raise ValueError("it is of other documents")
            return [int(index) for index in indices]

        def build() -> list[int]:
            return [each.index(max(each)) for each in _scored(model, answers)]

        kind: Kind[list[int]] = Kind("hardest wrong choices", ".hardest.json", load, write_kept)
        return _kept(model, folder, kind, {"hardest": _tokens(model, answers)}, build)

    return likes


Scores = Callable[[Sequence[Sequence[Text]]], list[list[float]]]
"""Takes the choices of documents; gives the log-likelihood of each."""


def scores_of_choices(model: SteerableModel, folder: Path | None) -> Scores:
    """Make a function that gives the unsteered model's log-likelihood of each document's choices.

    A document's only choice is not asked for: it has 0.

    Args:
        model, folder: as of :func:`hardest`.
    """

    def scores(choices: Sequence[Sequence[Text]]) -> list[list[float]]:
        def load(path: Path, key: str) -> list[list[float]]:
            kept = read_kept(path, key)
            if [len(each) for each in kept] != [len(each) for each in choices]:
                raise ValueError("it is of other documents")
            return [[float(score) for score in each] for each in kept]

        def save(scores: list[list[float]], path: Path, key: str) -> None:
            # As texts: JSON has no infinity.
            write_kept([[repr(score) for score in each] for each in scores], path, key)

        kind: Kind[list[list[float]]] = Kind("own choices", ".choices.json", load, save)
        asked = {"choices": _tokens(model, choices)}
        return _kept(model, folder, kind, asked, lambda: _scored(model, choices))

    return scores


def _tokens(model: SteerableModel, answers: Sequence[Sequence[Text]]) -> list[Any]:
    return [[model.continuation(*text) for text in each] for each in answers]


def _kept(
    model: SteerableModel,
    folder: Path | None,
    kind: Kind[T],
    asked: Mapping[str, Any],
    build: Callable[[], T],
) -> T:
    """Give what is kept for what was asked of this model, or build it."""
    key = key_of({**asked, "model": model_identity(model.model_card), "versions": versions()})
    stored = get_or_build(folder, kind, [key], lambda keys, _: {keys[0]: build()}, model.processes)
    return stored[key].value


def _scored(model: SteerableModel, answers: Sequence[Sequence[Text]]) -> list[list[float]]:
    """Give the log-likelihood of each document's answers, as a choice is scored."""
    mine = model.processes.shard(answers)
    asked = [(d, i) for d, each in mine for i in range(len(each)) if len(each) > 1]
    values = [[0.0] * len(each) for each in answers]
    continuations = [model.continuation(*answers[d][i]) for d, i in asked]
    shown = bool(asked) and model.processes.is_first
    with tqdm(total=len(asked), desc="Likeliest choices", disable=not shown) as bar:

        def done(scored: list[tuple[int, Score]]) -> None:
            for position, (value, _) in scored:
                document, index = asked[position]
                values[document][index] = value
            bar.update(len(scored))

        model.engine.score(continuations, None, done)
    known = {document: values[document] for document, _ in mine}
    for part in model.processes.all_gather(known):
        known |= part
    return [known[document] for document in range(len(answers))]
