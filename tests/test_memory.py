"""Out of memory, batches are run in halves: the same numbers, and nothing lost."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.layouts import REQUESTS, SAME_BEGINNING, A
from helpers.models import tiny_llama
from helpers.oracle import make_model
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.passes import activations, forward, prefixes
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.memory import in_halves
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.scoring import Score, log_likelihoods
from sadi_lmeval.passes.sequences import Tree

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"
MIXED = [Continuation(c, t, 0) for c, t, _ in [*REQUESTS, *SAME_BEGINNING]]
PAIRS = [TokenPair([5, 9, 7, i, 4], [5, 9, 7, i, 8, 3]) for i in range(3, 20)]


class Limited:
    """A model that has memory for so many tokens a pass."""

    def __init__(self, tokens: int) -> None:
        self.model, self.tokens, self.failed = make_model(), tokens, 0
        forward = self.model.forward

        def limited(input_ids: Tensor, **inputs: Any) -> Any:
            if input_ids.numel() > self.tokens:
                self.failed += 1
                raise RuntimeError(FULL)
            return forward(input_ids=input_ids, **inputs)

        self.model.forward = limited

    def everything(
        self, rows: int | None = None, requests: list[Continuation] = MIXED
    ) -> list[float]:
        """Scores, scores of a grid, and a mean difference."""
        engine = Engine(self.model, pad=0, rows=rows, max_length=128)
        site = find_site(self.model, "hidden")
        gain = torch.zeros(site.layers, site.width)
        gain[1, ::2] = 2.0
        edits = DiagonalEdits(site, [Edit(gain * s) for s in (1.0, -0.5, 2.0)])
        scores: dict[int, Score] = {}
        engine.score(requests, edits, scores.update)
        grid: dict[int, Tensor] = {}

        def done(numbers: list[int], values: Tensor, _: Tensor) -> None:
            grid.update(zip(numbers, values.T, strict=True))

        engine.score_grid(requests, [edits], done)
        collector = MeanDifference(site, len(PAIRS))
        engine.read([(site, collector)], PAIRS, "pairs")
        assert sorted(scores) == sorted(grid) == list(range(len(requests)))
        found = [scores[i][0] for i in range(len(requests))]
        found += [float(v) for i in range(len(requests)) for v in grid[i]]
        return found + [float(v) for v in collector.tensors("")["difference"].flatten()[:50]]


@pytest.mark.parametrize("rows", [None, 16])
def test_halves_give_what_whole_batches_give(
    rows: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Limited(1 << 30).everything(rows)
    assert "Out of memory" not in caplog.text
    small = Limited(90)
    assert small.everything(rows) == pytest.approx(expected, abs=2e-4)
    assert small.failed
    assert "Out of memory with" in caplog.text


def test_a_grid_is_halved_by_rows_and_by_settings() -> None:
    """Down to the settings of a single row."""
    requests = [
        Continuation((40 + i, 5, 9, 7, 4, i), t) for i in range(12) for t in ((7, 4), (9, 3))
    ]
    found = []
    for tokens in (1 << 30, 20):
        small = Limited(1 << 30)
        site = find_site(small.model, "hidden")
        gains = torch.zeros(12, site.layers, site.width)
        gains[:, 1, :12] = torch.eye(12)
        scores: dict[int, Tensor] = {}

        def done(numbers: list[int], values: Tensor, _: Tensor, scores: Any = scores) -> None:
            scores.update(zip(numbers, values.T, strict=True))

        engine = Engine(small.model, pad=0, rows=None, max_length=128)
        engine.score(requests, None, lambda scores: None)  # what the model allows is tried once
        assert engine.longest_branching_path > 0
        assert engine.can_resume
        small.tokens = tokens
        engine.score_grid(requests, [DiagonalEdits(site, [Edit(gain) for gain in gains])], done)
        found.append(torch.stack([scores[i] for i in range(len(requests))]))
    torch.testing.assert_close(found[1], found[0], atol=2e-4, rtol=0)


def test_a_single_row_that_is_too_large_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        Limited(3).everything()


def test_another_error_is_not_taken_for_it() -> None:
    ran = []

    def run(batch: list[int]) -> None:
        ran.append(batch)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_halves([1, 2, 3], run)
    assert ran == [[1, 2, 3]]


class Largest(TorchDispatchMode):
    """Notes the largest piece of memory that any operation gives out, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        found = operation(*arguments, **(keywords or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self.size = max(self.size, each.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize("shared", [0, 40])
def test_a_long_prompt_brings_no_mask_of_its_length_squared(shared: int) -> None:
    """Several continuations of it, several edits; short prompts may begin with its first tokens."""
    length = 2000
    model = tiny_llama(60, max_position_embeddings=length + 100)
    engine = Engine(model, pad=0, rows=4, max_length=length + 50)
    assert engine.longest_branching_path > length
    assert engine.can_resume
    site = find_site(model, "hidden")
    gain = torch.zeros(site.layers, site.width)
    gain[1, ::2] = 2.0
    edits = DiagonalEdits(site, [Edit(gain), Edit(-gain)])
    prompt = [3 + (7 * i * i + i // 50) % 50 for i in range(length)]
    requests = [Continuation(tuple(prompt), tokens, 1) for tokens in ((7, 4), (9,))]
    if shared:
        requests += [Continuation((*prompt[:shared], i), (5,), 1) for i in range(8)]
    scores: dict[int, Score] = {}
    grid: dict[int, Tensor] = {}

    def done(numbers: list[int], values: Tensor, _: Tensor) -> None:
        grid.update(zip(numbers, values.T, strict=True))

    with Largest() as largest:
        engine.score(requests, edits, scores.update)
        engine.score_grid(requests, [edits], done)
        pairs = [TokenPair([*prompt, 5, 8], [*prompt, 9]), TokenPair(prompt, prompt[::-1])]
        engine.read([(site, MeanDifference(site, 2))], pairs, "pairs")
    assert largest.size < length**2 / 2  # bytes; the model's states take a tenth of that
    alone = log_likelihoods(Forward(model), requests, edits, 0, False, Bounds(1, 1, 1))
    for index, (value, greedy) in enumerate(alone):
        assert scores[index][0] == pytest.approx(value, abs=1e-4)
        assert scores[index][1] == greedy
        assert float(grid[index][2]) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("longest", [1, 3, 6])
def test_prompts_in_parts_give_what_whole_ones_give(
    monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    more = [Continuation((*A * 2, *end), (3, 5), e) for e, end in enumerate(((8,), (8, *A), (9,)))]
    requests = [*MIXED, *more]
    expected = Limited(1 << 30).everything(None, requests)
    for module in (prefixes, forward, activations):
        monkeypatch.setattr(module, "LONGEST_MASKED", longest)
    assert Limited(1 << 30).everything(None, requests) == pytest.approx(expected, abs=2e-4)


def test_the_masks_of_a_group_s_rows_do_not_stand_there_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is as large as its row is long, squared."""
    made: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0
    visible = Tree.visible

    def watched(tree: Tree) -> Tensor:
        nonlocal most
        found = visible(tree)
        made.add(found)
        most = max(most, len(made))
        return found

    model = make_model()
    site = find_site(model, "hidden")
    gain = torch.zeros(site.layers, site.width)
    gain[1, ::2] = 2.0
    beginning = tuple(range(3, 40))
    requests = [Continuation((*beginning, *[3 + i] * 20, 5), (7, 4)) for i in range(30)]
    engine = Engine(model, pad=0, rows=2, max_length=128)
    assert engine.can_resume
    monkeypatch.setattr(Tree, "visible", watched)
    found: list[int] = []
    engine.score_grid(requests, [DiagonalEdits(site, [Edit(gain)])], lambda n, *_: found.extend(n))
    assert sorted(found) == list(range(30))
    assert 0 < most <= 8


def test_a_grid_keeps_of_its_blocks_what_a_setting_begins_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the inputs of all layers for the whole of a long prompt."""
    kept: list[tuple[int, ...]] = []
    trunk = Forward.trunk

    def watched(self: Forward, *arguments: Any) -> Any:
        found = trunk(self, *arguments)
        kept.extend(tuple(states.shape) for states in found[0].states.values())
        return found

    model = make_model()
    site = find_site(model, "hidden")
    gains = torch.zeros(2, site.layers, site.width)
    gains[0, 1, ::2], gains[1, 2, ::2] = 2.0, 1.0
    edits = DiagonalEdits(site, [Edit(gain) for gain in gains])
    requests = [Continuation(tuple(range(3, 50)), tokens) for tokens in ((7, 4), (9,))]
    engine = Engine(model, pad=0, rows=2, max_length=128)
    assert engine.can_resume
    monkeypatch.setattr(Forward, "trunk", watched)
    engine.score_grid(requests, [edits], lambda *_: None)
    assert kept
    assert max(length for _, length, _ in kept) <= 3  # the last prompt token, and those scored


def test_a_mean_difference_makes_no_wide_copy_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    site = find_site(make_model(), "hidden")
    collector = MeanDifference(site, 3)
    values = torch.randn(6, site.layers, site.width)
    expected = (values[:3].double() - values[3:].double()).mean(0).float()
    monkeypatch.setattr(Tensor, "double", None)
    collector.add([0, 1, 2, 0, 1, 2], [1, 1, 1, -1, -1, -1], values)
    found = collector.tensors("")["difference"].view(site.layers, -1)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
