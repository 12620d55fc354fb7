"""The digest of a model's weights: any change of them changes it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from helpers.models import tiny_llama
from sadi_lmeval.identity.weights import weights_digest


def test_the_digest_of_weights_changes_with_any_single_weight() -> None:
    model, chosen = tiny_llama(40), random.Random(0)
    before = weights_digest(model)
    assert before == weights_digest(tiny_llama(40))
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        flat = parameter.data.view(-1)
        place = chosen.randrange(len(flat))
        kept = float(flat[place])
        flat[place] = kept * (1 + 2**-20) if kept else 1e-30
        assert float(flat[place]) != kept
        assert weights_digest(model) != before, (name, place)
        flat[place] = kept
    assert weights_digest(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_digest_of_weights_changes_with_their_type(dtype: torch.dtype) -> None:
    assert weights_digest(tiny_llama(40)) != weights_digest(tiny_llama(40).to(dtype))


def test_the_digest_of_weights_changes_with_names_shapes_and_adapters() -> None:
    def model(**parts: nn.Module) -> nn.Module:
        return nn.ModuleDict(parts)

    def zeros(rows: int, columns: int) -> nn.Linear:
        linear = nn.Linear(columns, rows, bias=False)
        nn.init.zeros_(linear.weight)
        return linear

    models = [
        model(a=zeros(2, 3)),
        model(b=zeros(2, 3)),
        model(a=zeros(3, 2)),
        model(a=zeros(2, 3), adapter=zeros(1, 1)),
    ]
    assert len({weights_digest(m) for m in models}) == 4


def test_the_digest_of_weights_changes_where_rows_change_places() -> None:
    """The sum of all bit patterns stays the same then."""
    model = nn.Linear(100, 50, bias=False)
    before = weights_digest(model)
    with torch.no_grad():
        model.weight.copy_(model.weight.flip(0))
    assert weights_digest(model) != before


def test_weights_are_read_where_they_are_and_never_gathered_to_be_saved() -> None:
    """A kind of module may change its weights when it is: bitsandbytes does, on a CPU."""
    model = tiny_llama(40)
    read = []

    def hook(module: nn.Module, *given: Any) -> None:
        read.append(module)
        with torch.no_grad():
            next(module.parameters()).add_(1)

    model.model.layers[0].mlp.up_proj.register_state_dict_pre_hook(hook)
    model.model.layers[1].mlp.up_proj._register_state_dict_hook(hook)
    assert weights_digest(model) == weights_digest(tiny_llama(40))
    assert not read
    model.state_dict()
    assert read


def test_of_a_tensor_that_is_made_of_several_each_counts() -> None:
    """As quantised ones are: whole numbers and their scales, in one parameter (torchao)."""

    def model(numbers: float, scale: float) -> nn.Module:
        made = nn.Linear(4, 4, bias=False)
        parts = torch.full((4, 4), numbers), torch.full((4, 4), scale)
        both = TwoTensor(*parts)  # type: ignore[no-untyped-call]
        made.weight = nn.Parameter(both, requires_grad=False)
        return made

    digests = [weights_digest(model(*parts)) for parts in ((1, 2), (1, 2), (3, 2), (1, 3))]
    assert None not in digests
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
