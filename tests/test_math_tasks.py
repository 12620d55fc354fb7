"""Tasks whose answer is read out of generated text: a right one scores 1, a wrong one 0."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from rouge_score import scoring

from helpers.stand_ins import Row, Scripted, Suite, data_sets, evaluate, hub_at, the_suite
from sadi_lmeval.folders import task_configs

HUB = Path(__file__).parents[2] / "shared" / "hub"

REFERENCES: dict[str, Callable[[Row], str]] = {
    "sadi_gsm8k": lambda row: str(row["answer"]),
    "gsm8k": lambda row: str(row["answer"]),
    "sadi_svamp": lambda row: str(row["Answer"]),
    "hendrycks_math500": lambda row: str(row["answer"]),
    "triviaqa": lambda row: str(row["answer"]["value"]),
    "nq_open": lambda row: str(row["answer"][0]),
    "truthfulqa_gen": lambda row: str(row["best_answer"]),
}
"""A document's own answer as text."""
DATA = {
    "sadi_gsm8k": ("openai/gsm8k", "main", "test"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "sadi_svamp": ("ChilleD/SVAMP", "default", "test"),
    "hendrycks_math500": ("HuggingFaceH4/MATH-500", "default", "test"),
    "triviaqa": ("mandarjoshi/trivia_qa", "rc.nocontext", "validation"),
    "nq_open": ("google-research-datasets/nq_open", "nq_open", "validation"),
    "truthfulqa_gen": ("truthfulqa/truthful_qa", "generation", "validation"),
}
METRICS = {
    "gsm8k": ["exact_match,strict-match", "exact_match,flexible-extract"],
    "triviaqa": ["exact_match,remove_whitespace"],
    "nq_open": ["exact_match,remove_whitespace"],
    "truthfulqa_gen": ["bleu_acc,none"],
}
NUMBERS = ["sadi_gsm8k", "gsm8k", "sadi_svamp", "hendrycks_math500"]
MATH = ["sadi_gsm8k", "hendrycks_math500", "sadi_svamp"]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return the_suite(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def last_number() -> Callable[[str], Decimal | None]:
    file = task_configs() / "sadi_math" / "last_number.py"
    spec = importlib.util.spec_from_file_location("last_number", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[str], Decimal | None] = module.last_number
    return found


@pytest.fixture(scope="module", autouse=True)
def quick_rouge() -> Iterator[None]:
    """The harness resamples each single score of ROUGE a thousand times; nothing here needs it."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(scoring.BootstrapAggregator, n_samples=2)
        patch.setattr(scoring, "BootstrapAggregator", quick)
        yield


@pytest.fixture(scope="module")
def right(suite: Suite) -> dict[str, Any]:
    """Results of a model that always gives the document's own answer."""
    model = Scripted(lambda task, document: REFERENCES[task](document))
    return suite.evaluate(model, *REFERENCES, num_fewshot=0)


def with_a_wrong_number(text: str) -> str:
    """Every number of a text is one higher in its last digit, 9 becoming 0."""
    return re.sub(r"\d(?!\d)", lambda found: str((int(found.group()) + 1) % 10), text)


def scores(results: dict[str, Any], name: str) -> list[float]:
    return [results["results"][name][metric] for metric in METRICS.get(name, ["exact_match,none"])]


# ------------------------------------------------------------------ right and wrong answers


@pytest.mark.parametrize("name", REFERENCES)
def test_a_document_s_own_answer_counts_as_right_in_every_row(
    right: dict[str, Any], name: str
) -> None:
    assert scores(right, name) == [1.0] * len(METRICS.get(name, [""]))
    repository, config, split = DATA[name]
    count = right["n-samples"][name]["effective"]
    assert count == len(data_sets()[repository, config][split])


@pytest.mark.parametrize("name", NUMBERS)
def test_a_wrong_number_counts_as_wrong_in_every_row(suite: Suite, name: str) -> None:
    def says(task: str, document: Row) -> str:
        answer = REFERENCES[task](document)
        return "odd" if "even" in answer else with_a_wrong_number(answer)

    found = suite.evaluate(Scripted(says), name, num_fewshot=0)
    assert scores(found, name) == [0.0] * len(scores(found, name))


@pytest.mark.parametrize("name", ["triviaqa", "nq_open"])
def test_every_alias_counts_and_another_place_does_not(suite: Suite, name: str) -> None:
    aliases = {
        "triviaqa": lambda row: row["answer"]["aliases"],
        "nq_open": lambda row: row["answer"],
    }
    for place in range(3):
        model = Scripted(lambda task, document, at=place: f" {aliases[task](document)[at]} ")  # type: ignore[misc]
        assert scores(suite.evaluate(model, name), name) == [1.0]
    assert scores(suite.evaluate(Scripted(lambda *_: "Nowhere"), name), name) == [0.0]


def test_a_false_answer_to_truthfulqa_is_no_right_one(suite: Suite) -> None:
    model = Scripted(lambda task, document: str(document["incorrect_answers"][0]))
    assert scores(suite.evaluate(model, "truthfulqa_gen"), "truthfulqa_gen") == [0.0]


@pytest.mark.parametrize("name", ["sadi_gsm8k", "sadi_svamp"])
@pytest.mark.parametrize(
    "sentence",
    [
        "It is {}.",
        "First 3 and then 4, so $ {}",
        "= {},\n",
        "The answer is **{}**",
        "{}.00 dollars",
        "#### {} nuts",
    ],
)
def test_the_last_number_counts_however_it_is_written(
    suite: Suite, name: str, sentence: str
) -> None:
    task = suite.task(name)
    for document in task.evaluated():
        text = REFERENCES[name](document).split("#### ")[-1]
        if "." in text and ".00" in sentence:
            text = text.partition(".")[0]
        shown = f"{float(text.replace(',', '')):,.10g}"
        for number in {text, shown, shown.replace(",", "")}:
            said = task.task.process_results(document, [sentence.format(number)])
            assert said == {"exact_match": 1.0}, (document, number)
        more = sentence.format(text) + " There were 77 before."
        assert task.task.process_results(document, [more]) == {"exact_match": 0.0}
        assert task.task.process_results(document, ["I do not know."]) == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 1,234.", "1234"),
        ("1,234,567", "1234567"),
        ("$18.50", "18.5"),
        ("it is -5 degrees", "-5"),
        (".5", "0.5"),
        ("either 1,2,3", "3"),  # a list, not one number
        ("on 3,14 or 12,345", "12345"),
        ("1, 2", "2"),
        ("7%", "7"),
        ("x2.", "2"),
    ],
)
def test_the_last_number_of_a_text_is_found(
    last_number: Callable[[str], Decimal | None], text: str, number: str
) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "-", ",", "...", "$"])
def test_a_text_without_a_number_has_none(
    last_number: Callable[[str], Decimal | None], text: str
) -> None:
    assert last_number(text) is None


