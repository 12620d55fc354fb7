"""Steered log-likelihoods against the oracle, and what must not matter to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from conftest import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from test_interventions import SITES, VARIANTS, VOCAB, Family, family, make_model, oracle_score
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sadi_lmeval.forward import Forward
from sadi_lmeval.interventions.edit import Edit, Edits
from sadi_lmeval.options import Element, HiddenSite, Steering
from sadi_lmeval.scoring import Continuation, Score, log_likelihoods, truncated
from sadi_lmeval.sites import Site

A, B, C = (5, 9, 7, 4, 8, 33, 21), (11,), (5, 9, 7)
REQUESTS = [
    Continuation(A, (3,), 0),
    Continuation(A, (6,), 0),  # the same row: differs in its last token alone
    Continuation(A, (3, 14, 15, 9), 0),
    Continuation(A, (3, 14, 2), 2),  # the same prompt under another edit
    Continuation(A, (3, 14), 1),
    Continuation(B, (3, 14), 0),  # a prompt of one token
    Continuation(B, (44,), 2),
    Continuation(C, (4, 8, 33, 21, 3), 0),  # with C the same text as A and (3,)
    Continuation(C, (50, 51), 2),
    Continuation(C, (50, 51), 2),  # twice the same request
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def score(
    model: LlamaForCausalLM,
    requests: list[Continuation],
    edits: Edits | None,
    branching: bool = True,
    most_rows: int | None = None,
    **options: Any,
) -> list[Score]:
    forward = Forward(model)
    return log_likelihoods(forward, requests, edits, 2, branching, most_rows, 40, **options)


def assert_close(ours: list[Score], theirs: list[Score], tolerance: float) -> None:
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in theirs], abs=tolerance)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def oracle_scores(model: LlamaForCausalLM, edits: Family) -> list[Score]:
    known: dict[tuple[tuple[int, ...], tuple[int, ...], int], Score] = {}
    for context, continuation, edit in REQUESTS:
        if (context, continuation, edit) not in known:
            logits = edits.oracle(model, [*context, *continuation], len(context) - 1, edit)
            known[context, continuation, edit] = oracle_score(
                logits, len(context), list(continuation)
            )
    return [known[request] for request in REQUESTS]


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
        for most_rows in (1, 3, None):
            ours = score(model, REQUESTS, edits.edits, branching, most_rows)
            assert_close(ours, expected, 1e-4)


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
    edits = family(model, "neuron", "mlp", clean)
    nothing = Edits(edits.site, [Edit(edits.edits.gain[1])] * 3, clean)
    assert score(model, REQUESTS, nothing, branching) == score(model, REQUESTS, None, branching)


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_a_batch_of_different_lengths_and_edits_equals_requests_one_by_one(
    model: LlamaForCausalLM, branching: bool, clean: bool
) -> None:
    edits = family(model, "head", "mlp", clean).edits
    together = score(model, REQUESTS, edits, branching, most_rows=100)
    alone = [score(model, [request], edits, branching)[0] for request in REQUESTS]
    assert_close(together, alone, 1e-5)


def test_scores_come_in_the_order_of_the_requests(model: LlamaForCausalLM) -> None:
    edits = family(model, "head", "mlp", False).edits
    backwards = score(model, REQUESTS[::-1], edits)[::-1]
    assert_close(backwards, score(model, REQUESTS, edits), 1e-5)


def test_the_callback_gets_every_score_once(model: LlamaForCausalLM) -> None:
    told: list[tuple[int, Score]] = []
    scores = score(model, REQUESTS, None, most_rows=2, done=told.extend)
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


# ------------------------------------------------------------------ what is not to be touched


class Captured:
    """One forward pass: its input ids, and the activations of each layer of a site."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.layers: list[Tensor] = []


@contextmanager
def watching(model: nn.Module, site: Site) -> Iterator[list[Captured]]:
    """Record what a site's modules are given or give, after all other hooks have run.

    Hooks run in the order in which they were set, so ours are set when the pass begins.
    """
    passes: list[Captured] = []
    with ExitStack() as stack:

        def begin(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            captured = Captured(keywords["input_ids"])
            passes.append(captured)

            def after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
                if passes[-1] is captured:
                    captured.layers.append(output.clone())

            def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
                if passes[-1] is captured:
                    captured.layers.append(arguments[0].clone())

            for part in site.modules:
                if site.side == "input":
                    stack.callback(part.register_forward_pre_hook(before).remove)
                else:
                    stack.callback(part.register_forward_hook(after).remove)

        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        yield passes


# ------------------------------------------------------------------ truncation


@given(st.integers(1, 40), st.integers(1, 12), st.integers(12, 30))
@settings(derandomize=True, database=None, deadline=None, max_examples=200)
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
