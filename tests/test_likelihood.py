"""Log-probabilities equal those of a softmax over everything at once, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sadi_lmeval.passes import likelihood as module
from sadi_lmeval.passes.likelihood import Likelihood, likelihood

VOCAB = 13
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SOFTMAX_DTYPES = [None, torch.float32, torch.float64]


def some_logits(rows: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)) * 4).to(dtype)


def in_chunks(
    logits: Tensor,
    points: Tensor,
    tokens: Tensor,
    softmax_dtype: torch.dtype | None,
    rows: int,
) -> Likelihood:
    """With the softmax of so many rows at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", rows * VOCAB + VOCAB // 2)
        return likelihood(logits, points, tokens, softmax_dtype)


def assert_right(
    found: Likelihood,
    logits: Tensor,
    points: Tensor,
    tokens: Tensor,
    softmax_dtype: torch.dtype | None,
) -> None:
    expected = logits.log_softmax(dim=-1, dtype=softmax_dtype)[points, tokens]
    assert found.log_probability.dtype == (softmax_dtype or logits.dtype)
    assert torch.equal(found.log_probability, expected)
    assert torch.equal(found.greedy, logits.argmax(dim=-1)[points] == tokens)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softmax_dtype", SOFTMAX_DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 100])
def test_likelihoods_equal_a_softmax_of_all_logits_wherever_chunks_end(
    dtype: torch.dtype, softmax_dtype: torch.dtype | None, rows: int
) -> None:
    logits = some_logits(6, dtype)
    points = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    tokens = logits.argmax(dim=-1)[points]
    tokens[[1, 4, 8]] = torch.tensor([3, 0, VOCAB - 1])
    found = in_chunks(logits, points, tokens, softmax_dtype, rows)
    assert_right(found, logits, points, tokens, softmax_dtype)
    assert found.greedy.any()
    assert not found.greedy.all()


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(
                st.tuples(st.integers(0, n - 1), st.integers(0, VOCAB - 1)), min_size=1, max_size=20
            ),
        )
    ),
    st.integers(1, 10),
)
@settings(max_examples=100)
def test_any_number_of_tokens_may_be_read_off_a_point(
    case: tuple[int, list[tuple[int, int]]], rows: int
) -> None:
    count, wanted = case
    points, tokens = torch.tensor(sorted(wanted)).T.contiguous()
    logits = some_logits(count, torch.float32)
    assert_right(in_chunks(logits, points, tokens, None, rows), logits, points, tokens, None)


def test_no_softmax_has_more_rows_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    plain = Tensor.log_softmax

    def counted(part: Tensor, **options: Any) -> Tensor:
        taken.append(len(part))
        return plain(part, **options)

    monkeypatch.setattr(Tensor, "log_softmax", counted)
    points = torch.arange(7)
    in_chunks(some_logits(7, torch.float32), points, points, None, 3)
    assert taken == [3, 3, 1]


def test_a_vocabulary_larger_than_a_chunk_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", VOCAB - 1)
    logits, points = some_logits(3, torch.float32), torch.tensor([0, 1, 2])
    assert_right(likelihood(logits, points, points, None), logits, points, points, None)
