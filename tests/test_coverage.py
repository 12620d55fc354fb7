"""What the benchmark files cover, and whether the data behind it can be had."""

from __future__ import annotations

import json
import time
from functools import partialmethod
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
import yaml
from lm_eval.tasks import TaskManager

from sadi_lmeval.errors import UserError
from sadi_lmeval.folders import task_configs
from sadi_lmeval.harness.run_tasks import load_tasks
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.benchmark import read_benchmark
from sadi_lmeval.pairs.coverage import (
    Covered,
    DataSet,
    covered,
    data_set,
    folded,
    reach,
    reached,
    stay_offline,
    without_network,
)
from sadi_lmeval.pairs.plan import find_plan
from sadi_lmeval.pairs.recipe import load_recipe
from sadi_lmeval.storage.yaml_files import yaml_files

OWN_ROWS = ("sadi_customers", "sadi_facts")
SHIPPED = [found for path in yaml_files(task_configs()) if (found := read_benchmark(path))]


@pytest.fixture
def without_the_harness_s_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To index them takes seconds."""
    init = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(init, include_defaults=False))


@pytest.fixture(scope="module")
def shipped() -> list[Covered]:
    """What is covered without files of the user's."""
    return covered([])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For the user's files."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def write(folder: Path, name: str, **content: Any) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def write_task(folder: Path, name: str, **splits: str) -> None:
    """A task with these splits over the data set ``made/up``."""
    write(
        folder,
        name,
        task=name,
        dataset_path="made/up",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="label",
        output_type="multiple_choice",
        **{f"{kind}_split": split for kind, split in splits.items()},
    )


