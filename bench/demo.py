"""The demo: every method side by side on a small model and a task that ships with the project.

    python bench/demo.py [options of sadi-lmeval compare, such as --limit 40]

Runs ``sadi-lmeval compare --methods all`` with SmolLM2-135M-Instruct (converted once to a local
folder) on ``sadi_facts``, multiple-choice questions; prints its table, and last the path of the
report, a page to open in a browser.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from smollm2 import default_folder, smollm2

OUTPUT = Path("build") / "demo"


def main() -> int:
    command = [
        "sadi-lmeval",
        "compare",
        *("--model_args", f"pretrained={smollm2(default_folder())}"),
        *("--tasks", "sadi_facts", "--methods", "all", "--device", "cpu"),
        *("--output_path", str(OUTPUT), "--html", *sys.argv[1:]),
    ]
    print(f"$ {shlex.join(command)}", flush=True)
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run([program, *command[1:]])
    if done.returncode:
        print(f"demo: sadi-lmeval ended with exit code {done.returncode}", file=sys.stderr)
        return done.returncode
    print(f"\nThe report: {(OUTPUT / 'report.html').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
