"""docs/extending.md, run as it stands; and a method of another package, installed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.environments import Environment, build, harness_environment, run
from helpers.models import tiny
from sadi_lmeval.architecture import sites
from sadi_lmeval.architecture.sites import ARCHITECTURES, find_site

REPOSITORY = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "plugin"


def example(name: str) -> str:
    """The block of code that follows a comment with its name."""
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    return str(found)


# ------------------------------------------------------------------ the page


def test_the_method_of_the_page_is_the_package_that_is_tried_here() -> None:
    module = (PLUGIN / "nudge.py").read_text(encoding="utf-8")
    assert example("nudge.py") == module
    assert len(module.splitlines()) < 80
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    [line] = re.findall(r'^nudge = ".*"$', (PLUGIN / "pyproject.toml").read_text(), re.MULTILINE)
    assert line in text


def test_the_architecture_of_the_page_is_found_where_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sites, "ARCHITECTURES", dict(ARCHITECTURES))
    exec(example("architecture"), {})
    model = tiny("xglm", num_layers=2, attention_heads=4, d_model=32)
    assert [find_site(model, e).entries for e in ("head", "neuron", "hidden")] == [4, 48, 32]


def test_the_benchmark_and_the_recipe_of_the_page_are_followed(
    evaluate: Any, tmp_path: Path
) -> None:
    for name in ("benchmark", "recipe"):
        (tmp_path / f"{name}.yaml").write_text(example(name))
    given = {"include_path": str(tmp_path), "n_pairs": None}
    found = evaluate("tiny_choice", limit=3, **given)["config"]["sadi"]["tiny_choice"]
    assert (found["recipe"], found["top_k"], found["delta"]) == ("opposite", 3, 4.0)
    assert [fit["n_pairs"] for fit in found["fits"]] == [20]
    assert "tuning" not in found["fits"][0]
    assert yaml.safe_load(example("benchmark"))["n_pairs"] == 20


# ------------------------------------------------------------------ another package's method


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """This package and the other one, in a fresh environment beside the harness."""
    environment = harness_environment(tmp_path_factory.mktemp("installed"))
    environment.pip_install(build("wheel", REPOSITORY, tmp_path_factory.mktemp("ours")))
    environment.pip_install(build("wheel", PLUGIN, tmp_path_factory.mktemp("theirs")))
    return environment


@pytest.fixture
def given(tmp_path: Path, model_folder: Path, tasks_folder: Path) -> list[str]:
    """Options of every command."""
    model = f"pretrained={model_folder},cache_dir={tmp_path / 'cache'},n_pairs=12,n_tune=8"
    options = ["--model_args", model, "--tasks", "tiny_choice", "--include_path", str(tasks_folder)]
    return [*options, "--device", "cpu", "--batch_size", "4", "--limit", "4"]


def with_argument(given: list[str], text: str) -> list[str]:
    return [f"{each},{text}" if "pretrained=" in each else each for each in given]


def test_a_method_of_another_package_runs_as_a_model_of_the_harness_and_its_argument_counts(
    installed: Environment, given: list[str], tmp_path: Path
) -> None:
    fits: list[Any] = []
    for average in ("mean", "median", "mean"):
        output = tmp_path / f"out {len(fits)}"
        options: list[str | Path] = [*with_argument(given, f"average={average}")]
        options += ["--output_path", output]
        done = run(*installed.command("lm_eval"), "--model", "hf-nudge", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        [file] = output.rglob("results_*.json")
        record = json.loads(file.read_text(encoding="utf-8"))["config"]["sadi"]["tiny_choice"]
        assert (record["method"], record["average"]) == ("nudge", average)
        assert record["parameters"] == ["layer", "share"]
        fits += record["fits"]
        tried = [(row["layer"], row["share"]) for row in fits[-1]["tuning"]["table"]]
        assert tried == [(0, 0), *((layer, share) for layer in range(3) for share in (0.5, 1.0))]
    assert fits[0]["cache_key"] != fits[1]["cache_key"]
    assert fits[0]["sha256"] != fits[1]["sha256"]
    assert fits[0]["cache_key"] == fits[2]["cache_key"]
    assert "Pairs of" not in done.stderr  # it was in the cache
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    assert len(list((tmp_path / "cache").glob("*.tuning.json"))) == 2


@pytest.mark.slow
def test_its_faults_are_told_in_its_own_words(
    installed: Environment, given: list[str], tmp_path: Path
) -> None:
    for text, words in (
        ("average=mode", "average=mode: allowed: mean, median"),
        ("layer=-1", "layer=-1.0: must be a whole number of at least 0 or auto"),
        ("alpha=1", "alpha=1: hf-nudge has no alpha"),
        ("layer=9,share=1", "layer=9: this model has layers 0 to 2"),
    ):
        options = with_argument(given, text)
        done = run(*installed.command("lm_eval"), "--model", "hf-nudge", *options, cwd=tmp_path)
        assert done.returncode != 0
        assert words in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_it_stands_beside_the_others_in_sweep_and_compare(
    installed: Environment, given: list[str], tmp_path: Path
) -> None:
    ours: list[str | Path] = [installed.python, "-m", "sadi_lmeval"]
    lines = tmp_path / "lines.jsonl"
    grid = ["--layer", "0,2", "--share", "0.5,1"]
    for average in ("mean", "median"):
        options = [*with_argument(given, f"average={average}"), "--methods", "nudge", *grid]
        done = run(*ours, "sweep", *options, "--output", lines, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    steered = [row for row in rows if row["method"] == "nudge"]
    assert [row["average"] for row in steered] == 4 * ["mean"] + 4 * ["median"]
    assert len({json.dumps([row["layer"], row["share"]]) for row in steered}) == 4
    keys = {row["average"]: row["fits"] for row in steered}
    assert keys["mean"] != keys["median"]

    output = tmp_path / "out"
    methods: list[str | Path] = ["--methods", "none,sadi-head,nudge", "--settings", "3"]
    methods += ["--output_path", output]
    options = with_argument(given, "average=median")
    done = run(*ours, "compare", *options, *methods, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| nudge |" in done.stdout
    record = json.loads((output / "records" / "tiny_choice.nudge.json").read_text())
    assert record["steering"]["average"] == "median"
    other = with_argument(given, "average=mean")
    done = run(*ours, "compare", *other, *methods, cwd=tmp_path)
    assert done.returncode == 1
    assert "differs in average" in done.stderr


def test_an_unknown_method_is_an_error_that_lists_what_there_is(
    installed: Environment, given: list[str], tmp_path: Path
) -> None:
    ours: list[str | Path] = [installed.python, "-m", "sadi_lmeval"]
    done = run(*ours, "sweep", *given, "--methods", "xyz", "--output", tmp_path / "o", cwd=tmp_path)
    assert done.returncode == 1
    for name in ("nudge", "caa", "iti", "sadi-head", "none"):
        assert name in done.stderr.splitlines()[-1]
    done = run(*installed.command("lm_eval"), "--model", "hf-xyz", *given, cwd=tmp_path)
    assert done.returncode != 0
    assert "hf-nudge" in done.stderr


@pytest.mark.slow
def test_a_method_that_cannot_be_loaded_stops_no_other(
    installed: Environment, given: list[str], tmp_path: Path
) -> None:
    """Its package is there, its module is broken."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "nudge.py").write_text("1 / 0\n")
    path = {"PYTHONPATH": str(tmp_path / "broken")}
    options = with_argument(given, "top_k=2,delta=3")
    done = run(*installed.command("lm_eval"), "--model", "hf-sadi", *options, cwd=tmp_path, **path)
    assert done.returncode == 0, done.stderr
    assert "method 'nudge' of nudge:Nudge cannot be loaded" in done.stderr
    done = run(*installed.command("lm_eval"), "--model", "hf-nudge", *given, cwd=tmp_path, **path)
    assert done.returncode != 0
    assert "cannot be loaded (division by zero)" in done.stderr
