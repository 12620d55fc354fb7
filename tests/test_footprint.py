"""``sadi-lmeval plan``: what it says of memory and tokens is what runs hold and compute."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.models import tiny, tiny_llama
from sadi_lmeval import cli
from sadi_lmeval.architecture.sites import check_sites, find_site
from sadi_lmeval.commands import plan
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.methods.registry import method_class
from sadi_lmeval.model import model_class
from sadi_lmeval.passes import footprint
from sadi_lmeval.passes.activations import TokenPair
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward, Trunk
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.sequences import Batch, Past

BEGINNING = tuple(range(3, 30))
REQUESTS = [
    Continuation((*(BEGINNING if i % 3 else ()), *range(5 + i % 7), 31 + i), (7, 8 + k)[: 1 + k], 0)
    for i in range(12)
    for k in range(2)
]
PAIRS = [TokenPair([*BEGINNING, 5, i, 7], [*BEGINNING, 5, i, 8, 9]) for i in range(3, 15)]
BIG: dict[str, tuple[dict[str, int], float, int]] = {
    "7B": (
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
        6.738e9,
        1,
    ),
    "70B": (
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
        68.977e9,
        2,
    ),
    "400B": (
        {
            "hidden_size": 16384,
            "intermediate_size": 53248,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        405.853e9,
        11,
    ),
}
"""Of the Llamas: configuration, parameters, devices of 80 GB in bfloat16."""


def save_config(folder: Path, config: Any) -> Path:
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_loaded_model(tmp_path: Path, tied: bool, dtype: str) -> None:
    tiny_llama(40, tie_word_embeddings=tied).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    without = plan.model_without_weights({"pretrained": str(tmp_path)})
    assert all(each.is_meta for each in without.parameters())
    weights = footprint.weights_of(without)
    assert weights.total == bytes_of(*loaded.parameters(), *loaded.buffers())
    assert len(weights.blocks) == 3
    assert weights == footprint.weights_of(loaded)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_keys_and_values_are_those_that_a_shared_beginning_keeps(kind: str) -> None:
    model = tiny(kind)
    past = Forward(model).prefix(BEGINNING)
    assert past is not None
    kept = bytes_of(*past.keys, *past.values)
    assert footprint.key_value_bytes(model.to("meta")) * len(BEGINNING) == kept


def test_a_grid_keeps_no_more_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(64)
    engine, site = Engine(model, 0, None, 128), find_site(model, "hidden")
    gains = torch.zeros(3, site.layers, site.width)
    for layer in range(3):
        gains[layer, layer, 0] = 1.0  # a setting that begins with each layer
    kept: list[int] = []
    trunk = Forward.trunk

    def watched(self: Forward, *arguments: Any, **keywords: Any) -> Any:
        found: tuple[Trunk, Any] = trunk(self, *arguments, **keywords)
        past: Past = found[0].past
        kept.append(bytes_of(*past.keys, *past.values, *found[0].states.values()))
        return found

    requests = [request for request in REQUESTS if request.context[0] != BEGINNING[0]]
    engine.score_grid(requests[:1], [DiagonalEdits(site, [Edit(gains[0])])], lambda *_: None)
    monkeypatch.setattr(Forward, "trunk", watched)
    edits = DiagonalEdits(site, [Edit(gain) for gain in gains])
    engine.score_grid(requests, [edits], lambda *_: None)
    key_value = footprint.key_value_bytes(model)
    said = plan._grid_bytes(model, site, key_value, requests, engine.bounds)
    assert 0 < max(kept) <= said <= 1.01 * max(kept)


@pytest.mark.parametrize(
    ("method", "pairs"), [("sadi", 40), ("iti", 40), ("caa", 7), ("clamping", 9), ("austeer", 9)]
)
def test_a_fit_keeps_what_is_said(method: str, pairs: int) -> None:
    arm = read_arm(method, {})
    assert arm.method is not None
    site = check_sites(tiny_llama(64).to("meta"), *arm.method.place)
    assert site is not None
    collector = method_class(method)().collector(site, pairs, 0)
    tensors = [each for each in vars(collector).values() if isinstance(each, torch.Tensor)]
    assert plan.fit_bytes(arm, site, pairs) == bytes_of(*tensors) > 0


class Watched:
    """What the passes of a model compute: their number, and their tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = self.tokens = 0
        run = Forward._run

        def counted(forward: Forward, batch: Batch, *arguments: Any) -> Any:
            self.passes, self.tokens = self.passes + 1, self.tokens + batch.input_ids.numel()
            return run(forward, batch, *arguments)

        monkeypatch.setattr(Forward, "_run", counted)

    def taken(self) -> footprint.Computed:
        found = footprint.Computed(self.passes, self.tokens)
        self.passes = self.tokens = 0
        return found


