"""Files of steering vectors that other tools write: vectors to add to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sadi_lmeval.errors import UserError, first_line

Vectors = dict[int | None, Tensor]
"""By layer, counted from 0, ``[width]`` float32 each; None: the only one, of no layer."""


def load_vectors(path: Path) -> Vectors:
    """Read vectors: of a ``.gguf`` control vector, of a ``.pt`` of the harness's ``steered``, or of
    a safetensors file.

    A safetensors file has one tensor ``[layers, width]``, or one ``[width]`` for any layer, or one
    ``[width]`` a layer whose name ends in the layer's number.

    Raises:
        UserError: it is none of these, is damaged, or holds something else than a shift of the
            residual stream.
    """
    try:
        if path.suffix == ".gguf":
            found = _of_control_vector(path)
        elif path.suffix in (".pt", ".pth"):
            found = _of_steered(path)
        else:
            found = _of_safetensors(path)
    except UserError:
        raise
    except Exception as error:  # whatever its reader says of a stranger's file
        raise UserError(f"vector={path}: cannot be read ({first_line(error)})") from None
    if not found:
        raise UserError(f"vector={path}: has no vector")
    for layer, vector in found.items():
        where = "" if layer is None else f" of layer {layer}"
        if not vector.is_floating_point() or vector.dim() != 1:
            raise UserError(
                f"vector={path}: the vector{where} is a {vector.dtype} of shape "
                f"{list(vector.shape)}; it must be one list of floating-point numbers"
            )
        if not vector.isfinite().all():
            raise UserError(f"vector={path}: the vector{where} has values that are not finite")
    return {layer: vector.float().clone() for layer, vector in found.items()}


def _of_safetensors(path: Path) -> Vectors:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"vector={path}: is no safetensors file ({error})") from None
    if len(tensors) == 1:
        [(name, tensor)] = tensors.items()
        if tensor.dim() == 2:
            return dict(enumerate(tensor))
        if _number_at_end(name) is None:
            return {None: tensor}
    layers = {name: _number_at_end(name) for name in tensors}
    wrong = [name for name, layer in layers.items() if layer is None]
    if wrong:
        raise UserError(
            f"vector={path}: tensor {wrong[0]!r} names no layer; of several tensors the names must "
            "end in the layer's number"
        )
    return _by_layer(path, {name: (layers[name], tensors[name]) for name in tensors})


def _of_control_vector(path: Path) -> Vectors:
    """Read what llama.cpp adds: ``direction.N`` after block N, counted from 0, with N from 1 on.

    Its own loader has no place for a direction of block 0 (llama_adapter_cvec).
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(
            f"vector={path}: a GGUF file needs the package gguf; pip install sadi-lmeval[gguf]"
        ) from None
    reader: Any = GGUFReader(path)
    field = reader.get_field("general.architecture")
    kind = None if field is None else field.contents()
    if kind != "controlvector":
        raise UserError(
            f"vector={path}: is a GGUF file of architecture {kind}, not a controlvector"
        )
    named: dict[str, tuple[int | None, Tensor]] = {}
    for tensor in reader.tensors:
        layer = _number_at_end(tensor.name)
        if tensor.name != f"direction.{layer}" or not layer:
            raise UserError(
                f"vector={path}: has a tensor {tensor.name!r}; a control vector's are direction.N "
                "with N from 1 on"
            )
        named[tensor.name] = layer, torch.from_numpy(tensor.data.copy())
    return _by_layer(path, named)


def _of_steered(path: Path) -> Vectors:
    """Read the vectors of the harness's ``steered``: of decoder blocks, with ``action`` ``add``."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise UserError(f"vector={path}: is no mapping of hook points, as `steered` takes it")
    named: dict[str, tuple[int | None, Tensor]] = {}
    for hookpoint, given in content.items():
        info: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        parts = str(hookpoint).split(".")
        numbers = [part for part in parts if part.isdigit()]
        other = {
            "its action is": info.get("action") if info.get("action") != "add" else None,
            "its head_index is": info.get("head_index"),
            "its bias is": None if info.get("bias") is None else "a tensor",
            "it is inside a block:": None if [parts[-1]] == numbers else hookpoint,
        }
        wrong = [f"{what} {value}" for what, value in other.items() if value is not None]
        vector, coefficient = info.get("steering_vector"), info.get("steering_coefficient", 1.0)
        if "action" not in info or not isinstance(vector, Tensor):
            wrong = ["it has no action or no steering_vector"]
        if wrong:
            raise UserError(
                f"vector={path}: hook point {hookpoint!r} is no shift of the residual stream "
                f"({wrong[0]})"
            )
        assert isinstance(vector, Tensor)
        named[str(hookpoint)] = int(numbers[0]), vector.float() * float(coefficient)
    return _by_layer(path, named)


def _by_layer(path: Path, named: Mapping[str, tuple[int | None, Tensor]]) -> Vectors:
    found: Vectors = {}
    for name, (layer, vector) in named.items():
        if layer in found:
            raise UserError(f"vector={path}: {name!r} is another vector of layer {layer}")
        found[layer] = vector
    return dict(sorted(found.items(), key=lambda item: item[0] or 0))


def _number_at_end(name: str) -> int | None:
    """Read the layer that a tensor's name ends in."""
    end = name[len(name.rstrip("0123456789")) :]
    return int(end) if end and len(end) < 6 else None
