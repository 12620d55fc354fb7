"""The scores of every setting, document by document, which ``bench/selection.py`` reads.

    python bench/selection_collect.py --tasks A,B --output FOLDER [--model FOLDER] [--data FOLDER]
        [--settings 24] [--pairs 100] [--held-out 120] [--scored 250]

Writes TASK.npz a task: the log-likelihoods of the choices of held-out documents and of documents
that the task scores, unsteered and under every setting, with the fits, the prompts and the engine
that tuning has. Each method's search space is thinned to ``--settings`` settings, its ends included
(0: the whole of it). Of a cross-fitted task the first fold alone is taken: its documents, and those
of the other that its pairs and its held-out documents come from.

``--data`` is a folder to run in, in which the harness finds the data sets when there is no hub. The
model is SmolLM2-135M-Instruct unless ``--model`` names another. Every document is noted down in
FOLDER as it is done: given again, the command goes on where it was, also with other numbers of
documents.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sadi_lmeval.comparison.sweep import Split, Sweep, parts_of
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask, digest
from sadi_lmeval.harness.run_tasks import load_tasks
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.methods.registry import usual_arms
from sadi_lmeval.model import ManyArmsModel
from sadi_lmeval.pairs.contrasts import gold_and_wrong
from sadi_lmeval.settings import SearchSpace, Setting
from sadi_lmeval.steering.fitting import method_of
from sadi_lmeval.steering.steering import candidates_of
from sadi_lmeval.steering.tuning import Trial, trial_identity
from sadi_lmeval.storage.journal import Journal

Array = np.ndarray[Any, Any]
AT_ONCE = 8
"""Documents that are scored before they are noted down."""


def thinned(model: ManyArmsModel, most: int) -> dict[str, SearchSpace]:
    """Give the search space of every arm on a model, of at most so many settings; 0: as it is."""
    spaces = {}
    for name, arm in model.arms.items():
        space = arm.search_space(model.engine.site(*method_of(arm).place).size)
        spaces[name] = space.thinned(most) if most else space
    return spaces


def collect(
    task: RunTask, model: ManyArmsModel, spaces: dict[str, SearchSpace], split: Split, count: int,
    folder: Path,
) -> tuple[Array, Array]:  # fmt: skip
    """Score documents of a task under every setting.

    Returns:
        log-likelihoods of the choices, ``[documents, 1 + settings, choices]``, -inf where a
        document has fewer; and the index of the right one, ``[documents]``.
    """
    what = Sweep(model.arms, spaces, split, count)
    part = parts_of(task, what, model.options, model)[0]
    trial = part.trial
    settings = {name: space.settings for name, space in spaces.items()}
    tried = [candidates_of(model.arms[n], settings[n], part.fits[n], model) for n in settings]
    identity = {**trial_identity(trial, model), "tried": [each.identity for each in tried]}
    del identity["documents"], identity["requests"]  # every line has its own
    journal = Journal(folder / f"{key_of({**identity, 'settings': settings})[:16]}.jsonl")
    known = {line["document"]: line["scores"] for line in journal.lines}
    asked = [
        key_of({"document": digest(d), "requests": [model.continuation(*t)[:2] for t in texts]})
        for d, texts in zip(trial.documents, trial.texts, strict=True)
    ]
    families, start = [each.edits for each in tried], time.perf_counter()
    left = [index for index, key in enumerate(asked) if key not in known]
    for begin in range(0, len(left), AT_ONCE):
        indices = left[begin : begin + AT_ONCE]
        requests = [model.continuation(*t) for index in indices for t in trial.texts[index]]
        found = np.full((1 + sum(f.count for f in families), len(requests)), np.nan)

        def done(numbers: list[int], values: Tensor, _: Tensor, found: Array = found) -> None:
            found[:, numbers] = values.double().numpy()

        model.engine.score_grid(requests, families, done)
        ends = np.cumsum([len(trial.texts[index]) for index in indices])[:-1]
        for index, scores in zip(indices, np.split(found, ends, axis=1), strict=True):
            rows = [[round(v, 5) if np.isfinite(v) else None for v in row] for row in scores]
            journal.add({"document": asked[index], "scores": rows})
            known[asked[index]] = rows
        finished = begin + len(indices)
        each = (time.perf_counter() - start) / finished
        print(
            f"{task.name}, {split}: {finished} of {len(left)}, {each:.1f} s each", file=sys.stderr
        )
    return _padded([np.array(known[key], dtype=float) for key in asked]), _gold(trial)


def _padded(scores: list[Array]) -> Array:
    most = max(each.shape[1] for each in scores)
    padded = np.full((len(scores), len(scores[0]), most), -np.inf, np.float32)
    for whole, each in zip(padded, scores, strict=True):
        whole[:, : each.shape[1]] = each
    return padded


def _gold(trial: Trial) -> Array:
    def right(document: Document) -> int:
        found, _ = gold_and_wrong(trial.task, trial.recipe, document)
        if len(found) != 1:
            raise UserError(f"task {trial.task.name}: a document has {len(found)} right choices")
        return found[0]

    return np.array([right(document) for document in trial.documents])


def finite(
    scores: list[Array], settings: dict[str, list[Setting]]
) -> tuple[Array, dict[str, list[Setting]]]:
    """Leave out settings with a score that is not a number: no rule may take one.

    Returns:
        which columns are kept, and the settings of each arm that are.
    """
    kept = ~np.any([np.isnan(each).any((0, 2)) for each in scores], axis=0)
    left = iter(kept[1:])
    return kept, {name: [s for s in mine if next(left)] for name, mine in settings.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--arms", default=",".join(n for n in usual_arms() if n != "none"))
    parser.add_argument("--settings", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=120)
    parser.add_argument("--scored", type=int, default=250)
    given = parser.parse_args()
    output = given.output.absolute()
    from offline import run_in

    run_in(given.data)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    from smollm2 import default_folder, smollm2

    model = ManyArmsModel(
        given.model or str(smollm2(default_folder())),
        given.arms.split(","),
        device="cpu",
        dtype="float32",
        batch_size="auto",
        n_tune=given.held_out,
        n_pairs=given.pairs,
        cache_dir=str(output / "fits"),
    )
    spaces = thinned(model, given.settings)
    for task in load_tasks(given.tasks.split(","), [], 0, {}):
        dev, dev_gold = collect(task, model, spaces, "dev", given.held_out, output / "scores")
        test, test_gold = collect(task, model, spaces, "test", given.scored, output / "scores")
        kept, settings = finite([dev, test], {n: space.settings for n, space in spaces.items()})
        np.savez_compressed(
            output / f"{task.name}.npz",
            settings=json.dumps(settings),
            dev=dev[:, kept],
            test=test[:, kept],
            dev_gold=dev_gold,
            test_gold=test_gold,
        )
        print(f"{task.name}: {dev.shape}, {test.shape}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
