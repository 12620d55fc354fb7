"""The model arguments of ``hf-sadi``, ``hf-iti`` and ``hf-caa``, checked before loading."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.settings import Grid, Parameters, read_grid

Method = Literal["sadi", "iti", "caa", "none"]
Element = Literal["head", "neuron", "hidden"]
HiddenSite = Literal["mlp", "residual"]
Selection = Literal["top", "top_abs", "bottom", "random"]
Steering = Literal["dynamic", "fixed"]
Activations = Literal["live", "clean"]
Negative = Literal["random", "hardest", "all"]
Protocol = Literal["default", "reference"]
Direction = Literal["mass_mean", "probe"]
Objective = Literal["auto", "metric", "likelihood", "exact_match"]
Auto = Literal["auto"]

PARAMETERS: dict[str, Parameters] = {
    "sadi": Parameters("top_k", "delta"),
    "iti": Parameters("top_k", "alpha"),
    "caa": Parameters("layer", "multiplier"),
}
"""What each method calls its two numbers."""
_OWN: dict[str, tuple[str, ...]] = {
    "sadi": ("method", "element", "hidden_site", "selection", "steering", "activations"),
    "iti": ("direction",),
    "caa": (),
}
"""What else only that method takes."""
OF_METHODS = tuple(
    dict.fromkeys(
        name
        for method in PARAMETERS
        for name in (*PARAMETERS[method], *_OWN[method])
        if name in ("method", "element") or name in PARAMETERS[method]
    )
)
"""What tells methods and settings apart: a command that tries several sets these itself."""

DEFAULT_N_PAIRS = 150
"""Contrastive pairs per mask; SADI's paper's figure 4 finds about 150 enough."""
DEFAULT_N_TUNE = 100
"""Held-out documents that a setting is chosen on."""


@dataclass(frozen=True)
class Options:
    """How to steer; ``None`` means that the benchmark's task config or the default decides."""

    method: Method = "sadi"
    element: Element = "head"
    hidden_site: HiddenSite = "mlp"
    top_k: int | Auto | None = None
    delta: float | Auto | None = None
    alpha: float | Auto | None = None
    layer: int | Auto | None = None
    multiplier: float | Auto | None = None
    direction: Direction = "mass_mean"
    grid: Grid | None = None
    max_settings: int = 1000
    n_tune: int | None = None
    objective: Objective = "auto"
    selection: Selection = "top"
    steering: Steering = "dynamic"
    activations: Activations = "live"
    n_pairs: int | None = None
    negative: Negative = "random"
    protocol: Protocol = "default"
    pairs_num_fewshot: int | None = None
    folds: int | None = None
    seed: int = 0
    recipe: str | None = None
    mask: str | None = None
    mask_from: str | None = None
    cache_dir: str | None = None
    include_path: str | None = None

    @property
    def parameters(self) -> Parameters:
        """What the method calls the two numbers of a setting; of the unsteered model SADI's."""
        return PARAMETERS.get(self.method, PARAMETERS["sadi"])

    @property
    def where(self) -> int | Auto | None:
        """Where to steer: K, or the layer."""
        found: int | Auto | None = getattr(self, self.parameters.where)
        return found

    @property
    def strength(self) -> float | Auto | None:
        """How strongly to steer."""
        found: float | Auto | None = getattr(self, self.parameters.strength)
        return found


NAMES = frozenset(field.name for field in fields(Options))

_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("sadi", "none"),
    "element": get_args(Element),
    "hidden_site": get_args(HiddenSite),
    "selection": get_args(Selection),
    "steering": get_args(Steering),
    "activations": get_args(Activations),
    "negative": get_args(Negative),
    "protocol": get_args(Protocol),
    "direction": get_args(Direction),
    "objective": get_args(Objective),
}
_LEAST: dict[str, int] = {
    "top_k": 1,
    "layer": 0,
    "max_settings": 1,
    "n_pairs": 1,
    "n_tune": 1,
    "folds": 2,
    "pairs_num_fewshot": 0,
    "seed": 0,
}
_REFERENCE = {"activations": "clean", "selection": "top", "steering": "dynamic"}
"""What SADI's reference code does; its grid is the usual one."""
REFERENCE_LENGTH = 700
"""Tokens; the reference code leaves out longer pairs, and longer prompts of what it steers."""
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


def parse(arguments: dict[str, Any], method: Method = "sadi") -> Options:
    """Check our arguments and freeze them.

    Args:
        arguments: what the user gave, of the names in ``NAMES`` only.
        method: of the model that they were given to.

    Raises:
        UserError: naming every fault at once.
    """
    parameters = PARAMETERS[method]
    foreign = {
        name
        for other in PARAMETERS
        for name in (*PARAMETERS[other], *_OWN[other])
        if other != method
    } - {*parameters, *_OWN[method]}
    numbers = {name for names in PARAMETERS.values() for name in names}
    strengths = {names.strength for names in PARAMETERS.values()}
    faults: list[str] = []
    values: dict[str, Any] = {"method": method}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in foreign:
            faults.append(
                f"{name}={value}: hf-{method} has no {name}; where and how strongly it steers are "
                f"{parameters.where} and {parameters.strength}"
            )
        elif name in numbers and value == "auto":
            values[name] = value
        elif name == "grid":
            try:
                values[name] = read_grid(value, parameters)
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
                auto = " or auto" if name in numbers else ""
                faults.append(
                    f"{name}={value}: must be a whole number of at least {_LEAST[name]}{auto}"
                )
            else:
                values[name] = number
        elif name in strengths:
            number_or_none = _finite(value)
            if number_or_none is None:
                hint = (
                    " (steering strength; for the harness's delta weights pass delta_weights=PATH)"
                    if name == "delta"
                    else ""
                )
                faults.append(f"{name}={value}: must be a finite number or auto{hint}")
            else:
                values[name] = number_or_none
        elif name in _TEXTS:
            values[name] = str(value)
    if values.get("protocol") == "reference" and method == "sadi":
        for name, value in _REFERENCE.items():
            if values.setdefault(name, value) != value:
                faults.append(
                    f"{name}={values[name]}: protocol=reference means {name}={value}; pass either"
                )
    if "mask" in values:
        if "mask_from" in values:
            faults.append("mask= and mask_from= were both given: pass one of them")
        if not Path(values["mask"]).is_file():
            faults.append(f"mask={values['mask']}: no such file")
    if "include_path" in values and not Path(values["include_path"]).is_dir():
        faults.append(f"include_path={values['include_path']}: no such folder")
    if "grid" in values and not {values.get(name, "auto") for name in parameters} & {"auto"}:
        faults.append(f"grid= was given with a fixed {' and '.join(parameters)}: pass either")
    if faults:
        raise UserError("; ".join(faults))
    return Options(**values)


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
