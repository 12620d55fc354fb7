"""Steering under a condition: what it is fitted to, what passes, and what is left alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import sadi_lmeval as sadi
from conftest import Measured
from helpers.equations.caa import EQUATIONS as CAA
from helpers.equations.iti import EQUATIONS as ITI
from helpers.loops import (
    Gated,
    assert_generated_as_the_loop_says,
    assert_scored_as_the_loop_says,
    plain_activations,
    plain_logits,
    tried,
)
from helpers.messages import one_line
from helpers.models import tiny_llama
from helpers.results import masks_of, numbers
from sadi_lmeval import cli
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.conditional import Condition, ConditionalEdits, similarity
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.records.steering import SteeringRecord
from sadi_lmeval.steering.condition import best_threshold, first_component, prompt_digest
from sadi_lmeval.storage.fit_file import Fit, load_fit, save_fit
from sadi_lmeval.types import Token

LAYERS, WIDTH, LAYER = 3, 32, 1


# ------------------------------------------------------------------ written out


def cosine(one: list[float], other: list[float]) -> float:
    product = math.fsum(x * y for x, y in zip(one, other, strict=True))
    lengths = [math.sqrt(math.fsum(x * x for x in values)) for values in (one, other)]
    return product / math.prod(lengths) if math.prod(lengths) else 0.0


def cast_similarity(h: Tensor, c: Tensor) -> float:
    """cos(h, tanh(proj_c h)), number by number."""
    state, direction = h.double().tolist(), c.double().tolist()
    along = math.fsum(x * y for x, y in zip(state, direction, strict=True))
    share = along / math.fsum(y * y for y in direction)
    return cosine(state, [math.tanh(share * y) for y in direction])


def gate_of(fit: Fit, place: str, layer: int, threshold: float, side: str) -> Callable[..., float]:
    """Takes the unsteered activations of a prompt; 1 where the prompt is steered."""
    c = fit.tensors[f"{place}.direction"][layer]

    def gate(activations: Tensor) -> float:
        s = cast_similarity(activations[layer], c)
        return float(s > threshold if side == "above" else s < threshold)

    return gate


# ------------------------------------------------------------------ the rule


@pytest.mark.quick
def test_the_similarity_is_the_equation_and_one_of_the_direction_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, WIDTH, generator=generator) * torch.logspace(-3, 3, 20)[:, None]
    c = torch.randn(WIDTH, generator=generator)
    found = similarity(rows, c)
    assert found.tolist() == pytest.approx([cast_similarity(h, c) for h in rows], abs=1e-6)
    assert torch.equal(similarity(rows, -c), found)
    torch.testing.assert_close(similarity(rows, 7 * c), found)
    assert all(torch.equal(similarity(rows[i : i + 1], c), found[i : i + 1]) for i in range(20))
    assert similarity(rows[:2], torch.zeros(WIDTH)).tolist() == [0, 0]
    assert similarity(torch.zeros(1, WIDTH), c).tolist() == [0]
    across = torch.zeros(1, WIDTH)
    across[0, 0] = 1.0
    assert similarity(across, torch.eye(WIDTH)[1]).tolist() == [0]
    assert similarity(1e20 * c[None], c).isfinite().all()  # the tanh is saturated


@pytest.mark.quick
@pytest.mark.parametrize("side", ["above", "below"])
def test_exactly_at_the_threshold_nothing_is_steered(side: Any) -> None:
    c = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    h = torch.randn(1, LAYERS, WIDTH, generator=torch.Generator().manual_seed(2))
    at = float(similarity(h[:, LAYER], c))
    near = torch.tensor(at)
    just = [float(torch.nextafter(near, torch.tensor(float(way)))) for way in (-1, 2)]
    at_each = [Condition(LAYER, c, threshold, side) for threshold in (just[0], at, just[1])]
    met = [bool(condition.passes(h[:, LAYER])) for condition in at_each]
    assert met == ([True, False, False] if side == "above" else [False, False, True])


@pytest.mark.quick
def test_a_prompt_that_is_not_finite_is_not_steered() -> None:
    h = torch.full((2, LAYERS, WIDTH), torch.nan)
    h[1] = torch.inf
    for side in ("above", "below"):
        assert not Condition(LAYER, torch.ones(WIDTH), 0.0, side).passes(h[:, LAYER]).any()


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(tiny_llama(40), "hidden", "residual")


@pytest.mark.quick
def test_gates_are_the_product_with_the_edits_own(site: Site) -> None:
    h = torch.randn(40, LAYERS, WIDTH, generator=torch.Generator().manual_seed(3))
    c = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    condition = Condition(LAYER, c, float(similarity(h[:, LAYER], c).median()), "above")
    met = condition.passes(h[:, LAYER])
    assert 5 < int(met.sum()) < 35
    shift = {0: torch.ones(WIDTH)}

    def own(unsteered: Tensor) -> Tensor:
        part = torch.sigmoid(unsteered[:, 0, :1])
        return torch.cat([part, torch.full_like(part, torch.nan)], dim=1)

    plain = ScaledEdits(site, [1.0, 2.0], [[0], [0]], "onwards", shift=shift)
    gated = ScaledEdits(
        site, [1.0, 2.0], [[0], [0]], "onwards", shift=shift, gate=own, gate_digests=["a", "b"]
    )
    table = ConditionalEdits(plain, condition).gates(h)
    assert torch.equal(table, met.float()[:, None].expand(-1, 2))
    table = ConditionalEdits(gated, condition).gates(h)
    assert torch.equal(table[met], own(h)[met]) or table[met][:, 1].isnan().all()
    assert torch.equal(table[met][:, 0], own(h)[met][:, 0])
    assert torch.equal(table[~met], torch.zeros(int((~met).sum()), 2))


@pytest.mark.quick
def test_every_part_of_a_condition_shows_in_the_digest(site: Site) -> None:
    edits = ScaledEdits(site, [1.0, 2.0], [[0], [0]], "onwards", shift={0: torch.ones(WIDTH)})
    other = ScaledEdits(site, [3.0, 2.0], [[0], [0]], "onwards", shift={0: torch.ones(WIDTH)})
    c = torch.ones(WIDTH)
    conditions = [
        Condition(1, c, 0.5, "above"),
        Condition(2, c, 0.5, "above"),
        Condition(1, 2 * c, 0.5, "above"),
        Condition(1, c, 0.25, "above"),
        Condition(1, c, 0.5, "below"),
        Condition(1, c, 0.5, "above", "mean"),
    ]
    found = {ConditionalEdits(edits, each).digest(0) for each in conditions}
    assert len(found | {edits.digest(0)}) == 7
    first = ConditionalEdits(edits, conditions[0])
    assert first.digest(0) != first.digest(1) == ConditionalEdits(other, conditions[0]).digest(1)
    assert first.digest(0) != ConditionalEdits(other, conditions[0]).digest(0)


# ------------------------------------------------------------------ the fit


@pytest.mark.quick
def test_the_direction_is_the_first_component_of_pair_centred_states() -> None:
    generator = torch.Generator().manual_seed(5)
    matching, others = torch.randn(2, 9, 6, generator=generator)
    found = first_component(matching, others)
    total = torch.zeros(6, 6).double()
    for one, other in zip(matching.double(), others.double(), strict=True):
        middle = (one + other) / 2
        for state in (one, other):
            total += torch.outer(state - middle, state - middle)
    expected = torch.linalg.eigh(total).eigenvectors[:, -1].float()
    assert abs(float(found @ expected)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(first_component(matching, matching), torch.zeros(6))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("matching", "others", "expected"),
    [
        ([0.6, 0.8, 0.9], [0.1, 0.2, 0.4], (0.5, True, 1.0)),
        ([0.1, 0.2, 0.4], [0.6, 0.8, 0.9], (0.5, False, 1.0)),
        # 0.05 and 0.5 both leave one on the wrong side: the wider gap counts.
        ([0.0, 0.8, 0.9], [0.1, 0.2, 0.3], (0.55, True, 5 / 6)),
        ([0.4, 0.4], [0.4, 0.4], (0.4, True, 0.5)),
    ],
)
def test_the_threshold_tells_most_prompts_apart(
    matching: list[float], others: list[float], expected: tuple[float, bool, float]
) -> None:
    threshold, above, accuracy = best_threshold(np.array(matching), np.array(others))
    assert above == expected[1]
    assert (threshold, accuracy) == pytest.approx((expected[0], expected[2]))


# ------------------------------------------------------------------ the command

MATCHING = [f"the {noun} sees a {other}" for noun in ("cat", "dog", "bird", "fish")
            for other in ("tree", "river")]  # fmt: skip
OTHERS = [f"one two {number} and {other}" for number in ("three", "four", "five", "six")
          for other in ("seven", "eight")]  # fmt: skip
Fitted = tuple[Path, Fit]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Fitted:
    """A condition of the tiny model, by the command."""
    folder = tmp_path_factory.mktemp("condition")
    (folder / "a.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in MATCHING))
    (folder / "b.jsonl").write_text("".join(json.dumps(p) + "\n" for p in [*OTHERS, "the end"]))
    path = folder / "c.safetensors"
    assert cli.main(condition(model_folder, folder / "a.jsonl", folder / "b.jsonl", path)) == 0
    return path, load_fit(path)


@pytest.fixture(scope="module")
def fitted_means(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Fitted:
    """The same of means over the prompts."""
    folder = tmp_path_factory.mktemp("means")
    for name, prompts in (("a", MATCHING), ("b", OTHERS)):
        (folder / name).write_text("".join(json.dumps(p) + "\n" for p in prompts))
    path = folder / "c.safetensors"
    command = condition(model_folder, folder / "a", folder / "b", path)
    assert cli.main([*command, "--when_token", "mean"]) == 0
    return path, load_fit(path)


def condition(model: Path, matching: Path, others: Path, output: Path) -> list[str]:
    given = ["condition", "--model_args", f"pretrained={model}", "--device", "cpu"]
    return [*given, "--matching", f"{matching}", "--others", f"{others}", "--output", f"{output}"]


@pytest.mark.parametrize("token", ["last", "mean"])
def test_a_file_holds_the_condition_of_every_layer_at_every_site(
    fitted: Fitted,
    fitted_means: Fitted,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    token: Any,
) -> None:
    _, fit = fitted if token == "last" else fitted_means
    kind = "condition" if token == "last" else "mean_condition"
    assert {name.split(".")[0] for name in fit.tensors} == {"head", "neuron", "mlp", "residual"}
    assert (fit.card["kind"], fit.card["n_pairs"]) == (kind, len(MATCHING))
    assert set(fit.card["prompts"]) == {prompt_digest(p) for p in [*MATCHING, *OTHERS]}
    for where in ("head", "residual"):
        sides = [
            torch.stack([plain_activations(harness_model, tokenizer.encode(p), where, token)
                         for p in side]) for side in (MATCHING, OTHERS)
        ]  # fmt: skip
        for layer in range(LAYERS):
            c = fit.tensors[f"{where}.direction"][layer]
            expected = first_component(sides[0][:, layer], sides[1][:, layer])
            assert abs(float(c @ expected)) == pytest.approx(1, abs=1e-4)
            scores = [[cast_similarity(h, c) for h in side[:, layer]] for side in sides]
            threshold = float(fit.tensors[f"{where}.threshold"][layer])
            above = bool(fit.tensors[f"{where}.above"][layer])
            right = [(s > threshold) == (above == side) for side, of in zip((True, False), scores,
                     strict=True) for s in of]  # fmt: skip
            assert np.mean(right) == pytest.approx(float(fit.tensors[f"{where}.accuracy"][layer]))
            assert np.mean(right) >= 0.5


@pytest.mark.parametrize(
    ("matching", "others", "words"),
    [
        (["a"], ["b"], "1 matching and 1 other prompts: as many of both are needed, at least 2"),
        (["a", "b"], ["c", "b "], "a prompt is among the matching and among the others"),
        (["a", 3], ["c", "b"], 'line 2 must be a JSON text, or an object with a "prompt"'),
    ],
)
def test_prompts_of_which_no_condition_can_be_made_are_refused(
    tmp_path: Path,
    model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    matching: list[Any],
    others: list[Any],
    words: str,
) -> None:
    for name, side in (("a", matching), ("b", others)):
        (tmp_path / name).write_text("".join(json.dumps(p) + "\n" for p in side))
    output = tmp_path / "c.safetensors"
    assert cli.main(condition(model_folder, tmp_path / "a", tmp_path / "b", output)) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


# ------------------------------------------------------------------ runs


def middle(
    fit: Fit,
    place: str,
    prompts: list[list[int]],
    model: LlamaForCausalLM,
    token: Token = "last",
) -> float:
    """A threshold that about half of some prompts pass, and none is near."""
    c = fit.tensors[f"{place}.direction"][LAYER]
    where: Any = place
    states = [plain_activations(model, p, where, token)[LAYER] for p in prompts]
    found = sorted(cast_similarity(h, c) for h in states)
    gaps = [(b - a, (a + b) / 2) for a, b in itertools.pairwise(found)]
    quarter = len(gaps) // 4
    return max(gaps[quarter:-quarter])[1]


CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "caa": (CAA, "residual", {}),
    "caa, prompt": (CAA, "residual", {"scope": "prompt"}),
    "iti": (ITI, "head", {}),
    "caa, mean": (CAA, "residual", {}),
}


@pytest.mark.parametrize(
    ("case", "side"),
    [(case, side) for case in CASES for side in ("above", "below")][:-1],
)
def test_prompts_that_pass_are_steered_and_others_are_the_unsteered_model_bit_for_bit(
    evaluate: Any,
    measured: Measured,
    fitted: Fitted,
    fitted_means: Fitted,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    case: str,
    side: str,
) -> None:
    equations, place, changes = CASES[case]
    name, _, rest = case.partition(", ")
    token: Token = "mean" if rest == "mean" else "last"
    fitted = fitted_means if token == "mean" else fitted
    given = {**equations.given, **changes}
    plain = evaluate("tiny_choice", model=f"hf-{name}", method="none", limit=20)
    unsteered = tried(plain, "tiny_choice")
    prompts = [tokenizer.encode(one.context) for one in unsteered[::3]]
    threshold = middle(fitted[1], place, prompts, harness_model, token)
    when = {"when": str(fitted[0]), "when_layer": LAYER, "when_threshold": threshold}
    results = evaluate("tiny_choice", model=f"hf-{name}", limit=20, when_side=side, **when, **given)
    found = tried(results, "tiny_choice")
    gate = gate_of(fitted[1], place, LAYER, threshold, side)
    where, scope = equations.where(given), given.get("scope", "onwards")
    change: Any = equations.change(measured(name, "tiny_choice", **given), given)
    gated = Gated(change, gate, token)
    assert_scored_as_the_loop_says(found, harness_model, tokenizer, where, lambda _: gated, scope)
    met = [gate(plain_activations(harness_model, p, where, token)) for p in prompts]
    assert 4 < sum(met) < 16
    for one, other in zip(found, unsteered, strict=True):
        assert (one.score == other.score) == (not met[one.document])
    record = results["config"]["sadi"]["tiny_choice"]["when"]
    whole = results["config"]["sadi"]["tiny_choice"]
    assert SteeringRecord.from_json(whole).to_json() == whole
    assert record == {
        "file": fitted[0].name,
        "sha256": fitted[1].digest,
        "layer": LAYER,
        "threshold": threshold,
        "side": side,
        "token": token,
    }


@pytest.mark.parametrize("token", ["last", "mean"])
def test_texts_are_steered_after_prompts_that_pass_alone(
    evaluate: Any,
    measured: Measured,
    fitted: Fitted,
    fitted_means: Fitted,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    token: Any,
) -> None:
    fitted = fitted if token == "last" else fitted_means
    given = {**CAA.given, "layer": 0, "multiplier": 1.5}
    plain = evaluate("tiny_text", model="hf-caa", method="none", limit=16)
    samples = sorted(plain["samples"]["tiny_text"], key=lambda sample: sample["doc_id"])
    prompts = [tokenizer.encode(sample["arguments"][0][0]) for sample in samples]
    threshold = middle(fitted[1], "residual", prompts, harness_model, token)
    when = {"when": str(fitted[0]), "when_layer": LAYER, "when_threshold": threshold}
    for size in (1, 5) if token == "last" else (5,):
        settings = {"batch_size": size}
        results = evaluate(
            *("tiny_text",), model="hf-caa", limit=16, settings=settings, when_side="above",
            **when, **given,
        )  # fmt: skip
        gate = gate_of(fitted[1], "residual", LAYER, threshold, "above")
        own: Any = CAA.change(measured("caa", "tiny_text", **given), given)
        change = Gated(own, gate, token)
        assert_generated_as_the_loop_says(
            results, "tiny_text", harness_model, tokenizer, "residual", change
        )
    texts = [
        [sample["resps"][0][0] for sample in sorted(r["samples"]["tiny_text"],
                                                    key=lambda sample: sample["doc_id"])]
        for r in (plain, results)
    ]  # fmt: skip
    met = [gate(plain_activations(harness_model, p, "residual", token)) for p in prompts]
    assert any(a != b for a, b, passes in zip(*texts, met, strict=True) if passes)
    assert all(a == b for a, b, passes in zip(*texts, met, strict=True) if not passes)


def test_without_a_layer_the_file_says_where_and_how(evaluate: Any, fitted: Fitted) -> None:
    path, fit = fitted
    results = evaluate("tiny_choice", model="hf-iti", limit=3, when=str(path), **ITI.given)
    record = results["config"]["sadi"]["tiny_choice"]["when"]
    layer = int(fit.tensors["head.accuracy"].argmax())
    assert record["layer"] == layer
    assert record["threshold"] == float(fit.tensors["head.threshold"][layer])
    assert record["side"] == ("above" if fit.tensors["head.above"][layer] else "below")


def test_a_strength_of_nothing_needs_no_condition(evaluate: Any, fitted: Fitted) -> None:
    plain = evaluate("tiny_choice", model="hf-caa", method="none")
    nothing = {**CAA.given, "multiplier": 0, "when": str(fitted[0])}
    results = evaluate("tiny_choice", model="hf-caa", **nothing)
    assert numbers(results, "tiny_choice") == numbers(plain, "tiny_choice")
    assert "when" not in results["config"]["sadi"]["tiny_choice"]


def test_settings_are_chosen_under_the_condition_and_kept_apart_from_other_ones(
    evaluate: Any, fitted: Fitted
) -> None:
    """No prompt passes: every setting is the unsteered model, to the last bit."""
    given = {"n_pairs": 12, "n_tune": 8, "grid": "0/1x1/2"}
    free = evaluate("tiny_choice", model="hf-caa", **given)
    shut = {"when": str(fitted[0]), "when_threshold": 2.0, "when_side": "above"}
    bound = evaluate("tiny_choice", model="hf-caa", **given, **shut)
    masks = [masks_of(results, "tiny_choice")[0] for results in (free, bound)]
    assert masks[0]["cache_key"] == masks[1]["cache_key"]
    tables = [mask["tuning"]["table"] for mask in masks]
    assert any(row["difference"] for row in tables[0]) or any(
        row["margin"] != tables[0][0]["margin"] for row in tables[0]
    )
    for row in tables[1]:
        assert {k: row[k] for k in ("score", "margin")} == {
            k: tables[1][0][k] for k in ("score", "margin")
        }
        assert row["difference"] == row["likelihood_difference"] == 0
    plain = evaluate("tiny_choice", model="hf-caa", method="none")
    assert numbers(bound, "tiny_choice") == numbers(plain, "tiny_choice")


def test_the_arms_of_a_comparison_are_each_under_their_own_site_s_condition(
    evaluate: Any,
    fitted: Fitted,
    model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Side by side they answer what each answers alone; the file is known by its content."""
    init = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", init)
    mine, folder = tmp_path / "mine.safetensors", tmp_path / "out"
    mine.write_bytes(fitted[0].read_bytes())
    shared = {"n_pairs": 12, "n_tune": 8, "rule": "best", "seed": 7, "when": str(mine)}
    model = {"pretrained": model_folder, "cache_dir": tmp_path / "cache", **shared}
    command = [
        *("compare", "--methods", "none,caa,sadi-head", "--settings", "6", "--device", "cpu"),
        *("--tasks", "tiny_choice", "--include_path", str(tasks_folder), "--limit", "12"),
        *("--output_path", str(folder), "--batch_size", "4", "--log_samples", "--model_args"),
        ",".join(f"{name}={value}" for name, value in model.items()),
    ]
    assert cli.main(command) == 0
    for name, place, axes in (
        ("caa", "residual", ("layer", "multiplier")),
        ("sadi-head", "head", ("top_k", "delta")),
    ):
        record = json.loads((folder / f"records/tiny_choice.{name}.json").read_text())["steering"]
        layer = int(fitted[1].tensors[f"{place}.accuracy"].argmax())
        assert record["when"]["layer"] == layer
        setting = {axis: record[axis] for axis in axes}
        assert setting[axes[1]]  # it steers
        alone = evaluate(
            "tiny_choice", model=f"hf-{name[:4].strip('-')}", limit=12, **shared, **setting
        )
        [file] = (folder / "harness" / name).rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        beside = {s["doc_id"]: [float(r[0][0]) for r in s["resps"]] for s in samples}
        for one, score in zip(
            tried(alone, "tiny_choice"), itertools.chain(*beside.values()), strict=True
        ):
            assert one.score[0] == pytest.approx(score, abs=1e-4)
    assert cli.main(command) == 0  # all records are there
    values = {**fitted[1].tensors, "mlp.threshold": fitted[1].tensors["mlp.threshold"] + 0.1}
    save_fit(Fit(values, fitted[1].card), mine)
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "holds another run's records (it differs in when)" in capsys.readouterr().err


