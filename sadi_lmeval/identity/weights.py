"""A digest of a model's weights as they are now, wherever they came from and wherever they lie."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sadi_lmeval.errors import first_line

logger = logging.getLogger("lm_eval.sadi")

_CHUNK = 8 << 20
"""Bytes that are summed at once, whatever the size of a tensor."""


def weights_digest(model: nn.Module) -> str | None:
    """Digest all parameters and buffers, adapters and quantised weights included.

    Every tensor counts with its name, shape, type, the sum of its words and their sum weighted by
    place. A tensor that is offloaded is read from where it lies. Nothing is cast, and no more than
    a chunk is copied.

    Returns:
        32 hexadecimal digits; None where some weights cannot be read, which the log says.
    """
    digest = hashlib.sha256()
    try:
        for name, tensor in sorted(_tensors(model), key=lambda named: named[0]):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            for part in _plain(tensor, name):
                _update(digest, part)
    except Exception as error:  # a stranger's tensor type: anything may come
        logger.warning(
            "The weights of this model cannot be read (%s): nothing that depends on them is kept",
            first_line(error),
        )
        return None
    return digest.hexdigest()[:32]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer by name; those that are not saved with a model too."""
    for prefix, module in model.named_modules():
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            where = f"{prefix}.{name}"
            yield where, _offloaded(module, name) if tensor.device.type == "meta" else tensor
            state = getattr(tensor, "quant_state", None)  # bitsandbytes, 4 bits
            if state is not None and hasattr(state, "as_dict"):
                for key, value in state.as_dict(packed=True).items():
                    if isinstance(value, Tensor):
                        yield f"{where}.{key}", value
            for key in ("CB", "SCB"):  # bitsandbytes, 8 bits
                value = getattr(tensor, key, None)
                if isinstance(value, Tensor):
                    yield f"{where}.{key}", value


def _offloaded(module: nn.Module, name: str) -> Tensor:
    """Read a tensor from where accelerate keeps it.

    Raises:
        LookupError: it is nowhere.
    """
    hook = getattr(module, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            tensor: Tensor = weights[name]
            return tensor
    raise LookupError(f"{name} has no data")


def _plain(tensor: Tensor, name: str) -> Iterator[Tensor]:
    """Yield the tensors that make up a wrapped one (quantised weights); itself, if it is plain."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.detach()
        return
    names, _ = tensor.__tensor_flatten__()
    for inner in names:
        value: Any = getattr(tensor, inner)
        if isinstance(value, Tensor):
            yield from _plain(value, f"{name}.{inner}")


def _update(digest: Any, tensor: Tensor) -> None:
    if not tensor.numel():
        return
    content = tensor.contiguous().flatten().view(torch.uint8)
    whole = content.numel() // 8 * 8
    places = torch.arange(1, _CHUNK // 8 + 1, device=content.device)
    for start in range(0, whole, _CHUNK):
        chunk = content[start : min(start + _CHUNK, whole)]
        # A chunk may begin at any byte of its storage, a word may not.
        aligned = chunk if chunk.data_ptr() % 8 == 0 else chunk.clone()
        words = aligned.view(torch.int64)
        sums = torch.stack([words.sum(), (words * places[: len(words)]).sum()])
        digest.update(str(sums.tolist()).encode())
    digest.update(str(content[whole:].tolist()).encode())
