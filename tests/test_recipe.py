"""Recipe files: found by name or path, and every fault told at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sadi_lmeval.errors import UserError
from sadi_lmeval.folders import contrastive_sets
from sadi_lmeval.recipe import Recipe, load_recipe

GOOD = {"recipe": "mine", "contrast": "choice"}


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["right_wrong", "right_wrong_mc2", "other_target", "wrong_number"])
def test_the_package_has_its_recipes(name: str) -> None:
    assert load_recipe(name, []).recipe == name


def test_every_yaml_file_of_the_package_is_a_sound_recipe() -> None:
    for path in sorted(contrastive_sets().rglob("*.yaml")):
        found = load_recipe(str(path), [])
        assert found.description, path
        assert load_recipe(found.recipe, []) == found


def test_a_recipe_is_found_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "any name.yaml", {**GOOD, "gold": "{{ label }}", "description": "x"})
    assert load_recipe(str(path), []) == Recipe("mine", "choice", "x", "{{ label }}")


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"recipe=no/such\.yaml: no such file"):
        load_recipe("no/such.yaml", [])


def test_the_user_s_folder_wins_over_the_package_and_the_first_over_the_second(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / "below").mkdir(parents=True)
        content = {"recipe": "right_wrong", "contrast": "wrong_number", "description": folder.name}
        write(folder / "below" / "file.yaml", content)
    assert load_recipe("right_wrong", folders).description == "one"
    assert load_recipe("right_wrong", folders[::-1]).description == "two"
    assert load_recipe("right_wrong", []).contrast == "choice"


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'wrong_numbr'.*did you mean 'wrong_number'") as caught:
        load_recipe("wrong_numbr", [])
    assert "\n" not in str(caught.value)
    write(tmp_path / "file.yaml", {"recipe": "special", "contrast": "choice"})
    with pytest.raises(UserError, match="'special'"):
        load_recipe("specal", [tmp_path])
    with pytest.raises(UserError, match=r"allowed: .*right_wrong.*wrong_number"):
        load_recipe("zzzzzz", [])


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    content = {"contrast": "choise", "glod": "{{ label }}", "extra": 1, "description": 7}
    path = write(tmp_path / "file.yaml", content)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), [])
    said = str(caught.value)
    assert "\n" not in said
    for words in (
        str(path),
        "unknown key 'glod' (did you mean 'gold'?)",
        "unknown key 'extra'",
        "missing key 'recipe'",
        "contrast 'choise': did you mean 'choice'?",
        "description must be text, not 7",
    ):
        assert words in said


@pytest.mark.parametrize(
    "text",
    ["", "just text", "- a\n- list", "7", "{", "a: b: c", "\x00", "recipe: !!python/name:os"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "file.yaml", text)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), [])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"recipe: \xff\xfe")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(str(path), [])


@pytest.mark.parametrize(
    "text",
    [
        "task: x\nprocess_docs: !function utils.process",
        "recipe: only a name",
        "- [",
        "benchmark: b",
    ],
)
def test_other_files_in_a_user_s_folder_do_no_harm(tmp_path: Path, text: str) -> None:
    write(tmp_path / "other.yaml", text)
    write(tmp_path / "mine.yaml", GOOD)
    assert load_recipe("mine", [tmp_path]) == Recipe("mine", "choice")


def test_the_digest_follows_what_changes_the_pairs_and_nothing_else() -> None:
    one = Recipe("a", "choice", "for people", "{{ label }}")
    assert one.digest == Recipe("b", "choice", "for other people", "{{ label }}").digest
    others = [Recipe("a", "choice"), Recipe("a", "choice", gold="0"), Recipe("a", "wrong_number")]
    assert len({one.digest, *(other.digest for other in others)}) == 4


# ------------------------------------------------------------------ anything that YAML can say

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.dates(),
        st.binary(max_size=4),
        st.sampled_from(["choice", "other_target", "wrong_number", "{{ label }}"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
keys = st.one_of(
    st.sampled_from(["recipe", "contrast", "description", "gold"]),
    st.text(max_size=6),
    st.integers(),
    st.none(),
    st.booleans(),
)
contents = st.one_of(st.dictionaries(keys, values, max_size=5), values).map(
    lambda content: yaml.safe_dump(content, allow_unicode=True)
)
scalars = st.sampled_from(
    ["2001-99-99", "0x_", "12:99", "!!int x", "!!bool x", "!!timestamp x", "&a [*a]", ".nan", "~"]
)
texts = st.one_of(
    contents,
    st.text(max_size=40),
    st.builds("recipe: {}\ncontrast: {}\ngold: {}".format, scalars, scalars, scalars),
)


@given(texts)
@example("recipe: mine\ncontrast: choice\ndescription: 2001-99-99")
@example("recipe: mine\ncontrast: choice\ndescription: 0x_")
@example("recipe: mine\ncontrast: choice\ndescription: !!bool x")
@example("recipe: mine\ncontrast: choice\ndescription: !!timestamp x")
@example("recipe: mine\ncontrast: choice\ndescription: " + "[" * 5000)
@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_a_file_says_it_is_a_recipe_or_refused_in_one_line(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found: Recipe | str
    try:
        found = load_recipe(str(path), [])
    except UserError as error:
        found = str(error)
    if isinstance(found, str):
        assert str(path) in found
        assert "\n" not in found
    else:
        assert isinstance(found.recipe, str)
        assert found.contrast in ("choice", "other_target", "wrong_number")
        assert isinstance(found.description, str)
        assert found.gold is None or isinstance(found.gold, str)
    assert load_recipe("right_wrong", [tmp_path]) is not None


def test_a_folder_that_is_called_like_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    write(tmp_path / "mine.yaml", GOOD)
    assert load_recipe("mine", [tmp_path]).recipe == "mine"
    with contextlib.suppress(UserError):
        load_recipe(str(tmp_path / "folder.yaml"), [])
