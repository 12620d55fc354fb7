"""Whatever requests the harness's own ``hf`` answers are answered, and as it answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from conftest import WORDS
from sadi_lmeval.errors import UserError
from sadi_lmeval.model import ManyArmsModel, SteeredModel, model_class

Score = tuple[float, bool]


def instances(*texts: tuple[str, str], task: str | None = None) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, text, 0, (task, number, 1))
        for number, text in enumerate(texts)
    ]


def harness_model(folder: Path, **arguments: Any) -> HFLM:
    return HFLM(str(folder), device="cpu", **arguments)


def unsteered(folder: Path, **arguments: Any) -> SteeredModel:
    return model_class("sadi")(str(folder), device="cpu", method="none", **arguments)


def assert_alike(found: list[Score], expected: list[Score]) -> None:
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


TWO_KINDS = """
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class Both(ConfigurableTask):
    def __init__(self, config):
        super().__init__(config={"task": config["task"], **config["settings"]})

    def construct_requests(self, doc, ctx, chat_template=None, apply_chat_template=False, **other):
        asked = (ctx, {"until": ["</s>"], "max_gen_toks": 4}), (ctx, " not cold")
        kinds = ("generate_until", "loglikelihood")
        return [Instance(kind, doc, a, 0, **other) for kind, a in zip(kinds, asked)]

    def process_results(self, doc, results):
        return {"acc": results[1][0]}

    def higher_is_better(self):
        return {"acc": True}

    def aggregation(self):
        return {"acc": lambda found: sum(found) / len(found)}
"""


@pytest.fixture(scope="module")
def odd_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks over a few rows: ``odd_empty`` has an empty choice in some.

    ``odd_text`` generates, ``odd_both`` also asks for a log-likelihood, as squadv2 does.
    """
    folder = tmp_path_factory.mktemp("odd")
    rows = [
        {
            "question": f"the {WORDS[number]} is {WORDS[number + 1]} and",
            "choices": ["", "red", "old"] if number % 3 else ["big", "small", "new"],
            "label": number % 2 + 1,
            "answer": "" if number % 4 == 0 else f"not {WORDS[number + 2]}",
        }
        for number in range(63)
    ]
    for split, part in (("train", rows[:51]), ("validation", rows[51:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(lines)
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {n: str(folder / f"{n}.jsonl") for n in ("train", "validation")}
        },
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    acc = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    match = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
              "doc_to_target": "label", "metric_list": acc}  # fmt: skip
    text = {"output_type": "generate_until", "doc_to_target": "answer", "metric_list": match,
            "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 4}}  # fmt: skip
    (folder / "odd.py").write_text(TWO_KINDS)
    both = {**base, "output_type": "generate_until", "doc_to_target": "answer"}
    (folder / "odd_both.yaml").write_text(
        "task: odd_both\nclass: !function odd.Both\n" + yaml.safe_dump({"settings": both})
    )
    for name, own in (("odd_empty", choice), ("odd_text", text)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **base, **own}))
    return folder


