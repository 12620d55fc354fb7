"""ITI's gates: what of the shift is left where the probes take the prompt, or a token, for true."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.generation import PROMPTS, generate
from helpers.loops import changing, plain_activations
from helpers.messages import one_line
from helpers.models import tiny_llama
from helpers.results import masks_of, numbers, scores
from sadi_lmeval.api.steering_fit import SteeringFit
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm, read_arms
from sadi_lmeval.methods.iti import ITI, best_heads, fit_probes
from sadi_lmeval.methods.registry import arm_names
from sadi_lmeval.pairs.benchmark import read_benchmark
from sadi_lmeval.settings import Setting
from sadi_lmeval.storage.fit_file import Fit, load_fit, save_fit

LAYERS, HEADS, HEAD_DIM = 3, 4, 8
K, ALPHA = 5, 40.0

quick = pytest.mark.quick


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(60)


@pytest.fixture(scope="module")
def site(model: LlamaForCausalLM) -> Site:
    return find_site(model, "head")


@functools.cache
def fitted() -> dict[str, Tensor]:
    """Probes of made-up answers; the five best are of all three layers."""
    generator = torch.Generator().manual_seed(0)
    true, false = torch.randn(2, 12, LAYERS, HEADS, HEAD_DIM, generator=generator)
    found = fit_probes(true + 0.3, false, 0, "test")._asdict()
    found["accuracy"] = torch.tensor(
        [[0.5, 0.9, 0.6, 0.7], [0.8, 0.4, 0.5, 0.5], [0.5, 0.7, 0.3, 0.9]]
    )
    found["weight"] = 4 * found["weight"]
    return found


def made() -> dict[str, Tensor]:
    """The same, for a test to change."""
    return {name: values.clone() for name, values in fitted().items()}


BEST = [(0, 1), (2, 3), (1, 0), (0, 3), (2, 1)]


def edits_of(
    site: Site,
    gate: str,
    *settings: Setting,
    tensors: dict[str, Tensor] | None = None,
    **given: Any,
) -> Edits:
    return ITI(gate=gate, **given).edits(site, tensors or made(), settings, 0)  # type: ignore[arg-type]


def truth(unsteered: Tensor, tensors: dict[str, Tensor], heads: list[tuple[int, int]]) -> float:
    """The mean probability of heads, in plain Python; of ``[layers, width]``."""
    total = 0.0
    for layer, head in heads:
        x = unsteered[layer, head * HEAD_DIM : (head + 1) * HEAD_DIM].tolist()
        logit = float(tensors["bias"][layer, head])
        logit += sum(w * v for w, v in zip(tensors["weight"][layer, head].tolist(), x, strict=True))
        total += 1 / (1 + math.exp(-logit))
    return total / len(heads)


def states(count: int, seed: int = 1) -> Tensor:
    """Made-up activations of last prompt tokens, ``[count, layers, width]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, LAYERS, HEADS * HEAD_DIM, generator=generator)


# ------------------------------------------------------------------ the probes


@quick
def test_the_best_heads_here_are_of_every_layer() -> None:
    chosen = best_heads(made()["accuracy"], K)
    assert sorted(map(tuple, chosen.nonzero().tolist())) == sorted(BEST)
    assert {layer for layer, _ in BEST} == {0, 1, 2}


@quick
def test_a_probe_s_weight_and_bias_give_its_probabilities() -> None:
    """And its weight is along its direction."""
    generator = torch.Generator().manual_seed(0)
    true, false = torch.randn(2, 40, 1, 1, HEAD_DIM, generator=generator)
    found = fit_probes(true + 1, false, 0, "test")
    weight, bias = found.weight[0, 0], found.bias[0, 0]
    torch.testing.assert_close(weight / weight.norm(), found.probe[0, 0])
    for side, label in ((true + 1, 1.0), (false, 0.0)):
        p = torch.sigmoid(side[:, 0, 0] @ weight + bias)
        assert float((p - label).abs().mean()) < 0.3
        assert float(((p > 0.5) == bool(label)).float().mean()) > 0.8


# ------------------------------------------------------------------ gate=prompt


@quick
def test_a_prompt_is_steered_by_how_untrue_it_is_and_above_the_threshold_not_at_all(
    site: Site,
) -> None:
    thresholds = (0.3, 0.5, 0.7, 1.0)
    settings = [Setting(k, ALPHA, t) for k in (1, K) for t in thresholds]
    unsteered, tensors = states(30), made()
    table = edits_of(site, "prompt", *settings).gates(unsteered)
    assert table is not None
    assert table.dtype == torch.float32
    for row, prompt in zip(table.tolist(), unsteered, strict=True):
        for found, (k, _, threshold) in zip(row, settings, strict=True):
            q = truth(prompt, tensors, BEST[: int(k)])
            assert found == pytest.approx(1 - q if q < threshold else 0.0, abs=1e-6)
    shut = (table[:, : len(thresholds) - 1] == 0).float().mean()
    assert 0.1 < float(shut) < 0.9
    assert (table[:, [3, 7]] > 0).all()


