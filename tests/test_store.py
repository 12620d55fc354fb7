"""Things on disk: built once, never taken where anything that they depend on has changed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sadi_lmeval.identity.key import key_of
from sadi_lmeval.steering.fitting import FITS
from sadi_lmeval.storage import store
from sadi_lmeval.storage.fit_file import Fit
from sadi_lmeval.storage.store import Kept, Kind, get_or_build, locked, read_kept, write_kept

VALUES = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
CARD: dict[str, Any] = {
    "kind": "mean_difference",
    "element": "head",
    "shape": [3, 4, 8],
    "model_type": "llama",
}


def values_of(key: str) -> Tensor:
    return VALUES + sum(key.encode())


class Builder:
    """Notes down what it is asked to build, a list a call."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    @property
    def calls(self) -> int:
        return len(self.asked)

    def __call__(self, missing: list[str]) -> dict[str, Fit]:
        self.asked.append(missing)
        return {key: Fit({"difference": values_of(key)}, CARD) for key in missing}


Build = Callable[[list[str]], dict[str, Fit]]


def fits_of(folder: Path, keys: list[str], build: Build) -> dict[str, Kept[Fit]]:
    """Several fits of the cache."""
    return get_or_build(folder, FITS, keys, lambda missing, _: build(missing))


def cached(folder: Path, key: str, build: Build) -> tuple[Fit, Path | None]:
    """One fit of the cache."""
    [(name, found)] = fits_of(folder, [key], build).items()
    assert name == key
    return found


def is_of(found: Fit, key: str) -> bool:
    """Whether it is what :class:`Builder` builds under a key."""
    return torch.equal(found.tensors["difference"], values_of(key))


class Unwritable:
    """A lock in a read-only folder."""

    def __init__(self, path: Path) -> None: ...

    def __enter__(self) -> None:
        raise PermissionError(13, "Permission denied")

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_the_second_call_builds_nothing(tmp_path: Path, build: Builder) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    first, file = cached(folder, "key", build)
    second, same = cached(folder, "key", build)
    assert build.calls == 1
    assert file == same == folder / "key.safetensors"
    assert is_of(first, "key")
    assert is_of(second, "key")
    assert second.card == CARD