# ------------------------------------------------------------------ SVAMP's worked answer


@pytest.mark.parametrize(
    ("equation", "answer", "expected"),
    [
        ("( 8.0 - 3.0 )", 5.0, "( 8 - 3 ) = 5"),
        ("( 8.0 - 3.0 )", "5.0", "( 8 - 3 ) = 5"),
        ("( 8.0 - 3.0 )", "5", "( 8 - 3 ) = 5"),
        ("( ( 10.0 + 20.0 ) * 2.5 )", "75.0", "( ( 10 + 20 ) * 2.5 ) = 75"),
        ("7.0", "7.0", "7 = 7"),
        ("( 10.05 - 0.05 )", 10.0, "( 10.05 - 0.05 ) = 10"),
        ("( 1234567.0 + 1.0 )", 1234568.0, "( 1234567 + 1 ) = 1234568"),
        ("( 0.1 + 0.2 )", 0.1 + 0.2, "( 0.1 + 0.2 ) = 0.3"),
    ],
)
def test_svamp_s_target_is_the_worked_equation_whatever_the_answer_s_type(
    suite: Suite, equation: str, answer: float | str, expected: str
) -> None:
    task = suite.task("sadi_svamp")
    document = {**task.evaluated()[0], "Equation": equation, "Answer": answer}
    assert task.task.doc_to_target(document) == expected
    assert task.task.process_results(document, [expected]) == {"exact_match": 1.0}


