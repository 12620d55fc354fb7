"""Files that are there whole or not at all, and whose damage is noticed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

_LARGEST = 1 << 28
"""Bytes of a checked file: far above any of ours; larger ones are not read."""
_ABANDONED = 3600.0
"""Seconds after which a file that nobody has finished belongs to a killed process."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, its folder included; nobody ever sees a part of it.

    Its permissions are those of any new file, so that a folder can be shared. What processes that
    were killed had begun to write of it is deleted.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        if _is_abandoned(left):
            left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_checked(path: Path, content: Any) -> None:
    """Write plain JSON values atomically, after a line with their sha256.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps(content, allow_nan=False)
    write_atomically(path, f"{_digest(text)}\n{text}\n".encode())


def read_checked(path: Path) -> Any:
    """Read what :func:`write_checked` wrote.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is damaged, or something else.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"larger than {_LARGEST} bytes")
    check, _, text = path.read_text(encoding="utf-8").partition("\n")
    if not text.endswith("\n") or check != _digest(text[:-1]):
        raise ValueError("its content does not match its checksum")
    return json.loads(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except OSError:
        return False  # another process has deleted it
