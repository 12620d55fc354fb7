"""Several processes with one cache folder: each is right, and each thing is made once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from faults.commands import Commands
from faults.counts import Count
from faults.results import results_of

MODEL_ARGS: dict[str, Any] = {"n_pairs": 12, "n_tune": 12, "grid": "1/2/3x4/9", "rule": "best"}
BUILT = ("Pairs of", "Settings of")
"""The labels of the progress bars of fitting, and of choosing a setting."""


def command(commands: Commands, tasks: str, cache: Path, output: Path) -> tuple[str, list[str]]:
    program = "lm_eval --model hf-sadi"
    options = ("--limit", "4", "--output_path", str(output))
    return program, commands.arguments(program, tasks, *options, cache_dir=cache, **MODEL_ARGS)


def made(output: str) -> set[str]:
    """What a process has made itself, by the beginnings of its progress bars."""
    lines = output.replace("\r", "\n").splitlines()
    return {line.partition(":")[0] for line in lines if line.startswith(BUILT)}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_want_the_same_share_one_build(
    commands: Commands, tmp_path: Path, count: Count, processes: int
) -> None:
    tasks = "tiny_choice,tiny_folds"
    commands.run(*command(commands, tasks, tmp_path / "first", tmp_path / "first"))
    program, arguments = command(commands, tasks, tmp_path / "alone", tmp_path / "alone_out")
    alone = commands.run(program, arguments)
    assert alone.code == 0, alone.output[-3000:]
    cached = commands.run(*command(commands, tasks, tmp_path / "alone", tmp_path / "cached_out"))
    assert made(cached.output) == set()
    outputs = [tmp_path / f"out{i}" for i in range(processes)]
    wanted = [command(commands, tasks, tmp_path / "cache", output) for output in outputs]
    found = commands.together(*wanted)
    for done, output in zip(found, outputs, strict=True):
        assert done.code == 0, done.output[-3000:]
        assert results_of(output) == results_of(tmp_path / "alone_out")
    makers = Counter(what for done in found for what in made(done.output))
    assert set(makers) == made(alone.output)
    assert set(makers.values()) == {1}
    # All of the work once, and beside it each one's own, on two cores.
    most = alone.seconds + max(1, processes / 2) * cached.seconds + 2
    assert max(done.seconds for done in found) < 2 * most
    count(f"{processes} processes that want the same", right=processes, made_once=len(makers))


def test_processes_that_want_different_things_do_not_wait_for_each_other_in_a_circle(
    commands: Commands, tmp_path: Path, count: Count
) -> None:
    asked = ["tiny_choice,tiny_folds", "tiny_folds,tiny_choice", "tiny_choice", "tiny_folds"]
    for tasks in dict.fromkeys(asked):
        name = tasks.replace(",", "_")
        commands.run(*command(commands, tasks, tmp_path / name, tmp_path / f"{name}_alone"))
    outputs = [tmp_path / f"out{i}" for i in range(4)]
    wanted = [
        command(commands, tasks, tmp_path / "cache", output)
        for tasks, output in zip(asked, outputs, strict=True)
    ]
    found = commands.together(*wanted)
    for done, output, tasks in zip(found, outputs, asked, strict=True):
        assert done.code == 0, done.output[-3000:]
        assert results_of(output) == results_of(tmp_path / f"{tasks.replace(',', '_')}_alone")
    makers = Counter(what for done in found for what in made(done.output))
    assert set(makers.values()) == {1}
    count("4 processes that want different things", right=4, made_once=len(makers))


def test_a_process_that_is_killed_while_others_wait_for_it_holds_nobody_up(
    commands: Commands, tmp_path: Path, count: Count
) -> None:
    tasks, right = "tiny_choice,tiny_folds", 0
    alone = tmp_path / "alone_out"
    commands.run(*command(commands, tasks, tmp_path / "first", tmp_path / "first"))
    seconds = commands.run(*command(commands, tasks, tmp_path / "alone", alone)).seconds
    for moment in (0.3, 0.5, 0.7, 0.9):
        output, cache = tmp_path / f"out{moment}", tmp_path / f"cache{moment}"
        killed, waiting = commands.together(
            command(commands, tasks, cache, tmp_path / f"killed{moment}"),
            command(commands, tasks, cache, output),
            kill_after=moment * seconds,
        )
        assert killed.code in (0, -9)
        assert waiting.code == 0, waiting.output[-3000:]
        assert results_of(output) == results_of(alone)
        right += 1
    count("one of 2 processes is killed, the other is", right=right)