def test_the_word_problems_are_asked_alike(suite: Suite) -> None:
    for name in ("sadi_gsm8k", "sadi_svamp"):
        task = suite.task(name)
        for document in task.evaluated():
            body = " ".join(str(document.get("Body", "")).split())
            asked = str(document.get("question", document.get("Question"))).strip()
            question = f"{body} {asked}".strip()
            assert task.texts(document, 0) == [(f"Question: {question}\nAnswer:", "")]


# ------------------------------------------------------------------ the group's average


def test_the_average_of_the_math_tasks_does_not_weigh_by_size(suite: Suite) -> None:
    half: dict[str, Callable[[Row], bool]] = {
        "sadi_gsm8k": lambda document: len(document["question"]) % 2 == 0,
        "hendrycks_math500": lambda document: "even" not in document["answer"],
        "sadi_svamp": lambda document: True,
    }

    def some(task: str, document: Row) -> str:
        return REFERENCES[task](document) if half[task](document) else "no idea"

    found = suite.evaluate(Scripted(some), "sadi_math")
    single = {name: found["results"][name]["exact_match,none"] for name in MATH}
    assert 0 < single["hendrycks_math500"] < single["sadi_svamp"] == 1
    average = found["groups"]["sadi_math"]["exact_match,none"]
    assert average == pytest.approx(mean(single.values()))
    sizes = [found["n-samples"][name]["effective"] for name in MATH]
    weighted = sum(s * n for s, n in zip(single.values(), sizes, strict=True)) / sum(sizes)
    assert average != pytest.approx(weighted)


def test_a_steered_model_answers_the_math_tasks(
    suite: Suite, model_folder: Path, tmp_path: Path
) -> None:
    steer = {"pretrained": str(model_folder), "cache_dir": str(tmp_path), "top_k": 3, "delta": 4}
    found = suite.evaluate(
        "hf-sadi",
        "sadi_math",
        model_args=steer,
        gen_kwargs={"max_gen_toks": 5},
        limit=2,
        batch_size=4,
        device="cpu",
    )
    said = found["config"]["sadi"]
    recipes = {name: said[name]["recipe"] for name in MATH}
    assert recipes == {
        "sadi_gsm8k": "wrong_number",
        "hendrycks_math500": "wrong_number_worked",
        "sadi_svamp": "wrong_number",
    }
    assert [len(said[name]["fits"]) for name in MATH] == [1, 1, 1]
    scored = [found["results"][name]["exact_match,none"] for name in MATH]
    assert found["groups"]["sadi_math"]["exact_match,none"] == pytest.approx(mean(scored))


# ------------------------------------------------------------------ real rows


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[None]:
    if not HUB.is_dir():
        pytest.skip("no folder ../shared/hub with real rows")
    with hub_at(HUB, tmp_path):
        yield


@pytest.mark.parametrize("name", ["sadi_gsm8k", "gsm8k", "hendrycks_math500", "triviaqa"])
@pytest.mark.usefixtures("hub")
def test_the_own_answer_of_every_real_row_counts_as_right(suite: Suite, name: str) -> None:
    model = Scripted(lambda task, document: REFERENCES[task](document))
    found = evaluate(model, name, num_fewshot=0, task_manager=suite.manager)
    assert found["n-samples"][name]["effective"] >= 400
    missed = [
        (sample["target"], sample["filtered_resps"])
        for sample in found["samples"][name]
        if not sample[METRICS.get(name, ["exact_match"])[0].split(",")[0]]
    ]
    assert missed == []
    assert scores(found, name) == [1.0] * len(scores(found, name))
