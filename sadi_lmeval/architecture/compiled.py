"""Compiled models: they keep the hooks that they were traced with, so they are run as written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from sadi_lmeval.errors import UserError


def running_as_written(model: nn.Module) -> AbstractContextManager[Any]:
    """Run a model's own code, not what ``torch.compile`` has made of it, while the block runs.

    Raises:
        UserError: it is compiled, and this torch cannot.
    """
    if not any(_is_compiled(module) for module in model.modules()):
        return nullcontext()
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None:
        raise UserError(
            f"the model is compiled, and torch {torch.__version__} cannot run it otherwise; pass "
            "it uncompiled, or install torch 2.6 or later"
        )
    eager: AbstractContextManager[Any] = stance("force_eager")
    return eager


def _is_compiled(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return (
        getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module, "_orig_mod")
        or hasattr(forward, "_torchdynamo_orig_callable")
    )
