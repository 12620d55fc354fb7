"""SADI and ITI beside their authors' code, on the pairs that this package makes.

    python bench/parity.py [--sadi FOLDER] [--tasks copa,boolq] [--elements head,neuron,hidden]
        [--settings N] [--honest_llama FOLDER] [--data FOLDER] [--model FOLDER]

``--sadi`` and ``--honest_llama`` are checkouts of https://github.com/weixuan-wang123/SADI and
https://github.com/likenneth/honest_llama (docs/parity.md names the commits; ITI's needs
``pip install --no-deps pyvene==0.1.8``, too). ``--data`` is a folder to run in, in which the
harness finds the data sets when there is no hub. The model is SmolLM2-135M-Instruct unless
``--model`` names another of the Llama architecture. ``--settings N`` stops their steering after
the first N settings of a grid. Prints lines for docs/parity.md's table.

Their functions run as they are written. Of SADI's: ``select_heads_acts_actups``, ``steer_heads``,
``steer_neurons`` and ``steer_hiddens`` (steering.py), ``get_out``, ``trace_head_patch`` and
``trace_neuron_patch`` (trace.py), ``make_inputs`` and ``layername`` (causal_trace.py), on the model
of modeling_llama.py; what they do not return is noted where they compute it. Of ITI's:
``Collector`` and ``wrapper`` (interveners.py), ``get_llama_activations_pyvene``, ``train_probes``,
``get_top_heads``, ``get_com_directions`` and ``get_interventions_dict`` (utils.py).

In place of what they ask for and what is not here or not in their repository stand

    the data                    the package's pairs, and a prompt with the right answer of a further
                                one; for SADI with one space before the answer, as its code writes
    CUDA                        the model's device
    model loading               SADI's code names 32 layers: those beyond the model's own have
                                weights of zero and add nothing. modeling_llama.py is run within the
                                transformers that is installed, without its key/value cache
    globals.yml                 of SADI: folders, all of them the one it runs in
    the tokenizer               SADI's ``steer_…`` call ``trace_…_patch`` without the tokenizer that
                                these ask for, which cannot run: it is handed in between
    baukit                      SADI's own util/nethook.py, an earlier state of the same
    dsets; truthfulqa, openai, einops   nothing: their names are imported and not used
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import transformers
from authors import commit_of, cuda_is, importing_from, loaded_as, watching
from torch import Tensor

from sadi_lmeval.api.steering_fit import SteeringFit
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.harness.run_tasks import limited, load_tasks
from sadi_lmeval.methods.base import entry_means
from sadi_lmeval.methods.iti import by_accuracy, fit_probes
from sadi_lmeval.methods.sadi import GRIDS
from sadi_lmeval.model import ManyArmsModel
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.fitting import fits_of_pairs
from sadi_lmeval.types import Element

Array = np.ndarray[Any, Any]
Name = TypeVar("Name", bound=str)

SADI_PAIRS = {"copa": 50, "boolq": 50}
STEERED_ON = "copa"
STEERED_PROMPTS = 1
ITI_TASK, ITI_PAIRS, ITI_TOP_K = "truthfulqa_mc1", 100, 48
NAMED_LAYERS = 32
"""Of SADI's code, whatever the model has."""
ELEMENTS: dict[Element, str] = {"head": "heads", "neuron": "neurons", "hidden": "hidden units"}


def pairs_of(name: str, count: int, model: ManyArmsModel) -> list[Pair]:
    """Make pairs of a task, as a fit's are made."""
    [task] = load_tasks([name], [], 0, {})
    options = replace(model.options, n_pairs=count)
    plan = find_plan(limited(task, model.length_limit), options)
    return draw(plan, plan.sources.sources[0], options, ()).pairs


def fits(name: str, pairs: Sequence[Pair], model: ManyArmsModel) -> list[SteeringFit]:
    """Fit every arm of a model to pairs, in its order."""
    origin = {"task": name, "source": name, "recipe": None, "recipe_digest": None}
    arms = list(model.arms.values())
    fitted = fits_of_pairs(pairs, [], origin, arms, model, name)
    return [SteeringFit(each.fit, arm) for each, arm in zip(fitted, arms, strict=True)]


def gap(ours: Any, theirs: Any) -> float:
    """Give the largest difference between two arrays of one shape."""
    one, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert one.shape == other.shape, (one.shape, other.shape)
    return float(np.abs(one - other).max())


def line(what: str, agreement: str) -> None:
    print(f"| {what} | {agreement} |", flush=True)


