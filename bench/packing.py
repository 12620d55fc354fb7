"""What each way of sharing and batching saves, counted in tokens: nothing is timed.

    python bench/packing.py [--tasks A,B] [--without NAME ...] [--documents 60] [--data FOLDER]
        [--batch_size auto] [--grid]

Runs the package's own passes on a model with the layers and the tokenizer of
SmolLM2-135M-Instruct and next to no width, and counts the tokens that its decoder blocks compute:
the mean over the blocks, padding included. Prints, for each task:

    hf            tokens that ``hf`` computes, without its padding: every prompt with every choice,
                  choices of one token together
    ours          tokens that are computed here, and in how many passes
    unpadded      the same without padding
    floor         tokens if all that any two requests of the task begin with were computed once

and what the tokens become without each of

    batching        rows of like length in a batch, chosen so that the fewest tokens are computed
                    (without: the longest first, as many as fit)
    splitting       groups within groups of prompts that begin alike (without: one group, by what
                    all begin with)
    neighbours      prompts that share half of themselves in one row (without: each its own)
    grid-batching   of a grid: rows with about as many own tokens in a batch (without: as many as
                    fit)
    merging         of a grid: edits that begin at different layers in one pass, where that costs
                    less (without: a pass a layer)

The cost counts a pass as 32 tokens more, which is what beginning one takes on a CPU.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.prefixes import SHORTEST, Group, shared_length

START = 32
"""What a pass costs beside its tokens, in tokens."""
TASKS = (
    "truthfulqa_mc1,copa,winogrande,boolq,sst2,commonsense_qa,arc_challenge,mmlu_anatomy:5,"
    "mmlu_anatomy+mmlu_global_facts+mmlu_moral_disputes:5"
)
GRIDS = ("grid-batching", "merging")


def as_many_as_fit(rows: Sequence[Any], bounds: Bounds, past: int = 0) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for row in sorted(rows, key=lambda row: -row.length):
        more = [*batch, row]
        padded = len(more) * more[0].length
        if batch and (
            (bounds.rows is not None and len(more) > bounds.rows)
            or padded > bounds.tokens
            or sum(each.scored for each in more) > bounds.scored
            or (any(each.is_masked for each in more) and padded * (past + row.length) > bounds.mask)
        ):
            yield batch
            more = [row]
        batch = more
    if batch:
        yield batch


def what_all_begin_with(sequences: Sequence[Sequence[int]]) -> list[Group]:
    """One group, by what all its sequences begin with."""
    distinct = sorted({tuple(sequence) for sequence in sequences})
    if not distinct:
        return []
    common = shared_length(distinct[0], distinct[-1])
    length = min(common, min(map(len, distinct)) - 1)
    worth = len(distinct) > 1 and length >= SHORTEST
    return [Group(length if worth else 0, list(range(len(sequences))))]


def a_pass_a_layer(
    passes: dict[int, list[int]], layers: int, tokens: int, at_once: int
) -> list[tuple[int, list[int]]]:
    return sorted(passes.items())


PASSES = "sadi_lmeval.passes"
WITHOUT: dict[str, dict[str, Any]] = {
    "batching": {"scoring.batches": as_many_as_fit, "activations.batches": as_many_as_fit},
    "splitting": {"scoring.group_by_prefix": what_all_begin_with},
    "neighbours": {"packing._SHARED_PART": 2.0},
    "grid-batching": {"trunk._PADDING": math.inf, "trunk._PADDING_OF_ALL": math.inf},
    "merging": {"grid._merged": a_pass_a_layer},
}
"""What stands in the place of what, in the modules of ``sadi_lmeval.passes``."""


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Leave out what the names say; none: nothing."""
    with ExitStack() as stack:
        for name in names:
            for where, other in WITHOUT[name].items():
                stack.enter_context(patch(f"{PASSES}.{where}", other))
        yield


@dataclass
class Count:
    """Tokens and passes, over the decoder blocks: of a pass that begins later, a part."""

    tokens: float = 0.0
    passes: float = 0.0

    @property
    def cost(self) -> float:
        return self.tokens + START * self.passes


