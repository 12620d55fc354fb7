"""The harness task ``sadi_facts``, which reads its rows from the files beside this one."""

from __future__ import annotations

from pathlib import Path

from sadi_lmeval.harness.shipped_rows import ShippedRows


class SadiFacts(ShippedRows):
    """General knowledge, four choices."""

    FOLDER = Path(__file__).parent
