"""Edits of the last prompt token and of every later one, against plain loops over plain passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from helpers.generation import PROMPTS, padded
from helpers.layouts import (
    FEW_LOGITS,
    FEW_TOKENS,
    LAYOUTS,
    ONE_BATCH,
    REQUESTS,
    ROWS_ALONE,
    SAME_BEGINNING,
    A,
)
from helpers.loops import (
    Change,
    Where,
    assert_generated_as_the_loop_says,
    assert_scored_as_the_loop_says,
    changing,
    plain_logits,
    plain_score,
    span_of,
    tried,
)
from helpers.models import tiny, tiny_llama
from helpers.results import numbers, scores
from sadi_lmeval import generating
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import can_resume, longest_branching_path
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.grid import grid_log_likelihoods
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.passes.prefill import Prompts, steered_generation, with_shared_beginning
from sadi_lmeval.passes.scoring import Score, log_likelihoods
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.types import Scope

WHERE: list[Where] = ["head", "residual"]
VOCAB = 60
LAYERS: list[tuple[int, ...]] = [(0,), (1,), (2,), (0, 2), ()]
"""The layers of each edit."""
NOTHING = 4

# ------------------------------------------------------------------ edits to try


class Family(NamedTuple):
    """Edits as the engine takes them, and as the loops do."""

    where: Where
    edits: Edits
    changes: list[Change]

    def score(self, model: PreTrainedModel, request: Continuation, edit: int) -> Score:
        change = None if edit == UNSTEERED else self.changes[edit]
        context, tokens = list(request.context), list(request.tokens)
        return plain_score(model, context, tokens, self.where, change, self.edits.scope)


def family(
    model: PreTrainedModel,
    where: Where,
    scope: Scope = "onwards",
    layers: list[tuple[int, ...]] = LAYERS,
) -> Family:
    """Every second edit scales too, as a shift alone would not show what is written where."""
    site = find_site(model, "head" if where == "head" else "hidden", "residual")
    generator = torch.Generator().manual_seed(len(layers) + (scope == "prompt"))
    made = []
    for number, touched in enumerate(layers):
        gain, shift = torch.zeros(2, site.layers, site.width)
        for layer in touched:
            entries = torch.randperm(site.width, generator=generator)[:12]
            shift[layer, entries] = torch.randn(12, generator=generator)
            gain[layer, entries[:6]] = 1.5 * (number % 2)
        made.append(Edit(gain, shift))

    def changed(edit: Edit) -> Change:
        shift = edit.shift
        assert shift is not None
        return lambda layer, values: values * (1 + edit.gain[layer]) + shift[layer]

    return Family(where, DiagonalEdits(site, made, False, scope), [changed(edit) for edit in made])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Head_dim is not hidden_size / heads, and two query heads share each key/value head."""
    return tiny_llama(VOCAB, head_dim=12)


