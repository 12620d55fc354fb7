"""The demo: every method and the unsteered model on two tasks that ship with this project.

    python bench/demo.py [--model FOLDER] [--output FOLDER] [--readme]

Runs ``sadi-lmeval compare`` on SmolLM2-135M-Instruct (converted once to a local folder), which
prints its table, and says how balanced accuracy moved on the first task. The last line is the path
of the page. ``--readme`` puts the table into README.md; without it, a run says whether its table is
README's.

The tasks: ``sadi_customers``, whether the writer of a message is happy or not, where the model says
one label to nearly all though it tells the two apart; and ``sadi_facts``, general knowledge.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from smollm2 import default_folder, smollm2

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TASKS = ("sadi_customers", "sadi_facts")
N_TUNE = 40
"""Held-out documents; on the usual 100 the demo takes twice as long."""
BEGIN, END = "<!-- demo -->\n", "<!-- end of demo -->\n"


def command(model: Path, output: Path) -> list[str]:
    """The command that the demo is."""
    return [
        str(Path(sys.executable).with_name("sadi-lmeval")),
        "compare",
        *("--model_args", f"pretrained={model},n_tune={N_TUNE}"),
        *("--tasks", ",".join(TASKS), "--methods", "all", "--html", "--output_path", str(output)),
    ]


def told(output: Path) -> str:
    """What README has of a run: the rows of its table, and balanced accuracies."""
    table = (output / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in table if line.startswith("|")]
    majority = [line for line in table if line.startswith("Majority label")]
    return "\n".join([*rows, "", *majority, balanced(output)]) + "\n"


def balanced(output: Path) -> str:
    """The balanced accuracy of every row on the task that has the same labels everywhere."""
    board = json.loads((output / "leaderboard.json").read_text(encoding="utf-8"))
    cells = {row["method"]: row["cells"][TASKS[0]] for row in board["runs"][0]["rows"]}
    after = {method: cell["balanced_after"] for method, cell in cells.items()}
    unsteered = after.pop("none")
    rest = ", ".join(f"{method} {value:.2f}" for method, value in after.items())
    return f"Balanced accuracy on {TASKS[0]}: unsteered {unsteered:.2f}; {rest}."


def in_readme() -> str:
    """The same, as README has it."""
    text = README.read_text(encoding="utf-8")
    return text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def into_readme(said: str) -> None:
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{said}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="its folder, if it is converted already")
    parser.add_argument("--output", type=Path, help="a folder (default: build/demo, made anew)")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    given = parser.parse_args()
    output = given.output or ROOT / "build" / "demo"
    if given.output is None:
        shutil.rmtree(output, ignore_errors=True)
    asked = command(given.model or smollm2(default_folder()), output)
    print(f"$ {shlex.join(asked)}", flush=True)
    ended = subprocess.run(asked, check=False).returncode
    if ended:
        print(f"demo: sadi-lmeval ended with exit code {ended}", file=sys.stderr)
        return 1
    said = told(output)
    print(balanced(output))
    if given.readme:
        into_readme(said)
    elif said == in_readme():
        print("This is the table in README.md.")
    else:
        print("The table in README.md, from another machine, is not the same to the digit.")
    print(f"\n{output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
