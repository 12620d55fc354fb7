"""Masks on disk: built once, never taken where anything that they depend on has changed."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama
from torch import nn

from sadi_lmeval import atomic, cache
from sadi_lmeval.cache import cache_key, cached_mask, weights_digest
from sadi_lmeval.mask import MeanDifference

VALUES = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
CARD: dict[str, Any] = {"element": "head", "shape": [3, 4, 8], "model_type": "llama"}


class Builder:
    """Counts how often it is asked to build."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> MeanDifference:
        self.calls += 1
        return MeanDifference(VALUES, CARD)


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_the_second_call_builds_nothing(tmp_path: Path, build: Builder) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    first, file = cached_mask(folder, "key", build)
    second, same = cached_mask(folder, "key", build)
    assert build.calls == 1
    assert file == same == folder / "key.safetensors"
    assert torch.equal(first.values, second.values)
    assert second.card == CARD


def test_another_key_is_built_and_kept_beside(tmp_path: Path, build: Builder) -> None:
    cached_mask(tmp_path, "one", build)
    cached_mask(tmp_path, "other", build)
    assert build.calls == 2
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "one.safetensors",
        "other.safetensors",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"something else",
    ],
    ids=["cut", "empty", "flipped", "foreign"],
)
def test_a_damaged_file_is_built_anew_and_replaced(
    tmp_path: Path,
    build: Builder,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    file = tmp_path / "key.safetensors"
    cached_mask(tmp_path, "key", build)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found, _ = cached_mask(tmp_path, "key", build)
    assert build.calls == 2
    assert torch.equal(found.values, VALUES)
    assert str(file) in caplog.text
    assert "built anew" in caplog.text
    cached_mask(tmp_path, "key", build)
    assert build.calls == 2


def test_a_file_in_place_of_the_folder_costs_a_warning_only(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("a file")
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found, file = cached_mask(folder, "key", build)
    assert torch.equal(found.values, VALUES)
    assert file is None
    assert str(folder) in caplog.text
    assert "cache_dir=" in caplog.text
    assert folder.read_text() == "a file"


def test_a_full_disk_costs_a_warning_only(
    tmp_path: Path,
    build: Builder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found, file = cached_mask(tmp_path, "key", build)
    assert torch.equal(found.values, VALUES)
    assert file is None
    assert "No space left" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_cannot_be_locked_is_still_read(
    tmp_path: Path, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only folder that somebody else has filled."""

    class Unwritable:
        def __init__(self, path: Path) -> None: ...

        def acquire(self) -> None:
            raise PermissionError(13, "Permission denied")

    cached_mask(tmp_path, "key", build)
    monkeypatch.setattr(cache, "FileLock", Unwritable)
    found, file = cached_mask(tmp_path, "key", build)
    assert build.calls == 1
    assert file == tmp_path / "key.safetensors"
    assert torch.equal(found.values, VALUES)


def test_a_failed_build_leaves_nothing_and_holds_no_lock(tmp_path: Path, build: Builder) -> None:
    def fail() -> MeanDifference:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_mask(tmp_path, "key", fail)
    assert not list(tmp_path.glob("*.safetensors"))
    cached_mask(tmp_path, "key", build)
    assert build.calls == 1


PROCESS = """
import sys, time
from pathlib import Path
import torch
from sadi_lmeval.cache import cached_mask
from sadi_lmeval.mask import MeanDifference

folder, me = Path(sys.argv[1]), sys.argv[2]

def build():
    (folder / f"built-by-{me}").touch()
    time.sleep(1)
    card = {"element": "head", "shape": [1, 1, 1], "model_type": "llama"}
    return MeanDifference(torch.ones(1, 1, 1), card)

(folder / f"ready-{me}").touch()
deadline = time.monotonic() + 60
while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
found, file = cached_mask(folder / "masks", "key", build)
assert file is not None and float(found.values.sum()) == 1
"""


def test_of_two_processes_at_once_one_builds_and_both_have_the_mask(tmp_path: Path) -> None:
    root = Path(cache.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), me],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in "ab"
    ]
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    assert len(list(tmp_path.glob("built-by-*"))) == 1


def test_a_key_depends_on_every_input_and_not_on_their_order() -> None:
    inputs = {"model": "m", "documents": ["a", "b"], "seed": 0, "hidden_site": None}
    key = cache_key(inputs)
    assert key == cache_key(dict(reversed(inputs.items())))
    others = [
        {**inputs, "model": "n"},
        {**inputs, "documents": ["b", "a"]},
        {**inputs, "seed": 1},
        {**inputs, "seed": "0"},
        {**inputs, "hidden_site": "mlp"},
        {k: v for k, v in inputs.items() if k != "seed"},
    ]
    assert len({key, *map(cache_key, others)}) == 7


def test_the_digest_of_weights_changes_with_any_single_weight() -> None:
    model, chosen = tiny_llama(40), random.Random(0)
    before = weights_digest(model)
    assert before == weights_digest(tiny_llama(40))
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        flat = parameter.data.view(-1)
        place = chosen.randrange(len(flat))
        kept = float(flat[place])
        flat[place] = kept * (1 + 2**-20) if kept else 1e-30
        assert float(flat[place]) != kept
        assert weights_digest(model) != before, (name, place)
        flat[place] = kept
    assert weights_digest(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_digest_of_weights_changes_with_their_type(dtype: torch.dtype) -> None:
    assert weights_digest(tiny_llama(40)) != weights_digest(tiny_llama(40).to(dtype))


def test_the_digest_of_weights_changes_with_names_shapes_and_adapters() -> None:
    def model(**parts: nn.Module) -> nn.Module:
        return nn.ModuleDict(parts)

    def zeros(rows: int, columns: int) -> nn.Linear:
        linear = nn.Linear(columns, rows, bias=False)
        nn.init.zeros_(linear.weight)
        return linear

    models = [
        model(a=zeros(2, 3)),
        model(b=zeros(2, 3)),
        model(a=zeros(3, 2)),
        model(a=zeros(2, 3), adapter=zeros(1, 1)),
    ]
    assert len({weights_digest(m) for m in models}) == 4


def test_the_digest_of_weights_changes_where_rows_change_places() -> None:
    """The sum of all bit patterns stays the same then."""
    model = nn.Linear(100, 50, bias=False)
    before = weights_digest(model)
    with torch.no_grad():
        model.weight.copy_(model.weight.flip(0))
    assert weights_digest(model) != before
