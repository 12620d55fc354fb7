"""Tiny models, a tokenizer and harness tasks made on the spot: nothing is downloaded."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it

# isort: split

import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

pytest.register_assert_rewrite("helpers")
# The same examples in every run, however slow the machine is.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")

# isort: split

from helpers.forms import LETTERS  # noqa: E402
from helpers.models import CHAT_TEMPLATE, tiny_llama  # noqa: E402
from helpers.once import once  # noqa: E402
from helpers.results import with_paths  # noqa: E402

WORDS = """the cat dog bird fish stone tree river house road sky sun moon star rain snow wind fire
red blue green black white big small old new fast slow hot cold is was sees eats likes wants makes
finds yes no true false right wrong question answer which what who where it they and or not very
one two three four five six seven eight nine ten a an in on under over with by from to of""".split()


@pytest.fixture(autouse=True)
def without_description_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness asks torch for one in every run, which takes longer than a tiny run itself."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word (and a sign), with <s>, </s> and a chat template."""
    alphabet = [chr(c) for c in range(33, 127)]
    vocabulary = {
        w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(WORDS + alphabet)])
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A tiny Llama and its tokenizer as an ordinary Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Harness tasks over made-up rows, for ``--include_path``.

    tiny_choice (train, validation), tiny_folds (validation only), tiny_input (options stand in the
    context), tiny_empty (empty context), tiny_text (generate_until), tiny_sum (generate_until with
    numbers), tiny_word (loglikelihood), tiny_rolling (loglikelihood_rolling); letters_choice and
    letters_folds: the same with letters as choices.
    """
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)

    def phrase(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    def row(index: int) -> dict[str, Any]:
        label = rng.randrange(3)
        return {
            "question": f"{phrase(3, 14)} {' '.join(str(index))}",
            "choices": [phrase(1, 4) for _ in range(3)],
            "label": label,
            "answer": phrase(1, 3),
            "working": f"{phrase(2, 5)} #### {rng.randint(10, 99)}",
        }

    rows = [row(i) for i in range(120)]
    splits = {"train": rows[:70], "validation": rows[70:]}
    for name, part in splits.items():
        lines = "\n".join(json.dumps(r) for r in part)
        (folder / f"{name}.jsonl").write_text(lines + "\n", encoding="utf-8")

    def write(name: str, **config: Any) -> None:
        base: dict[str, Any] = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {n: str(folder / f"{n}.jsonl") for n in splits}},
            "training_split": "train",
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}} answer :",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        merged = {k: v for k, v in {**base, **config}.items() if v is not None}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(merged), encoding="utf-8")

    match = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    write("tiny_choice")
    write("tiny_folds", training_split=None)
    write("tiny_same_split", training_split="validation")
    write("tiny_input", doc_to_text="label", doc_to_choice="{{choices}}", doc_to_target="answer")
    write("tiny_empty", doc_to_text="")
    write("letters_choice", **LETTERS.config)
    write("letters_folds", training_split=None, **LETTERS.config)
    generation: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "metric_list": match,
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 6, "do_sample": False},
    }
    write("tiny_text", doc_to_target="answer", **generation)
    write("tiny_sum", doc_to_target="working", **generation)
    write(
        "tiny_word",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target=" {{answer}}",
    )
    write(
        "tiny_rolling",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_choice=None,
        doc_to_target="{{question}}",
        metric_list=[
            {
                "metric": "word_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            }
        ],
    )
    return folder


LmEval = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def lm_eval(tmp_path: Path, model_folder: Path, tasks_folder: Path) -> LmEval:
    """Run the plain ``lm_eval`` command on the tiny model: ``lm_eval("--tasks", …, top_k=2)``."""

    def run(
        *options: str, model: str = "hf-sadi", **arguments: Any
    ) -> subprocess.CompletedProcess[str]:
        arguments = {"pretrained": model_folder, **arguments}
        if model != "hf":
            arguments = {"cache_dir": tmp_path / "cache", "n_pairs": 12, **arguments}
        text = ",".join(f"{k}={v}" for k, v in arguments.items() if v is not None)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path.parent / "datasets"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", text]
        command += ["--device", "cpu", "--include_path", str(tasks_folder), *options]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
        )

    return run


@pytest.fixture(scope="session")
def task_manager(tasks_folder: Path) -> Any:
    """The harness's task manager with the tiny tasks alone: indexing its own takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks_folder), include_defaults=False)


@pytest.fixture(scope="session")
def checked_sites() -> dict[tuple[str, ...], None]:
    """Models that were found to have the sites of a run, by configuration and place."""
    return {}


