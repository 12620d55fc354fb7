"""Names that differ between releases of transformers."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sadi_lmeval.architecture.signature import cache_parameter

pytestmark = pytest.mark.quick


class Before(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Since(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


@pytest.mark.parametrize(("model", "name"), [(Before(), "past_key_values"), (Since(), "cache")])
def test_the_key_value_cache_has_the_model_s_own_name(model: nn.Module, name: str) -> None:
    assert cache_parameter(model) == name
