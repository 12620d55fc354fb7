"""Masks kept on disk between runs, under a key of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import nn

from sadi_lmeval.errors import UserError
from sadi_lmeval.options import Options
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.storage.mask import Measurement, load_mask, save_mask

logger = logging.getLogger("lm_eval.sadi")


def default_folder() -> Path:
    return user_cache_path("sadi-lmeval") / "masks"


def cache_folder(options: Options) -> Path:
    """Where a run keeps what it has made."""
    return Path(options.cache_dir) if options.cache_dir else default_folder()


def cache_key(inputs: dict[str, Any]) -> str:
    """sha256 of everything a mask depends on, the first 32 hexadecimal digits."""
    content = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def weights_digest(model: nn.Module) -> str:
    """A digest of the loaded weights, adapters included, whatever files they came from.

    Every tensor counts with its name, shape, type, the sum of its bit patterns and a sample of
    its values. Tensors that are offloaded count by name, shape and type alone.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        flat = tensor.detach().contiguous().flatten()
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        words = flat.view(bits.get(flat.element_size(), torch.uint8))
        digest.update(str(int(words.sum(dtype=torch.int64))).encode())
        sample = words[:: max(1, words.numel() // 64)]
        digest.update(str(sample.cpu().tolist()).encode())
    return digest.hexdigest()[:32]


def cached_measurements(
    folder: Path,
    keys: Sequence[str],
    build: Callable[[list[str]], dict[str, Measurement]],
    processes: Processes = ALONE,
) -> dict[str, tuple[Measurement, Path | None]]:
    """The measurements under some keys; those that are not there or damaged are built and kept.

    Of several processes that want the same, one builds and the others wait. A folder that cannot
    be written costs a warning, not the run.

    Args:
        folder: of the cache.
        keys: what is wanted.
        build: makes those that are missing, all at once; with several processes all of them call it
            together, and what the first one gets counts.
        processes: of the run; the first one reads and writes the folder, for all.

    Returns:
        each measurement and its file, or None where it could not be kept.
    """
    paths = {key: folder / f"{key}.safetensors" for key in keys}
    found: dict[str, tuple[Measurement, Path | None]] = {}

    def look() -> list[str]:
        for key in keys:
            known = _load(paths[key]) if key not in found else None
            if known is not None:
                found[key] = known, paths[key]
        return [key for key in keys if key not in found]

    missing = processes.broadcast(look)
    if not missing:
        return processes.broadcast(lambda: found)
    with locked(folder, [f"{key}.lock" for key in missing], processes) as error:
        missing = processes.broadcast(look)  # another run may have been at it
        built = build(missing) if missing else {}
        for key, measurement in built.items() if processes.is_first else ():
            found[key] = measurement, paths[key]
            try:
                if error is None:
                    save_mask(measurement, paths[key])
            except OSError as failed:
                error = failed
            if error is not None:
                found[key] = measurement, None
        if built and error is not None and processes.is_first:
            _warn(folder, error)
    return processes.broadcast(lambda: found)


@contextmanager
def locked(
    folder: Path, names: Iterable[str], processes: Processes = ALONE
) -> Iterator[OSError | None]:
    """Hold locks of a folder while the block runs.

    All who want several take them in the same order, so nobody waits for one who waits for them.

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


def _warn(folder: Path, error: OSError) -> None:
    logger.warning(
        "The mask cache %s cannot be written (%s): the mask is used but not kept. "
        "Pass cache_dir=FOLDER to keep masks elsewhere.",
        folder,
        error,
    )


def _load(path: Path) -> Measurement | None:
    try:
        if not path.is_file():
            return None
        found = load_mask(path)
    except OSError:
        return None
    except UserError as error:
        logger.warning("%s; it is built anew", error)
        return None
    logger.info("Mask found in the cache, nothing to build: %s", path)
    return found
