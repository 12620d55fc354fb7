"""Work that is noted down line by line, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sadi_lmeval.errors import UserError

logger = logging.getLogger("lm_eval.sadi")


LARGEST = 1 << 31
"""Bytes: far above what a run notes down; larger files are not read."""


class Journal:
    """A file of JSON lines that only grows, each line whole or not there.

    A line that a killed process left unfinished is cut off, and so is all that comes after a
    damaged one.

    Attributes:
        lines: what the file held when it was opened; see :meth:`forget`.
    """

    def __init__(self, path: Path | None, required: bool = False, checked: bool = True) -> None:
        """
        Args:
            path: the file; None: nothing is kept.
            required: whether it is an error if the file cannot be written (``UserError``), or
                costs a warning and the work goes on without it.
            checked: whether each line begins with its CRC-32; without, the file is plain JSONL.

        Raises:
            UserError: the file is required and cannot be written, or is too large to be one.
        """
        self.path = path
        self.required = required
        self.checked = checked
        self.lines: list[Any] = []
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            if size > LARGEST:
                raise UserError(f"{path}: larger than {LARGEST} bytes; delete it")
            whole = self._read(path) if size else 0
            if whole < size:
                os.truncate(path, whole)
            if required:
                path.touch()
        except OSError as error:
            self._give_up(error)

    def _read(self, path: Path) -> int:
        """Take the whole lines of the file; returns how many bytes they have."""
        whole = 0
        with path.open("rb") as file:
            for line in file:
                text = self._text(line)
                try:
                    if text is None:
                        break
                    self.lines.append(json.loads(text))
                except (ValueError, RecursionError):
                    break
                whole += len(line)
        return whole

    def _written(self, line: Any) -> bytes:
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        return b"%08x " % zlib.crc32(text) + text if self.checked else text

    def _text(self, line: bytes) -> bytes | None:
        """Give the JSON of a line as it was written, or None."""
        if not line.endswith(b"\n"):
            return None
        if not self.checked:
            return line
        check, _, text = line.partition(b" ")
        return text if check == b"%08x" % zlib.crc32(text) else None

    def add(self, *lines: Any) -> None:
        """Note down lines: all of them are on the disk when this returns."""
        if self.path is None:
            return
        content = b"".join(map(self._written, lines))
        try:
            with self.path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._give_up(error)

    def forget(self) -> None:
        """Drop the lines that the file held: whoever needs them has read them."""
        self.lines = []

    def _give_up(self, error: OSError) -> None:
        if self.required:
            raise UserError(
                f"{self.path} cannot be written ({error}); make room or give it rights, then "
                "re-run the same command"
            )
        logger.warning("%s cannot be written (%s): the work is done but not kept", self.path, error)
        self.path = None


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Keep other runs from an output, by a lock file beside it, while the block runs.

    Raises:
        UserError: another run holds it, or the lock cannot be made.
    """
    lock = FileLock(f"{output}.lock", timeout=0)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{output}: another run is writing to it; wait for its end, or name another"
        ) from None
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error})") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
