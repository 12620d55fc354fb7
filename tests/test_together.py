"""Processes that divide batches: what each is given is what one process gives, to the bit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import distributed
from transformers import LlamaForCausalLM

from helpers.layouts import BEGINNING, REQUESTS
from helpers.oracle import make_model
from sadi_lmeval import cli
from sadi_lmeval.comparison.compared import ComparedModel
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.ending import CommonEnd
from sadi_lmeval.launch import forget_the_others, launched, launched_as
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.processes import ALONE, Processes, Together

COUNT = 2


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def in_processes(body: Callable[[Together], None], folder: Path) -> list[int]:
    """Run something in processes that have met; returns their exit codes."""
    children = []
    for rank in range(COUNT):
        child = os.fork()
        if not child:
            _be(body, folder, rank)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _be(body: Callable[[Together], None], folder: Path, rank: int) -> NoReturn:
    try:
        meeting = f"file://{folder / 'meeting'}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=COUNT)
        body(Together(rank, COUNT))
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def everything(model: LlamaForCausalLM, processes: Processes) -> tuple[Any, int]:
    """What is scored and read in batches of two rows, and how many passes this process made."""
    passes = 0
    run = Forward._run

    def counted(self: Forward, *arguments: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return run(self, *arguments)

    engine = Engine(model, pad=0, rows=2, max_length=64, processes=processes)
    site = engine.site("hidden", "mlp")
    width = torch.zeros(site.layers, site.width)
    edits = DiagonalEdits(site, [Edit(width + by) for by in (0.5, 1, 2)], scope="onwards")
    others = [DiagonalEdits(site, [Edit(width + by)], scope="prompt") for by in (1, 3, 4)]
    # Beginnings that are shared one within the other, so that prefixes are made of prefixes.
    long = [(7 * i + 3) % 40 for i in range(24)]
    starts = [[], long, [*long[:18], *long[:8]], [9, *long]]
    nested = [
        Continuation((*start, *tail, 5), (6, last), 0)
        for start, tail, last in product(starts, ([1], [1, 2], [3], [4, 4, 4]), (1, 2))
    ]
    scored: list[Any] = []
    read: list[Any] = []

    class Noting:
        def __init__(self) -> None:
            self.kind = "noting"
            self.shapes: dict[str, tuple[int, ...]] = {"all": (1,)}

        def add(self, items: list[int], labels: list[Any], values: torch.Tensor) -> None:
            read.append((items, labels, values.clone()))

        def join(self, processes: Processes) -> None:
            raise AssertionError("the first process has all")

        def tensors(self, label: str) -> dict[str, torch.Tensor]:
            return {}

    pairs = [TokenPair([*BEGINNING, i, 1], [*BEGINNING, i, 2, 3]) for i in range(7)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "_run", counted)
        engine.score([*REQUESTS, *nested], edits, scored.append)
        engine.score_grid(nested, [edits], lambda *found: scored.append(found))
        engine.score_grid(nested[:2], [edits, *others], lambda *found: scored.append(found))
        engine.longest_branching_path = 0  # nothing is packed
        engine.score_grid(nested[:9], [edits], lambda *found: scored.append(found))
        if processes is not ALONE:
            engine.read([(site, Noting())], pairs, "Pairs", processes)
        else:
            with pytest.raises(AssertionError, match="the first process has all"):
                engine.read([(site, Noting())], pairs, "Pairs", processes)
    return (scored, read), passes


def plain(found: Any) -> Any:
    """With tensors as the bytes that they are made of."""
    if isinstance(found, torch.Tensor):
        return found.numpy().tobytes()
    if isinstance(found, (list, tuple)):
        return [plain(each) for each in found]
    return found


def test_each_process_has_what_one_has_and_does_a_part_of_its_work(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    def body(processes: Together) -> None:
        content = pickle.dumps(everything(model, processes))
        (tmp_path / str(processes.rank)).write_bytes(content)

    assert in_processes(body, tmp_path) == [0] * COUNT
    (scored, read), passes = everything(model, ALONE)
    for rank in range(COUNT):
        (found, own), mine = pickle.loads((tmp_path / str(rank)).read_bytes())
        assert plain(found) == plain(scored)
        assert plain(own) == (plain(read) if rank == 0 else [])
        assert mine < 0.7 * passes


def test_of_processes_that_fail_the_first_says_why_and_all_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def body(processes: Together) -> None:
        end = CommonEnd(processes)
        if processes.rank == 1:
            end.fail(3, "something has happened")
        processes.all_gather(None)  # which the other one never joins

    assert in_processes(body, tmp_path) == [3] * COUNT
    assert capfd.readouterr().err.count("something has happened") == 1


def test_processes_that_come_to_their_end_leave_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_processes(lambda processes: CommonEnd(processes).leave(), tmp_path) == [0] * COUNT
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_generation_is_divided_into_the_batches_of_one_process(count: int) -> None:
    class Request:
        def __init__(self, words: int) -> None:
            self.task_name = "task"
            self.args: tuple[str, dict[str, Any]] = (" ".join("a" * words), {})

    class Model:
        batch_size, device = 3, torch.device("cpu")

        def __init__(self, rank: int) -> None:
            self.processes = Together(rank, count)

        def tok_encode(self, text: str) -> list[int]:
            return [1] * len(text.split())

    lengths = (3, 9, 4, 4, 12, 1, 2, 5, 6, 7, 8)
    requests: Any = [Request(words) for words in lengths]
    which = [words % 2 for words in lengths]
    models: list[Any] = [Model(rank) for rank in range(count)]
    parts = [ComparedModel._mine(model, requests, which) for model in models]
    assert sorted(i for part in parts for i in part) == list(range(len(requests)))
    # Of one edit 9 7 5 | 3 1, of the other 12 8 6 | 4 4 2, by the words of each.
    batches = [{1, 9, 7}, {0, 5}, {4, 10, 8}, {2, 3, 6}]
    assert all(batch <= set(part) or not batch & set(part) for batch in batches for part in parts)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3"}, (4, 3)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (1, 0)),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": "1",
                "ACCELERATE_USE_CPU": "true",
            },
            (2, 1),
        ),
    ],
    ids=["nothing", "torchrun", "mpi", "mpi on CPUs"],
)
def test_the_launcher_says_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: tuple[int, int]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (launched(), launched_as()) == expected
    forget_the_others()
    assert (launched(), launched_as()) == (1, 0)


def test_what_one_process_does_the_others_leave_to_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["report", "/nowhere"]) == 0
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["report", "/nowhere"]) == 1
    assert "sadi-lmeval: error" in capfd.readouterr().err


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "sadi_lmeval", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip()[0].isdigit()
