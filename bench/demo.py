"""The demo: every method and the unsteered model on two tasks that ship with this project.

    python bench/demo.py [--model FOLDER] [--output FOLDER] [--readme]

Runs ``sadi-lmeval compare`` on SmolLM2-135M-Instruct (converted once to a local folder), which
prints its table, and says which answers have moved. The last line is the path of the page that it
has written. ``--readme`` puts what is printed into README.md; without it, what differs from there
is told.

The tasks: ``sadi_customers`` (is the writer of a message happy or not), where the model collapses to
one label although it tells the two apart, and ``sadi_facts`` (general knowledge), where what is
asked for is not a matter of how the model answers.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from smollm2 import default_folder, smollm2

ROOT = Path(__file__).parents[1]
TASKS = ("sadi_customers", "sadi_facts")
N_TUNE = 40
"""Held-out documents; the usual 100 take twice as long."""
BEGIN, END = "<!-- demo -->\n", "<!-- end of demo -->\n"


def command(model: Path, output: Path) -> list[str]:
    """The command that the demo is."""
    return [
        str(Path(sys.executable).with_name("sadi-lmeval")),
        "compare",
        *("--model_args", f"pretrained={model},n_tune={N_TUNE}"),
        *("--tasks", ",".join(TASKS), "--html", "--output_path", str(output)),
    ]


def told(table: str, board: Any) -> str:
    """What README has of a run: the rows of its table, and the balanced accuracies of a task."""
    rows = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    return f"{rows}\n\n{board}\n"


def in_readme() -> str:
    """The same, as README has it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="its folder, if it is converted already")
    parser.add_argument("--output", type=Path, help="a new folder (default: build/demo)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    given = parser.parse_args()
    output = given.output or ROOT / "build" / "demo"
    if given.output is None:
        shutil.rmtree(output, ignore_errors=True)
    asked = command(given.model or smollm2(default_folder()), output)
    print(f"$ {shlex.join(asked)}", flush=True)
    subprocess.run(asked, check=True)
    print(output / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
