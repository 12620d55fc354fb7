"""What masks and tuning need of a model."""

from __future__ import annotations

from typing import Any, Protocol

from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.processes import Processes


class SteerableModel(Protocol):
    """A causal language model whose activations can be read and edited."""

    @property
    def engine(self) -> Engine:
        """Measures pairs and scores requests."""

    @property
    def model_card(self) -> dict[str, Any]:
        """What identifies the model and its precision."""

    @property
    def processes(self) -> Processes:
        """Those that share the work of this run."""

    def encode(self, context: str, continuation: str) -> list[int]:
        """Prompt and answer as the tokens that scoring would see."""

    def continuation(self, context: str, continuation: str) -> Continuation:
        """A request as scoring would tokenize and truncate it."""
