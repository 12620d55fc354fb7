"""The forms in which the tests' tasks ask: plainly, and with choices that are letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sadi_lmeval.harness.run_task import Document


class Form(NamedTuple):
    """How rows of a question and three choices are asked.

    Attributes:
        tasks: of the plain tasks by name, those with the same rows in this form; what is not named
            has no such form.
        config: what a task's file says differently.
        prompt: what stands before the choices.
        choices: as the prompt goes on.
    """

    tasks: Mapping[str, str]
    config: Mapping[str, Any]
    prompt: Callable[[Document], str]
    choices: Callable[[Document], list[str]]


PLAIN = Form(
    tasks={
        name: name
        for name in (
            "alike", "tiny_choice", "tiny_folds", "tiny_empty", "tiny_input", "tiny_text",
            "tiny_word",
        )
    },
    config={},
    prompt=lambda row: f"{row['question']} answer :",
    choices=lambda row: list(row["choices"]),
)  # fmt: skip


def letters_prompt(row: Document) -> str:
    a, b, c = row["choices"]
    return f"{row['question']} A. {a} B. {b} C. {c} answer :"


LETTERS = Form(
    tasks={"tiny_choice": "letters_choice", "tiny_folds": "letters_folds"},
    config={
        "doc_to_text": "{{question}} A. {{choices[0]}} B. {{choices[1]}} C. {{choices[2]}}"
        " answer :",
        "doc_to_choice": ["A", "B", "C"],
    },
    prompt=letters_prompt,
    choices=lambda row: ["A", "B", "C"],
)
