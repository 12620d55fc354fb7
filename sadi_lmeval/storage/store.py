"""Things that are kept on disk between runs, under a key of all that they depend on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from filelock import FileLock
from platformdirs import user_cache_path

from sadi_lmeval.errors import first_line
from sadi_lmeval.options import Options
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.storage.atomic import read_checked, write_checked

logger = logging.getLogger("lm_eval.sadi")

T = TypeVar("T")


def default_folder() -> Path:
    return user_cache_path("sadi-lmeval") / "masks"


def cache_folder(options: Options) -> Path:
    """Say where a run keeps what it has made."""
    return Path(options.cache_dir) if options.cache_dir else default_folder()


class Kind(NamedTuple, Generic[T]):
    """A kind of thing that is kept.

    Attributes:
        what: its name, for messages.
        suffix: of its files: ``KEY`` and this.
        load: reads a file of a key. Raises ``FileNotFoundError`` where there is none, and
            ``ValueError`` or the like where it is damaged or another key's.
        save: writes a file of a key; raises ``OSError``.
    """

    what: str
    suffix: str
    load: Callable[[Path, str], T]
    save: Callable[[T, Path, str], None]

    def path(self, folder: Path, key: str) -> Path:
        return folder / f"{key}{self.suffix}"


def write_kept(value: Any, path: Path, key: str) -> None:
    """Write plain JSON values with their key and checksum.

    Raises:
        OSError: the folder cannot be written.
    """
    write_checked(path, {"key": key, "value": value})


def read_kept(path: Path, key: str) -> Any:
    """Read what :func:`write_kept` wrote.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is damaged, or of another key.
    """
    content = read_checked(path)
    if not isinstance(content, dict) or content.get("key") != key:
        raise ValueError("it belongs to another run")
    return content["value"]


class Kept(NamedTuple, Generic[T]):
    """A thing and its file, or None where it could not be kept."""

    value: T
    file: Path | None


_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a damaged file raises."""


def get_or_build(
    folder: Path | None,
    kind: Kind[T],
    keys: Sequence[str],
    build: Callable[[list[str], Path | None], dict[str, T]],
    processes: Processes = ALONE,
) -> dict[str, Kept[T]]:
    """Take things out of a folder; build and keep those that are missing or damaged.

    Of several runs that want the same, one builds and the others wait. A folder that cannot be
    written costs a warning, not the run.

    Args:
        folder: where they are kept; None: nowhere.
        kind: of the things.
        keys: of what is needed.
        build: makes those that are missing, all at once, and gets the folder, or None where it
            cannot be written. With several processes all of them call it together, and what the
            first one gets counts.
        processes: of the run; the first one reads and writes the folder, for all.
    """
    things: dict[str, Kept[T]] = {}
    needed = list(dict.fromkeys(keys))

    def look() -> list[str]:
        for key in needed:
            if folder is not None and key not in things:
                known = _load(kind, folder, key)
                if known is not None:
                    things[key] = known
        return [key for key in needed if key not in things]

    missing = processes.broadcast(look)
    if missing and folder is None:
        built = build(missing, None)
        things |= {key: Kept(value, None) for key, value in built.items()}
    elif missing and folder is not None:
        names = [f"{kind.path(folder, key).name}.lock" for key in missing]
        with locked(folder, names, processes) as error:
            missing = processes.broadcast(look)  # another run may have been at it
            kept = processes.broadcast(lambda: folder if error is None else None)
            built = build(missing, kept) if missing else {}
            for key, value in built.items() if processes.is_first else ():
                path = kind.path(folder, key)
                try:
                    if error is None:
                        kind.save(value, path, key)
                except OSError as failed:
                    error = failed
                things[key] = Kept(value, path if error is None else None)
            if built and error is not None and processes.is_first:
                logger.warning(
                    "%s cannot be written (%s): the %s is used but is not kept. "
                    "Pass cache_dir=FOLDER to keep it elsewhere.",
                    *(folder, error, kind.what),
                )
    return processes.broadcast(lambda: things)


def _load(kind: Kind[T], folder: Path, key: str) -> Kept[T] | None:
    path = kind.path(folder, key)
    try:
        if not path.is_file():
            return None
        thing = Kept(kind.load(path, key), path)
    except OSError:
        return None
    except _DAMAGED as error:
        logger.warning("%s: damaged (%s); it is rebuilt", path, first_line(error))
        return None
    logger.debug("The %s is in the cache, nothing to build: %s", kind.what, path)
    return thing


@contextmanager
def locked(
    folder: Path, names: Iterable[str], processes: Processes = ALONE
) -> Iterator[OSError | None]:
    """Hold locks of a folder while the block runs.

    All who need several take them in the same order, so nobody waits for one who waits for them.

    Args:
        folder: is made where it is not there.
        names: of the locks' files.
        processes: of the run; the first one holds the locks for all.

    Yields:
        None, or why the folder cannot be written: then nothing is locked.
    """
    failed = None
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in sorted(names) if processes.is_first else ():
                stack.enter_context(FileLock(folder / name))
        except OSError as error:
            stack.close()
            failed = error
        yield failed
