"""Files for arguments that a method cannot be without."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sadi_lmeval.arguments import declared
from sadi_lmeval.methods.base import Method


@functools.cache
def vector_files() -> tuple[str, str]:
    """Two files of a vector for each layer of the tiny models, ``[3, 32]``."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = []
    for seed in range(2):
        vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
        paths.append(folder / f"{seed}.safetensors")
        save_file({"vectors": vectors}, paths[-1])
    return str(paths[0]), str(paths[1])


def needed(kind: type[Method] | None) -> dict[str, Any]:
    """The arguments that a method must be given."""
    own = {} if kind is None else declared(kind)
    return {name: vector_files()[0] for name, argument in own.items() if argument.required}


def made(kind: type[Method], **arguments: Any) -> Method:
    """A method with what it needs."""
    return kind(**{**needed(kind), **arguments})
