"""``bench/scaling.py`` runs, and tells a curve that bends from one that does not."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "scaling.py"


def test_its_smallest_form_prints_both_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import scaling

    assert scaling.slope([1, 10, 100], [2, 20, 200]) == pytest.approx(1)
    assert scaling.slope([1, 10, 100], [3, 300, 30000]) == pytest.approx(2)
    assert scaling.slope([2, 8], [5, 5]) == pytest.approx(0)
    smallest = scaling.requests_of(40, 4)
    assert len({id(request.doc) for request in smallest}) == 10
    found = scaling.outside(40, 4, "score")
    assert all(math.isfinite(each) and each > 0 for each in found)


@pytest.mark.slow
def test_its_curves_are_a_table() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "layers", "settings"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines[2:]:
        assert re.fullmatch(r"[|].*[|] [0-9.]+ [|]", line)
        seconds = float(line.split("|")[4].split(",")[0])
        assert -0.5 < seconds < 1.6  # the slope of two points on a busy machine
