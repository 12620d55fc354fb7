"""Number formats, adapters, attention kernels and places in memory: what changes, and what not.

The models and :func:`oracle` are those of ``helpers/architectures.py``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from torch import Tensor, nn

from helpers.architectures import (
    CASES,
    DELTAS,
    LLAMA,
    PROMPTS,
    REQUESTS,
    assert_close,
    columns_of,
    edits_of,
    generated,
    logits_at,
    made,
    oracle,
    places,
    plain_logits,
    score_of,
    scores,
    site_of,
)
from helpers.grids import score as score_grid
from helpers.models import tiny as tiny_of
from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.passes.activations import TokenPair, read_pairs
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import can_resume, longest_branching_path
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.passes.prefill import can_share_beginning

VOCAB = 60
CPU = torch.device("cpu")
BOUNDS = Bounds(None, 200, 1000)
EVERYWHERE = [("head", False), ("neuron", False), ("mlp", True), ("residual", False)]
"""Sites, and whether activations are clean."""


def tiny(**changes: Any) -> Any:
    return tiny_llama(VOCAB, num_hidden_layers=2, **changes)


def by_the_oracle(model: nn.Module, where: str, clean: bool, named: Any = LLAMA) -> Tensor:
    """The scores of REQUESTS, one text at a time."""
    found = []
    for prompt, tokens, edit in REQUESTS:
        text, last = [*prompt, *tokens], len(prompt) - 1
        if edit == UNSTEERED:
            logits = plain_logits(model, text)
        else:
            columns = columns_of(where, edit, 8)
            logits = oracle(model, named, where, text, last, columns, DELTAS[edit], clean)
        found.append(score_of(logits, prompt, tokens))
    return torch.tensor(found)


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ------------------------------------------------------------------ 16 bits

HALVES = [(torch.bfloat16, 0.06), (torch.float16, 0.01)]
"""A type, and how far a result may be from float32's, as a part of the largest one: twice what was
seen, 2.9 % and 0.5 %."""
each_half = pytest.mark.parametrize(
    ("dtype", "tolerance"), HALVES, ids=[str(dtype) for dtype, _ in HALVES]
)
PAIRS = [
    TokenPair([5, 9, 7, i, i + 1], [5, 9, 7, i, (3 * i) % 60, (7 * i) % 60]) for i in range(20, 40)
]


def mean_difference(model: nn.Module, where: str, branching: bool) -> MeanDifference:
    site = site_of(model, where)
    taken = MeanDifference(site, len(PAIRS))
    read_pairs(
        Forward(model), [(site, taken)], PAIRS, pad=0, branching=branching, bounds=BOUNDS, label=""
    )
    return taken


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Near, but not the same: the model did compute in another type."""
    gap = float((found.float() - expected).abs().max())
    assert 0 < gap <= tolerance * float(expected.abs().max())


@each_half
def test_mean_differences_of_a_16_bit_model_are_float32_out_of_float64_sums(
    dtype: torch.dtype, tolerance: float
) -> None:
    model = tiny()
    half = copy.deepcopy(model).to(dtype)
    for where in ("head", "neuron", "mlp", "residual"):
        expected = mean_difference(model, where, True).tensors("")["difference"]
        for branching in (False, True):
            taken = mean_difference(half, where, branching)
            found = taken.tensors("")["difference"]
            assert taken.total.dtype == torch.float64
            assert found.dtype == torch.float32
            assert_near(found, expected, tolerance)


