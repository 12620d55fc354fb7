"""What a comparison of methods costs, in passes of the unsteered harness; and its table.

    python bench/compare.py --output FOLDER [--methods all] [--tasks A,B] [--limit 100]
                            [--model FOLDER] [--data FOLDER]

Times ``hf`` at its best batch size on the tasks, one pass each, then the whole command
``sadi-lmeval compare`` with nothing cached: loading, pairs, tuning, scoring and report. ``--data``
is a folder to run in, in which the harness finds the data sets when there is no hub. The model is
SmolLM2-135M-Instruct in float32 unless ``--model`` names another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from sadi_lmeval.methods.registry import spelled_out, usual_arms

TASKS = ("truthfulqa_mc1", "boolq", "copa", "winogrande")
MOST = 1.5
"""Passes of hf a method, at most."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(usual_arms()))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--n_tune", type=int, help="held-out documents")
    parser.add_argument("--rule", default="auto", help="that settings are chosen by")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    output = given.output.absolute()
    methods, tasks = spelled_out(given.methods.split(",")), given.tasks.split(",")
    from offline import run_quietly_in

    with run_quietly_in(given.data) as folder:
        from smollm2 import default_folder, smollm2
        from speed import Bench, best_size

        model = given.model or str(smollm2(default_folder()))
        bench = Bench(model, 1, folder)
        passes = {}
        for task in tasks:
            size = best_size(bench, task, given.limit, None)
            passes[task] = bench.evaluate(bench.plain(size), task, given.limit, None).seconds
            print(f"hf, {task}, batch size {size}: {passes[task]:.0f} s", flush=True)
        del bench
        command = [str(Path(sys.executable).with_name("sadi-lmeval")), "compare"]
        arguments = f"pretrained={model},cache_dir={folder}/fits,rule={given.rule}"
        arguments += "" if given.n_tune is None else f",n_tune={given.n_tune}"
        command += ["--model_args", arguments]
        command += ["--tasks", ",".join(tasks), "--methods", ",".join(methods), "--html"]
        command += ["--limit", str(given.limit), "--output_path", str(output), "--diagnostics"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    ratio = seconds / (len(methods) * sum(passes.values()))
    print(
        f"comparison: {len(methods)} methods in {seconds / 60:.1f} minutes, {ratio:.2f} of the "
        f"time of {len(methods)} passes of hf (wanted at most {MOST:g})"
    )
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
