"""Harness tasks whose rows lie beside their definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import datasets
from lm_eval.api.task import ConfigurableTask


class ShippedRows(ConfigurableTask):  # type: ignore[misc]
    """An ordinary configured task, except for where its rows come from.

    Data files named in a YAML file are relative to the current directory, and the harness warns of
    unrelated settings whenever a task has a ``custom_dataset``. Rows read here are found wherever
    the folder is installed, quietly, without network and without a dataset cache.
    """

    FOLDER: ClassVar[Path]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: config[key] for key in config if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the rows from the JSONL files, at the point where the harness fetches a dataset."""
        files = sorted(self.FOLDER.glob("*.jsonl"))
        self.dataset = datasets.DatasetDict({file.stem: _rows(file) for file in files})


def _rows(file: Path) -> datasets.Dataset:
    lines = file.read_text(encoding="utf-8").splitlines()
    return datasets.Dataset.from_list([json.loads(line) for line in lines])
