"""What is KAPPA's own: letters, probes, the edit's equation; and fits on labelled prompts.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.equations.kappa import EQUATIONS
from helpers.forms import LETTERS
from helpers.messages import one_line
from helpers.results import masks_of, numbers
from helpers.tasks import load, make_task
from sadi_lmeval import cli
from sadi_lmeval.api.fitting import fit
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.collectors import KeptPrompts
from sadi_lmeval.methods.kappa import (
    KAPPA,
    are_named_letters,
    fit_letter_probes,
    softmax_probe,
)
from sadi_lmeval.methods.registry import usual_arms
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.pairs.prompts import LabelledPrompt, labelled_prompts
from sadi_lmeval.passes.activations import Answers
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering import fitting
from sadi_lmeval.storage.fit_file import load_fit

quick = pytest.mark.quick
GIVEN = EQUATIONS.given
WIDTH = 32


def site_of(width: int, layers: int = 3) -> Site:
    modules = tuple(nn.Identity() for _ in range(layers))
    return Site("hidden", modules, "output", width, 1, "residual")


def fit_of(knowledge: Tensor, prediction: Tensor, biases: Tensor, layers: int = 3) -> Any:
    """A fit with the same probes in each layer."""
    return {
        name: values.float().expand(layers, *values.shape)
        for name, values in (
            ("knowledge", knowledge),
            ("knowledge_bias", biases[0]),
            ("prediction", prediction),
            ("prediction_bias", biases[1]),
        )
    }


def drawn_fit(letters: int, rank: int | None = None) -> Any:
    """Centred rows; of a rank those of W_P."""
    generator = torch.Generator().manual_seed(letters)
    rows = torch.randn(2, letters, WIDTH, generator=generator).double()
    if rank is not None:
        rows[1, rank + 1 :] = rows[1, :1]
    biases = torch.randn(2, letters, generator=generator).double()
    rows, biases = (each - each.mean(dim=1, keepdim=True) for each in (rows, biases))
    return fit_of(rows[0], rows[1], biases)


def edited(
    fit: Any, rows: Tensor, alpha: float, layer: int = 1, method: KAPPA | None = None
) -> Tensor:
    site = site_of(rows.shape[1])
    edits = (method or KAPPA()).edits(site, fit, [Setting(1, alpha)], 0)
    return edits.apply(layer, rows, torch.zeros(len(rows), dtype=torch.long))


def reads(fit: Any, probe: str, rows: Tensor) -> Tensor:
    """Logits of a probe, ``[n, k]``."""
    weight, bias = fit[probe][1].double(), fit[f"{probe}_bias"][1].double()
    logits: Tensor = rows.double() @ weight.T + bias
    return logits


# ------------------------------------------------------------------ the equation


@quick
def test_two_letters_by_hand() -> None:
    """z_K = (2, −2), z_P = (3.5, −3.5); for (4, −4) the second unit goes from 3 to 3.5."""
    fit = fit_of(
        torch.tensor([[1.0, 0, 0], [-1, 0, 0]]),
        torch.tensor([[0, 1.0, 0], [0, -1, 0]]),
        torch.tensor([[0, 0], [0.5, -0.5]]),
    )
    x = torch.tensor([[2.0, 3, 7]])
    assert edited(fit, x, alpha=2).tolist() == [[2, 3.5, 7]]
    assert edited(fit, x, alpha=-1).tolist() == [[2, -2.5, 7]]
    assert torch.equal(edited(fit, x, alpha=0), x)  # by the equation it would be [2, −0.5, 7]
    assert torch.equal(edited(fit, x, alpha=2, layer=0), x)


@quick
@pytest.mark.parametrize("letters", [2, 3, 5])
@pytest.mark.parametrize("alpha", [-2.0, 1.0, 32.0])
def test_afterwards_the_prediction_probe_reads_alpha_times_the_knowledge(
    letters: int, alpha: float
) -> None:
    fit = drawn_fit(letters)
    rows = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    after = edited(fit, rows, alpha)
    wanted = alpha * reads(fit, "knowledge", rows)
    torch.testing.assert_close(reads(fit, "prediction", after), wanted, atol=1e-4, rtol=1e-4)
    # What the prediction probe does not look at stays: it is the shortest such step.
    across = torch.linalg.svd(fit["prediction"][1].double())[2][letters - 1 :]
    assert across.shape[0] == WIDTH - letters + 1
    torch.testing.assert_close(
        rows.double() @ across.T, after.double() @ across.T, atol=1e-4, rtol=0
    )


@quick
def test_of_letters_that_the_prediction_probe_does_not_tell_apart_no_step_is_made() -> None:
    """Of three two have the same row, so that W_P W_P^T has no inverse but for rounding."""
    fit = drawn_fit(3, rank=1)
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2))
    after = edited(fit, rows, 4)
    wanted = 4 * reads(fit, "knowledge", rows)
    w = fit["prediction"][1].double()
    missing = wanted - reads(fit, "prediction", rows)
    largest = torch.linalg.svdvals(w)[0]  # the only one
    assert ((after - rows).norm(dim=1) <= missing.norm(dim=1) / largest * 1.001).all()
    left = wanted - reads(fit, "prediction", after)
    assert (left @ w).abs().max() < 1e-4 * (missing @ w).abs().max()
    silent = fit | {"prediction": torch.zeros_like(fit["prediction"])}
    assert torch.equal(edited(silent, rows, 4), rows)


@quick
def test_in_bfloat16_it_is_computed_in_float32_and_rounded_once() -> None:
    fit, generator = drawn_fit(4), torch.Generator().manual_seed(3)
    rows = torch.randn(5, WIDTH, generator=generator).bfloat16()
    assert torch.equal(edited(fit, rows, 2), edited(fit, rows.float(), 2).bfloat16())


@quick
def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    fit, rows = drawn_fit(4), torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(4))
    spoilt = rows.clone()
    spoilt[1, 5] = torch.inf
    found = edited(fit, spoilt, 2)
    torch.testing.assert_close(found[[0, 2]], edited(fit, rows, 2)[[0, 2]])
    assert not found[1].isfinite().all()


@quick
def test_successive_blocks_go_as_far_as_the_model() -> None:
    fit, rows = drawn_fit(3), torch.ones(1, WIDTH)
    changed = [not torch.equal(edited(fit, rows, 2, n, KAPPA(blocks=2)), rows) for n in range(3)]
    assert changed == [False, True, True]
    edits = KAPPA(blocks=3).edits(site_of(WIDTH), fit, [Setting(1, 2)], 0)
    assert (edits.layers, edits.first_layers) == ([1, 2], [1])
    size = site_of(WIDTH).size
    for blocks, layers in ((1, (0, 1, 2)), (2, (0, 1)), (9, (0,))):
        assert KAPPA(blocks=blocks).search_space(size).values[0] == layers


# ------------------------------------------------------------------ the probes


@quick
@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_s_logits_are_those_of_softmax_regression(classes: int) -> None:
    generator = np.random.RandomState(0)
    values, labels = generator.randn(40, 6), np.arange(40) % classes
    rows, biases = softmax_probe(values, labels, np.arange(classes))
    assert np.abs(rows.sum(axis=0)).max() < 1e-9
    assert abs(biases.sum()) < 1e-9
    logits = values @ rows.T + biases
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = LogisticRegression(max_iter=10**4, tol=1e-8).fit(values, labels)
    assert found == pytest.approx(expected.predict_proba(values), abs=1e-4)
    some, _ = softmax_probe(values, labels, np.array([0, classes - 1]))
    assert some[0] - some[1] == pytest.approx(rows[0] - rows[-1])


@quick
def test_letters_that_are_never_right_or_never_chosen_are_left_out() -> None:
    values = torch.randn(12, 2, WIDTH, 1, generator=torch.Generator().manual_seed(5))
    answers = [Answers(i % 3, 1 + i % 2 * (1 + i % 4 // 2)) for i in range(12)]
    assert ({a.right for a in answers}, {a.own for a in answers}) == ({0, 1, 2}, {1, 2, 3})
    found = fit_letter_probes(values, answers, "test")
    assert found["knowledge"].shape == found["prediction"].shape == (2, 2, WIDTH)
    assert found["knowledge_bias"].shape == (2, 2)
    right = [a for a in answers if a.right in (1, 2)]
    rows = values[[answers.index(a) for a in right], 0, :, 0]
    logits = rows @ found["knowledge"][0].T + found["knowledge_bias"][0]
    assert logits.argmax(dim=1).tolist() == [a.right - 1 for a in right]


@quick
def test_a_model_that_always_says_one_letter_is_refused() -> None:
    values = torch.randn(8, 2, WIDTH, 1, generator=torch.Generator().manual_seed(6))
    for own in (2, 3):
        with pytest.raises(UserError, match="of 8 prompts 3 letters are right and 1") as caught:
            fit_letter_probes(values, [Answers(i % 3, own) for i in range(8)], "a task")
        assert one_line(caught).startswith("a task: hf-kappa needs two letters")


def test_it_is_refused_before_any_activation_is_read(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_a(*_: Any) -> Any:
        return lambda prompts: [[0.0, *[-1.0] * (len(each) - 1)] for each in prompts]

    monkeypatch.setattr(fitting, "scores_of_choices", always_a)
    monkeypatch.setattr(Engine, "read", None)
    with pytest.raises(UserError, match="letters are right and 1 the model's own") as caught:
        evaluate("letters_choice", model="hf-kappa", **GIVEN)
    assert one_line(caught).startswith("letters_choice: hf-kappa needs two letters")


@quick
def test_prompts_whose_activations_are_not_finite_are_refused() -> None:
    kept = KeptPrompts("letter_probes", site_of(WIDTH), 4, {}, lambda *a: {})
    values = torch.ones(4, 3, WIDTH)
    values[2, 1, 7] = torch.nan
    kept.add([0, 1, 2, 3], [Answers(0, 1)] * 4, values)
    with pytest.raises(UserError, match="1 of 4 prompts have activations that are not finite"):
        kept.tensors("test")


@quick
def test_activations_stand_with_the_answers_of_their_prompt_whatever_the_order() -> None:
    seen: list[Any] = []

    def make(values: Tensor, answers: list[Answers], label: str) -> dict[str, Tensor]:
        seen.extend((values.flatten(2)[:, 0, 0].tolist(), answers))
        return {}

    kept = KeptPrompts("letter_probes", site_of(WIDTH), 3, {}, make)
    kept.add([2], [Answers(2, 5)], torch.full((1, 3, WIDTH), 2.0))
    kept.add(
        [1, 0],
        [Answers(1, 4), Answers(0, 3)],
        torch.ones(2, 3, WIDTH) * torch.tensor([[[1.0]], [[0.0]]]),
    )
    kept.tensors("test")
    assert seen == [[0, 1, 2], [Answers(0, 3), Answers(1, 4), Answers(2, 5)]]


# ------------------------------------------------------------------ letters

MMLU = "What is it?\nA. one\nB. two\nC. three\nD. four\nAnswer:"


@quick
@pytest.mark.parametrize(
    ("prompt", "choices", "named"),
    [
        (MMLU, ["A", "B", "C", "D"], True),
        (MMLU, [" A", " B", " C", " D"], True),
        ("(A) one (B) two", ["A", "B"], True),
        ("a: one b: two", ["a", "b"], True),
        ("س: ؟ أ. واحد ب. اثنان", ["أ", "ب"], True),
        (MMLU, ["A", "B", "C", "D", "E"], False),
        (MMLU, ["A", "A"], False),
        (MMLU, ["A"], False),
        (MMLU, [], False),
        (MMLU, ["one", "two"], False),
        ("Which is it? Answer:", ["A", "B"], False),
        ("1. one 2. two", ["1", "2"], False),
        ("DNA. and RNAB. are said", ["A", "B"], False),
    ],
)
def test_choices_are_letters_that_the_prompt_lists(
    prompt: str, choices: list[str], named: bool
) -> None:
    assert are_named_letters(prompt, choices) == named
    words = KAPPA().unsuited(prompt, choices)
    assert (words is None) == named
    assert words is None or all(repr(choice) in words for choice in choices[:3])


NOT_LETTERS = ["tiny_choice", "tiny_input", "tiny_empty", "tiny_word", "tiny_text"]


@pytest.mark.parametrize("task", NOT_LETTERS)
def test_another_task_is_refused_by_name_before_anything_is_measured(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, task: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(Engine, "read", None)
    monkeypatch.setattr(Engine, "score", None)
    with pytest.raises(UserError, match=f"task {task}: hf-kappa takes choices that are") as caught:
        evaluate("letters_choice", task, model="hf-kappa", **GIVEN)
    one_line(caught)
    assert not list(tmp_path.glob("cache/*"))


def test_so_is_one_that_a_fit_of_letters_is_given_to_or_that_pairs_are_taken_from(
    evaluate: Any,
) -> None:
    [mask] = masks_of(evaluate("letters_choice", model="hf-kappa", **GIVEN), "letters_choice")
    for task, source in (("tiny_choice", {"mask": mask["file"]}),
                         ("tiny_choice", {"mask_from": "letters_choice"}),
                         ("letters_choice", {"mask_from": "tiny_choice"})):  # fmt: skip
        with pytest.raises(UserError, match="task tiny_choice: hf-kappa takes") as caught:
            evaluate(task, model="hf-kappa", **GIVEN, **source)
        one_line(caught)
    with pytest.raises(UserError, match="there are no choices that prompts could be labelled"):
        evaluate("letters_choice", model="hf-kappa", recipe="politeness", **GIVEN)


def test_pairs_of_the_user_s_have_no_choices(
    model_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder)
    pairs = [{"prompt": f"the {n} is", "positive": "old", "negative": "new"} for n in "abcd"]
    with pytest.raises(UserError, match="method kappa: is fitted on a task's prompts") as caught:
        fit(model, tokenizer, pairs, method="kappa", cache_dir=str(tmp_path))
    assert "from_task=TASK" in one_line(caught)


# ------------------------------------------------------------------ labelled prompts


def prompts_of(folder: Path, name: str, swapped: bool = False, **given: Any) -> Any:
    """The pairs of the first fit, and the prompts that are made of them."""
    options = read_arm("kappa", {"n_pairs": 12, **given}).options
    plan = find_plan(load(folder, name, num_fewshot=given.get("pairs_num_fewshot", 0)), options)
    source = plan.sources.sources[0]
    pairs = draw(plan, source, options, ()).pairs
    if swapped:
        pairs = [pair._replace(positive=pair.negative, negative=pair.positive) for pair in pairs]
    return pairs, labelled_prompts(plan, source, pairs, options)


def text_of(prompt: LabelledPrompt) -> str:
    [context] = {context for context, _ in prompt.choices}
    return context


@pytest.mark.parametrize("task", ["letters_choice", "letters_folds"])
def test_prompts_are_those_of_the_pairs_with_the_same_examples(
    tasks_folder: Path, task: str
) -> None:
    for shots in (0, 2):
        pairs, prompts = prompts_of(tasks_folder, task, pairs_num_fewshot=shots)
        assert [prompt.document for prompt in prompts] == [pair.document for pair in pairs]
        assert len(prompts) == 12
        for pair, prompt in zip(pairs, prompts, strict=True):
            assert text_of(prompt) == pair.positive[0]
            assert text_of(prompt).count("answer :") == shots + 1
            assert text_of(prompt).endswith(LETTERS.prompt(pair.document))
            assert [choice.strip() for _, choice in prompt.choices] == ["A", "B", "C"]
            assert prompt.right == pair.document["label"]


def test_of_several_pairs_of_a_document_there_is_one_prompt(tasks_folder: Path) -> None:
    pairs, prompts = prompts_of(tasks_folder, "letters_choice", negative="all")
    assert (len(pairs), len(prompts)) == (12, 6)
    assert [prompt.document for prompt in prompts] == [pair.document for pair in pairs[::2]]


def test_labels_are_the_positive_sides_of_pairs_so_that_swapping_them_swaps_labels(
    tasks_folder: Path,
) -> None:
    pairs, prompts = prompts_of(tasks_folder, "letters_choice", swapped=True)
    for pair, prompt in zip(pairs, prompts, strict=True):
        assert prompt.choices[prompt.right] == pair.positive
        assert prompt.right != pair.document["label"]


def test_the_card_names_prompts_and_documents_and_other_labels_make_another_fit(
    run_task: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    train, scored = (
        [json.loads(line) for line in (tasks_folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "validation")
    )
    fits = []
    for shift in (0, 1):
        rows = [{**row, "label": (row["label"] + shift) % 3} for row in train[:16]]
        make_task(tmp_path, "task", {"train": rows, "validation": scored[:4]}, **LETTERS.config)
        [mask] = masks_of(run_task("task", "hf-kappa", **GIVEN), "task")
        fits.append(load_fit(Path(mask["file"])))
    for each in fits:
        assert (each.card["kind"], each.card["n_prompts"]) == ("letter_probes", 12)
        assert len(set(each.card["documents"])) == 12
    assert fits[0].card["prompts_digest"] != fits[1].card["prompts_digest"]
    assert not torch.equal(fits[0].tensors["knowledge"], fits[1].tensors["knowledge"])
    for name in ("prediction", "prediction_bias"):  # the model says what it says
        torch.testing.assert_close(fits[0].tensors[name], fits[1].tensors[name])


def test_a_fit_in_the_cache_is_not_measured_again(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate("letters_choice", model="hf-kappa", **GIVEN)
    monkeypatch.setattr(Engine, "read", None)
    again = evaluate("letters_choice", model="hf-kappa", **GIVEN)
    assert numbers(again, "letters_choice") == numbers(first, "letters_choice")


# ------------------------------------------------------------------ beside other methods


@quick
def test_it_is_compared_where_it_is_named_as_most_tasks_have_no_letters() -> None:
    assert "kappa" not in usual_arms()


def test_compare_and_sweep_take_it_beside_methods_that_are_fitted_on_pairs(
    tmp_path: Path,
    model_folder: Path,
    tasks_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the same documents: a report refuses records of different pairs."""
    init = TaskManager.__init__  # to index the harness's own tasks takes seconds
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(init, include_defaults=False))
    cache, out = tmp_path / "cache", tmp_path / "out"
    model = f"pretrained={model_folder},cache_dir={cache},n_pairs=12,n_tune=8"
    given = ["--model_args", model, "--include_path", str(tasks_folder), "--device", "cpu"]
    given += ["--batch_size", "4", "--limit", "4"]
    compare = ["compare", "--settings", "2", "--methods", "none,caa,kappa", *given]
    sweep = ["sweep", "--methods", "kappa", "--layer", "1", "--alpha", "2", *given]
    both = [[*compare, "--output_path", str(out)], [*sweep, "--output", str(tmp_path / "lines")]]
    for command in both:
        assert cli.main([*command, "--tasks", "letters_choice,tiny_choice"]) != 0
        assert "task tiny_choice: hf-kappa takes" in capsys.readouterr().err
        assert not list(cache.glob("*"))
    for command in both:
        assert cli.main([*command, "--tasks", "letters_choice"]) == 0
    assert {path.stem for path in (out / "records").iterdir()} == {
        f"letters_choice.{name}" for name in ("none", "caa", "kappa")
    }
    lines = [json.loads(line) for line in (tmp_path / "lines").open(encoding="utf-8")]
    assert [line["method"] for line in lines] == ["none", "kappa"]
    assert (lines[1]["layer"], lines[1]["alpha"]) == (1, 2)
    cards = [load_fit(path).card for path in cache.glob("*.safetensors")]
    assert {card["kind"] for card in cards} == {"letter_probes", "mean_difference"}
    assert len({(*card["documents"], card["pairs_digest"]) for card in cards}) == 1
