"""Work that is noted down line by line, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError

logger = logging.getLogger("lm_eval.sadi")


class Journal:
    """A JSONL file that only grows, each line whole or not there.

    A line that a killed process left unfinished is cut off.

    Attributes:
        lines: what was noted down so far.
    """

    def __init__(self, path: Path | None, required: bool = False) -> None:
        """
        Args:
            path: the file; None: nothing is kept.
            required: whether it is an error if the file cannot be written (``UserError``), or
                costs a warning and the work goes on without it.
        """
        self.path = path
        self.required = required
        self.lines: list[Any] = []
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = 0
            for line in content.splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    break
                whole += len(line)
            if whole < len(content):
                os.truncate(path, whole)
            if required:
                path.touch()
        except OSError as error:
            self._give_up(error)

    def add(self, *lines: Any) -> None:
        """Note down lines: all of them are on the disk when this returns."""
        self.lines += lines
        if self.path is None:
            return
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._give_up(error)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        if self.required:
            raise UserError(
                f"{self.path} cannot be written ({error}); make room or give it rights, then give "
                "the same command again"
            )
        logger.warning("%s cannot be written (%s): the work is done but not kept", self.path, error)
        self.path = None
