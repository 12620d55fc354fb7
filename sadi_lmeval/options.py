"""The model arguments of ``hf-sadi``, checked before a model is loaded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.settings import REFERENCE, Grid, read_grid

Method = Literal["sadi", "none"]
Element = Literal["head", "neuron", "hidden"]
HiddenSite = Literal["mlp", "residual"]
Selection = Literal["top", "top_abs", "bottom", "random"]
Steering = Literal["dynamic", "fixed"]
Activations = Literal["live", "clean"]
Objective = Literal["auto", "metric", "likelihood", "exact_match"]
Auto = Literal["auto"]

DEFAULT_TOP_K: dict[str, int] = {"head": 6, "neuron": 100, "hidden": 10}
"""K where the user gives delta alone: the middle of the reference code's grids."""
DEFAULT_DELTA: dict[str, float] = {"head": 9.0, "neuron": 9.0, "hidden": 9.0}
"""delta where the user gives K alone (strength 10 of the reference code)."""
DEFAULT_N_PAIRS = 150
"""Contrastive pairs per mask; the paper's figure 4 finds about 150 enough."""
DEFAULT_N_TUNE = 100
"""Held-out documents that K and delta are chosen on."""


@dataclass(frozen=True)
class Options:
    """How to steer; ``None`` means that the benchmark's task config or the default decides."""

    method: Method = "sadi"
    element: Element = "head"
    hidden_site: HiddenSite = "mlp"
    top_k: int | Auto | None = None
    delta: float | Auto | None = None
    grid: Grid | None = None
    max_settings: int = 1000
    n_tune: int | None = None
    objective: Objective = "auto"
    selection: Selection = "top"
    steering: Steering = "dynamic"
    activations: Activations = "live"
    n_pairs: int | None = None
    pairs_num_fewshot: int | None = None
    folds: int | None = None
    seed: int = 0
    recipe: str | None = None
    mask: str | None = None
    mask_from: str | None = None
    cache_dir: str | None = None
    include_path: str | None = None


NAMES = frozenset(field.name for field in fields(Options))

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "element": get_args(Element),
    "hidden_site": get_args(HiddenSite),
    "selection": get_args(Selection),
    "steering": get_args(Steering),
    "activations": get_args(Activations),
    "objective": get_args(Objective),
}
_LEAST: dict[str, int] = {
    "top_k": 1,
    "max_settings": 1,
    "n_pairs": 1,
    "n_tune": 1,
    "folds": 2,
    "pairs_num_fewshot": 0,
    "seed": 0,
}
_TEXTS = ("recipe", "mask", "mask_from", "cache_dir", "include_path")

# What transformers' ``from_pretrained`` takes beside its signature; the harness hands unknown
# arguments on to it, so these must not be taken for a spelling mistake.
_LOADING = frozenset(
    [
        "attn_implementation",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "code_revision",
        "config",
        "device_map",
        "device_mesh",
        "distributed_config",
        "experts_implementation",
        "force_download",
        "generation_config",
        "key_mapping",
        "llm_int8_enable_fp32_cpu_offload",
        "load_in_4bit",
        "load_in_8bit",
        "local_files_only",
        "low_cpu_mem_usage",
        "max_memory",
        "offload_buffers",
        "offload_state_dict",
        "output_attentions",
        "output_hidden_states",
        "output_loading_info",
        "proxies",
        "quantization_config",
        "state_dict",
        "token",
        "torch_dtype",
        "tp_size",
        "use_cache",
        "use_kernels",
        "use_safetensors",
        "variant",
        "weights_only",
    ]
)


