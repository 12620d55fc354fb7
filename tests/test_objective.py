"""A document is judged by the harness's own metric, and by a margin where that is equal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateSyntaxError, UndefinedError
from lm_eval import utils as harness

from helpers.tasks import load, make_task
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.harness.run_tasks import note_tasks
from sadi_lmeval.options import Objective, RuleName
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.passes.scoring import Score
from sadi_lmeval.steering.objective import Judged, judge, resolved, resolved_rule

CHOICE = Recipe("right_wrong", "choice")
OTHER = Recipe("other_target", "other_target")
ROW: Document = {
    "question": "q",
    "choices": ["a", "a long one", "b"],
    "label": 1,
    "answer": "red",
}


def metric(name: str, higher_is_better: bool = True, aggregation: str = "mean") -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


def judged(
    task: RunTask,
    values: list[float],
    document: Document = ROW,
    recipe: Recipe = CHOICE,
    objective: Objective = "metric",
    lengths: list[int] | None = None,
    greedy: bool = False,
) -> Judged:
    scores: list[Score] = [(value, greedy) for value in values]
    return judge(task, recipe, document, scores, lengths or [1] * len(values), objective)


def word_task(folder: Path, *metrics: dict[str, Any]) -> RunTask:
    return make_task(
        folder,
        "word",
        {"validation": [ROW]},
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target=" {{answer}}",
        metric_list=list(metrics),
    )


# ------------------------------------------------------------------ the metric


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_input", "tiny_empty"])
def test_a_multiple_choice_document_is_judged_by_the_harness_s_accuracy(
    tasks_folder: Path, name: str
) -> None:
    task = load(tasks_folder, name)
    values = set()
    for i, document in enumerate(task.evaluated()):
        scores = [(-float((i * 7 + j * 5) % 11), False) for j in range(3)]
        found = judge(task, CHOICE, document, scores, [1, 1, 1], "metric")
        assert found.value == task.task.process_results(document, scores)["acc"]
        values.add(found.value)
    assert values == {0.0, 1.0}


def test_the_first_metric_that_the_task_lists_decides(tmp_path: Path) -> None:
    # "a long one" has the best score a letter, "a" the best score
    values = [-2.0, -4.0, -6.0]
    for first, second, expected in (("acc", "acc_norm", 0.0), ("acc_norm", "acc", 1.0)):
        task = make_task(
            tmp_path,
            f"by_{first}",
            {"validation": [ROW]},
            metric_list=[metric(first), metric(second)],
        )
        metrics = task.task.process_results(ROW, [(v, False) for v in values])
        assert metrics[first] == expected != metrics[second]
        assert judged(task, values).value == expected


def test_a_metric_that_is_not_one_number_a_document_is_passed_over(tmp_path: Path) -> None:
    rows = {"validation": [ROW]}
    several = [metric("f1", aggregation="f1"), metric("brier_score", False), metric("acc")]
    task = make_task(tmp_path, "several", rows, metric_list=several)
    assert judged(task, [-9.0, -1.0, -9.0]).value == 1.0
    task = make_task(tmp_path, "none", rows, metric_list=[metric("f1", aggregation="f1")])
    found = judged(task, [-9.0, -1.5, -4.0])
    assert found[:2] == (2.5, 2.5)
    assert found.likelihood == pytest.approx(-math.log(1 + math.exp(-7.5) + math.exp(-2.5)))


def test_a_metric_that_is_better_when_lower_counts_negative(tmp_path: Path) -> None:
    task = make_task(tmp_path, "lower", {"validation": [ROW]}, metric_list=[metric("acc", False)])
    assert judged(task, [-9.0, -1.0, -9.0]).value == -1.0
    assert judged(task, [-1.0, -9.0, -9.0]).value == 0.0


def test_a_word_task_is_judged_by_the_harness_s_accuracy(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_word")
    for document in task.evaluated()[:5]:
        for greedy in (True, False):
            found = judged(task, [-2.5], document, OTHER, greedy=greedy)
            assert found == Judged(float(greedy), -2.5)
            assert task.task.process_results(document, [(-2.5, greedy)])["acc"] == found.value


@pytest.mark.parametrize("greedy", [True, False])
def test_a_likelier_word_is_better_where_the_metric_is_perplexity(
    tmp_path: Path, greedy: bool
) -> None:
    """The harness's lower-is-better perplexity is made of log-likelihoods, which are better when
    higher (LAMBADA lists it before its accuracy)."""
    task = word_task(tmp_path, metric("perplexity", False, "perplexity"), metric("acc"))
    worse = judged(task, [-9.0], recipe=OTHER, greedy=greedy)
    better = judged(task, [-2.0], recipe=OTHER, greedy=greedy)
    assert (better.value, better.margin) > (worse.value, worse.margin)


# ------------------------------------------------------------------ the margin


@pytest.mark.parametrize(
    ("values", "margin"),
    [([-3.0, -1.0, -2.0], 1.0), ([-1.0, -3.0, -2.0], -2.0), ([-2.0, -2.0, -5.0], 0.0)],
)
def test_the_margin_is_the_right_choice_less_the_best_wrong_one(
    tmp_path: Path, values: list[float], margin: float
) -> None:
    task = make_task(tmp_path, "margin", {"validation": [ROW]})
    assert judged(task, values).margin == margin


def test_of_several_right_choices_the_best_counts(tmp_path: Path) -> None:
    row = {**ROW, "labels": [1, 0, 1]}
    task = make_task(tmp_path, "several", {"validation": [row]})
    recipe = Recipe("mine", "choice", gold="{{ labels }}")
    assert judged(task, [-5.0, -3.0, -1.0], row, recipe).margin == 2.0
    assert judged(task, [-4.0, -3.0, -9.0], row, recipe).margin == -1.0


@pytest.mark.parametrize("label", [7, -1])
def test_a_document_without_a_right_choice_is_judged_by_the_metric_alone(
    tmp_path: Path, label: int
) -> None:
    """Such a document may stand among those that a task scores."""
    row = {**ROW, "label": label}
    task = make_task(tmp_path, "unknown", {"validation": [ROW, row]})
    assert judged(task, [-1.0, -2.0, -3.0], row).value == 0.0


def test_a_document_with_right_choices_alone_is_judged_by_the_metric_alone(tmp_path: Path) -> None:
    row = {**ROW, "choices": ["a"], "label": 0}
    task = make_task(tmp_path, "single", {"validation": [ROW, row]})
    assert judged(task, [-1.0], row).value == 1.0


# ------------------------------------------------------------------ the likelihood


def test_the_likelihood_of_the_right_choices_is_their_share_of_all(tmp_path: Path) -> None:
    row = {**ROW, "labels": [1, 0, 1]}
    task = make_task(tmp_path, "share", {"validation": [row]})
    recipe = Recipe("mine", "choice", gold="{{ labels }}")
    values = [math.log(0.02), math.log(0.01), math.log(0.05)]
    assert judged(task, values, row).likelihood == pytest.approx(math.log(1 / 8))
    assert judged(task, values, row, recipe).likelihood == pytest.approx(math.log(7 / 8))
    lower = [value - 1000 for value in values]  # whose probability is 0 in every float
    assert judged(task, lower, row).likelihood == pytest.approx(math.log(1 / 8))


def test_a_document_without_right_or_wrong_choices_changes_no_likelihood(tmp_path: Path) -> None:
    unknown, single = {**ROW, "label": 7}, {**ROW, "choices": ["a"], "label": 0}
    task = make_task(tmp_path, "unknown", {"validation": [ROW, unknown, single]})
    assert judged(task, [-1.0, -2.0, -3.0], unknown).likelihood == 0
    assert judged(task, [-1.0], single).likelihood == 0


# ------------------------------------------------------------------ generation


def test_a_generation_task_is_judged_by_the_log_likelihood_of_a_token(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_text")
    document = task.evaluated()[0]
    found = judged(task, [-6.0], document, OTHER, "likelihood", [4])
    assert found == Judged(-1.5, -6.0)
    for greedy in (True, False):
        found = judged(task, [-6.0], document, OTHER, "exact_match", [4], greedy)
        assert found == Judged(float(greedy), -6.0)


def test_the_exact_match_of_choices_asks_for_a_greedy_right_one(tmp_path: Path) -> None:
    """The likeliest of the choices may still not be what the model would say."""
    task = make_task(tmp_path, "em", {"validation": [ROW, ROW]})
    label = ROW["label"]
    values = [-3.0 + (index == label) for index in range(len(ROW["choices"]))]
    for greedy in range(len(values)):
        scores = [(value, index == greedy) for index, value in enumerate(values)]
        found = judge(task, CHOICE, ROW, scores, [1] * len(values), "exact_match")
        assert found[:2] == (float(greedy == label), 1.0)
        assert found.likelihood == pytest.approx(-math.log(1 + 2 * math.exp(-1)))
    none = judge(task, CHOICE, ROW, [(v, False) for v in values], [1] * len(values), "exact_match")
    assert none.value == 0.0


# ------------------------------------------------------------------ not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_makes_the_document_s_judgement_nan(
    tasks_folder: Path, bad: float
) -> None:
    choice, text = load(tasks_folder, "tiny_choice"), load(tasks_folder, "tiny_text")
    for found in (
        judged(choice, [-1.0, bad, -2.0]),
        judged(text, [bad], recipe=OTHER, objective="likelihood"),
        judged(text, [bad], recipe=OTHER, objective="exact_match"),
    ):
        assert math.isnan(found.value)
        assert math.isnan(found.margin)


# ------------------------------------------------------------------ which objective


@pytest.mark.parametrize(
    ("name", "objective", "expected"),
    [
        ("tiny_choice", "auto", "metric"),
        ("tiny_choice", "metric", "metric"),
        ("tiny_choice", "exact_match", "exact_match"),
        ("tiny_word", "auto", "metric"),
        ("tiny_text", "auto", "likelihood"),
        ("tiny_text", "likelihood", "likelihood"),
        ("tiny_text", "exact_match", "exact_match"),
    ],
)
def test_auto_is_the_metric_or_for_generation_the_likelihood(
    tasks_folder: Path, name: str, objective: Objective, expected: str
) -> None:
    assert resolved(objective, load(tasks_folder, name)) == expected


@pytest.mark.parametrize(
    ("name", "objective", "words"),
    [
        ("tiny_text", "metric", ["objective=metric", "tiny_text", "objective=likelihood"]),
        ("tiny_choice", "likelihood", ["objective=likelihood", "tiny_choice", "multiple_choice"]),
        ("tiny_word", "exact_match", ["objective=exact_match", "tiny_word", "objective=metric"]),
    ],
)
def test_an_impossible_objective_is_refused_with_what_to_pass(
    tasks_folder: Path, name: str, objective: Objective, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        resolved(objective, load(tasks_folder, name))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


# ------------------------------------------------------------------ which rule


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("tiny_choice", "auto", "sure"),
        ("tiny_choice", "likely-1se", "likely-1se"),
        ("tiny_word", "auto", "sure"),
        ("tiny_text", "auto", "sure"),
        ("tiny_text", "best-2se", "best-2se"),
    ],
)
def test_a_setting_is_taken_where_it_is_sure_unless_a_rule_is_named(
    tasks_folder: Path, name: str, rule: RuleName, expected: str
) -> None:
    assert resolved_rule(rule, load(tasks_folder, name)) == expected


@pytest.mark.parametrize("rule", ["likely-1se", "likely-2se", "backed", "sure-or-backed"])
def test_a_rule_that_needs_choices_is_refused_where_there_are_none(
    tasks_folder: Path, rule: RuleName
) -> None:
    for name in ("tiny_word", "tiny_text"):
        with pytest.raises(UserError) as caught:
            resolved_rule(rule, load(tasks_folder, name))
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in (f"rule={rule}", name, "rule=sure"))


# ------------------------------------------------------------------ templates


@pytest.fixture
def fresh_templates() -> Iterator[None]:
    """The harness as it is before a run, and again afterwards."""
    before = dict(harness.env.__dict__)
    harness.env.__dict__.pop("from_string", None)
    yield
    harness.env.__dict__.clear()
    harness.env.__dict__.update(before)


@pytest.mark.usefixtures("fresh_templates")
def test_a_run_compiles_a_template_once_and_renders_every_document_as_before() -> None:
    texts = ["{{ a }}!", "{{ b | regex_replace('p', 'x') }}\n", "{% if a > 1 %}{{ b }}{% endif %}"]
    documents = [{"a": 1, "b": "p"}, {"a": 2, "b": "q"}, {"a": 21, "b": "{{ a }}"}]
    expected = [harness.apply_template(text, row) for row in documents for text in texts]
    assert harness.env.from_string("{{ a }}") is not harness.env.from_string("{{ a }}")
    note_tasks()
    assert harness.env.from_string("{{ a }}") is harness.env.from_string("{{ a }}")
    assert harness.env.from_string("{{ a }}") is not harness.env.from_string("{{ b }}")
    for _ in range(2):
        found = [harness.apply_template(text, row) for row in documents for text in texts]
        assert found == expected


@pytest.mark.usefixtures("fresh_templates")
def test_a_template_that_fails_fails_again_and_does_no_harm_to_the_next() -> None:
    note_tasks()
    for _ in range(2):
        with pytest.raises(UndefinedError, match="'a' is undefined"):
            harness.apply_template("{{ a }}", {"b": 1})
        with pytest.raises(TemplateSyntaxError):
            harness.apply_template("{{ a ", {"a": 1})
        assert harness.apply_template("{{ a }}", {"a": 1}) == "1"


@pytest.mark.usefixtures("fresh_templates")
def test_a_second_run_goes_on_with_the_templates_of_the_first() -> None:
    """A wrapper around a wrapper would keep everything twice."""
    note_tasks()
    first, template = harness.env.from_string, harness.env.from_string("{{ a }}")
    note_tasks()
    assert harness.env.from_string is first
    assert harness.env.from_string("{{ a }}") is template
