"""When a text that is generated is over: where the harness's ``hf`` would not look any further.

``hf`` generates a batch until each of its texts has the same stop sequence, or has ended by itself,
and then cuts every text at its first stop sequence. What comes after that is computed for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sadi_lmeval.passes.packing import UNSTEERED

Decode = Callable[[list[int], bool], str]
"""Makes text of tokens; with or without special ones."""

_BACK = 2
"""Tokens more than a stop sequence has that are looked through, as the harness does: they may be
divided in another way."""


@dataclass(eq=False)
class Text:
    """A text to generate.

    Attributes:
        prompt: its tokens.
        ending: when it is over.
        most: tokens to generate at most.
        edit: that its prompt gets.
        made: the tokens so far.
        over: whether these are all.
        failed: whether the logits of one of them were not finite.
    """

    prompt: list[int]
    ending: Ending
    most: int
    edit: int = UNSTEERED
    made: list[int] = field(default_factory=list)
    over: bool = False
    failed: bool = False

    @property
    def kept(self) -> list[int]:
        """The tokens of a text that is over, as far as ``hf`` would have made them."""
        return self.made[: self.ending.last]

    def add(self, token: int) -> None:
        """Take the next token, and see whether the text is over."""
        self.made.append(token)
        self.over = self.ending.is_over(self)


class Ending:
    """What ends the texts of one of the harness's batches."""

    def __init__(
        self, stop: Sequence[str], eos: frozenset[int], size: int, decode: Decode, longest: int
    ) -> None:
        """
        Args:
            stop: sequences at which a text is cut.
            eos: tokens that end a text by themselves.
            size: texts of the batch.
            decode: makes text of tokens.
            longest: tokens of the longest stop sequence.
        """
        self.stop = [each for each in stop if each]
        self.eos, self.size, self.decode = eos, size, decode
        self.back = longest + _BACK
        self.last: int | None = None
        # Of each stop sequence that is no text (a special token that does not end it by itself):
        # in how many tokens which text has come to it. All texts having one ends the batch.
        self._come: dict[str, dict[int, int]] = {each: {} for each in self.stop}

    def is_over(self, text: Text) -> bool:
        made = text.made
        said = self.decode(made[-self.back :], False)
        found = [each for each in self.stop if each in said]
        if made[-1] in self.eos:
            self._note(text, found)
            return True
        if len(made) >= (text.most if self.last is None else min(self.last, text.most)):
            return True
        if not found:
            return False
        if self.size == 1:
            return True
        whole = self.decode(made, True)
        if any(each in whole for each in found):
            return not self._may_be_cut_earlier(whole)
        self._note(text, found)
        return self.last is not None and len(made) >= self.last

    def _note(self, text: Text, found: list[str]) -> None:
        for each in found:
            self._come[each].setdefault(id(text), len(text.made))
            if len(self._come[each]) == self.size and self.last is None:
                self.last = max(self._come[each].values())

    def _may_be_cut_earlier(self, whole: str) -> bool:
        """Say whether a stop sequence that began before the cut may still come to its end."""
        cut = min(place for each in self.stop if (place := whole.find(each)) >= 0)
        return any(
            whole.startswith(each[: len(whole) - place], place)
            for each in self.stop
            for place in range(max(0, len(whole) - len(each) + 1), cut)
        )