def test_a_response_of_another_condition_is_not_returned(
    evaluate: Any, fitted: Fitted, tmp_path: Path
) -> None:
    """By ``--use_cache``."""
    found = []
    for threshold in (-2.0, 2.0, -2.0):
        when = {"when": str(fitted[0]), "when_threshold": threshold, "when_side": "above"}
        settings = {"use_cache": str(tmp_path / "responses")}
        results = evaluate("tiny_choice", model="hf-caa", settings=settings, **when, **CAA.given)
        found.append(numbers(results, "tiny_choice"))
    assert found[0] == found[2] != found[1]


# ------------------------------------------------------------------ what does not fit


def test_a_file_of_last_tokens_is_never_read_as_one_of_means_nor_the_other_way_round(
    evaluate: Any, fitted: Fitted, fitted_means: Fitted
) -> None:
    for (path, _), other in ((fitted, "mean"), (fitted_means, "last")):
        given = {"when": str(path), "when_token": other}
        with pytest.raises(UserError, match=f"when_token={other}: when=.* was fitted") as caught:
            evaluate("tiny_choice", model="hf-caa", limit=2, **given, **CAA.given)
        assert f"`sadi-lmeval condition --when_token {other}`" in one_line(caught)
    fit = fitted_means[1]
    assert {name: t.shape for name, t in fit.tensors.items()} == {
        name: t.shape for name, t in fitted[1].tensors.items()
    }  # so that the kind alone tells them apart
    named = {"when": str(fitted_means[0]), "when_token": "mean"}
    results = evaluate("tiny_choice", model="hf-caa", limit=2, **named, **CAA.given)
    record = results["config"]["sadi"]["tiny_choice"]["when"]
    assert (record["token"], record["sha256"]) == ("mean", fit.digest)


