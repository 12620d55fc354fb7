"""``sadi-lmeval plan``: what a run will hold and compute, told from a configuration alone."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sadi_lmeval.errors import UserError, first_line

if TYPE_CHECKING:
    from sadi_lmeval.architecture.sites import Site
    from sadi_lmeval.harness.run_task import RunTask
    from sadi_lmeval.methods.arm import Arm
    from sadi_lmeval.passes.activations import TokenPair
    from sadi_lmeval.passes.batches import Bounds
    from sadi_lmeval.passes.footprint import Weights
    from sadi_lmeval.passes.packing import Continuation

GB = 1 << 30
_WORDS = 30_000
"""Of the vocabulary of texts that are made up."""
_LAYER_BUFFERS = 4, 3
"""What a layer holds at once of a token: vectors as wide as the model, and as its MLP; about."""


def add(commands: Any) -> None:
    """Describe the command's options."""
    plan = commands.add_parser(
        "plan",
        help="say what a run will hold and compute, before anything is loaded",
        description="Say what a run will hold in memory and how many tokens it will compute, "
        "beside hf's. It needs the model's configuration alone; with --tasks also its tokenizer "
        "and the tasks' data, else texts of an assumed length are counted.",
    )
    plan.add_argument("--model_args", "-a", required=True, help="pretrained=…, as for hf-sadi")
    plan.add_argument("--method", default="sadi", help="its arguments stand in --model_args")
    plan.add_argument("--tasks", "-t", help="comma-separated tasks")
    plan.add_argument("--num_fewshot", "-f", type=int)
    plan.add_argument("--limit", "-L", type=float)
    plan.add_argument("--include_path", type=Path)
    plan.add_argument("--batch_size", "-b", default="auto")
    plan.add_argument("--device", default="cuda", help="its type: cpu, or cuda (default)")
    plan.add_argument("--device_memory", type=float, help="of a device, GB: how many are needed")
    for name, count in _ASSUMED.items():
        plan.add_argument(
            f"--{name}", type=int, default=count, help="without --tasks (default: %(default)s)"
        )
    plan.set_defaults(run=run)


_ASSUMED = {
    "documents": 1000,
    "prompt_tokens": 200,
    "shared_tokens": 0,
    "choices": 4,
    "answer_tokens": 5,
}


class Work(NamedTuple):
    """What a task, or the run, is about to ask of the model.

    Attributes:
        requests: to score.
        pairs: of every fit.
        held_out: of every fit the requests of the documents that its setting is chosen on.
        settings: to choose from; 0: none is chosen.
    """

    requests: list[Continuation]
    pairs: list[list[TokenPair]]
    held_out: list[list[Continuation]]
    settings: int


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    from lm_eval.utils import simple_parse_args_string

    from sadi_lmeval.methods.arm import own_arguments, read_arm
    from sadi_lmeval.passes.engine import bounds_on

    for name in _ASSUMED:
        least = 0 if name == "shared_tokens" else 1
        if getattr(given, name) < least:
            raise UserError(f"--{name} {getattr(given, name)}: must be at least {least}")
    if given.shared_tokens >= given.prompt_tokens:
        raise UserError(
            f"--shared_tokens {given.shared_tokens}: must be below --prompt_tokens "
            f"{given.prompt_tokens}"
        )
    size = str(given.batch_size)
    if size != "auto" and not (size.isdigit() and int(size)):
        raise UserError(f"--batch_size {size}: must be a whole number of at least 1, or auto")
    arguments = simple_parse_args_string(given.model_args)
    if "pretrained" not in arguments:
        raise UserError("--model_args: pretrained=MODEL is missing")
    names = own_arguments(given.method)
    arm = read_arm(given.method, {k: arguments.pop(k) for k in list(arguments) if k in names})
    model = model_without_weights(arguments)
    site = _site(model, arm)
    length = int(arguments.get("max_length") or _longest(model.config))
    rows = None if size == "auto" else int(size)
    kind = str(given.device).split(":")[0]
    bounds = bounds_on(kind, int(model.get_output_embeddings().weight.shape[0]), rows, length)
    if given.tasks:
        work = _of_tasks(given, model, arm, site, arguments)
    else:
        work = _assumed(given, arm, site)
    _say(given, model, arm, site, bounds, work)


