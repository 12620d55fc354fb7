"""Two inputs with different outputs never share a key; and nothing of a run outlives it."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from helpers.models import tiny_llama
from sadi_lmeval.harness.run_tasks import load_tasks
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.identity.model import model_card, model_identity, tokenizer_digest
from sadi_lmeval.identity.task import task_digest
from sadi_lmeval.identity.weights import weights_digest
from sadi_lmeval.model import SteeredModel, model_class
from sadi_lmeval.passes import engine

TEXTS = [[5, 9, 7, 4, 8, 33, 21, 40], [11, 3, 52, 6, 6, 19, 2, 2]]
STEER = {"top_k": 3, "delta": 4}


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor(TEXTS)).logits
    return found


def key(model: nn.Module, **arguments: Any) -> str:
    return key_of(model_identity(model_card(model, "m", arguments)))


def another(name: str, value: Any) -> list[Any]:
    """Other values of a field of a configuration."""
    if name == "hidden_act":
        return ["gelu", "relu"]
    if name == "rope_parameters":
        theta = value["rope_theta"]
        return [{**value, "rope_theta": theta * 7}, {"rope_type": "linear", "factor": 4.0,
                                                     "rope_theta": theta}]  # fmt: skip
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, max(1, value // 2)]
    if isinstance(value, float):
        return [value * 1000 + 1.0, value / 7]
    return [] if value is None or not isinstance(value, str) else [value + "x"]


# ------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def plain() -> LlamaForCausalLM:
    return tiny_llama(60)


def test_every_field_of_a_configuration_that_changes_logits_changes_the_key(
    plain: LlamaForCausalLM,
) -> None:
    """The weights stay the same, as after an edit of config.json."""
    expected, before = logits_of(plain), key(plain)
    assert key(copy.deepcopy(plain)) == before
    counted = {"built": 0, "differ": 0}
    for name, value in plain.config.to_dict().items():
        for other in another(name, value):
            config = copy.deepcopy(plain.config)
            try:
                setattr(config, name, other)
                model = LlamaForCausalLM(config).eval()
                model.load_state_dict(plain.state_dict())
                found = logits_of(model)
            except Exception:  # other shapes, or no such value: no such model
                continue
            counted["built"] += 1
            if found.shape != expected.shape or not torch.equal(found, expected):
                counted["differ"] += 1
                assert key(model) != before, (name, other)
    assert counted["built"] > 20
    assert counted["differ"] >= 5  # rope twice, the norm's epsilon, the activation, ties


ARGUMENTS: dict[str, list[Any]] = {
    "dtype": ["bfloat16", "float16"],
    "softmax_dtype": ["float64"],
    "mixed_precision_dtype": ["bfloat16"],
    "max_length": [6, 9],
    "add_bos_token": [True],
    "prefix_token_id": [7],
    "truncation": [True],
    "logits_cache": [False],
    "use_fast_tokenizer": [False],
    "enable_thinking": [False],
    "think_end_token": ["x"],
    "chat_template_args": [{"a": 1}],
    "attn_implementation": ["eager"],
    "rms_norm_eps": [0.5],
    "rope_parameters": [{"rope_type": "default", "rope_theta": 3.0}],
    "hidden_act": ["gelu"],
    "batch_size": [1],
    "max_batch_size": [2],
    "backend": ["causal"],
    "parallelize": [False],
    "autogptq": [False],
    "gptqmodel": [False],
    "trust_remote_code": [False],
}
"""Arguments of ``hf``, and of ``from_pretrained``, with other values than the usual ones."""
PLACES = frozenset(
    "self pretrained revision subfolder tokenizer device max_memory_per_gpu max_cpu_memory "
    "offload_folder tp_plan peft delta gguf_file kwargs".split()
)
"""Arguments of ``hf`` that say where something is, or need something that is not here."""


def asked(task: str = "t") -> list[Instance]:
    texts = [
        ("the cat sees a dog and", " the bird"),
        ("", " fish stone"),
        ("one two three", " four"),
    ]
    return [
        Instance("loglikelihood", {"n": i}, pair, i, metadata=(task, i, 1))
        for i, pair in enumerate(texts)
    ]


def test_every_argument_of_hf_that_changes_scores_changes_the_key(model_folder: Path) -> None:
    listed = set(inspect.signature(HFLM.__init__).parameters)
    assert listed <= set(ARGUMENTS) | PLACES, "say what other value an argument may have"

    def run(**arguments: Any) -> tuple[list[Any], str]:
        given = {"batch_size": 4, "method": "none", **arguments}
        lm = model_class("sadi")(pretrained=str(model_folder), device="cpu", **given)
        continuations = [lm.continuation(*request.args) for request in asked()]
        scores: list[Any] = [None] * len(continuations)

        def keep(found: Any) -> None:
            for index, score in found:
                scores[index] = score

        lm.engine.score(continuations, None, keep)
        return scores, lm.steering_digest(lm.arm, None, 0)

    expected, before = run()
    assert run() == (expected, before)

    def alike(one: list[Any], other: list[Any]) -> bool:
        """But for rounding: rows of other batches are summed in another order."""
        gaps = [abs(a[0] - b[0]) for a, b in zip(one, other, strict=True)]
        return max(gaps) < 1e-5 and [a[1] for a in one] == [b[1] for b in other]

    differ = []
    for name, values in ARGUMENTS.items():
        for value in values:
            scores, found = run(**{name: value})
            if not alike(scores, expected):
                differ.append(name)
                assert found != before, (name, value)
    assert {"dtype", "max_length", "rms_norm_eps", "rope_parameters", "hidden_act"} <= set(differ)


def lora(base: LlamaForCausalLM, alpha: int) -> Any:
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
    config.init_lora_weights = False
    torch.manual_seed(0)
    return get_peft_model(base, config).eval()


def test_an_adapter_s_scaling_and_whether_it_is_active_change_the_key(
    plain: LlamaForCausalLM,
) -> None:
    weak, strong = (lora(copy.deepcopy(plain), alpha) for alpha in (8, 64))
    assert weights_digest(weak) == weights_digest(strong)
    assert not torch.equal(logits_of(weak), logits_of(strong))
    keys = {key(weak), key(strong), key(plain)}
    assert len(keys) == 3
    with strong.disable_adapter():
        assert key(strong) not in keys
    assert key(strong) in keys
    strong.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    strong.set_adapter("other")
    assert key(strong) not in keys


def test_a_run_with_a_stronger_adapter_takes_nothing_from_a_weaker_one_s(
    evaluate: Any, model_folder: Path, tmp_path: Path
) -> None:
    """Fits, choices and responses of the one were given for the other."""
    runs = []
    cached = {"use_cache": str(tmp_path / "responses")}
    grid = {"grid": "1/3x-2/4", "n_tune": 8}
    for alpha in (8, 64):
        base = LlamaForCausalLM.from_pretrained(model_folder)
        lora(base, alpha).save_pretrained(tmp_path / f"alpha {alpha}")
        given = {"peft": str(tmp_path / f"alpha {alpha}"), **grid}
        fresh = evaluate("tiny_choice", cache_dir=str(tmp_path / f"fresh {alpha}"), **given)
        again = evaluate("tiny_choice", settings=cached, **given)
        runs.append((fresh, again))
    for fresh, again in runs:
        mine, theirs = (found["config"]["sadi"]["tiny_choice"] for found in (again, fresh))
        assert [fit["sha256"] for fit in mine["fits"]] == [f["sha256"] for f in theirs["fits"]]
        assert mine["fits"][0]["tuning"]["table"] == theirs["fits"][0]["tuning"]["table"]
        scores = [[s["resps"] for s in f["samples"]["tiny_choice"]] for f in (again, fresh)]
        assert scores[0] == scores[1]
    assert runs[0][0]["samples"] != runs[1][0]["samples"]


def test_buffers_that_are_not_saved_with_a_model_change_the_key(plain: LlamaForCausalLM) -> None:
    other = copy.deepcopy(plain)
    other.model.rotary_emb.inv_freq.mul_(2)
    assert other.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(logits_of(other), logits_of(plain))
    assert key(other) != key(plain)


def test_weights_that_are_offloaded_count(tmp_path: Path, plain: LlamaForCausalLM) -> None:
    from accelerate import disk_offload

    def offloaded(change: float, name: str) -> nn.Module:
        model: nn.Module = copy.deepcopy(plain)
        with torch.no_grad():
            model.get_parameter("model.layers.2.mlp.up_proj.weight")[0, 0] += change
        disk_offload(model, tmp_path / name, execution_device=torch.device("cpu"))
        return model

    one, same, other = offloaded(0, "one"), offloaded(0, "same"), offloaded(0.5, "other")
    assert any(parameter.device.type == "meta" for parameter in one.parameters())
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)
    assert weights_digest(one) == weights_digest(plain)


class Strange(nn.Module):
    """A weight whose values nobody can read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 2, device="meta"))


