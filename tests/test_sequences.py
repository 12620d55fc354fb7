"""Packed rows: what each token sees, and that packing changes no logit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from helpers.models import tiny_llama
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.prefixes import LONGEST_MASKED, SHORTEST, Group, group_by_prefix
from sadi_lmeval.passes.sequences import Past, Tree, pack

CPU = torch.device("cpu")
Shape = list[tuple[int, list[int]]]
"""Segments: any number that says which segment on the way to the last one is continued, and the
tokens."""

tokens = st.lists(st.integers(0, 39), max_size=4)
shapes = st.lists(st.tuples(st.integers(0, 1000), tokens), min_size=1, max_size=7)


def grow(shape: Shape, past: int = 0) -> tuple[Tree, list[int]]:
    """The tree, and the parent of each segment (-1: none)."""
    tree, parents = Tree(past), []
    way = [-1]  # to the last segment
    for index, (number, run) in enumerate(shape):
        way = way[: number % len(way) + 1]
        parents.append(way[-1])
        assert tree.add(run, parents[-1]) == index
        way.append(index)
    return tree, parents


def paths(shape: Shape, parents: list[int]) -> list[list[int]]:
    """For every packed token the packed tokens on its path from the root, itself the last."""
    ends: list[list[int]] = []  # the path to the end of each segment
    found: list[list[int]] = []
    for (_, run), parent in zip(shape, parents, strict=True):
        path = list(ends[parent]) if parent >= 0 else []
        for _ in run:
            path = [*path, len(found)]
            found.append(path)
        ends.append(path)
    return found


@given(shapes)
@example([(0, []), (1, [3]), (1, []), (2, [4, 5])])
@settings(max_examples=200)
def test_a_token_sees_its_ancestors_and_itself_and_nothing_else(shape: Shape) -> None:
    tree, parents = grow(shape)
    expected = torch.zeros(tree.length, tree.length, dtype=torch.bool)
    for row, path in enumerate(paths(shape, parents)):
        expected[row, path] = True
    assert torch.equal(tree.visible(), expected)


@given(shapes)
@settings(max_examples=200)
def test_a_token_has_the_position_that_it_would_have_alone(shape: Shape) -> None:
    tree, parents = grow(shape)
    expected = [len(path) - 1 for path in paths(shape, parents)]
    found = [s.depth + i for s in tree.segments for i in range(len(s.tokens))]
    assert found == expected
    assert tree.length == len(expected)


@given(shapes)
@settings(max_examples=200)
def test_only_a_row_in_which_every_token_sees_all_before_it_goes_without_a_mask(
    shape: Shape,
) -> None:
    tree, _ = grow(shape)
    if tree.is_path:
        assert torch.equal(tree.visible(), torch.ones(tree.length, tree.length).tril().bool())


def test_a_branch_is_not_continued_once_another_has_begun() -> None:
    tree = Tree()
    root = tree.add([5])
    left = tree.add([6], root)
    tree.add([7], root)
    with pytest.raises(ValueError, match="segment 1 is not on the way to the last one"):
        tree.add([8], left)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, initializer_range=0.3, **sizes)).eval()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_llama(40) if request.param == "llama" else gpt2()


@given(st.lists(shapes.filter(lambda s: any(run for _, run in s)), min_size=1, max_size=3))
@settings(max_examples=15)
def test_a_packed_batch_gives_every_token_the_logits_of_its_path_alone(
    model: PreTrainedModel, several: list[Shape]
) -> None:
    grown = [grow(shape) for shape in several]
    batch = pack([tree for tree, _ in grown], 2, torch.float32, CPU)
    where, alone = [], []
    for row, (shape, (_, parents)) in enumerate(zip(several, grown, strict=True)):
        ids = [token for _, run in shape for token in run]
        for position, path in enumerate(paths(shape, parents)):
            where.append((row, position))
            alone.append([ids[i] for i in path])
    logits = Forward(model).logits(batch, Points.of(where, len(several), CPU))
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([path])).logits[0, -1] for path in alone])
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_rows_are_padded_on_the_right_and_paths_bring_no_mask() -> None:
    short, long = Tree(), Tree()
    short.add([5])
    long.add([6, 7], long.add([8]))
    batch = pack([short, long], 2, torch.float32, CPU)
    assert batch.input_ids.tolist() == [[5, 2, 2], [8, 6, 7]]
    assert batch.attention_mask is None
    assert batch.position_ids is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_is_additive_and_every_padding_token_sees_something(dtype: torch.dtype) -> None:
    tree, path = Tree(), Tree()
    root = tree.add([5])
    tree.add([6], root)
    tree.add([7], root)
    path.add([9])
    mask = pack([tree, path], 2, dtype, CPU).attention_mask
    assert mask is not None
    assert mask.shape == (2, 1, 3, 3)
    assert mask.dtype == dtype
    assert mask.isfinite().all()
    seen = mask[:, 0] == 0
    assert seen[0].tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert seen[1].any(dim=-1).all()
    assert seen[1, 0].tolist() == [True, False, False]


@given(st.lists(shapes.filter(lambda s: any(run for _, run in s)), min_size=1, max_size=2))
@settings(max_examples=8)
def test_rows_after_a_shared_beginning_give_the_logits_of_the_whole(
    model: PreTrainedModel, several: list[Shape]
) -> None:
    beginning = [3, 9, 4, 4, 7]
    trees, where, alone = [], [], []
    for row, shape in enumerate(several):
        tree, parents = grow(shape, len(beginning))
        trees.append(tree)
        ids = [token for _, run in shape for token in run]
        for position, path in enumerate(paths(shape, parents)):
            where.append((row, position))
            alone.append(beginning + [ids[i] for i in path])
    forward = Forward(model)
    batch = pack(trees, 2, torch.float32, CPU, forward.prefix(beginning))
    logits = forward.logits(batch, Points.of(where, len(several), CPU))
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([path])).logits[0, -1] for path in alone])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@given(
    st.lists(
        st.builds(
            lambda a, b, end: [1] * a + [2] * b + end,
            st.sampled_from([0, 3, 17, 40]),
            st.sampled_from([0, 5, 20]),
            st.lists(st.integers(1, 3), min_size=1, max_size=4),
        ),
        max_size=40,
    )
)
@settings(max_examples=200)
def test_groups_hold_every_sequence_once_and_share_less_than_any_of_them(
    sequences: list[list[int]],
) -> None:
    groups = group_by_prefix(sequences)
    assert sorted(i for group in groups for i in group.members) == list(range(len(sequences)))
    for group in groups:
        members = [sequences[i] for i in group.members]
        assert len({tuple(member[: group.length]) for member in members}) == 1
        assert all(group.length < len(member) for member in members)


def test_what_enough_sequences_begin_with_is_shared() -> None:
    one, other = list(range(30)), list(range(50, 80))
    sequences = [[*one, 40 + i] for i in range(5)] + [[*other, 40 + i] for i in range(5)]
    groups = group_by_prefix([*sequences, [1, 2, 3]])
    assert sorted((g.length, sorted(g.members)) for g in groups) == [
        (0, [10]),
        (30, [0, 1, 2, 3, 4]),
        (30, [5, 6, 7, 8, 9]),
    ]


def test_what_is_long_beyond_what_is_shared_stands_alone_up_to_its_last_token() -> None:
    beginning = list(range(30))
    short = [[*beginning, 40 + i] for i in range(5)]
    long = [*beginning, *[7] * (LONGEST_MASKED + 1)]
    groups = group_by_prefix([*short, long, [*beginning, *[8] * LONGEST_MASKED], long])
    assert sorted((g.length, sorted(g.members)) for g in groups) == [
        (30, [0, 1, 2, 3, 4, 6]),
        (30 + LONGEST_MASKED, [5, 7]),
    ]


def test_sequences_that_part_one_after_the_other_are_grouped_too() -> None:
    """Each of them differs from all longer ones at a place of its own."""
    sequences = [[0] * i + [1, 1] for i in range(1500)]
    groups = group_by_prefix(sequences)
    assert sorted(i for group in groups for i in group.members) == list(range(1500))


@given(st.lists(st.lists(st.integers(1, 2), min_size=15, max_size=18), max_size=20))
@settings(max_examples=50)
def test_equal_sequences_count_as_one_and_stay_together(sequences: list[list[int]]) -> None:
    several = [[0] * 9 + sequence for sequence in sequences for _ in range(3)]
    once = group_by_prefix(several[::3])
    expected = [Group(g.length, [3 * i + n for i in g.members for n in range(3)]) for g in once]
    found = group_by_prefix(several)
    assert sorted((g.length, sorted(g.members)) for g in found) == sorted(
        (g.length, sorted(g.members)) for g in expected
    )


# ------------------------------------------------------------------ prefixes

LONG = [(7 * i + 3) % 40 for i in range(24)]


def prefix(model: PreTrainedModel, forward: Forward, tokens: list[int]) -> tuple[Past, int]:
    """The keys and values of tokens, and how many tokens were computed for them."""
    computed: list[int] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda m, a, out: computed.append(out[..., 0].numel()))
    past = forward.prefix(tokens)
    handle.remove()
    assert past is not None
    return past, sum(computed)


def assert_same(found: Past, expected: Past) -> None:
    assert found.length == expected.length
    for ours, theirs in zip(
        found.keys + found.values, expected.keys + expected.values, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "computed"),
    [
        pytest.param([*LONG, 5, 6, 7], 3, id="longer"),
        pytest.param(LONG, 0, id="the same"),
        pytest.param(LONG[:SHORTEST], 0, id="shorter"),
        pytest.param([*LONG[:SHORTEST], 39, 38], 2, id="parting"),
        pytest.param([*LONG[: SHORTEST - 1], 39, 38], SHORTEST + 1, id="parting too early"),
        pytest.param([39, *LONG], 25, id="another"),
    ],
)
def test_a_prefix_takes_over_what_the_last_one_began_with(
    model: PreTrainedModel, tokens: list[int], computed: int
) -> None:
    forward = Forward(model)
    first, _ = prefix(model, forward, LONG)
    kept = [part.clone() for part in first.keys + first.values]
    second, new = prefix(model, forward, tokens)
    assert new == computed
    assert_same(second, prefix(model, Forward(model), tokens)[0])
    third, _ = prefix(model, forward, [*tokens, 1])
    assert_same(third, prefix(model, Forward(model), [*tokens, 1])[0])
    assert all(map(torch.equal, kept, first.keys + first.values))


def test_a_prefix_is_the_same_to_the_bit_where_others_before_it_are_not_needed(
    model: PreTrainedModel,
) -> None:
    line = [LONG, LONG[:20], [*LONG[:18], 39, 38, 37], [39, *LONG], [39, *LONG[:17], 1, 2]]
    every, some = Forward(model), Forward(model)
    expected = [every.prefix(tokens) for tokens in line]
    promised = [some.prefix_of(tokens) for tokens in line]
    for number in (2, 4):
        found, one = promised[number](), expected[number]
        assert found is not None
        assert one is not None
        assert all(map(torch.equal, found.keys + found.values, one.keys + one.values))
        assert promised[number]() is found


def test_no_tokens_have_no_prefix(model: PreTrainedModel) -> None:
    assert Forward(model).prefix([]) is None


def test_the_past_up_to_a_token_is_that_of_the_tokens_before_it(model: PreTrainedModel) -> None:
    past, _ = prefix(model, Forward(model), LONG)
    for length in (1, 5, len(LONG)):
        assert_same(past.up_to(length), prefix(model, Forward(model), LONG[:length])[0])
