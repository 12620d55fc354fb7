"""Packed rows are admitted by trial: far enough, and by what the model itself rounds."""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.models import tiny
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.passes import branching
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import difference_of, longest_branching_path
from sadi_lmeval.passes.decoding import can_decode
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.prefill import can_share_beginning
from sadi_lmeval.passes.scoring import log_likelihoods

TYPES = [torch.float32, torch.bfloat16, torch.float16]
BOUNDS = Bounds(None, 4096, 1 << 20, 0)


def requests(context: int, documents: int = 2) -> list[Continuation]:
    """Several prompts of some length, with three answers of different length each."""
    draw = Random(0)
    found = []
    for _ in range(documents):
        prompt = tuple(draw.randrange(3, 50) for _ in range(context))
        for length in (40, 3, 2):
            found.append(Continuation(prompt, tuple(draw.randrange(3, 50) for _ in range(length))))
    return found


def apart(model: torch.nn.Module, asked: list[Continuation]) -> float:
    """How far packed rows are from plain ones."""
    ways = [log_likelihoods(Forward(model), asked, None, 0, way, BOUNDS) for way in (True, False)]
    return max(float(abs(one - other)) for (one, _), (other, _) in zip(*ways, strict=True))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("named", [True, False], ids=["by name", "by trial"])
def test_biases_by_distance_in_the_row_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
    named: bool,
) -> None:
    model = tiny("mpt", vocab_size=60, max_seq_len=512).to(dtype)
    assert apart(model, requests(60)) > 0.5
    if not named:
        monkeypatch.setattr(branching, "_by_place", lambda config: "")
    with caplog.at_level(logging.INFO, logger="lm_eval.sadi"):
        assert longest_branching_path(model) == 0
    assert ("(ALiBi)" if named else "logits differ by") in caplog.text


def test_attention_that_keeps_a_window_of_the_row_is_refused_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny("doge", vocab_size=60, keep_window_size=48)
    with caplog.at_level(logging.INFO, logger="lm_eval.sadi"):
        assert longest_branching_path(model) == 0
    assert "keep_window_size" in caplog.text


@pytest.mark.parametrize("dtype", TYPES)
def test_the_trial_goes_far_enough_to_see_what_no_name_tells(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """A window that the trial's row is longer than only with 64 places before the branch."""
    monkeypatch.setattr(branching, "_by_place", lambda config: "")
    model = tiny("doge", vocab_size=60, keep_window_size=100, max_position_embeddings=512)
    assert longest_branching_path(model.to(dtype)) == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_a_model_whose_rows_may_be_packed_is_admitted_in_every_type(dtype: torch.dtype) -> None:
    model = tiny("llama", vocab_size=60, max_position_embeddings=512).to(dtype)
    assert longest_branching_path(model) > 1000


@pytest.mark.parametrize("dtype", TYPES)
def test_generation_is_judged_by_what_the_model_rounds(dtype: torch.dtype) -> None:
    """As much as a real model of 16 bits does; no float32 kernel does."""
    model = tiny("llama", vocab_size=60, max_position_embeddings=512).to(dtype)
    assert (can_decode(model), can_share_beginning(model)) == (True, True)

    def rounded(module: nn.Module, given: Any, states: Tensor) -> Tensor:
        """By the size of a pass, as kernels do."""
        return states * (1 + 0.004 * (states[..., 0].numel() % 5) / 4)

    model.model.norm.register_forward_hook(rounded)
    sound = dtype != torch.float32
    assert (can_decode(model), can_share_beginning(model)) == (sound, sound)


def test_what_a_trial_misses_is_seen_on_the_longest_row_of_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("doge", vocab_size=60, keep_window_size=48, max_position_embeddings=512)
    asked = requests(20, 6) + requests(150)
    assert apart(model, asked[-6:]) > 0.05
    monkeypatch.setattr("sadi_lmeval.passes.engine.longest_branching_path", lambda model: 1 << 62)
    engine = Engine(model, pad=0, rows=None, max_length=512)
    found: dict[int, float] = {}
    engine.score(asked, None, lambda scored: found.update({i: score for i, (score, _) in scored}))
    plain = log_likelihoods(Forward(model), asked, None, 0, False, BOUNDS)
    assert [found[i] for i in range(len(asked))] == pytest.approx([v for v, _ in plain], abs=1e-4)
    assert caplog.text.count("The longest row of prompts that share tokens") == 1


def test_what_a_trial_misses_is_seen_on_the_longest_pair(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pairs are read before anything is scored."""
    model = tiny("doge", vocab_size=60, keep_window_size=48, max_position_embeddings=512)
    long = [[*each.context, *each.tokens] for each in requests(150, 1)]
    pairs = [TokenPair([5, 9, 7, 4], [5, 9, 8]), TokenPair(*long[:2])]
    found = []
    for longest in (1 << 62, 0):
        monkeypatch.setattr(
            "sadi_lmeval.passes.engine.longest_branching_path",
            lambda model, longest=longest: longest,
        )
        engine, site = Engine(model, pad=0, rows=None, max_length=512), find_site(model, "hidden")
        collector = MeanDifference(site, len(pairs))
        engine.read([(site, collector)], pairs, "pairs")
        found.append(collector.tensors("")["difference"])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert caplog.text.count("The longest row of prompts that share tokens") == 1


def test_the_longest_row_of_a_sound_model_is_passed(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama", vocab_size=60, max_position_embeddings=512)
    engine = Engine(model, pad=0, rows=None, max_length=512)
    engine.score(requests(150), None, lambda scored: None)
    assert engine.longest_branching_path > 0
    assert not caplog.text


def test_a_difference_is_judged_by_what_was_measured_within_bounds() -> None:
    expected = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) * 3
    cases = [
        (torch.float16, 0.055, 0.02, True),  # a real model's: its two plain ways differ as much
        (torch.float16, 0.055, 0.0, False),
        (torch.float32, 0.055, 0.02, False),  # no float32 kernel rounds that much
        (torch.float32, 1e-5, 0.0, True),
        (torch.bfloat16, 5.0, 3.0, False),
    ]
    for dtype, gap, rounding, passes in cases:
        found = expected.clone()
        found[1, 7] += gap
        assert (difference_of(found, expected, rounding, dtype) == "") == passes
