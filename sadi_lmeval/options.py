"""The arguments that every method shares: pairs, the choice of a setting, and where files are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sadi_lmeval.arguments import (
    choice,
    declared,
    file,
    file_or_repository,
    folder,
    number,
    read,
    switch,
    text,
    whole,
)
from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.types import Side, Token

Negative = Literal["random", "hardest", "all"]
Labels = Literal["gold", "shuffled"]
Protocol = Literal["default", "reference"]
Objective = Literal["auto", "metric", "likelihood", "exact_match"]
RuleName = Literal[
    "auto", "best", "best-1se", "best-2se", "sure", "likely-1se", "likely-2se", "backed",
    "sure-or-backed",
]  # fmt: skip

DEFAULT_N_PAIRS = 150
"""Contrastive pairs of a fit; SADI's paper's figure 4 finds about 150 enough."""
DEFAULT_N_TUNE = 100
"""Held-out documents that a setting is chosen on."""
REFERENCE_LENGTH = 700
"""Tokens; SADI's reference code leaves out longer pairs, and longer prompts of what it steers."""


@dataclass(frozen=True)
class Options:
    """What all methods share; ``None`` means that the benchmark's file or the default decides."""

    n_tune: int | None = whole(
        None, 1, "held-out documents that `auto` chooses on; without it, as many as there are up "
        f"to {DEFAULT_N_TUNE}", shown=str(DEFAULT_N_TUNE),
    )  # fmt: skip
    objective: Objective = choice(
        "auto", get_args(Objective), "what `auto` goes by: `metric`; for generated text "
        "`likelihood` or `exact_match` of the target; `exact_match` of a right choice too",
        shown="by task",
    )  # fmt: skip
    rule: RuleName = choice(
        "auto", get_args(RuleName), "which setting `auto` takes, or that it takes none: `sure`, "
        "the best where it gains beyond chance ([docs/tuning.md](docs/tuning.md))", shown="`sure`",
    )  # fmt: skip
    race: bool = switch(
        True, "whether settings that the first held-out documents rule out are left out on the "
        "rest ([docs/tuning.md](docs/tuning.md))",
    )  # fmt: skip
    max_settings: int = whole(1000, 1, "the most settings that `auto` tries", shown="1000")
    protocol: Protocol = choice(
        "default", get_args(Protocol), "`reference`: what SADI's authors' code does, texts over "
        f"{REFERENCE_LENGTH} tokens left out in every arm ([docs/paper.md](docs/paper.md))",
    )  # fmt: skip
    n_pairs: int | None = whole(
        None, 1, "contrastive pairs of a fit; without it, as many as there are up to "
        f"{DEFAULT_N_PAIRS}", shown=str(DEFAULT_N_PAIRS),
    )  # fmt: skip
    negative: Negative = choice(
        "random", get_args(Negative), "which wrong choice a pair has: `random`, `all` of them in "
        "pairs of their own, or the `hardest` for the unsteered model",
    )  # fmt: skip
    labels: Labels = choice(
        "gold", get_args(Labels), "`shuffled`: in half of the pairs, drawn by `seed`, right and "
        "wrong are swapped before anything is measured (of labelled prompts, the right answers are "
        "permuted): what is left without information ([docs/comparison.md](docs/comparison.md))",
    )  # fmt: skip
    pairs_num_fewshot: int | None = whole(
        None, 0, "few-shot examples in the pairs' prompts", shown="as the run"
    )
    folds: int | None = whole(None, 2, "folds of a cross-fitted task", shown="2")
    recipe: str | None = text(
        None, "how a pair is made: a name from `contrastive_sets/` (`truthfulness`, `politeness` "
        "and `refusal_of_falsehoods` are hand-written pairs for any task) or a YAML file",
        shown="by task",
    )  # fmt: skip
    fit: str | None = file_or_repository(
        "a saved fit (what was measured of pairs): a file, or `user/repository` of the hub; it "
        "brings its setting along if it has one. One made from documents that are scored is refused"
    )
    mask: str | None = file_or_repository("another name of `fit`")
    when: str | None = file(
        "a condition (`sadi-lmeval condition`): prompts that do not meet it are answered unsteered "
        "([docs/conditions.md](docs/conditions.md))"
    )
    when_layer: int | None = whole(
        None, 0, "the layer where the condition is read", shown="the file's best"
    )
    when_threshold: float | None = number(
        None, "the similarity from which on it is met, or not", shown="the file's"
    )
    when_side: Side | None = choice(
        None, get_args(Side), "prompts are steered `above` the threshold, or `below` it",
        shown="the file's",
    )  # fmt: skip
    when_token: Token | None = choice(
        None, get_args(Token), "what of a prompt the condition is read of, its `last` token or the "
        "`mean` over all: as the file was fitted, or refused", shown="the file's",
    )  # fmt: skip
    mask_from: str | None = text(None, "another task, on whose pairs the method is fitted")
    cache_dir: str | None = text(
        None, "where fits and choices are kept between runs", shown="the user's cache folder"
    )
    include_path: str | None = folder(
        "a folder with your own recipe and benchmark files", shown="`--include_path`"
    )
    seed: int = whole(0, 0, "of the draw of pairs, wrong answers and random entries", shown="0")


NAMES = frozenset(declared(Options))

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


def read_options(given: Mapping[str, Any]) -> tuple[Options, list[str]]:
    """Check the shared arguments among what a user gave.

    Returns:
        the options, those that are faulty left out, and every fault.
    """
    values, faults = read(Options, given)
    sources = [name for name in ("fit", "mask", "mask_from") if values.get(name) is not None]
    if len(sources) > 1:
        faults.append(f"{'= and '.join(sources)}= were both given: pass one of them")
    if "mask" in values:
        values["fit"] = values.pop("mask")
    faults += [
        f"{name}={values[name]}: changes a condition, and there is none; pass when=FILE"
        for name in ("when_layer", "when_threshold", "when_side", "when_token")
        if name in values and given.get("when") is None
    ]
    if values.get("fit") is not None and values.get("labels") == "shuffled":
        faults.append(
            "fit= was given with labels=shuffled: a saved fit has the labels that it was made "
            "with; pass one of them"
        )
    return Options(**values), faults


def refuse_unknown(
    arguments: Mapping[str, Any],
    host: Callable[..., Any],
    config: object | None,
    ours: frozenset[str] = NAMES,
) -> None:
    """Refuse arguments that neither we, the harness's ``hf`` nor transformers know.

    Args:
        arguments: what is left after ours were taken out.
        host: the harness's ``HFLM.__init__``, whose signature lists its arguments.
        config: the model's configuration, whose attributes ``from_pretrained`` accepts;
            None where it is not known.
        ours: names that we know, for the message.

    Raises:
        UserError: with the nearest valid names.
    """
    known = set(inspect.signature(host).parameters) - {"self", "kwargs"}
    for name in arguments:
        if name in known or name in _LOADING or (config is not None and hasattr(config, name)):
            continue
        raise UserError(
            f"unknown model argument {name!r}: {nearest(name, known | _LOADING | ours)}"
        )
