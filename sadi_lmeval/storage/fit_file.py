"""A fit, which is what was measured of the pairs' activations, and its file.

A file holds what every setting is made of, so that another setting needs no new pass. It is a
safetensors file whose metadata carries a JSON card; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.storage.atomic import write_atomically

FORMAT = "sadi-lmeval 2"
_READABLE = ("sadi-lmeval 1", FORMAT)
"""Format 1 is that of releases before methods had modules of their own."""
ENTRY_WIDTHS = "entry_widths"
"""The tensor by which a fit says how wide an entry is in each layer, ``[layers]``, where layers
differ in that (Gemma 4): beyond it what was measured is zero."""
_LARGEST = 1 << 34
"""Bytes: far above any fit; larger files are not opened."""


@dataclass(frozen=True)
class Fit:
    """What was measured on one model, at one site, of one set of pairs.

    Attributes:
        tensors: float32, by name.
        card: where it comes from, as plain JSON values; ``kind`` says what it is, ``shape`` is
            ``[layers, entries, entry_width]`` of the site.
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
            content.update(values.flatten().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()

    @property
    def steering(self) -> dict[str, Any]:
        """The method, its arguments and the setting that the card brings along, by name."""
        given = self.card.get("steering")
        return dict(given) if isinstance(given, dict) else {}

    def check_fits(
        self,
        kind: str,
        shapes: Mapping[str, Sequence[int]],
        site: Site,
        model_type: str,
        source: str,
    ) -> None:
        """Refuse what is of another kind, architecture, element or shape.

        Args:
            kind: that the method measures.
            shapes: of the tensors that it needs; -1 stands for any length.
            site: of the model.
            model_type: of the model.
            source: of this fit, for the message.

        Raises:
            UserError: saying what the file is for and what the model has.
        """
        here = {
            "kind": kind,
            "model_type": model_type,
            "element": site.element,
            "shape": list(site.shape),
            ENTRY_WIDTHS: list(site.entry_widths),
        }
        widths = self.tensors.get(ENTRY_WIDTHS)
        own = {**self.card, ENTRY_WIDTHS: [] if widths is None else widths.int().tolist()}
        for key, value in here.items():
            if own.get(key) != value:
                raise UserError(
                    f"fit {source} is for {key} {own.get(key)}, but this run has {value}; "
                    "fit the method to this model or load the right file"
                )
        for name, shape in shapes.items():
            found = list(self.tensors[name].shape) if name in self.tensors else None
            if (
                found is None
                or len(found) != len(shape)
                or any(want not in (-1, have) for want, have in zip(shape, found, strict=True))
            ):
                has = f"no {name}" if found is None else f"{name} of shape {found}"
                raise UserError(
                    f"fit {source}: has {has}, but what is asked for needs {name} of shape "
                    f"{list(shape)}; delete it and fit the method again"
                )


def of_site(tensors: Mapping[str, Tensor], site: Site, card: dict[str, Any]) -> Fit:
    """Make a fit of what was measured at a site.

    Args:
        tensors: float32, by name; of narrower layers, as the site gives them.
        card: see :class:`Fit`.
    """
    widths = {ENTRY_WIDTHS: torch.tensor(site.entry_widths).float()} if site.entry_widths else {}
    return Fit({**tensors, **widths}, card)


def save_fit(fit: Fit, path: Path) -> None:
    """Write atomically: the file is there whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    shapes = {name: list(tensor.shape) for name, tensor in fit.tensors.items()}
    card = json.dumps({**fit.card, "tensors": shapes, "sha256": fit.digest}, sort_keys=True)
    metadata = {
        "format": FORMAT,
        "card": card,
        "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in fit.tensors.items()}
    write_atomically(path, save(tensors, metadata))


def load_fit(path: Path) -> Fit:
    """Read and verify a file of :func:`save_fit`.

    Raises:
        UserError: not such a file, or damaged.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"fit {path}: larger than {_LARGEST} bytes, not a fit")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in _READABLE:
                raise UserError(
                    f"fit {path}: not a fit of this package (format {metadata.get('format')!r}, "
                    f"expected {FORMAT!r})"
                )
            card = json.loads(metadata["card"])
            if not isinstance(card, dict):
                raise TypeError("its card is not a mapping")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fit = Fit(tensors, card)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        intact = (
            metadata.get("card_sha256") == hashlib.sha256(metadata["card"].encode()).hexdigest()
            and isinstance(card["kind"], str)
            and len(card["shape"]) == 3
            and bool(tensors)
            and all(tensor.dtype == torch.float32 for tensor in tensors.values())
            and card.pop("tensors", shapes) == shapes
            and card.pop("sha256") == fit.digest
        )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"fit {path}: damaged or not a fit ({error})") from None
    if not intact:
        raise UserError(f"fit {path}: damaged (its content does not match its checksums)")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"fit {path}: has values that are not finite; delete it")
    return fit
