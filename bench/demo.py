"""The demo: the plain harness command, unsteered and steered, and a table of both rows.

    python bench/demo.py [lm_eval options, such as --limit 40]

SmolLM2-135M-Instruct (converted once to a local folder) on ``sadi_facts``, a task of
multiple-choice questions that ships with this project.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smollm2 import default_folder, smollm2

ROWS = {"hf": "", "hf-sadi": ",element=head"}


def run(model: str, pretrained: Path, options: list[str], folder: Path) -> dict[str, Any]:
    """Run the plain ``lm_eval`` command and return its results file."""
    command = [
        str(Path(sys.executable).with_name("lm_eval")),
        *("--model", model),
        *("--model_args", f"pretrained={pretrained}{ROWS[model]}"),
        *("--tasks", "sadi_facts", "--device", "cpu", "--batch_size", "8"),
        *("--output_path", str(folder / model), *options),
    ]
    print(f"$ {' '.join(command)}", flush=True)
    subprocess.run(command, check=True)
    [file] = (folder / model).rglob("results_*.json")
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return results


def main() -> None:
    pretrained = smollm2(default_folder())
    with tempfile.TemporaryDirectory() as folder:
        rows = {model: run(model, pretrained, sys.argv[1:], Path(folder)) for model in ROWS}
    print("\nsadi_facts, SmolLM2-135M-Instruct\n")
    print("| model   | acc    | ±      | acc_norm | ±      | steering")
    print("|---------|--------|--------|----------|--------|---------")
    for model, results in rows.items():
        found = results["results"]["sadi_facts"]
        said = results["config"].get("sadi", {}).get("sadi_facts")
        steering = "none"
        if said:
            tuning = said["fits"][0]["tuning"]
            chosen = f"{said['element']}, K = {said['top_k']}, delta = {said['delta']:g}"
            steering = (
                f"{chosen if said['top_k'] else 'none'}, chosen on {tuning['documents']} held-out "
                f"documents out of {len(tuning['table'])} settings"
            )
        print(
            f"| {model:7} | {found['acc,none']:.4f} | {found['acc_stderr,none']:.4f} "
            f"| {found['acc_norm,none']:.4f}   | {found['acc_norm_stderr,none']:.4f} | {steering}"
        )


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: lm_eval ended with exit code {error.returncode}")
