"""Means over prompts: read beside the last token, however prompts share rows and beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.loops import Gated, Where, plain_activations, plain_generation, plain_score
from helpers.models import tiny_llama
from sadi_lmeval.architecture.positions import Paths, Points
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.conditional import Condition, ConditionalEdits, similarity
from sadi_lmeval.edits.contract import Edits, Reads
from sadi_lmeval.edits.joined import joined
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.edits.some import some
from sadi_lmeval.passes.endings import Ending, Text
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import UNSTEERED, Continuation
from sadi_lmeval.passes.prefill import read_unsteered
from sadi_lmeval.passes.sequences import Tree, pack
from sadi_lmeval.processes import Processes

LAYERS, LAYER, VOCABULARY = 3, 2, 64


def drawn(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()


ALL, HALF = drawn(20, 1), drawn(24, 2)
CONTEXTS = [
    *((*ALL, *HALF, *drawn(3 + n, 10 + n)) for n in range(5)),  # a beginning in another
    *((*ALL, *drawn(9 + n, 20 + n)) for n in range(5)),
    *(tuple(drawn(2 + 3 * n, 30 + n)) for n in range(4)),  # which share nothing
    (*ALL, *HALF[:10]),
]
REQUESTS = [
    Continuation(context, tokens, 0)
    for number, context in enumerate(CONTEXTS)
    for tokens in ((7, 8), tuple(drawn(3, 40 + number)))
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(VOCABULARY)


def engine_of(model: LlamaForCausalLM) -> Engine:
    return Engine(model, 0, None, 128)


class Conditioned:
    """Edits of one layer under a condition of means, and what a loop says of them."""

    def __init__(
        self, model: LlamaForCausalLM, where: Where, layer: int = LAYER, gated: bool = False
    ) -> None:
        self.where = where
        element, hidden_site = ("head", "mlp") if where == "head" else ("hidden", where)
        site = find_site(model, element, hidden_site)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(5 + layer)
        self.shift = torch.randn(site.width, generator=generator)
        c = torch.randn(site.width, generator=generator)
        own: Any = {"gate": self.own, "gate_digests": ["0.5"] * 2} if gated else {}
        edits = ScaledEdits(site, [1.0, -2.0], [[0], [1]], "onwards", shift=self.both, **own)
        self.gated = gated
        means = torch.stack([plain_activations(model, [*t], where, "mean") for t in CONTEXTS])
        found = similarity(means[:, layer], c).sort().values
        threshold = float(found[6] + found[7]) / 2
        self.condition = Condition(layer, c, threshold, "above", "mean")
        met = self.condition.passes(means[:, layer]).tolist()
        self.met = dict(zip(CONTEXTS, met, strict=True))
        self.edits = ConditionalEdits(edits, self.condition)

    @property
    def both(self) -> dict[int, Tensor]:
        return {0: self.shift, 1: self.shift}

    @staticmethod
    def own(unsteered: Tensor) -> Tensor:
        """Of the last token: half, or all."""
        assert unsteered.shape[1] == LAYERS
        return torch.where(unsteered[:, 0, :1] > 0, 0.5, 1.0).expand(-1, 2)

    def change(self, context: tuple[int, ...], edit: int) -> Gated | None:
        if not self.met[context]:
            return None
        layer, strength = ((0, 1.0), (1, -2.0))[edit]

        def whole(at: int, values: Tensor) -> Tensor:
            return values + strength * self.shift if at == layer else values

        gate = (lambda a: 0.5 if a[0, 0] > 0 else 1.0) if self.gated else (lambda a: 1.0)
        return Gated(whole, gate)

    def expected(self, model: LlamaForCausalLM, request: Continuation, edit: int) -> float:
        change = self.change(request.context, edit)
        context, tokens = [*request.context], [*request.tokens]
        return plain_score(model, context, tokens, self.where, change)[0]


def scored(engine: Engine, requests: Sequence[Continuation], edits: Edits | None) -> list[float]:
    found: dict[int, float] = {}
    engine.score(requests, edits, lambda s: found.update({i: score[0] for i, score in s}))
    return [found[index] for index in range(len(requests))]


def in_grid(engine: Engine, families: Sequence[Edits]) -> Tensor:
    """``[settings, requests]``."""
    found: dict[int, Tensor] = {}
    engine.score_grid(
        REQUESTS, families, lambda numbers, v, g: found.update(zip(numbers, v.T, strict=True))
    )
    return torch.stack([found[index] for index in range(len(REQUESTS))], dim=1)


# ------------------------------------------------------------------ what is read


@pytest.mark.quick
def test_a_mean_reads_the_tokens_of_its_own_text_alone() -> None:
    values = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    values[1, 2] = torch.nan
    before = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    seen = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0]]) > 0
    points = Points.of([(0, 4), (1, 3), (1, 2)], 2, torch.device("cpu"))
    for given in (values, values.flatten(0, 1)):
        found = Paths(points, seen).mean(given, before)
        first = (before.sum(0) + values[0, 0] + values[0, 1] + values[0, 4]) / 7
        second = (before.sum(0) + values[1, 0] + values[1, 1] + values[1, 3]) / 7
        torch.testing.assert_close(found[:2], torch.stack([first, second]))
        assert found[2].isnan().all()
    alone = Paths(points, seen).mean(values.bfloat16(), None)
    assert alone.dtype == torch.float32
    torch.testing.assert_close(alone[1], values[1, [0, 1, 3]].bfloat16().float().mean(0))


@pytest.mark.quick
def test_means_are_those_of_each_text_alone_in_packed_rows_after_a_beginning(
    model: LlamaForCausalLM,
) -> None:
    forward = Forward(model)
    reads = Reads(find_site(model, "hidden", "residual"), (0, 2))
    tree, ends = Tree(past=20), []
    root = tree.add(HALF)
    for tokens in ([5, 6, 7], [8], [9, 5, 5, 4]):
        tree.add(tokens, root)
        ends.append((tree.length - 1, [*ALL, *HALF, *tokens]))
    ends.insert(0, (10, [*ALL, *HALF[:11]]))
    past = forward.prefix(ALL, [reads])
    batch = pack([tree], 0, torch.float32, forward.device, past)
    points = Points.of([(0, end) for end, _ in ends], 1, forward.device)
    [found] = forward.activations(batch, points, [reads])
    assert found.shape == (4, LAYERS + 2, 32)
    for row, (_, text) in zip(found, ends, strict=True):
        mean = plain_activations(model, text, "residual", "mean")
        torch.testing.assert_close(row[LAYERS:], mean[[0, 2]], atol=1e-5, rtol=1e-4)
        last = plain_activations(model, text, "residual")
        torch.testing.assert_close(row[:LAYERS], last, atol=1e-5, rtol=1e-4)


@pytest.mark.quick
def test_a_beginning_that_was_computed_without_activations_is_computed_anew(
    model: LlamaForCausalLM,
) -> None:
    forward, site = Forward(model), find_site(model, "hidden", "residual")
    long = [*ALL, *HALF]
    text = torch.stack([plain_activations(model, long[: n + 1], "residual") for n in range(44)])
    plain = forward.prefix(long)
    assert plain is not None
    assert not plain.shown
    for tokens, layers in ((long, (1,)), (long, (1, 2)), (ALL, (1, 2)), (long, (2,)), (long, ())):
        past = forward.prefix(tokens, [Reads(site, layers)])
        assert past is not None
        assert {layer for _, layer in past.shown} >= set(layers)
        for (_, layer), found in past.shown.items():
            expected = text[: len(tokens), layer]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(past.keys, plain.up_to(len(tokens)).keys, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.quick
def test_of_left_padded_prompts_the_padding_does_not_count(model: LlamaForCausalLM) -> None:
    edits = Conditioned(model, "residual").edits
    prompts = [[*context] for context in CONTEXTS[5:9]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    found = read_unsteered(model, edits, ids, mask)
    for row, prompt in zip(found, prompts, strict=True):
        mean = plain_activations(model, prompt, "residual", "mean")[LAYER]
        torch.testing.assert_close(row[LAYERS], mean, atol=1e-5, rtol=1e-4)


@pytest.mark.quick
def test_edits_that_are_joined_get_their_own_means(model: LlamaForCausalLM) -> None:
    parts = [Conditioned(model, "residual", layer, gated) for layer, gated in
             ((2, False), (0, True), (2, True))]  # fmt: skip
    free = parts[0].edits.edits
    every = joined([parts[0].edits, free, *(each.edits for each in parts[1:])])
    assert every.means == (2, 0)
    seen = torch.randn(9, LAYERS + 2, 32, generator=torch.Generator().manual_seed(9))
    table = every.gates(seen)
    assert table is not None
    own = {0: seen[:, [0, 1, 2, 4]], 2: seen[:, :4]}
    for part, first in zip(parts, (0, 4, 6), strict=True):
        expected = part.edits.gates(own[part.condition.layer])
        assert torch.equal(table[:, first : first + 2], expected)
    assert torch.equal(table[:, 2:4], torch.ones(9, 2))
    few = some(every, [5, 0])
    assert few.means == every.means
    chosen = few.gates(seen)
    assert chosen is not None
    assert torch.equal(chosen, table[:, [5, 0]])


# ------------------------------------------------------------------ what is steered


@pytest.mark.parametrize(("where", "gated"), [("residual", True), ("head", False)])
def test_scores_are_the_loop_s_and_prompts_that_do_not_pass_the_unsteered_bits(
    model: LlamaForCausalLM, where: Any, gated: bool
) -> None:
    engine, made = engine_of(model), Conditioned(model, where, gated=gated)
    met = [made.met[request.context] for request in REQUESTS]
    assert 8 < sum(met) < len(met) - 8
    expected = torch.tensor([[made.expected(model, r, edit) for r in REQUESTS] for edit in (0, 1)])
    values = in_grid(engine, [made.edits, made.edits.edits])
    torch.testing.assert_close(values[1:3], expected, atol=1e-4, rtol=0)
    assert ((values[1:3] == values[0]) == ~torch.tensor(met)).all()
    edits = [number // 2 % 2 for number in range(len(REQUESTS))]  # one a prompt
    mixed = [r._replace(edit=edit) for r, edit in zip(REQUESTS, edits, strict=True)]
    found = scored(engine, mixed, made.edits)
    assert found == pytest.approx(expected[edits, range(len(edits))].tolist(), abs=1e-4)
    plain = scored(engine, [r._replace(edit=UNSTEERED) for r in REQUESTS], None)
    assert [a == b for a, b in zip(found, plain, strict=True)] == [not passes for passes in met]


def test_the_plain_way_and_the_packed_one_let_the_same_prompts_pass(
    model: LlamaForCausalLM,
) -> None:
    made, packed, plain = Conditioned(model, "residual"), engine_of(model), engine_of(model)
    plain.longest_branching_path = 0
    found = [in_grid(engine, [made.edits]) for engine in (packed, plain)]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


class OneOfTwo(Processes):
    """Runs every second batch of a run, and leaves the others to another process."""

    divide_batches = True

    def __init__(self, turn: int) -> None:
        self.turn = turn

    def run(self, jobs: Any, for_all: bool = True) -> Any:
        return [job() for number, job in enumerate(jobs) if number % 2 == self.turn]


def test_processes_that_divide_batches_give_what_one_gives(model: LlamaForCausalLM) -> None:
    """Each computes the beginnings of its own batches alone."""
    made, found = Conditioned(model, "residual"), dict[int, float]()
    expected = scored(engine_of(model), REQUESTS, made.edits)
    for turn in range(2):
        engine = engine_of(model)
        engine.processes = OneOfTwo(turn)
        engine.score(REQUESTS, made.edits, lambda s: found.update({i: x[0] for i, x in s}))
    assert [found[i] for i in range(len(REQUESTS))] == pytest.approx(expected, abs=1e-5)


def test_a_beginning_is_computed_once_for_all_that_have_it(model: LlamaForCausalLM) -> None:
    """With a condition of means no token more than with one of last tokens."""
    made = Conditioned(model, "residual")
    last = Condition(LAYER, made.condition.direction, 0.0, "above")
    computed = []
    for edits in (made.edits, ConditionalEdits(made.edits.edits, last)):
        engine = engine_of(model)
        tokens: list[int] = []
        scored(engine, REQUESTS[:1], edits)  # what the model allows is tried once
        handle = model.model.embed_tokens.register_forward_hook(
            lambda m, given, out, tokens=tokens: tokens.append(given[0].numel())
        )
        in_grid(engine, [edits])
        scored(engine, REQUESTS, edits)
        handle.remove()
        computed.append(sum(tokens))
    assert computed[0] == computed[1]


def test_texts_are_steered_by_the_mean_over_their_prompts(model: LlamaForCausalLM) -> None:
    made, engine = Conditioned(model, "residual"), engine_of(model)
    ending = Ending([], frozenset(), len(CONTEXTS), lambda tokens, skip: "", 0)
    texts = [Text([*context], ending, 4, 0) for context in CONTEXTS]
    engine.decoder(texts, made.edits, 6).finish(texts)
    differ = 0
    for text, (context, passes) in zip(texts, made.met.items(), strict=True):
        change = made.change(context, 0)
        expected, _ = plain_generation(model, [*context], 4, "residual", change)
        unsteered, _ = plain_generation(model, [*context], 4, "residual", None)
        assert text.made == expected
        assert passes or expected == unsteered
        differ += expected != unsteered
    assert differ > 2
