"""Killed at any moment, the next run ends as an undisturbed one, and no file is half written."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from faults.commands import Commands
from faults.counts import Count
from faults.results import alike, results_of
from sadi_lmeval.records.record import load_record
from sadi_lmeval.storage.atomic import read_checked
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.storage.journal import Journal

MOMENTS = 25
FILES = 30
"""A run opens, renames and deletes 40 (fitting) to 300 (compare) of them."""
TASKS = "tiny_choice,tiny_folds,tiny_text"


def of_lm_eval(folder: Path) -> Any:
    """What a run of the harness has found, document by document too."""
    samples = {name: (folder / "out").rglob(f"samples_{name}_*.jsonl") for name in TASKS.split(",")}
    scored = {name: [p.read_text() for p in paths] for name, paths in samples.items()}
    return results_of(folder / "out"), scored


def of_sweep(folder: Path) -> Any:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def of_compare(folder: Path) -> Any:
    records = {
        path.name: json.loads(path.read_text()) for path in folder.glob("out/records/*.json")
    }
    for record in records.values():
        for name in ("seconds", "command", "sha256"):
            del record[name]
    return records, (folder / "out/leaderboard.md").read_text()


class Phase(NamedTuple):
    """A command that is killed, and how to tell what it has found."""

    program: str
    tasks: str
    options: list[str]
    model_args: dict[str, Any]
    result: Callable[[Path], Any]

    def command(self, commands: Commands, folder: Path) -> tuple[str, list[str]]:
        """The command that keeps all its files in a folder."""
        output = ["--output_path", f"{folder}/out"]
        if self.result is of_sweep:
            output = ["--output", f"{folder}/out.jsonl"]
        given = {"cache_dir": folder / "cache", **self.model_args}
        arguments = commands.arguments(self.program, self.tasks, *self.options, *output, **given)
        return self.program, arguments

    def after_a_kill(self, folder: Path) -> None:
        """Each of the harness's runs has output files of its own."""
        if self.result is of_lm_eval:
            shutil.rmtree(folder / "out", ignore_errors=True)


PHASES = {
    "fitting": Phase(
        "lm_eval --model hf-sadi",
        TASKS,
        ["--limit", "4", "--log_samples"],
        {"n_pairs": 12, "top_k": 2, "delta": 3},
        of_lm_eval,
    ),
    "tuning": Phase(
        "lm_eval --model hf-sadi",
        TASKS,
        ["--limit", "4", "--log_samples"],
        {"n_pairs": 6, "n_tune": 8, "negative": "hardest", "grid": "1/2/3x4/9", "rule": "best"},
        of_lm_eval,
    ),
    "sweep": Phase(
        "sadi-lmeval sweep",
        "tiny_choice,tiny_folds",
        ["--limit", "8", "--methods", "sadi-head,sadi-hidden", "--top_k", "1,3", "--delta", "4,9"],
        {"n_pairs": 6},
        of_sweep,
    ),
    "compare": Phase(
        "sadi-lmeval compare",
        TASKS,
        ["--limit", "8", "--methods", "none,sadi-head,caa", "--settings", "4"],
        {"n_pairs": 6, "n_tune": 8, "rule": "best"},
        of_compare,
    ),
}


class Undisturbed(NamedTuple):
    """A run that was not killed: what it has found, what it keeps, how long it took."""

    result: Any
    files: set[Path]
    seconds: float


