"""What masks and tuning need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from sadi_lmeval.activations import TokenPair
from sadi_lmeval.grid import Done
from sadi_lmeval.interventions.edit import Edits
from sadi_lmeval.options import Element, HiddenSite
from sadi_lmeval.packing import Continuation
from sadi_lmeval.sites import Site


class SteerableModel(Protocol):
    """A causal language model whose activations can be read and edited."""

    @property
    def model_card(self) -> dict[str, Any]:
        """What identifies the model and its precision."""

    def site(self, element: Element, hidden_site: HiddenSite) -> Site:
        """Where an element's activations are."""

    def encode(self, context: str, continuation: str) -> list[int]:
        """Prompt and answer as the tokens that scoring would see."""

    def continuation(self, context: str, continuation: str) -> Continuation:
        """A request as scoring would tokenize and truncate it."""

    def measure(self, site: Site, pairs: list[TokenPair], label: str) -> Tensor:
        """The mean difference of pairs."""

    def score_grid(
        self, requests: Sequence[Continuation], families: Sequence[Edits], done: Done
    ) -> None:
        """Score requests unsteered and under every edit, see :func:`grid_log_likelihoods`."""
