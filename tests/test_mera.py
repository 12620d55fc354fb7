"""What is MERA's own: the half-space, and what is left alone.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.equations.mera import EQUATIONS, Probe, mera_change
from helpers.loops import (
    assert_scored_as_the_loop_says,
    drawn_pairs,
    plain_activations,
    plain_score,
    tokens_of,
    tried,
)
from helpers.messages import one_line
from helpers.results import masks_of
from sadi_lmeval.api.steering_fit import SteeringFit
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm, read_arms
from sadi_lmeval.methods.mera import (
    ALPHAS,
    MERA,
    error_probes,
    logits_of_errors,
    negative_probes,
)
from sadi_lmeval.passes.activations import Answers
from sadi_lmeval.settings import Setting
from sadi_lmeval.storage.fit_file import Fit, load_fit
from sadi_lmeval.types import Size

WIDTH, LAYERS = 6, 3
SITE = Site("hidden", (nn.Identity(),) * LAYERS, "output", WIDTH, 1)

pytestmark = pytest.mark.quick


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(LAYERS, WIDTH, generator=generator),
        "bias": torch.randn(LAYERS, generator=generator),
    }


def edits_of(*settings: Setting, given: dict[str, Tensor] | None = None, **arguments: Any) -> Edits:
    return MERA(**arguments).edits(SITE, given or tensors(), settings, 0)


def applied(edits: Edits, layer: int, rows: Tensor, edit: int = 0) -> Tensor:
    return edits.apply(layer, rows, torch.full((len(rows),), edit))


def rows_of(count: int = 40) -> Tensor:
    return 2 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


def probability(rows: Tensor, layer: int) -> Tensor:
    """Of being a negative answer's, ``[n]``."""
    made = tensors()
    logits = rows.double() @ made["weight"][layer].double() + made["bias"][layer].double()
    return torch.sigmoid(logits)


# ------------------------------------------------------------------ the edit


def test_an_edit_by_hand() -> None:
    """w = (3, 4), c = −1, x = (2, 1): z = 9. To z = 0, along w of length 5, are 9 / 5."""
    weight = torch.zeros(LAYERS, WIDTH)
    weight[1, :2] = torch.tensor([3.0, 4.0])
    made = {"weight": weight, "bias": torch.tensor([0.0, -1.0, 0.0])}
    edits = edits_of(Setting(1, 0.5), given=made)
    row = torch.tensor([[2.0, 1.0, 7.0, -7.0, 0.0, 0.5]])
    expected = torch.tensor([[2 - 9 / 5 * 3 / 5, 1 - 9 / 5 * 4 / 5, 7.0, -7.0, 0.0, 0.5]])
    torch.testing.assert_close(applied(edits, 1, row), expected)


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
def test_what_was_outside_is_on_the_edge_as_near_as_may_be(alpha: float) -> None:
    rows = rows_of()
    after = applied(edits_of(Setting(2, alpha)), 2, rows)
    before = probability(rows, 2)
    outside = before > alpha
    torch.testing.assert_close(
        probability(after[outside], 2).logit(),
        torch.full((int(outside.sum()),), alpha, dtype=torch.float64).logit(),
        atol=1e-4,
        rtol=1e-4,
    )
    length = tensors()["weight"][2].double().norm()
    distance = (before[outside].logit() - math.log(alpha / (1 - alpha))) / length
    moved = (after - rows)[outside].double()
    torch.testing.assert_close(moved.norm(dim=-1), distance, atol=1e-5, rtol=1e-4)
    assert torch.equal(after[~outside], rows[~outside])


def test_some_are_inside_and_some_outside_here() -> None:
    """So that the test above means something."""
    for alpha in (0.1, 0.5, 0.9):
        outside = probability(rows_of(), 2) > alpha
        assert outside.any()
        assert not outside.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_inside_keeps_its_bits_beside_what_is_not(dtype: torch.dtype) -> None:
    rows = rows_of().to(dtype)
    rows[:, 3] = -0.0
    after = applied(edits_of(Setting(0, 0.5)), 0, rows)
    inside = probability(rows, 0) < 0.49
    assert inside.any()
    assert torch.equal(after[inside], rows[inside])
    assert torch.equal(after[inside].signbit(), rows[inside].signbit())
    assert not torch.equal(after[~inside], rows[~inside])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_twice_is_once(alpha: float) -> None:
    edits = edits_of(Setting(1, alpha))
    once = applied(edits, 1, rows_of())
    torch.testing.assert_close(applied(edits, 1, once), once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30])
