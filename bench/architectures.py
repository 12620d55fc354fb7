"""What works where, found out by trying: the table in docs/architectures.md.

    python bench/architectures.py
    python bench/architectures.py --all    # every type that transformers lists; takes minutes

Builds the tiny random models of the tests, nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from transformers import PreTrainedModel

from helpers.architectures import CASES, MIXED, PROMPTS, edits_of, logits_at, made
from helpers.every_type import LAYERS, PLACES, TYPES, refusal, tiny_config, wrong
from helpers.models import random_model
from sadi_lmeval.architecture.sites import find_site, register_architecture
from sadi_lmeval.errors import UserError
from sadi_lmeval.passes.branching import can_resume, longest_branching_path
from sadi_lmeval.passes.prefill import can_share_beginning

COLUMNS = (
    "architecture",
    "`model_type`",
    "heads",
    "neurons",
    "hidden",
    "residual",
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
    found = [steers(model, where) for where in PLACES]
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
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(row, [*CASES, *MIXED])]
    return _markdown(lines)


ALL_COLUMNS = ("`model_type`", "heads", "neurons", "hidden", "residual", "why not")


def tried(kind: str) -> tuple[str, ...]:
    """What of a type is steered, its numbers compared with those of plain hooks."""
    try:
        config = tiny_config(kind)
        said = [refusal(config, where) for where in PLACES]
        model = None if all(said) else random_model(config)
    except Exception as error:  # what such a small one lacks, each type says in its own way
        return f"`{kind}`", *"????", f"not built here: {' '.join(str(error).split())[:60]} …"
    cells = []
    for where, refused in zip(PLACES, said, strict=True):
        if refused or model is None:
            cells.append("no")
            continue
        try:
            site = find_site(model, *PLACES[where])
            gap = wrong(model, site)
        except UserError as error:
            cells.append("no, once loaded")
            said.append(str(error))
            continue
        few = f"in {site.layers} of {LAYERS} layers" if site.layers < LAYERS else "yes"
        cells.append(f"WRONG: {gap}" if gap else few)
    alone = [each for each in said if each]
    # Of one that has some elements, why its heads are not among them: they are the usual choice.
    told = len(set(cells)) == 1 or (said[0] and not cells[0].startswith("WRONG"))
    why = alone[0].split("; ")[0] if told and alone else ""
    return f"`{kind}`", *cells, why


def table_of_all() -> str:
    return _markdown([ALL_COLUMNS, ("---",) * len(ALL_COLUMNS), *map(tried, TYPES)])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    print(table_of_all() if "--all" in sys.argv[1:] else table())
