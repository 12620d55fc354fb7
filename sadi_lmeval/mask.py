"""The mean difference between positive and negative activations, and its file.

A file holds the score of every entry, so that another K or selection needs no new pass. It is a
safetensors file whose metadata carries a JSON card; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sadi_lmeval.atomic import write_atomically
from sadi_lmeval.errors import UserError
from sadi_lmeval.sites import Site

FORMAT = 1
_LARGEST = 1 << 31
"""Bytes: far above any model's D; larger files are not opened."""


@dataclass(frozen=True)
class MeanDifference:
    """D of one model, element and set of pairs.

    Attributes:
        values: ``[layers, entries, entry_width]`` float32.
        card: where it comes from, as plain JSON values.
    """

    values: Tensor
    card: dict[str, Any]

    @property
    def scores(self) -> Tensor:
        """One number an entry, ``[layers, entries]``: for heads the mean over ``head_dim``."""
        return self.values.mean(dim=-1)

    def check_fits(self, site: Site, model_type: str, source: str) -> None:
        """Refuse a D of another architecture, element or shape.

        Raises:
            UserError: saying what the file is for and what the model has.
        """
        here = {
            "model_type": model_type,
            "element": site.element,
            "shape": [site.layers, site.entries, site.entry_width],
        }
        for key, value in here.items():
            if self.card.get(key) != value:
                raise UserError(
                    f"mask {source} is for {key} {self.card.get(key)}, but this run has {value}; "
                    "build a mask on this model or load the right one"
                )


def save_mask(difference: MeanDifference, path: Path) -> None:
    """Write atomically: the file is there whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    card = json.dumps({**difference.card, "sha256": _digest(difference.values)}, sort_keys=True)
    metadata = {
        "format": f"sadi-lmeval {FORMAT}",
        "card": card,
        "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
    }
    write_atomically(path, save({"difference": difference.values.contiguous()}, metadata))


def load_mask(path: Path) -> MeanDifference:
    """Read and verify a file of :func:`save_mask`.

    Raises:
        UserError: not such a file, or damaged.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"mask {path}: larger than {_LARGEST} bytes, not a mask")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != f"sadi-lmeval {FORMAT}":
                raise UserError(
                    f"mask {path}: not a mask of this package (format {metadata.get('format')!r}, "
                    f"expected 'sadi-lmeval {FORMAT}')"
                )
            values = file.get_tensor("difference")
        card = json.loads(metadata["card"])
        if not isinstance(card, dict):
            raise TypeError("its card is not a mapping")
        intact = (
            metadata.get("card_sha256") == hashlib.sha256(metadata["card"].encode()).hexdigest()
            and values.dtype == torch.float32
            and values.dim() == 3
            and list(values.shape) == card["shape"]
            and card.pop("sha256") == _digest(values)
        )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"mask {path}: damaged or not a mask file ({error})") from None
    if not intact:
        raise UserError(f"mask {path}: damaged (its content does not match its checksums)")
    return MeanDifference(values, card)


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