@quick
def test_a_prompt_exactly_at_the_threshold_is_not_steered(site: Site) -> None:
    """Probes that know nothing say 1/2, and so does their mean over heads of three layers."""
    tensors = made()
    tensors["weight"], tensors["bias"] = torch.zeros_like(tensors["weight"]), torch.zeros(3, 4)
    above = math.nextafter(0.5, 1)
    settings = [Setting(k, ALPHA, t) for k in (1, 3, K, 12) for t in (0.5, above)]
    table = edits_of(site, "prompt", *settings, tensors=tensors).gates(states(3))
    assert table is not None
    assert table.tolist() == [[0.0, 0.5] * 4] * 3


@quick
def test_a_prompt_s_gate_depends_on_no_other_prompt_or_setting(site: Site) -> None:
    settings = [Setting(k, ALPHA, t) for k in (2, K, 9) for t in (0.4, 0.6)]
    unsteered = states(9)
    unsteered[4, 1, :9] = math.nan
    unsteered[6] = math.inf
    whole = edits_of(site, "prompt", *settings).gates(unsteered)
    assert whole is not None
    for row in range(len(unsteered)):
        for column, setting in enumerate(settings):
            alone = edits_of(site, "prompt", setting).gates(unsteered[[row]])
            assert alone is not None
            assert float(alone) == float(whole[row, column])
    assert not whole[4, 2:].any()  # no number is below no threshold; 1, 0 is among the best 5
    assert whole.isfinite().all()


@quick
def test_the_unsteered_setting_is_shut_beside_others_and_alone(site: Site) -> None:
    """Of one fold nothing may be steered while another fold is."""
    nothing, something = Setting(0, 0.0, 0.0), Setting(K, ALPHA, 1.0)
    for settings in ([nothing], [nothing, something], [something, nothing]):
        edits = edits_of(site, "prompt", *settings)
        table = edits.gates(states(3))
        assert table is not None
        assert not table[:, settings.index(nothing)].any()
        assert edits.first_layers[settings.index(nothing)] == LAYERS


@quick
def test_whatever_a_gate_depends_on_is_in_its_digest(site: Site) -> None:
    setting = Setting(K, ALPHA, 0.5)
    one = edits_of(site, "prompt", setting).digest(0)
    assert edits_of(site, "prompt", Setting(2, ALPHA, 0.5), setting).digest(1) == one
    assert edits_of(site, "prompt", Setting(K, ALPHA, 0.6)).digest(0) != one
    assert edits_of(site, "none", Setting(K, ALPHA)).digest(0) != one
    for name, place in (("weight", (2, 1, 7)), ("bias", (0, 3))):
        other = made()
        other[name][place] += 1e-4
        assert edits_of(site, "prompt", setting, tensors=other).digest(0) != one
    unused = made()
    unused["weight"][1, 2] += 1
    assert edits_of(site, "prompt", setting, tensors=unused).digest(0) == one


def test_generation_has_the_scalar_of_its_prompt_beams_too(
    model: LlamaForCausalLM, site: Site
) -> None:
    """Against a search that computes the whole text again for each token."""
    tensors, threshold = made(), 0.25
    edits = edits_of(site, "prompt", Setting(K, ALPHA, threshold))
    shift = edits_of(site, "none", Setting(K, ALPHA))
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
    together, _ = generate(model, edits, 0, **options)
    single, _ = generate(model, edits, 0)
    plain, _ = generate(model, None, **options)
    seen = []
    for row, prompt in enumerate(PROMPTS):
        q = truth(plain_activations(model, prompt, "head"), tensors, BEST)
        seen.append(q)

        def change(layer: int, values: Tensor, q: float = q) -> Tensor:
            moved = shift.apply(layer, values, torch.zeros(len(values), dtype=torch.long))
            return values + (1 - q) * (moved - values)

        if q >= threshold:
            expected, text = plain[2 * row : 2 * row + 2], generate(model, None)[0][row]
        else:
            with changing(model, "head", change, slice(len(prompt) - 1, None)):
                expected, _ = generate(model, None, 0, [prompt], use_cache=False, **options)
                text = generate(model, None, 0, [prompt], use_cache=False)[0][0]
            assert not torch.equal(expected, plain[2 * row : 2 * row + 2])
        assert torch.equal(together[2 * row : 2 * row + 2], expected)
        assert torch.equal(single[row], text)
    assert min(seen) < threshold <= max(seen)


