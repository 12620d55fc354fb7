"""The wrong answers that the unsteered model likes best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sadi_lmeval.errors import first_line
from sadi_lmeval.harness.run_task import Text
from sadi_lmeval.pairs.pairs import Likes
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.passes.steerable import SteerableModel
from sadi_lmeval.storage.atomic import read_checked, write_checked
from sadi_lmeval.storage.cache import cache_key, locked

logger = logging.getLogger("lm_eval.sadi")


def hardest(model: SteerableModel, folder: Path) -> Likes:
    """A function that gives, of each document's wrong answers, the index of the likeliest one.

    What it finds is kept in the cache, as the pairs must be known before their mask is looked for.

    Args:
        model: scores, unsteered.
        folder: of the cache; one that cannot be written costs time, nothing else.
    """

    def likes(wrongs: Sequence[Sequence[Text]]) -> list[int]:
        tokens = [[model.continuation(*text) for text in each] for each in wrongs]
        found = {"hardest": tokens, "model": model.model_card}
        path = folder / f"{cache_key(found)}.hardest.json"
        sizes = [len(each) for each in wrongs]
        with locked(folder, [f"{path.name}.lock"], model.processes) as unwritable:
            known = model.processes.broadcast(lambda: _known(path, sizes))
            if known is None:
                known = _likeliest(model, wrongs)
                try:
                    if unwritable is None and model.processes.is_first:
                        write_checked(path, known)
                except OSError as error:
                    logger.warning("%s cannot be written (%s): it is found anew", path, error)
        return known

    return likes


def _known(path: Path, sizes: Sequence[int]) -> list[int] | None:
    """What was found before; None where it is not there, or damaged."""
    try:
        found = read_checked(path)
    except OSError:
        return None
    except (ValueError, RecursionError) as error:
        logger.warning("%s: damaged (%s); it is found anew", path, first_line(error))
        return None
    fits = (
        isinstance(found, list)
        and len(found) == len(sizes)
        and all(type(i) is int and 0 <= i < size for i, size in zip(found, sizes, strict=True))
    )
    return found if fits else None


def _likeliest(model: SteerableModel, wrongs: Sequence[Sequence[Text]]) -> list[int]:
    """The first of the answers with the highest log-likelihood, as a choice is scored."""
    mine = model.processes.shard(wrongs)
    asked = [(d, i) for d, each in mine for i in range(len(each)) if len(each) > 1]
    values = [[0.0] * len(each) for each in wrongs]
    continuations = [model.continuation(*wrongs[d][i]) for d, i in asked]
    shown = bool(asked) and model.processes.is_first
    with tqdm(total=len(asked), desc="Hardest wrong choices", disable=not shown) as bar:

        def done(found: list[tuple[int, Score]]) -> None:
            for position, (value, _) in found:
                document, index = asked[position]
                values[document][index] = value
            bar.update(len(found))

        model.engine.score(continuations, None, done)
    found = {document: values[document].index(max(values[document])) for document, _ in mine}
    for part in model.processes.all_gather(found):
        found |= part
    return [found[document] for document in range(len(wrongs))]
