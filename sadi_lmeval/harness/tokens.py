"""Tokens of many texts at once: to call a tokenizer takes longer than to encode a short text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

_TRIED = 8
"""Texts of a batch that are compared with the harness's own encoding."""


class TokensOfMany:
    """Texts that the harness's ``HFLM.tok_encode`` is about to be asked for, encoded in one call.

    That is done where it gives the very tokens that the harness gives; of every batch a few texts
    are encoded in both ways, and where they differ, the harness's way is taken for all.

    Attributes:
        known: whether any text is.
    """

    def __init__(self, lm: Any) -> None:
        """
        Args:
            lm: a harness model; its tokenizer is read when texts are encoded.
        """
        self._lm = lm
        self._tokens: dict[tuple[str, bool | None], list[int]] = {}

    @property
    def known(self) -> bool:
        return bool(self._tokens)

    def of(self, text: str, add_special_tokens: bool | None) -> list[int] | None:
        """Give a copy of a text's tokens, or None where it was not encoded."""
        found = self._tokens.get((text, add_special_tokens))
        return None if found is None else list(found)

    @contextmanager
    def encoded(self, texts: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Know the texts that (prompt, answer) need, until the context is left."""
        whole: dict[str, None] = {}
        answers: dict[str, None] = {}
        for context, continuation in texts:
            if context:
                whole[context + continuation] = None
                whole[context.rstrip()] = None
            else:
                answers[continuation] = None
        try:
            self._encode(list(whole), None)
            self._encode(list(answers), False)
            yield
        finally:
            self._tokens = {}

    def _encode(self, texts: Sequence[str], special: bool | None) -> None:
        tokenizer = self._lm.tokenizer
        plain = getattr(type(tokenizer), "encode", None) is PreTrainedTokenizerBase.encode
        if len(texts) <= _TRIED or not plain or not getattr(tokenizer, "is_fast", False):
            return
        added = self._lm.add_bos_token if special is None else special
        begins = tokenizer.decode(self._lm.prefix_token_id) if special is None else ""
        begun = [bool(begins) and text.startswith(begins) for text in texts]
        for begin in (False, True):
            alike = [text for text, its in zip(texts, begun, strict=True) if its is begin]
            given = False if begin else added
            keywords = {} if given is None else {"add_special_tokens": given}
            found = _ids(tokenizer, alike, keywords)
            known, self._tokens = self._tokens, {}  # so that the harness encodes
            right = all(
                self._lm.tok_encode(text, special) == ids
                for text, ids in list(zip(alike, found, strict=True))[:: 1 + len(alike) // _TRIED]
            )
            if right:
                known |= {(text, special): ids for text, ids in zip(alike, found, strict=True)}
            self._tokens = known


def _ids(tokenizer: Any, texts: list[str], keywords: dict[str, bool]) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, **keywords
    )["input_ids"]
    return found
