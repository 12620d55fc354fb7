"""The sets of pairs that are shipped: the sides differ in what they say, not in how long it is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from helpers.tasks import make_task
from sadi_lmeval.folders import contrastive_sets
from sadi_lmeval.pairs.contrasts import normalized
from sadi_lmeval.pairs.recipe import load_recipe
from sadi_lmeval.pairs.static_sets import read_static_set, static_pairs

pytestmark = pytest.mark.quick

HUB = Path(__file__).parents[2] / "shared" / "hub"
TRUTHFULQA = HUB / "truthfulqa" / "truthful_qa"
NAMES = ("truthfulness", "politeness", "refusal_of_falsehoods")
SIDES = ("positive", "negative")

sets = pytest.mark.parametrize("name", NAMES)


def rows(name: str) -> list[dict[str, str]]:
    return read_static_set(contrastive_sets() / f"{name}.jsonl")


def bare(text: str) -> str:
    """A text without regard to case, spacing and signs."""
    return normalized("".join(sign if sign.isalnum() else " " for sign in text))


def test_every_set_is_tested_here_and_has_a_recipe() -> None:
    assert {path.stem for path in contrastive_sets().glob("*.jsonl")} == set(NAMES)


@sets
def test_the_recipe_of_a_set_is_found_by_its_name(name: str) -> None:
    recipe = load_recipe(name, [])
    assert recipe.contrast == "static"
    assert Path(str(recipe.pairs)).samefile(contrastive_sets() / f"{name}.jsonl")
    assert recipe.description


@sets
def test_a_set_has_300_pairs_and_no_prompt_twice(name: str) -> None:
    found = Counter(bare(row["prompt"]) for row in rows(name))
    assert [prompt for prompt, count in found.items() if count > 1] == []
    assert len(found) == 300


@sets
@pytest.mark.parametrize("side", SIDES)
def test_no_answer_stands_twice_on_a_side(name: str, side: str) -> None:
    found = Counter(bare(row[side]) for row in rows(name))
    assert [answer for answer, count in found.items() if count > 1] == []


@sets
def test_neither_side_is_the_longer_one(name: str) -> None:
    found = rows(name)
    longer = fmean(len(row["positive"]) > len(row["negative"]) for row in found)
    shorter = fmean(len(row["positive"]) < len(row["negative"]) for row in found)
    assert 0.45 <= longer <= 0.55
    assert 0.45 <= shorter <= 0.55
    positive, negative = (fmean(len(row[side]) for row in found) for side in SIDES)
    assert positive == pytest.approx(negative, rel=0.03)


@sets
@pytest.mark.parametrize("side", SIDES)
def test_every_answer_is_a_whole_sentence(name: str, side: str) -> None:
    assert [row[side] for row in rows(name) if row[side][-1] not in ".!?"] == []
    assert [row[side] for row in rows(name) if row[side][0].islower()] == []


@sets
def test_every_text_stands_there_without_spaces_around_it_and_in_one_line(name: str) -> None:
    texts = [text for row in rows(name) for text in row.values()]
    assert [text for text in texts if text != " ".join(text.split())] == []


@sets
def test_every_pair_of_a_set_can_be_drawn_for_any_task(tmp_path: Path, name: str) -> None:
    document = {"question": "something else", "choices": ["a", "b"], "label": 0}
    task = make_task(tmp_path, "any", {"validation": [document]})
    recipe = load_recipe(name, [])
    pairs = static_pairs(task, task, recipe, 1000, 0)
    assert len(pairs) == 300
    start, _, end = recipe.prompt.partition("{{ prompt }}")
    for pair in pairs:
        expected = start + pair.document["prompt"] + end
        assert pair.positive == (expected, " " + pair.document["positive"])
        assert pair.negative == (expected, " " + pair.document["negative"])


@pytest.mark.skipif(not TRUTHFULQA.is_dir(), reason="no folder ../shared/hub with real rows")
@sets
def test_no_prompt_is_a_question_of_truthfulqa(name: str) -> None:
    asked = set()
    for path in TRUTHFULQA.rglob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        asked |= {bare(json.loads(line)["question"]) for line in lines}
    assert len(asked) > 800
    assert {bare(row["prompt"]) for row in rows(name)} & asked == set()
