"""Where a script runs: in a folder with the data sets, where there is no hub."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def run_in(data: Path | None) -> None:
    """Run in a folder in which the harness finds the data sets; None: where it is, with the hub."""
    if data is not None:
        os.chdir(data)
        os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def run_quietly_in(data: Path | None) -> Iterator[Path]:
    """Do so, with errors alone from the harness, and yield a folder that is deleted afterwards.

    Data sets are prepared in it, unless ``HF_DATASETS_CACHE`` names another.
    """
    run_in(data)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HF_DATASETS_CACHE", f"{folder}/datasets")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        yield Path(folder)