def test_weights_that_cannot_be_read_are_told_and_nothing_is_kept(
    evaluate: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        assert weights_digest(Strange()) is None
    assert "cannot be read" in caplog.text
    expected = evaluate("tiny_choice", **STEER)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr("sadi_lmeval.identity.model.weights_digest", lambda model: None)
    cached = {"use_cache": str(tmp_path / "responses")}
    for _ in range(2):
        found = evaluate("tiny_choice", settings=cached, **STEER)
        assert found["results"] == expected["results"]
        [fit] = found["config"]["sadi"]["tiny_choice"]["fits"]
        assert fit["file"] is None
    assert not (tmp_path / "cache").exists()


def test_a_digest_of_weights_takes_no_memory_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that is made on the way is larger than a chunk."""
    model = nn.Linear(2048, 1024, bias=False, dtype=torch.bfloat16)  # 4 MB
    monkeypatch.setattr("sadi_lmeval.identity.weights._CHUNK", 1 << 16)
    largest = 0
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        assert weights_digest(model) is not None
    for event in profile.function_events:
        largest = max(largest, event.cpu_memory_usage)
    assert 0 < largest <= 1 << 17


# ------------------------------------------------------------------ the task

YAML_CHANGES: dict[str, list[Any]] = {
    "dataset_path": [],
    "dataset_kwargs": [],
    "task": [],
    "training_split": ["validation"],
    "validation_split": ["train"],
    "output_type": [],
    "doc_to_text": ["{{question}} so :"],
    "doc_to_choice": ["{{choices[:2] + [answer]}}"],
    "doc_to_target": [1, 2],
    "metric_list": [
        [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}],
    ],
    "metadata": [{"version": 2.0}],
    "description": ["the fish is cold . "],
    "target_delimiter": [" = "],
    "fewshot_delimiter": [" ; "],
    "num_fewshot": [2],
    "gen_prefix": ["so"],
    "process_docs": [],
}
"""Lines of a task's YAML with other values; those that ``tiny_choice`` has, and others."""


def test_every_line_of_a_task_that_changes_what_is_scored_changes_its_digest(
    tasks_folder: Path, tmp_path: Path
) -> None:
    written = yaml.safe_load((tasks_folder / "tiny_choice.yaml").read_text())
    assert set(written) <= set(YAML_CHANGES), "say what other value a line may have"

    def load(name: str, **changes: Any) -> tuple[Any, str]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "t.yaml").write_text(yaml.safe_dump({**written, **changes, "task": "t"}))
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        [task] = load_tasks(["t"], [], None, {}, manager)
        document = task.evaluated()[0]
        texts = task.texts(document, task.num_fewshot)
        scores = [(-1.0 - i, False) for i in range(len(texts))]
        judged = task.task.process_results(document, scores), task.task.higher_is_better()
        return (texts, judged, task.task.config.training_split), task_digest(task)

    before, digest = load("before")
    assert load("again") == (before, digest)
    differ = []
    for name, values in YAML_CHANGES.items():
        for number, value in enumerate(values):
            found, other = load(f"{name}{number}", **{name: value})
            if found != before:
                differ.append(name)
                assert other != digest, (name, value)
    assert len(set(differ)) >= 9


