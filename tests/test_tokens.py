"""Many texts are encoded at once, to the very tokens that the harness gives each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from conftest import WORDS
from sadi_lmeval.model import ManyArmsModel, SteeredModel

TEXTS = [
    *((f"the {word} is", f" {other} it") for word, other in zip(WORDS, WORDS[5:40], strict=False)),
    *((f"the {word} ", "dog") for word in WORDS[:9]),  # the space goes to the answer
    *(("", word) for word in WORDS[:12]),
    *((f"<s>the {word}", " ?") for word in WORDS[:12]),
    ("", "<s>no"),
]


@pytest.fixture(params=[None, True])
def lm(request: pytest.FixtureRequest, model_folder: Path) -> SteeredModel:
    given = {} if request.param is None else {"add_bos_token": request.param}
    return ManyArmsModel(str(model_folder), ["none"], device="cpu", **given)


def test_texts_encoded_at_once_have_the_tokens_that_each_has_alone(
    lm: SteeredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [lm.continuation(*text) for text in TEXTS]
    calls: list[Any] = []
    encode = PreTrainedTokenizerFast._encode_plus

    def counted(self: Any, text: Any, *arguments: Any, **keywords: Any) -> Any:
        calls.append(text)
        return encode(self, text, *arguments, **keywords)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", counted)
    assert lm.continuations(TEXTS) == expected
    assert len(calls) < len(TEXTS) / 2
    assert not lm._tokens.known


def test_a_tokenizer_that_encodes_otherwise_at_once_is_asked_text_by_text(
    lm: SteeredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [lm.continuation(*text) for text in TEXTS]
    encode = PreTrainedTokenizerFast._encode_plus

    def odd(self: Any, text: Any, *arguments: Any, **keywords: Any) -> Any:
        found = encode(self, text, *arguments, **keywords)
        if isinstance(text, list):
            found["input_ids"] = [ids[::-1] for ids in found["input_ids"]]
        return found

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", odd)
    assert lm.continuations(TEXTS) == expected