# ------------------------------------------------------------------ gate=self


@quick
@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
def test_each_head_is_shifted_by_how_untrue_itself_is(site: Site, direction: str) -> None:
    tensors, rows = made(), states(20)[:, 0]
    edits = edits_of(site, "self", Setting(2, ALPHA), Setting(K, -ALPHA), direction=direction)
    assert edits.gates(states(2)) is None
    for layer in range(LAYERS):
        for edit, (k, alpha) in enumerate(((2, ALPHA), (K, -ALPHA))):
            after = edits.apply(layer, rows, torch.full((20,), edit))
            expected = rows.clone()
            for place in [place for place in BEST[:k] if place[0] == layer]:
                part = slice(place[1] * HEAD_DIM, (place[1] + 1) * HEAD_DIM)
                step = alpha * tensors[f"{direction}_std"][place] * tensors[direction][place]
                for row in range(20):
                    p = truth(rows[row].expand(LAYERS, -1), tensors, [place])
                    expected[row, part] += (1 - p) * step
            torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


@quick
def test_a_head_that_is_surely_true_is_left_and_one_that_is_not_has_the_whole_shift(
    site: Site,
) -> None:
    tensors = made()
    tensors["bias"] = torch.full((LAYERS, HEADS), 1e4)
    rows, which = states(4)[:, 0], torch.zeros(4, dtype=torch.long)
    left = edits_of(site, "self", Setting(K, ALPHA), tensors=tensors)
    assert torch.equal(left.apply(0, rows, which), rows)
    tensors["bias"] = -tensors["bias"]
    whole = edits_of(site, "self", Setting(K, ALPHA), tensors=tensors).apply(0, rows, which)
    expected = edits_of(site, "none", Setting(K, ALPHA)).apply(0, rows, which)
    torch.testing.assert_close(whole, expected)


# ------------------------------------------------------------------ through the harness


def knowing_nothing(fit: Fit) -> Fit:
    """The fit with probes that say 1/2 of whatever they read."""
    nothing = {name: torch.zeros_like(fit.tensors[name]) for name in ("weight", "bias")}
    return Fit({**fit.tensors, **nothing}, fit.card)


def test_at_the_threshold_scores_are_the_unsteered_model_s_and_below_those_of_a_weaker_shift(
    evaluate: Any, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"top_k": 5, "alpha": 3}
    [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", **given), "tiny_choice")
    file = tmp_path / "nothing.safetensors"
    save_fit(knowing_nothing(load_fit(Path(mask["file"]))), file)
    given |= {"mask": str(file), "gate": "prompt"}
    unsteered = numbers(evaluate("tiny_choice", model="hf-iti", method="none"), "tiny_choice")
    found = evaluate("tiny_choice", model="hf-iti", threshold=0.5, **given)
    assert numbers(found, "tiny_choice") == pytest.approx(unsteered, abs=1e-5)
    weaker = {**given, "gate": "none", "alpha": 1.5}
    expected = numbers(evaluate("tiny_choice", model="hf-iti", **weaker), "tiny_choice")
    for gate in ({"threshold": 0.51}, {"gate": "self"}):
        found = evaluate("tiny_choice", model="hf-iti", **{**given, **gate})
        assert numbers(found, "tiny_choice") == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(expected, unsteered, strict=True)) > 0.1


def test_a_fit_of_before_serves_without_a_gate_and_with_one_is_refused_in_one_line(
    evaluate: Any, tmp_path: Path
) -> None:
    given = {"top_k": 5, "alpha": 3}
    own = evaluate("tiny_choice", model="hf-iti", **given)
    [mask] = masks_of(own, "tiny_choice")
    fit = load_fit(Path(mask["file"]))
    file = tmp_path / "before.safetensors"
    of_before = {k: v for k, v in fit.tensors.items() if k not in ("weight", "bias")}
    save_fit(Fit(of_before, fit.card), file)
    found = evaluate("tiny_choice", model="hf-iti", mask=str(file), **given)
    assert numbers(found, "tiny_choice") == numbers(own, "tiny_choice")
    for gate in ("prompt", "self"):
        with pytest.raises(UserError, match="has no weight, but") as caught:
            evaluate("tiny_choice", model="hf-iti", mask=str(file), gate=gate, **given)
        assert str(file) in one_line(caught)


