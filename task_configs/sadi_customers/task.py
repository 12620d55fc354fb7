"""The harness task ``sadi_customers``, which reads its rows from the files beside this one."""

from __future__ import annotations

from pathlib import Path

from sadi_lmeval.harness.shipped_rows import ShippedRows


class SadiCustomers(ShippedRows):
    """Messages to shops, hotels and the like, from people who are happy or not."""

    FOLDER = Path(__file__).parent
