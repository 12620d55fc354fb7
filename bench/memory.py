"""Peak memory against the length of a prompt, the number of documents and that of settings.

    python bench/memory.py

Every line is a process of its own with a tiny random Llama on one core, float32: what its peak
(``ru_maxrss``) rises by while it scores, over what it was when the model was loaded and tried.
Such a model has next to no weights and keys, so that what shows is what grows.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.harness.run_task import RunTask
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.steering.tuning import Trial, judge_settings
from sadi_lmeval.storage.journal import Journal

_VOCABULARY = 64
_LENGTHS = (500, 2000, 8000, 16000)
_DOCUMENTS = (50, 200, 800)
_SETTINGS = (2, 20, 100)


class Case(NamedTuple):
    """What one process does."""

    prompt: int = 30
    documents: int = 100
    settings: int = 2


class Tuned:
    """What tuning needs of a model: an engine, and words that are tokens."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.processes: Processes = ALONE
        self.model_card: dict[str, Any] = {}

    def encode(self, context: str, continuation: str) -> list[int]:
        return [int(word) for word in f"{context} {continuation}".split()]

    def continuation(self, context: str, continuation: str) -> Continuation:
        return Continuation(tuple(self.encode(context, "")), tuple(self.encode("", continuation)))


def tiny_model(longest: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def edits_of(site: Site, count: int) -> DiagonalEdits:
    gains = torch.zeros(count, site.layers, site.width)
    for number, gain in enumerate(gains):
        gain[1, number % site.width] = 1.0 + number
    return DiagonalEdits(site, [Edit(gain) for gain in gains])


def words_of(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(3, _VOCABULARY) for _ in range(count)]


def score_long(case: Case, engine: Engine, site: Site) -> Callable[[], None]:
    """One prompt with four answers: scored, and under all settings."""
    draw = random.Random(0)
    prompt, edits = tuple(words_of(draw, case.prompt)), edits_of(site, case.settings)
    requests = [Continuation(prompt, tuple(words_of(draw, 2 + i)), 0) for i in range(4)]

    def done(numbers: list[int], values: Tensor, greedy: Tensor) -> None:
        pass

    def run() -> None:
        engine.score(requests, edits, lambda scores: None)
        engine.score_grid(requests, [edits], done)

    return run


def tune(case: Case, engine: Engine, site: Site, folder: Path) -> Callable[[], None]:
    """Documents of two choices, judged under all settings as tuning and sweeps do."""
    draw = random.Random(0)
    rows = [
        {
            "question": " ".join(map(str, words_of(draw, case.prompt))),
            "choices": [str(word) for word in words_of(draw, 2)],
            "label": draw.randrange(2),
        }
        for _ in range(case.documents)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "task": "rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(folder / "rows.jsonl")}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "rows.yaml").write_text(yaml.safe_dump(content))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = RunTask(manager.load(["rows"])["tasks"]["rows"])
    documents = task.evaluated()
    texts = [task.texts(document, 0) for document in documents]
    trial = Trial(task, Recipe("right_wrong", "choice"), documents, texts, "metric")
    edits, notes = edits_of(site, case.settings), Journal(folder / "notes.jsonl")

    def run() -> None:
        judge_settings(trial, [edits], Tuned(engine), [notes], "Settings")

    return run


def measure(case: Case, kind: str) -> float:
    """Give the rise of this process's peak, in MB."""
    torch.set_num_threads(1)
    model = tiny_model(case.prompt + 100)
    engine = Engine(model, 0, None, case.prompt + 50)
    site = find_site(model, "hidden")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = Case(8, 4, 2)
        for each, part in ((first, "first"), (case, "then")):
            place = folder / part
            place.mkdir()
            run = (
                score_long(each, engine, site)
                if kind == "long"
                else tune(each, engine, site, place)
            )
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _in_a_process(kind: str, case: Case) -> str:
    command = [sys.executable, __file__, "--case", json.dumps([kind, *case])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="of one process")
    given = parser.parse_args(arguments)
    if given.case:
        kind, *numbers = json.loads(given.case)
        print(f"{measure(Case(*numbers), kind):.0f}")
        return
    print("| | | peak rises by, MB |\n|---|---|---|")
    for length in _LENGTHS:
        found = _in_a_process("long", Case(prompt=length))
        print(f"| a prompt with 4 answers under 2 settings | {length} tokens | {found} |")
    for documents in _DOCUMENTS:
        found = _in_a_process("tuned", Case(documents=documents, settings=10))
        print(f"| documents of 30 tokens under 10 settings | {documents} | {found} |")
    for settings in _SETTINGS:
        found = _in_a_process("tuned", Case(documents=50, settings=settings))
        print(f"| settings over 50 documents | {settings} | {found} |")


if __name__ == "__main__":
    main()
