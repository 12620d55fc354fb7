"""Edits whose changes are multiplied by a number of the prompt, where a gate is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sadi_lmeval.edits.contract import Edits

Gate = Callable[[Tensor], Tensor]
"""Takes unsteered activations of last prompt tokens, ``[k, layers, width]``; gives ``[k, count]``.
Each row depends on its own prompt alone, and each column on its own edit alone."""


class GatedEdits(Edits):
    """Edits that may have a gate."""

    def __init__(self, count: int, gate: Gate | None, gate_digests: Sequence[str]) -> None:
        """
        Args:
            count: how many edits.
            gate: see :data:`Gate`; None: none.
            gate_digests: of each edit, what tells its gate apart.
        """
        if gate is not None and len(gate_digests) != count:
            raise ValueError("a gate needs a digest for each edit")
        self.count, self._gate, self._gate_digests = count, gate, tuple(gate_digests)
        self.gated = gate is not None

    def gates(self, unsteered: Tensor) -> Tensor | None:
        return None if self._gate is None else self._gate(unsteered.float()).float()

    def gate_digest(self, edit: int) -> str:
        """Give what tells the gate of an edit apart; nothing where there is none."""
        return self._gate_digests[edit] if self.gated else ""
