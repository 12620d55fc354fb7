"""Leaderboards from the records of comparisons: no model is needed, and none is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sadi_lmeval.errors import UserError
from sadi_lmeval.records.record import Record, load_records
from sadi_lmeval.reports.leaderboard import Board, Cell, boards_of, printable
from sadi_lmeval.reports.page import page
from sadi_lmeval.reports.tables import comma_separated, json_text, markdown, model_index, shown
from sadi_lmeval.storage.atomic import write_atomically


def report(
    folders: Sequence[Path], output: Path, html: bool = False, diagnostics: bool = False
) -> str:
    """Write the leaderboard of some comparisons, as Markdown, CSV, JSON and model card metadata.

    Args:
        folders: of comparisons; runs of the same settings are merged.
        output: a folder; it is made.
        html: write ``report.html`` too.
        diagnostics: add :func:`diagnostics_text` to what is returned.

    Returns:
        what to print: the Markdown.

    Raises:
        UserError: there are no records, one is damaged, two contradict one another, or the output
            cannot be written. Nothing has been written then, short of a full disk.
    """
    try:
        boards = boards_of(merged(folders))
        # All is made before the first is written.
        contents = {
            "leaderboard.md": markdown(boards),
            "leaderboard.csv": comma_separated(boards),
            "leaderboard.json": json_text(boards),
            "model-index.yaml": model_index(boards),
            **({"report.html": page(boards)} if html else {}),
        }
    except RecursionError:
        raise UserError(
            f"{', '.join(map(str, folders))}: a record is nested deeper than this package writes it"
        ) from None
    try:
        for name, content in contents.items():
            # Half of a surrogate pair can stand in JSON, but not in a file.
            write_atomically(output / name, content.encode(errors="replace"))
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); name another folder"
        ) from None
    table = contents["leaderboard.md"]
    return f"{table}\n{diagnostics_text(boards)}" if diagnostics else table


def merged(folders: Sequence[Path]) -> list[Record]:
    """Load the records of all folders, each cell once.

    Two records of a cell are the same if they differ in how they came about (the command, the
    seconds) and in nothing else.

    Raises:
        UserError: a folder has none, one is damaged, or two contradict one another.
    """
    cells: dict[tuple[str, str, str, str | None], tuple[Record, Path]] = {}
    for folder in folders:
        for record in load_records([folder]):
            key = (record.run, record.task, record.method, record.mask_from)
            first, where = cells.setdefault(key, (record, folder))
            if first != replace(record, command=first.command, seconds=first.seconds):
                cell = printable(f"{record.method} on {record.task} in run {record.run[:12]}")
                raise UserError(
                    f"{where} and {folder}: both have {cell}, with different content; leave one of "
                    "them out"
                )
    return [record for record, _ in cells.values()]


def diagnostics_text(boards: Sequence[Board]) -> str:
    """Say what each method did to the answers, a paragraph a cell."""
    return "\n\n".join(_paragraph(cell, board) for board in boards for cell in board.cells) + "\n"


def _paragraph(cell: Cell, board: Board) -> str:
    record, diagnosis = cell.record, cell.diagnosis
    scale = board.scale(record.task)
    source = "" if record.mask_from is None else f", mask from {record.mask_from}"
    value = f"{record.metric} {shown(cell.value, scale)}"
    lines = [f"{board.model}, {record.method} on {record.task}{source}: {value}"]
    compared = cell.comparison
    if compared is not None and compared.p is not None:
        interval = (
            ""
            if compared.low is None
            else f" [{shown(compared.low, scale, True)}, {shown(compared.high, scale, True)}]"
        )
        lines += [
            f"difference {shown(compared.difference, scale, True)}{interval}, p {compared.p:.2g}, "
            f"{cell.p_holm:.2g} after Holm ({compared.test}, {compared.documents} documents"
            + (f", {compared.unpaired} left out)" if compared.unpaired else ")"),
            f"right to wrong: {diagnosis.right_to_wrong}, wrong to right: "
            f"{diagnosis.wrong_to_right}",
        ]
    for name, shares in (
        ("gold answers", diagnosis.gold),
        ("answers before", diagnosis.before if compared is not None else {}),
        ("answers", diagnosis.after),
    ):
        if shares:
            listed = ", ".join(f"{answer} {100 * s:.1f} %" for answer, s in shares.items())
            lines.append(f"{name}: {listed}")
    if diagnosis.balanced_after is not None:
        before = diagnosis.balanced_before if compared is not None else None
        lines.append(
            f"balanced accuracy: {diagnosis.balanced_after:.3f}"
            + ("" if before is None else f", before {before:.3f}")
        )
    if diagnosis.warning is not None:
        lines.append(f"WARNING: {diagnosis.warning}")
    return "\n  ".join(map(printable, lines))
