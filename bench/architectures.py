"""What works where, found out by trying: the table in docs/architectures.md.

    python bench/architectures.py

Builds the tiny random models of the tests, nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from transformers import PreTrainedModel

from helpers.architectures import CASES, PROMPTS, REFUSED, edits_of, logits_at, made
from sadi_lmeval.architecture.sites import register_architecture
from sadi_lmeval.errors import UserError
from sadi_lmeval.passes.branching import can_resume, longest_branching_path
from sadi_lmeval.passes.prefill import can_share_beginning

COLUMNS = (
    "architecture",
    "`model_type`",
    "heads",
    "neurons",
    "hidden",
    "packed rows",
    "grid",
    "shared beginning",
    "plain way only",
)


def steers(model: PreTrainedModel, where: str) -> bool:
    """Whether there is such a site, and scaling a few of its entries changes what comes next."""
    try:
        edits = edits_of(model, where)
    except UserError:
        return False
    plain, steered = (logits_at(model, e, PROMPTS[0], 0) for e in (None, edits))
    return bool((steered - plain).abs().max() > 1e-3)


def row(name: str) -> tuple[str, ...]:
    model = made(name)
    longest = longest_branching_path(model)
    packed = "no" if not longest else "yes" if longest == 1 << 62 else "up to its window"
    hidden = steers(model, "mlp") and steers(model, "residual")
    found = [steers(model, "head"), steers(model, "neuron"), hidden]
    return (
        name,
        f"`{model.config.model_type}`",
        *("yes" if here else "no" for here in found),
        packed,
        packed if can_resume(model) else "no",
        packed if can_share_beginning(model) else "no",
        "" if not any(found) else "no" if longest else "yes",
    )


def table() -> str:
    for case in CASES.values():
        if case.registered is not None:
            register_architecture(case.kind, case.registered)
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(row, [*CASES, *REFUSED])]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    print(table())