@pytest.fixture(autouse=True)
def without_checking_the_same_model_again(
    monkeypatch: pytest.MonkeyPatch, checked_sites: dict[tuple[str, ...], None]
) -> None:
    """Before a model is loaded its modules are built without weights, and tried: every time, which
    takes a quarter of a tiny run. What was refused is tried again."""
    if "sadi_lmeval.model" not in sys.modules:
        return
    from sadi_lmeval.model import SteeredModel

    check = SteeredModel._check_sites

    def check_once(model: SteeredModel, config: Any) -> None:
        places = sorted({arm.method.place for arm in model.arms.values() if arm.method is not None})
        key = (type(config).__name__, config.to_json_string(use_diff=False), repr(places))
        if key not in checked_sites:
            check(model, config)
            checked_sites[key] = None

    monkeypatch.setattr(SteeredModel, "_check_sites", check_once)


Evaluate = Callable[..., dict[str, Any]]


def _evaluate(cache: Path, model_folder: Path, task_manager: Any) -> Evaluate:
    import lm_eval

    def run(
        *tasks: str,
        model: str = "hf-sadi",
        limit: int | None = 10,
        settings: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        ours = {"cache_dir": str(cache), "n_pairs": 12} if model.startswith("hf-") else {}
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            model_args={"pretrained": str(model_folder), **ours, **arguments},
            tasks=list(tasks),
            task_manager=task_manager,
            device="cpu",
            limit=limit,
            bootstrap_iters=0,
            **{"batch_size": 4, **(settings or {})},
        )
        with_paths(results, Path({**ours, **arguments}.get("cache_dir", "")))
        return results

    return run


@pytest.fixture
def evaluate(tmp_path: Path, model_folder: Path, task_manager: Any) -> Evaluate:
    """``lm_eval.simple_evaluate`` on the tiny model: ``evaluate("tiny_choice", top_k=2)``."""
    return _evaluate(tmp_path / "cache", model_folder, task_manager)


@pytest.fixture(scope="session")
def evaluate_once(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, task_manager: Any
) -> Evaluate:
    """The same, where no test asks twice: several may look at the results, and change nothing."""
    return once(_evaluate(tmp_path_factory.mktemp("evaluated"), model_folder, task_manager))


@pytest.fixture
def run_task(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """As ``evaluate``, on a task of our own in ``tmp_path``."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def run(task: str, model: str, batch_size: Any = 4, **arguments: Any) -> dict[str, Any]:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            model_args={
                "pretrained": str(model_folder),
                "cache_dir": str(tmp_path / "cache"),
                **arguments,
            },
            tasks=[task],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            device="cpu",
            batch_size=batch_size,
            bootstrap_iters=0,
        )
        with_paths(results, tmp_path / "cache")
        return results

    return run


@pytest.fixture(scope="session")
def harness_model(model_folder: Path) -> LlamaForCausalLM:
    """The model of ``evaluate``, for the loops."""
    return LlamaForCausalLM.from_pretrained(model_folder).eval()


Measured = Callable[..., Any]


@pytest.fixture(scope="session")
def measured(
    tasks_folder: Path, harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Measured:
    """What a method's equations measure in plain passes over a task's pairs:
    ``measured("iti", "tiny_choice")``; once.
    """
    from helpers.equations import EQUATIONS
    from helpers.loops import (
        activations_of_pairs,
        answered_prompts,
        drawn_pairs,
        texts_of_pairs,
    )
    from sadi_lmeval.methods.registry import method_class

    activations = once(
        lambda texts, where, length: activations_of_pairs(
            harness_model, tokenizer, list(texts), where, length
        )
    )

    def find(
        method: str,
        task: str,
        mask: int = 0,
        max_length: int = 256,
        folder: Path = tasks_folder,
        **given: Any,
    ) -> Any:
        equations, models = EQUATIONS[method], (harness_model, tokenizer)
        where, drawn = equations.where(given), (folder, task, method, mask)
        if method_class(method).fitted_on == "prompts":
            documents = [pair.document for pair in drawn_pairs(*drawn, **given)]
            read = answered_prompts(*models, documents, equations.form, where, max_length)
            return equations.measure(*read, given)
        texts = tuple(texts_of_pairs(*drawn, **given))
        right, wrong = activations(texts, where, max_length)
        return equations.measure(right, wrong, given)

    return once(find)


_LONGEST = """test_processes test_killed test_hub test_compare test_every_architecture test_grid
test_suite test_sweep test_each_method test_registration test_architectures test_commands
test_report test_model test_bad_input""".split()
"""Files that take long: begun first, so that no process is left with one at the end."""


def pytest_collection_finish() -> None:
    """What the imports left is no garbage, and need not be looked through for some."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {stem: place for place, stem in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
