"""The answers that the unsteered model likes best, among the wrong ones or among all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sadi_lmeval.harness.run_task import Text
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.identity.model import model_identity
from sadi_lmeval.pairs.pairs import Likes
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.storage.store import Kind, get_or_build, read_kept, write_kept
from sadi_lmeval.versions import versions


def hardest(model: SteerableModel, folder: Path | None) -> Likes:
    """Make a function that gives, of each document's wrong answers, the index of the likeliest one.

    What it finds is kept in the cache, as the pairs must be known before their fit is looked for.

    Args:
        model: scores, unsteered.
        folder: of the cache; one that cannot be written costs time, nothing else.
    """
    return _likes(model, folder, "hardest wrong choices")


def own_choices(model: SteerableModel, folder: Path | None) -> Likes:
    """Make a function that gives, of all of each document's choices, the index of the model's own.

    Args:
        model, folder: as of :func:`hardest`.
    """
    return _likes(model, folder, "own choices")


def _likes(model: SteerableModel, folder: Path | None, what: str) -> Likes:
    def likes(answers: Sequence[Sequence[Text]]) -> list[int]:
        tokens = [[model.continuation(*text) for text in each] for each in answers]
        sizes = [len(each) for each in answers]
        key = key_of(
            {"hardest": tokens, "model": model_identity(model.model_card), "versions": versions()}
        )

        def load(path: Path, key: str) -> list[int]:
            indices = read_kept(path, key)
            if not (
                isinstance(indices, list)
                and len(indices) == len(sizes)
                and all(type(i) is int and 0 <= i < n for i, n in zip(indices, sizes, strict=True))
            ):
                raise ValueError("it is of other documents")
            return [int(index) for index in indices]

        kind: Kind[list[int]] = Kind(what, ".hardest.json", load, write_kept)
        stored = get_or_build(
            folder, kind, [key], lambda keys, _: {keys[0]: _likeliest(model, answers)},
            model.processes,
        )  # fmt: skip
        return stored[key].value

    return likes


def _likeliest(model: SteerableModel, answers: Sequence[Sequence[Text]]) -> list[int]:
    """Find the first of the answers with the highest log-likelihood, as a choice is scored."""
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
    best = {document: values[document].index(max(values[document])) for document, _ in mine}
    for part in model.processes.all_gather(best):
        best |= part
    return [best[document] for document in range(len(answers))]
