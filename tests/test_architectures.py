"""Every way of computing gives the scores of the plain one, whatever the architecture.

That the plain one is right is ``test_every_architecture.py``'s.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.grids import score
from helpers.models import MIXTURES, tiny
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.architecture.sites import decoder_blocks, find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import can_resume, longest_branching_path
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.prefill import Prompts, can_share_beginning, with_shared_beginning
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.types import Element, HiddenSite

ANY = 1 << 62
BOUNDS = Bounds(None, 120, 1000)
BEGINNING = tuple((7 * i + 3) % 60 for i in range(20))
CONTINUATIONS = ((3,), (3, 14, 2), (3, 14, 9), (8, 9))
LONG = [
    Continuation((*BEGINNING, *end), tokens)
    for end in ((5,), (5, 9), (11, 12, 13), (44, 5, 6, 7), ())
    for tokens in CONTINUATIONS
]
SHORT = [
    Continuation(context, tokens)
    for context in ((11,), (5, 9, 7), (5, 9, 7, 4), (6, 8, 10, 12, 14, 16, 18, 20))
    for tokens in CONTINUATIONS
]
LONGEST = len(BEGINNING) + 4 + 3


class Case(NamedTuple):
    """An architecture, how long a path of its packed rows may be, and why if not any."""

    kind: str
    changes: dict[str, Any]
    longest_path: int = ANY
    reason: str = ""


MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
CASES = {
    "llama": Case("llama", {}),
    "mistral, window of 6": Case("mistral", {"sliding_window": 6}, 0, "logits differ"),
    "mistral, window of 12": Case("mistral", {"sliding_window": 12}, 12),
    "mistral, window of 40": Case("mistral", {"sliding_window": 40}, 40),
    "qwen2": Case("qwen2", {}),
    "qwen3": Case("qwen3", {"head_dim": 12}),
    "gemma2": Case("gemma2", {"attn_implementation": "eager", "sliding_window": 40}, 40),
    "gemma2, window of 12": Case(
        "gemma2", {"attn_implementation": "eager", "sliding_window": 12}, 12
    ),
    "gemma3_text": Case("gemma3_text", {"sliding_window": 40, "layer_types": MIXED_LAYERS}, 40),
    "gemma3_text, window of 12": Case(
        "gemma3_text", {"sliding_window": 12, "layer_types": MIXED_LAYERS}, 12
    ),
    "phi": Case("phi", {}),
    "phi3": Case("phi3", {}),
    "gpt2": Case("gpt2", {}),
    "gptj": Case("gptj", {}),
    "gpt_neox": Case("gpt_neox", {}),
    "opt": Case("opt", {}),
    "bloom": Case("bloom", {}, 0, "does not take an attention mask of its own"),
    "falcon, new": Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, multi-query": Case("falcon", {"multi_query": True}),
    "falcon, serial": Case("falcon", {"multi_query": False, "parallel_attn": False}),
    "falcon, alibi": Case("falcon", {"alibi": True}, 0, "ALiBi"),
    "mpt": Case("mpt", {}, 0, "ALiBi"),
    "stablelm": Case("stablelm", {}),
    "olmo2": Case("olmo2", {}),
    "cohere": Case("cohere", {}),
    "granite": Case("granite", {}),
    "smollm3": Case("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "mixtral": Case("mixtral", {}),
    "qwen3_moe": Case("qwen3_moe", {}),
}
VARIANTS: list[tuple[Element, HiddenSite, bool]] = [
    ("head", "mlp", False),
    ("head", "mlp", True),
    ("neuron", "mlp", False),
    ("hidden", "mlp", False),
    ("hidden", "residual", False),
    ("hidden", "residual", True),
]
each_case = pytest.mark.parametrize("name", CASES)


@cache
def made(name: str) -> tuple[PreTrainedModel, int, bool]:
    """The model, the longest path of its packed rows, and whether passes may be resumed."""
    case = CASES[name]
    model = tiny(case.kind, vocab_size=60, num_hidden_layers=3, **case.changes)
    return model, longest_branching_path(model), can_resume(model)


def branching(name: str, requests: list[Continuation]) -> bool:
    """As it is chosen where requests are scored."""
    return max(len(r.context) + len(r.tokens) for r in requests) <= made(name)[1]


def edits_of(model: PreTrainedModel, variant: tuple[Element, HiddenSite, bool]) -> Edits:
    """Of the first and the last layer, of the second, of the last, and of none."""
    element, hidden_site, clean = variant
    site = find_site(model, element, hidden_site)
    generator = torch.Generator().manual_seed(1)
    made = []
    for layers in ((0, 2), (1,), (2,), ()):
        gain = torch.zeros(site.layers, site.width)
        for layer in layers:
            gain[layer, torch.randperm(site.width, generator=generator)[:8]] = 2.0
        made.append(Edit(gain))
    return DiagonalEdits(site, made, clean)


def alone(
    model: PreTrainedModel, requests: list[Continuation], edits: Edits | None, branches: bool
) -> Tensor:
    """Every request under every setting, ``[settings, requests]``."""
    count = edits.count if edits is not None else 0
    found = [
        log_likelihoods(
            Forward(model),
            [r._replace(edit=edit) for r in requests],
            edits if edit >= 0 else None,
            0,
            branches,
            BOUNDS,
        )
        for edit in range(-1, count)
    ]
    return torch.tensor([[value for value, _ in scores] for scores in found])


def by_the_model(model: PreTrainedModel, requests: list[Continuation]) -> Tensor:
    """Unsteered scores by plain calls of the model, one text at a time, ``[requests]``."""
    found = []
    for context, tokens, _ in requests:
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *tokens]])).logits[0].log_softmax(-1)
        found.append(sum(logits[len(context) - 1 + i, t] for i, t in enumerate(tokens)))
    return torch.stack([torch.as_tensor(value) for value in found])


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@each_case
def test_what_can_be_shared_and_skipped_is_known_and_why_not_is_said(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, case = made(name)[0], CASES[name]
    with caplog.at_level(logging.INFO, logger="lm_eval.sadi"):
        assert longest_branching_path(model) == case.longest_path
        assert can_resume(model)
    if case.reason:
        assert len(caplog.messages) == 1
        assert case.reason in caplog.messages[0]
    else:
        assert not caplog.messages


@each_case
def test_every_site_is_found_in_every_layer(name: str) -> None:
    model = made(name)[0]
    assert len(decoder_blocks(model)) == 3
    for element, hidden_site, _ in VARIANTS:
        if element == "neuron" and CASES[name].kind in MIXTURES:
            with pytest.raises(UserError, match="several experts"):
                find_site(model, element)
        else:
            assert find_site(model, element, hidden_site).layers == 3


@each_case
@pytest.mark.parametrize("requests", [LONG, SHORT], ids=["long", "short"])
def test_unsteered_scores_are_those_of_plain_calls_of_the_model(
    name: str, requests: list[Continuation]
) -> None:
    """Also where paths are longer than a sliding window, and where an edit has a delta of 0."""
    model = made(name)[0]
    expected = by_the_model(model, requests)
    site = find_site(model, "head")
    nothing = DiagonalEdits(site, [Edit(torch.zeros(site.layers, site.width))], clean=True)
    for branches in {False, branching(name, requests)}:
        for scores in alone(model, requests, nothing, branches):
            assert_same(scores, expected)


@each_case
@pytest.mark.parametrize("requests", [LONG, SHORT], ids=["long", "short"])
def test_every_way_of_computing_gives_the_steered_scores_of_the_plain_one(
    name: str, requests: list[Continuation]
) -> None:
    model, _, resuming = made(name)
    branches = branching(name, requests)
    for variant in VARIANTS:
        if variant[0] == "neuron" and CASES[name].kind in MIXTURES:
            continue
        edits = edits_of(model, variant)
        expected = alone(model, requests, edits, False)
        changed = (expected[1:4] - expected[0]).abs().amax(dim=1)
        assert (changed > 1e-3).all(), variant
        if branches:
            assert_same(alone(model, requests, edits, True), expected)
        found, _ = score(model, requests, [edits], BOUNDS, branches, resuming)
        assert_same(found, expected)


@each_case
def test_generation_shares_a_beginning_unless_the_trial_shows_that_it_may_not(name: str) -> None:
    assert can_share_beginning(made(name)[0]) == (name not in ("mpt", "mistral, window of 6"))


@each_case
def test_generation_after_a_shared_beginning_is_that_of_the_prompts_as_they_came(
    name: str,
) -> None:
    model, longest_path, _ = made(name)
    ends = ([5], [9, 7, 4, 8, 30, 31, 32, 33, 34], [11, 12], [44, 5, 6])
    for beginning in (list(BEGINNING[:3]), list(BEGINNING[:12])):
        texts = [beginning + end for end in ends]
        width = max(map(len, texts))
        if width + 2 > longest_path or not can_share_beginning(model):
            continue
        plain = Prompts(
            torch.tensor([[0] * (width - len(text)) + text for text in texts]),
            torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts]),
        )
        shared = with_shared_beginning(Forward(model), plain, beginning)
        assert shared.cache is not None
        found, expected = (
            model.generate(
                input_ids=prompts.input_ids,
                attention_mask=prompts.attention_mask,
                **{cache_parameter(model): prompts.cache},
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ).logits
            for prompts in (shared, plain)
        )
        assert_same(torch.stack(found), torch.stack(expected))


def test_long_requests_take_the_plain_way_where_a_window_is_shorter() -> None:
    for name, case in CASES.items():
        assert branching(name, LONG) == (case.longest_path >= LONGEST)
        assert branching(name, SHORT) == (case.longest_path >= 11)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
def test_a_path_may_fill_the_window_and_no_more(kind: str) -> None:
    name = f"{kind}, window of 12"
    model, window, _ = made(name)
    for length, right in ((window, True), (window + 1, False)):
        context = BEGINNING[: length - 2]
        requests = [Continuation(context, (3, 14, t)) for t in (5, 6)]
        requests += [Continuation(context, (8, 9, t)) for t in (5, 6)]
        gap = alone(model, requests, None, True)[0] - by_the_model(model, requests)
        assert bool(gap.abs().max() < 1e-4) == right


LOCAL = {
    "num_layers": 3,
    "num_heads": 4,
    "attention_types": [[["global", "local", "global"], 1]],
}
BY_LENGTH = {"rope_type": "longrope", "long_factor": [8.0] * 4, "short_factor": [1.0] * 4}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        pytest.param("gpt_neo", {**LOCAL, "window_size": 12}, id="window of places in the row"),
        pytest.param("gpt_neo", {**LOCAL, "window_size": 26}, id="window as long as the paths"),
        pytest.param(
            "phi3",
            {"original_max_position_embeddings": 22, "rope_scaling": BY_LENGTH},
            id="frequencies that follow from the length",
        ),
    ],
)
def test_what_shows_in_long_rows_alone_is_right_too(kind: str, changes: dict[str, Any]) -> None:
    """Not seen by a trial with a few tokens."""
    model = tiny(kind, vocab_size=60, num_hidden_layers=3, **changes)
    requests = [
        Continuation((*BEGINNING, n, n + 1, n + 2), tokens)
        for n in (30, 40, 45, 50, 55)
        for tokens in ((4, 5, 6), (7, 8, 9), (10, 11, 12))
    ]
    branches = longest_branching_path(model) >= 26
    assert_same(alone(model, requests, None, branches)[0], by_the_model(model, requests))


def test_one_request_longer_than_the_window_leaves_the_others_packed() -> None:
    """In scores, in a grid and where pairs are read: the tokens are those of both parts alone."""
    model = tiny("mistral", vocab_size=60, num_hidden_layers=3, sliding_window=40)
    edits = edits_of(model, ("hidden", "mlp", False))
    engine = Engine(model, pad=0, rows=None, max_length=64)
    long = Continuation(tuple(range(3, 50)), (7, 8))
    tokens: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda *given: tokens.append(given[-1]["input_ids"].numel()), with_kwargs=True
    )

    def spent(requests: list[Continuation], way: str) -> tuple[int, Tensor]:
        found = torch.full((1 + edits.count, len(requests)), torch.nan)
        tokens.clear()
        if way == "grid":

            def done(numbers: list[int], values: Tensor, greedy: Tensor) -> None:
                found[:, numbers] = values

            engine.score_grid(requests, [edits], done)
        elif way == "scores":
            several = [request._replace(edit=0) for request in requests]
            told: dict[int, Any] = {}
            engine.score(several, edits, told.update)
            found = torch.tensor([[told[i][0] for i in range(len(requests))]])
        else:
            pairs = [TokenPair([*c, *t], [*c, *t[:-1], 9]) for c, t, _ in requests]
            mean = MeanDifference(edits.site, len(pairs))
            engine.read([(edits.site, mean)], pairs, "test")
            found = mean.tensors("test")["difference"].flatten()[None] * len(pairs)
        return sum(tokens), found

    spent(LONG, "grid")  # what the engine tries out the first time is not counted
    for way in ("grid", "scores", "pairs"):
        few, of_short = spent(LONG, way)
        one, of_long = spent([long], way)
        both, of_both = spent([*LONG[:7], long, *LONG[7:]], way)
        assert both == few + one, way
        if way == "pairs":
            assert_same(of_both, of_short + of_long)
        else:
            assert_same(of_both[:, 7:8], of_long)
            alone = log_likelihoods(
                Forward(engine.model), [long._replace(edit=0)], edits, 0, False, BOUNDS
            )
            row = 1 if way == "grid" else 0
            assert float(of_long[row, 0]) == pytest.approx(alone[0][0], abs=1e-3)
            assert_same(torch.cat([of_both[:, :7], of_both[:, 8:]], dim=1), of_short)
    handle.remove()
