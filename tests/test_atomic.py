"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sadi_lmeval.storage import atomic
from sadi_lmeval.storage.atomic import read_checked, write_atomically, write_checked

pytestmark = pytest.mark.quick

HOUR = 3600.0


def aged(path: Path, seconds: float) -> Path:
    path.write_bytes(b"begun")
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
    return path


def test_a_file_is_written_with_its_folder_and_over_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    for content in (b"one", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_others_may_read_it_as_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["mask.safetensors", "a[1]*?", "[!a]"])
def test_what_a_killed_process_had_begun_is_taken_away(tmp_path: Path, name: str) -> None:
    abandoned = aged(tmp_path / f"{name}.0123456789abcdef.partial", HOUR + 60)
    being_written = aged(tmp_path / f"{name}.fedcba9876543210.partial", HOUR - 60)
    anothers = aged(tmp_path / f"other-{name}.0123456789abcdef.partial", HOUR + 60)
    write_atomically(tmp_path / name, b"content")
    assert not abandoned.exists()
    assert set(tmp_path.iterdir()) == {being_written, anothers, tmp_path / name}


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("sadi_lmeval.storage.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [{"a": [1.5, None]}, [], "é\u2028\n", 0])
def test_checked_content_is_read_back(tmp_path: Path, content: Any) -> None:
    write_checked(tmp_path / "file", content)
    assert read_checked(tmp_path / "file") == content


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checked(path, {"a": [1.5, None], "b": "text"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for damaged in (
            whole[:place],
            *(
                whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
                for bit in range(8)
            ),
        ):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"checksum|decode"):
                read_checked(path)


def test_what_json_has_no_word_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checked(tmp_path / "file", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_file_beyond_all_bounds_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_checked(path, json.dumps("x" * 100))
    monkeypatch.setattr(atomic, "_LARGEST", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        read_checked(path)
