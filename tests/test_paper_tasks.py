"""The paper's tasks: prompts and labels, ``acc`` and ``em``, MC3, and the groups' averages."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest
import yaml

from helpers.stand_ins import (
    HARNESS,
    SST5,
    XCOPA,
    XNLI,
    XSTORYCLOZE,
    Row,
    Scripted,
    Suite,
    data_sets,
    likelihood,
    subjects_of_the_harness,
    the_suite,
    write_classifier,
)
from sadi_lmeval.folders import task_configs

DISCIPLINES = ["humanities", "social_sciences", "stem", "other"]


class Shape(NamedTuple):
    """A task as it is specified.

    Attributes:
        data: repository, configuration and split that is scored.
        prompt: with a row's columns; a function of the row where these are not enough.
        choices: the answers.
        right: the index of the right one by the raw row.
    """

    data: tuple[str, str, str]
    prompt: str | Callable[[Row], str]
    choices: list[str]
    right: Callable[[Row], int]


def label(row: Row) -> int:
    return int(row["label"])


LETTERED = Shape(
    ("cais/mmlu", "all", "test"),
    lambda row: "\n".join(
        [
            f"Question: {row['question']}",
            *(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)),
            "Answer:",
        ]
    ),
    list("ABCD"),
    lambda row: int(row["answer"]),
)
SHAPES = {
    "sadi_copa": Shape(
        ("aps/super_glue", "copa", "validation"),
        "Premise: {premise}\nWhat is the most likely {question} of this?\n"
        "A. {choice1}\nB. {choice2}\nAnswer:",
        ["A", "B"],
        label,
    ),
    "sadi_storycloze": Shape(
        ("LSDSem/story_cloze", "2016", "test"),
        "Story: {input_sentence_1} {input_sentence_2} {input_sentence_3} {input_sentence_4}\n"
        "Which sentence ends the story?\nA. {sentence_quiz1}\nB. {sentence_quiz2}\nAnswer:",
        ["A", "B"],
        lambda row: row["answer_right_ending"] - 1,
    ),
    "sadi_xnli": Shape(
        ("facebook/xnli", "en", "validation"),
        "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the premise entail the hypothesis, "
        "contradict it, or neither (neutral)?\nAnswer:",
        ["entailment", "neutral", "contradiction"],
        label,
    ),
    "sadi_mmlu": LETTERED,
    **{f"sadi_mmlu_{discipline}": LETTERED for discipline in DISCIPLINES},
    "sadi_sst2": Shape(
        ("nyu-mll/glue", "sst2", "validation"),
        lambda row: (
            f"Review: {row['sentence'].strip()}\n"
            "Is the sentiment of this review positive or negative?\nAnswer:"
        ),
        ["negative", "positive"],
        label,
    ),
    "sadi_sst5": Shape(
        ("SetFit/sst5", "default", "test"),
        "Review: {text}\nIs the sentiment of this review very negative, negative, neutral, "
        "positive or very positive?\nAnswer:",
        SST5,
        label,
    ),
    "sadi_boolq": Shape(
        ("aps/super_glue", "boolq", "validation"),
        "Passage: {passage}\nQuestion: {question}? Yes or no?\nAnswer:",
        ["no", "yes"],
        label,
    ),
    "sadi_winogrande": Shape(
        ("allenai/winogrande", "winogrande_xl", "validation"),
        "Sentence: {sentence}\nWhat does the blank (_) stand for?\n"
        "A. {option1}\nB. {option2}\nAnswer:",
        ["A", "B"],
        lambda row: ["1", "2"].index(row["answer"]),
    ),
}
PAPER = [
    *("sadi_copa", "sadi_storycloze", "sadi_xnli", "sadi_mmlu", "sadi_sst2", "sadi_sst5"),
    *("sadi_boolq", "sadi_winogrande"),
]
TRUTHFUL = ["truthfulqa_mc1", "truthfulqa_mc2", "sadi_truthfulqa_mc3"]
EVERY = pytest.mark.parametrize("name", SHAPES)


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return the_suite(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def paper(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the whole group with a model whose log-likelihoods are known."""
    folder = tmp_path_factory.mktemp("judge")
    judge = write_classifier(folder, {"benign": -4.0, "toxic": 4.0})
    manager = suite.manager_with({"toxicity_classifier": str(judge)})
    model = Scripted(lambda task, document: "rude")
    return suite.evaluate(model, "sadi_paper", task_manager=manager)


