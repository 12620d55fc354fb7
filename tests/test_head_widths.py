"""Attention heads of layers that differ in how wide these are, as Gemma 4's: fits, scores, texts.

The equations are those of ``test_each_method.py``, on what plain passes have in each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import sadi_lmeval
from helpers.architectures import CASES as ARCHITECTURES
from helpers.architectures import (
    DELTAS,
    PROMPTS,
    columns_of,
    edits_of,
    generated,
    made,
    oracle,
    read_at_the_end,
)
from helpers.equations import EQUATIONS, contract
from helpers.equations.contract import HEADS, LAYERS
from helpers.loops import (
    activations_of_pairs,
    assert_generated_as_the_loop_says,
    assert_scored_as_the_loop_says,
    texts_of_pairs,
    tried,
)
from helpers.models import tiny
from helpers.results import masks_of
from sadi_lmeval.architecture import sites
from sadi_lmeval.architecture.sites import check_sites, find_site
from sadi_lmeval.commands.plan import fit_bytes
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.austeer import AUSteer
from sadi_lmeval.methods.sadi import SADI
from sadi_lmeval.passes.footprint import key_value_bytes
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.settings import Setting
from sadi_lmeval.storage.fit_file import load_fit, of_site
from sadi_lmeval.types import Scope

HEAD_DIMS = (8, 20, 20)
ACTIVATIONS = HEADS * sum(HEAD_DIMS)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sadi", {}),
    ("iti", {}),
    ("austeer", {}),
    ("iti", {"gate": "prompt", "threshold": 0.7, "alpha": 12}),
    ("iti", {"gate": "self", "alpha": 9}),
]
each_case = pytest.mark.parametrize(
    ("method", "changes"),
    [
        pytest.param(
            *case,
            marks=[pytest.mark.slow] * bool(case[1]),
            id=" ".join([case[0], *(f"{name}={value}" for name, value in case[1].items())]),
        )
        for case in CASES
    ],
)


def gemma(vocabulary: int, **changes: Any) -> PreTrainedModel:
    """A layer with a window, and two without whose heads are wider, whose values are their keys,
    and of which the second has those of the first.
    """
    return tiny(
        "gemma4_text",
        **{
            "vocab_size": vocabulary,
            "num_hidden_layers": LAYERS,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "global_head_dim": HEAD_DIMS[-1],
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 1,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": vocabulary,
            "max_position_embeddings": 256,
            "pad_token_id": 2,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    made = tmp_path_factory.mktemp("gemma4")
    gemma(len(tokenizer)).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(autouse=True)
def equations_of_such_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "HEAD_DIMS", HEAD_DIMS)


@each_case
def test_fits_scores_and_texts_are_those_of_plain_passes(
    evaluate: Any,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    tasks_folder: Path,
    method: str,
    changes: dict[str, Any],
) -> None:
    equations = EQUATIONS[method]
    given = {**equations.given, **changes}
    results = evaluate("tiny_choice", "tiny_text", model=f"hf-{method}", limit=4,
                       pretrained=str(folder), **given)  # fmt: skip
    scope = given.get("scope", equations.scope)
    for task in ("tiny_choice", "tiny_text"):
        [mask] = masks_of(results, task)
        texts = texts_of_pairs(tasks_folder, task, method, **given)
        known = equations.measure(*activations_of_pairs(model, tokenizer, texts, "head"), given)
        equations.assert_measured(load_fit(Path(mask["file"])).tensors, known)
        places = equations.places(known, given)
        assert places is not None
        assert {layer for layer, *_ in places} > {0}
        assert {tuple(place) for place in mask["selected"]} == places
        change = equations.change(known, given)
        if task == "tiny_choice":
            scored = tried(results, task)
            changes_of = dict.fromkeys((one.document for one in scored), change)
            assert_scored_as_the_loop_says(
                scored, model, tokenizer, "head", changes_of.__getitem__, scope
            )
        else:
            assert_generated_as_the_loop_says(
                results, task, model, tokenizer, "head", change, scope
            )


def test_a_head_s_score_is_over_its_own_activations() -> None:
    """A mean over the widest head's would set narrower ones back."""
    site = find_site(gemma(60), "head")
    difference = torch.zeros(site.shape)
    difference[0, :, : HEAD_DIMS[0]] = 1.0
    difference[1:, :, :] = 0.9
    fit = of_site({"difference": difference}, site, {})
    for selection, layers in (("top", {0}), ("bottom", {1})):
        method = SADI(selection=selection)  # type: ignore[arg-type]
        selected = method.selected(fit.tensors, Setting(HEADS, 2), 0)
        assert set(selected.nonzero()[:, 0].tolist()) == layers
    found = SADI().found(fit.tensors)
    assert found is not None
    torch.testing.assert_close(found.scores, torch.tensor([[1.0], [0.9], [0.9]]).expand(-1, HEADS))