@pytest.mark.parametrize("dtype", [dtype for dtype, _ in HALVES])
def test_a_sum_of_many_16_bit_differences_loses_none(dtype: torch.dtype) -> None:
    """Their sum is no number of 16 bits."""
    step, pairs = torch.finfo(dtype).eps, 4999
    assert float(torch.tensor(step * pairs, dtype=dtype)) != step * pairs
    site = Site("hidden", (nn.Identity(),), "output", 1, 1)
    taken = MeanDifference(site, pairs)
    values = torch.tensor([1 + step, 1.0], dtype=dtype).repeat(pairs).view(-1, 1, 1)
    taken.add([i // 2 for i in range(2 * pairs)], [1, -1] * pairs, values)
    assert float(taken.tensors("")["difference"]) == step


@each_half
def test_a_16_bit_model_is_steered_as_the_equations_say(
    dtype: torch.dtype, tolerance: float
) -> None:
    model = tiny()
    half = copy.deepcopy(model).to(dtype)
    text = [*PROMPTS[0], 3, 14]
    before = plain_logits(half, text)
    branches = longest_branching_path(half) >= len(text)
    assert branches
    assert can_resume(half)
    assert can_share_beginning(half)
    for where, clean in EVERYWHERE:
        edits = edits_of(half, where, clean)
        expected = by_the_oracle(model, where, clean)
        for found in (scores(half, edits), scores(half, edits, branching=branches)):
            assert_near(found, expected, tolerance)
        last = len(PROMPTS[0]) - 1
        columns = columns_of(where, 0, 8)
        same = oracle(half, LLAMA, where, PROMPTS[0], last, columns, DELTAS[0], clean)[-1]
        steered = logits_at(half, edits, PROMPTS[0], 0)
        assert steered.dtype == dtype
        # Within the type itself: two roundings of the largest logit.
        gap = (steered.float() - same.float()).abs().max()
        assert gap <= 2 * torch.finfo(dtype).eps * same.float().abs().max()
        zero = edits_of(half, where, clean, deltas=[0.0, 3.0])
        plain = logits_at(half, None, PROMPTS[0], UNSTEERED)
        assert torch.equal(logits_at(half, zero, PROMPTS[0], 0), plain)
        generated(half, edits)
    assert torch.equal(plain_logits(half, text), before)
    assert hooks_left(half) == 0


# ------------------------------------------------------------------ adapters

WRAPPED = LLAMA._replace(blocks=f"base_model.model.{LLAMA.blocks}")
"""Where an adapter's wrapper has the modules."""


def with_lora(**options: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False, **options
    )
    return peft.get_peft_model(tiny(), config).eval()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"target_modules": ["q_proj", "v_proj"]}, id="beside the sites"),
        pytest.param({"target_modules": "all-linear"}, id="at the sites"),
        pytest.param({"target_modules": ["o_proj", "down_proj"], "use_dora": True}, id="dora"),
    ],
)
def test_a_model_with_a_lora_adapter_is_steered_adapter_included(options: dict[str, Any]) -> None:
    model = with_lora(**options)
    text = [*PROMPTS[0], 3, 14]
    before = plain_logits(model, text)
    assert (before - plain_logits(tiny(), text)).abs().max() > 1e-2
    assert longest_branching_path(model) >= len(text)
    for where, clean in EVERYWHERE:
        site = site_of(model, where)
        assert site.modules[0] is site_of(model.get_base_model(), where).modules[0]
        edits = edits_of(model, where, clean)
        expected = by_the_oracle(model, where, clean, WRAPPED)
        for branching in (False, True):
            assert_close(scores(model, edits, branching=branching), expected, (where, branching))
        tokens, logits = generated(model, edits)
        for prompt, own, found in zip(PROMPTS, tokens, logits, strict=True):
            last, columns = len(prompt) - 1, columns_of(where, 0, 8)
            said = oracle(model, WRAPPED, where, [*prompt, *own], last, columns, DELTAS[0], clean)
            assert_close(found, said[last:-1], (where, prompt))
    assert torch.equal(plain_logits(model, text), before)
    assert hooks_left(model) == 0


def test_the_steered_scores_of_an_adapter_that_is_switched_off_are_the_model_s_own() -> None:
    model, plain = with_lora(target_modules="all-linear"), tiny()
    expected = scores(plain, edits_of(plain, "head"))
    edits = edits_of(model, "head")
    assert (scores(model, edits) - expected).abs().max() > 1e-2
    with model.disable_adapter():
        assert_close(scores(model, edits), expected)


