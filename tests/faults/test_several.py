"""``compare`` and ``sweep`` in several processes leave what one leaves, and end together."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.commands import Commands, Done
from faults.counts import Count
from helpers.launchers import launchers
from sadi_lmeval.storage.fit_file import load_fit

PATIENCE = 60.0
"""Seconds within which all processes of a run have ended when one has failed."""


class Place:
    """A folder that runs take turns in, so that their command lines are the same."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self.commands, self.folder, self.run = commands, folder, folder / "run"

    def compare(self, *more: str, methods: str = "none,sadi-head,iti") -> list[str]:
        tasks, model_args = "tiny_choice,tiny_folds,tiny_text", {"n_pairs": 9, "n_tune": 8}
        options = ["--limit", "8", "--methods", methods, "--settings", "4", *more]
        options += ["--output_path", str(self.run / "out")]
        return self.arguments("compare", tasks, options, **model_args)

    def sweep(self) -> list[str]:
        options = ["--limit", "8", "--methods", "sadi-head,sadi-hidden", "--grid", "1/3x4/9"]
        options += ["--output", str(self.run / "out.jsonl")]
        return self.arguments("sweep", "tiny_choice,tiny_folds", options, n_pairs=9)

    def arguments(self, command: str, tasks: str, options: list[str], **model: Any) -> list[str]:
        given = {"cache_dir": self.run / "cache", "rule": "best", **model}
        if command == "sweep":
            del given["rule"]
        return self.commands.arguments(f"sadi-lmeval {command}", tasks, *options, **given)

    def spread(self, count: int, arguments: list[str], **how: Any) -> list[Done]:
        return self.commands.spread("sadi-lmeval", *[arguments] * count, **how)

    def kept_as(self, name: str) -> dict[str, Any]:
        """What a run has left, out of the way of the next."""
        self.run.rename(self.folder / name)
        return without_times(self.folder / name)


@pytest.fixture
def place(commands: Commands, tmp_path: Path) -> Place:
    return Place(commands, tmp_path)


@pytest.fixture(scope="module")
def left_by_one(
    commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, Any, Any]:
    """What one process leaves of either command."""
    place, found = Place(commands, tmp_path_factory.mktemp("place")), []
    for name, arguments in (("compare", place.compare()), ("sweep", place.sweep())):
        done = commands.run("sadi-lmeval", arguments)
        assert done.code == 0, done.output[-3000:]
        found.append(place.kept_as(name))
    return place, found[0], found[1]


@pytest.fixture
def one(left_by_one: tuple[Place, Any, Any]) -> Iterator[tuple[Place, Any, Any]]:
    """The same, in a folder in which no test has left anything, failed or not."""
    yield left_by_one
    shutil.rmtree(left_by_one[0].run, ignore_errors=True)


def without_times(folder: Path) -> dict[str, Any]:
    """Every file of a run byte by byte, but for seconds and the checksum over them."""
    read: dict[str, Callable[[Path], Any]] = {
        ".safetensors": lambda path: {k: t.tolist() for k, t in load_fit(path).tensors.items()},
        ".csv": lambda path: [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(path.read_text().splitlines())
        ],
        ".lock": lambda path: "",
    }
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "harness" not in path.parts:
            found[name] = read.get(path.suffix, timeless)(path)
    assert len(found) > 4
    return found


def timeless(path: Path) -> bytes:
    return re.sub(rb'"(seconds|sha256)": ("\w*"|[\d.e-]+)', b"", path.read_bytes())


def test_every_file_is_that_of_one_process(one: tuple[Place, Any, Any]) -> None:
    place, compared, swept = one
    for count, command, wanted in (
        (3, place.compare(), compared),
        (3, place.sweep(), swept),
        (2, place.sweep(), swept),
    ):
        done = place.spread(count, command)
        assert [each.code for each in done] == [0] * count, done[0].output[-3000:]
        assert place.kept_as(f"{command[0]} {count}") == wanted


