"""What a model's forward pass takes, by the names that its release of transformers has for it."""

from __future__ import annotations

import inspect

from torch import nn

from sadi_lmeval.architecture.sites import unwrapped


def parameters(model: nn.Module) -> set[str]:
    """Name what the model's forward pass takes; a PEFT wrapper is looked through."""
    return set(inspect.signature(unwrapped(model).forward).parameters)


def use_cache(model: nn.Module, wanted: bool) -> dict[str, bool]:
    """Say how to ask the forward pass for a key/value cache; not at all, where it has none."""
    given = inspect.signature(unwrapped(model).forward).parameters
    any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in given.values())
    return {"use_cache": wanted} if "use_cache" in given or any_name else {}


def cache_parameter(model: nn.Module) -> str:
    """Say what the key/value cache is called: ``cache`` from transformers 5.24 on."""
    return "cache" if "cache" in parameters(model) else "past_key_values"