@pytest.fixture(scope="module")
def disciplines(suite: Suite) -> dict[str, Any]:
    return suite.evaluate(Scripted(), "sadi_mmlu_disciplines")


@pytest.fixture
def results(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(
        "disciplines" if name.removeprefix("sadi_mmlu_") in DISCIPLINES else "paper"
    )
    return found


def scored_rows(name: str) -> list[Row]:
    """The raw rows that a task scores, in their order."""
    path, config, split = SHAPES[name].data
    rows = data_sets()[path, config][split]
    discipline = name.removeprefix("sadi_mmlu_")
    if discipline not in DISCIPLINES:
        return rows
    return [row for row in rows if subjects_of_the_harness()[row["subject"]] == discipline]


def expected_prompt(name: str, row: Row) -> str:
    prompt = SHAPES[name].prompt
    return prompt.format(**row) if isinstance(prompt, str) else prompt(row)


def samples(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return sorted(results["samples"][name], key=lambda sample: sample["doc_id"])


# ------------------------------------------------------------------ prompts, labels, acc and em


@EVERY
def test_prompts_and_answers_are_those_that_are_specified(
    results: dict[str, Any], name: str
) -> None:
    rows, found = scored_rows(name), samples(results, name)
    assert len(found) == len(rows) > 0
    for row, sample in zip(rows, found, strict=True):
        prompt = expected_prompt(name, row)
        expected = [(prompt, f" {choice}") for choice in SHAPES[name].choices]
        assert [tuple(arguments) for arguments in sample["arguments"]] == expected


@EVERY
def test_acc_and_em_are_what_a_hand_computation_gives(results: dict[str, Any], name: str) -> None:
    shape = SHAPES[name]
    acc, em = [], []
    for row, sample in zip(scored_rows(name), samples(results, name), strict=True):
        said = [likelihood(expected_prompt(name, row), f" {choice}") for choice in shape.choices]
        values = [value for value, _ in said]
        right = shape.right(row)
        assert len(set(values)) == len(values)
        acc.append(values[right] == max(values))
        em.append(said[right][1])
        assert (sample["acc"], sample["em"]) == (acc[-1], em[-1])
    assert results["results"][name]["acc,none"] == pytest.approx(mean(acc))
    assert results["results"][name]["em,none"] == pytest.approx(mean(em))
    assert results["higher_is_better"][name] == {"acc": True, "em": True}


def test_acc_and_em_tell_right_from_wrong_in_every_task_together(paper: dict[str, Any]) -> None:
    """What the hand computation rests on: both values of both metrics occur."""
    seen = {(s["acc"], s["em"]) for name in PAPER for s in samples(paper, name)}
    assert seen == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}


@pytest.mark.parametrize(
    ("results", "acc", "em"),
    [
        ([(-1.0, True), (-2.0, False)], 0, 0),
        ([(-2.0, False), (-1.0, True)], 1, 1),
        ([(-2.0, False), (-1.0, False)], 1, 0),  # likelier than the other, but not said
        ([(-1.0, False), (-2.0, True)], 0, 1),  # several tokens, each the likeliest
        ([(-1.0, True), (-1.0, True)], 0, 1),  # of two alike the first counts
    ],
)
def test_em_looks_at_the_right_answer_alone_and_acc_at_all(
    suite: Suite, results: list[tuple[float, bool]], acc: float, em: float
) -> None:
    rows: dict[str, Row] = {
        "sadi_boolq": {"label": 1},
        "sadi_winogrande": {"answer": "2", "option1": "a", "option2": "b"},
        "sadi_storycloze": {"answer_right_ending": 2},
        "sadi_mmlu": {"answer": 1},
    }
    for name, row in rows.items():
        assert suite.task(name).task.process_results(row, results) == {"acc": acc, "em": em}


# ------------------------------------------------------------------ MMLU's disciplines


def test_the_disciplines_have_the_57_subjects_of_the_harness_each_once() -> None:
    file = task_configs() / "sadi_paper" / "disciplines.py"
    spec = importlib.util.spec_from_file_location("disciplines_of_mmlu", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    every = [subject for subjects in module.SUBJECTS.values() for subject in subjects]
    assert len(every) == len(set(every)) == 57
    found = {s: discipline for discipline, subjects in module.SUBJECTS.items() for s in subjects}
    assert found == subjects_of_the_harness()


def test_the_disciplines_split_the_rows_of_mmlu_without_overlap(suite: Suite) -> None:
    every = [row["question"] for row in suite.task("sadi_mmlu").evaluated()]
    parts = [
        row["question"]
        for discipline in DISCIPLINES
        for row in suite.task(f"sadi_mmlu_{discipline}").evaluated()
    ]
    assert len(set(every)) == len(every) == 2 * 57
    assert sorted(parts) == sorted(every)


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_few_shot_examples_and_pairs_of_a_discipline_are_of_its_subjects(
    suite: Suite, discipline: str
) -> None:
    task = suite.task(f"sadi_mmlu_{discipline}")
    for documents in (task.few_shot_documents(), *map(task.documents, ("dev", "validation"))):
        subjects = {row["subject"] for row in documents}
        assert subjects
        assert {subjects_of_the_harness()[subject] for subject in subjects} == {discipline}


# ------------------------------------------------------------------ TruthfulQA's MC3


@pytest.mark.parametrize(
    ("labels", "values", "share"),
    [
        ([1, 1, 1, 0, 0], [-1.0, -3.0, -5.0, -4.0, -6.0], 2 / 3),
        ([1, 1, 0], [-3.0, -2.0, -1.0], 0),
        ([1, 1, 0, 0], [-3.0, -2.0, -4.0, -5.0], 1),
        ([1, 0], [-2.0, -2.0], 0),  # as likely is not likelier
        ([0, 1, 0, 1], [-4.0, -1.0, -2.0, -3.0], 1 / 2),  # in whatever order they stand
    ],
)
def test_mc3_is_the_share_of_true_answers_above_every_false_one(
    suite: Suite, labels: list[int], values: list[float], share: float
) -> None:
    document = {"mc2_targets": {"labels": labels, "choices": ["x"] * len(labels)}}
    found = suite.task("sadi_truthfulqa_mc3").task.process_results(
        document, [(value, False) for value in values]
    )
    assert found == {"acc": pytest.approx(share)}


def test_mc3_of_the_stand_ins_is_what_a_hand_computation_gives(
    suite: Suite, paper: dict[str, Any]
) -> None:
    rows = data_sets()["truthfulqa/truthful_qa", "multiple_choice"]["validation"]
    shares = []
    for row, sample in zip(rows, samples(paper, "sadi_truthfulqa_mc3"), strict=True):
        prompt = suite.task("truthfulqa_mc1").task.doc_to_text(row)
        choices, labels = row["mc2_targets"]["choices"], row["mc2_targets"]["labels"]
        said = [likelihood(prompt, f" {choice}")[0] for choice in choices]
        false = [value for value, is_true in zip(said, labels, strict=True) if not is_true]
        true = [value for value, is_true in zip(said, labels, strict=True) if is_true]
        shares.append(len([value for value in true if all(value > f for f in false)]) / len(true))
        assert sample["acc"] == pytest.approx(shares[-1])
    assert 0 < mean(shares) < 1
    found = paper["results"]["sadi_truthfulqa_mc3"]["acc,none"]
    assert found == pytest.approx(mean(shares))


def test_mc3_asks_as_the_harness_s_mc1_does(paper: dict[str, Any]) -> None:
    ours, theirs = (samples(paper, name) for name in ("sadi_truthfulqa_mc3", "truthfulqa_mc1"))
    for mc3, mc1 in zip(ours, theirs, strict=True):
        assert mc3["doc"]["question"] == mc1["doc"]["question"]
        prompts = {prompt for sample in (mc3, mc1) for prompt, _ in sample["arguments"]}
        assert len(prompts) == 1
        [prompt] = prompts
        assert prompt.endswith(f"\n\nQ: {mc3['doc']['question']}\nA:")


# ------------------------------------------------------------------ the groups


@functools.cache
def group(name: str) -> dict[str, Any]:
    [file] = [path for path in task_configs().rglob("*.yaml") if path.stem == name]
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", ["sadi_paper", "sadi_math", "sadi_multilingual"])
def test_every_member_of_a_group_is_a_task_or_group_that_the_harness_knows(
    suite: Suite, name: str
) -> None:
    assert name in suite.manager.all_groups
    assert group(name)["group"] == name
    assert set(group(name)["task"]) <= {*suite.manager.all_subtasks, *suite.manager.all_groups}


def test_the_paper_s_group_has_its_eleven_benchmarks_and_three_scores_of_truthfulqa() -> None:
    assert group("sadi_paper")["task"] == [*PAPER, "triviaqa", "sadi_toxigen", *TRUTHFUL]


def test_the_paper_s_averages_are_over_the_tasks_that_have_the_metric(
    paper: dict[str, Any],
) -> None:
    scores = paper["results"]
    assert set(scores) >= {*PAPER, *TRUTHFUL, "triviaqa", "sadi_toxigen"}
    average = paper["groups"]["sadi_paper"]
    with_acc, with_em = [*PAPER, *TRUTHFUL], PAPER
    assert average["acc,none"] == pytest.approx(mean(scores[n]["acc,none"] for n in with_acc))
    assert average["em,none"] == pytest.approx(mean(scores[n]["em,none"] for n in with_em))
    assert len({scores[name]["acc,none"] for name in with_acc}) > 4
    assert "acc,none" not in scores["triviaqa"]
    assert "acc,none" not in scores["sadi_toxigen"]
    assert scores["sadi_toxigen"]["toxicity,none"] == 1


def test_the_multilingual_average_is_over_every_language_alike(suite: Suite) -> None:
    """37 tasks, of two documents each and of one more in a language: sizes do not count."""
    names = [f"xcopa_{x}" for x in XCOPA] + [f"xnli_{x}" for x in XNLI]
    names += [f"xstorycloze_{x}" for x in XSTORYCLOZE]
    chosen = {name: [0, 1] for name in names} | {"xcopa_it": [0, 1, 2], "xnli_de": [0]}
    found = suite.evaluate(Scripted(), "sadi_multilingual", samples=chosen)
    scores = {name: found["results"][name]["acc,none"] for name in names}
    assert len(set(scores.values())) > 2
    average = found["groups"]["sadi_multilingual"]["acc,none"]
    assert average == pytest.approx(mean(scores.values()))
    assert found["n-samples"]["xcopa_it"]["effective"] == 3
    for folder, languages in (("xcopa", XCOPA), ("xnli", XNLI), ("xstorycloze", XSTORYCLOZE)):
        content = yaml.safe_load((HARNESS / folder / f"_{folder}.yaml").read_text())
        assert content["task"] == [f"{folder}_{language}" for language in languages]


def test_a_steered_model_is_scored_on_the_paper_s_tasks_by_their_recipes(
    suite: Suite, model_folder: Path, tmp_path: Path
) -> None:
    names = ["sadi_copa", "sadi_sst5", "sadi_mmlu_stem"]
    settings = {"batch_size": 8, "device": "cpu", "limit": 3}
    model = {"pretrained": str(model_folder)}
    steer = {**model, "cache_dir": str(tmp_path), "top_k": 3, "delta": 20}
    plain = suite.evaluate("hf", *names, model_args=model, **settings)
    steered = suite.evaluate("hf-sadi", *names, model_args=steer, **settings)
    recipes = {name: said["recipe"] for name, said in steered["config"]["sadi"].items()}
    assert recipes == {
        "sadi_copa": "right_wrong",
        "sadi_sst5": "opposite_sentiment",
        "sadi_mmlu_stem": "right_wrong",
    }
    for name in names:
        one, other = (
            [response[0][0] for sample in samples(run, name) for response in sample["resps"]]
            for run in (plain, steered)
        )
        assert max(abs(float(a) - float(b)) for a, b in zip(one, other, strict=True)) > 0.01
        assert {"acc,none", "em,none"} <= set(steered["results"][name])
