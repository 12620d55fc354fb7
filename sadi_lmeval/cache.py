"""Masks kept on disk between runs, under a key of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import nn

from sadi_lmeval.errors import UserError
from sadi_lmeval.mask import MeanDifference, load_mask, save_mask

logger = logging.getLogger("lm_eval.sadi")


def default_folder() -> Path:
    return user_cache_path("sadi-lmeval") / "masks"


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


def cached_mask(
    folder: Path, key: str, build: Callable[[], MeanDifference]
) -> tuple[MeanDifference, Path | None]:
    """The mask under ``key``, built and kept if it is not there or damaged.

    Of several processes that want one mask, one builds it and the others wait. A folder that
    cannot be written costs a warning, not the run.

    Returns:
        the mask and its file, or None where it could not be kept.
    """
    path = folder / f"{key}.safetensors"
    lock = FileLock(path.with_suffix(".lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        found = _load(path)
        if found is not None:
            return found, path
        _warn(folder, error)
        return build(), None
    try:
        found = _load(path)
        if found is not None:
            return found, path
        found = build()
        try:
            save_mask(found, path)
        except OSError as error:
            _warn(folder, error)
            return found, None
        return found, path
    finally:
        lock.release()


def _warn(folder: Path, error: OSError) -> None:
    logger.warning(
        "The mask cache %s cannot be written (%s): the mask is used but not kept. "
        "Pass cache_dir=FOLDER to keep masks elsewhere.",
        folder,
        error,
    )


def _load(path: Path) -> MeanDifference | None:
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
