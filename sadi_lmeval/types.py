"""Types that low and high rooms share: what is steered, and at which tokens."""

from __future__ import annotations

from typing import Literal, NamedTuple

Element = Literal["head", "neuron", "hidden"]
"""What is read and edited: attention heads, MLP neurons or hidden states."""

HiddenSite = Literal["mlp", "residual"]
"""Of hidden states: the MLP's output, or the decoder block's (the residual stream)."""

Scope = Literal["prompt", "onwards"]
"""Which tokens are edited: the last prompt token alone, or every later token too."""

Side = Literal["above", "below"]
"""On which side of a condition's threshold prompts are steered."""


class Size(NamedTuple):
    """How large a site of a model is.

    Attributes:
        layers: decoder blocks.
        entries: selectable elements a layer: heads, neurons or hidden units.
        width: activations a layer and position, of the widest layer; None where only the
            configuration is known.
        activations: of all layers together, where these differ in width; None: they do not.
    """

    layers: int
    entries: int
    width: int | None = None
    activations: int | None = None