def lay_out(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    """A folder as a data set with the configuration ``plain``."""
    (folder / "plain").mkdir(parents=True, exist_ok=True)
    files = []
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "plain" / f"{split}.jsonl").write_text(text)
        files.append({"split": split, "path": f"plain/{split}.jsonl"})
    head = {"configs": [{"config_name": "plain", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")


def rows_of(name: str, count: int = 9) -> list[dict[str, Any]]:
    return [{"question": f"{name} {n}", "choices": ["a", "b"], "label": 0} for n in range(count)]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the current directory, laid out as the data set ``made/up``; all else is away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = tmp_path / "made" / "up"
    lay_out(found, {"train": rows_of("train")})
    return found


# ------------------------------------------------------------------ what is shipped


def test_every_name_of_every_shipped_benchmark_file_is_listed_once(shipped: list[Covered]) -> None:
    expected = [(each.benchmark, name) for each in SHIPPED for name in each.tasks]
    assert [(row.benchmark, row.named) for row in shipped] == expected
    assert len(set(expected)) == len(expected) > 30


def test_every_shipped_name_is_one_of_the_harness_or_of_ours(shipped: list[Covered]) -> None:
    assert [row.named for row in shipped if not row.tasks] == []
    for row in shipped:
        assert row.scored, row
        assert bool(row.datasets) is (row.named not in OWN_ROWS), row


def test_every_shipped_recipe_is_there(shipped: list[Covered]) -> None:
    named = {row.recipe for row in shipped if row.recipe is not None}
    assert len(named) > 3
    for recipe in named:
        assert load_recipe(recipe, []).recipe == recipe


@pytest.mark.parametrize(
    ("named", "pairs_from", "scored", "dataset"),
    [
        ("boolq", "train", "validation", DataSet("aps/super_glue", "boolq")),
        ("truthfulqa_mc1", "2 folds", "validation", None),
        (
            "hendrycks_math500",
            "2 folds",
            "test",
            DataSet("HuggingFaceH4/MATH-500", "default"),
        ),
        ("mmlu_anatomy", "dev+validation", "test", DataSet("cais/mmlu", "anatomy")),
        ("xcopa_*", "validation", "test", None),
        ("sadi_facts", "train", "test", None),
        ("sadi_customers", "train", "test", None),
    ],
)
def test_splits_and_data_of_shipped_benchmarks_are_known(
    shipped: list[Covered],
    named: str,
    pairs_from: str,
    scored: str,
    dataset: DataSet | None,
) -> None:
    [row] = [row for row in shipped if row.named == named]
    assert (row.pairs_from, row.scored) == (pairs_from, scored)
    assert dataset is None or row.datasets == [dataset]


def test_the_subjects_of_mmlu_are_one_row(shipped: list[Covered]) -> None:
    subjects = [
        row
        for row in shipped
        if row.named.startswith("mmlu_") and not row.named.endswith("_continuation")
    ]
    [row] = [row for row in folded(shipped) if row.named == "mmlu_*"]
    assert len(subjects) == len(row.tasks) == 57
    assert row.tasks == [row.named for row in subjects]
    assert row.datasets == [DataSet("cais/mmlu", each.datasets[0].name) for each in subjects]
    others = [each for each in folded(shipped) if each.named != "mmlu_*"]
    assert others == [each for each in shipped if each not in subjects]


def test_only_tasks_that_differ_in_the_end_of_their_names_are_one_row() -> None:
    def row(name: str, scored: str = "test", count: int = 1) -> Covered:
        return Covered("b", name, [name] * count, None, "train", scored, [DataSet(name)])

    few = [row("a_x"), row("a_y"), row("a_z")]
    assert folded(few) == few
    for other in (row("b_x"), row("a_w", scored="dev"), row("a_*", count=2)):
        assert folded([*few, other]) == [*few, other]
    assert [(each.named, each.tasks) for each in folded([*few, row("a_xy")])] == [
        ("a_*", ["a_x", "a_y", "a_z", "a_xy"])
    ]


@pytest.mark.parametrize("name", OWN_ROWS)
def test_a_task_that_brings_its_own_rows_names_no_data_set(
    shipped: list[Covered], name: str
) -> None:
    [row] = [row for row in shipped if row.named == name]
    assert (row.tasks, row.datasets) == ([name], [])


@pytest.mark.parametrize(("name", "labels"), [("sadi_facts", 4), ("sadi_customers", 2)])
def test_no_row_of_our_own_is_in_two_splits_and_every_label_is_there(
    name: str, labels: int
) -> None:
    rows = [
        json.loads(line)
        for path in sorted((task_configs() / name).glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    asked = [row.get("question") or row["message"] for row in rows]
    assert len(rows) > 300
    assert len({"".join(filter(str.isalnum, text.lower())) for text in asked}) == len(rows)
    found = {row["answer"] if "answer" in row else row["satisfied"] for row in rows}
    assert found == set(range(labels))


# ------------------------------------------------------------------ the user's own


@pytest.mark.usefixtures("without_the_harness_s_tasks")
class TestOwnFiles:
    def test_the_user_s_benchmarks_come_before_ours(self, folder: Path) -> None:
        write(folder, "b", benchmark="mine", tasks=["one", "tw*"], recipe="right_wrong")
        rows = covered([folder])
        assert [(row.benchmark, row.named) for row in rows[:2]] == [
            ("mine", "one"),
            ("mine", "tw*"),
        ]
        assert len(rows) == 2 + len(covered([]))

    def test_a_pattern_covers_the_tasks_that_it_fits_and_no_other(self, folder: Path) -> None:
        for name in ("own_a", "own_b", "other"):
            write_task(folder, name, validation="validation")
        write(folder, "b", benchmark="mine", tasks=["own_*", "other", "absent"])
        rows = {row.named: row for row in covered([folder])}
        assert sorted(rows["own_*"].tasks) == ["own_a", "own_b"]
        assert rows["other"].tasks == ["other"]
        assert rows["other"].datasets == [DataSet("made/up")]
        assert rows["other"].recipe is None

    def test_the_data_sets_of_all_tasks_of_a_pattern_are_named_each_once(
        self, folder: Path
    ) -> None:
        for name, path in (("own_a", "made/up"), ("own_b", "made/other"), ("own_c", "made/up")):
            write_task(folder, name, validation="validation")
            text = (folder / f"{name}.yaml").read_text().replace("made/up", path)
            (folder / f"{name}.yaml").write_text(text)
        write(folder, "b", benchmark="mine", tasks=["own_*"])
        found = covered([folder])[0].datasets
        assert sorted(found) == [DataSet("made/other"), DataSet("made/up")]

    def test_of_a_name_that_the_harness_lacks_nothing_is_made_up(self, folder: Path) -> None:
        write(folder, "a", benchmark="mine", tasks=["absent"], folds=3)
        write(folder, "b", benchmark="mine too", tasks=["also_absent"], pairs_from=["dev", "train"])
        found = [row._replace(recipe=None) for row in covered([folder])[:2]]
        assert found == [
            Covered("mine", "absent", [], None, "", "", []),
            Covered("mine too", "also_absent", [], None, "dev+train", "", []),
        ]

    def test_files_that_are_no_benchmarks_are_passed_over(self, folder: Path) -> None:
        write_task(folder, "own", validation="validation")
        (folder / "other.yaml").write_text("class: !function task.Mine\n")
        (folder / "notes.txt").write_text("benchmark: 7\n")
        assert len(covered([folder])) == len(covered([]))

    def test_a_faulty_benchmark_file_is_told(self, folder: Path) -> None:
        write(folder, "b", benchmark="mine", tasks="one", fold=3)
        with pytest.raises(UserError, match=r"b\.yaml: unknown key 'fold'.*tasks must be a list"):
            covered([folder])

    @pytest.mark.parametrize(
        ("splits", "said", "expected"),
        [
            ({"training": "train", "validation": "validation"}, {}, "train"),
            ({"training": "train", "test": "validation"}, {}, "train"),
            ({"validation": "train", "test": "validation"}, {}, "train"),
            ({"validation": "validation"}, {}, "2 folds"),
            ({"test": "validation"}, {"folds": 5}, "5 folds"),
            ({"test": "validation"}, {"pairs_from": ["train"]}, "train"),
            (
                {"training": "train", "test": "validation"},
                {"pairs_from": ["more", "train"]},
                "more+train",
            ),
        ],
    )
    def test_what_is_said_of_the_splits_is_what_a_run_does(
        self, folder: Path, data: Path, splits: dict[str, str], said: dict[str, Any], expected: str
    ) -> None:
        lay_out(data, {name: rows_of(name) for name in ("train", "validation", "more")})
        write_task(folder, "own", **splits)
        write(folder, "b", benchmark="mine", tasks=["own"], **said)
        row = covered([folder])[0]
        assert (row.pairs_from, row.scored) == (expected, "validation")
        [task] = load_tasks(["own"], [folder], None, {})
        sources = find_plan(task, Options(include_path=str(folder))).sources
        assert task.evaluated_split() == row.scored
        if sources.folds is None:
            assert (row.pairs_from, len(sources.sources)) == (sources.split, 1)
        else:
            assert (row.pairs_from, row.scored) == (f"{sources.folds} folds", sources.split)
            assert len(sources.sources) == sources.folds


# ------------------------------------------------------------------ data


def test_a_data_set_laid_out_in_the_current_directory_can_be_had(data: Path) -> None:
    assert reach(DataSet("made/up", "plain")) == ""


@pytest.mark.parametrize(
    "dataset",
    [
        *(DataSet("made/upp"), DataSet("made/up", "fancy"), DataSet("nobody", "x")),
        DataSet("json", None, '{"train": "absent.jsonl"}'),
    ],
)
def test_why_a_data_set_cannot_be_had_is_one_line(data: Path, dataset: DataSet) -> None:
    said = reach(dataset)
    assert said
    assert "\n" not in said


def test_files_of_a_task_are_looked_for(folder: Path, tmp_path: Path) -> None:
    write_task(folder, "own", validation="validation")
    there = tmp_path / "rows.jsonl"
    settings = yaml.safe_load((folder / "own.yaml").read_text())
    settings |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(there)}}}
    found = data_set(settings)
    assert str(there) in reach(found)
    there.write_text(json.dumps({"text": "a"}) + "\n")
    assert reach(found) == ""


def test_an_error_that_says_nothing_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("sadi_lmeval.pairs.coverage.datasets.load_dataset_builder", fails)
    assert reach(DataSet("made/up")) == "ConnectionResetError"


def test_only_the_first_line_of_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such thing\nand a long story")

    monkeypatch.setattr("sadi_lmeval.pairs.coverage.datasets.load_dataset_builder", fails)
    assert reach(DataSet("made/up")) == "no such thing"


def test_each_data_set_is_asked_for_once_and_those_without_never(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    shown: list[Any] = []
    load = datasets.load_dataset_builder

    def asking(path: str, name: str | None, **files: Any) -> Any:
        asked.append(DataSet(path, name))
        return load(path, name, **files)

    def progress(names: list[Any]) -> list[Any]:
        shown.extend(names)
        return names

    monkeypatch.setattr("sadi_lmeval.pairs.coverage.datasets.load_dataset_builder", asking)
    own, absent = DataSet("made/up", "plain"), DataSet("made/upp")
    rows = [
        Covered("b", str(number), ["t"], None, "train", "test", these)
        for number, these in enumerate([[own], [], [absent, own], [absent], [own, own], []])
    ]
    found = reached(rows, progress)
    assert asked == shown == [own, absent]
    assert found[own] == ""
    assert found[absent]
    assert len(found) == 2


def test_a_hub_that_does_not_answer_is_noticed_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert without_network(seconds=1.0)
    assert time.monotonic() - start < 20


def test_staying_offline_is_what_both_libraries_go_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    stay_offline()
    assert datasets.config.HF_HUB_OFFLINE
    assert huggingface_hub.constants.HF_HUB_OFFLINE
