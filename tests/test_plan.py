"""What is drawn for a mask: pairs and held-out documents that share nothing, and are not scored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.methods import FITTED
from helpers.tasks import ANSWERS, CHOICE, OTHER, harness_requests, load, make_task, words
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, LengthLimit, RunTask, digest
from sadi_lmeval.harness.run_tasks import RunRank, RunTasks, limited, note_tasks
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.sadi import SADI
from sadi_lmeval.model import model_class
from sadi_lmeval.options import REFERENCE_LENGTH, Options
from sadi_lmeval.pairs.pairs import scored_texts
from sadi_lmeval.pairs.plan import Drawn, Plan, draw, find_plan, num_fewshot
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.sources import Source


def row(number: int, question: str | None = None) -> Document:
    return {
        "question": question or f"question {number}",
        "choices": [f"a{number}", f"b{number}", f"c{number}"],
        "label": number % 3,
    }


CHOSEN = ("top_k", "delta")
"""Numbers that are chosen on held-out documents."""


def drawn(task: RunTask, options: Options, tuning: bool = True) -> Drawn:
    """For a task with one mask."""
    plan = find_plan(task, options)
    [source] = plan.sources.sources
    return draw(plan, source, options, CHOSEN if tuning else ())


def split(found: Drawn) -> tuple[list[Document], list[Document]]:
    return [pair.document for pair in found.pairs], found.held_out


def contents(documents: list[Document]) -> set[str]:
    return {digest(document) for document in documents}


def questions(documents: list[Document]) -> set[str]:
    return {str(document["question"]) for document in documents}


# ------------------------------------------------------------------ nothing is shared


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_text", "tiny_word", "tiny_sum"])
@pytest.mark.parametrize("num_shots", [0, 2])
def test_pairs_held_out_and_scored_documents_share_nothing(
    tasks_folder: Path, name: str, num_shots: int
) -> None:
    task = load(tasks_folder, name, num_shots)
    for seed in range(3):
        pairs, held_out = split(drawn(task, Options(seed=seed)))
        assert len(pairs) >= 36
        assert len(held_out) >= 25
        every = [*pairs, *held_out, *task.evaluated()]
        assert len(contents(every)) == len(questions(every)) == len(every)


def test_a_training_document_that_is_also_scored_is_in_neither(tmp_path: Path) -> None:
    scored = [row(i) for i in range(100, 110)]
    train = [row(i) for i in range(40)]
    planted = [scored[3], scored[7], {**row(50), "question": scored[5]["question"].upper()}]
    train[5:5], train[20:20], train[30:30] = planted[:1], planted[1:2], planted[2:]
    task = make_task(tmp_path, "planted", {"train": train, "validation": scored})
    for seed in range(5):
        pairs, held_out = split(drawn(task, Options(seed=seed, n_pairs=30, n_tune=10)))
        assert len(pairs) + len(held_out) == 40
        assert not contents([*pairs, *held_out]) & contents(planted)


def test_a_question_is_never_both_in_a_pair_and_held_out(tmp_path: Path) -> None:
    train = [row(i, f"question {i // 2}") for i in range(60)]
    train += train[::4]  # and some documents twice
    task = make_task(tmp_path, "twice", {"train": train, "validation": [row(999)]})
    for seed in range(10):
        pairs, held_out = split(drawn(task, Options(seed=seed, n_pairs=20, n_tune=10)))
        assert (len(pairs), len(held_out)) == (20, 10)
        assert not questions(pairs) & questions(held_out)
        assert len(contents(held_out)) == 10


def test_few_shot_examples_are_neither_in_a_pair_nor_held_out(tmp_path: Path) -> None:
    rows = {"train": [row(i) for i in range(40)], "validation": [row(i) for i in range(100, 110)]}
    task = make_task(tmp_path, "shots", rows, num_fewshot=3)
    plan = find_plan(task, Options())
    [source] = plan.sources.sources
    for seed in range(5):
        options = Options(seed=seed, n_pairs=20, n_tune=16)
        found = draw(plan, source, options, CHOSEN)
        pairs, held_out = split(found)
        texts = scored_texts(task, CHOICE, held_out, source.allowed, 3, seed)
        prompts = [context for [(context, _), *_] in texts]
        prompts += [pair.positive[0] for pair in found.pairs]
        examples = {part for prompt in prompts for part in prompt.split("\n\n")[:-1]}
        shown = {example.split(" ?")[0] for example in examples}
        assert len(shown) == 3
        assert shown <= questions(rows["train"])
        assert not shown & questions([*pairs, *held_out])
        assert all(prompt.split("\n\n")[-1].startswith("question") for prompt in prompts)


def test_a_document_with_the_question_of_a_few_shot_example_is_in_neither(tmp_path: Path) -> None:
    """Its prompt would show the question with its answer."""
    train = [row(i, f"question {i // 2}") for i in range(40)]
    task = make_task(tmp_path, "shown", {"train": train, "validation": [row(999)]}, num_fewshot=2)
    plan = find_plan(task, Options())
    [source] = plan.sources.sources
    for seed in range(5):
        options = Options(seed=seed, n_pairs=8)
        pairs, held_out = split(draw(plan, source, options, CHOSEN))
        texts = scored_texts(task, CHOICE, held_out, source.allowed, 2, seed)
        shown = {part.split(" ?")[0] for part in texts[0][0][0].split("\n\n")[:-1]}
        assert len(shown) == 2
        assert not shown & questions([*pairs, *held_out])


def test_pairs_have_the_few_shot_examples_that_the_user_says() -> None:
    task = RunTask(None)
    plan = Plan(task, task, None, None, None, None)  # type: ignore[arg-type]
    assert num_fewshot(plan, Options(pairs_num_fewshot=0)) == 0
    assert num_fewshot(plan, Options(pairs_num_fewshot=4)) == 4


# ------------------------------------------------------------------ folds


@pytest.mark.parametrize("folds", [2, 3])
def test_nothing_of_a_fold_made_its_mask_or_its_choice(tasks_folder: Path, folds: int) -> None:
    task = load(tasks_folder, "tiny_folds")
    options = Options(folds=folds)
    plan = find_plan(task, options)
    assert len(plan.sources.sources) == folds
    for fold, source in enumerate(plan.sources.sources):
        pairs, held_out = split(draw(plan, source, options, CHOSEN))
        assert len(pairs) >= 12
        assert len(held_out) >= 10
        mine = [d for d in task.evaluated() if plan.sources.fit_of(d) == fold]
        assert len(mine) >= 50 // folds
        every = [*pairs, *held_out, *mine]
        assert len(contents(every)) == len(questions(every)) == len(every)


def test_a_fold_s_document_that_stands_in_another_fold_too_is_not_held_out_for_it(
    tmp_path: Path,
) -> None:
    rows = [row(i) for i in range(40)]
    rows[30] = rows[2]  # the same in the second half
    rows[33] = {**row(33), "question": rows[5]["question"]}  # and the same question
    task = make_task(tmp_path, "folded", {"validation": rows})
    plan = find_plan(task, Options())
    [first, second] = (draw(plan, s, Options(), CHOSEN) for s in plan.sources.sources)
    pairs, held_out = split(first)
    assert len(pairs) + len(held_out) == 18  # without the two
    assert not questions([*pairs, *held_out]) & questions(rows[:20])
    pairs, held_out = split(second)
    assert not questions([*pairs, *held_out]) & questions([rows[33], *rows[20:30]])


# ------------------------------------------------------------------ how many


def few(task: RunTask, count: int) -> tuple[Plan, Source]:
    """A plan, and a source of the first ``count`` documents."""
    plan = find_plan(task, Options())
    [source] = plan.sources.sources
    return plan, source._replace(documents=list(source.documents)[:count])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RunTask:
    folder = tmp_path_factory.mktemp("many")
    rows = {"train": [row(i) for i in range(300)], "validation": [row(999)]}
    return make_task(folder, "many", rows)


@pytest.mark.parametrize(
    ("documents", "given", "pairs", "held_out"),
    [
        (300, {}, 150, 100),
        (250, {}, 150, 100),
        (100, {}, 60, 40),  # in the usual proportion
        (10, {}, 6, 4),
        (8, {}, 4, 4),
        (100, {"n_tune": 30}, 70, 30),  # what the user says is kept
        (100, {"n_tune": 90}, 10, 90),
        (100, {"n_pairs": 20}, 20, 80),
        (100, {"n_pairs": 90}, 90, 10),
        (300, {"n_pairs": 20}, 20, 100),
        (300, {"n_pairs": 250}, 250, 50),
        (100, {"n_pairs": 20, "n_tune": 30}, 20, 30),
        (100, {"n_pairs": 60, "n_tune": 40}, 60, 40),
    ],
)
def test_documents_are_shared_out_where_they_are_few(
    many: RunTask, documents: int, given: dict[str, int], pairs: int, held_out: int
) -> None:
    plan, source = few(many, documents)
    found = draw(plan, source, Options(**given), CHOSEN)  # type: ignore[arg-type]
    assert (len(found.pairs), len(found.held_out)) == (pairs, held_out)


def test_without_tuning_nothing_is_held_out(many: RunTask) -> None:
    plan, source = few(many, 100)
    found = draw(plan, source, Options(), ())
    assert (len(found.pairs), found.held_out) == (100, [])


def test_the_same_number_of_pairs_is_of_the_same_documents_with_and_without_tuning(
    many: RunTask,
) -> None:
    plan, source = few(many, 100)
    for seed in range(3):
        options = Options(n_pairs=30, seed=seed)
        tuned, fixed = (draw(plan, source, options, chosen) for chosen in (CHOSEN, ()))
        assert tuned.pairs == fixed.pairs


def test_the_draw_follows_from_the_seed(many: RunTask) -> None:
    plan, source = few(many, 300)
    one, same = (draw(plan, source, Options(seed=4), CHOSEN) for _ in range(2))
    assert one == same
    assert draw(plan, source, Options(seed=5), CHOSEN).held_out != one.held_out


@pytest.mark.parametrize(
    ("documents", "given", "words"),
    [
        (7, {}, ["7 documents", "4 of them in the pairs", "leaves 3", "4 are needed"]),
        (3, {}, ["makes 3 contrastive pairs", "4 are needed"]),
        (100, {"n_pairs": 98}, ["100 documents", "98 of them in the pairs", "leaves 2"]),
        (100, {"n_pairs": 101}, ["makes 100", "100 documents", "101 are needed"]),
        (100, {"n_tune": 97}, ["100 documents", "leaves 96", "97 are needed"]),
        (100, {"n_pairs": 60, "n_tune": 41}, ["60 of them", "leaves 40", "41 are needed"]),
    ],
)
def test_too_few_documents_are_told_with_the_numbers_and_what_to_pass(
    many: RunTask, documents: int, given: dict[str, int], words: list[str]
) -> None:
    plan, source = few(many, documents)
    with pytest.raises(UserError) as caught:
        draw(plan, source, Options(**given), CHOSEN)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ["task many", "train", "n_pairs", *words]), message


def test_a_choice_on_few_documents_is_warned_of(
    many: RunTask, caplog: pytest.LogCaptureFixture
) -> None:
    plan, source = few(many, 100)
    for n_tune, warned in ((20, False), (19, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
            draw(plan, source, Options(n_tune=n_tune), CHOSEN)
        assert ("only 19 held-out documents" in caplog.text) is warned


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 40), max_size=40),
    st.none() | st.integers(1, 30),
    st.none() | st.integers(1, 30),
    st.integers(0, 5),
)
def test_whatever_the_documents_nothing_is_shared_and_what_the_user_says_is_kept(
    many: RunTask, numbers: list[int], n_pairs: int | None, n_tune: int | None, seed: int
) -> None:
    """Some documents twice, some questions in several documents."""
    plan, source = few(many, 0)
    documents = [row(i, f"question {i % 30}") for i in numbers]
    options = Options(n_pairs=n_pairs, n_tune=n_tune, seed=seed)
    try:
        found = draw(plan, source._replace(documents=documents), options, CHOSEN)
    except UserError:
        return
    pairs, held_out = split(found)
    assert len(pairs) == n_pairs if n_pairs else len(pairs) >= 4
    assert len(held_out) == n_tune if n_tune else len(held_out) >= 4
    assert len(contents(held_out)) == len(held_out)
    assert not contents(pairs) & contents(held_out)
    assert not questions(pairs) & questions(held_out)


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_text"])
def test_what_is_scored_of_a_held_out_document_is_what_the_harness_would_score(
    tasks_folder: Path, name: str
) -> None:
    task = load(tasks_folder, name)
    documents = task.evaluated()[:3]
    recipe = CHOICE if name == "tiny_choice" else OTHER
    texts = scored_texts(task, recipe, documents, None, 0, 0)
    for document, found in zip(documents, texts, strict=True):
        context = f"{document['question']} answer :"
        expected: Any = [(context, f" {choice}") for choice in document["choices"]]
        if name == "tiny_text":
            expected = [(context, f" {document['answer']}")]
        assert found == expected


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (ANSWERS, "{answer}"),
        (OTHER, "{answer}"),
        (Recipe("r", "wrong_number", answer="{{ working }}"), "{working}"),
        (Recipe("r", "answers", right="{{ choices }}", wrong="x"), "{choices[0]}"),
    ],
)
def test_the_answer_that_is_forced_is_what_the_recipe_says(
    tasks_folder: Path, recipe: Recipe, expected: str
) -> None:
    task = load(tasks_folder, "tiny_text")
    documents = task.evaluated()[:3]
    texts = scored_texts(task, recipe, documents, None, 0, 0)
    answers = [expected.format(**document) for document in documents]
    assert [text[1] for [text] in texts] == [f" {answer}" for answer in answers]


# ------------------------------------------------------------------ pairs out of a file


def static(folder: Path, prompts: list[str]) -> str:
    """The path of a recipe whose pairs have these prompts."""
    rows = [{"prompt": p, "positive": f"yes {p} .", "negative": f"no {p} ."} for p in prompts]
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / "mine.jsonl").write_text(text, encoding="utf-8")
    path = folder / "mine_static.yaml"
    path.write_text("recipe: mine\ncontrast: static\npairs: mine.jsonl\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_text", "tiny_word", "tiny_sum"])
@pytest.mark.parametrize("num_shots", [0, 2])
def test_pairs_come_from_the_file_and_held_out_documents_from_the_task(
    tasks_folder: Path, tmp_path: Path, name: str, num_shots: int
) -> None:
    task = load(tasks_folder, name, num_shots)
    recipe = static(tmp_path, [f"is {i} so" for i in range(30)])
    found = drawn(task, Options(recipe=recipe, n_pairs=20))
    assert len(found.pairs) == 20
    assert {pair.positive[0] for pair in found.pairs} <= {f"is {i} so" for i in range(30)}
    assert contents(found.held_out) <= contents(list(task.documents("train")))
    assert not contents(found.held_out) & contents(task.evaluated())
    assert len(contents(found.held_out)) == len(found.held_out) >= 60
    assert drawn(task, Options(recipe=recipe, n_pairs=20)) == found
    assert drawn(task, Options(recipe=recipe, n_pairs=20), tuning=False) == (found.pairs, [])
    assert drawn(task, Options(recipe=recipe, n_pairs=20, seed=1)).pairs != found.pairs


def test_what_a_held_out_document_s_answer_is_the_task_s_own_recipe_says(
    tasks_folder: Path, tmp_path: Path
) -> None:
    recipe = static(tmp_path, ["is it so"])
    for name, own in (("tiny_choice", "right_wrong"), ("tiny_text", "other_target")):
        plan = find_plan(load(tasks_folder, name), Options(recipe=recipe))
        assert plan.is_static
        assert plan.recipe.recipe == "mine"
        assert plan.own_recipe.recipe == own
        plain = find_plan(load(tasks_folder, name), Options())
        assert not plain.is_static
        assert plain.recipe == plain.own_recipe == plan.own_recipe


def test_a_benchmark_may_name_a_static_recipe_and_the_user_another(tmp_path: Path) -> None:
    rows = {"train": [row(i) for i in range(40)], "validation": [row(99)]}
    task = make_task(tmp_path, "named", rows)
    static(tmp_path, [f"is {i} so" for i in range(12)])
    text = "benchmark: b\ntasks: [named]\nrecipe: mine\nn_pairs: 9\n"
    (tmp_path / "bench.yaml").write_text(text, encoding="utf-8")
    options = Options(include_path=str(tmp_path))
    plan = find_plan(task, options)
    assert (plan.recipe.recipe, plan.own_recipe.recipe) == ("mine", "right_wrong")
    assert len(draw(plan, plan.sources.sources[0], options, CHOSEN).pairs) == 9
    plan = find_plan(task, Options(include_path=str(tmp_path), recipe="right_wrong"))
    assert not plan.is_static


@pytest.mark.parametrize("folds", [2, 3])
def test_every_fold_has_the_same_pairs_out_of_a_file_and_held_out_documents_of_others(
    tasks_folder: Path, tmp_path: Path, folds: int
) -> None:
    task = load(tasks_folder, "tiny_folds")
    options = Options(folds=folds, recipe=static(tmp_path, [f"is {i} so" for i in range(8)]))
    plan = find_plan(task, options)
    found = [draw(plan, source, options, CHOSEN) for source in plan.sources.sources]
    assert len(found) == folds
    for fold, each in enumerate(found):
        assert each.pairs == found[0].pairs
        mine = [d for d in task.evaluated() if plan.sources.fit_of(d) == fold]
        assert len(each.held_out) >= 10
        assert not contents(each.held_out) & contents(mine)


def test_what_a_pair_of_a_file_asks_is_not_held_out(tmp_path: Path) -> None:
    """Else a setting is chosen on what its mask was made from."""
    rows = {"train": [row(i) for i in range(30)], "validation": [row(99)]}
    task = make_task(tmp_path, "asked", rows)
    recipe = static(tmp_path, [f"Question {i} ?" for i in range(10)])
    for seed in range(3):
        found = drawn(task, Options(recipe=recipe, seed=seed))
        assert len(found.pairs) == 10
        assert questions(found.held_out) == {f"question {i}" for i in range(10, 30)}


@pytest.mark.parametrize(
    ("prompts", "given", "words"),
    [
        (3, {}, ["recipe mine makes 3 contrastive pairs", "4 are needed"]),
        (9, {"n_pairs": 10}, ["recipe mine makes 9 contrastive pairs", "10 are needed"]),
        (9, {"n_tune": 50}, ["has 40 documents", "leaves 40", "50 are needed"]),
        (9, {"pairs_num_fewshot": 2}, ["pairs_num_fewshot=2", "recipe mine is a static set"]),
    ],
)
def test_what_is_amiss_with_pairs_out_of_a_file_is_told_in_one_line(
    tmp_path: Path, prompts: int, given: dict[str, int], words: list[str]
) -> None:
    rows = {"train": [row(i) for i in range(40)], "validation": [row(99)]}
    task = make_task(tmp_path, "amiss", rows)
    recipe = static(tmp_path, [f"is {i} so" for i in range(prompts)])
    with pytest.raises(UserError) as caught:
        drawn(task, Options(recipe=recipe, **given))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_few_shot_examples_are_none_of_a_file_s_business(
    tasks_folder: Path, tmp_path: Path
) -> None:
    task = load(tasks_folder, "tiny_choice", 2)
    recipe = static(tmp_path, [f"is {i} so" for i in range(8)])
    for shots in (None, 0):
        found = drawn(task, Options(recipe=recipe, pairs_num_fewshot=shots))
        assert {pair.positive[0] for pair in found.pairs} == {f"is {i} so" for i in range(8)}


def test_another_task_s_pairs_by_a_static_recipe_leave_out_what_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    rows = {"train": [row(i) for i in range(20)], "validation": [row(i) for i in range(60, 70)]}
    task = make_task(tmp_path, "one", {"validation": [row(3), row(4)]})
    make_task(tmp_path, "other", rows)
    recipe = static(tmp_path, [f"question {i}" for i in (3, 4, 60, 61, 62, 63)])
    options = Options(recipe=recipe, mask_from="other", include_path=str(tmp_path))
    plan = find_plan(task, options)
    assert plan.source_task.name == "other"
    found = draw(plan, plan.sources.sources[0], options, CHOSEN)
    assert {pair.document["prompt"] for pair in found.pairs} == {
        f"question {i}" for i in (60, 61, 62, 63)
    }
    assert not questions(found.held_out) & {"question 3", "question 4"}


# ------------------------------------------------------------------ the negative choices


@pytest.mark.parametrize("negative", ["random", "all"])
@pytest.mark.parametrize("n_pairs", [None, 7, 30])
def test_no_more_pairs_than_are_wanted_and_none_of_a_held_out_document(
    many: RunTask, negative: str, n_pairs: int | None
) -> None:
    plan, source = few(many, 60)
    options = Options(negative=negative, n_pairs=n_pairs)  # type: ignore[arg-type]
    found = draw(plan, source, options, CHOSEN)
    pairs, held_out = split(found)
    assert len(pairs) == n_pairs if n_pairs else 4 <= len(pairs) <= 150
    assert not contents(pairs) & contents(held_out)
    most = 1 if negative == "random" else 2
    assert max(pairs.count(document) for document in pairs) == most


def test_the_hardest_choice_needs_a_model_and_keeps_what_it_finds_in_the_cache(
    many: RunTask, tmp_path: Path, model_folder: Path
) -> None:
    plan, source = few(many, 30)
    options = Options(negative="hardest", n_pairs=8, cache_dir=str(tmp_path / "kept"))
    with pytest.raises(UserError, match="negative=hardest"):
        draw(plan, source, options, ())
    model = model_class("sadi")(pretrained=str(model_folder), device="cpu", batch_size=4)
    found = draw(plan, source, options, (), model)
    assert len(list((tmp_path / "kept").glob("*.hardest.json"))) == 1
    assert len(found.pairs) == 8
    usual = draw(plan, source, Options(n_pairs=8), ())
    assert split(found)[0] == split(usual)[0]
    assert draw(plan, source, options, CHOSEN, model).pairs == found.pairs


# ------------------------------------------------------------------ as the reference code does


def sadi(**given: Any) -> SADI:
    """The method as the arguments of ``hf-sadi`` make it."""
    found = read_arm("sadi", given).method
    assert isinstance(found, SADI)
    return found


def test_the_reference_protocol_sets_what_the_reference_code_does() -> None:
    expected = {"activations": "clean", "selection": "top", "steering": "dynamic"}
    found = read_arm("sadi", {"protocol": "reference"})
    assert found.options == Options(protocol="reference")
    assert found.method == SADI(**expected)  # type: ignore[arg-type]
    assert read_arm("sadi", {"protocol": "reference", **expected}) == found
    assert read_arm("sadi", {}).options.protocol == "default"
    plain = read_arm("sadi", {})
    assert read_arm("sadi", {"protocol": "default"}) == plain
    assert (plain.options, plain.method) == (Options(), SADI())


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("activations", "live", "clean"),
        ("selection", "random", "top"),
        ("selection", "top_abs", "top"),
        ("selection", "bottom", "top"),
        ("steering", "fixed", "dynamic"),
    ],
)
def test_what_the_reference_code_does_otherwise_is_refused_by_its_name(
    name: str, value: str, meant: str
) -> None:
    with pytest.raises(UserError) as caught:
        sadi(protocol="reference", **{name: value})
    said = str(caught.value)
    assert said == f"{name}={value}: protocol=reference means {name}={meant}; pass either"
    assert getattr(sadi(**{name: value}), name) == value


def test_all_conflicts_with_the_reference_code_are_told_at_once() -> None:
    given = {"activations": "live", "selection": "bottom", "steering": "fixed", "seed": -1}
    with pytest.raises(UserError) as caught:
        sadi(protocol="reference", **given)
    assert "\n" not in str(caught.value)
    for name, value in given.items():
        assert f"{name}={value}" in str(caught.value)


@pytest.mark.parametrize("name", ["negative", "protocol"])
def test_a_value_that_there_is_not_is_refused_with_the_nearest(name: str) -> None:
    near = {"negative": ("hardst", "hardest"), "protocol": ("refrence", "reference")}
    given, meant = near[name]
    with pytest.raises(UserError, match=f"{name}={given}: did you mean '{meant}'"):
        read_arm("sadi", {name: given})


@pytest.mark.parametrize("method", [name for name in FITTED if name != "sadi"])
def test_the_other_methods_take_the_reference_protocol_for_its_documents(method: str) -> None:
    found, plain = (read_arm(method, given) for given in ({"protocol": "reference"}, {}))
    assert found.options == Options(protocol="reference")
    assert found.method == plain.method


@pytest.mark.parametrize("method", FITTED)
def test_the_reference_protocol_limits_the_length_for_every_method(
    model_folder: Path, method: str
) -> None:
    kind = model_class(method)
    plain = kind(pretrained=str(model_folder), device="cpu")
    assert plain.length_limit is None
    model = kind(pretrained=str(model_folder), device="cpu", protocol="reference")
    limit = model.length_limit
    assert limit is not None
    assert limit.tokens == REFERENCE_LENGTH == 700
    text = "the cat is red . " * 3
    assert limit.count(text) == len(model.tok_encode(text)) == 15


# ------------------------------------------------------------------ documents over the limit


def long_and_short(folder: Path, **more: Any) -> RunTask:
    """Scored documents with questions of 1 to 12 words, each answered by one of two."""
    validation = [
        {"question": " ".join(["word"] * (1 + 7 * i % 12)) + f" {i}", "choices": ["a", "b c d"]}
        | {"label": i % 2}
        for i in range(24)
    ]
    splits = {"validation": validation, "train": [row(i) for i in range(30)]}
    return make_task(folder, "lengths", splits, **more)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("most", [6, 9, 12, 16])
def test_the_harness_scores_the_documents_within_the_limit_alone(
    tmp_path: Path, split: str, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    more: dict[str, Any] = {}
    if split == "test":
        more = {"test_split": "validation", "validation_split": "train", "training_split": None}
    task = long_and_short(tmp_path, **more)
    before = task.evaluated()
    within = [d for d in before if words("".join(task.texts(d, 0)[1])) <= most]
    assert 0 < len(within) < 24
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        found = limited(task, LengthLimit(most, words))
    assert found.evaluated() == within
    assert list(found.task.eval_docs) == within
    requests = harness_requests(found)
    assert set(requests) == contents(within)
    assert all(words("".join(text)) <= most for each in requests.values() for text in each)
    assert f"{24 - len(within)} of 24 documents are over {most} tokens" in caplog.text


def test_a_limit_that_all_documents_are_within_changes_nothing_but_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = long_and_short(tmp_path)
    before = harness_requests(long_and_short(tmp_path))
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        found = limited(task, LengthLimit(1000, words))
    assert "left out" not in caplog.text
    assert found.limit == LengthLimit(1000, words)
    assert harness_requests(found) == before
    assert limited(task, None) is task


def test_the_harness_draws_the_same_examples_with_and_without_a_limit(tmp_path: Path) -> None:
    """A limit that leaves out nothing must not change what is scored."""
    before = harness_requests(long_and_short(tmp_path, num_fewshot=2))
    found = limited(long_and_short(tmp_path, num_fewshot=2), LengthLimit(1000, words))
    assert harness_requests(found) == before


def test_the_limit_is_of_a_document_without_its_few_shot_examples(tmp_path: Path) -> None:
    """Which documents are scored must not depend on the examples, nor on their number."""
    rows = long_and_short(tmp_path).evaluated()
    train = [{**each, "question": f"so {each['question']}"} for each in rows]
    kept = []
    for shots in (0, 2):
        splits = {"train": train, "validation": rows}
        task = make_task(tmp_path, f"shots_{shots}", splits, num_fewshot=shots)
        kept.append(contents(limited(task, LengthLimit(9, words)).evaluated()))
    assert 0 < len(kept[0]) < len(rows)
    assert kept[0] == kept[1]


def test_pairs_and_held_out_documents_are_within_the_limit_too(tmp_path: Path) -> None:
    documents = long_and_short(tmp_path).evaluated()
    splits = {"train": documents, "validation": [row(99)]}
    task = limited(make_task(tmp_path, "both", splits), LengthLimit(9, words))
    within = [d for d in documents if words("".join(task.texts(d, 0)[1])) <= 9]
    pairs, held_out = split(drawn(task, Options()))
    assert contents([*pairs, *held_out]) == contents(within)


def test_the_tasks_of_a_run_are_limited_as_it_begins_and_those_of_the_next_are_not(
    tmp_path: Path,
) -> None:
    """The harness asks a model for its rank, and hands it to the tasks."""
    note_tasks()
    first, second = RunTasks(LengthLimit(9, words)), RunTasks()
    long_and_short(tmp_path).task.build_all_requests(rank=RunRank(0, first), world_size=1)
    [noted] = first.by_name.values()
    assert noted.limit == LengthLimit(9, words)
    documents = {digest(instance.doc) for instance in noted.task.instances}
    assert documents == contents(noted.evaluated())
    assert 0 < len(documents) < 24
    assert second.by_name == {}
    long_and_short(tmp_path).task.build_all_requests(rank=RunRank(0, second), world_size=1)
    [noted] = second.by_name.values()
    assert noted.limit is None
    assert len(noted.evaluated()) == 24
    foreign = long_and_short(tmp_path).task
    foreign.build_all_requests(rank=0, world_size=1)
    assert len(foreign.eval_docs) == 24
    assert list(second.by_name.values()) == [noted]


def test_tasks_that_are_noted_after_an_answer_are_of_another_run(tmp_path: Path) -> None:
    note_tasks()
    run = RunTasks()
    for name in ("one", "two"):
        task = make_task(tmp_path, name, {"validation": [row(i) for i in range(3)]}).task
        task.build_all_requests(rank=RunRank(0, run), world_size=1)
    assert list(run.by_name) == ["one", "two"]
    run.end()
    assert list(run.by_name) == ["one", "two"]  # until the next one begins
    task = make_task(tmp_path, "three", {"validation": [row(0)]}).task
    task.build_all_requests(rank=RunRank(0, run), world_size=1)
    assert list(run.by_name) == ["three"]
