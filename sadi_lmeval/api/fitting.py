"""Fit a method to contrastive pairs, or to a task of the harness."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sadi_lmeval.api.given_pairs import given_pairs
from sadi_lmeval.api.steering_fit import SteeringFit
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_tasks import load_task
from sadi_lmeval.model import SteeredModel, model_class
from sadi_lmeval.pairs.plan import user_folders
from sadi_lmeval.steering.fitting import fits_of_pairs
from sadi_lmeval.steering.steering import prepare


def fit(
    model: Any,
    tokenizer: Any,
    pairs: str | Path | Sequence[Mapping[str, Any]] | None = None,
    method: str = "sadi",
    *,
    from_task: str | None = None,
    delimiter: str = " ",
    **arguments: Any,
) -> SteeringFit:
    """Fit a method to pairs of texts, or to a task's own pairs.

    Args:
        model: a causal language model of transformers, loaded.
        tokenizer: its tokenizer.
        pairs: rows with the texts ``prompt``, ``positive`` and ``negative``, or, where the contrast
            stands in the prompt, ``positive_prompt``, ``negative_prompt`` and ``completion``; a
            prompt may be a list of chat messages, which the tokenizer's template renders. Or the
            path of a JSONL file of such rows.
        method: ``sadi``, ``iti``, ``caa``, …
        from_task: in place of pairs, a task of the harness: its training documents make the pairs,
            and a setting that is not given is chosen on others of them, which are held out. Where
            a task has no training documents they are those that it scores: such a fit may steer
            anything but them, and a run that would score them with it is refused.
        delimiter: between a prompt that is a text and its answer.
        arguments: of ``hf-METHOD``: ``element="head"``, ``layer=13``, ``n_pairs=100``, ``seed=1``.

    Returns:
        what was measured, with the setting as far as it is given or was chosen.

    Raises:
        UserError: neither or both of pairs and from_task, or whatever is wrong with them.
    """
    if (pairs is None) == (from_task is None):
        raise UserError("fit: give either pairs or from_task=TASK")
    harness = harness_model(method, model, tokenizer, **arguments)
    arm = harness.arm
    if arm.method is None:
        raise UserError("fit: method=none measures nothing")
    if arm.options.when is not None:
        raise UserError(
            f"fit: when={arm.options.when} keeps a run of the harness to some prompts; this steers "
            "whatever it is given: leave it out"
        )
    if from_task is not None:
        task = load_task(from_task, user_folders(arm.options, None), None)
        [steering] = prepare(task, harness, [arm], for_scoring=False)
        [prepared] = steering.fits
        if not arm.axes.steers(prepared.setting) and not any(axis.strength for axis in arm.axes):
            raise UserError(
                f"task {from_task}: no setting of {method} was taken, and it has no strength that "
                f"could be 0; pass {'= and '.join(arm.axes.names)}=, or rule=best"
            )
        made = SteeringFit(prepared.fitted.fit, replace(arm, given=prepared.setting, space=None))
        return made.with_choice(prepared.of_choice)

    def chat(messages: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    assert pairs is not None
    rows = given_pairs(pairs, chat, delimiter)
    named = Path(pairs).name if isinstance(pairs, (str, Path)) else "pairs"
    origin = {"task": None, "source": named, "recipe": None, "recipe_digest": None}
    [fitted] = fits_of_pairs(rows, [], origin, [arm], harness, named)
    return SteeringFit(fitted.fit, arm)


def harness_model(method: str, model: Any, tokenizer: Any, **arguments: Any) -> SteeredModel:
    """Make the harness model of a method around a loaded model."""
    with _no_warning_of_a_loaded_model():
        return model_class(method)(model, tokenizer=tokenizer, **arguments)


@contextmanager
def _no_warning_of_a_loaded_model() -> Iterator[None]:
    """Leave out what the harness says of every model that is given loaded, as all are here."""

    def is_other(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "already-initialized model" not in said and "not of type `str`" not in said

    logger = logging.getLogger("lm_eval.models.huggingface")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
