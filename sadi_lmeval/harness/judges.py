"""Models that judge what another one has written: named by the user, loaded once."""

from __future__ import annotations

import functools
from typing import Any

from sadi_lmeval.errors import UserError, first_line

YES = " yes"
"""What a causal judge continues with where it agrees."""


def is_classifier(argument: str, name: str) -> bool:
    """Return whether a model was saved with a head that classifies texts, not one that writes.

    Args:
        argument: what names the model, for the message.
        name: a folder or a repository.

    Raises:
        UserError: its configuration cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers raises many kinds: say which, in one line
        raise _unloadable(argument, name, error) from error
    return any(each.endswith("ForSequenceClassification") for each in config.architectures or ())


@functools.cache
def classifier(argument: str, name: str, device: str | None = None) -> Any:
    """Load a text-classification pipeline.

    Args:
        argument: what names the model, for the message.
        name: a folder or a repository.
        device: as transformers' ``device_map``; None for the accelerator of this process.

    Raises:
        UserError: it cannot be loaded, or is no text classifier.
    """
    from transformers import AutoModelForSequenceClassification, pipeline

    model, tokenizer = _loaded(
        argument, name, AutoModelForSequenceClassification, "classifier", device
    )
    return pipeline("text-classification", model=model, tokenizer=tokenizer)


def label_scores(classify: Any, text: str) -> dict[str, float]:
    """Give each label's probability."""
    return {each["label"]: each["score"] for each in classify(text, truncation=True, top_k=None)}


def says_label(classify: Any, text: str, label: str) -> bool:
    """Return whether a classifier gives a text a label.

    It does where it has that label before all others or, where each label is judged for itself,
    with a probability above one half.
    """
    scores = label_scores(classify, text)
    config = classify.model.config
    if len(scores) == 1 or config.problem_type == "multi_label_classification":
        return scores[label] > 0.5
    return max(scores, key=scores.__getitem__) == label


@functools.cache
def causal_judge(argument: str, name: str, device: str | None = None) -> tuple[Any, Any]:
    """Load a causal model that answers yes or no, and its tokenizer.

    Raises:
        UserError: it cannot be loaded, writes nothing, or its tokenizer has no text before an
            answer.
    """
    from transformers import AutoModelForCausalLM

    model, tokenizer = _loaded(argument, name, AutoModelForCausalLM, "language model", device)
    start, whole = _tokens(tokenizer, "A:")
    if whole[: len(start)] != start or len(whole) == len(start):
        raise UserError(
            f"{argument}={name}: its tokenizer does not write {YES!r} after a text as tokens of "
            "their own; name a causal model whose tokenizer adds nothing at a text's end"
        )
    return model, tokenizer


def probability_of_yes(model: Any, tokenizer: Any, text: str) -> float:
    """Give the probability with which a causal model continues a text with `` yes``."""
    import torch

    start, whole = _tokens(tokenizer, text)
    tokens = torch.tensor([whole], device=model.device)  # [1, seq]
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits[0].float()  # [seq, vocabulary]
    places = torch.arange(len(start), len(whole), device=logits.device)
    answer = tokens[0, len(start) :, None].to(logits.device)  # [answer, 1]
    return float(logits[places - 1].log_softmax(-1).gather(1, answer).sum().exp())


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Give the tokens of a text, and of it with the answer."""
    return tokenizer(text)["input_ids"], tokenizer(text + YES)["input_ids"]


def _loaded(
    argument: str, name: str, kind: Any, called: str, device: str | None
) -> tuple[Any, Any]:
    from accelerate import PartialState
    from transformers import AutoTokenizer

    try:
        model, loading = kind.from_pretrained(
            name, output_loading_info=True, device_map=device or str(PartialState().device)
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise _unloadable(argument, name, error) from error
    # transformers makes such weights up, and what a made-up head says means nothing.
    if loading["missing_keys"]:
        what = "text-classification" if called == "classifier" else "causal"
        raise UserError(
            f"{argument}={name}: has no trained {called} "
            f"({min(loading['missing_keys'])} is missing); name a {what} model"
        )
    return model.eval(), tokenizer


def _unloadable(argument: str, name: str, error: Exception) -> UserError:
    return UserError(f"{argument}={name}: cannot be loaded ({first_line(error)})")
