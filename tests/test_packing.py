"""Requests in packed rows: everything is found where it is said to be, and nothing stands twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sadi_lmeval.passes import packing
from sadi_lmeval.passes.packing import UNSTEERED, Continuation, Row, pack_requests
from sadi_lmeval.passes.prefixes import Group

pytestmark = pytest.mark.quick

FIRST = 7
"""A token that only what all prompts begin with has."""

Sign = tuple[int, int | None]
"""A token, and the edit that it gets as a last prompt token."""

some_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
some_requests = st.lists(
    st.builds(Continuation, some_tokens, some_tokens, st.integers(UNSTEERED, 1)),
    min_size=1,
    max_size=12,
)
thorough = settings(max_examples=200)
NESTED = [
    Continuation((1,), (2, 0, 1), 0),
    Continuation((1, 2), (0, 1), 0),
    Continuation((1, 2), (0, 1), 1),
    Continuation((1, 2, 0), (1,), 0),
    Continuation((1, 2, 0), (1,), UNSTEERED),
    Continuation((1, 2, 0), (2,), UNSTEERED),
]


def packed(
    requests: list[Continuation], shared: int, branching: bool = True, longest: int = 512
) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_LONGEST_ROW", longest)
        return pack_requests(requests, Group(shared, list(range(len(requests)))), branching)


def after_a_beginning(requests: list[Continuation], shared: int) -> list[Continuation]:
    return [r._replace(context=(FIRST,) * shared + r.context) for r in requests]


def paths(row: Row) -> list[list[Sign]]:
    """For every position of a row what stands on its path, itself the last."""
    edits = dict(row.edited)
    assert len(edits) == len(row.edited)
    ends: list[list[Sign]] = []
    found: list[list[Sign]] = []
    for segment in row.tree.segments:
        path = ends[segment.parent] if segment.parent >= 0 else []
        assert segment.start == len(found)
        assert segment.depth == row.tree.past + len(path)
        for token in segment.tokens:
            path = [*path, (token, edits.get(len(found)))]
            found.append(path)
        ends.append(path)
    assert row.length == len(found)
    return found


def expected_path(request: Continuation, shared: int, known: int) -> list[Sign]:
    """What the token number ``known`` of a continuation is predicted from."""
    context, tokens, edit = request
    signs: list[Sign] = [(token, None) for token in context[shared:-1]]
    return [*signs, (context[-1], edit), *((token, None) for token in tokens[:known])]


def assert_right(requests: list[Continuation], rows: list[Row], shared: int) -> None:
    seen: Counter[int] = Counter()
    for row in rows:
        assert row.tree.past == shared
        found = paths(row)
        for request in {entry.request for entry in row.entries}:
            seen[request] += 1
            entries = [entry for entry in row.entries if entry.request == request]
            for known, entry in enumerate(entries):
                assert found[entry.position] == expected_path(requests[request], shared, known)
            assert tuple(entry.token for entry in entries) == requests[request].tokens
        assert row.scored == len({entry.position for entry in row.entries})
    assert seen == Counter(range(len(requests)))


@given(some_requests, st.integers(0, 3), st.booleans(), st.sampled_from([4, 9, 512]))
@example(NESTED, 0, True, 512)
@example(NESTED, 2, True, 512)
@thorough
def test_every_token_is_predicted_after_its_prompt_its_edit_and_the_tokens_before_it(
    requests: list[Continuation], shared: int, branching: bool, longest: int
) -> None:
    shared = shared if branching else 0
    requests = after_a_beginning(requests, shared)
    assert_right(requests, packed(requests, shared, branching, longest), shared)


@given(some_requests, st.integers(0, 3), st.sampled_from([4, 9, 512]))
@example(NESTED, 0, 512)
@thorough
def test_a_row_holds_every_token_of_its_requests_once_and_no_other(
    requests: list[Continuation], shared: int, longest: int
) -> None:
    requests = after_a_beginning(requests, shared)
    for row in packed(requests, shared, longest=longest):
        needed = set()
        for index in {entry.request for entry in row.entries}:
            path = expected_path(requests[index], shared, len(requests[index].tokens) - 1)
            needed |= {tuple(path[: end + 1]) for end in range(len(path))}
        found = [tuple(path) for path in paths(row)]
        assert len(found) == len(set(found))
        assert set(found) == needed


@given(some_requests)
@example(NESTED)
@thorough
def test_a_prompt_stands_in_one_row_with_all_its_continuations_and_edits(
    requests: list[Continuation],
) -> None:
    rows = packed(requests, 0)
    contexts = [{requests[entry.request].context for entry in row.entries} for row in rows]
    rows_of = Counter(context for row in contexts for context in row)
    assert rows_of == Counter({request.context for request in requests})


@given(some_requests)
@example(NESTED)
@thorough
def test_without_branches_every_row_is_a_path_and_every_path_a_row(
    requests: list[Continuation],
) -> None:
    rows = packed(requests, 0, branching=False)
    assert all(row.tree.is_path for row in rows)
    found = [tuple(paths(row)[-1]) for row in rows]
    expected = {tuple(expected_path(request, 0, len(request.tokens) - 1)) for request in requests}
    assert len(found) == len({(r.context, r.edit, r.tokens[:-1]) for r in requests})
    assert set(found) == expected


long_requests = st.lists(
    st.builds(
        lambda start, context, tokens, edit: Continuation((*[1] * start, *context), tokens, edit),
        st.integers(0, 12),
        some_tokens,
        some_tokens,
        st.integers(UNSTEERED, 1),
    ),
    min_size=1,
    max_size=15,
)


@given(long_requests, st.sampled_from([5, 9, 14]))
@example([Continuation((1,) * length, (0,), 0) for length in range(1, 12)], 14)
@example([Continuation((0,) * 20, (token, 0), 0) for token in range(3)], 14)
@thorough
def test_a_row_is_no_longer_than_the_longest_or_holds_one_prompt(
    requests: list[Continuation], longest: int
) -> None:
    for row in packed(requests, 0, longest=longest):
        members = {entry.request for entry in row.entries}
        contexts = {requests[index].context for index in members}
        if len(contexts) > 1:
            assert row.length <= longest
        else:
            continuations = row.length - len(next(iter(contexts)))
            assert len(members) == 1 or continuations <= longest


def test_prompts_that_share_half_of_theirs_stand_in_one_row_and_others_do_not() -> None:
    beginning = tuple(range(10, 20))
    alike = [Continuation((*beginning, *range(n, n + 8)), (3,), 0) for n in (20, 30, 40)]
    assert len(packed(alike, 0)) == 1
    assert packed(alike, 0)[0].length == 10 + 3 * 8
    unlike = [Continuation((*beginning[:3], *range(n, n + 8)), (3,), 0) for n in (20, 30, 40)]
    assert len(packed(unlike, 0)) == 3


def test_what_the_group_shares_does_not_count_as_shared_with_the_neighbour() -> None:
    beginning = tuple(range(10, 20))
    requests = [Continuation((*beginning, *range(n, n + 8)), (3,), 0) for n in (20, 30, 40)]
    assert len(packed(requests, 10)) == 3


def test_a_prompt_longer_than_a_row_is_still_computed_once_for_its_continuations() -> None:
    prompt = tuple(n % 50 for n in range(600))
    requests = [Continuation(prompt, (token, 7), 0) for token in range(4)]
    rows = packed(requests, 0)
    assert [row.length for row in rows] == [600 + 4]