# ------------------------------------------------------------------ SADI


class _EnoughError(Exception):
    pass


@dataclass(frozen=True)
class SadiAuthors:
    """Their code with a model of theirs.

    Attributes:
        steering, trace: their modules.
        model: of their modeling_llama.py.
        folder: that it runs in.
    """

    steering: ModuleType
    trace: ModuleType
    model: Any
    tokenizer: Any
    folder: Path

    @classmethod
    def of(cls, checkout: Path, ours: Any, tokenizer: Any, folder: Path) -> SadiAuthors:
        """Import their code, which reads a file and writes into a folder where it runs."""
        names = ("RESULTS_DIR", "DATA_DIR", "STATS_DIR", "HPARAMS_DIR", "REMOTE_ROOT_URL")
        (folder / "globals.yml").write_text("".join(f"{name}: .\n" for name in names))
        (folder / "results").mkdir()
        os.chdir(folder)
        with importing_from(checkout, ["dsets"]):
            sys.modules["baukit"] = importlib.import_module("util.nethook")
            try:
                steering = importlib.import_module("steering")
            finally:
                del sys.modules["baukit"]
            trace = importlib.import_module("trace")
        return cls(steering, trace, their_llama(checkout, ours), tokenizer, folder)

    def selected(self, pairs: Sequence[Pair]) -> tuple[dict[Element, Array], dict[Element, Any]]:
        """Run their selection.

        Returns:
            D of every entry, ``[32, entries]``; and the entries with the largest, in order, as
            ``[layer, entry]``.
        """
        rows = [[p.positive[0], p.positive[1], p.negative[1]] for p in pairs]
        select = self.steering.select_heads_acts_actups

        means, mean = list[Array](), np.mean

        def noted(values: Any, axis: int) -> Any:
            found = mean(values, axis=axis)
            if axis == 0:  # over the pairs
                means.append(np.asarray(found))
            return found

        with cuda_is(self.model.device), patch.object(np, "mean", noted):
            heads, _, neurons, _, hidden, _ = select(self.model, self.tokenizer, rows)
        return (
            dict(zip(ELEMENTS, means, strict=True)),
            {"head": heads, "neuron": neurons, "hidden": hidden},
        )

    def steered(
        self, element: Element, chosen: list[list[int]], prompt: str, answer: str, most: int | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Steer one prompt with every setting of their grid.

        Args:
            chosen: entries, the first K of which are steered.
            most: settings; None: all.

        Yields:
            K, strength, and the logits from the last prompt token on, ``[tokens, vocab]``.
        """
        called = "trace_head_patch" if element == "head" else "trace_neuron_patch"
        name = {"head": "heads", "neuron": "neurons", "hidden": "hiddens"}[element]
        traced, noted = getattr(self.trace, called), list[Tensor]()

        def with_tokenizer(model: Any, inputs: Any, states: list[Any], **named: Any) -> Any:
            if len(noted) == most:
                raise _EnoughError
            last = states[0][0]

            def note(_: Any, arguments: Any, outputs: Any) -> None:
                noted.append(outputs.logits[0, last:].clone())

            hook = model.register_forward_hook(note)
            try:
                return traced(model, self.tokenizer, inputs, states, **named)
            finally:
                hook.remove()

        steer = getattr(self.steering, f"steer_{name}")
        [results] = [self.folder / f for f in steer.__code__.co_consts
                     if isinstance(f, str) and f.startswith("./results/")]  # fmt: skip
        results.unlink(missing_ok=True)
        with (
            suppress(_EnoughError),
            cuda_is(self.model.device),
            patch.object(self.steering, called, with_tokenizer),
        ):
            steer(self.model, self.tokenizer, "", [[prompt, answer]], chosen, [])
        settings = re.findall(r"^(\d+)\*max-(\d+) ", results.read_text(), re.M | re.I)
        for (strength, top_k), logits in zip(settings, noted, strict=True):
            yield int(top_k), int(strength), logits


def their_llama(checkout: Path, ours: Any) -> Any:
    """Make a model of their modeling_llama.py with the weights of one of transformers."""
    config = copy.deepcopy(ours.config)
    config.rope_theta = config.rope_parameters["rope_theta"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config.rope_scaling = None
    config.num_hidden_layers, config.use_cache = NAMED_LAYERS, False
    config._attn_implementation = "eager"
    absent = "transformers.modeling_attn_mask_utils"  # of versions before 5; no use without sdpa
    stood_in = absent not in sys.modules and importlib.util.find_spec(absent) is None
    if stood_in:
        sys.modules[absent] = ModuleType(absent)
        sys.modules[absent].AttentionMaskConverter = None  # type: ignore[attr-defined]
    try:
        llama = loaded_as(
            "transformers.models.llama.modeling_llama_of_sadi", checkout / "modeling_llama.py"
        ).LlamaForCausalLM
    finally:
        if stood_in:
            del sys.modules[absent]
    llama._tied_weights_keys = None  # a list of theirs, which is a mapping by now
    model = llama(config).eval()
    missing, unexpected = model.load_state_dict(ours.state_dict(), strict=False)
    layers = model.model.layers[ours.config.num_hidden_layers :]
    of_more = {
        f"model.layers.{ours.config.num_hidden_layers + i}.{name}"
        for i, layer in enumerate(layers)
        for name, _ in layer.named_parameters()
    }
    assert not unexpected
    assert set(missing) == of_more, set(missing) ^ of_more
    for parameter in layers.parameters():
        parameter.data.zero_()
    return model


def spaced_alike(pair: Pair, model: ManyArmsModel) -> Pair:
    """Put one space before an answer, as their code does (the harness has two in COPA)."""
    texts = [(prompt.strip(), f" {answer.strip()}") for prompt, answer in pair[:2]]
    for prompt, answer in texts:
        if model.tokenizer.encode(prompt + answer) != model.encode(prompt, answer):
            raise SystemExit(f"their code reads other tokens of this text: {prompt + answer!r}")
    return pair._replace(positive=texts[0], negative=texts[1])


def sadi(
    checkout: Path,
    names: Sequence[str],
    elements: dict[Element, str],
    most: int | None,
    model: ManyArmsModel,
    folder: Path,
) -> None:
    """Compare D and the selection on tasks, and steered logits on one of them.

    Args:
        elements: those of the model's arms, with what to call them.
        most: settings of each grid; None: all.
    """
    drawn = {}
    for name in names:
        count = SADI_PAIRS[name] + (name == STEERED_ON) * STEERED_PROMPTS
        pairs = pairs_of(name, count, model)
        drawn[name] = [spaced_alike(pair, model) for pair in pairs]
    theirs = SadiAuthors.of(checkout, model.model, model.tokenizer, folder)
    layers, fitted = model.model.config.num_hidden_layers, {}
    for name, pairs in drawn.items():
        kept = pairs[: SADI_PAIRS[name]]
        made = fitted[name] = dict(zip(elements, fits(name, kept, model), strict=True))
        differences, chosen = theirs.selected(kept)
        apart = []
        for element, plural in elements.items():
            tensors = made[element].fit.tensors
            scores = entry_means(tensors["difference"], tensors)
            assert not differences[element][layers:].any()  # layers that add nothing
            found = gap(scores, differences[element][:layers])
            apart.append(f"{found:.1e} ({plural}, of up to {float(scores.abs().max()):.2g})")
        line(f"SADI: the mean difference D, {len(kept)} pairs of {name}", ", ".join(apart))
        for element, plural in elements.items():
            line(
                f"SADI: the selected {plural}, {len(kept)} pairs of {name}",
                same_selection(made[element], element, chosen[element]),
            )
    if STEERED_ON not in drawn:
        return
    others = drawn[STEERED_ON][SADI_PAIRS[STEERED_ON] :]
    for element, plural in elements.items():
        steered_logits(theirs, model, fitted[STEERED_ON][element], element, others, plural, most)


def selection(fit: SteeringFit, top_k: int) -> set[tuple[int, int]]:
    """Give the K entries that a fit selects, as layer and entry."""
    mask = fit.method.selected(fit.fit.tensors, Setting(top_k, 1.0), fit.arm.options.seed)
    assert mask is not None
    return {(layer, entry) for layer, entry in mask.nonzero().tolist()}


def same_selection(fit: SteeringFit, element: Element, theirs: list[list[int]]) -> str:
    """Say for which K of the grid their entries are ours."""
    entries = fit.fit.tensors["difference"].shape[1]
    grid = [int(k) for k in GRIDS[element].values[0]]
    same, same_modulo = [], []
    for top_k in grid:
        ours, found = selection(fit, top_k), {(int(layer), int(i)) for layer, i in theirs[:top_k]}
        same.append(ours == found)
        same_modulo.append({(layer % entries, i) for layer, i in ours} == found)
    if all(same):
        return f"the same for every K ({', '.join(map(str, grid))})"
    said = f"the same for {sum(same)} of {len(grid)} K"
    return f"{said}; with our layer modulo {entries} for {sum(same_modulo)} of {len(grid)}"


def steered_logits(
    theirs: SadiAuthors,
    model: ManyArmsModel,
    fit: SteeringFit,
    element: Element,
    pairs: Sequence[Pair],
    plural: str,
    most: int | None,
) -> None:
    """Compare logits with our selection under every setting of their grid, or the first ones."""
    grid = sorted(int(k) for k in GRIDS[element].values[0])
    in_order = list[tuple[int, int]]()
    for top_k in grid:
        in_order += sorted(selection(fit, top_k) - set(in_order))
    chosen = [list(each) for each in in_order]
    apart, moved, tried, firsts = 0.0, 0.0, set(), [0, 0]
    for pair in pairs:
        prompt, answer = pair.positive
        unsteered = our_logits(model, prompt, answer)
        asked = theirs.steered(element, chosen, prompt.strip(), answer.strip(), most)
        for top_k, strength, logits in asked:
            with fit.steering(model.model, top_k=top_k, delta=strength - 1):
                ours = our_logits(model, prompt, answer)
            apart = max(apart, gap(ours, logits))
            moved = max(moved, gap(ours, unsteered))
            firsts[0] += int(ours[0].argmax() == logits[0].argmax())
            firsts[1] += 1
            tried.add((float(top_k), float(strength - 1)))
    assert tried <= set(GRIDS[element].settings)
    assert most is not None or len(tried) == len(GRIDS[element].settings)
    line(
        f"SADI: logits with the same {plural} selected, `activations=clean`, {len(tried)} of "
        f"the grid's {len(GRIDS[element].settings)} settings, {len(pairs)} prompt",
        f"within {apart:.1e} (steering moves them by up to {moved:.3g}); the likeliest first token "
        f"the same in {firsts[0]} of {firsts[1]}",
    )


def our_logits(model: ManyArmsModel, prompt: str, answer: str) -> Tensor:
    """Compute logits of the prompt's last token and of the answer's, ``[tokens, vocab]``."""
    context, tokens = model.continuation(prompt, answer)[:2]
    lm: Any = model.model
    with torch.no_grad():
        ids = torch.tensor([context])
        first = lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        rest = lm(
            input_ids=torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(context) + len(tokens), dtype=torch.long),
            **{cache_parameter(lm): first.past_key_values},
        )
    return torch.cat([first.logits[0, -1:], rest.logits[0]])


# ------------------------------------------------------------------ ITI


def iti(checkout: Path, model: ManyArmsModel) -> None:
    """Compare the probes' accuracies, the directions, and σ."""
    pyvene = importlib.import_module("pyvene")
    pairs = pairs_of(ITI_TASK, ITI_PAIRS, model)
    kept = ("parts", "positive", "negative")
    with watching(fit_probes, lambda found: [found[name] for name in kept]) as noted:
        [made] = fits(ITI_TASK, pairs, model)
    [((fitted, ranked), positive, negative)] = noted
    ours = made.fit.tensors
    with importing_from(checkout, ["truthfulqa", "openai", "einops", "baukit"]):
        utils = importlib.import_module("utils")
        interveners = importlib.import_module("interveners")
    layers, heads = ours["accuracy"].shape
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model.model.name_or_path).eval()
    collectors = [interveners.Collector(multiplier=0, head=-1) for _ in range(layers)]
    read = pyvene.IntervenableModel(
        [
            {
                "component": f"model.layers[{layer}].self_attn.o_proj.input",
                "intervention": interveners.wrapper(collector),
            }
            for layer, collector in enumerate(collectors)
        ],
        theirs,
    )

    def activations(text: tuple[str, str]) -> Array:
        # pyvene takes all hooks off after a pass, and transformers puts its own on but once.
        theirs.model._output_capturing_hooks_installed = False
        ids = torch.tensor([model.encode(*text)])
        _, found, _ = utils.get_llama_activations_pyvene(read, collectors, ids, model.device)
        return np.asarray(found).reshape(layers, heads, -1)

    separated = [np.stack([activations(p.positive), activations(p.negative)]) for p in pairs]
    ours_separated = list(torch.stack([positive, negative], 1).double().numpy())
    labels = [[1, 0] for _ in pairs]
    seed = model.options.seed
    of_pairs = f"{len(pairs)} pairs of {ITI_TASK}"
    read_gap = gap(np.stack(ours_separated), np.stack(separated))
    for whose, given in (
        ("our readings of the heads", ours_separated),
        (f"their readings, which are within {read_gap:.1e} of ours", separated),
    ):
        probes, accuracies = utils.train_probes(
            *(seed, fitted, ranked, given, labels, layers, heads)
        )
        accuracy = accuracies.reshape(layers, heads)
        differing = int((np.abs(accuracy - ours["accuracy"].numpy()) > 1e-6).sum())
        line(
            f"ITI: accuracies of the probes of all {layers * heads} heads, {of_pairs}, {whose}",
            "the same" if not differing else f"the same for {layers * heads - differing}, the "
            f"others within {gap(ours['accuracy'], accuracy):.3g}",
        )  # fmt: skip
    top, _ = utils.get_top_heads(
        *(fitted, ranked, separated, labels, layers, heads, seed, ITI_TOP_K)
    )
    mine = set(by_accuracy(ours["accuracy"])[:ITI_TOP_K].tolist())
    found = {int(layer * heads + head) for layer, head in top}
    least = np.sort(accuracy.ravel())[-ITI_TOP_K]
    ties = all(np.isclose(accuracy.ravel()[i], least) for i in mine ^ found)
    line(
        f"ITI: the {ITI_TOP_K} heads, their readings",
        "the same" if mine == found else f"{len(mine & found)} the same, the others "
        f"{'all' if ties else 'not all'} as accurate as the {ITI_TOP_K}th",
    )  # fmt: skip
    every = np.arange(len(pairs))
    raw = utils.get_com_directions(layers, heads, every[fitted], every[ranked], separated, labels)
    interventions = utils.get_interventions_dict(
        *(list(np.ndindex(layers, heads)), probes, np.concatenate(separated), heads),
        *(True, False, raw),
    )
    shift = [each for layer in range(layers)
             for each in interventions[f"model.layers.{layer}.self_attn.head_out"]]  # fmt: skip
    theta, sigma = (np.stack([each[i] for each in shift]) for i in (1, 2))
    length = np.linalg.norm(raw, axis=-1, keepdims=True)
    line(
        "ITI: of all heads the mean difference along θ (`mass_mean`), and σ; their readings",
        f"within {gap(ours['mass_mean'].flatten(0, 1) * length, theta * length):.1e} (of up to "
        f"{float(np.abs(raw).max()):.2g}) and "
        f"{gap(ours['mass_mean_std'].flatten(), sigma):.1e} (of up to {float(sigma.max()):.2g})",
    )


