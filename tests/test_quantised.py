"""Quantised models on a CPU, with the packages that make them, where these are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.identity.weights import weights_digest
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.scoring import Score

pytestmark = pytest.mark.slow

LAYER = 1
REQUESTS = [Continuation((5, 9, 7, 4), tokens, 0) for tokens in ((8, 6), (3,), (11, 2, 9))]


def torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


KINDS: dict[str, tuple[str, Callable[[], Any], float]] = {
    "bitsandbytes, 4 bits": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True), 1e-3),
    # Activations are quantised by row, in float16.
    "bitsandbytes, 8 bits": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True), 0.2),
    "quanto": ("optimum.quanto", lambda: QuantoConfig(weights="int8"), 1e-3),
    "torchao": ("torchao", torchao, 1e-3),
}
"""What a kind needs, its configuration, and how far its own rounding lets scores be apart."""


def plainly(model: nn.Module, request: Continuation, gain: Tensor | None) -> float:
    """The score of one text, steered by a hook at its last prompt token."""
    last = len(request.context) - 1

    def steer(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[:, last] = new[:, last] * (1 + (0 if gain is None else gain.to(new)))
        return new

    handle = model.model.layers[LAYER].mlp.register_forward_hook(steer)  # type: ignore[index,union-attr]
    with torch.no_grad():
        logits = model(torch.tensor([[*request.context, *request.tokens]])).logits[0]
    handle.remove()
    found = logits.float().log_softmax(-1)
    return sum(float(found[last + i, token]) for i, token in enumerate(request.tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_scored_and_steered_as_in_plain_hooks(
    tmp_path: Path, kind: str
) -> None:
    package, configuration, rounding = KINDS[kind]
    pytest.importorskip(package, reason=f"{package} is not installed")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    tiny_llama(60, **sizes).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=configuration(), device_map="cpu"
    ).eval()
    before = [plainly(model, request, None) for request in REQUESTS]
    assert weights_digest(model)
    assert weights_digest(model) == weights_digest(model)
    assert [plainly(model, request, None) for request in REQUESTS] == before
    engine, site = Engine(model, pad=0, rows=None, max_length=128), find_site(model, "hidden")
    gains = torch.zeros(site.layers, site.width)
    gains[LAYER, ::2] = 2.0
    for edits, gain in ((None, None), (DiagonalEdits(site, [Edit(gains)]), gains[LAYER])):
        scores: dict[int, Score] = {}
        engine.score(REQUESTS, edits, scores.update)
        expected = [plainly(model, request, gain) for request in REQUESTS]
        assert [scores[i][0] for i in range(len(REQUESTS))] == pytest.approx(expected, abs=rounding)
    assert weights_digest(model) == weights_digest(model)