def test_the_code_behind_a_task_s_functions_changes_its_digest(
    tasks_folder: Path, tmp_path: Path
) -> None:
    text = (tasks_folder / "tiny_choice.yaml").read_text()
    digests = []
    for number, body in enumerate(("docs", "docs.select(range(10))", "docs")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "code.py").write_text(f"def kept(docs):\n    return {body}\n")
        (folder / "t.yaml").write_text(text + "process_docs: !function code.kept\n")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        [task] = load_tasks(["tiny_choice"], [], None, {}, manager)
        digests.append(task_digest(task))
    assert digests[0] != digests[1]


def copied(tasks_folder: Path, folder: Path, change: Callable[[str], str] = str) -> Path:
    """The task tiny_choice with data of its own, which a change is made to."""
    folder.mkdir()
    for name in ("train", "validation"):
        data = (tasks_folder / f"{name}.jsonl").read_text()
        (folder / f"{name}.jsonl").write_text(data)
    text = (tasks_folder / "tiny_choice.yaml").read_text()
    (folder / "t.yaml").write_text(change(text.replace(str(tasks_folder), str(folder))))
    return folder


CHOICE = {"grid": "1/3x-2/4", "n_tune": 12, "n_pairs": 12}


@pytest.fixture
def chosen(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """The tuning of a run on a folder's task."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")

    def run(folder: Path, **arguments: Any) -> dict[str, Any]:
        found = lm_eval.simple_evaluate(
            model="hf-sadi",
            model_args={
                "pretrained": str(model_folder),
                "cache_dir": str(tmp_path / "cache"),
                **CHOICE,
                **arguments,
            },
            tasks=["tiny_choice"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            device="cpu",
            batch_size=4,
            limit=3,
            bootstrap_iters=0,
        )
        [fit] = found["config"]["sadi"]["tiny_choice"]["fits"]
        return dict(fit)

    return run


def relabelled(folder: Path) -> None:
    """Other labels of the training documents, whose texts stay."""
    path = folder / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["label"] = (row["label"] + 1) % 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_choice_depends_on_the_labels_that_it_is_judged_by(
    chosen: Any, tasks_folder: Path, tmp_path: Path
) -> None:
    folder = copied(tasks_folder, tmp_path / "one")
    fit = chosen(folder)
    file = tmp_path / "cache" / fit["file"]
    shutil.copy(file, tmp_path / "fit.safetensors")
    before = chosen(folder, mask=str(tmp_path / "fit.safetensors"), n_pairs=None)["tuning"]
    relabelled(folder)
    after = chosen(folder, mask=str(tmp_path / "fit.safetensors"), n_pairs=None)["tuning"]
    scores = [[row["score"] for row in tuning["table"]] for tuning in (before, after)]
    assert scores[0] != scores[1]
    fresh = chosen(
        folder, mask=str(tmp_path / "fit.safetensors"), n_pairs=None, cache_dir=str(tmp_path / "2")
    )["tuning"]
    assert after == fresh


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("metric: acc", "metric: acc_norm"),
        lambda text: text.replace("higher_is_better: true", "higher_is_better: false"),
    ],
    ids=["metric", "direction"],
)
def test_a_choice_for_a_given_fit_depends_on_the_task_s_metrics(
    chosen: Any, tasks_folder: Path, tmp_path: Path, change: Callable[[str], str]
) -> None:
    fit = chosen(copied(tasks_folder, tmp_path / "own"))
    kept = {"mask": str(tmp_path / "cache" / fit["file"]), "n_pairs": None}
    before = chosen(copied(tasks_folder, tmp_path / "one"), **kept)["tuning"]
    folder = copied(tasks_folder, tmp_path / "two", change)
    after = chosen(folder, **kept)["tuning"]
    fresh = chosen(folder, **kept, cache_dir=str(tmp_path / "fresh"))["tuning"]
    assert after == fresh
    assert after != before


@pytest.mark.parametrize("arguments", [{"max_length": 6}, {"softmax_dtype": "float64"}])
def test_a_choice_depends_on_how_requests_are_cut_and_summed(
    chosen: Any, tasks_folder: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    folder = copied(tasks_folder, tmp_path / "one")
    fit = chosen(folder)
    kept = {"mask": str(tmp_path / "cache" / fit["file"]), "n_pairs": None}
    chosen(folder, **kept)
    after = chosen(folder, **kept, **arguments)["tuning"]
    fresh = chosen(folder, **kept, **arguments, cache_dir=str(tmp_path / "fresh"))["tuning"]
    assert after == fresh


# ------------------------------------------------------------------ nothing outlives a run


def documents(results: dict[str, Any], task: str) -> int:
    return int(results["n-samples"][task]["effective"])


def test_a_model_that_leaves_documents_out_changes_no_later_run(
    evaluate: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.REFERENCE_LENGTH", 12)
    short = evaluate("tiny_choice", limit=None, protocol="reference", delta=0)
    assert 0 < documents(short, "tiny_choice") < 50
    assert documents(evaluate("tiny_choice", model="hf", limit=None), "tiny_choice") == 50
    assert documents(evaluate("tiny_choice", limit=None, delta=0), "tiny_choice") == 50


def test_another_model_that_is_made_in_between_changes_nothing(
    model_folder: Path, task_manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.REFERENCE_LENGTH", 12)
    sadi = model_class("sadi")
    given = {"pretrained": str(model_folder), "device": "cpu", "batch_size": 4, "delta": 0}
    short = sadi(**given, protocol="reference")
    whole = sadi(**given)

    def run(lm: SteeredModel) -> int:
        found = lm_eval.simple_evaluate(
            model=lm, tasks=["tiny_choice"], task_manager=task_manager, bootstrap_iters=0
        )
        return documents(found, "tiny_choice")

    assert run(short) < run(whole) == 50


def test_tasks_of_an_earlier_run_do_not_come_back(
    model_folder: Path, task_manager: Any, tmp_path: Path
) -> None:
    lm = model_class("sadi")(
        pretrained=str(model_folder), device="cpu", batch_size=4, n_pairs=12, **STEER,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    for task in ("tiny_choice", "tiny_folds", "tiny_text"):
        found = lm_eval.simple_evaluate(
            model=lm, tasks=[task], task_manager=task_manager, limit=3, bootstrap_iters=0
        )
        assert set(found["config"]["sadi"]) == {task}


def tripled(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3)


@pytest.mark.parametrize("arguments", [{"method": "none"}, STEER], ids=["unsteered", "steered"])
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_text"])
def test_weights_that_change_under_a_model_change_its_next_scores(
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    task_manager: Any,
    tmp_path: Path,
    arguments: dict[str, Any],
    task: str,
) -> None:
    """As in a training loop that evaluates now and then; prompts share a long beginning."""

    def run(lm: SteeredModel) -> Any:
        found = lm_eval.simple_evaluate(
            model=lm, tasks=[task], task_manager=task_manager, limit=8, bootstrap_iters=0,
            system_instruction="the cat sees a dog and the bird likes fish under one old tree "
            "by the river and the stone is cold in the rain or in the snow , with the wind",
            apply_chat_template=True,
        )  # fmt: skip
        return [sample["resps"] for sample in found["samples"][task]]

    def made(model: LlamaForCausalLM, name: str) -> SteeredModel:
        return model_class("sadi")(
            pretrained=model, tokenizer=tokenizer, batch_size=4, n_pairs=12,
            cache_dir=str(tmp_path / name), **arguments,
        )  # fmt: skip

    model = LlamaForCausalLM.from_pretrained(model_folder).eval()
    lm = made(model, "one")
    before = run(lm)
    tripled(model)
    after = run(lm)
    fresh = LlamaForCausalLM.from_pretrained(model_folder).eval()
    tripled(fresh)
    assert str(after) == str(run(made(fresh, "two")))
    assert str(after) != str(before)


def test_responses_are_those_of_the_tokenizer(
    evaluate: Any, model_folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Another vocabulary under the same words gives other scores for the same texts."""
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    cached = {"use_cache": str(tmp_path / "responses")}
    runs = []
    for folder in (model_folder, other):
        given = {"pretrained": str(folder), "method": "none"}
        evaluate("tiny_choice", settings=cached, **given)
        runs.append([evaluate("tiny_choice", settings=s, **given) for s in (cached, {})])
    for again, fresh in runs:
        assert again["samples"]["tiny_choice"] == fresh["samples"]["tiny_choice"]
    assert runs[0][1]["samples"] != runs[1][1]["samples"]


def test_settings_are_tried_again_where_what_they_are_judged_by_has_changed(
    chosen: Any, tasks_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are not where it has not: a choice is kept."""
    folder = copied(tasks_folder, tmp_path / "one")
    first = chosen(folder)
    monkeypatch.setattr(engine, "grid_log_likelihoods", None)
    assert chosen(folder) == first
    with pytest.raises(TypeError):
        chosen(folder, max_length=6)


def test_a_tokenizer_is_the_same_whatever_was_asked_of_it_last(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    before = tokenizer_digest(tokenizer)
    tokenizer(["the cat", "a"], padding="longest", truncation=True, max_length=1)
    assert tokenizer_digest(tokenizer) == before
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    assert tokenizer_digest(other) != before
