"""Work noted down: every line whole or not there, whatever the moment a process is killed."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sadi_lmeval.errors import UserError
from sadi_lmeval.storage import journal as module
from sadi_lmeval.storage.journal import Journal, held

pytestmark = pytest.mark.quick

LINES: list[Any] = [{"a": 1}, [1.5, None, "é\u2028\n"], {"b": {"c": []}}, 4, True, "text"]


def content_of(lines: list[Any]) -> bytes:
    texts = [json.dumps(line).encode() + b"\n" for line in lines]
    return b"".join(f"{zlib.crc32(text):08x} ".encode() + text for text in texts)


def plain(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_lines_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "notes.jsonl"
    first = Journal(path)
    assert first.lines == []
    first.add(*LINES[:2])
    first.add(*LINES[2:])
    first.add()
    assert Journal(path).lines == LINES
    assert path.read_bytes() == content_of(LINES)


def test_lines_are_on_the_disk_before_add_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.jsonl"
    at_sync: list[bytes] = []
    monkeypatch.setattr(
        "sadi_lmeval.storage.journal.os.fsync", lambda _: at_sync.append(path.read_bytes())
    )
    Journal(path).add(*LINES)
    assert at_sync == [content_of(LINES)]


def test_a_half_written_line_is_cut_off_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content_of(LINES[:2]) + b'{"b": {"c"')
    journal = Journal(path)
    assert journal.lines == LINES[:2]
    assert path.read_bytes() == content_of(LINES[:2])
    journal.add(*LINES[2:])
    assert path.read_bytes() == content_of(LINES)


def test_a_line_without_its_end_counts_as_half_written(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content_of(LINES)[:-1])
    assert Journal(path).lines == LINES[:-1]
    assert path.read_bytes() == content_of(LINES[:-1])


def test_an_unchecked_journal_is_plain_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    Journal(path, checked=False).add(*LINES)
    assert path.read_bytes() == plain(LINES)
    path.write_bytes(plain(LINES) + b'{"half')
    assert Journal(path, checked=False).lines == LINES
    assert path.read_bytes() == plain(LINES)
    assert Journal(path).lines == []  # and none of it passes for checked


def test_wherever_a_bit_is_flipped_nothing_but_the_lines_before_it_is_believed(
    tmp_path: Path,
) -> None:
    path, content = tmp_path / "notes.jsonl", content_of(LINES)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        assert Journal(path).lines == LINES[: content[:place].count(b"\n")], place


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content_of(LINES))
    monkeypatch.setattr(module, "LARGEST", 10)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        Journal(path)
    assert path.read_bytes() == content_of(LINES)


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\n", b"\xff\xfe\n", b"{}}\n", b"\x00\n"])
def test_nothing_after_a_garbage_line_is_believed(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content_of(LINES[:1]) + garbage + content_of(LINES[1:]))
    journal = Journal(path)
    assert journal.lines == LINES[:1]
    journal.add(LINES[1])
    assert Journal(path).lines == LINES[:2]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
).filter(lambda value: "Infinity" not in json.dumps(value))


@settings(max_examples=20)
@given(st.lists(json_values, max_size=4))
def test_wherever_the_file_is_cut_exactly_the_whole_lines_are_left(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "notes.jsonl"
    content = content_of(lines)
    more = {"more": 1}
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        journal = Journal(path)
        assert journal.lines == lines[:whole]
        assert path.read_bytes() == content_of(lines[:whole])
        if length % 7 == 0:
            journal.add(more)
            assert Journal(path).lines == [*lines[:whole], more]


def test_a_number_that_json_does_not_know_is_never_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "notes.jsonl")
    journal.add(1)
    with pytest.raises(ValueError, match="JSON"):
        journal.add(float("nan"))
    assert Journal(tmp_path / "notes.jsonl").lines == [1]


def test_a_folder_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        journal = Journal(tmp_path / "file" / "notes.jsonl")
        journal.add(1, 2)
        journal.add(3)
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


def test_a_disk_that_is_full_costs_one_warning_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path / "notes.jsonl")
    journal.add(1)
    monkeypatch.setattr("sadi_lmeval.storage.journal.os.fsync", full)
    journal.add(2)
    journal.add(3)
    assert caplog.text.count("No space left on device") == 1


def test_what_is_written_is_not_kept_in_memory_and_what_was_read_can_be_forgotten(
    tmp_path: Path,
) -> None:
    path = tmp_path / "notes.jsonl"
    Journal(path).add(1)
    for journal, before in ((Journal(path), [1]), (Journal(None), [])):
        journal.add(2)
        assert journal.lines == before
        journal.forget()
        assert journal.lines == []
    assert Journal(path).lines == [1, 2]


def test_an_output_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    refused = pytest.raises(UserError, match=r"out\.jsonl: another run is writing to it")
    with held(output), refused, held(output):
        raise AssertionError
    with held(output):
        assert [path.name for path in output.parent.iterdir()] == ["out.jsonl.lock"]
    assert list(output.parent.iterdir()) == []


def test_an_output_is_let_go_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "out"):
        raise KeyError
    with held(tmp_path / "out"):
        pass


def test_an_output_that_cannot_be_held_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        held(tmp_path / "file" / "out.jsonl"),
    ):
        raise AssertionError
