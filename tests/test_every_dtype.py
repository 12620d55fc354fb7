"""Prompts of real length on every architecture, in float32, bfloat16 and float16.

What rounding a type does is measured, not guessed: how far plain passes in it are from plain passes
in float64. What the package computes may be twice as far from these.
"""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from torch import Tensor

from helpers.architectures import (
    CASES,
    DELTAS,
    columns_of,
    edits_of,
    oracle,
    plain_logits,
    score_of,
)
from helpers.models import tiny
from sadi_lmeval.architecture import sites
from sadi_lmeval.architecture.sites import ARCHITECTURES, register_architecture
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import UNSTEERED, Continuation

pytestmark = pytest.mark.slow

LENGTH = 512
TYPES = [torch.float32, torch.bfloat16, torch.float16]
_FACTOR = 2
"""How many times as far as plain passes."""
_WITHOUT_DOUBLE = ("XGLM",)
"""Kinds that transformers does not run in float64: their 16 bits are compared with float32."""
TRIED = [
    pytest.param(name, dtype, id=f"{name}-{dtype}")
    for name in CASES
    for dtype in TYPES
    if name not in _WITHOUT_DOUBLE or dtype != torch.float32
]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "ARCHITECTURES", dict(ARCHITECTURES))
    for case in CASES.values():
        if case.registered is not None:
            register_architecture(case.kind, case.registered)


def requests() -> list[Continuation]:
    """A prompt of 300 tokens, one of 220 that begins alike, and a short one; two answers each."""
    draw = Random(0)
    long = [draw.randrange(3, 60) for _ in range(300)]
    prompts = [tuple(long), (*long[:200], *long[40:60]), tuple(long[:7])]
    answers = [(3, 14, 26), (15,)]
    return [Continuation(prompt, answer, 0) for prompt in prompts for answer in answers]


def plainly(model: torch.nn.Module, name: str, where: str | None) -> Tensor:
    """Log-likelihoods of the requests, one plain pass a text."""
    case, found = CASES[name], []
    for prompt, tokens, _ in requests():
        text = [*prompt, *tokens]
        if where is None:
            logits = plain_logits(model, text)
        else:
            columns = columns_of(where, 0, case.head_dims)
            logits = oracle(model, case.named, where, text, len(prompt) - 1, columns, DELTAS[0])
        found.append(score_of(logits, prompt, tokens))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(("name", "dtype"), TRIED)
def test_long_prompts_score_what_plain_passes_of_the_same_type_do(
    name: str, dtype: torch.dtype
) -> None:
    case = CASES[name]
    lengths = {"max_position_embeddings": LENGTH, "max_seq_len": LENGTH, **case.changes}
    model = tiny(case.kind, vocab_size=60, **lengths)
    exact = copy.deepcopy(model)
    if name not in _WITHOUT_DOUBLE:
        exact.set_experts_implementation("eager")  # the other kernels know no float64
        exact = exact.double()
    model = model.to(dtype)
    engine = Engine(model, 0, 4, LENGTH, softmax_dtype=torch.float32)
    for where, deltas in ((None, [0.0, 0.0]), ("head", DELTAS), ("residual", DELTAS)):
        edits = edits_of(model, where or "head", deltas=deltas)
        asked = requests()
        scored: dict[int, float] = {}
        grid: dict[int, float] = {}
        engine.score(asked, edits, lambda new, scored=scored: scored.update(  # type: ignore[misc]
            (index, value) for index, (value, _) in new))  # fmt: skip
        engine.score_grid(
            [request._replace(edit=UNSTEERED) for request in asked],
            [edits],
            lambda n, v, _, grid=grid: grid.update(zip(n, v[1].tolist(), strict=True)),  # type: ignore[misc]
        )
        expected = plainly(exact, name, where)
        rounding = float((plainly(model, name, where) - expected).abs().max())
        least = torch.finfo(dtype).eps * float(expected.abs().max())
        for way in (scored, grid):
            found = torch.tensor([way[index] for index in range(len(asked))], dtype=torch.float64)
            gap = float((found - expected).abs().max())
            assert gap <= _FACTOR * max(rounding, least), (where, gap, rounding)