def _named(
    parser: argparse.ArgumentParser, option: str, given: str, known: Mapping[Name, Any]
) -> list[Name]:
    found = [name for name in known if name in given.split(",")]
    if len(found) != len(given.split(",")):
        parser.error(f"--{option} {given}: known are {', '.join(known)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sadi", type=Path)
    parser.add_argument("--tasks", default=",".join(SADI_PAIRS), help="of SADI's comparison")
    parser.add_argument("--elements", default=",".join(ELEMENTS), help="of SADI's comparison")
    parser.add_argument("--settings", type=int, help="of each grid, the first ones; else all")
    parser.add_argument("--honest_llama", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    names = _named(parser, "tasks", given.tasks, SADI_PAIRS)
    elements = {
        name: ELEMENTS[name] for name in _named(parser, "elements", given.elements, ELEMENTS)
    }
    from offline import run_quietly_in
    from smollm2 import default_folder, smollm2

    transformers.logging.set_verbosity_error()
    folders = SimpleNamespace(
        sadi=given.sadi and given.sadi.resolve(),
        honest_llama=given.honest_llama and given.honest_llama.resolve(),
        model=(given.model or smollm2(default_folder())).resolve(),
    )
    with run_quietly_in(given.data) as folder:

        def model_of(arms: Sequence[str], **arguments: Any) -> ManyArmsModel:
            return ManyArmsModel(
                *(str(folders.model), list(arms)),
                **{"device": "cpu", "dtype": "float32", "batch_size": "auto", **arguments},
                cache_dir=str(folder / "fits"),
            )

        start = time.perf_counter()
        if folders.honest_llama:
            print(f"honest_llama {commit_of(folders.honest_llama)}")
            iti(folders.honest_llama, model_of(["iti"]))
        if folders.sadi:
            print(f"SADI {commit_of(folders.sadi)}")
            arms = [f"sadi-{element}" for element in elements]
            model = model_of(arms, protocol="reference")
            sadi(folders.sadi, names, elements, given.settings, model, folder)
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
