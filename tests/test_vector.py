"""Vectors of someone else's: what files say, and that nothing is measured of pairs."""

from __future__ import annotations

import itertools
import json
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import gguf
import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import sadi_lmeval as sadi
from helpers.messages import one_line
from helpers.models import tiny_llama
from helpers.results import masks_of, numbers
from helpers.vector_files import vector_files
from sadi_lmeval import cli
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.vector import Vector
from sadi_lmeval.records.steering import SteeringRecord
from sadi_lmeval.settings import Setting
from sadi_lmeval.storage.fit_file import load_fit
from sadi_lmeval.storage.vector_file import load_vectors
from sadi_lmeval.types import Size

LAYERS, WIDTH = 3, 32


def vectors(seed: int = 0) -> Tensor:
    return torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(seed))


def control_vector(path: Path, named: dict[str, Tensor], kind: str = "controlvector") -> Path:
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_string(f"{kind}.model_hint", "llama")
    for name, vector in named.items():
        writer.add_tensor(name, vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def steered(vector: Tensor, **changes: Any) -> dict[str, Any]:
    """An entry of a file of the harness's ``steered``."""
    entry = {"steering_vector": vector, "steering_coefficient": 2.0, "action": "add", "bias": None}
    return {**entry, "head_index": None, **changes}


def written(path: Path, content: Any) -> Path:
    if path.suffix == ".gguf":
        return control_vector(path, content)
    if path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file(content, path)
    return path


# ------------------------------------------------------------------ files

V = vectors()
FILES: dict[str, tuple[str, Any, dict[int | None, Tensor]]] = {
    "all layers in one": ("a.safetensors", {"v": V}, dict(enumerate(V))),
    "one for any layer": ("a.safetensors", {"v": V[1].clone()}, {None: V[1]}),
    "one of a layer": ("a.safetensors", {"layer.2": V[1].clone()}, {2: V[1]}),
    "one a layer, half precision": (
        "a.safetensors",
        {"layers.10": V[1].half(), "layers.9": V[0].bfloat16()},
        {9: V[0].bfloat16().float(), 10: V[1].half().float()},
    ),
    "a control vector": ("a.gguf", {"direction.1": V[0], "direction.2": V[1]}, {1: V[0], 2: V[1]}),
    "a file of steered": (
        "a.pt",
        {"layers.2": steered(V[0]), "layers.0": steered(V[1], steering_coefficient=-1)},
        {0: -V[1], 2: 2 * V[0]},
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_its_format_says(tmp_path: Path, name: str) -> None:
    file, content, expected = FILES[name]
    found = load_vectors(written(tmp_path / file, content))
    assert list(found) == list(expected)
    for layer, vector in expected.items():
        assert found[layer].dtype == torch.float32
        assert torch.equal(found[layer], vector)


class Pickled:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return print, ("it ran",)


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no safetensors": ("a.safetensors", None, "is no safetensors file"),
    "no gguf": ("a.gguf", None, "cannot be read"),
    "no pt": ("a.pt", None, "cannot be read"),
    "a pickle that runs something": ("a.pt", {"layers.1": Pickled()}, "cannot be read"),
    "a list": ("a.pt", [V], "is no mapping of hook points"),
    "nothing": ("a.pt", {}, "has no vector"),
    "a clamp": ("a.pt", {"layers.1": steered(V[0], action="clamp")}, r"\(its action is clamp\)"),
    "a head": ("a.pt", {"layers.1": steered(V[0], head_index=2)}, r"\(its head_index is 2\)"),
    "a bias": ("a.pt", {"layers.1": steered(V[0], bias=V[1])}, r"\(its bias is a tensor\)"),
    "an MLP": ("a.pt", {"layers.1.mlp": steered(V[0])}, r"inside a block: layers.1.mlp\)"),
    "an expert": ("a.pt", {"layers.1.mlp.experts.0": steered(V[0])}, "inside a block"),
    "no entry": ("a.pt", {"layers.1": 3}, "it has no action or no steering_vector"),
    "a layer twice": (
        "a.pt",
        {"layers.1": steered(V[0]), "model.layers.1": steered(V[0])},
        "'model.layers.1' is another vector of layer 1",
    ),
    "names without layers": ("a.safetensors", {"a1": V[0] + 0, "b": V[1] + 0}, "'b' names no"),
    "a cube": ("a.safetensors", {"v": V[None]}, r"float32 of shape \[1, 3, 32\]"),
    "whole numbers": ("a.safetensors", {"v": V.int()}, "vector of layer 0 is a torch.int32"),
    "not finite": ("a.safetensors", {"v": V / 0}, "of layer 0 has values that are not finite"),
    "layer 0 in GGUF": ("a.gguf", {"direction.0": V[0]}, "has a tensor 'direction.0'"),
    "another tensor in GGUF": ("a.gguf", {"blk.1": V[0]}, "has a tensor 'blk.1'"),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_vector_is_refused_in_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, content, words = REFUSED[name]
    path = tmp_path / file
    if content is None:
        path.write_bytes(b"no such thing" * 9)
    else:
        written(path, content)
    with pytest.raises(UserError, match=words) as caught:
        load_vectors(path)
    assert str(path) in one_line(caught)
    assert "it ran" not in capsys.readouterr().out


@pytest.mark.quick
def test_a_gguf_file_of_a_model_is_no_control_vector(tmp_path: Path) -> None:
    path = control_vector(tmp_path / "m.gguf", {"direction.1": V[0]}, kind="llama")
    with pytest.raises(UserError, match="of architecture llama, not a controlvector"):
        load_vectors(path)


@pytest.mark.quick
def test_without_the_package_gguf_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"needs the package gguf; pip install sadi-lmeval\[gguf\]"):
        load_vectors(path)


# ------------------------------------------------------------------ the method


@pytest.fixture(scope="module")
def site() -> Site:
    return find_site(tiny_llama(40), "hidden", "residual")


def method_of(path: Path, content: Any) -> Vector:
    return Vector(vector=str(written(path, content)))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("content", "usual", "layers"),
    [
        ({"v": V}, -1, (-1, 0, 1, 2)),
        ({"l1": V[0].clone()}, -1, (1,)),
        ({"v": V[0].clone()}, None, (0, 1, 2)),
    ],
)
def test_what_is_tried_is_what_the_file_has(
    tmp_path: Path, content: Any, usual: int | None, layers: tuple[int, ...]
) -> None:
    method = method_of(tmp_path / "a.safetensors", content)
    assert method.usual == (usual, 1.0)
    assert method.search_space(Size(3, 32)).values == (layers, (0.5, 1.0, 1.5, 2.0))


@pytest.mark.quick
def test_each_layer_gets_its_own_vector_alone_or_with_all(tmp_path: Path, site: Site) -> None:
    method = method_of(tmp_path / "a.safetensors", {"l0": V[0].clone(), "l2": V[2].clone()})
    settings = [Setting(-1, 2.0), Setting(2, -1.0), Setting(-1, 0.0)]
    tensors = method.collector(site, 1, 0).tensors("")
    edits = method.edits(site, tensors, settings, 0)
    assert edits.first_layers == [0, 2, LAYERS]
    rows = torch.ones(3, WIDTH)
    nothing = torch.zeros(WIDTH)
    added = [[2 * V[0], nothing, nothing], [nothing] * 3, [2 * V[2], -V[2], nothing]]
    for layer in range(LAYERS):
        found = edits.apply(layer, rows, torch.arange(3))
        assert torch.equal(found, rows + torch.stack(added[layer]))
    with pytest.raises(UserError, match=r"layer=1: .* has layers 0, 2"):
        method.edits(site, tensors, [Setting(1, 1.0)], 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"v": torch.ones(3, 31)}, "a vector of width 31, and this model's residual stream has 32"),
        ({"l3": torch.ones(32)}, "has a vector of layer 3, and this model has layers 0 to 2"),
        ({"v": torch.ones(4, 32)}, "has a vector of layer 3, and this model has layers 0 to 2"),
    ],
)
def test_a_vector_of_another_model_is_refused(
    tmp_path: Path, site: Site, content: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        method_of(tmp_path / "a.safetensors", content).collector(site, 1, 0)
    one_line(caught)


@pytest.mark.quick
def test_without_a_file_there_is_no_vector() -> None:
    for given in ({}, {"layer": 1, "multiplier": 1}):
        with pytest.raises(UserError, match="vector: is missing; the vector, for one"):
            read_arm("vector", given)
    with pytest.raises(UserError, match="vector=nowhere: no such file"):
        read_arm("vector", {"vector": "nowhere"})


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize("form", ["safetensors", "gguf", "pt"])
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_text"])
def test_the_vector_of_caa_out_of_a_file_is_caa(
    evaluate: Any, tmp_path: Path, task: str, form: str
) -> None:
    setting = {"layer": 1, "multiplier": 1.5}
    own = evaluate(task, model="hf-caa", **setting)
    [mask] = masks_of(own, task)
    v = load_fit(Path(mask["file"])).tensors["difference"].flatten(1)
    content: Any = {"v": v.clone()}
    if form == "gguf":
        content = {f"direction.{n}": v[n] for n in (1, 2)}
    if form == "pt":
        content = {"layers.1": steered(v[1], steering_coefficient=1.0)}
    path = written(tmp_path / f"caa.{form}", content)
    given = {"vector": str(path), "n_pairs": None, "cache_dir": str(tmp_path / "none"), **setting}
    found = evaluate(task, model="hf-vector", **given)
    texts = [[s["resps"] for s in run["samples"][task]] for run in (found, own)]
    assert texts[0] == texts[1]
    assert not (tmp_path / "none").exists()
    record = found["config"]["sadi"][task]
    assert record["fit_file"] == path.name
    assert "recipe" not in record
    assert SteeringRecord.from_json(record).to_json() == record
    assert str(path) not in json.dumps(record)
    [fit] = record["fits"]
    assert (fit["n_pairs"], fit["cache_key"], fit["source"]) == (None, "", path.name)
    plain = evaluate(task, model="hf-caa", method="none")
    assert [s["resps"] for s in plain["samples"][task]] != texts[0]


@pytest.mark.parametrize(("file", "form"), [("v.gguf", "gguf"), ("v.pt", "steered")])
def test_what_is_exported_here_is_read_again(
    evaluate: Any,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    file: str,
    form: Any,
) -> None:
    pair = {"prompt": "is a stone soft", "positive": "no never", "negative": "yes it is"}
    given: dict[str, Any] = {"layer": 1, "multiplier": 2, "cache_dir": str(tmp_path)}
    fit = sadi.fit(harness_model, tokenizer, [pair] * 2, "caa", **given)
    own = evaluate("tiny_choice", model="hf-caa", fit=str(fit.save(tmp_path / "own.safetensors")))
    path = fit.export(tmp_path / file, to=form)
    found = evaluate("tiny_choice", model="hf-vector", vector=str(path), multiplier=1)
    assert numbers(found, "tiny_choice") == pytest.approx(numbers(own, "tiny_choice"), abs=1e-5)


def test_at_a_prompt_of_one_token_the_harness_s_steered_says_the_same(
    evaluate: Any, model_folder: Path, task_manager: Any, tmp_path: Path
) -> None:
    """It edits every token; after a prompt of one token, that is every token from the last on."""
    content = {"layers.0": steered(V[0]), "layers.2": steered(V[2], steering_coefficient=-0.5)}
    path = written(tmp_path / "steered.pt", content)
    given = {"vector": str(path), "multiplier": 1}
    found = evaluate("tiny_empty", model="hf-vector", limit=12, n_pairs=None, **given)
    theirs = lm_eval.simple_evaluate(
        model="steered",
        model_args={"pretrained": str(model_folder), "steer_path": str(path), "dtype": "float32"},
        tasks=["tiny_empty"],
        task_manager=task_manager,
        device="cpu",
        limit=12,
        batch_size=4,
        bootstrap_iters=0,
    )
    scores = [
        [float(r[0][0]) for sample in sorted(run["samples"]["tiny_empty"],
                                             key=lambda s: s["doc_id"]) for r in sample["resps"]]
        for run in (found, theirs)
    ]  # fmt: skip
    assert len(scores[0]) == 36
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    plain = evaluate("tiny_empty", model="hf-caa", method="none", limit=12)
    assert numbers(plain, "tiny_empty") != pytest.approx(scores[0], abs=0.1)


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds"])
def test_a_multiplier_is_chosen_on_documents_that_are_not_scored_without_any_pair(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """In each fold by the documents of the others."""
    monkeypatch.setattr("sadi_lmeval.pairs.plan.build_pairs", None)
    given = {"vector": vector_files()[0], "layer": 1, "multiplier": "auto", "n_tune": 8}
    results = evaluate(task, model="hf-vector", limit=50, n_pairs=None, **given)
    masks = results["config"]["sadi"][task]["fits"]
    assert len(masks) == (2 if task == "tiny_folds" else 1)
    for mask in masks:
        tried = [(row["layer"], row["multiplier"]) for row in mask["tuning"]["table"]]
        assert tried == [(0, 0), (1, 0.5), (1, 1), (1, 1.5), (1, 2)]
        assert mask["tuning"]["documents"] == 8


def test_a_file_of_the_same_name_with_another_vector_is_another_arm(
    model_folder: Path,
    tasks_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a comparison with a method that measures, on its pairs."""
    init = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", init)
    path = tmp_path / "v.safetensors"
    save_file({"v": vectors(1)}, path)
    model = f"pretrained={model_folder},cache_dir={tmp_path},n_pairs=12,n_tune=8,vector={path}"
    command = [
        *("compare", "--methods", "none,caa,vector", "--settings", "4", "--device", "cpu"),
        *("--tasks", "tiny_choice", "--include_path", str(tasks_folder), "--limit", "5"),
        *("--output_path", str(tmp_path / "out"), "--batch_size", "4", "--model_args", model),
    ]
    assert cli.main(command) == 0
    records = {
        name: json.loads((tmp_path / f"out/records/tiny_choice.{name}.json").read_text())
        for name in ("caa", "vector")
    }
    assert len(records["caa"]["pairs_digests"]) == 1
    assert records["vector"]["pairs_digests"] == []
    assert records["vector"]["steering"]["vector"].startswith("v.safetensors sha256:")
    tables = {name: record["steering"]["fits"][0]["tuning"]["table"]
              for name, record in records.items()}  # fmt: skip
    assert tables["caa"][0]["margin"] == tables["vector"][0]["margin"]  # the same documents
    assert cli.main(command) == 0
    save_file({"v": vectors(2)}, path)
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "it differs in vector" in capsys.readouterr().err


def test_a_sweep_takes_a_vector_too(
    model_folder: Path, tasks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", init)
    lines = []
    for methods in ("vector", "caa,vector"):
        output = tmp_path / methods
        model = f"pretrained={model_folder},cache_dir={tmp_path},vector={vector_files()[0]}"
        command = [
            *("sweep", "--methods", methods, "--layer", "1", "--multiplier=1,-2", "--limit", "6"),
            *("--tasks", "tiny_choice", "--include_path", str(tasks_folder), "--device", "cpu"),
            *("--model_args", f"{model},n_tune=8", "--output", str(output)),
        ]
        assert cli.main(command) == 0
        lines.append([json.loads(line) for line in output.read_text().splitlines()])
    assert [line["method"] for line in lines[0]] == ["none", "vector", "vector"]
    swept = [[line for line in each if line["method"] == "vector"] for each in lines]
    for one, other in itertools.pairwise(swept):
        assert [line["multiplier"] for line in one] == [line["multiplier"] for line in other]


def test_a_vector_has_no_labels_to_shuffle(evaluate: Any) -> None:
    given = {"vector": vector_files()[0], "layer": 1, "multiplier": 1, "labels": "shuffled"}
    with pytest.raises(UserError, match="hf-vector measures no pairs, so it has no") as caught:
        evaluate("tiny_choice", model="hf-vector", **given)
    one_line(caught)


def test_a_fit_is_not_taken_for_a_vector(evaluate: Any, tmp_path: Path) -> None:
    [mask] = masks_of(evaluate("tiny_choice", model="hf-caa", layer=1), "tiny_choice")
    given = {"vector": vector_files()[0], "mask": mask["file"], "layer": 1, "multiplier": 1}
    with pytest.raises(UserError, match="kind mean_difference, but this run has vectors") as caught:
        evaluate("tiny_choice", model="hf-vector", **given)
    one_line(caught)