@pytest.fixture(scope="module", params=PHASES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def undisturbed(
    commands: Commands, tmp_path_factory: pytest.TempPathFactory, name: str
) -> Undisturbed:
    phase, folder = PHASES[name], tmp_path_factory.mktemp("undisturbed")
    commands.run(*phase.command(commands, folder / "first"))  # the datasets' own cache is made here
    done = commands.run(*phase.command(commands, folder / "second"))
    assert done.code == 0, done.output[-3000:]
    return Undisturbed(phase.result(folder / "second"), kept(folder / "second"), done.seconds)


def kept(folder: Path) -> set[Path]:
    """What a run leaves, but for files that were given up and what lies deeper."""
    found = (path for under in ("*", "cache/*", "out/*") for path in folder.glob(under))
    return {path.relative_to(folder) for path in found if path.suffix != ".partial"}


def journals(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*.jsonl*") if path.suffix != ".lock")
    return sorted(path for path in found if "samples_" not in path.name)


def whole(folder: Path, cut: bool = False) -> int:
    """Check every file of ours that has its name; returns how many were given up before that.

    Args:
        folder: of the run.
        cut: whether the last line of a journal may be cut off.
    """
    checks: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_fit,
        ".tuning.json": read_checked,
        ".hardest.json": read_checked,
        ".unsteered.json": read_checked,
    }
    for path in (path for path in folder.rglob("*") if path.is_file()):
        for ending, check in checks.items():
            if path.name.endswith(ending):
                check(path)
        if path.parent.name == "records" and path.suffix == ".json":
            load_record(path)
        if path.name == "comparison.json":
            json.loads(path.read_text())
    for path in journals(folder):
        content = path.read_bytes()
        copied = path.with_name("copy")
        copied.write_bytes(content)
        Journal(copied, checked=path.name != "out.jsonl")
        expected = content[: content.rfind(b"\n") + 1] if cut else content
        assert copied.read_bytes() == expected, "a line is not whole"
        copied.unlink()
    return len(list(folder.rglob("*.partial")))


def test_the_run_after_a_killed_one_ends_as_an_undisturbed_one(
    commands: Commands, tmp_path: Path, count: Count, name: str, undisturbed: Undisturbed
) -> None:
    phase, chosen = PHASES[name], random.Random(name)
    killed, ended, abandoned = 0, 0, 0
    seconds = undisturbed.seconds
    while killed < MOMENTS:
        folder = tmp_path / str(killed + ended)
        moment = chosen.uniform(0.05, 1.0) * seconds
        start = time.perf_counter()
        found = commands.run(*phase.command(commands, folder), kill_after=moment)
        if found.code == 0:
            seconds = min(seconds, time.perf_counter() - start)  # what was measured was slower
            ended += 1
            assert ended <= max(MOMENTS, 10), "most runs end before they are killed"
            continue
        assert found.code == -9, found.output[-3000:]
        killed += 1
        abandoned += whole(folder) if folder.exists() else 0
        phase.after_a_kill(folder)
        again = commands.run(*phase.command(commands, folder))
        assert again.code == 0, (moment, again.output[-3000:])
        assert phase.result(folder) == undisturbed.result, moment
        assert kept(folder) == undisturbed.files, moment
    count(f"{name}, killed and run again", the_same_result=killed, files_given_up=abandoned)


def test_a_run_that_is_killed_at_one_file_after_another_ends_as_an_undisturbed_one(
    commands: Commands, tmp_path: Path, count: Count, name: str, undisturbed: Undisturbed
) -> None:
    """In between the last lines of its notes are cut, as a machine that stops may leave them."""
    phase, chosen = PHASES[name], random.Random(name)
    killed, ended = 0, 0
    while killed < MOMENTS or not ended:
        assert killed < 10 * MOMENTS, "it does not go on"
        folder = tmp_path / str(ended)
        at = chosen.randint(1, FILES)
        found = commands.run(*phase.command(commands, folder), kill_at=(at, folder))
        if found.code == 0:
            ended += 1
            assert alike(phase.result(folder), undisturbed.result)
            assert kept(folder) == undisturbed.files
            continue
        assert found.code == -9, found.output[-3000:]
        killed += 1
        whole(folder, cut=True)
        phase.after_a_kill(folder)
        for path in journals(folder) if chosen.random() < 0.5 else ():
            content = path.read_bytes()
            last = content.rfind(b"\n", 0, -1) + 1
            path.write_bytes(content[: chosen.randint(last, len(content))])
    count(f"{name}, killed at its files", kills=killed, ended_with_the_same_result=ended)
