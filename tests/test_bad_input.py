"""A user's mistake costs one clear line, an exit code that is not zero, and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM, XLMConfig, XLMWithLMHeadModel

from sadi_lmeval.errors import UserError

GOOD = {"top_k": 2, "delta": 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"element": "heads"}, ["element=heads", "'head'"]),
        ({"element": "layer"}, ["element=layer", "head, hidden, neuron"]),
        ({"selection": "topabs"}, ["selection=topabs", "'top_abs'"]),
        ({"steering": "fixd"}, ["'fixed'"]),
        ({"activations": "clear"}, ["'clean'"]),
        ({"top_k": 0}, ["top_k=0", "at least 1"]),
        ({"top_k": -3}, ["top_k=-3"]),
        ({"top_k": 2.5}, ["top_k=2.5", "whole number"]),
        ({"delta": "big"}, ["delta=big", "finite number", "delta_weights"]),
        ({"delta": float("nan")}, ["delta=nan"]),
        ({"delta": float("inf")}, ["delta=inf"]),
        ({"n_pairs": 0}, ["n_pairs=0"]),
        ({"folds": 1}, ["folds=1", "at least 2"]),
        ({"mask": "absent.safetensors"}, ["absent.safetensors", "no such file"]),
        ({"include_path": "absent"}, ["absent", "no such folder"]),
        ({"topk": 3}, ["'topk'", "'top_k'"]),
        ({"elment": "head"}, ["'elment'", "'element'"]),
        ({"attn_implementatoin": "eager"}, ["attn_implementation"]),
        ({"element": "x", "top_k": 0, "delta": "y"}, ["element=x", "top_k=0", "delta=y"]),
        ({"grid": "1/13x3"}, ["top_k=13", "12 entries", "3 layers of 4"]),
        ({"grid": "1/145x3", "element": "neuron"}, ["top_k=145", "144 entries"]),
        ({"top_k": 13, "delta": "auto"}, ["top_k=13", "12 entries"]),
        ({"grid": "1/2"}, ["grid=1/2", "1/2/4x4/9"]),
        ({"grid": "0xnan/4"}, ["'0'", "'nan'"]),
        ({"grid": {"top_k": [], "delta": [1]}}, ["no K"]),
        ({"grid": "1x3", "top_k": 1, "delta": 3}, ["grid=", "fixed top_k and delta"]),
        ({"grid": "1/2x3/4", "max_settings": 3}, ["4 settings", "max_settings=3"]),
        ({"max_settings": 0}, ["max_settings=0"]),
        ({"n_tune": 0}, ["n_tune=0", "at least 1"]),
        ({"objective": "acuracy"}, ["objective=acuracy", "exact_match, likelihood, metric"]),
        ({"method": "non"}, ["method=non", "'none'"]),
    ],
)
def test_a_faulty_argument_is_refused_before_the_model_is_loaded(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError) as caught:
        evaluate("tiny_choice", **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("hf-sadi", {"alpha": 3}, ["alpha=3: hf-sadi has no alpha", "top_k and delta"]),
        ("hf-sadi", {"layer": 1, "multiplier": 2}, ["layer=1", "multiplier=2"]),
        ("hf-sadi", {"direction": "probe"}, ["direction=probe: hf-sadi has no direction"]),
        ("hf-iti", {"delta": 3}, ["delta=3: hf-iti has no delta", "top_k and alpha"]),
        ("hf-iti", {"element": "head"}, ["element=head: hf-iti has no element"]),
        ("hf-iti", {"method": "sadi"}, ["method=sadi: allowed: iti, none"]),
        ("hf-iti", {"top_k": 13}, ["top_k=13", "12 entries", "3 layers of 4"]),
        ("hf-iti", {"grid": "1/13x3"}, ["top_k=13", "12 entries"]),
        ("hf-iti", {"alpha": "big"}, ["alpha=big: must be a finite number"]),
        ("hf-iti", {"alfa": 3}, ["'alfa'", "'alpha'"]),
        ("hf-caa", {"top_k": 3}, ["top_k=3: hf-caa has no top_k", "layer and multiplier"]),
        ("hf-caa", {"alpha": 3, "delta": 4}, ["alpha=3", "delta=4"]),
        ("hf-caa", {"hidden_site": "mlp"}, ["hidden_site=mlp: hf-caa has no hidden_site"]),
        ("hf-caa", {"layer": 3}, ["layer=3", "layers 0 to 2"]),
        ("hf-caa", {"layer": 3, "multiplier": "auto"}, ["layer=3", "layers 0 to 2"]),
        ("hf-caa", {"grid": "0/7/3x1"}, ["layer=7", "layers 0 to 2"]),
        ("hf-caa", {"layer": -1}, ["layer=-1", "at least 0 or auto"]),
        ("hf-caa", {"grid": "0/1x0"}, ["multiplier 0 alone steers nothing"]),
    ],
)
def test_an_argument_that_a_method_cannot_have_is_refused_before_the_model_is_loaded(
    evaluate: Any,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    arguments: dict[str, Any],
    words: list[str],
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError) as caught:
        evaluate("tiny_choice", model=model, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("tiny_choice", {"recipe": "rightwrong"}, ["'rightwrong'", "'right_wrong'"]),
        ("tiny_choice", {"top_k": 13}, ["top_k=13", "12 entries", "3 layers of 4"]),
        ("tiny_choice", {"n_pairs": 71}, ["makes 70", "70 documents", "71 are needed"]),
        ("tiny_folds", {"n_pairs": 26}, ["makes 25", "25 documents"]),
        ("tiny_text", {"recipe": "right_wrong"}, ["contrasts choices", "other_target"]),
        ("tiny_same_split", {}, ["'validation'", "the split that is scored", "folds=2"]),
        ("tiny_rolling", {}, ["loglikelihood_rolling", "--model hf"]),
        (
            "tiny_choice",
            {"mask_from": "tiny_choise"},
            ["unknown task 'tiny_choise'", "tiny_choice"],
        ),
    ],
)
def test_what_the_task_cannot_do_is_said_in_one_line(
    evaluate: Any, tmp_path: Path, task: str, arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(task, **{**GOOD, **arguments})
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.slow
def test_a_name_that_is_like_no_other_is_not_answered_with_thousands(evaluate: Any) -> None:
    with pytest.raises(UserError, match="unknown task 'zzzzqqq'") as caught:
        evaluate("tiny_choice", mask_from="zzzzqqq", **GOOD)
    assert len(str(caught.value)) < 1000


def test_the_evaluated_split_can_be_cross_fitted_on_request(evaluate: Any) -> None:
    found = evaluate("tiny_same_split", folds=2, **GOOD)["config"]["sadi"]["tiny_same_split"]
    assert found["folds"] == 2


def test_all_faults_of_a_recipe_file_are_told_at_once(evaluate: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("recipe: mine\ncontrast: choices\nnegatives: all\ngolds: 1\n")
    with pytest.raises(UserError) as caught:
        evaluate("tiny_choice", recipe=str(file), **GOOD)
    for word in ("bad.yaml", "'negatives'", "'golds'", "'choices'"):
        assert word in str(caught.value)


def test_a_damaged_or_foreign_mask_is_refused(evaluate: Any, tmp_path: Path) -> None:
    own = evaluate("tiny_choice", **GOOD)["config"]["sadi"]["tiny_choice"]["fits"][0]["file"]
    content = Path(own).read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content[:-5])
    with pytest.raises(UserError, match="damaged"):
        evaluate("tiny_choice", mask=str(damaged), **GOOD)
    damaged.write_bytes(b"not a mask")
    with pytest.raises(UserError, match="not a fit"):
        evaluate("tiny_choice", mask=str(damaged), **GOOD)
    with pytest.raises(UserError, match="element head, but this run has neuron"):
        evaluate("tiny_choice", mask=own, element="neuron", **GOOD)
    with pytest.raises(UserError, match="kind mean_difference, but this run has probes"):
        evaluate("tiny_choice", model="hf-iti", mask=own, top_k=2)
    with pytest.raises(UserError, match="element head, but this run has hidden"):
        evaluate("tiny_choice", model="hf-caa", mask=own, layer=1)


def test_a_mask_built_from_scored_documents_is_refused_and_says_which(evaluate: Any) -> None:
    folds = evaluate("tiny_folds", **GOOD)["config"]["sadi"]["tiny_folds"]
    own = folds["fits"][0]["file"]  # built from the second half of what is scored
    with pytest.raises(UserError, match="was built from a document that task tiny_folds scores"):
        evaluate("tiny_folds", limit=50, mask=own, **GOOD)


def test_an_unwritable_cache_costs_a_warning_only(
    evaluate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    evaluate("tiny_choice", cache_dir=str(tmp_path / "file" / "masks"), **GOOD)
    assert "cannot be written" in caplog.text
    assert "cache_dir=FOLDER" in caplog.text


def test_a_model_that_is_no_causal_language_model_is_refused(
    evaluate: Any, tmp_path: Path, tokenizer: Any
) -> None:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="not a causal language model"):
        evaluate("tiny_choice", pretrained=str(tmp_path / "bert"), **GOOD)


def test_an_architecture_without_known_sites_is_refused(
    evaluate: Any, tmp_path: Path, tokenizer: Any
) -> None:
    config = XLMConfig(vocab_size=len(tokenizer), emb_dim=16, n_layers=1, n_heads=2)
    XLMWithLMHeadModel(config).save_pretrained(tmp_path / "xlm")
    tokenizer.save_pretrained(tmp_path / "xlm")
    (tmp_path / "xlm" / "model.safetensors").unlink()  # it is said before they are needed
    with pytest.raises(UserError, match=r"'xlm'.*known are .*llama"):
        evaluate("tiny_choice", pretrained=str(tmp_path / "xlm"), **GOOD)


def test_the_command_prints_one_line_and_no_traceback(lm_eval: Any, tmp_path: Path) -> None:
    done = lm_eval("--tasks", "tiny_choice", "--output_path", str(tmp_path / "out"), top_k=0)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "sadi-lmeval: error: top_k=0: must be a whole number of at least 1 or auto"
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
