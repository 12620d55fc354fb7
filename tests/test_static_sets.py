"""Hand-written pairs: read line by line, drawn by the seed, and none that asks what is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.tasks import CHAT, load, make_task
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask, digest
from sadi_lmeval.pairs import static_sets
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.static_sets import read_static_set, static_pairs

GOOD = {"prompt": "is it so", "positive": "yes .", "negative": "no ."}


def made(number: int, prompt: str | None = None) -> dict[str, str]:
    return {
        "prompt": prompt or f"is {number} a number",
        "positive": f"{number} is one .",
        "negative": f"{number} is none .",
    }


def write(folder: Path, rows: list[Any], name: str = "set.jsonl") -> Path:
    """A JSONL file; a row that is text stands there as it is."""
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def scoring(folder: Path, questions: list[str], **config: Any) -> RunTask:
    """A task that scores these questions."""
    rows = [{"question": q, "choices": ["a", "b"], "label": 0} for q in questions]
    return make_task(folder, "scoring", {"validation": rows}, **config)


def drawn(
    task: RunTask, path: Path, wanted: int = 1000, seed: int = 0, prompt: str = "{{ prompt }}"
) -> list[Pair]:
    recipe = Recipe("mine", "static", pairs=str(path), prompt=prompt)
    return static_pairs(task, task, recipe, wanted, seed)


def prompts(pairs: list[Pair]) -> set[str]:
    return {pair.document["prompt"] for pair in pairs}


# ------------------------------------------------------------------ the file


def test_a_set_is_read_as_it_stands_there(tmp_path: Path) -> None:
    rows = [made(i) for i in range(5)] + [made(5, 'a "quoted"\nline, ünicode \u4e2d and \u00a0')]
    assert read_static_set(write(tmp_path, rows)) == rows


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_last_line_may_end_as_it_likes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes((json.dumps(made(1)) + "\r\n" + json.dumps(made(2)) + ending).encode())
    assert read_static_set(path) == [made(1), made(2)]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_at_its_end_alone(tmp_path: Path, sign: str) -> None:
    """JSON allows these signs in a text, though Python counts them as ends of lines."""
    rows = [made(1, f"one{sign}two"), made(2)]
    assert read_static_set(write(tmp_path, rows)) == rows


FAULTY = [
    "",
    "   ",
    "{",
    "text",
    "7",
    "null",
    "[]",
    "{}",
    json.dumps([GOOD]),
    json.dumps({**GOOD, "extra": "x"}),
    json.dumps({"prompt": "p", "positive": "a"}),
    json.dumps({**GOOD, "negative": None}),
    json.dumps({**GOOD, "negative": 7}),
    json.dumps({**GOOD, "positive": ["a"]}),
    json.dumps({**GOOD, "prompt": ""}),
    json.dumps({**GOOD, "prompt": " \n"}),
    json.dumps({**GOOD, "positive": "  "}),
    json.dumps({**GOOD, "negative": GOOD["positive"]}),
    json.dumps(GOOD) + json.dumps(GOOD),
    json.dumps(GOOD) + ",",
    "[" * 100000,
    '{"prompt": ' + "7" * 5000 + "}",
    json.dumps({**GOOD, "prompt": "\ud800"}),  # no text: half of a sign
]


@pytest.mark.parametrize("line", FAULTY, ids=range(len(FAULTY)))
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_faulty_line_is_named_by_its_number(tmp_path: Path, line: str, before: int) -> None:
    path = write(tmp_path, [*(made(i) for i in range(before)), line, made(90), "{"])
    with pytest.raises(UserError) as caught:
        read_static_set(path)
    said = str(caught.value)
    assert said.startswith(f"pairs {path}, line {before + 1}: must be a JSON object")
    assert all(key in said for key in GOOD)
    assert "\n" not in said


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(GOOD).encode() + b"\xff\xfe")
    for path in (latin, tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(UserError) as caught:
            read_static_set(path)
        assert str(caught.value).startswith(f"pairs {path}: cannot be read")
        assert "\n" not in str(caught.value)


def test_a_file_without_a_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        read_static_set(write(tmp_path, []))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [made(i) for i in range(3)])
    monkeypatch.setattr(static_sets, "_LARGEST", path.stat().st_size)
    assert len(read_static_set(path)) == 3
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(UserError, match=r"huge\.jsonl: larger than"):
        read_static_set(huge)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8")))
@example(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
@settings(max_examples=200)
def test_whatever_a_file_holds_it_is_a_set_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    said = ""
    try:
        assert read_static_set(path)
    except UserError as error:
        said = str(error)
    assert not said or said.startswith(f"pairs {path}")
    assert "\n" not in said


# ------------------------------------------------------------------ the draw


def test_the_draw_follows_from_the_seed_and_the_file(tmp_path: Path) -> None:
    task = scoring(tmp_path, ["something else"])
    path = write(tmp_path, [made(i) for i in range(40)])
    one = drawn(task, path, wanted=10, seed=4)
    assert len(one) == 10
    assert drawn(scoring(tmp_path, ["something else"]), path, wanted=10, seed=4) == one
    assert prompts(drawn(task, path, wanted=10, seed=5)) != prompts(one)
    assert drawn(task, path, wanted=20, seed=4)[:10] == one


@pytest.mark.parametrize(("wanted", "expected"), [(0, 0), (1, 1), (7, 7), (8, 8), (9, 8)])
def test_as_many_pairs_are_drawn_as_are_wanted_or_there(
    tmp_path: Path, wanted: int, expected: int
) -> None:
    path = write(tmp_path, [made(i) for i in range(8)])
    found = drawn(scoring(tmp_path, ["something else"]), path, wanted)
    assert len(found) == len(prompts(found)) == expected


def test_every_line_is_a_pair_also_where_prompts_are_the_same(tmp_path: Path) -> None:
    rows = [made(1, "Is it so"), made(2, "Is it so"), made(3, "is it not so"), made(1, "Is it so")]
    path = write(tmp_path, rows)
    task = scoring(tmp_path, ["something else"])
    for seed in range(6):
        found = drawn(task, path, seed=seed)
        assert sorted(pair.document["prompt"] for pair in found) == sorted(
            r["prompt"] for r in rows
        )


@pytest.mark.parametrize("settings", [{}, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("name", ["tiny_choice", "tiny_text", "tiny_word", "tiny_input"])
def test_a_pair_is_one_prompt_as_the_run_writes_it_with_two_answers(
    tmp_path: Path, tasks_folder: Path, name: str, settings: dict[str, Any]
) -> None:
    task = load(tasks_folder, name, **settings)
    rows = [made(i) for i in range(6)]
    found = drawn(task, write(tmp_path, rows), prompt="Q: {{ prompt }}\nA:")
    assert len(found) == 6
    for pair in found:
        row = pair.document
        assert row in rows
        asked = f"Q: {row['prompt']}\nA:"
        if settings:
            expected = f"<s> system : be good </s> <s> user : {asked} </s> <s> assistant :"
        else:
            expected = asked
        assert pair.positive[0] == pair.negative[0] == expected
        between = "" if settings else " "
        assert pair.positive[1] == between + row["positive"]
        assert pair.negative[1] == between + row["negative"]


@pytest.mark.parametrize("apply_chat_template", [False, True])
def test_a_system_instruction_stands_before_every_prompt(
    tmp_path: Path, tasks_folder: Path, apply_chat_template: bool
) -> None:
    settings: dict[str, Any] = {
        **CHAT,
        "apply_chat_template": apply_chat_template,
        "system_instruction": "be bad",
    }
    task = load(tasks_folder, "tiny_choice", **settings)
    for pair in drawn(task, write(tmp_path, [made(i) for i in range(3)])):
        before, _, _ = pair.positive[0].partition(pair.document["prompt"])
        assert "be bad" in before
        assert ("assistant" in pair.positive[0]) is apply_chat_template


def test_a_prompt_is_written_by_the_recipe_s_template(tmp_path: Path) -> None:
    task = scoring(tmp_path, ["something else"])
    path = write(tmp_path, [made(1)])
    [pair] = drawn(task, path, prompt="{{ prompt | upper }} ({{ positive | length }}) :")
    assert pair.positive[0] == f"IS 1 A NUMBER ({len(made(1)['positive'])}) :"
    for faulty in ("{{ question }}", "{{ prompt", "{{ prompt.__class__ }}"):
        with pytest.raises(UserError, match="recipe mine: prompt ") as caught:
            drawn(task, path, prompt=faulty)
        assert "\n" not in str(caught.value)


def test_a_pair_is_known_by_its_line_and_its_question(tmp_path: Path) -> None:
    task = scoring(tmp_path, ["something else"])
    path = write(tmp_path, [made(1, "Is it"), made(2, "is it not")])
    found = {pair.document["prompt"]: pair.known_as for pair in drawn(task, path)}
    assert found["Is it"].content == digest(made(1, "Is it"))
    assert found["Is it"].question == digest({"question": "isit"})
    assert len({known.content for known in found.values()}) == 2
    assert len({known.question for known in found.values()}) == 2


# ------------------------------------------------------------------ what is scored


def planted(prompt: str) -> list[Document]:
    """A document of a task that scores the question of a pair."""
    return [{"question": prompt, "choices": ["a", "b"], "label": 0}]


@pytest.mark.parametrize(
    "question",
    [
        "is 3 a number",
        "  IS 3\nA   Number",
        "Is '3' a number?",
        "think well : is 3 a number",
        "is 3 a number or none of them",
        "first a passage .\n\nis 3 a\tnumber ? answer with yes or no",
    ],
)
def test_a_pair_whose_prompt_stands_in_a_scored_document_is_left_out(
    tmp_path: Path, question: str
) -> None:
    path = write(tmp_path, [made(i) for i in range(8)])
    task = scoring(tmp_path, ["one more", question, "something else"])
    for seed in range(4):
        found = drawn(task, path, seed=seed)
        assert prompts(found) == {f"is {i} a number" for i in range(8) if i != 3}


def test_two_scored_documents_side_by_side_make_no_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, [made(1, "one two")])
    task = scoring(tmp_path, ["one", "two"], doc_to_text="{{question}}")
    assert len(drawn(task, path)) == 1


def test_every_document_that_is_scored_counts_whatever_the_limit_of_the_run(
    tmp_path: Path,
) -> None:
    task = scoring(tmp_path, [f"is {i} a number" for i in range(5, 30)])
    task.task.build_all_requests(limit=2)
    found = drawn(task, write(tmp_path, [made(i) for i in range(12)]))
    assert prompts(found) == {f"is {i} a number" for i in range(5)}


def test_what_the_task_that_is_scored_asks_counts_not_what_the_other_does(tmp_path: Path) -> None:
    """With mask_from the pairs are written as another task's, which is not scored."""
    scored = scoring(tmp_path, ["is 1 a number"])
    other = make_task(tmp_path, "other", {"validation": planted("is 2 a number")})
    path = write(tmp_path, [made(i) for i in range(4)])
    recipe = Recipe("mine", "static", pairs=str(path))
    assert prompts(static_pairs(scored, other, recipe, 9, 0)) == {
        f"is {i} a number" for i in (0, 2, 3)
    }
