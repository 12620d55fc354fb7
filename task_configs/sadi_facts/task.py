"""The harness task ``sadi_facts``, which reads its rows from the files beside this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation", "test")


class SadiFacts(ConfigurableTask):  # type: ignore[misc]
    """An ordinary configured task, except for where its rows come from.

    Data files named in a YAML file are relative to the current directory, and the harness warns of
    unrelated settings whenever a task has a ``custom_dataset``. Rows read here are found wherever
    the folder is installed, quietly, without network and without a dataset cache.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: config[key] for key in config if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the rows from the JSONL files, at the point where the harness fetches a dataset."""
        self.dataset = datasets.DatasetDict({split: _rows(split) for split in SPLITS})


def _rows(split: str) -> datasets.Dataset:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return datasets.Dataset.from_list([json.loads(line) for line in lines])