def test_three_numbers_are_chosen_and_named(evaluate: Any) -> None:
    given = {"gate": "prompt", "grid": "1/5x6x.5/1", "n_tune": 8}
    results = evaluate("tiny_choice", model="hf-iti", **given)
    record = results["config"]["sadi"]["tiny_choice"]
    assert record["parameters"] == ["top_k", "alpha", "threshold"]
    [mask] = record["fits"]
    tried = [(row["top_k"], row["alpha"], row["threshold"]) for row in mask["tuning"]["table"]]
    assert tried == [(0, 0, 0), (1, 6, 0.5), (1, 6, 1), (5, 6, 0.5), (5, 6, 1)]
    plain = evaluate("tiny_choice", model="hf-iti", grid="1/5x6", n_tune=8)
    assert plain["config"]["sadi"]["tiny_choice"]["parameters"] == ["top_k", "alpha"]
    assert "threshold" not in str(plain["config"]["sadi"])
    assert masks_of(plain, "tiny_choice")[0]["file"] == mask["file"]  # one fit serves both


def test_a_threshold_of_nothing_is_the_unsteered_model(evaluate: Any) -> None:
    given = {"gate": "prompt", "threshold": 0, "top_k": 5, "alpha": 9}
    found = evaluate("tiny_choice", model="hf-iti", **given)
    expected = evaluate("tiny_choice", model="hf-iti", method="none")
    assert scores(found, "tiny_choice") == scores(expected, "tiny_choice")


# ------------------------------------------------------------------ as the user asks for it


@quick
def test_a_threshold_is_there_with_the_gate_that_has_one() -> None:
    assert read_arm("iti", {"gate": "prompt", "threshold": 0.7}).given == (None, None, 0.7)
    assert read_arm("iti", {"gate": "prompt"}).axes.names == ("top_k", "alpha", "threshold")
    for gate in ({}, {"gate": "self"}):
        assert read_arm("iti", gate).axes.names == ("top_k", "alpha")
        with pytest.raises(UserError) as caught:
            read_arm("iti", {"threshold": 0.7, **gate})
        assert str(caught.value) == (
            "threshold=0.7: hf-iti has threshold only with gate=prompt; pass both or neither"
        )
    with pytest.raises(
        UserError, match=r"threshold=1\.5: must be a finite number of at least 0 and"
    ):
        read_arm("iti", {"gate": "prompt", "threshold": 1.5})
    with pytest.raises(UserError, match=r"gate=promt.*alpha=x"):
        read_arm("iti", {"gate": "promt", "alpha": "x"})


@quick
def test_a_fit_without_a_gate_takes_one_with_its_threshold() -> None:
    fit = SteeringFit(Fit(made(), {}), read_arm("iti", {"top_k": 5, "alpha": 9}))
    gated = fit.with_setting(gate="prompt", threshold=0.5)  # type: ignore[arg-type]
    assert gated.setting == {"top_k": 5, "alpha": 9, "threshold": 0.5}
    assert gated.with_setting(strength=2).setting == {"top_k": 5, "alpha": 2, "threshold": 0.5}


@quick
def test_of_several_arms_the_gated_one_has_the_threshold() -> None:
    arms = read_arms(["iti", "iti-prompt", "iti-self"], {"threshold": 0.7})
    assert [arm.given for arm in arms.values()] == [
        (None, None),
        (None, None, 0.7),
        (None, None),
    ]
    with pytest.raises(
        UserError, match=r"threshold=0\.7: no method of iti, iti-self has threshold"
    ):
        read_arms(["iti", "iti-self"], {"threshold": 0.7})
    assert not arm_names()["iti-prompt"].usual
    assert arms["iti-prompt"].is_like("iti-prompt")
    assert not arms["iti-prompt"].is_like("iti")


@quick
def test_the_numbers_of_a_benchmark_are_those_of_the_arm(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = "benchmark: mine\ntasks: [a]\nsettings:\n  {name}: {{top_k: 3, threshold: 0.6}}\n"
    file.write_text(text.format(name="iti-prompt"), encoding="utf-8")
    benchmark = read_benchmark(file)
    assert benchmark is not None
    assert benchmark.settings == {"iti-prompt": {"top_k": 3, "threshold": 0.6}}
    file.write_text(text.format(name="iti"), encoding="utf-8")
    with pytest.raises(UserError, match="settings of iti: 'threshold'"):
        read_benchmark(file)


@quick
def test_what_is_tried_goes_about_the_authors_own() -> None:
    prompt, each = ITI(gate="prompt"), ITI(gate="self")
    assert len(prompt.search_space(None).settings) == 36
    assert len(each.search_space(None).settings) == 9
    assert prompt.usual == (24, 60, 0.6)
    assert each.usual == (24, 60)
    assert prompt.edit_size(Setting(24, 60, 0.5), {}) < prompt.edit_size(Setting(24, 60, 0.6), {})