def assert_same(found: list[Score], expected: list[Score]) -> None:
    assert [s for s, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-4, rel=1e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def score(
    model: PreTrainedModel,
    requests: list[Continuation],
    edits: Edits | None,
    branching: bool = True,
    bounds: Bounds = FEW_TOKENS,
) -> list[Score]:
    return log_likelihoods(Forward(model), requests, edits, 2, branching, bounds)


def grid_scores(
    model: PreTrainedModel,
    requests: list[Continuation],
    families: list[Edits],
    bounds: Bounds = FEW_TOKENS,
    branching: bool = True,
    resuming: bool = True,
) -> list[list[Score]]:
    """Of each setting, the unsteered model first, of each request."""
    count = 1 + sum(edits.count for edits in families)
    found: list[list[Score]] = [[(0.0, False)] * len(requests) for _ in range(count)]
    told: list[int] = []

    def done(which: list[int], values: Tensor, greedy: Tensor) -> None:
        told.extend(which)
        for setting in range(count):
            for column, index in enumerate(which):
                found[setting][index] = (
                    float(values[setting, column]),
                    bool(greedy[setting, column]),
                )

    grid_log_likelihoods(
        Forward(model), requests, families, 2, branching, resuming, bounds, None, done
    )
    assert Counter(told) == Counter(range(len(requests)))
    return found


def by_the_loop(
    model: PreTrainedModel, requests: list[Continuation], families: list[Family]
) -> list[list[Score]]:
    """As :func:`grid_scores`, a pass for every request under every setting."""
    known: dict[Any, Score] = {}

    def once(number: int, edit: int, request: Continuation) -> Score:
        key = number, edit, request.context, request.tokens
        if key not in known:
            known[key] = families[number].score(model, request, edit)
        return known[key]

    every = [(0, UNSTEERED)]
    every += [(n, edit) for n, each in enumerate(families) for edit in range(each.edits.count)]
    return [[once(n, edit, request) for request in requests] for n, edit in every]


def assert_same_grid(found: list[list[Score]], expected: list[list[Score]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)


MIXED = [r._replace(edit=i % 6 - 1) for i, r in enumerate([*REQUESTS, *SAME_BEGINNING])]
FEWER = MIXED[:10] + MIXED[10::4]

# ------------------------------------------------------------------ log-likelihoods


@pytest.mark.parametrize("where", WHERE)
def test_scores_equal_a_plain_pass_for_each_request_in_every_layout(
    model: LlamaForCausalLM, where: Where
) -> None:
    edits = family(model, where)
    expected = [edits.score(model, request, request.edit) for request in MIXED]
    for branching in (True, False):
        for bounds in LAYOUTS:
            assert_same(score(model, MIXED, edits.edits, branching, bounds), expected)


def test_later_tokens_count_as_soon_as_there_are_any(model: LlamaForCausalLM) -> None:
    """A continuation of one token is predicted by the last prompt token, of which both know."""
    for where in WHERE:
        onwards, prompt = family(model, where), family(model, where, "prompt")
        prompt = prompt._replace(
            edits=DiagonalEdits(
                prompt.edits.site, [Edit(torch.full((3, prompt.edits.site.width), 0.5))], False
            )
        )
        same = DiagonalEdits(
            onwards.edits.site,
            [Edit(torch.full((3, onwards.edits.site.width), 0.5))],
            False,
            "onwards",
        )
        for tokens, differs in (((3,), False), ((3, 14), True)):
            request = [Continuation(A, tokens, 0)]
            gap = score(model, request, same)[0][0] - score(model, request, prompt.edits)[0][0]
            assert (abs(gap) > 1e-3) is differs


tokens = st.lists(st.integers(4, 6), min_size=1, max_size=4).map(tuple)
requests_under_edits = st.lists(
    st.builds(Continuation, tokens, tokens, st.integers(-1, 4)), min_size=1, max_size=10
)


@given(requests_under_edits, st.booleans(), st.sampled_from(WHERE))
@settings(max_examples=40)
def test_scores_of_any_prompts_equal_a_plain_pass_for_each_request(
    model: LlamaForCausalLM, requests: list[Continuation], branching: bool, where: Where
) -> None:
    """Of three words: prompts begin with one another, and end with others' continuations."""
    edits = family(model, where)
    expected = [edits.score(model, request, request.edit) for request in requests]
    for bounds in (ROWS_ALONE, ONE_BATCH):
        assert_same(score(model, requests, edits.edits, branching, bounds), expected)


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_an_edit_of_nothing_gives_exactly_the_unsteered_scores(
    model: LlamaForCausalLM, where: Where, branching: bool
) -> None:
    site = family(model, where).edits.site
    zero = Edit(torch.zeros(site.layers, site.width), torch.zeros(site.layers, site.width))
    nothing = DiagonalEdits(site, [zero] * 5, False, "onwards")
    plain = score(model, MIXED, None, branching)
    assert score(model, MIXED, nothing, branching) == plain


# ------------------------------------------------------------------ the grid


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("resuming", [False, True])
def test_the_grid_equals_every_setting_alone_in_every_layout(
    model: LlamaForCausalLM, where: Where, resuming: bool
) -> None:
    edits = family(model, where)
    expected = by_the_loop(model, FEWER, [edits])
    gaps = [max(abs(a[0] - b[0]) for a, b in zip(row, expected[0], strict=True))
            for row in expected[1:]]  # fmt: skip
    assert [gap > 1e-2 for gap in gaps] == [True] * NOTHING + [False]
    for bounds in LAYOUTS:
        assert_same_grid(grid_scores(model, FEWER, [edits.edits], bounds, True, resuming), expected)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("where", WHERE)
def test_the_grid_of_edits_of_one_layer_equals_every_setting_alone(
    model: LlamaForCausalLM, where: Where, layer: int
) -> None:
    """In the last layer all later tokens are computed, not only the last prompt token."""
    edits = family(model, where, layers=[(layer,)] * 3)
    expected = by_the_loop(model, FEWER, [edits])
    for bounds in (ROWS_ALONE, FEW_LOGITS, ONE_BATCH):
        assert_same_grid(grid_scores(model, FEWER, [edits.edits], bounds), expected)


@pytest.mark.parametrize("branching", [False, True])
def test_families_of_both_scopes_in_one_grid_equal_every_setting_alone(
    model: LlamaForCausalLM, branching: bool
) -> None:
    families = [family(model, w, s) for w in WHERE for s in ("prompt", "onwards")]
    expected = by_the_loop(model, FEWER, families)
    for bounds in LAYOUTS if branching else [FEW_TOKENS]:
        found = grid_scores(model, FEWER, [f.edits for f in families], bounds, branching)
        assert_same_grid(found, expected)


def test_the_order_of_families_does_not_matter(model: LlamaForCausalLM) -> None:
    prompt, onwards = family(model, "head", "prompt").edits, family(model, "head").edits
    one = grid_scores(model, FEWER, [prompt, onwards])
    other = grid_scores(model, FEWER, [onwards, prompt])
    assert_same_grid(one, [other[0], *other[6:], *other[1:6]])


@given(requests_under_edits, st.booleans())
@settings(max_examples=15)
def test_the_grid_of_any_prompts_equals_every_setting_alone(
    model: LlamaForCausalLM, requests: list[Continuation], resuming: bool
) -> None:
    families = [
        family(model, "head", "prompt", [(2,), (0, 1)]),
        family(model, "head", "onwards", [(2,), (0, 1)]),
        family(model, "residual", "onwards", [(1,), (2,)]),
    ]
    expected = by_the_loop(model, requests, families)
    for bounds in (FEW_LOGITS, ONE_BATCH):
        found = grid_scores(model, requests, [f.edits for f in families], bounds, True, resuming)
        assert_same_grid(found, expected)


@pytest.mark.parametrize("branching", [False, True])
def test_a_setting_of_the_grid_that_edits_nothing_is_exactly_the_unsteered_one(
    model: LlamaForCausalLM, branching: bool
) -> None:
    for where in WHERE:
        found = grid_scores(model, MIXED, [family(model, where).edits], branching=branching)
        assert found[1 + NOTHING] == found[0]


# ------------------------------------------------------------------ other architectures

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gemma3_text": {
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": {},  # attention and MLP side by side
    "bloom": {},  # takes no packed rows
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_scores_and_grid_equal_plain_passes_whatever_the_architecture(kind: str) -> None:
    model = tiny(kind, vocab_size=VOCAB, num_hidden_layers=3, **ARCHITECTURES[kind])
    branching = longest_branching_path(model) >= 30
    assert branching == (kind != "bloom")
    requests = FEWER[::2]
    families = [family(model, w, s) for w in WHERE for s in ("onwards", "prompt")]
    expected = by_the_loop(model, requests, families)
    for bounds in (FEW_TOKENS, ONE_BATCH):
        found = grid_scores(
            model, requests, [f.edits for f in families], bounds, branching, can_resume(model)
        )
        assert_same_grid(found, expected)
        for edits in families:
            one_by_one = [edits.score(model, request, request.edit) for request in requests]
            assert_same(score(model, requests, edits.edits, branching, bounds), one_by_one)


# ------------------------------------------------------------------ generation

BEGINNING = [(7 * i + 3) % 60 for i in range(9)]
ALIKE = [[*BEGINNING, *end] for end in ([5], [9, 7, 4, 8], [11, 12], [44, 5, 6, 2, 2])]
STEPS = 5


def generate(
    model: Any,
    edits: Edits | None,
    which: int = 0,
    prompts: list[list[int]] = PROMPTS,
    beginning: list[int] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Generated tokens ``[rows, steps]`` and the logits of each step ``[steps, rows, vocab]``."""
    ids, mask = padded(prompts)
    given = Prompts(ids, mask)
    if beginning is not None:
        given = with_shared_beginning(Forward(model), given, beginning)
        assert given.cache is not None
    with ExitStack() as stack:
        if edits is not None:
            stack.enter_context(steered_generation(model, edits, which, ids, mask))
        found = model.generate(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            **({} if given.cache is None else {cache_parameter(model): given.cache}),
            pad_token_id=2,
            return_dict_in_generate=True,
            output_logits=True,
            **{"do_sample": False, "min_new_tokens": STEPS, "max_new_tokens": STEPS, **options},
        )
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits)


def assert_generated(
    model: PreTrainedModel,
    edits: Family,
    which: int,
    found: tuple[Tensor, Tensor],
    prompts: list[list[int]] = PROMPTS,
) -> None:
    """Token by token, and logit by logit, while the end is not among the tokens: it cannot be."""
    for row, prompt in enumerate(prompts):
        change = edits.changes[which]
        text = prompt + found[0][row].tolist()
        span = span_of(len(prompt), edits.edits.scope)
        expected = plain_logits(model, text, edits.where, change, span)[len(prompt) - 1 : -1]
        torch.testing.assert_close(found[1][:, row], expected, atol=1e-4, rtol=1e-4)
        allowed = expected.clone()
        allowed[:, model.config.eos_token_id] = -torch.inf  # by ``min_new_tokens``
        assert found[0][row].tolist() == allowed.argmax(dim=-1).tolist()


@pytest.mark.parametrize("scope", ["onwards", "prompt"])
@pytest.mark.parametrize("where", WHERE)
def test_generation_equals_the_whole_text_computed_again_for_each_token(
    model: LlamaForCausalLM, where: Where, scope: Scope
) -> None:
    edits = family(model, where, scope)
    for which in (0, 2, 3):
        assert_generated(model, edits, which, generate(model, edits.edits, which))


@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}]
)
@pytest.mark.parametrize("where", WHERE)
def test_the_way_the_prompt_is_processed_does_not_matter(
    model: LlamaForCausalLM, where: Where, options: dict[str, Any]
) -> None:
    edits = family(model, where)
    for which in (0, 3):
        assert_generated(model, edits, which, generate(model, edits.edits, which, **options))


@pytest.mark.parametrize("length", [1, 4, len(BEGINNING)])
@pytest.mark.parametrize("where", WHERE)
def test_prompts_after_a_shared_beginning_generate_what_they_do_alone(
    model: LlamaForCausalLM, where: Where, length: int
) -> None:
    edits = family(model, where)
    found = generate(model, edits.edits, 3, ALIKE, BEGINNING[:length])
    assert_generated(model, edits, 3, found, ALIKE)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("use_cache", [False, True])
def test_beams_equal_those_of_a_search_that_computes_the_whole_text_for_each_token(
    model: LlamaForCausalLM, where: Where, use_cache: bool
) -> None:
    edits = family(model, where)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
    found, _ = generate(model, edits.edits, 3, use_cache=use_cache, **options)
    last = max(map(len, PROMPTS)) - 1
    with changing(model, where, edits.changes[3], slice(last, None)):
        expected, _ = generate(model, None, use_cache=False, **options)
    assert torch.equal(found, expected)
    assert not torch.equal(found, generate(model, None, **options)[0])


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_generation_is_steered_whatever_the_architecture(kind: str) -> None:
    model = tiny(kind, vocab_size=VOCAB, num_hidden_layers=3, **ARCHITECTURES[kind])
    for where in WHERE:
        edits = family(model, where)
        assert_generated(model, edits, 3, generate(model, edits.edits, 3))


@pytest.mark.parametrize("scope", ["onwards", "prompt"])
def test_generation_with_an_adapter_is_steered_too(scope: Scope) -> None:
    """A PEFT wrapper is passed by when its model generates."""
    base = tiny_llama(VOCAB)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    lora.init_lora_weights = False
    torch.manual_seed(0)
    wrapped = get_peft_model(base, lora).eval()
    for where in WHERE:
        edits = family(base, where, scope)
        found = generate(wrapped, DiagonalEdits(edits.edits.site, [], False), 0)
        edited = generate(wrapped, edits.edits, 3)
        assert (edited[1] - found[1]).abs().max() > 1e-2
        assert_generated(base, edits, 3, edited)


# ------------------------------------------------------------------ nothing is left in the model


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_same_bits_come_out_after_steering_as_before(
    model: LlamaForCausalLM, where: Where, error: type[BaseException] | None
) -> None:
    text = [5, 9, 7, 4, 8]
    before, edits = plain_logits(model, text), family(model, where).edits
    ways: list[Callable[[], object]] = [
        lambda: score(model, MIXED, edits),
        lambda: score(model, MIXED, edits, False),
        lambda: grid_scores(model, FEWER, [edits]),
        lambda: generate(model, edits, 3),
    ]
    for way in ways:
        if error is None:
            way()
        else:
            calls = 0

            def fail(m: nn.Module, given: Any, out: Any) -> None:
                nonlocal calls
                calls += 1
                if calls == 2:
                    raise KeyboardInterrupt

            handle = model.model.layers[1].mlp.register_forward_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                way()
            handle.remove()
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        assert not any(hooks)
        assert torch.equal(plain_logits(model, text), before)


# ------------------------------------------------------------------ through the harness

NAMED = {
    "hf-iti": {"top_k": 3, "alpha": 3},
    "hf-caa": {"layer": 1, "multiplier": 1},
}
OFF = {"hf-iti": {"alpha": 0}, "hf-caa": {"multiplier": 0}}
each_model = pytest.mark.parametrize("name", NAMED)


@each_model
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_word"])
def test_a_strength_of_zero_gives_the_scores_of_hf(evaluate: Any, name: str, task: str) -> None:
    plain, zero = evaluate(task, model="hf"), evaluate(task, model=name, **OFF[name])
    assert numbers(zero, task) == pytest.approx(numbers(plain, task), abs=1e-4)
    assert [s[1] for s in scores(zero, task)] == [s[1] for s in scores(plain, task)]
    strength = {"hf-iti": "alpha", "hf-caa": "multiplier"}[name]
    assert zero["config"]["sadi"][task][strength] == 0


@each_model
def test_a_strength_of_zero_generates_the_strings_of_hf(evaluate: Any, name: str) -> None:
    zero = evaluate("tiny_text", model=name, limit=30, **OFF[name])
    assert scores(zero, "tiny_text") == scores(evaluate("tiny_text", model="hf", limit=30),
                                               "tiny_text")  # fmt: skip


@each_model
def test_a_run_gives_the_same_numbers_whatever_the_layout_of_its_batches(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Several tasks at once, several masks at once, packed or not."""
    tasks = ("tiny_choice", "tiny_folds", "tiny_empty", "tiny_input")
    first = evaluate(*tasks, model=name, settings={"batch_size": 1}, **NAMED[name])
    others = [
        evaluate(*tasks, model=name, settings={"batch_size": size}, **NAMED[name])
        for size in (7, "auto")
    ]
    monkeypatch.setattr(Engine, "longest_branching_path", 0)
    others.append(evaluate(*tasks, model=name, **NAMED[name]))
    for task in tasks:
        for other in others:
            assert numbers(other, task) == pytest.approx(numbers(first, task), abs=1e-4)
            assert [s[1] for s in scores(other, task)] == [s[1] for s in scores(first, task)]


@each_model
def test_a_cached_response_is_never_another_method_s_or_setting_s(
    evaluate: Any, tmp_path: Path, name: str
) -> None:
    cached = {"use_cache": str(tmp_path / "responses")}
    sadi = {"element": "hidden", "hidden_site": "residual", "top_k": 3, "delta": 2}
    evaluate("tiny_choice", settings=cached, limit=4, **sadi)
    evaluate("tiny_choice", model=name, settings=cached, limit=4, **NAMED[name])
    arguments = {**NAMED[name], **dict.fromkeys(OFF[name], 2)}
    fresh = evaluate("tiny_choice", model=name, limit=4, **arguments)
    again = evaluate("tiny_choice", model=name, limit=4, settings=cached, **arguments)
    assert numbers(again, "tiny_choice") == numbers(fresh, "tiny_choice")


def test_the_same_change_of_more_tokens_is_another_edit_to_the_response_cache(
    model: LlamaForCausalLM,
) -> None:
    """SADI's fixed steering may add in one layer exactly what CAA adds there."""
    site = find_site(model, "hidden", "residual")
    shift = torch.zeros(site.layers, site.width)
    shift[1] = 2.0
    one, other, again = (
        DiagonalEdits(site, [Edit(torch.zeros_like(shift), shift)], False, scope).digest(0)
        for scope in ("prompt", "onwards", "onwards")
    )
    assert one != other == again


# ------------------------------------------------------------------ SADI edits one token


@pytest.mark.parametrize("arguments", [{}, {"steering": "fixed"}, {"selection": "random"}])
def test_sadi_and_its_ablations_edit_the_last_prompt_token_alone(
    evaluate: Any,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    arguments: dict[str, Any],
) -> None:
    given = {"top_k": 3, "delta": 3, **arguments}
    for task in ("tiny_choice", "tiny_text"):
        results = evaluate(task, **given)
        [mask] = results["config"]["sadi"][task]["fits"]
        difference = load_fit(Path(mask["file"])).tensors["difference"]
        chosen = {(layer, head) for layer, head in mask["selected"]}

        def change(
            layer: int, values: Tensor, difference: Tensor = difference, chosen: Any = chosen
        ) -> Tensor:
            new = values.clone()
            for head in range(4):
                if (layer, head) in chosen:
                    part = slice(8 * head, 8 * (head + 1))
                    fixed = arguments.get("steering") == "fixed"
                    new[:, part] += 3 * (difference[layer, head] if fixed else values[:, part])
            return new

        assert len(chosen) == given["top_k"]
        if task == "tiny_choice":
            assert_scored_as_the_loop_says(
                tried(results, task), harness_model, tokenizer, "head", lambda _: change, "prompt"
            )
        else:
            assert_generated_as_the_loop_says(
                results, task, harness_model, tokenizer, "head", change, "prompt"
            )


def test_a_shared_beginning_of_prompts_is_used_in_generation(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the strings of prompts that are computed apart, and of texts decoded by us."""
    told = {"system_instruction": "the cat dog bird fish stone tree river " * 5}

    def texts_of(name: str) -> Any:
        return scores(evaluate("tiny_text", model=name, settings=told, **NAMED[name]), "tiny_text")

    decoded = {name: texts_of(name) for name in NAMED}
    monkeypatch.setattr(Engine, "can_decode", False)
    used = []
    share = with_shared_beginning

    def spy(*arguments: Any) -> Prompts:
        prompts = share(*arguments)
        used.append(prompts.cache is not None)
        return prompts

    monkeypatch.setattr(generating, "with_shared_beginning", spy)
    assert {name: texts_of(name) for name in NAMED} == decoded
    assert used
    assert all(used)
    monkeypatch.setattr(generating, "beginning_of", lambda prompts: [])
    assert {name: texts_of(name) for name in NAMED} == decoded
