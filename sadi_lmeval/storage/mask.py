"""What was measured of the pairs' activations, and its file.

A file holds what every setting is made of, so that another K or selection needs no new pass. It is
a safetensors file whose metadata carries a JSON card; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.storage.atomic import write_atomically

FORMAT = 1
_LARGEST = 1 << 31
"""Bytes: far above any model's D; larger files are not opened."""


Kind = Literal["mean_difference", "probes"]

_TENSORS: dict[str, dict[str, int]] = {
    "mean_difference": {"difference": 3},
    "probes": {
        "accuracy": 2,
        "mass_mean": 3,
        "probe": 3,
        "mass_mean_std": 2,
        "probe_std": 2,
    },
}
"""Names of a kind's tensors, and of how many axes of the site's shape each is."""


@dataclass(frozen=True)
class Measurement:
    """What was measured on one model, at one site, of one set of pairs.

    Attributes:
        tensors: float32, by name, ``[layers, entries]`` or ``[layers, entries, entry_width]``:
            ``difference`` of a mean difference D; of probes see
            :class:`sadi_lmeval.interventions.iti.Probes`.
        card: where it comes from, as plain JSON values; ``kind`` says what it is.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the tensors."""
        content = hashlib.sha256()
        for name in sorted(self.tensors):
            values = self.tensors[name].contiguous()
            content.update(f"{name} {list(values.shape)} ".encode())
            content.update(values.view(torch.uint8).numpy().tobytes())
        return content.hexdigest()

    def check_fits(self, kind: Kind, site: Site, model_type: str, source: str) -> None:
        """Refuse what is of another kind, architecture, element or shape.

        Raises:
            UserError: saying what the file is for and what the model has.
        """
        here = {
            "kind": kind,
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


def save_mask(measurement: Measurement, path: Path) -> None:
    """Write atomically: the file is there whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    card = json.dumps({**measurement.card, "sha256": measurement.digest}, sort_keys=True)
    metadata = {
        "format": f"sadi-lmeval {FORMAT}",
        "card": card,
        "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in measurement.tensors.items()}
    write_atomically(path, save(tensors, metadata))


def load_mask(path: Path) -> Measurement:
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
            card = json.loads(metadata["card"])
            if not isinstance(card, dict):
                raise TypeError("its card is not a mapping")
            shape, axes = card["shape"], _TENSORS[card["kind"]]
            tensors = {name: file.get_tensor(name) for name in axes}
        found = Measurement(tensors, card)
        intact = (
            metadata.get("card_sha256") == hashlib.sha256(metadata["card"].encode()).hexdigest()
            and len(shape) == 3
            and all(tensors[n].dtype == torch.float32 for n in axes)
            and all(list(tensors[n].shape) == shape[:count] for n, count in axes.items())
            and card.pop("sha256") == found.digest
        )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"mask {path}: damaged or not a mask file ({error})") from None
    if not intact:
        raise UserError(f"mask {path}: damaged (its content does not match its checksums)")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"mask {path}: has values that are not finite; build it anew")
    return found
