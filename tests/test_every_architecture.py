"""Every architecture against the equations in plain hooks, on modules that are named by hand.

That what is shared and skipped changes no score is ``test_architectures.py``'s.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.architectures import (
    CASES,
    CONTINUATIONS,
    DELTAS,
    HEADS,
    HIDDEN,
    LAYERS,
    LLAMA,
    MIXED,
    MIXED_PLACES,
    NARROW,
    PROMPTS,
    REQUESTS,
    SITES,
    assert_close,
    changing,
    columns_of,
    edits_of,
    generated,
    last_activations,
    logits_at,
    made,
    modules_of,
    oracle,
    places,
    plain_logits,
    read_at_the_end,
    score_of,
    scores,
    site_of,
)
from helpers.equations import EQUATIONS
from helpers.every_type import wrong
from helpers.models import tiny
from helpers.tables import architectures_bench, documented
from sadi_lmeval.architecture import sites
from sadi_lmeval.architecture.sites import (
    ARCHITECTURES,
    Architecture,
    find_site,
    register_architecture,
)
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.iti import ITI
from sadi_lmeval.methods.kappa import KAPPA
from sadi_lmeval.methods.registry import method_class
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.settings import Setting
from sadi_lmeval.types import Scope

# ------------------------------------------------------------------ the models


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The types that are said by hand, for the length of a test."""
    monkeypatch.setattr(sites, "ARCHITECTURES", dict(ARCHITECTURES))
    for case in CASES.values():
        if case.registered is not None:
            register_architecture(case.kind, case.registered)


# ------------------------------------------------------------------ tests


each_case = pytest.mark.parametrize("name", CASES)
each_place = pytest.mark.parametrize(
    ("name", "where"), [(name, where) for name in CASES for where in places(name)]
)


@each_case
def test_every_site_has_the_shape_and_the_modules_of_the_model(name: str) -> None:
    case, model = CASES[name], made(name)
    shapes = {
        "head": (HEADS, max(case.head_dims)),
        "neuron": (case.neurons, 1),
        "mlp": (HIDDEN, 1),
        "residual": (HIDDEN, 1),
    }
    for where, (entries, width) in shapes.items():
        if where == "neuron" and case.named.neurons is None:
            with pytest.raises(UserError, match=r"several experts.*element=head or element=hidden"):
                site_of(model, where)
            continue
        site = site_of(model, where)
        assert (site.layers, site.entries, site.entry_width) == (LAYERS, entries, width), where
        modules, side = modules_of(model, case.named, where)
        assert site.side == side
        assert all(ours is named for ours, named in zip(site.modules, modules, strict=True)), where


@each_place
@pytest.mark.parametrize("clean", [False, True], ids=["live", "clean"])
def test_steering_is_the_equations_in_plain_hooks(name: str, where: str, clean: bool) -> None:
    """Logits after the prompt, and log-likelihoods of two tokens, with all prompts in a batch."""
    case, model = CASES[name], made(name)
    edits = edits_of(model, where, clean)
    expected = []
    for prompt, tokens, edit in REQUESTS:
        text = [*prompt, *tokens]
        if edit == UNSTEERED:
            expected.append(score_of(plain_logits(model, text), prompt, tokens))
            continue
        columns = columns_of(where, edit, case.head_dims)
        last = len(prompt) - 1
        logits = oracle(model, case.named, where, text, last, columns, DELTAS[edit], clean)
        assert_close(logits_at(model, edits, prompt, edit), logits[last], (prompt, edit))
        expected.append(score_of(logits, prompt, tokens))
    by_request = torch.tensor(expected)
    steered, unsteered = by_request.view(-1, 3)[:, :2], by_request.view(-1, 3)[:, 2:]
    assert ((steered - unsteered).abs().amax(dim=1) > 1e-3).all()
    assert_close(scores(model, edits), by_request)


FITTED: dict[str, dict[str, Any]] = {
    "austeer": {},
    "linear-act": {},
    "spherical": {"kappa": 1},
    "odesteer": {},
    "mera": {},
    "clamping": {},
}
"""Methods, and the arguments with which they steer every text; spherical's usual gate shuts."""


