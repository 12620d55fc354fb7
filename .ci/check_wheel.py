"""Install a wheel into a clean environment, run it there on a tiny model, and uninstall it.

    python .ci/check_wheel.py dist/sadi_lmeval-*.whl

Nothing of the checkout is seen: the working folder is a new one, with a task of three rows. After
`pip uninstall` no file of the package may be left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

_MODEL = """
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<unk>", "<s>", "</s>", "is", "it", "so", "yes", "no", *map(str, range(60))]
inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
).save_pretrained("model")
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=64, initializer_range=0.3,
)).save_pretrained("model")
"""

_TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, validation: validation.jsonl}}
training_split: train
validation_split: validation
output_type: multiple_choice
doc_to_text: "is it {{number}} so"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def main() -> int:
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = folder / "venv" / "bin" / "python"
        run(folder, sys.executable, "-m", "venv", "venv")
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run(folder, *pip, "install", "--constraint", str(_CONSTRAINTS), str(wheel))
        run(folder, str(python), "-c", _MODEL)
        for split, numbers in (("train", range(40)), ("validation", range(40, 60))):
            lines = (json.dumps({"number": n, "label": n % 2}) for n in numbers)
            (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines))
        (folder / "tiny.yaml").write_text(_TASK)
        lm_eval = str(python.with_name("lm_eval"))
        arguments = "pretrained=model,n_pairs=12,n_tune=8,max_settings=4,grid=1/2x4/9"
        out = run(
            folder, lm_eval, "--model", "hf-sadi", "--model_args", arguments, "--tasks", "tiny",
            "--include_path", ".", "--device", "cpu", "--output_path", "results",
        )  # fmt: skip
        if "hf-sadi" not in out or not list(folder.glob("results/*/results_*.json")):
            raise SystemExit(f"lm_eval --model hf-sadi printed no results:\n{out}")
        run(folder, str(python.with_name("sadi-lmeval")), "tasks", "--offline")
        left_before = _files(folder)
        run(folder, *pip, "uninstall", "--yes", "sadi-lmeval")
        left = [path for path in _files(folder) if "sadi" in path.lower()]
        if left or not any("sadi" in path.lower() for path in left_before):
            raise SystemExit(f"after pip uninstall there is still: {', '.join(left)}")
    print(f"{wheel.name}: installed, run and uninstalled")
    return 0


def run(folder: Path, *command: str) -> str:
    """Run a command in the folder, without what the checkout's environment sets."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _files(folder: Path) -> list[str]:
    """List what is installed, but for files that Python has compiled."""
    packages = next((folder / "venv").glob("lib/python*/site-packages"))
    found = [*packages.rglob("*"), *(folder / "venv" / "bin").iterdir()]
    return [str(path.relative_to(folder)) for path in found if path.suffix != ".pyc"]


if __name__ == "__main__":
    sys.exit(main())
