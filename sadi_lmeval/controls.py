"""The control rows of a comparison: what a method must beat before its gain means anything."""

from __future__ import annotations

CONTROLS = "controls"
"""Stands in a list of arms for all of these rows."""
SHUFFLED = "-shuffled"
"""Ends the name of an arm's own control: the arm, fitted to pairs whose labels are shuffled."""
RANDOM = "caa-random"
"""CAA along a random direction of the length of its vector."""
PROMPT_ONLY = "prompt-only"
"""The unsteered model with an instruction before its prompts."""
INSTRUCTION = "Be accurate and truthful, and give the correct answer."
"""That instruction, where the user gives none; it suits any task."""


def is_control(arm: str) -> bool:
    """Return whether an arm is there for others to be compared with."""
    return arm.endswith(SHUFFLED) or arm in (RANDOM, PROMPT_ONLY)