@pytest.mark.parametrize("rows", [None, 3])
def test_passes_and_tokens_are_those_of_a_run(
    monkeypatch: pytest.MonkeyPatch, rows: int | None
) -> None:
    model = tiny_llama(64)
    engine, site = Engine(model, 0, rows, 128), find_site(model, "hidden")
    gains = torch.zeros(5, site.layers, site.width)
    gains[:, 1, :5] = torch.eye(5)
    edits = DiagonalEdits(site, [Edit(gain) for gain in gains])
    engine.score(REQUESTS, edits, lambda scores: None)  # what the model allows is tried once
    assert engine.can_resume
    watched = Watched(monkeypatch)
    engine.score(REQUESTS, edits, lambda scores: None)
    assert watched.taken() == footprint.scoring(REQUESTS, engine.bounds)
    engine.read([(site, MeanDifference(site, len(PAIRS)))], PAIRS, "")
    assert watched.taken() == footprint.reading(PAIRS, engine.bounds)
    found = footprint.grid(REQUESTS, engine.bounds)
    engine.score_grid(REQUESTS, [], lambda *_: None)
    assert watched.taken() == found.trunk
    engine.score_grid(REQUESTS, [edits], lambda *_: None)
    taken = watched.taken()
    assert found.trunk.tokens < taken.tokens <= found.trunk.tokens + edits.count * found.own


def test_texts_of_a_plan_are_those_that_a_run_asks_for(
    evaluate: Any, model_folder: Path, tasks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[Any]] = {"score": [], "read": [], "score_grid": []}
    for name, found in asked.items():
        monkeypatch.setattr(Engine, name, _noting(getattr(Engine, name), found))
    given = {"n_pairs": 12, "n_tune": 6, "grid": "1/3x4/9"}
    evaluate("tiny_choice", limit=5, **given)
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tasks_folder / "datasets")
    manager = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", manager)
    said: list[plan.Work] = []
    monkeypatch.setattr(plan, "_say", lambda *arguments: said.append(arguments[-1]))
    text = ",".join(f"{key}={value}" for key, value in given.items())
    arguments = ["--model_args", f"pretrained={model_folder},{text}", "--tasks", "tiny_choice"]
    arguments += ["--limit", "5", "--include_path", str(tasks_folder), "--device", "cpu"]
    assert cli.main(["plan", *arguments]) == 0
    [work] = said
    assert _plain(work.requests) == _plain(asked["score"][0])
    assert work.pairs == [asked["read"][0]]
    assert sorted(_plain(work.held_out[0])) == sorted(
        request for part in asked["score_grid"] for request in _plain(part)
    )
    assert work.settings == 4


def _noting(method: Any, found: list[Any]) -> Any:
    def noted(engine: Engine, *arguments: Any, **keywords: Any) -> Any:
        found.append(list(arguments[1 if method.__name__ == "read" else 0]))
        return method(engine, *arguments, **keywords)

    return noted


def _plain(requests: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(context, tokens) for context, tokens, *_ in requests]


@pytest.mark.parametrize(
    "size", ["7B", *(pytest.param(size, marks=pytest.mark.slow) for size in ("70B", "400B"))]
)
def test_models_too_large_to_load_are_planned_from_their_configuration(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, parameters, devices = BIG[size]
    folder = save_config(tmp_path, LlamaConfig(**changes, dtype="bfloat16"))
    options = ["--device_memory", "80", "--documents", "20", "--choices", "2"]
    given = f"pretrained={folder},element=head,n_pairs=8,n_tune=8"
    assert cli.main(["plan", "--model_args", given, *options]) == 0
    out = capsys.readouterr().out
    assert f"{parameters / 1e9:.3f} billion parameters in bfloat16" in out
    found = re.search(r"[|] weights [|] ([0-9.]+) [|]", out)
    assert found is not None
    assert float(found[1]) == pytest.approx(2 * parameters / 2**30, rel=1e-4)
    expected = "One device of 80 GB" if devices == 1 else f"{devices} devices of 80 GB"
    assert expected in out


def test_tensor_parallelism_is_refused_with_what_to_use_instead(model_folder: Path) -> None:
    with pytest.raises(UserError, match=r"tp_plan=auto: .* pass parallelize=True") as refused:
        model_class("sadi")(str(model_folder), tp_plan="auto")
    assert "\n" not in str(refused.value)


def test_devices_hold_whole_blocks() -> None:
    weights = footprint.Weights((30, 30, 30, 30), 20)
    assert weights.devices(200, 60) == 1
    assert weights.devices(110, 60) == 4  # 20 and 30, then one block each
    assert weights.devices(125, 60) == 2 + 1
    assert weights.devices(89, 60) is None
    assert weights.devices(110, 60, 20) == 5
    assert weights.devices(109, 60, 20) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch_size", "0"], "--batch_size 0: must be a whole number of at least 1, or auto"),
        (["--documents", "0"], "--documents 0: must be at least 1"),
        (["--shared_tokens", "200"], "must be below --prompt_tokens 200"),
        (["--model_args", "dtype=float32"], "--model_args: pretrained=MODEL is missing"),
        (["--model_args", "pretrained=X,load_in_4bit=True"], "load_in_4bit: only plain weights"),
        (["--model_args", "pretrained=/nowhere/at/all"], "no model can be planned"),
    ],
)
def test_a_mistake_costs_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options if "--model_args" in options else ["--model_args", "pretrained=X", *options]
    assert cli.main(["plan", *given]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