def parse(arguments: dict[str, Any]) -> Options:
    """Check our arguments and freeze them.

    Args:
        arguments: what the user gave, of the names in ``NAMES`` only.

    Raises:
        UserError: naming every fault at once.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in ("top_k", "delta") and value == "auto":
            values[name] = value
        elif name == "grid":
            try:
                values[name] = read_grid(value)
            except UserError as error:
                faults.append(str(error))
        elif name in _CHOICES:
            if value in _CHOICES[name]:
                values[name] = value
            else:
                faults.append(f"{name}={value}: {nearest(str(value), _CHOICES[name])}")
        elif name in _LEAST:
            number = _whole(value)
            if number is None or number < _LEAST[name]:
                auto = " or auto" if name == "top_k" else ""
                faults.append(
                    f"{name}={value}: must be a whole number of at least {_LEAST[name]}{auto}"
                )
            else:
                values[name] = number
        elif name == "delta":
            number_or_none = _finite(value)
            if number_or_none is None:
                faults.append(
                    f"delta={value}: must be a finite number or auto (steering strength; "
                    "for the harness's delta weights pass delta_weights=PATH)"
                )
            else:
                values[name] = number_or_none
        elif name in _TEXTS:
            values[name] = str(value)
    if "mask" in values:
        if "mask_from" in values:
            faults.append("mask= and mask_from= were both given: pass one of them")
        if not Path(values["mask"]).is_file():
            faults.append(f"mask={values['mask']}: no such file")
    if "include_path" in values and not Path(values["include_path"]).is_dir():
        faults.append(f"include_path={values['include_path']}: no such folder")
    if "grid" in values and not {values.get("top_k", "auto"), values.get("delta", "auto")} & {
        "auto"
    }:
        faults.append("grid= was given with a fixed top_k and delta: pass either")
    if faults:
        raise UserError("; ".join(faults))
    options = Options(**values)
    _check_grid(options)
    return options


def tuned(options: Options) -> bool:
    """Whether the arguments leave K or delta to be chosen on held-out documents."""
    given = options.top_k, options.delta
    if options.method == "none" or options.delta == 0:
        return False
    return "auto" in given or given == (None, None) or options.grid is not None


def grid(options: Options, entries: int | None = None) -> Grid:
    """The settings to choose from: the user's grid or the reference code's, a number that the
    user fixed in place of its list. Of K and delta given alone, the other has its default.

    Args:
        options: the user's.
        entries: of the model, where known: the reference code's grid goes no further.
    """
    chosen = options.grid or REFERENCE[options.element]
    top_k, delta = options.top_k, options.delta
    if options.grid is None:
        if entries is not None:
            chosen = chosen._replace(top_k=tuple(k for k in chosen.top_k if k <= entries))
        if top_k is None and delta is not None:
            top_k = DEFAULT_TOP_K[options.element]
        elif delta is None and top_k is not None:
            delta = DEFAULT_DELTA[options.element]
    if isinstance(top_k, int):
        chosen = chosen._replace(top_k=(top_k,))
    if isinstance(delta, (int, float)):
        chosen = chosen._replace(delta=(delta,))
    return chosen


def _check_grid(options: Options) -> None:
    """Refuse a grid that is too large, or steers nothing."""
    count = len(grid(options).settings)
    if tuned(options) and count > options.max_settings:
        raise UserError(
            f"grid of {count} settings: at most max_settings={options.max_settings} are tried; "
            "pass a smaller grid= or a larger max_settings="
        )
    if tuned(options) and not count:
        raise UserError(
            "grid: delta 0 alone steers nothing, and the unsteered model is always tried; pass "
            "another delta"
        )


def largest_top_k(options: Options) -> int:
    """The largest K that the user asks for; 0 where it is left to us."""
    if options.grid is not None:
        return max(grid(options).top_k)
    return options.top_k if isinstance(options.top_k, int) else 0


def check_top_k(top_k: int, layers: int, entries: int, element: str) -> None:
    """Refuse to steer more entries than a model has.

    Raises:
        UserError: naming both numbers.
    """
    if top_k > layers * entries:
        raise UserError(
            f"top_k={top_k}: this model has {layers * entries} entries of element {element} "
            f"({layers} layers of {entries})"
        )


def refuse_unknown(
    arguments: dict[str, Any], host: Callable[..., Any], config: object | None
) -> None:
    """Refuse arguments that neither we, the harness's ``hf`` nor transformers know.

    Args:
        arguments: what is left after ours were taken out.
        host: the harness's ``HFLM.__init__``, whose signature lists its arguments.
        config: the model's configuration, whose attributes ``from_pretrained`` accepts;
            None where it is not known.

    Raises:
        UserError: with the nearest valid names.
    """
    known = set(inspect.signature(host).parameters) - {"self", "kwargs"}
    for name in arguments:
        if name in known or name in _LOADING or (config is not None and hasattr(config, name)):
            continue
        raise UserError(
            f"unknown model argument {name!r}: {nearest(name, known | _LOADING | NAMES)}"
        )


def _whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
