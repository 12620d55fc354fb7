"""What masks and tuning need of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sadi_lmeval.options import Options
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.processes import Processes
from sadi_lmeval.storage.store import cache_folder


class SteerableModel(Protocol):
    """A causal language model whose activations can be read and edited."""

    @property
    def engine(self) -> Engine:
        """Measures pairs and scores requests."""

    @property
    def model_card(self) -> dict[str, Any]:
        """What the model is now, see :func:`sadi_lmeval.identity.model.model_card`."""

    @property
    def processes(self) -> Processes:
        """Those that share the work of this run."""

    def encode(self, context: str, continuation: str) -> list[int]:
        """Encode prompt and answer as the tokens that scoring would see."""

    def continuation(self, context: str, continuation: str) -> Continuation:
        """Make a request as scoring would tokenize and truncate it."""


def folder_for(options: Options, model: SteerableModel) -> Path | None:
    """Say where what is made with a model is kept; nowhere, if its weights cannot be read."""
    return None if model.model_card["weights_digest"] is None else cache_folder(options)
