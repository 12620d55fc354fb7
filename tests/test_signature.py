"""Names that differ between releases of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from helpers.models import tiny_llama
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.scoring import Score


class Before(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


class Since(nn.Module):
    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


@pytest.mark.quick
@pytest.mark.parametrize(("model", "name"), [(Before(), "past_key_values"), (Since(), "cache")])
def test_the_key_value_cache_has_the_model_s_own_name(model: nn.Module, name: str) -> None:
    assert cache_parameter(model) == name


class TokensAlone(LlamaForCausalLM):  # type: ignore[misc]
    """A model whose forward pass takes no mask, no positions and no cache."""

    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids=input_ids)


def test_a_model_without_a_key_value_cache_is_steered_as_one_that_has_it() -> None:
    plain = tiny_llama(60)
    bare = TokensAlone(plain.config).eval()
    bare.load_state_dict(plain.state_dict())
    requests = [Continuation((5, 9, 7), (4, 8), 0), Continuation((5,), (9, 7, 11), 0)]
    found = []
    for model in (plain, bare):
        site = find_site(model, "hidden")
        gain = torch.zeros(site.layers, site.width)
        gain[1, ::2] = 2.0
        edits = DiagonalEdits(site, [Edit(gain)], clean=True)
        engine = Engine(model, pad=2, rows=None, max_length=64)
        scores: dict[int, Score] = {}
        engine.score(requests, edits, scores.update)
        grid: dict[int, Tensor] = {}

        def done(numbers: list[int], values: Tensor, _: Tensor, grid: Any = grid) -> None:
            grid.update(zip(numbers, values.T, strict=True))

        engine.score_grid(requests, [edits], done)
        found.append([*(scores[i][0] for i in (0, 1)), *grid[0].tolist(), *grid[1].tolist()])
    assert found[1] == pytest.approx(found[0], abs=1e-4)