def test_a_row_that_is_not_finite_stays_by_itself(value: float) -> None:
    rows = rows_of()
    expected = applied(edits_of(Setting(1, 0.3)), 1, rows)
    rows[4, 2] = value
    found = applied(edits_of(Setting(1, 0.3)), 1, rows)
    others = [n for n in range(len(rows)) if n != 4]
    assert torch.equal(found[others], expected[others])


def test_a_probe_of_nothing_edits_nothing() -> None:
    made = tensors()
    made["weight"][1] = 0
    made["bias"][1] = 5  # "negative", wherever one goes
    one = edits_of(Setting(1, 0.1), Setting(2, 0.1), given=made)
    assert one.first_layers == [LAYERS, 2]
    rows = rows_of()
    assert torch.equal(applied(one, 1, rows), rows)
    every = edits_of(Setting(0.1), given=made, layers="all")
    assert every.layers == [0, 2]


def test_all_layers_are_each_of_them() -> None:
    every = edits_of(Setting(0.2), Setting(0.4), layers="all")
    assert every.layers == [0, 1, 2]
    rows = rows_of()
    for layer in range(LAYERS):
        for edit, alpha in enumerate((0.2, 0.4)):
            alone = edits_of(Setting(layer, alpha))
            assert torch.equal(applied(every, layer, rows, edit), applied(alone, layer, rows))


# ------------------------------------------------------------------ the probes


def test_negative_answers_are_on_the_positive_side_of_a_probe() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 20, LAYERS, WIDTH, 1, generator=generator)
    negative[:, 1, 4] += 3
    found = negative_probes(positive, negative, "test")
    assert {name: tuple(t.shape) for name, t in found.items()} == MERA().collector(
        SITE, 20, 0
    ).shapes
    for side, share in ((negative, 0.8), (positive, 0.2)):
        logits = side[:, 1, :, 0] @ found["weight"][1] + found["bias"][1]
        assert float(logits.sigmoid().mean()) == pytest.approx(share, abs=0.12)
    assert found["weight"][1].argmax() == 4


def test_sides_that_are_alike_have_no_probe() -> None:
    same = torch.randn(8, LAYERS, WIDTH, 1, generator=torch.Generator().manual_seed(0))
    found = negative_probes(same, same, "test")
    assert float(found["weight"].abs().max()) < 1e-6


# ------------------------------------------------------------------ probes of errors


def test_the_logit_of_an_error_is_that_of_all_other_choices_together() -> None:
    """Of shares 0.5, 0.3 and 0.2; and of the only choice, and of one that is not there."""
    scores = tuple(math.log(share) - 40 for share in (0.5, 0.3, 0.2))
    answers = [*(Answers(right, 0, scores) for right in range(4)), Answers(0, 0, (0.0,))]
    expected = [0.0, math.log(0.7 / 0.3), math.log(0.8 / 0.2), -math.log(1e-8), math.log(1e-8)]
    assert logits_of_errors(answers, "").tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("prompts", [4, 40])