def test_two_nodes_under_torchrun_leave_the_same_and_say_everything_once(
    one: tuple[Place, Any, Any], commands: Commands
) -> None:
    place, expected, _ = one
    environment = {**os.environ, **commands.environment, "ACCELERATE_USE_CPU": "true"}
    nodes = [
        subprocess.Popen(
            [*launcher, "-m", "sadi_lmeval", *place.compare()],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=place.folder,
        )
        for launcher in launchers("two nodes")
    ]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:]
    assert place.kept_as("two nodes") == expected
    said = "\n".join(outputs)
    for line in ("| unsteered |", "Task tiny_choice: no setting of iti"):
        assert said.count(line) == outputs[0].count(line) > 0
    assert said.count("Probes of tiny_choice: 100%") == 1
    assert "sadi" not in outputs[1]


@pytest.mark.parametrize("killed", [0, 1])
def test_the_run_after_a_killed_process_leaves_the_same_with_another_number_of_them(
    one: tuple[Place, Any, Any], count: Count, killed: int
) -> None:
    place, expected, _ = one
    began = place.run / "out" / "answers.jsonl"
    done = place.spread(3, place.compare(), killed=killed, kill_when=began)
    codes = [each.code for each in done]
    assert codes.pop(killed) == -9
    assert codes == [1, 1]
    assert max(each.seconds for each in done) < PATIENCE
    words = f"process {killed} of 3 has ended without a word"
    assert [each.output.count(words) for each in done].count(1) == 1
    assert began.exists()
    again = place.spread(2, place.compare())
    assert [each.code for each in again] == [0, 0], again[0].output[-3000:]
    assert place.kept_as(f"killed {killed}") == expected
    count("compare in 3 processes, one killed, then in 2", the_same_files=1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--methods", "none,foo"], "unknown method 'foo'"),
        (["--tasks", "tiny_choices"], "Tasks not found: tiny_choices"),
    ],
    ids=["method", "task"],
)
def test_a_mistake_is_said_once(place: Place, more: list[str], words: str) -> None:
    done = place.spread(3, [*place.compare(), *more])
    assert [each.code for each in done] == [1, 1, 1]
    assert done[0].output.count("sadi-lmeval: error:") == 1
    assert words in done[0].output
    assert "Traceback" not in done[0].output
    assert not any("error" in each.output for each in done[1:])


def test_a_line_that_cannot_be_read_is_said_once(place: Place) -> None:
    done = place.spread(2, ["compare", "--settings", "many"])
    assert [each.code for each in done] == [2, 2]
    assert "--settings" in done[0].output
    assert done[1].output == ""


def test_what_one_process_alone_cannot_do_is_said_by_the_first(place: Place) -> None:
    right = place.compare()
    wrong = [each.replace(str(place.commands.model), "/nowhere") for each in right]
    done = place.commands.spread("sadi-lmeval", right, wrong)
    assert [each.code for each in done] == [1, 1]
    assert done[0].output.count("sadi-lmeval: error: --model_args pretrained=/nowhere") == 1
    assert max(each.seconds for each in done) < PATIENCE


def test_a_process_that_fails_ends_the_run_with_its_error(place: Place) -> None:
    done = place.spread(
        3, place.compare(), killed=2, broken="sadi_lmeval.passes.scoring.likelihood"
    )
    assert [each.code for each in done] == [1, 1, 1]
    assert done[0].output.count("MemoryError: planted") == 1
    assert "process 2 of 3 has failed" in done[0].output
    assert not any("MemoryError" in each.output for each in done[1:])
    assert max(each.seconds for each in done) < PATIENCE
    assert not list(place.run.rglob("records/*.json"))


def test_an_interrupted_run_says_so_once(place: Place) -> None:
    done = place.spread(3, place.compare(), interrupt_when=place.run / "out" / "comparison.json")
    assert [each.code for each in done] == [130, 130, 130]
    assert done[0].output.count("interrupted; re-run the same command to resume") == 1
    assert not any("interrupted" in each.output for each in done[1:])
    assert "Traceback" not in "".join(each.output for each in done)


def test_other_commands_are_the_first_process_s(place: Place) -> None:
    done = place.spread(2, ["report", str(place.run)])
    assert [each.code for each in done] == [1, 0]
    assert done[0].output.count("sadi-lmeval: error:") == 1
    assert done[1].output == ""