def model_without_weights(arguments: dict[str, Any]) -> Any:
    """Build the model that arguments name on the ``meta`` device, in the type it would have.

    Raises:
        UserError: it has no configuration, or is no causal language model.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    name = arguments["pretrained"]
    refused = [k for k in ("load_in_4bit", "load_in_8bit", "gguf_file", "peft") if arguments.get(k)]
    if refused:
        raise UserError(f"--model_args {', '.join(refused)}: only plain weights are counted here")
    try:
        config = AutoConfig.from_pretrained(
            name,
            revision=arguments.get("revision", "main"),
            trust_remote_code=bool(arguments.get("trust_remote_code", False)),
        )
        asked = arguments.get("dtype", "auto")
        dtype = getattr(config, "dtype", None) if asked == "auto" else getattr(torch, str(asked))
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--model_args pretrained={name}: no model can be planned ({first_line(error)})"
        ) from error
    model.tie_weights()
    return model.eval()


def _longest(config: Any) -> int:
    from lm_eval.models.huggingface import HFLM

    text = config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return int(HFLM._DEFAULT_MAX_LENGTH)


def _site(model: Any, arm: Arm) -> Site:
    from sadi_lmeval.architecture.sites import check_sites
    from sadi_lmeval.steering.fitting import method_of

    site = check_sites(model, *method_of(arm).place)
    if site is None:
        raise UserError(
            f"model type {model.config.model_type!r}: its pass does not run without weights, so "
            "that nothing is known of it before it is loaded"
        )
    return site


def _of_tasks(
    given: argparse.Namespace, model: Any, arm: Arm, site: Site, arguments: dict[str, Any]
) -> Work:
    """Tokenize what the run would: requests, pairs and held-out documents."""
    from sadi_lmeval.commands.arguments import listed
    from sadi_lmeval.harness.run_tasks import load_tasks
    from sadi_lmeval.model import ManyArmsModel

    folders = [given.include_path] if given.include_path is not None else []
    tasks = load_tasks(listed("tasks", given.tasks), folders, given.num_fewshot, {})
    named = arguments.get("tokenizer", arguments["pretrained"])
    own = {k: arguments[k] for k in ("max_length", "add_bos_token") if k in arguments}
    lm = ManyArmsModel(model, ["none"], tokenizer=named, **own)
    work = [_of_task(task, lm, arm, site, given.limit) for task in tasks]
    return Work(
        [request for each in work for request in each.requests],
        [pairs for each in work for pairs in each.pairs],
        [requests for each in work for requests in each.held_out],
        max(each.settings for each in work),
    )


def _of_task(task: RunTask, lm: Any, arm: Arm, site: Site, limit: float | None) -> Work:
    from sadi_lmeval.pairs.pairs import scored_texts
    from sadi_lmeval.pairs.plan import draw, find_plan, num_fewshot
    from sadi_lmeval.passes.activations import TokenPair
    from sadi_lmeval.steering.steering import settings_for

    documents = len(task.task.eval_docs)
    most = None if limit is None else int(limit) if limit >= 1 else -(-documents * limit // 1)
    task.task.build_all_requests(limit=most, rank=0, world_size=1)
    texts = [(r.args[0], r.args[1] if r.request_type == "loglikelihood" else "")
             for r in task.task.instances]  # fmt: skip
    settings, chosen = settings_for(task, arm, site)
    plan = find_plan(task, arm.options)
    pairs, held_out = [], []
    for source in plan.sources.sources:
        drawn = draw(plan, source, arm.options, arm.axes.names if chosen else (), lm)
        pairs.append(
            [TokenPair(lm.encode(*p.positive), lm.encode(*p.negative)) for p in drawn.pairs]
        )
        if chosen:
            shots = num_fewshot(plan, arm.options)
            scored = scored_texts(
                plan.source_task, plan.own_recipe, drawn.held_out, source.allowed, shots,
                arm.options.seed,
            )  # fmt: skip
            held_out.append(lm.continuations([text for each in scored for text in each]))
    return Work(lm.continuations(texts), pairs, held_out, len(settings) if chosen else 0)


def _assumed(given: argparse.Namespace, arm: Arm, site: Site) -> Work:
    """Make up texts of the lengths that are assumed."""
    from sadi_lmeval.options import DEFAULT_N_PAIRS, DEFAULT_N_TUNE
    from sadi_lmeval.passes.activations import TokenPair
    from sadi_lmeval.passes.packing import Continuation

    draw = random.Random(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(1, _WORDS), k=count))

    shared = words(given.shared_tokens)

    def asked(documents: int) -> list[Continuation]:
        prompts = [(*shared, *words(given.prompt_tokens - len(shared))) for _ in range(documents)]
        return [
            Continuation(prompt, words(given.answer_tokens))
            for prompt in prompts
            for _ in range(given.choices)
        ]

    chosen = arm.with_numbers({}).is_chosen
    settings = len(arm.with_numbers({}).search_space(site.size).settings) if chosen else 0
    n_pairs = arm.options.n_pairs or DEFAULT_N_PAIRS
    pairs = []
    for context, tokens, _ in asked(n_pairs)[:: given.choices]:
        pairs.append(TokenPair([*context, *tokens], [*context, *words(given.answer_tokens)]))
    held_out = [asked(arm.options.n_tune or DEFAULT_N_TUNE)] if chosen else []
    return Work(asked(given.documents), [pairs], held_out, settings)


class Memory(NamedTuple):
    """Bytes of a device, but for ``fit``, which are of the computer.

    Attributes:
        beginning: keys and values of the longest beginning that prompts share.
        scoring: logits, an attention mask and what one layer holds, of a full batch.
        grid: keys and values of a batch, and what blocks begin with, for all settings.
        fit: what the method keeps of its pairs.
    """

    weights: Weights
    key_value: int
    beginning: int
    scoring: int
    grid: int
    fit: int

    @property
    def with_block(self) -> int:
        """What stands beside a block's weights, on the same device, at most."""
        return -(-(self.beginning + self.grid) // len(self.weights.blocks))


def memory_of(model: Any, arm: Arm, site: Site, bounds: Bounds, work: Work) -> Memory:
    """Reckon what a run holds.

    Raises:
        UserError: the model keeps no keys and values, or its pass does not run without weights.
    """
    from sadi_lmeval.passes import footprint

    weights = footprint.weights_of(model)
    try:
        key_value = footprint.key_value_bytes(model)
    except (RuntimeError, AttributeError, TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"model type {model.config.model_type!r}: what it keeps of a token is not known before "
            f"it is loaded ({first_line(error)})"
        ) from error
    head = model.get_output_embeddings().weight
    item, text = head.element_size(), model.config.get_text_config()
    wide, inner = _LAYER_BUFFERS
    width = wide * text.hidden_size + inner * int(getattr(text, "intermediate_size", 0) or 0)
    longest = max((len(r.context) + len(r.tokens) for r in work.requests), default=0)
    tokens = max(longest, min(bounds.tokens, sum(len(r.context) for r in work.requests)))
    logits = min(bounds.scored, sum(len(r.tokens) for r in work.requests)) * head.shape[0] * item
    mask = min(bounds.mask, tokens * longest) * item
    beginning = max(
        (footprint.longest_beginning(each) for each in (work.requests, *work.held_out)), default=0
    )
    return Memory(
        weights,
        key_value,
        beginning * key_value,
        logits + mask + tokens * width * item,
        max(
            (_grid_bytes(model, site, key_value, each, bounds) for each in work.held_out), default=0
        ),
        fit_bytes(arm, site, max(map(len, work.pairs))),
    )


def _grid_bytes(
    model: Any, site: Site, key_value: int, requests: Sequence[Continuation], bounds: Bounds
) -> int:
    """Reckon what a batch keeps for all settings, if they begin with every layer there is."""
    from sadi_lmeval.passes import footprint

    tokens, anew = footprint.grid(requests, bounds).largest
    starts = len(set(site.blocks) - {0})
    item = int(model.get_output_embeddings().weight.element_size())
    width = int(model.config.get_text_config().hidden_size)
    return tokens * key_value + anew * starts * width * item


def fit_bytes(arm: Arm, site: Site, pairs: int) -> int:
    """Measure what the collector of an arm keeps of one pair and of two; of more it is as much."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    from sadi_lmeval.steering.fitting import method_of

    def size(count: int) -> int:
        collector = method_of(arm).collector(site, count, 0)
        kept = [each for each in tree_leaves(vars(collector)) if isinstance(each, Tensor)]
        return sum(int(each.numel()) * each.element_size() for each in kept)

    one = size(1)
    more = size(2) - one
    return one + (pairs - 1) * more


class Counts(NamedTuple):
    """Tokens of a run; ``choice`` is the most that it may be, as fits say where edits begin."""

    hf: int
    scoring: Any
    pairs: Any
    choice: Any


def counts_of(bounds: Bounds, work: Work) -> Counts:
    """Count the passes and the tokens of a run."""
    from sadi_lmeval.passes.footprint import Computed, grid, plain_tokens, reading, scoring

    pairs = choice = Computed()
    for each in work.pairs:
        pairs = pairs.plus(reading(each, bounds))
    for asked in work.held_out:
        found = grid(asked, bounds)
        choice = choice.plus(found.trunk).plus(Computed(0, found.own * work.settings))
    return Counts(plain_tokens(work.requests), scoring(work.requests, bounds), pairs, choice)


def _say(
    given: argparse.Namespace, model: Any, arm: Arm, site: Site, bounds: Bounds, work: Work
) -> None:
    memory, counts = memory_of(model, arm, site, bounds, work), counts_of(bounds, work)
    parameters = sum(p.numel() for p in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    print(
        f"{type(model).__name__}: {parameters / 1e9:.3f} billion parameters in {dtype}, "
        f"{len(memory.weights.blocks)} layers; method {arm.name}, {work.settings or 'no'} settings "
        f"to choose from; batch size {given.batch_size} on {given.device}\n"
    )
    print("| memory | GB |\n|---|---|")
    for what, size in (
        ("weights", memory.weights.total),
        ("keys and values of 1,000 tokens", 1000 * memory.key_value),
        ("the longest shared beginning", memory.beginning),
        ("a batch that is scored, at most", memory.scoring),
        ("what a grid keeps of a batch, at most", memory.grid),
        ("the fit's activations or probes (of the computer, not of a device)", memory.fit),
    ):
        print(f"| {what} | {size / GB:.3f} |")
    texts = "the tasks' own texts" if given.tasks else "texts of assumed lengths"
    print(f"\n| tokens, of {texts} | passes | tokens | of hf's |\n|---|---|---|---|")
    total = counts.scoring.tokens + counts.pairs.tokens + counts.choice.tokens
    for what, passes, tokens in (
        ("hf, without padding", "", counts.hf),
        ("scoring", counts.scoring.passes, counts.scoring.tokens),
        ("pairs", counts.pairs.passes, counts.pairs.tokens),
        ("choice, at most", "", counts.choice.tokens),
        ("the run, at most", "", total),
    ):
        print(f"| {what} | {passes} | {tokens:,} | {tokens / max(1, counts.hf):.2f} |")
    if given.device_memory is not None:
        print(f"\n{advice(memory, given.device_memory)}")


def advice(memory: Memory, device_memory: float) -> str:
    """Say how to spread a model over devices of so many GB."""
    devices = memory.weights.devices(int(device_memory * GB), memory.scoring, memory.with_block)
    if devices is None:
        return (
            f"Devices of {device_memory:g} GB are too small for a part of the weights with a batch "
            f"of up to {memory.scoring / GB:.1f} GB; pass a smaller --batch_size"
        )
    if devices == 1:
        return (
            f"One device of {device_memory:g} GB holds the model: start a process for each device "
            "(accelerate launch), each of which scores its part of the documents"
        )
    return (
        f"{devices} devices of {device_memory:g} GB hold the model: parallelize=True spreads its "
        f"layers over them; with more devices start a process for every {devices}"
    )
