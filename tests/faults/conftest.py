"""Fixtures of this folder, and the counts that ``make faults`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.commands import Commands
from faults.counts import Count

_PROPERTY = "counts"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def commands(
    model_folder: Path, tasks_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    found = Commands(model_folder, tasks_folder, tmp_path_factory.mktemp("commands"))
    yield found
    found.close()


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Say in the summary how many of what there were: ``count("fits cut", rebuilt=190, …)``."""

    def said(what: str, **numbers: int) -> None:
        record_property(_PROPERTY, f"{what}: {', '.join(f'{n} {k}' for k, n in numbers.items())}")

    return said


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, [])]
    lines = [text for r in reports for name, text in r.user_properties if name == _PROPERTY]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line.replace("_", " "))
