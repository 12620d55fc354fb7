"""Mean differences, as several methods measure them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from helpers.equations.contract import Given, as_passes_have


def mean_difference(positive: Tensor, negative: Tensor, given: Given) -> Tensor:
    """D of SADI (equation 3) and v of CAA (section 3), ``[layers, width]``."""
    total = torch.zeros_like(positive[0])
    for one, other in zip(positive, negative, strict=True):
        total += one - other
    return (total / len(positive)).float()


def assert_difference(tensors: Mapping[str, Tensor], expected: Tensor) -> None:
    assert (expected.norm(dim=1) > 0.5).all()
    found = as_passes_have(tensors["difference"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