def test_another_key_is_built_and_kept_beside(tmp_path: Path, build: Builder) -> None:
    cached(tmp_path, "one", build)
    cached(tmp_path, "other", build)
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
def test_a_damaged_file_is_rebuilt_and_replaced(
    tmp_path: Path,
    build: Builder,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    file = tmp_path / "key.safetensors"
    cached(tmp_path, "key", build)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found, _ = cached(tmp_path, "key", build)
    assert build.calls == 2
    assert is_of(found, "key")
    assert str(file) in caplog.text
    assert "it is rebuilt" in caplog.text
    cached(tmp_path, "key", build)
    assert build.calls == 2


def test_a_file_in_place_of_the_folder_costs_a_warning_only(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("a file")
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found, file = cached(folder, "key", build)
    assert is_of(found, "key")
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

    monkeypatch.setattr("sadi_lmeval.storage.atomic.os.fsync", full)
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found, file = cached(tmp_path, "key", build)
    assert is_of(found, "key")
    assert file is None
    assert "No space left" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_cannot_be_locked_is_still_read(
    tmp_path: Path, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only folder that somebody else has filled."""
    cached(tmp_path, "key", build)
    monkeypatch.setattr(store, "FileLock", Unwritable)
    found, file = cached(tmp_path, "key", build)
    assert build.calls == 1
    assert file == tmp_path / "key.safetensors"
    assert is_of(found, "key")


def test_a_failed_build_leaves_nothing_and_holds_no_lock(tmp_path: Path, build: Builder) -> None:
    def fail(missing: list[str]) -> dict[str, Fit]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "key", fail)
    assert not list(tmp_path.glob("*.safetensors"))
    cached(tmp_path, "key", build)
    assert build.calls == 1


# ------------------------------------------------------------------ several keys

THREE = ["there", "damaged", "missing"]


@pytest.fixture
def partly(tmp_path: Path, build: Builder) -> Path:
    """A cache with one of three fits; another is damaged."""
    fits_of(tmp_path, THREE[:2], build)
    assert build.asked == [THREE[:2]]
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    build.asked.clear()
    return tmp_path


@pytest.mark.parametrize("keys", [THREE, THREE[::-1]])
def test_of_several_keys_the_missing_and_the_damaged_are_built_and_all_at_once(
    partly: Path, build: Builder, caplog: pytest.LogCaptureFixture, keys: list[str]
) -> None:
    before = (partly / "there.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found = fits_of(partly, keys, build)
    assert build.asked == [[key for key in keys if key != "there"]]
    assert set(found) == set(THREE)
    for key, (fit, file) in found.items():
        assert is_of(fit, key)
        assert fit.card == CARD
        assert file == partly / f"{key}.safetensors"
    assert (partly / "there.safetensors").read_bytes() == before
    assert str(partly / "damaged.safetensors") in caplog.text
    assert "there.safetensors" not in caplog.text
    assert "missing.safetensors" not in caplog.text
    again = fits_of(partly, keys, build)
    assert build.calls == 1
    assert all(is_of(fit, key) for key, (fit, _) in again.items())


def test_no_keys_are_no_work(tmp_path: Path, build: Builder) -> None:
    assert fits_of(tmp_path / "new", [], build) == {}
    assert build.calls == 0
    assert not (tmp_path / "new").exists()


def test_of_several_keys_none_can_be_kept_in_a_file_in_place_of_the_folder(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("a file")
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found = fits_of(folder, THREE, build)
    assert build.asked == [THREE]
    assert all(is_of(fit, key) for key, (fit, _) in found.items())
    assert all(file is None for _, file in found.values())
    assert len(caplog.records) == 1
    assert folder.read_text() == "a file"


def test_what_is_there_is_read_though_the_others_can_be_neither_locked_nor_kept(
    partly: Path,
    build: Builder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A read-only folder that somebody else has filled in part."""
    before = {path.name: path.read_bytes() for path in partly.iterdir()}
    monkeypatch.setattr(store, "FileLock", Unwritable)
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found = fits_of(partly, THREE, build)
    assert build.asked == [["damaged", "missing"]]
    assert all(is_of(fit, key) for key, (fit, _) in found.items())
    assert {key: file for key, (_, file) in found.items()} == {
        "there": partly / "there.safetensors",
        "damaged": None,
        "missing": None,
    }
    assert "cache_dir=" in caplog.text
    assert {path.name: path.read_bytes() for path in partly.iterdir()} == before


def test_a_disk_that_is_full_after_the_first_of_several_costs_one_warning(
    tmp_path: Path,
    build: Builder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner, calls = os.fsync, 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        inner(*arguments)

    monkeypatch.setattr("sadi_lmeval.storage.atomic.os.fsync", full)
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        found = fits_of(tmp_path, THREE, build)
    kept = [path.stem for path in tmp_path.glob("*.safetensors")]
    assert [key for key, (_, file) in found.items() if file is not None] == kept == THREE[:1]
    assert all(is_of(fit, key) for key, (fit, _) in found.items())
    assert len([r for r in caplog.records if "No space left" in r.getMessage()]) == 1


def test_locks_are_held_inside_the_block_and_free_after_it_and_after_an_error(
    tmp_path: Path,
) -> None:
    for error in (None, KeyboardInterrupt):
        try:
            with locked(tmp_path, ["b.lock", "a.lock"]) as failed:
                assert failed is None
                for name in ("a.lock", "b.lock"):
                    with pytest.raises(Timeout), FileLock(tmp_path / name, timeout=0):
                        pass
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            assert error is not None
        for name in ("a.lock", "b.lock"):
            with FileLock(tmp_path / name, timeout=0):
                pass


# ------------------------------------------------------------------ several processes

PROCESS = """
import sys, time
from pathlib import Path
import torch
from sadi_lmeval.steering.fitting import FITS
from sadi_lmeval.storage.fit_file import Fit
from sadi_lmeval.storage.store import get_or_build

folder, me, keys = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

def build(missing):
    for key in missing:
        (folder / f"built-by-{me}-{key}").touch()
    time.sleep(1)
    card = {"kind": "mean_difference", "element": "head", "shape": [1, 1, 1], "model_type": "llama"}
    return {key: Fit({"difference": torch.ones(1, 1, 1)}, card) for key in missing}

(folder / f"ready-{me}").touch()
deadline = time.monotonic() + 60
while len(list(folder.glob("ready-*"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
found = get_or_build(folder / "fits", FITS, keys, lambda missing, _: build(missing))
assert set(found) == set(keys)
for fit, file in found.values():
    assert file is not None and float(fit.tensors["difference"].sum()) == 1
"""


@pytest.mark.parametrize(
    "keys", [{"a": ["key"], "b": ["key"]}, {"a": ["one", "two", "three"], "b": ["three", "one"]}]
)
def test_of_two_processes_at_once_one_builds_and_both_have_the_fits(
    tmp_path: Path, keys: dict[str, list[str]]
) -> None:
    root = Path(store.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path), me, *wanted],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, wanted in keys.items()
    ]
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    built = [path.name.rpartition("-")[2] for path in tmp_path.glob("built-by-*")]
    assert sorted(built) == sorted({key for wanted in keys.values() for key in wanted})


def test_a_key_depends_on_every_input_and_not_on_their_order() -> None:
    inputs = {"model": "m", "documents": ["a", "b"], "seed": 0, "hidden_site": None}
    key = key_of(inputs)
    assert key == key_of(dict(reversed(inputs.items())))
    others = [
        {**inputs, "model": "n"},
        {**inputs, "documents": ["b", "a"]},
        {**inputs, "seed": 1},
        {**inputs, "seed": "0"},
        {**inputs, "hidden_site": "mlp"},
        {k: v for k, v in inputs.items() if k != "seed"},
    ]
    assert len({key, *map(key_of, others)}) == 7


# ------------------------------------------------------------------ other kinds of things


def test_plain_values_are_kept_under_their_key_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = Kind("thing", ".thing.json", read_kept, write_kept)
    asked: list[list[str]] = []

    def build(missing: list[str], folder: Path | None) -> dict[str, Any]:
        assert folder == tmp_path
        asked.append(missing)
        return {key: {"of": key} for key in missing}

    found = get_or_build(tmp_path, kind, ["a", "b", "a"], build)
    assert {key: kept.value for key, kept in found.items()} == {"a": {"of": "a"}, "b": {"of": "b"}}
    assert get_or_build(tmp_path, kind, ["b", "a"], build) == found
    assert asked == [["a", "b"]]
    other = tmp_path / "b.thing.json"
    other.write_bytes((tmp_path / "a.thing.json").read_bytes())  # another's, under its name
    with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
        assert get_or_build(tmp_path, kind, ["a", "b"], build) == found
    assert asked == [["a", "b"], ["b"]]
    assert f"{other}: damaged (it belongs to another run); it is rebuilt" in caplog.text


def test_without_a_folder_all_is_built_and_nothing_kept(tmp_path: Path) -> None:
    kind = Kind("thing", ".thing.json", read_kept, write_kept)
    for _ in range(2):
        found = get_or_build(None, kind, ["a"], lambda keys, folder: {"a": folder})
        assert found == {"a": Kept(None, None)}
