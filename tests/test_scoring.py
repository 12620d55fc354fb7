"""Steered log-likelihoods against the oracle, and what must not matter to them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from helpers.hooks import watching
from helpers.layouts import (
    BEGINNING,
    FEW_LOGITS,
    FEW_TOKENS,
    LAYOUTS,
    ONE_BATCH,
    REQUESTS,
    ROWS_ALONE,
    SAME_BEGINNING,
    A,
)
from helpers.models import tiny_llama
from helpers.oracle import SITES, VARIANTS, VOCAB, Family, family, make_model, oracle_score
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.sadi import Steering
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import Continuation, pack_requests
from sadi_lmeval.passes.prefixes import Group
from sadi_lmeval.passes.scoring import Score, groups_of, log_likelihoods, truncated
from sadi_lmeval.types import Element, HiddenSite


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def score(
    model: LlamaForCausalLM,
    requests: list[Continuation],
    edits: Edits | None,
    branching: bool = True,
    bounds: Bounds = FEW_TOKENS,
    **options: Any,
) -> list[Score]:
    return log_likelihoods(Forward(model), requests, edits, 2, branching, bounds, **options)


def assert_close(ours: list[Score], theirs: list[Score], tolerance: float) -> None:
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in theirs], abs=tolerance)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def oracle_scores(
    model: LlamaForCausalLM, edits: Family, requests: list[Continuation] = REQUESTS
) -> list[Score]:
    known: dict[tuple[tuple[int, ...], tuple[int, ...], int], Score] = {}
    for context, continuation, edit in requests:
        if (context, continuation, edit) not in known:
            logits = edits.oracle(model, [*context, *continuation], len(context) - 1, edit)
            known[context, continuation, edit] = oracle_score(
                logits, len(context), list(continuation)
            )
    return [known[request] for request in requests]


@pytest.mark.parametrize(("element", "hidden_site", "clean", "steering"), VARIANTS)
def test_scores_equal_the_equations_written_out_in_every_layout(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering,
) -> None:
    edits = family(model, element, hidden_site, clean, steering)
    expected = oracle_scores(model, edits)
    for branching in (True, False):
        for bounds in LAYOUTS:
            ours = score(model, REQUESTS, edits.edits, branching, bounds)
            assert_close(ours, expected, 1e-4)


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
@pytest.mark.parametrize("clean", [False, True])
def test_scores_equal_the_equations_where_prompts_begin_alike(
    model: LlamaForCausalLM, element: Element, hidden_site: HiddenSite, clean: bool
) -> None:
    edits = family(model, element, hidden_site, clean)
    expected = oracle_scores(model, edits, SAME_BEGINNING)
    for bounds in LAYOUTS:
        with watching(model, edits.site) as passes:
            ours = score(model, SAME_BEGINNING, edits.edits, True, bounds)
        assert_close(ours, expected, 1e-4)
        first = passes[0].ids.flatten().tolist()
        assert 16 <= len(first) < 20  # what they begin with, computed once and alone
        assert tuple(first) == BEGINNING[: len(first)]
    assert_close(score(model, SAME_BEGINNING, edits.edits, False), expected, 1e-4)


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
@pytest.mark.parametrize("clean", [False, True])
def test_delta_visibly_changes_scores(
    model: LlamaForCausalLM, element: Element, hidden_site: HiddenSite, clean: bool
) -> None:
    edits = family(model, element, hidden_site, clean).edits
    plain = score(model, REQUESTS, None)
    for request, (ours, _), (unsteered, _) in zip(
        REQUESTS, score(model, REQUESTS, edits), plain, strict=True
    ):
        if request.edit == 1:  # delta 0
            assert ours == pytest.approx(unsteered, abs=1e-5)
        else:
            assert abs(ours - unsteered) > 1e-3


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_a_delta_of_zero_scores_exactly_as_the_unsteered_model(
    model: LlamaForCausalLM, branching: bool, clean: bool
) -> None:
    site = find_site(model, "neuron")
    nothing = DiagonalEdits(site, [Edit(torch.zeros(site.layers, site.width))] * 3, clean)
    assert score(model, REQUESTS, nothing, branching) == score(model, REQUESTS, None, branching)


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_a_batch_of_different_lengths_and_edits_equals_requests_one_by_one(
    model: LlamaForCausalLM, branching: bool, clean: bool
) -> None:
    edits = family(model, "head", "mlp", clean).edits
    together = score(model, REQUESTS, edits, branching, ONE_BATCH)
    alone = [score(model, [request], edits, branching)[0] for request in REQUESTS]
    assert_close(together, alone, 1e-5)


def test_scores_come_in_the_order_of_the_requests(model: LlamaForCausalLM) -> None:
    edits = family(model, "head", "mlp", False).edits
    backwards = score(model, REQUESTS[::-1], edits)[::-1]
    assert_close(backwards, score(model, REQUESTS, edits), 1e-5)


def test_the_callback_gets_every_score_once(model: LlamaForCausalLM) -> None:
    told: list[tuple[int, Score]] = []
    scores = score(model, REQUESTS, None, bounds=FEW_LOGITS, done=told.extend)
    assert sorted(told) == list(enumerate(scores))


@pytest.mark.parametrize("branching", [False, True])
def test_the_same_text_scores_differently_where_the_prompt_ends_elsewhere(
    model: LlamaForCausalLM, branching: bool
) -> None:
    """``a b`` + ``c`` against ``a`` + ``b c``: the next token after ``a b c`` differs too."""
    early = [Continuation((5, 9), (7, 4), 0), Continuation((5, 9, 7), (4,), 0)]
    plain = score(model, early, None, branching)
    first = score(model, [Continuation((5, 9), (7,), 0)], None, branching)[0][0]
    assert plain[0][0] == pytest.approx(first + plain[1][0], abs=1e-5)
    edits = family(model, "head", "mlp", False).edits
    steered = score(model, early, edits, branching)
    first = score(model, [Continuation((5, 9), (7,), 0)], edits, branching)[0][0]
    assert abs(steered[0][0] - (first + steered[1][0])) > 1e-2


@pytest.mark.parametrize("clean", [False, True])
def test_is_greedy_says_whether_decoding_would_produce_the_continuation(
    model: LlamaForCausalLM, clean: bool
) -> None:
    edits = family(model, "hidden", "mlp", clean)
    prompt = list(A)
    produced: list[int] = []
    for _ in range(3):
        logits = edits.oracle(model, prompt + produced, len(prompt) - 1, 0)
        produced.append(int(logits[-1].argmax()))
    wrong_last = [*produced[:2], (produced[2] + 1) % VOCAB]
    wrong_first = [(produced[0] + 1) % VOCAB, *produced[1:]]
    for branching in (False, True):
        found = score(
            model,
            [Continuation(A, tuple(t), 0) for t in (produced, wrong_last, wrong_first)],
            edits.edits,
            branching,
        )
        assert [greedy for _, greedy in found] == [True, False, False]


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_softmax_has_the_type_that_was_asked_for(
    model: LlamaForCausalLM, dtype: torch.dtype | None
) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([A])).logits[0, -1]
    found = score(model, [Continuation(A, (3,), 0)], None, softmax_dtype=dtype)[0][0]
    assert found == pytest.approx(float(logits.log_softmax(-1)[3]), rel=1e-5)
    is_a_float32 = float(torch.tensor(found)) == found
    assert is_a_float32 == (dtype is None)


# ------------------------------------------------------------------ what is not to be touched


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("requests", [REQUESTS, SAME_BEGINNING], ids=["mixed", "alike"])
def test_only_masked_entries_of_last_prompt_tokens_are_touched(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    branching: bool,
    requests: list[Continuation],
) -> None:
    """In the first layer, whose input no edit has changed: bit for bit."""
    site = find_site(model, element, hidden_site)
    gains = torch.zeros(2, site.layers, site.width)
    gains[0, 0, [1, 5]] = 3.0
    gains[1, 0, [2]] = -2.0
    edits = DiagonalEdits(site, [Edit(gains[0]), Edit(gains[1])], clean)
    requests = [Continuation(c, t, e % 2) for c, t, e in requests]
    with watching(model, site) as passes:
        score(model, requests, None, branching, ONE_BATCH)
        plain = passes[-1]
        score(model, requests, edits, branching, ONE_BATCH)
        steered = passes[-1]
    assert torch.equal(plain.ids, steered.ids)
    before, after = plain.layers[0], steered.layers[0]
    touched: dict[tuple[int, int], set[int]] = {}
    for row, position, entry in (before != after).nonzero().tolist():
        touched.setdefault((row, position), set()).add(entry)
        factor = -1.0 if entry == 2 else 4.0
        value = factor * float(before[row, position, entry])
        assert float(after[row, position, entry]) == pytest.approx(value, rel=1e-5)
    found = sorted(
        (int(steered.ids[row, position]), sorted(entries))
        for (row, position), entries in touched.items()
    )
    rows = {(c, e) if branching else (c, e, t[:-1]) for c, t, e in requests}
    assert found == sorted((row[0][-1], [2] if row[1] else [1, 5]) for row in rows)
    if not branching:
        for row, position in touched:
            ids = steered.ids[row].tolist()
            assert tuple(ids[: position + 1]) in {r.context for r in requests}


def computed(model: LlamaForCausalLM, requests: list[Continuation]) -> tuple[int, int]:
    """Tokens that went into the model, and positions that got logits."""
    edits = family(model, "head", "mlp", False).edits
    shapes: list[tuple[int, ...]] = []
    handle = model.lm_head.register_forward_hook(lambda m, a, out: shapes.append(out.shape))
    with watching(model, edits.site) as passes:
        score(model, requests, edits, bounds=ROWS_ALONE)
    handle.remove()
    return sum(p.ids.numel() for p in passes), sum(shape[-2] for shape in shapes)


def test_a_prompt_is_computed_once_and_no_logits_but_those_that_are_read(
    model: LlamaForCausalLM,
) -> None:
    requests = [Continuation(A, (t, 3), 0) for t in range(10, 20)]
    assert computed(model, requests) == (len(A) + 10, 1 + 10)


def test_what_continuations_begin_with_is_computed_once(model: LlamaForCausalLM) -> None:
    tokens = [(3, 14, t) for t in range(10, 20)] + [(3, 14, 15, 9), (3, 7), (3,), (3, 14, 15)]
    requests = [Continuation(A, t, 0) for t in tokens]
    assert computed(model, requests) == (len(A) + 3, 1 + 3)  # 3, 14 and 15


def test_another_edit_of_a_prompt_computes_its_last_token_and_continuation_alone(
    model: LlamaForCausalLM,
) -> None:
    requests = [Continuation(A, (3, 14), edit) for edit in (0, 1, 2)]
    assert computed(model, requests) == (len(A) - 1 + 3 * 2, 3 * 2)


def test_a_prompt_that_begins_another_is_computed_with_it(model: LlamaForCausalLM) -> None:
    requests = [Continuation(A[:4], (4, 8), 0), Continuation(A, (3,), 0)]
    assert computed(model, requests) == (len(A) + 2, 2 + 1)  # the last of A[:4] twice, and 4


# ------------------------------------------------------------------ truncation


@given(st.integers(1, 40), st.integers(1, 12), st.integers(12, 30))
@settings(max_examples=200)
def test_truncation_gives_the_model_what_the_harness_gives_it(
    before: int, after: int, max_length: int
) -> None:
    context, continuation = list(range(before)), list(range(100, 100 + after))
    kept, tokens = truncated(context, continuation, max_length)
    harness = (context + continuation)[-(max_length + 1) :][:-1]
    assert [*kept, *tokens[:-1]] == harness
    assert list(tokens) == continuation
    assert kept[-1] == context[-1]
    assert harness[len(harness) - after] == kept[-1]  # inplen - contlen: the last prompt token


def test_a_truncated_prompt_is_edited_at_its_last_token() -> None:
    model = tiny_llama(VOCAB, head_dim=12, max_position_embeddings=16)
    edits = family(model, "head", "mlp", False)
    context, continuation = [(7 * i) % VOCAB for i in range(30)], [3, 14, 15]
    request = Continuation(*truncated(context, continuation, 16), 0)
    kept = context[-14:]
    assert list(request.context) == kept
    expected = oracle_score(
        edits.oracle(model, kept + continuation, len(kept) - 1, 0), len(kept), continuation
    )
    for branching in (False, True):
        assert_close(score(model, [request], edits.edits, branching), [expected], 1e-4)


@pytest.mark.parametrize("branching", [True, False])
def test_no_requests_are_no_group(branching: bool) -> None:
    """Where all that is asked was answered already, as under methods that steer nothing."""
    assert groups_of([], branching) == []


def test_what_is_not_finite_does_not_spread_to_other_prompts_of_its_row(
    model: LlamaForCausalLM,
) -> None:
    site = find_site(model, "hidden")
    gains = torch.zeros(2, site.layers, site.width)
    gains[0, 1, ::2], gains[1, 1, ::2] = 2.0, 1e38
    edits = DiagonalEdits(site, [Edit(gain) for gain in gains])
    alike = [(3, 14, 15, 9, 2, last) for last in (6, 7, 8)]
    asked = [Continuation(c, t, e) for c, e in zip(alike, (0, 1, 0), strict=True)
             for t in ((5, 8), (4,))]  # fmt: skip
    assert len(list(pack_requests(asked, Group(0, list(range(6))), branching=True))) == 1
    found = score(model, asked, edits)
    sound = [i for i, request in enumerate(asked) if request.edit == 0]
    expected = [score(model, [asked[i]], edits, bounds=ROWS_ALONE)[0] for i in sound]
    assert_close([found[i] for i in sound], expected, 1e-4)
    assert all(not math.isfinite(found[i][0]) for i in range(6) if i not in sound)