@each_case
@pytest.mark.parametrize(
    "method",
    [
        # One that edits heads and one that edits the residual stream; the others take longer.
        pytest.param(name, marks=() if name in ("austeer", "linear-act") else pytest.mark.slow)
        for name in FITTED
    ],
)
def test_what_is_fitted_steers_as_its_equations_say(name: str, method: str) -> None:
    """Single dimensions of heads, and whole hidden states of one layer, from the prompt onwards."""
    case, model = CASES[name], made(name)
    equations, kind = EQUATIONS[method], method_class(method)(**FITTED[method])
    given = {**equations.given, **FITTED[method]}
    modules, side = modules_of(model, case.named, equations.where(given))
    texts = [[*prompt, token] for token in (3, 15) for prompt in PROMPTS]
    ends = torch.stack([last_activations(model, modules, side, text) for text in texts])
    pairs = len(PROMPTS)
    site = find_site(model, *kind.place)
    collector = kind.collector(site, pairs, 0)
    read = torch.stack([read_at_the_end(model, site, text) for text in texts])
    collector.add([*range(pairs)] * 2, [1] * pairs + [-1] * pairs, read)
    setting = Setting(*(given[name] for name in kind.axes.names))
    edits = kind.edits(site, collector.tensors(name), [setting], 0)
    known = equations.measure(ends[:pairs].double(), ends[pairs:].double(), given)
    change = equations.change(known, given)
    assert callable(change)
    prompt, tokens = PROMPTS[0], CONTINUATIONS[0]
    text, last = [*prompt, *tokens], len(prompt) - 1

    def edited(layer: int, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:last], change(layer, values[last:])])

    with changing(modules, side, edited):
        expected = score_of(plain_logits(model, text), prompt, tokens)
    found = scores(model, edits, [Continuation(prompt, tokens, 0)])
    assert_close(found, torch.tensor([expected]))
    assert abs(expected - score_of(plain_logits(model, text), prompt, tokens)) > 1e-3


@each_case
def test_a_choice_is_rewritten_as_in_plain_hooks(name: str) -> None:
    """KAPPA after the first block: the shortest step to what the second probe is to read."""
    case, model = CASES[name], made(name)
    rows = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(0))
    rows = rows - rows.mean(dim=1, keepdim=True)
    bias = torch.tensor([[1.0, -1, 0], [0.5, 0, -0.5]])
    names = ("knowledge", "prediction")
    fit = {n: rows[i].expand(LAYERS, 3, HIDDEN) for i, n in enumerate(names)}
    fit |= {f"{n}_bias": bias[i].expand(LAYERS, 3) for i, n in enumerate(names)}
    edits = KAPPA().edits(site_of(model, "residual"), fit, [Setting(0, 4)], 0)
    modules, side = modules_of(model, case.named, "residual")

    def rewrite(layer: int, values: torch.Tensor) -> torch.Tensor:
        after = values.clone()
        if layer == 0:
            knows, says = (rows[i].double() @ values[-1].double() + bias[i] for i in range(2))
            missing = (4 * knows - says).unsqueeze(1)
            step = torch.linalg.lstsq(rows[1].double(), missing, driver="gelsd", rcond=1e-6)
            after[-1] = values[-1] + step.solution.squeeze(1)
        return after

    for prompt in PROMPTS:
        with changing(modules, side, rewrite):
            expected = plain_logits(model, prompt)[-1]
        assert_close(logits_at(model, edits, prompt, 0), expected, prompt)
        assert (expected - plain_logits(model, prompt)[-1]).abs().max() > 1e-3


