"""Recipe files: found by name or path, and every fault told at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.recipes import POSSIBLE, values
from sadi_lmeval.errors import UserError
from sadi_lmeval.folders import contrastive_sets
from sadi_lmeval.pairs.recipe import Recipe, load_recipe

pytestmark = pytest.mark.quick

GOOD = {"recipe": "mine", "contrast": "choice"}


def write(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return path


OURS = {
    "right_wrong": "choice",
    "right_wrong_mc2": "choice",
    "opposite_sentiment": "choice",
    "other_target": "other_target",
    "wrong_number": "wrong_number",
    "wrong_number_worked": "wrong_number",
    "true_false": "answers",
    "benign_hateful": "answers",
    "truthfulness": "static",
    "politeness": "static",
    "refusal_of_falsehoods": "static",
}


@pytest.mark.parametrize("name", OURS)
def test_the_package_has_its_recipes(name: str) -> None:
    found = load_recipe(name, [])
    assert (found.recipe, found.contrast) == (name, OURS[name])


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


def test_a_faulty_recipe_in_a_user_s_folder_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "mine.yaml", f"{yaml.safe_dump(GOOD)}gold: [1\n")
    assert load_recipe("right_wrong", [tmp_path])
    assert f"A recipe is passed over: file {path}: not valid YAML" in caplog.text
    with pytest.raises(UserError, match="unknown recipe 'mine'"):
        load_recipe("mine", [tmp_path])


def test_the_digest_follows_what_changes_the_pairs_and_nothing_else() -> None:
    one = Recipe("a", "choice", "for people", "{{ label }}")
    assert one.digest == Recipe("b", "choice", "for other people", "{{ label }}").digest
    others = [
        Recipe("a", "choice"),
        Recipe("a", "choice", gold="0"),
        Recipe("a", "choice", gold="{{ label }}", wrong="[0]"),
        Recipe("a", "wrong_number"),
        Recipe("a", "wrong_number", answer="{{ solution }}"),
        Recipe("a", "answers", right="{{ x }}", wrong="{{ y }}"),
        Recipe("a", "answers", right="{{ y }}", wrong="{{ x }}"),
        Recipe("a", "static", pairs="a.jsonl"),
        Recipe("a", "static", pairs="a.jsonl", prompt="Q: {{ prompt }}"),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 10


def test_the_digest_of_a_static_recipe_does_not_depend_on_where_its_file_is() -> None:
    """What stands in the file is told apart by its texts."""
    one, other = (Recipe("a", "static", pairs=name) for name in ("/a/x.jsonl", "/b/x.jsonl"))
    assert one.digest == other.digest


# ------------------------------------------------------------------ keys of each contrast

TEXTS = {key: f"{{{{ {key} }}}}" for key in ("gold", "right", "wrong", "answer", "prompt")}
NEEDED = {"answers": {"right", "wrong"}, "static": {"pairs"}}


def of_contrast(folder: Path, contrast: str, *keys: str) -> Path:
    """A recipe file with some keys; its pairs stand beside it."""
    write(folder / "some.jsonl", "")
    every = {**TEXTS, "pairs": "some.jsonl"}
    content = {"recipe": "mine", "contrast": contrast, **{key: every[key] for key in keys}}
    return write(folder / "mine.yaml", content)


@pytest.mark.parametrize("contrast", POSSIBLE)
def test_a_contrast_takes_its_own_keys(tmp_path: Path, contrast: str) -> None:
    for keys in (NEEDED.get(contrast, set()), POSSIBLE[contrast]):
        found = load_recipe(str(of_contrast(tmp_path, contrast, *keys)), [])
        for key in TEXTS:
            expected = TEXTS[key] if key in keys else None
            if key == "prompt" and expected is None:
                expected = "{{ prompt }}"
            assert getattr(found, key) == expected
        assert (found.pairs is not None) is (contrast == "static")


@pytest.mark.parametrize("contrast", POSSIBLE)
@pytest.mark.parametrize("key", [*TEXTS, "pairs"])
def test_a_key_of_another_contrast_is_refused_by_its_name(
    tmp_path: Path, contrast: str, key: str
) -> None:
    path = of_contrast(tmp_path, contrast, *(NEEDED.get(contrast, set()) | {key}))
    if key in POSSIBLE[contrast]:
        assert load_recipe(str(path), []).contrast == contrast
        return
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), [])
    assert f"{path}: contrast {contrast} has no {key}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("contrast", "given", "missing"),
    [
        ("answers", [], ["right", "wrong"]),
        ("answers", ["right"], ["wrong"]),
        ("answers", ["wrong", "answer"], ["right"]),
        ("static", ["prompt"], ["pairs"]),
    ],
)
def test_keys_that_a_contrast_needs_are_asked_for(
    tmp_path: Path, contrast: str, given: list[str], missing: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(str(of_contrast(tmp_path, contrast, *given)), [])
    for key in ("right", "wrong", "pairs"):
        assert (f"contrast {contrast} needs {key}" in str(caught.value)) is (key in missing)


@pytest.mark.parametrize("key", [*TEXTS, "pairs", "description", "recipe"])
@pytest.mark.parametrize("value", [7, None, ["a"], {"a": 1}, True])
def test_every_key_must_be_text(tmp_path: Path, key: str, value: Any) -> None:
    contrast = next((c for c in POSSIBLE if key in POSSIBLE[c]), "choice")
    path = of_contrast(tmp_path, contrast, *NEEDED.get(contrast, set()))
    content = {**yaml.safe_load(path.read_text(encoding="utf-8")), key: value}
    with pytest.raises(UserError, match=f"{key} must be text, not ") as caught:
        load_recipe(str(write(path, content)), [])
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ the file of the pairs

PAIR = '{"prompt": "p", "positive": "a", "negative": "b"}\n'


def static(folder: Path, pairs: str) -> Path:
    """A static recipe in ``folder/own``, beside ``folder/outside.jsonl``."""
    (folder / "own" / "below").mkdir(parents=True)
    for path in ("outside.jsonl", "own/inside.jsonl", "own/below/deep.jsonl"):
        write(folder / path, PAIR)
    return write(
        folder / "own" / "mine.yaml", {"recipe": "mine", "contrast": "static", "pairs": pairs}
    )


@pytest.mark.parametrize("pairs", ["inside.jsonl", "./inside.jsonl", "below/../inside.jsonl"])
def test_the_pairs_stand_beside_the_recipe_wherever_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: str
) -> None:
    path = static(tmp_path, pairs)
    expected = (tmp_path / "own" / "inside.jsonl").resolve()
    for folder, name in ((tmp_path, str(path)), (path.parent, "mine.yaml")):
        monkeypatch.chdir(folder)
        found = load_recipe(name, [])
        assert found.pairs is not None
        assert Path(found.pairs).is_absolute()
        assert Path(found.pairs).resolve() == expected
    assert load_recipe("mine", [path.parent]) == found


@pytest.mark.parametrize(
    "pairs",
    [
        "/etc/passwd",
        "../outside.jsonl",
        "../own/../outside.jsonl",
        "below/../../outside.jsonl",
        "below/deep.jsonl",
        "..",
        ".",
        "",
        "/",
        "~/outside.jsonl",
    ],
)
def test_pairs_elsewhere_than_in_the_recipe_s_own_folder_are_refused(
    tmp_path: Path, pairs: str
) -> None:
    path = static(tmp_path, pairs)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), [])
    assert str(caught.value).startswith(f"recipe file {path}: pairs must be a file in the recipe's")


def test_an_absolute_path_and_a_link_that_lead_out_of_the_folder_are_refused(
    tmp_path: Path,
) -> None:
    path = static(tmp_path, str(tmp_path / "outside.jsonl"))
    with pytest.raises(UserError, match="in the recipe's own folder"):
        load_recipe(str(path), [])
    (path.parent / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (path.parent / "folder").symlink_to(tmp_path)
    (path.parent / "inner.jsonl").symlink_to(path.parent / "inside.jsonl")
    for pairs, allowed in (
        ("link.jsonl", False),
        ("folder/outside.jsonl", False),
        ("inner.jsonl", True),
    ):
        write(path, {"recipe": "mine", "contrast": "static", "pairs": pairs})
        if allowed:
            assert load_recipe(str(path), []).contrast == "static"
        else:
            with pytest.raises(UserError, match="in the recipe's own folder"):
                load_recipe(str(path), [])


def test_a_recipe_that_is_reached_by_a_link_has_its_pairs_where_it_really_is(
    tmp_path: Path,
) -> None:
    path = static(tmp_path, "inside.jsonl")
    (tmp_path / "linked.yaml").symlink_to(path)
    found = load_recipe(str(tmp_path / "linked.yaml"), [])
    assert Path(str(found.pairs)).resolve() == (path.parent / "inside.jsonl").resolve()


@pytest.mark.parametrize("pairs", ["none.jsonl", "below", "a\0b", "x" * 300, "loop.jsonl"])
def test_pairs_that_are_no_file_are_refused_in_one_line(tmp_path: Path, pairs: str) -> None:
    path = static(tmp_path, pairs)
    (path.parent / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), [])
    assert str(caught.value).startswith(f"recipe file {path}: pairs")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ anything that YAML can say

keys = st.one_of(
    st.sampled_from(["recipe", "contrast", "description", *TEXTS, "pairs"]),
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
    st.builds(
        "recipe: mine\ncontrast: {}\n{}: {}\n{}: {}".format,
        st.sampled_from(list(POSSIBLE)),
        *(st.sampled_from([*TEXTS, "pairs"]), scalars) * 2,
    ),
)


@given(texts)
@example("recipe: mine\ncontrast: choice\ndescription: 2001-99-99")
@example("recipe: mine\ncontrast: choice\ndescription: 0x_")
@example("recipe: mine\ncontrast: choice\ndescription: !!bool x")
@example("recipe: mine\ncontrast: choice\ndescription: !!timestamp x")
@example("recipe: mine\ncontrast: choice\ndescription: " + "[" * 5000)
@settings(
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
        assert found.contrast in POSSIBLE
        assert isinstance(found.description, str)
        assert all(isinstance(getattr(found, key) or "", str) for key in TEXTS)
        assert found.pairs is None or Path(found.pairs).resolve() == path.resolve()
    assert load_recipe("right_wrong", [tmp_path]) is not None


def test_a_folder_that_is_called_like_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    write(tmp_path / "mine.yaml", GOOD)
    assert load_recipe("mine", [tmp_path]).recipe == "mine"
    with contextlib.suppress(UserError):
        load_recipe(str(tmp_path / "folder.yaml"), [])
