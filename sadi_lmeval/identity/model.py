"""What a model's numbers depend on: weights, configuration, adapters, precision, arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from torch import nn

from sadi_lmeval.identity.weights import weights_digest

_OF_THE_PLACE = frozenset(
    "_name_or_path transformers_version _commit_hash dtype torch_dtype".split()
)
"""What a configuration says of where it came from; of the type the weights tell."""
OF_THE_MACHINE = frozenset(
    "pretrained batch_size max_batch_size device device_map parallelize max_memory_per_gpu "
    "max_cpu_memory max_memory offload_folder offload_buffers trust_remote_code token revision "
    "cache_dir local_files_only force_download use_safetensors low_cpu_mem_usage".split()
)
"""Arguments that numbers do not depend on, or of which the weights tell what came of them."""
PROVENANCE = ("model", "revision")
"""What a model's card says for people; no number depends on it."""


def model_card(model: nn.Module, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a model as it is now.

    Args:
        model: the causal language model, a PEFT wrapper around one included.
        name: of the model; of a path the last part.
        arguments: with which the harness's class was made.

    Returns:
        plain JSON values; ``weights_digest`` is None where the weights cannot be read.
    """
    config: Any = model.config
    return {
        "model": PurePath(name).name if PurePath(name).is_absolute() else name,
        "revision": getattr(config, "_commit_hash", None) or str(arguments.get("revision", "main")),
        "model_type": str(config.model_type),
        "config_digest": _digest(_without_places(config.to_dict())),
        "weights_digest": weights_digest(model),
        "adapters": _adapters(model),
        "attention": str(getattr(config, "_attn_implementation", None)),
        "dtype": str(next(model.parameters()).dtype),
        "arguments": {
            key: _plain(value)
            for key, value in sorted(arguments.items())
            if key not in OF_THE_MACHINE and value is not None
        },
    }


def model_identity(card: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a card what numbers depend on."""
    return {key: value for key, value in card.items() if key not in PROVENANCE}


def other_model(card: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Name the model of a fit's card, if it is not this one: by the weights, else by the name."""
    name = PurePath(str(card.get("model"))).name
    known = card.get("weights_digest"), here.get("weights_digest")
    if None not in known and "config_digest" in card:  # earlier cards digest other things
        return None if known[0] == known[1] else name
    return None if name == PurePath(str(here.get("model"))).name else name


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest a tokenizer: all that decides on the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        words: Any = sorted(tokenizer.get_vocab().items())
    else:
        words = json.loads(backend.to_str())
        for name in ("padding", "truncation"):  # as the last call asked for
            words.pop(name, None)
    content = {
        "class": type(tokenizer).__name__,
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "settings": {
            k: str(v)
            for k, v in tokenizer.init_kwargs.items()
            if k not in ("name_or_path", "tokenizer_file", "vocab_file", "chat_template")
        },
        "words": words,
    }
    return _digest(content)


def _adapters(model: nn.Module) -> list[str]:
    """Digest what each adapter is beside its weights: whether it is active, and how strongly."""
    adapters = []
    for name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "active_adapters"):
            state = {
                "active": list(module.active_adapters),
                "scaling": {key: _plain(value) for key, value in scaling.items()},
                "merged": list(getattr(module, "merged_adapters", [])),
                "disabled": bool(getattr(module, "disable_adapters", False)),
            }
            adapters.append(f"{name} {json.dumps(state, sort_keys=True)}")
    configs = getattr(model, "peft_config", None)
    if isinstance(configs, dict):
        for key, config in sorted(configs.items()):
            content = config.to_dict() if hasattr(config, "to_dict") else {}
            content.pop("base_model_name_or_path", None)
            adapters.append(f"{key} {_digest(content)}")
    return [_digest(adapters)] if adapters else []


def _without_places(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(k): _without_places(v) for k, v in content.items() if k not in _OF_THE_PLACE}
    if isinstance(content, (list, tuple)):
        return [_without_places(value) for value in content]
    return content


def _plain(value: Any) -> Any:
    """Make a JSON value that tells others apart; of an object its type."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "to_dict"):
        return _digest(value.to_dict())
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
