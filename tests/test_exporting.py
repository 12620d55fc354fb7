"""Fits handed on: to llama.cpp, to the harness's own steered model, and out of the cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import sadi_lmeval as sadi
from helpers.results import masks_of, numbers
from sadi_lmeval.cli import main
from sadi_lmeval.storage.fit_file import load_fit

PAIRS = [
    {"prompt": "is the river long", "positive": "yes it is", "negative": "no it is not"},
    {"prompt": "is a stone soft", "positive": "no never", "negative": "yes it is"},
]


@pytest.fixture
def fitted(
    harness_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Any:
    def fit(method: str, **arguments: Any) -> sadi.SteeringFit:
        folder = str(tmp_path / "fits")
        return sadi.fit(harness_model, tokenizer, PAIRS, method, cache_dir=folder, **arguments)

    return fit


def test_the_harness_s_steered_model_scores_as_hf_caa_after_a_prompt_of_one_token(
    evaluate: Any, fitted: Any, tmp_path: Path
) -> None:
    """Its edit is made at every token, so it is the same where the prompt is one token."""
    fit = fitted("caa", layer=1, multiplier=2)
    mine = str(fit.save(tmp_path / "mine.safetensors"))
    theirs = str(fit.export(tmp_path / "vector.pt", to="steered"))
    assert set(torch.load(theirs, weights_only=True)) == {"layers.1"}
    one: dict[str, Any] = {"settings": {"batch_size": 1}}
    expected = evaluate("tiny_empty", model="hf-caa", fit=mine, **one)
    found = evaluate("tiny_empty", model="steered", steer_path=theirs, **one)
    assert numbers(found, "tiny_empty") == pytest.approx(numbers(expected, "tiny_empty"), abs=4e-6)
    plain = evaluate("tiny_empty", model="hf")
    assert numbers(found, "tiny_empty") != pytest.approx(numbers(plain, "tiny_empty"), abs=0.1)


def test_a_control_vector_has_one_direction_a_block(fitted: Any, tmp_path: Path) -> None:
    fit = fitted("caa", layer=2, multiplier=-1.5)
    reader = gguf.GGUFReader(fit.export(tmp_path / "vector.gguf", to="gguf"))
    [tensor] = reader.tensors
    assert tensor.name == "direction.2"
    expected = -1.5 * fit.fit.tensors["difference"][2].flatten()
    torch.testing.assert_close(torch.tensor(tensor.data), expected)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 1


@pytest.mark.parametrize(
    ("method", "arguments", "to", "words"),
    [
        ("sadi", {"top_k": 2, "delta": 3}, "gguf", "it edits head, and the format carries"),
        ("sadi", {"element": "hidden", "top_k": 2, "delta": 3}, "steered", "the MLP's output"),
        (
            "sadi",
            {"element": "hidden", "hidden_site": "residual", "top_k": 2, "delta": 3},
            "steered",
            "what it does depends on the activations",
        ),
        ("caa", {"layer": 0, "multiplier": 1}, "gguf", "llama.cpp takes no control vector there"),
        ("caa", {"layer": 1, "multiplier": 0}, "gguf", "with a strength of 0"),
    ],
)
def test_what_a_format_cannot_carry_is_refused_with_the_reason(
    fitted: Any, tmp_path: Path, method: str, arguments: dict[str, Any], to: Any, words: str
) -> None:
    path = tmp_path / ("v.gguf" if to == "gguf" else "v.pt")
    with pytest.raises(sadi.UserError, match=words):
        fitted(method, **arguments).export(path, to=to)
    assert not path.exists()


def test_a_shift_of_a_few_entries_can_be_carried(fitted: Any, tmp_path: Path) -> None:
    """SADI's ablation that adds the mean difference, at the residual stream."""
    fit = fitted(
        "sadi", element="hidden", hidden_site="residual", steering="fixed", top_k=3, delta=2
    )
    content = torch.load(fit.export(tmp_path / "v.pt", to="steered"), weights_only=True)
    vectors = torch.stack([each["steering_vector"] for each in content.values()])
    assert int((vectors != 0).sum()) == 3


def test_the_suffix_must_be_the_format_s(fitted: Any, tmp_path: Path) -> None:
    with pytest.raises(sadi.UserError, match=r"must end in \.gguf"):
        fitted("caa", layer=1, multiplier=1).export(tmp_path / "v.pt", to="gguf")


# ------------------------------------------------------------------ the cache


def test_the_cache_lists_fits_with_their_chosen_settings_and_exports_them(
    evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate("tiny_choice", model="hf-caa", n_tune=8, rule="best")
    [mask] = masks_of(results, "tiny_choice")
    evaluate("tiny_text", model="hf-sadi", top_k=2, delta=3)
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main(["fits", *cache]) == 0
    table = capsys.readouterr().out
    [row] = [line for line in table.splitlines() if "caa" in line]
    key = mask["cache_key"]
    assert key[:12] in row
    assert "tiny_choice" in row
    assert f"layer={mask['layer']}, multiplier={mask['multiplier']:g}" in row
    [other] = [line for line in table.splitlines() if "tiny_text" in line]
    assert "–" in other  # nothing was chosen for it
    assert main(["masks", *cache]) == 0
    assert capsys.readouterr().out == table

    path = tmp_path / "mine.safetensors"
    assert main(["fits", "export", key[:8], "--to", "file", "-o", str(path), *cache]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    again = sadi.load(path)
    assert again.method.name == "caa"
    assert again.setting == {"layer": mask["layer"], "multiplier": mask["multiplier"]}
    assert load_fit(path).digest == mask["sha256"]
    vector = tmp_path / "v.gguf"
    changed = ["--setting", "layer=1,multiplier=0.5"]
    assert (
        main(["fits", "export", key[:8], "--to", "gguf", "-o", str(vector), *changed, *cache]) == 0
    )
    [tensor] = gguf.GGUFReader(vector).tensors
    expected = 0.5 * again.fit.tensors["difference"][1].flatten()
    torch.testing.assert_close(torch.tensor(tensor.data), expected)


def test_a_fit_for_which_no_setting_was_taken_is_exported_unsteered(
    evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate("tiny_choice", model="hf-sadi", n_tune=8, rule="sure", grid="1x3")
    [mask] = masks_of(results, "tiny_choice")
    assert mask["delta"] == 0
    path = tmp_path / "mine.safetensors"
    key, cache = mask["cache_key"], ["--cache_dir", str(tmp_path / "cache")]
    assert main(["fits", "export", key, "--to", "file", "-o", str(path), *cache]) == 0
    assert main(["fits", *cache]) == 0
    assert "|unsteered" in capsys.readouterr().out
    again = sadi.load(path)
    assert again.setting == {"delta": 0}
    card = load_fit(path).card
    assert (card["choice"]["steers"], card["choice"]["n_documents"]) == (False, 8)
    assert len(card["chosen_on"]["documents"]) == 8
    assert again.with_setting(top_k=2, delta=3).setting == {"top_k": 2, "delta": 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "ffff", "--to", "file", "-o", "x.safetensors"], "no fit in .* begins so"),
        (["export", "", "--to", "file", "-o", "x.safetensors"], "2 fits begin so"),
    ],
)
def test_a_key_that_names_no_fit_is_refused(
    evaluate: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    for task in ("tiny_choice", "tiny_text"):
        evaluate(task, model="hf-sadi", top_k=2, delta=3)
    capsys.readouterr()
    assert main(["fits", *arguments, "--cache_dir", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(words, said)


def test_a_folder_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fits", "--cache_dir", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