MODELS: dict[str, Any] = {
    "method=none": unsteered,
    "delta=0": lambda folder: model_class("sadi")(str(folder), device="cpu", delta=0),
    "an arm of a sweep": lambda folder: ManyArmsModel(
        str(folder), arm_names=["none", "sadi-head"], device="cpu"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_unsteered_model_answers_requests_of_no_task(name: str, model_folder: Path) -> None:
    model, texts = MODELS[name](model_folder), [("the cat", " is red"), ("a dog", " eats")]
    expected = harness_model(model_folder).loglikelihood(instances(*texts))
    assert_alike(model.loglikelihood(instances(*texts)), expected)
    assert_alike(model.loglikelihood(instances(*texts, task="no task of anybody's")), expected)
    prompts = [
        Instance("generate_until", {}, (text, {"until": ["</s>"], "max_gen_toks": 3}), 0)
        for text, _ in texts
    ]
    assert model.generate_until(prompts) == harness_model(model_folder).generate_until(prompts)


def test_a_steered_model_says_that_a_request_names_no_task(model_folder: Path) -> None:
    model = model_class("sadi")(str(model_folder), device="cpu", top_k=2, delta=3)
    with pytest.raises(UserError, match="names no task, so there are no pairs"):
        model.loglikelihood(instances(("the cat", " is red")))


def test_an_empty_continuation_has_a_log_likelihood_of_zero_as_with_hf(model_folder: Path) -> None:
    """Which ``hf`` gives where another one of the same prompt has one token."""
    requests = instances(("the cat is", ""), ("the cat is", " red"), ("the dog", " is old"))
    expected = harness_model(model_folder).loglikelihood(requests)
    assert expected[0] == (0.0, True)
    assert_alike(unsteered(model_folder).loglikelihood(requests), expected)


@pytest.fixture
def task_manager(odd_tasks: Path) -> TaskManager:
    """What ``evaluate`` knows here."""
    return TaskManager(include_path=str(odd_tasks), include_defaults=False)


@pytest.mark.parametrize("arguments", [{"top_k": 3, "delta": 4}, {}], ids=["given", "chosen"])
def test_empty_choices_are_scored_and_tuned_on(evaluate: Any, arguments: dict[str, Any]) -> None:
    samples = evaluate("odd_empty", n_pairs=6, **arguments)["samples"]["odd_empty"]
    responses = [r[0] for sample in samples for r in sample["resps"]]
    texts = [text for sample in samples for text in sample["arguments"]]
    empty = [r for r, text in zip(responses, texts, strict=True) if not text[1].strip()]
    assert (len(responses), len(empty)) == (30, 6)
    assert {(float(r[0]), str(r[1])) for r in empty} == {(0.0, "True")}


def test_a_continuation_as_long_as_the_model_is_scored_and_a_longer_one_refused(
    model_folder: Path,
) -> None:
    """``hf`` stops at an assertion; here nothing is scored before it is said."""
    ours, theirs = (make(model_folder, max_length=6) for make in (unsteered, harness_model))
    fits = instances(("the cat dog", " one two three four five six"), ("the cat", " is"))
    assert_alike(ours.loglikelihood(fits), theirs.loglikelihood(fits))
    longer = instances(("the cat", " is"), ("the", " one two three four five six seven"), task="t")
    with pytest.raises(AssertionError):
        theirs.loglikelihood(longer)
    with pytest.raises(UserError, match=r"task t, document 1.* 7 tokens, and max_length is 6"):
        ours.loglikelihood(longer)


def test_of_a_target_longer_than_the_model_its_beginning_is_tuned_on(model_folder: Path) -> None:
    """Where text is generated, its length is not the target's."""
    model = unsteered(model_folder, max_length=6)
    found = model.continuation("the cat dog", " one two three four five six seven")
    assert found.context == tuple(model.tok_encode("dog"))
    assert found.tokens == tuple(model.tok_encode("one two three four five six"))


@pytest.mark.parametrize("arguments", [{"method": "none"}, {"top_k": 3, "delta": 4}, {}])
@pytest.mark.parametrize("rows", ["auto", 4])
def test_a_task_that_asks_for_texts_and_log_likelihoods_gets_both(
    evaluate: Any, rows: Any, arguments: dict[str, Any]
) -> None:
    found = evaluate("odd_both", n_pairs=6, settings={"batch_size": rows}, **arguments)
    samples = found["samples"]["odd_both"]
    assert len(samples) == 10
    if "method" in arguments:
        plain = evaluate("odd_both", model="hf", settings={"batch_size": 4})["samples"]["odd_both"]
        for ours, theirs in zip(samples, plain, strict=True):
            assert ours["resps"][0] == theirs["resps"][0]
            assert ours["acc"] == pytest.approx(theirs["acc"], abs=1e-4)