def changed(fit: Fit, path: Path, card: dict[str, Any] | None = None, **tensors: Any) -> str:
    kept = {name: t for name, t in {**fit.tensors, **tensors}.items() if t is not None}
    save_fit(Fit(kept, {**fit.card, **(card or {})}), path)
    return str(path)


def test_what_does_not_fit_is_refused_in_one_line(
    evaluate: Any, fitted: Fitted, tmp_path: Path
) -> None:
    path, fit = fitted
    [mask] = masks_of(evaluate("tiny_choice", model="hf-caa", **CAA.given), "tiny_choice")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-100])
    gone: dict[str, Any] = {"residual.direction": None}
    narrow: dict[str, Any] = {"residual.direction": torch.ones(LAYERS, WIDTH - 1)}
    for given, words in (
        ({"when": mask["file"]}, "is a fit of kind mean_difference, not a condition"),
        ({"when": str(tmp_path / "cut")}, "damaged or not a fit"),
        ({"when": str(path), "when_layer": 3}, "when_layer=3: this model has layers 0 to 2"),
        ({"when": changed(fit, tmp_path / "g", **gone)}, "of shape None, but this model has"),
        ({"when": changed(fit, tmp_path / "n", **narrow)}, r"\[3, 31\], but this model has \[3, 3"),
        (
            {"when": changed(fit, tmp_path / "m", {"model_type": "gpt2"})},
            "for model_type gpt2, but",
        ),
    ):
        with pytest.raises(UserError, match=words) as caught:
            evaluate("tiny_choice", model="hf-caa", limit=2, **given, **CAA.given)
        one_line(caught)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["when_layer", "when_threshold", "when_side", "when_token"])