@contextmanager
def counted(model: Any) -> Iterator[Count]:
    """Count what the decoder blocks compute."""
    from sadi_lmeval.architecture.sites import decoder_blocks

    blocks, count = decoder_blocks(model), Count()

    def hook(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], __: Any) -> None:
        states = arguments[0] if arguments else keywords["hidden_states"]
        count.tokens += states.shape[0] * states.shape[1] / len(blocks)
        count.passes += 1 / len(blocks)

    handles = [block.register_forward_hook(hook, with_kwargs=True) for block in blocks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def floor(requests: Sequence[Any]) -> int:
    """Tokens that are left if every beginning that requests have in common is computed once."""
    texts = sorted({(*request.context, *request.tokens[:-1]) for request in requests})
    total, before = 0, ()
    for text in texts:
        total += len(text) - shared_length(before, text)
        before = text
    return total


def unpadded(requests: Sequence[Any]) -> int:
    """Tokens of the packed rows, and of the beginnings that are computed before them."""
    from sadi_lmeval.passes.packing import pack_requests
    from sadi_lmeval.passes.scoring import groups_of

    groups = groups_of(requests, True)
    rows = sum(row.length for group in groups for row in pack_requests(requests, group, True))
    total, before = rows, ()
    for group in groups:  # a beginning takes over what the one before it began with
        begins = requests[group.members[0]].context[: group.length]
        total += len(begins) - shared_length(before, begins)
        before = begins or before
    return total


def thin(folder: Path, tokenizer_of: str) -> str:
    """Make a model of next to no width: layers and tokenizer are those of another."""
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    like = AutoConfig.from_pretrained(tokenizer_of)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=8,
        num_hidden_layers=like.num_hidden_layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=like.max_position_embeddings,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def nothing(*_: Any) -> None:
    """What comes out is not looked at."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tasks", default=TASKS, help="NAME or NAME:SHOTS, by commas; A+B: both at once"
    )
    parser.add_argument("--without", nargs="*", choices=WITHOUT, default=list(WITHOUT))
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--grid", action="store_true", help="count grids too, of a fifth of them")
    parser.add_argument("--batch_size", default="auto")
    parser.add_argument("--model", help="whose layers and tokenizer are taken")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    from offline import run_in

    run_in(given.data)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from smollm2 import default_folder, smollm2

    from sadi_lmeval.comparison.sweep import Sweep, parts_of
    from sadi_lmeval.harness.run_tasks import load_tasks
    from sadi_lmeval.model import ManyArmsModel
    from sadi_lmeval.steering.steering import candidates_of

    with tempfile.TemporaryDirectory() as folder:
        like = given.model or str(smollm2(default_folder()))
        model = ManyArmsModel(
            thin(Path(folder) / "thin", like),
            ["sadi-head", "sadi-neuron", "caa"],
            device="cpu",
            batch_size=given.batch_size,
            n_pairs=10,
            cache_dir=f"{folder}/fits",
        )
        runs: list[tuple[str, Callable[[], None]]]
        for named in given.tasks.split(","):
            names, _, shots = named.partition(":")
            requests, some, families = [], [], []
            for task in load_tasks(names.split("+"), [], int(shots) if shots else None, {}):
                what = Sweep(model.arms, {}, "test", given.documents)
                part = parts_of(task, what, model.options, model)[0]
                mine = [[model.continuation(*t) for t in texts] for texts in part.trial.texts]
                requests += [request for each in mine for request in each]
                some += [request for each in mine[: len(mine) // 5] for request in each]
                families = [
                    candidates_of(arm, what.settings(n, model), part.fits[n], model).edits
                    for n, arm in model.arms.items()
                ]
            runs = [("", partial(model.engine.score, requests, None, nothing))]
            if given.grid:
                runs.append(("grid", partial(model.engine.score_grid, some, families, nothing)))
            model.engine.score(requests[:1], None, nothing)  # finds out what the model takes
            plain = sum(map(len, {(*r.context, *r.tokens[:-1]) for r in requests}))
            print(f"{named}: hf {plain}, unpadded {unpadded(requests)}, floor {floor(requests)}")
            for kind, run in runs:
                with counted(model.model) as ours:
                    run()
                print(f"  {kind or 'ours'}: {ours.tokens:.0f} tokens, {ours.passes:.1f} passes")
                for left_out in given.without:
                    if (left_out in GRIDS) > bool(kind) or (kind and left_out == "batching"):
                        continue
                    with without([left_out]), counted(model.model) as other:
                        run()
                    said = f"{other.cost / ours.cost:.2f} of the cost"
                    print(f"    without {left_out}: {other.tokens:.0f} tokens, {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