def test_a_probe_of_errors_is_the_shortest_of_the_least_squares(prompts: int) -> None:
    """Of fewer prompts than activations, and of more: by the pseudo-inverse."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(prompts, LAYERS, WIDTH, 1, generator=generator)
    shares = torch.rand(prompts, generator=generator).double().clamp(0.05, 0.95)
    answers = [Answers(0, 0, (math.log(p), math.log(1 - p))) for p in shares.tolist()]
    found = error_probes(values, answers, "test")
    assert {n: tuple(t.shape) for n, t in found.items()} == MERA(probe="errors").collector(
        SITE, prompts, 0
    ).shapes
    assert not found["bias"].any()
    for layer in range(LAYERS):
        rows = values[:, layer, :, 0].double()
        expected = torch.linalg.pinv(rows) @ -shares.logit()
        torch.testing.assert_close(found["weight"][layer].double(), expected, atol=1e-4, rtol=1e-4)


def test_prompts_that_all_have_one_error_are_refused() -> None:
    for answers in ([Answers(1, 0, (-1.0, -2.0))] * 5, [Answers(0, 0, (math.nan, 0.0))] * 2):
        with pytest.raises(UserError, match="a task: hf-mera with probe=errors needs") as caught:
            MERA(probe="errors").check_answers(answers, "a task")
        one_line(caught)


def test_the_model_s_errors_at_prompts_are_what_a_run_brings_down(
    evaluate: Any,
    tasks_folder: Path,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Written out: a pass a choice for the targets, and the edit in a pass a request."""
    given = {"n_pairs": 12, "layer": 1, "alpha": 0.4, "probe": "errors"}
    results = evaluate("tiny_choice", model="hf-mera", limit=6, **given)
    pairs = drawn_pairs(tasks_folder, "tiny_choice", "mera", n_pairs=12)
    documents = [pair.document for pair in pairs]
    assert len({document["question"] for document in documents}) == 12
    states, targets = [], []
    for document in documents:
        asked = [
            tokens_of(tokenizer, EQUATIONS.form.prompt(document), choice)
            for choice in EQUATIONS.form.choices(document)
        ]
        likely = [math.exp(plain_score(harness_model, *each, "residual", None)[0])
                  for each in asked]  # fmt: skip
        error = 1 - likely[document["label"]] / sum(likely)
        error = min(max(error, 1e-8), 1 - 1e-8)
        targets.append(math.log(error / (1 - error)))
        states.append(plain_activations(harness_model, asked[0][0], "residual")[1].double())
    rows = torch.stack(states)
    weight = (torch.linalg.pinv(rows) @ torch.tensor(targets).double()).numpy()
    probes = [Probe(weight, 0.0)] * 3
    change: Any = mera_change(probes, given)
    found = tried(results, "tiny_choice")
    assert_scored_as_the_loop_says(
        found, harness_model, tokenizer, "residual", lambda _: change, "onwards"
    )
    plain = tried(evaluate("tiny_choice", model="hf-mera", method="none", limit=6), "tiny_choice")
    assert any(abs(a.score[0] - b.score[0]) > 1e-3 for a, b in zip(found, plain, strict=True))
    [mask] = masks_of(results, "tiny_choice")
    assert load_fit(Path(mask["file"])).card["kind"] == "error_probes"


# ------------------------------------------------------------------ its settings


def test_a_threshold_of_nothing_or_all_is_refused() -> None:
    """Where ``alpha`` were 0 no point would be near enough; of 1 nothing would be changed."""
    for alpha in (0, 1, -0.5):
        with pytest.raises(UserError, match=rf"alpha={alpha}: must be a finite number") as caught:
            read_arm("mera", {"alpha": alpha})
        one_line(caught)


def test_every_layer_and_the_authors_thresholds_are_tried() -> None:
    assert len(MERA().search_space(Size(5, WIDTH, WIDTH)).settings) == 45
    everywhere = MERA(layers="all")
    assert everywhere.axes.names == ("alpha",)
    found = everywhere.search_space(Size(5, WIDTH, WIDTH)).settings
    assert found == [(alpha,) for alpha in ALPHAS]
    assert everywhere.usual == (0.5,)


def test_of_equal_settings_that_with_the_higher_threshold_is_the_smaller() -> None:
    assert MERA().edit_size(Setting(9, 0.7), {}) < MERA().edit_size(Setting(0, 0.6), {})
    assert MERA(layers="all").edit_size(Setting(0.7), {}) < MERA(layers="all").edit_size(
        Setting(0.6), {}
    )


def test_a_strength_is_refused_with_the_numbers_that_there_are() -> None:
    fit = SteeringFit(Fit(tensors(), {}), read_arm("mera", {"layer": 1, "alpha": 0.2}))
    with pytest.raises(UserError) as caught:
        fit.with_setting(strength=2)
    assert str(caught.value) == "strength=2: mera has none; pass layer or alpha"
    assert fit.with_setting(alpha=0.3).setting == {"layer": 1, "alpha": 0.3}


def test_with_all_layers_there_is_none_to_name() -> None:
    with pytest.raises(UserError) as caught:
        read_arm("mera", {"layers": "all", "layer": 2})
    assert str(caught.value) == (
        "layer=2: hf-mera has layer only with layers=one; pass both or neither"
    )
    arms = read_arms(["mera", "mera-all"], {"layer": 2})  # for the one that has it
    assert [arm.given for arm in arms.values()] == [(2, None), (None,)]
    with pytest.raises(UserError, match="layer=2: no method of mera-all has layer"):
        read_arms(["mera-all"], {"layer": 2})
