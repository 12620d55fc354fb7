"""Benchmark files: which one covers a task, and every fault told at once."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.recipes import values
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.folders import task_configs
from sadi_lmeval.harness.run_task import RunTask
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.pairs import benchmark as benchmark_module
from sadi_lmeval.pairs.benchmark import Benchmark, find_benchmark, read_benchmark
from sadi_lmeval.pairs.recipe import load_recipe
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.steering import settings_for
from sadi_lmeval.storage import yaml_files
from sadi_lmeval.storage.yaml_files import files_looked_at_once


def write(folder: Path, name: str, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump({"benchmark": name, **content}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("truthfulqa_mc1", "right_wrong"),
        ("truthfulqa_mc2", "right_wrong_mc2"),
        ("boolq", "right_wrong"),
        ("xnli_en", "right_wrong"),
        ("mmlu_abstract_algebra", "right_wrong"),
        ("triviaqa", "other_answer"),
        ("nq_open", "other_target"),
        ("gsm8k", "wrong_number"),
    ],
)
def test_the_paper_s_benchmarks_have_their_recipes(task: str, recipe: str) -> None:
    assert find_benchmark(task, []).recipe == recipe


def test_mmlu_never_takes_pairs_from_its_test_split() -> None:
    assert find_benchmark("mmlu_virology", []).pairs_from == ("dev", "validation")


def test_every_benchmark_of_the_package_is_sound_and_names_a_recipe_that_is_there() -> None:
    found = [read_benchmark(path) for path in sorted(task_configs().rglob("*.yaml"))]
    assert sum(benchmark is not None for benchmark in found) >= 6
    for benchmark in found:
        if benchmark is not None and benchmark.recipe is not None:
            load_recipe(benchmark.recipe, [])


def test_a_task_that_no_file_names_leaves_everything_open() -> None:
    found = find_benchmark("nobody_knows", [])
    assert found == Benchmark(benchmark="nobody_knows", tasks=("nobody_knows",))
    assert found.settings == {}


@pytest.mark.parametrize(
    ("element", "user", "expected", "tried"),
    [
        ("head", {}, {2}, True),  # K is named, delta is chosen
        ("neuron", {}, {3.0}, True),  # delta is named, K is chosen
        ("hidden", {}, {2, 9.0}, False),  # both are named
        ("head", {"top_k": 5}, {5, 9.0}, False),
        ("head", {"delta": 4.0}, {2, 4.0}, False),
        ("neuron", {"delta": 4.0}, {100, 4.0}, False),
        ("hidden", {"top_k": "auto"}, {9.0}, True),
    ],
)
def test_what_a_file_names_counts_where_the_user_gives_nothing(
    tmp_path: Path, element: Any, user: dict[str, Any], expected: set[float], tried: bool
) -> None:
    named = {
        "sadi-head": {"top_k": 2},
        "sadi-neuron": {"delta": 3},
        "sadi-hidden": {"top_k": 2, "delta": 9},
    }
    write(tmp_path, "a.yaml", tasks=["x"], settings=named)
    task = RunTask(SimpleNamespace(config=SimpleNamespace(task="x")))
    arm = read_arm("sadi", {"element": element, "include_path": str(tmp_path), **user})
    site = Site(element, (torch.nn.Identity(),) * 30, "input", 100, 1)
    every, chosen = settings_for(task, arm, site)
    same = {k for k in {s[0] for s in every} if all(s[0] == k for s in every)}
    same |= {d for d in {s[1] for s in every} if all(s[1] == d for s in every)}
    assert (same, chosen) == (expected, tried)


def test_what_a_file_names_of_a_narrower_arm_counts_before_that_of_a_wider_one(
    tmp_path: Path,
) -> None:
    """``random`` sets an argument more than ``sadi-head``, of whose kind it is."""
    named = {"sadi-head": {"top_k": 2, "delta": 3}, "random": {"top_k": 5, "delta": 7}}
    write(tmp_path, "a.yaml", tasks=["x"], settings=named)
    task = RunTask(SimpleNamespace(config=SimpleNamespace(task="x")))
    site = Site("head", (torch.nn.Identity(),) * 30, "input", 100, 1)
    for selection, setting in (("top", (2, 3.0)), ("bottom", (2, 3.0)), ("random", (5, 7.0))):
        arm = read_arm("sadi", {"selection": selection, "include_path": str(tmp_path)})
        assert settings_for(task, arm, site) == ([setting], False)


def test_a_grid_of_the_user_s_counts_more_than_what_a_file_names(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", tasks=["x"], settings={"sadi-head": {"top_k": 2, "delta": 3}})
    task = RunTask(SimpleNamespace(config=SimpleNamespace(task="x")))
    site = Site("head", (torch.nn.Identity(),) * 3, "input", 4, 1)
    arm = read_arm("sadi", {"include_path": str(tmp_path), "grid": "1/5x9"})
    assert settings_for(task, arm, site) == ([Setting(1, 9.0), Setting(5, 9.0)], True)


@pytest.mark.parametrize(("method", "count"), [("iti", 5), ("caa", 12)])
def test_what_a_file_names_of_an_arm_counts_for_no_other_method(
    tmp_path: Path, method: Any, count: int
) -> None:
    numbers = {"top_k": 2, "delta": 3}
    write(
        tmp_path, "a.yaml", tasks=["x"], settings={"sadi-head": numbers, "sadi-hidden": {**numbers}}
    )
    task = RunTask(SimpleNamespace(config=SimpleNamespace(task="x")))
    site = Site("head", (torch.nn.Identity(),) * 3, "input", 4, 1)
    every, chosen = settings_for(task, read_arm(method, {"include_path": str(tmp_path)}), site)
    assert (len(every), chosen) == (count, True)


def test_the_user_s_folder_wins_over_the_package_and_the_first_over_the_second(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write(folder / "below", f"{folder.name}.yaml", tasks=["boolq"])
    assert find_benchmark("boolq", folders).benchmark == "one.yaml"
    assert find_benchmark("boolq", folders[::-1]).benchmark == "two.yaml"
    assert find_benchmark("copa", folders) == find_benchmark("copa", [])


def test_a_name_counts_more_than_a_pattern_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", tasks=["tiny_*"])
    write(tmp_path, "b.yaml", tasks=["other", "tiny_sum"])
    write(tmp_path, "c.yaml", tasks=["tiny_s*"])
    assert find_benchmark("tiny_sum", [tmp_path]).benchmark == "b.yaml"
    assert find_benchmark("tiny_some", [tmp_path]).benchmark == "c.yaml"  # the longer pattern
    assert find_benchmark("tiny_other", [tmp_path]).benchmark == "a.yaml"
    assert find_benchmark("tiny", [tmp_path]).benchmark == "tiny"


@pytest.mark.parametrize(
    ("pattern", "task", "covered"),
    [
        ("mmlu_*", "mmlu_law", True),
        ("mmlu_*", "my_mmlu_law", False),
        ("mmlu_?", "mmlu_law", False),
        ("MMLU_*", "mmlu_law", False),
        ("xnli_[de]*", "xnli_en", True),
        ("mmlu.law", "mmlu_law", False),
    ],
)
def test_patterns_cover_whole_names_in_their_case(
    tmp_path: Path, pattern: str, task: str, covered: bool
) -> None:
    write(tmp_path, "mine.yaml", tasks=[pattern])
    assert (find_benchmark(task, [tmp_path]).benchmark == "mine.yaml") == covered


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "bad.yaml",
        task=["x"],
        recipe=["right_wrong"],
        pairs_from="train",
        folds=1,
        n_pairs="many",
        settings={"sadi-heads": {"top_k": 3}, "sadi-head": {"delta": "strong", "deltas": 1}},
    )
    with pytest.raises(UserError) as caught:
        find_benchmark("anything", [tmp_path])
    said = str(caught.value)
    assert "\n" not in said
    for words in (
        str(path),
        "unknown key 'task' (did you mean 'tasks'?)",
        "tasks must be a list",
        "recipe must be a name",
        "pairs_from must be a list",
        "folds must be a whole number of at least 2, not 1",
        "n_pairs must be a whole number of at least 1, not 'many'",
        "settings of 'sadi-heads': did you mean 'sadi-head'",
        "settings of sadi-head: delta must be a finite number, not 'strong'",
        "settings of sadi-head: 'deltas': did you mean 'delta'?",
    ):
        assert words in said


@pytest.mark.parametrize(
    "content",
    [
        {"folds": 2.0},
        {"folds": True},
        {"n_pairs": 0},
        {"tasks": []},
        {"tasks": "boolq"},
        {"tasks": [1]},
        {"settings": {"sadi-head": {"top_k": 0}}},
        {"settings": {"sadi-head": {"top_k": -5}}},
        {"settings": {"sadi-head": {"top_k": 1.5}}},
        {"settings": {"sadi-head": {"top_k": True}}},
        {"settings": {"sadi-head": {"delta": math.nan}}},
        {"settings": {"sadi-head": {"delta": math.inf}}},
        {"settings": {"sadi-head": {"delta": False}}},
        {"settings": {"sadi-head": 9}},
        {"settings": {"none": {}}},
        {"settings": 9},
        {"benchmark": ["a", "list"]},
    ],
    ids=str,
)
def test_a_value_that_the_command_line_would_refuse_is_refused(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    path = write(tmp_path, "bad.yaml", **{"tasks": ["x"], **content})
    with pytest.raises(UserError) as caught:
        read_benchmark(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "task: x\nprocess_docs: !function utils.process", "- [", "recipe: r\ncontrast: choice"],
)
def test_files_of_other_kinds_are_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    assert read_benchmark(path) is None
    assert find_benchmark("boolq", [tmp_path]) == find_benchmark("boolq", [])


@pytest.mark.parametrize("fault", ["n_pairs: [1", "recipe: *unknown", "x: !function a.b", "\tx: 1"])
def test_a_faulty_file_of_ours_is_refused_not_passed_over(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"# mine\nbenchmark: mine\ntasks: [boolq]\n{fault}\n")
    with pytest.raises(UserError, match=f"{path}: not valid YAML"):
        find_benchmark("boolq", [tmp_path])


KEYS = ["tasks", "recipe", "pairs_from", "folds", "n_pairs", "settings", "taks"]
numbers = st.one_of(st.integers(-3, 300), st.floats(), values)
contents = st.fixed_dictionaries(
    {"benchmark": st.one_of(st.text(max_size=5), values)},
    optional={
        "tasks": st.one_of(st.lists(st.text(max_size=5), max_size=3), values),
        "recipe": values,
        "pairs_from": st.one_of(st.lists(st.text(max_size=5), max_size=2), values),
        "folds": numbers,
        "n_pairs": numbers,
        "settings": st.one_of(
            st.dictionaries(
                st.sampled_from(["sadi-head", "caa", "sadi-hiden"]),
                st.dictionaries(st.sampled_from(["top_k", "delta", "layer"]), numbers, max_size=2),
                max_size=2,
            ),
            values,
        ),
        "taks": values,
    },
).map(yaml.safe_dump)


@given(contents)
@example("benchmark: b\ntasks: [x]\nrecipe: 2001-99-99")
@example("benchmark: b\ntasks: [x]\nsettings: {sadi-head: {top_k: 3, delta: -2.5}}")
@example("task: a harness task\nmetadata: {date: 2001-99-99}")
@example("task: a harness task\nmetadata: {version: 0x_}")
@example("benchmark: b\ntasks: [x]\nrecipe: !!bool x")
@example("a: " + "[" * 5000)
@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_a_file_says_it_is_sound_or_passed_over_or_refused_in_one_line(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    found: Benchmark | str | None
    try:
        found = read_benchmark(path)
    except UserError as error:
        found = str(error)
    if found is None:
        return
    if isinstance(found, str):
        assert str(path) in found
        assert "\n" not in found
        return
    assert isinstance(found.benchmark, str)
    assert found.tasks
    assert all(isinstance(name, str) for name in (*found.tasks, *found.pairs_from))
    assert found.recipe is None or isinstance(found.recipe, str)
    assert found.folds >= 2
    assert found.n_pairs is None or found.n_pairs >= 1
    for numbers in found.settings.values():
        assert numbers.get("top_k", 1) >= 1
        assert all(math.isfinite(number) for number in numbers.values())


def test_a_folder_that_is_called_like_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    write(tmp_path, "mine.yaml", tasks=["x"])
    assert find_benchmark("x", [tmp_path]).benchmark == "mine.yaml"


def test_within_a_run_files_are_looked_at_once_and_after_it_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the time of a run would grow as the square of its tasks."""
    looked: list[Path] = []
    read = yaml_files.read_if_ours

    def watched(path: Path, key: str) -> Any:
        looked.append(path)
        return read(path, key)

    monkeypatch.setattr(benchmark_module, "read_if_ours", watched)
    names = [f"own_{number}" for number in range(20)]
    for name in names:
        write(tmp_path, f"{name}.yaml", tasks=[name], n_pairs=3)
    with files_looked_at_once():
        found = [find_benchmark(name, [tmp_path]).n_pairs for name in names]
    assert found == [3] * 20
    assert len(looked) == len(set(looked)) == 20
    write(tmp_path, f"{names[0]}.yaml", tasks=[names[0]], n_pairs=77)
    assert find_benchmark(names[0], [tmp_path]).n_pairs == 77