@pytest.mark.parametrize(
    "config", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig]
)
def test_an_adapter_that_puts_tokens_before_a_text_is_refused_in_one_line(config: Any) -> None:
    model = peft.get_peft_model(tiny(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UserError, match=rf"{config.__name__} puts virtual tokens") as caught:
        site_of(model, "head")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ attention kernels


@pytest.mark.parametrize("name", ["Llama", "Falcon, multi-query", "OPT", "Qwen3-MoE"])
def test_eager_and_sdpa_attention_give_the_same_steered_scores(name: str) -> None:
    case, model = CASES[name], made(name)
    eager = tiny_of(case.kind, vocab_size=VOCAB, **{**case.changes, "attn_implementation": "eager"})
    assert model.config._attn_implementation == "sdpa"
    assert eager.config._attn_implementation == "eager"
    for where, clean in EVERYWHERE:
        if where not in places(name):
            continue
        for branching in (False, True):
            one, other = (
                scores(m, edits_of(m, where, clean), branching=branching) for m in (model, eager)
            )
            assert_close(other, one, (where, branching))


# ------------------------------------------------------------------ int8


def quantised() -> Any:
    """int8 weights, and activations quantised by the range that they have in a pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that another package will have this
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return quantize(tiny(), {nn.Linear}, dtype=torch.qint8)


def test_a_model_quantised_to_int8_is_steered_as_the_equations_say_text_by_text() -> None:
    model = quantised()
    assert type(model.model.layers[0].self_attn.o_proj) is not nn.Linear
    text = [*PROMPTS[0], 3, 14]
    before = plain_logits(model, text)
    for where, clean in EVERYWHERE:
        edits = edits_of(model, where, clean)
        last, columns = len(PROMPTS[0]) - 1, columns_of(where, 0, 8)
        expected = oracle(model, LLAMA, where, PROMPTS[0], last, columns, DELTAS[0], clean)[-1]
        plain = logits_at(model, None, PROMPTS[0], UNSTEERED)
        found = logits_at(model, edits, PROMPTS[0], 0)
        assert (expected - plain).abs().max() > 0.1
        # The logits' own quantisation sees one position here and all of them there.
        assert (found - expected).abs().max() < 0.02 * expected.abs().max(), where
        zero = edits_of(model, where, clean, deltas=[0.0, 3.0])
        assert torch.equal(logits_at(model, zero, PROMPTS[0], 0), plain)
        generated(model, edits)
    assert torch.equal(plain_logits(model, text), before)
    assert hooks_left(model) == 0


def test_a_model_whose_scores_depend_on_the_batch_shares_nothing() -> None:
    """Its activations are quantised by the range of the whole batch, steered or not."""
    model = quantised()
    ids = torch.tensor([[*PROMPTS[0]], [*PROMPTS[0][::-1]]])
    with torch.no_grad():
        assert (model(ids).logits[0] - model(ids[:1]).logits[0]).abs().max() > 1e-2
    assert longest_branching_path(model) == 0
    assert not can_share_beginning(model)


# ------------------------------------------------------------------ offloading

PARTS = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def test_a_model_with_layers_on_the_disk_scores_and_generates_as_one_in_memory(
    tmp_path: Path,
) -> None:
    plain = tiny()
    model = accelerate.dispatch_model(tiny(), PARTS, offload_dir=str(tmp_path), force_hooks=True)
    assert model.model.layers[1].mlp.down_proj.weight.is_meta
    text = [*PROMPTS[0], 3, 14]
    before = plain_logits(model, text)
    assert torch.equal(before, plain_logits(plain, text))
    branches = longest_branching_path(model) >= len(text)
    assert branches
    assert can_resume(model)
    assert can_share_beginning(model)
    requests = [Continuation(prompt, tokens) for prompt, tokens, _ in REQUESTS[::3]]
    for where, clean in EVERYWHERE:
        ours, theirs = edits_of(model, where, clean), edits_of(plain, where, clean)
        assert torch.equal(scores(model, ours), scores(plain, theirs))
        assert torch.equal(
            scores(model, ours, branching=True), scores(plain, theirs, branching=True)
        )
        found, expected = (
            score_grid(m, requests, [e])[0] for m, e in ((model, ours), (plain, theirs))
        )
        assert torch.equal(found, expected)
        assert torch.equal(generated(model, ours)[1], generated(plain, theirs)[1])
    assert torch.equal(plain_logits(model, text), before)


@pytest.mark.parametrize(
    "offloaded",
    [
        pytest.param(lambda model, folder: accelerate.cpu_offload(model, CPU), id="memory"),
        pytest.param(lambda model, folder: accelerate.disk_offload(model, folder, CPU), id="disk"),
    ],
)
def test_a_model_that_is_offloaded_as_a_whole_scores_as_one_in_memory(
    offloaded: Callable[[nn.Module, str], Any], tmp_path: Path
) -> None:
    plain, model = tiny(), tiny()
    offloaded(model, str(tmp_path))
    assert_close(scores(model, edits_of(model, "head")), scores(plain, edits_of(plain, "head")))
