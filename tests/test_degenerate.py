"""Texts that say nothing are counted, and told of where a method is steered with."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from helpers.records import make_record
from sadi_lmeval.harness.degenerate import is_degenerate
from sadi_lmeval.reports.diagnostics import diagnose


@pytest.mark.quick
@pytest.mark.parametrize(
    "text",
    ["", " \n", "the " * 9, "no no no no no no no no no", "\n".join(["- a"] * 12), "!" * 40,
     "ab ab ab ab ab ab ab ab a"],
)  # fmt: skip
def test_what_says_nothing(text: str) -> None:
    assert is_degenerate(text)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text",
    ["a", "42", "no no no", "Paris", "the cat sat on the mat and the cat sat on the mat", "1000"],
)
def test_what_says_something(text: str) -> None:
    assert not is_degenerate(text)


def test_they_are_counted_and_told_of(
    evaluate: Any, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rest = [token for token in range(len(tokenizer)) if token != 9]

    def steering(**arguments: Any) -> dict[str, Any]:
        options = {"suppress_tokens": rest, "max_gen_toks": 12}
        found = evaluate("tiny_text", limit=5, settings={"gen_kwargs": options}, **arguments)
        record: dict[str, Any] = found["config"]["sadi"]["tiny_text"]
        return record

    assert steering(method="none")["degenerate"] == 5
    assert "over and over" not in caplog.text
    assert steering(top_k=3, delta=9)["degenerate"] == 5
    assert "Task tiny_text, sadi-head: 5 texts are empty, or one short" in caplog.text


@pytest.mark.quick
def test_a_method_that_makes_more_of_them_is_warned_of() -> None:
    record = make_record(method="sadi", steering={"method": "sadi", "degenerate": 3})
    unsteered = make_record(steering={"method": "none", "degenerate": 1})
    assert "3 of 4 texts are empty" in (diagnose(record, unsteered).warning or "")
    assert "texts" not in (diagnose(unsteered, record).warning or "")
