"""Killed at any moment, the next run ends as an undisturbed one, and no file is half written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.commands import Commands
from faults.counts import Count
from faults.results import results_of
from sadi_lmeval.reports.record import load_record
from sadi_lmeval.storage.atomic import read_checked
from sadi_lmeval.storage.journal import Journal
from sadi_lmeval.storage.mask import load_mask

MOMENTS = 25
TASKS = "tiny_choice,tiny_folds,tiny_text"


def of_lm_eval(folder: Path) -> Any:
    """What a run of the harness has found, document by document too."""
    samples = {name: (folder / "out").rglob(f"samples_{name}_*.jsonl") for name in TASKS.split(",")}
    scored = {name: [p.read_text() for p in paths] for name, paths in samples.items()}
    return results_of(folder / "out"), scored


def of_sweep(folder: Path) -> Any:
    return (folder / "out.jsonl").read_text()


def of_compare(folder: Path) -> Any:
    records = {path.name: json.loads(path.read_text()) for path in folder.glob("out/records/*")}
    for record in records.values():
        for name in ("seconds", "command", "sha256"):
            del record[name]
        for mask in record["steering"].get("masks", []):
            mask["file"] = Path(mask["file"]).name
    return records, (folder / "out/leaderboard.md").read_text()


PROGRAMS: dict[str, tuple[str, list[str], dict[str, Any], Callable[[Path], Any]]] = {
    "mask building": (
        "lm_eval --model hf-sadi",
        ["--limit", "4", "--log_samples"],
        {"n_pairs": 12, "top_k": 2, "delta": 3},
        of_lm_eval,
    ),
    "tuning": (
        "lm_eval --model hf-sadi",
        ["--limit", "4", "--log_samples"],
        {"n_pairs": 6, "n_tune": 8, "negative": "hardest", "grid": "1/2/3x4/9"},
        of_lm_eval,
    ),
    "sweep": (
        "sadi-lmeval sweep",
        ["--limit", "8", "--methods", "sadi-head,sadi-hidden", "--top_k", "1,3", "--delta", "4,9"],
        {"n_pairs": 6},
        of_sweep,
    ),
    "compare": (
        "sadi-lmeval compare",
        ["--limit", "8", "--methods", "none,sadi-head,caa", "--settings", "4"],
        {"n_pairs": 6, "n_tune": 8},
        of_compare,
    ),
}


def whole(folder: Path) -> int:
    """Check every file of ours that has its name; returns how many were given up before that."""
    checks: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_mask,
        ".tuning.json": read_checked,
        ".hardest.json": read_checked,
    }
    for path in (path for path in folder.rglob("*") if path.is_file()):
        for ending, check in checks.items():
            if path.name.endswith(ending):
                check(path)
        if path.parent.name == "records" and path.suffix == ".json":
            load_record(path)
        if path.name == "comparison.json":
            json.loads(path.read_text())
        if path.name == "out.jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".jsonl" and "samples_" not in path.name:
            copied = path.with_suffix(".copy")
            copied.write_bytes(path.read_bytes())
            Journal(copied)
            assert copied.read_bytes() == path.read_bytes(), "a line is not whole"
            copied.unlink()
    return len(list(folder.rglob("*.partial")))


@pytest.mark.parametrize("phase", PROGRAMS)
def test_the_run_after_a_killed_one_ends_as_an_undisturbed_one(
    commands: Commands, tmp_path: Path, count: Count, phase: str
) -> None:
    program, options, model_args, result = PROGRAMS[phase]

    def command(folder: Path) -> list[str]:
        output = ["--output", f"{folder}/out.jsonl"]
        output = output if "sweep" in program else ["--output_path", f"{folder}/out"]
        given = {"cache_dir": folder / "cache", **model_args}
        tasks = TASKS if program != "sadi-lmeval sweep" else "tiny_choice,tiny_folds"
        return commands.arguments(program, tasks, *options, *output, **given)

    folder = tmp_path / "undisturbed"
    commands.run(program, command(tmp_path / "first"))  # the datasets' own cache is made here
    undisturbed = commands.run(program, command(folder))
    assert undisturbed.code == 0, undisturbed.output[-3000:]
    expected = result(folder)
    files = {path.name for path in (folder / "cache").iterdir()}
    chosen, killed, ended, abandoned = random.Random(phase), 0, 0, 0
    while killed < MOMENTS:
        folder = tmp_path / str(killed + ended)
        moment = chosen.uniform(0.05, 1.0) * undisturbed.seconds
        found = commands.run(program, command(folder), kill_after=moment)
        if found.code == 0:
            ended += 1
            assert ended <= max(MOMENTS, 10), "most runs end before they are killed"
            continue
        assert found.code == -9, found.output[-3000:]
        killed += 1
        abandoned += whole(folder) if folder.exists() else 0
        if result is of_lm_eval:  # each of the harness's runs has output files of its own
            shutil.rmtree(folder / "out", ignore_errors=True)
        again = commands.run(program, command(folder))
        assert again.code == 0, (moment, again.output[-3000:])
        assert result(folder) == expected, moment
        left = {p.name for p in (folder / "cache").iterdir() if p.suffix != ".partial"}
        assert left == files, moment
    count(f"{phase}, killed and run again", the_same_result=killed, files_given_up=abandoned)