def test_an_argument_of_a_condition_without_one_is_refused(name: str) -> None:
    value = {"when_side": "above", "when_token": "mean"}.get(name, 1)
    with pytest.raises(UserError, match=f"{name}=.*there is none; pass when=FILE"):
        read_arm("caa", {name: value})
    with pytest.raises(UserError, match="when=nowhere: no such file"):
        read_arm("caa", {"when": "nowhere", name: value})


def test_a_fit_outside_of_the_harness_takes_no_condition(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, fitted: Fitted
) -> None:
    pair = {"prompt": "is a stone soft", "positive": "no never", "negative": "yes it is"}
    with pytest.raises(UserError, match="keeps a run of the harness to some prompts") as caught:
        sadi.fit(harness_model, tokenizer, [pair] * 2, "caa", when=str(fitted[0]))
    one_line(caught)


def test_a_prompt_that_is_scored_may_not_have_made_the_condition(
    evaluate: Any, fitted: Fitted, tmp_path: Path
) -> None:
    plain = evaluate("tiny_choice", model="hf-caa", method="none", limit=3)
    prompt = tried(plain, "tiny_choice")[-1].context
    card = {"prompts": [prompt_digest(prompt + "\n")]}
    own = changed(fitted[1], tmp_path / "own.safetensors", card)
    with pytest.raises(UserError, match="was fitted to a prompt that is scored") as caught:
        evaluate("tiny_choice", model="hf-caa", limit=3, when=own, **CAA.given)
    assert prompt[-20:] in one_line(caught)
    evaluate("tiny_choice", model="hf-caa", limit=2, when=own, **CAA.given)


def test_a_condition_of_another_model_is_told(
    evaluate: Any, fitted: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = {"weights_digest": "0" * 32, "model": "another"}
    other = changed(fitted[1], tmp_path / "other.safetensors", card)
    results = evaluate("tiny_choice", model="hf-caa", limit=2, when=other, **CAA.given)
    assert results["config"]["sadi"]["tiny_choice"]["when"]["of_model"] == "another"
    assert "was fitted on another model of the same shape (another)" in caplog.text


def test_the_loop_here_tells_prompts_apart(harness_model: LlamaForCausalLM) -> None:
    """An activation is that of a plain pass: the last block's output gives the logits."""
    tokens = [5, 9, 12]
    last = plain_activations(harness_model, tokens, "residual")[-1]
    head = harness_model.lm_head(harness_model.model.norm(last))
    torch.testing.assert_close(head, plain_logits(harness_model, tokens)[-1])
