"""Harness tasks over rows of our own, as the harness makes them for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from jinja2 import Template
from lm_eval.tasks import TaskManager

from helpers.models import CHAT_TEMPLATE
from sadi_lmeval.harness.run_task import Document, RunTask, digest
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.registry import method_class
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.pairs.recipe import Recipe

CHOICE = Recipe("right_wrong", "choice")
OTHER = Recipe("other_target", "other_target")
NUMBER = Recipe("wrong_number", "wrong_number")
ANSWERS = Recipe("answers", "answers", right="{{ answer }}", wrong="{{ choices }}")


def chat_template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    rendered = Template(CHAT_TEMPLATE).render(
        messages=messages, add_generation_prompt=add_generation_prompt
    )
    return str(rendered)


CHAT = {
    "apply_chat_template": True,
    "chat_template": chat_template,
    "system_instruction": "be good",
    "fewshot_as_multiturn": True,
}


def load(folder: Path, name: str, num_fewshot: int = 0, **settings: Any) -> RunTask:
    """A task of a folder, as the harness makes it for a run."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        task = manager.load([name])["tasks"][name]
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(1234)
    return RunTask(task, settings)


def make_task(
    folder: Path,
    name: str,
    splits: dict[str, list[Document]],
    num_fewshot: int = 0,
    **config: Any,
) -> RunTask:
    """A multiple-choice task over rows of our own, unless ``config`` says otherwise."""
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{name}-{split}.jsonl")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(files[split]).write_text(text, encoding="utf-8")
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} ?",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **config,
    }
    for split, part in (("training", "train"), ("validation", "validation"), ("test", "test")):
        if part in splits:
            content.setdefault(f"{split}_split", part)
    content = {key: value for key, value in content.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load(folder, name, num_fewshot)


def everything(document: Document) -> bool:
    return True


def harness_requests(task: RunTask) -> dict[str, list[tuple[Any, ...]]]:
    """The arguments of all requests that the harness makes for each evaluated document."""
    settings = {k: v for k, v in task.settings.items() if k != "world_size"}
    task.task.build_all_requests(**settings)
    found: dict[str, list[tuple[Any, ...]]] = {}
    for instance in task.task.instances:
        found.setdefault(digest(instance.doc), []).append(instance.args)
    return found


def words(text: str) -> int:
    return len(text.split())


def examples(pair: Pair) -> list[str]:
    return pair.positive[0].split("\n\n")[:-1]


def make_alike(folder: Path) -> None:
    """A task whose prompts go on as answers to others do, and share a long beginning."""
    words = "the cat sees a dog and the bird likes fish under one old tree by the river".split()
    rows = [
        {
            "question": " ".join(words[:length]),
            "choices": [" ".join(words[length : length + n]) for n in (3, 2)] + ["stone road"],
            "label": length % 3,
        }
        for length in range(1, 15)
    ]
    train = [
        {
            "question": f"{words[i % 17]} {words[i % 11]} {words[i % 5]} {' '.join(str(i))}",
            "choices": [words[(i + k) % 17] + " " + words[(i * k) % 13] for k in (1, 2, 3)],
            "label": i % 3,
        }
        for i in range(20)
    ]
    make_task(folder, "alike", {"train": train, "validation": rows}, doc_to_text="{{question}}")


def held_out_of(
    folder: Path, name: str, method: str, **arguments: Any
) -> tuple[set[str], list[Document]]:
    """What the pairs are of, and the held-out documents."""
    options = read_arm(method, arguments).options
    plan = find_plan(load(folder, name), options)
    drawn = draw(plan, plan.sources.sources[0], options, method_class(method).axes.names)
    return {digest(pair.document) for pair in drawn.pairs}, drawn.held_out