def test_what_a_narrower_head_lacks_is_no_dimension() -> None:
    """Neither counted nor chosen, however many are asked for."""
    model, pairs = gemma(60), 3
    site = find_site(model, "head")
    assert site.size.activations == ACTIVATIONS
    assert AUSteer.axes[0].bound(site.size) == ACTIVATIONS
    with pytest.raises(UserError, match=rf"has {ACTIVATIONS} activations .* of up to 80\)"):
        AUSteer.axes.check({"top_k": ACTIVATIONS + 1}, site.size, "head")
    texts = [[5, 9, 7, n] for n in range(3, 3 + 2 * pairs)]
    collector = AUSteer().collector(site, pairs, 0)
    read = torch.stack([read_at_the_end(model, site, text) for text in texts])
    collector.add([*range(pairs)] * 2, [1] * pairs + [-1] * pairs, read)
    chosen = AUSteer().selected(collector.tensors(""), Setting(ACTIVATIONS, 2), 0)
    assert int(chosen.sum()) == ACTIVATIONS
    assert not chosen[0, :, HEAD_DIMS[0] :].any()


def test_a_fit_is_saved_loaded_and_steers_models_of_the_same_widths_alone(
    model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"which tree is {word}", "positive": "the old one", "negative": "it is not"}
        for word in ("big", "small", "red", "old")
    ]
    fit = sadi_lmeval.fit(model, tokenizer, rows, top_k=5, delta=3, cache_dir=str(tmp_path))
    again = sadi_lmeval.load(fit.save(tmp_path / "fit.safetensors"))
    assert again.fit.digest == fit.fit.digest
    assert again.edits(model).digest(0) == fit.edits(model).digest(0)
    ids = torch.tensor([[5, 9, 7, 4]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), fit.steering(model):
        expected = model(**inputs).logits
    with torch.no_grad(), again.steering(model):
        assert torch.equal(model(**inputs).logits, expected)
    assert not torch.equal(model(**inputs).logits, expected)
    other = gemma(
        len(tokenizer),
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
    )
    with pytest.raises(
        UserError, match=r"entry_widths \[8, 20, 20\], but this run has \[20, 8, 20"
    ):
        fit.edits(other)


def test_before_weights_are_loaded_the_same_is_found() -> None:
    with torch.device("meta"):
        bare = gemma(60)
    found, loaded = check_sites(bare, "head", "mlp"), find_site(gemma(60), "head")
    assert found is not None
    assert found._replace(modules=()) == loaded._replace(modules=())
    assert loaded.entry_widths == HEAD_DIMS
    arm = read_arm("austeer", {"top_k": 3, "alpha": 2})
    assert fit_bytes(arm, found, 1) >= 2 * 8 * LAYERS * HEADS * max(HEAD_DIMS)


def test_layers_with_more_heads_than_others_are_refused() -> None:
    model = tiny("laguna", num_attention_heads_per_layer=[4, 8])
    with pytest.raises(UserError, match=r"'laguna': its layers have 4 or 8 attention heads each"):
        find_site(model, "head")


def test_wider_heads_are_told_from_more_by_what_the_attention_says() -> None:
    model = gemma(60)
    del model.model.layers[1].self_attn.head_dim
    modules = {n: layer.self_attn.o_proj for n, layer in enumerate(model.model.layers)}
    measured = sites._Measured([*modules], [32, 80, 80], None)
    with pytest.raises(UserError, match=r"are 32 or 80 wide, .* do not say how wide a head is"):
        sites._site(model, "head", modules, measured)


def test_keys_and_values_are_counted_where_layers_share_them() -> None:
    model, tokens = gemma(60), [5, 9, 7, 4]
    past = Forward(model).prefix(tokens)
    assert past is not None
    kept = sum(each.numel() * each.element_size() for each in (*past.keys, *past.values))
    assert len(past.keys) == LAYERS - 1
    assert key_value_bytes(model.to("meta")) * len(tokens) == kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["prompt", "onwards"])
def test_texts_in_16_bits_are_as_far_from_exact_ones_as_those_of_plain_passes(
    dtype: torch.dtype, scope: Scope
) -> None:
    name = "Gemma 4, text"
    case, exact = ARCHITECTURES[name], copy.deepcopy(made(name)).double()
    model = copy.deepcopy(made(name)).to(dtype)
    edits, columns = edits_of(model, "head", scope=scope), columns_of("head", 0, case.head_dims)
    tokens, logits = generated(model, edits)
    for prompt, own, found in zip(PROMPTS, tokens, logits, strict=True):
        last = len(prompt) - 1

        def plainly(
            of: PreTrainedModel, text: Sequence[int] = (*prompt, *own), last: int = last
        ) -> torch.Tensor:
            where, onwards = (case.named, "head"), scope == "onwards"
            steered = oracle(of, *where, text, last, columns, DELTAS[0], onwards=onwards)
            return steered[last:-1].double()

        expected = plainly(exact)
        gap = float((found.double() - expected).abs().max())
        rounding = float((plainly(model) - expected).abs().max())
        least = torch.finfo(dtype).eps * float(expected.abs().max())
        assert gap <= 2 * max(rounding, least), prompt