@each_case
def test_iti_s_gates_leave_of_its_shift_what_plain_hooks_do(name: str) -> None:
    """One of two prompts is below the gate's threshold; a head's own gate goes by its token."""
    case, model = CASES[name], made(name)
    # What a narrower layer's heads lack is not looked at.
    shape = LAYERS, HEADS, max(case.head_dims)
    theta, weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    fit = {
        "accuracy": torch.tensor([[0.5, 0.9, 0.4, 0.8], [0.7, 0.3, 0.2, 0.6]]),
        "mass_mean": theta,
        "mass_mean_std": torch.ones(LAYERS, HEADS),
        "weight": weight,
        "bias": torch.full((LAYERS, HEADS), 0.3),
    }
    best = [(0, 1), (0, 3), (1, 0)]
    modules, side = modules_of(model, case.named, "head")
    asked = [(prompt, tokens) for prompt, tokens in zip(PROMPTS, CONTINUATIONS, strict=True)][:2]

    def truth(layer: int, head: int, values: torch.Tensor) -> float:
        own = values[: HEADS * case.head_dims[layer]].view(HEADS, -1)[head]
        return float((weight[layer, head, : len(own)] @ own + fit["bias"][layer, head]).sigmoid())

    q = []
    for prompt, _ in asked:
        unsteered = last_activations(model, modules, side, prompt)
        q.append(sum(truth(n, head, unsteered[n]) for n, head in best) / len(best))
    threshold = sum(q) / 2
    site = site_of(model, "head")
    for gate, numbers in (("prompt", (3, 2.0, threshold)), ("self", (3, 2.0))):
        expected = []
        for (prompt, tokens), truth_of_prompt in zip(asked, q, strict=True):
            last = len(prompt) - 1
            of_prompt = 1 - truth_of_prompt if truth_of_prompt < threshold else 0.0

            def shifted(
                layer: int, values: torch.Tensor, last: int = last, of_prompt: float = of_prompt,
                gate: str = gate,
            ) -> torch.Tensor:  # fmt: skip
                after = values.clone()
                for at in range(last, len(values)):
                    for n, head in best:
                        if n == layer:
                            g = of_prompt if gate == "prompt" else 1 - truth(n, head, values[at])
                            own = after[at].view(HEADS, -1)[head]
                            own += g * 2 * theta[n, head, : len(own)]
                return after

            with changing(modules, side, shifted):
                expected.append(score_of(plain_logits(model, [*prompt, *tokens]), prompt, tokens))
        edits = ITI(gate=gate).edits(site, fit, [Setting(*numbers)], 0)  # type: ignore[arg-type]
        requests = [Continuation(*each, 0) for each in asked]
        found = scores(model, edits, requests)
        assert_close(found, torch.tensor(expected), gate)
        plain = scores(model, None, [each._replace(edit=UNSTEERED) for each in requests])
        closed = [gate == "prompt" and each >= threshold for each in q]
        moved = (found - plain).abs() > 1e-3
        assert moved.tolist() == [not each for each in closed], gate


@pytest.mark.parametrize("name", [name for name in CASES if "neuron" in places(name)])
def test_a_scaled_neuron_is_a_scaled_input_of_the_last_projection(name: str) -> None:
    """So that it is the neuron's own output, gated or not, and nothing before or after it."""
    case, model = CASES[name], made(name)
    text, columns = PROMPTS[0], columns_of("neuron", 0, case.head_dims)
    found = logits_at(model, edits_of(model, "neuron"), text, 0)
    expected = oracle(model, case.named, "down", text, len(text) - 1, columns, DELTAS[0])
    assert_close(found, expected[-1])


@each_case
def test_a_delta_of_zero_changes_no_bit_although_its_hooks_run(name: str) -> None:
    model, text = made(name), PROMPTS[0]
    plain = logits_at(model, None, text, UNSTEERED)
    requests = [request._replace(edit=0) for request in REQUESTS[::3]]
    unsteered = scores(model, None, requests)
    for where in places(name):
        for clean in (False, True):
            edits = edits_of(model, where, clean, deltas=[0.0, 3.0])
            assert edits.layers == [0, 1]
            assert torch.equal(logits_at(model, edits, text, 0), plain), (where, clean)
            assert not torch.equal(logits_at(model, edits, text, 1), plain), (where, clean)
            assert torch.equal(scores(model, edits, requests), unsteered), (where, clean)


@each_case
@pytest.mark.parametrize(("where", "clean"), [("head", True), ("mlp", False)])
def test_requests_in_a_batch_score_as_alone(name: str, where: str, clean: bool) -> None:
    """Right-padded, each row with an edit of its own or none."""
    model = made(name)
    edits = edits_of(model, where, clean)
    assert_close(scores(model, edits, REQUESTS, NARROW), scores(model, edits))


GENERATED: list[tuple[str, bool, Scope]] = [
    ("head", False, "prompt"),
    ("mlp", True, "prompt"),
    ("head", False, "onwards"),
    ("residual", False, "onwards"),
]


@each_case
@pytest.mark.parametrize(("where", "clean", "scope"), GENERATED)
def test_generation_with_a_cache_and_without_is_the_equations_in_plain_hooks(
    name: str, where: str, clean: bool, scope: Scope
) -> None:
    """Left-padded, all prompts in a batch; without a cache every step computes them again."""
    case, model = CASES[name], made(name)
    edits = edits_of(model, where, clean, scope)
    tokens, logits = generated(model, edits, use_cache=True)
    again, recomputed = generated(model, edits, use_cache=False)
    assert again == tokens
    assert_close(recomputed, logits)
    columns = columns_of(where, 0, case.head_dims)
    for prompt, own, found in zip(PROMPTS, tokens, logits, strict=True):
        text, last = [*prompt, *own], len(prompt) - 1
        onwards = scope == "onwards"
        expected = oracle(model, case.named, where, text, last, columns, DELTAS[0], clean, onwards)[
            last:-1
        ]
        assert_close(found, expected, prompt)
        assert (expected - plain_logits(model, text)[last:-1]).abs().max() > 1e-3


