"""``sadi-lmeval report``: tables and page out of records, without a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Describe the command's options."""
    report = commands.add_parser(
        "report",
        help="rebuild tables and page from the records of comparisons, without a model",
        description="Rebuild every table from the records of one or more comparisons.",
    )
    report.add_argument("folders", nargs="+", type=Path, help="folders of comparisons")
    report.add_argument(
        "--output_path", "-o", type=Path, help="a folder (default: the first of the folders)"
    )
    add_report_options(report)
    report.set_defaults(run=run)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--diagnostics",
        action="store_true",
        help="print how the answers changed: distributions, right to wrong, balanced accuracy",
    )
    parser.add_argument("--html", action="store_true", help="write report.html too")


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    write_report(given.folders, given.output_path or given.folders[0], given)


def write_report(folders: Sequence[Path], output: Path, given: argparse.Namespace) -> None:
    from sadi_lmeval.reports.report import report

    print(report(folders, output, given.html, given.diagnostics))
