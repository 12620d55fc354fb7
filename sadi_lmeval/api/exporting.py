"""Fits in the formats of others: what is added to the residual stream, as a vector a layer."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sadi_lmeval.api.steering_fit import SteeringFit
from sadi_lmeval.architecture.sites import ARCHITECTURES, Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.storage.atomic import write_atomically

Format = Literal["gguf", "steered"]
SUFFIXES: dict[Format, str] = {"gguf": ".gguf", "steered": ".pt"}


def export(fit: SteeringFit, path: str | Path, to: Format) -> Path:
    """Write what a fit adds to the residual stream for another program.

    ``gguf``: a control vector of llama.cpp (``--control-vector FILE``): the tensor ``direction.N``
    is added to the output of decoder block N, counted from 0. llama.cpp takes none for block 0.
    ``steered``: a ``.pt`` file of the harness's own model ``steered`` (``steer_path=FILE``).

    Both programs add the vector at every token, those of the prompt too, where a method here
    begins with the prompt's last token.

    Args:
        fit: with its setting.
        path: of the file, which must not have another format's suffix.
        to: the format.

    Raises:
        UserError: the format cannot carry what the fit does, saying why, or the file cannot be
            written.
    """
    path = Path(path)
    if path.suffix != SUFFIXES[to]:
        raise UserError(f"{path}: the file of format {to} must end in {SUFFIXES[to]}")
    model_type = str(fit.fit.card.get("model_type"))
    write = {"gguf": _gguf, "steered": _steered}[to]
    content = write(_shifts(fit, to), model_type)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from None
    return path


def _shifts(fit: SteeringFit, to: Format) -> dict[int, Tensor]:
    """Give what is added to the output of each decoder block.

    Raises:
        UserError: more than that is done, or something else.
    """
    element, hidden_site = fit.method.place
    named = f"{fit.method.name} cannot be written as {to}"
    if (element, hidden_site) != ("hidden", "residual"):
        where = element if element != "hidden" else "the MLP's output"
        raise UserError(
            f"{named}: it edits {where}, and the format carries vectors of the residual stream"
        )
    edits = fit.edits_at(_site_of(fit.fit.card))
    shifts = edits.shift(0)
    if shifts is None:
        raise UserError(
            f"{named}: what it does depends on the activations, and the format carries vectors"
        )
    if not shifts:
        raise UserError(f"{named}: with a strength of 0 there is nothing to write")
    return shifts


def _site_of(card: Mapping[str, Any]) -> Site:
    """Make the site that a fit was measured at, without its model."""
    layers, entries, entry_width = card["shape"]
    element = card["element"]
    return Site(
        element,
        tuple(nn.Identity() for _ in range(layers)),
        "input" if element == "head" else "output",
        entries,
        entry_width,
        card.get("hidden_site") or "mlp",
    )


def _gguf(shifts: Mapping[int, Tensor], model_type: str) -> bytes:
    if 0 in shifts:
        raise UserError(
            "block 0: llama.cpp takes no control vector there; choose another layer, or the format "
            "steered"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the format gguf needs the package gguf; pip install gguf")
    import gguf

    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", model_type)
        writer.add_uint32("controlvector.layer_count", len(shifts))
        for layer, vector in sorted(shifts.items()):
            writer.add_tensor(f"direction.{layer}", vector.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return _content(write)


def _steered(shifts: Mapping[int, Tensor], model_type: str) -> bytes:
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"model type {model_type!r}: what its decoder blocks are called is not known; add it "
            "with sadi_lmeval.register_architecture (docs/extending.md)"
        )
    # The harness looks for names below the model's own prefix (`model`, `transformer`).
    blocks = ARCHITECTURES[model_type].blocks.partition(".")[2]
    content = {
        f"{blocks}.{layer}": {
            "action": "add",
            "steering_vector": vector.float(),
            "steering_coefficient": 1.0,
            "bias": None,
            "head_index": None,
        }
        for layer, vector in sorted(shifts.items())
    }
    return _content(lambda path: torch.save(content, path))


def _content(write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()