@each_case
def test_prompts_in_a_batch_are_generated_from_as_alone(name: str) -> None:
    model = made(name)
    edits = edits_of(model, "mlp", clean=True)
    tokens, logits = generated(model, edits)
    for row, prompt in enumerate(PROMPTS):
        [own], found = generated(model, edits, [prompt])
        assert own == tokens[row]
        assert_close(found[0], logits[row])


@each_case
def test_detaching_restores_every_bit(name: str) -> None:
    """After scores, after a generation, and after a pass that failed under way."""
    model = made(name)
    text = [*PROMPTS[0], *CONTINUATIONS[0]]
    before, texts = plain_logits(model, text), generated(model, None)
    for where, clean in (("head", True), ("residual", False)):
        edits = edits_of(model, where, clean)
        scores(model, edits)
        generated(model, edits)
        with pytest.raises(IndexError):
            logits_at(model, edits, [5, 10_000], 0)  # not in the vocabulary
    assert torch.equal(plain_logits(model, text), before)
    after = generated(model, None)
    assert after[0] == texts[0]
    assert torch.equal(after[1], texts[1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())


def test_the_last_types_are_not_listed_and_of_the_second_the_mlp_would_not_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They stand for looking and for registering."""
    monkeypatch.setattr(sites, "ARCHITECTURES", ARCHITECTURES)
    assert not {"llama_like", "xglm", "falcon_h1", "renamed"} & set(ARCHITECTURES)
    assert site_of(made("an unlisted type like Llama"), "head").entries == HEADS
    assert site_of(made("XGLM"), "head").entries == HEADS
    with pytest.raises(UserError, match=r"'renamed'.*sadi_lmeval\.register_architecture"):
        site_of(made("other names, registered by hand"), "mlp")


@pytest.mark.parametrize("where", SITES)
@pytest.mark.parametrize("name", MIXED)
def test_of_mixed_layers_those_that_have_an_element_are_steered(name: str, where: str) -> None:
    """Or it is refused in one line, where none has it."""
    model = made(name)
    if where in MIXED_PLACES[name]:
        site = site_of(model, where)
        assert site.blocks == MIXED_PLACES[name][where]
        assert wrong(model, site) == ""
        return
    with pytest.raises(UserError, match=f"element={SITES[where][0]}") as caught:
        site_of(model, where)
    assert repr(MIXED[name][0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_of_two_kinds_are_told_apart_for_who_registers_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jamba's MLPs are in every layer, its attention is in one; neurons in some are refused."""
    jamba = Architecture("model.layers", "self_attn.o_proj", "feed_forward", "mamba.act")
    monkeypatch.setitem(sites.ARCHITECTURES, "jamba", jamba)
    model = made("Jamba")
    with pytest.raises(UserError, match=r"only 1 of its 2 layers have 'mamba.act'"):
        site_of(model, "neuron")
    assert site_of(model, "head").blocks == (1,)
    assert site_of(model, "mlp").width == HIDDEN
    named = LLAMA._replace(mlp="feed_forward")
    text, columns = PROMPTS[0], columns_of("mlp", 0, 0)
    expected = oracle(model, named, "mlp", text, len(text) - 1, columns, DELTAS[0])
    assert_close(logits_at(model, edits_of(model, "mlp"), text, 0), expected[-1])


def test_a_head_of_latent_attention_has_the_width_of_its_values() -> None:
    """DeepSeek's head_dim is that part of the keys that is rotated."""
    sizes = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8}
    model = tiny(
        "deepseek_v3", v_head_dim=12, head_dim=4, num_key_value_heads=HEADS, vocab_size=60,
        n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1, **sizes,
    )  # fmt: skip
    site = site_of(model, "head")
    assert (site.entries, site.entry_width) == (HEADS, 12)
    text, columns = PROMPTS[0], columns_of("head", 0, 12)
    expected = oracle(model, LLAMA, "head", text, len(text) - 1, columns, DELTAS[0])
    assert_close(logits_at(model, edits_of(model, "head"), text, 0), expected[-1])
    with pytest.raises(UserError, match=r"only 1 of its 2 layers have 'mlp.act_fn'"):
        site_of(model, "neuron")


def test_the_table_in_the_documentation_is_what_trying_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = architectures_bench(monkeypatch).table()
    assert table in documented(), (
        "python bench/architectures.py prints the table that belongs there"
    )
