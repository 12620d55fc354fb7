"""The whole suite under six methods, beside the paper's published numbers: docs/results.md.

    python bench/suite.py --output FOLDER [--limit 100] [--model FOLDER] [--data FOLDER]

Runs ``sadi-lmeval compare`` on every covered benchmark whose data can be had, one after the other
into one folder, and prints the table of all; given again, it goes on where it was. ``--data`` is a
folder in which the harness finds the data sets when there is no hub; where it has MMLU's subjects
one by one, those that are there are joined. The model is SmolLM2-135M-Instruct in float32 unless
``--model`` names another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sadi_lmeval.methods.registry import usual_arms

METHODS = usual_arms()
N_TUNE = 50
SPLITS = ("dev", "validation", "test")


class Row(NamedTuple):
    """A task of the table, and the metrics that it shows."""

    benchmark: str
    task: str
    metrics: tuple[str, ...]


def _published(*numbers: float) -> dict[str, float]:
    """In the order of the paper's rows: baseline, ITI, CAA, SADI-HIDDEN, -NEURON, -HEAD."""
    rows = ("none", "iti", "caa", "sadi-hidden", "sadi-neuron", "sadi-head")
    return dict(zip(rows, numbers, strict=True))


PUBLISHED = {
    "sadi_copa": _published(70.80, 77.20, 75.20, 81.00, 82.20, 78.80),
    "sadi_storycloze": _published(65.06, 68.50, 74.65, 55.99, 67.57, 79.75),
    "sadi_xnli": _published(63.11, 63.97, 64.13, 59.28, 62.97, 64.21),
    "sadi_mmlu": _published(44.90, 46.07, 46.17, 45.66, 46.91, 48.23),
    "sadi_sst2": _published(88.63, 91.38, 91.16, 92.15, 88.69, 92.20),
    "sadi_boolq": _published(70.52, 74.10, 74.98, 76.25, 70.40, 74.35),
    "sadi_winogrande": _published(50.91, 52.80, 52.64, 52.64, 51.93, 53.04),
    "triviaqa": _published(41.60, 42.80, 43.20, 43.80, 43.50, 44.00),
    "truthfulqa_mc1": _published(33.41, 34.64, 34.03, 67.07, 34.88, 35.90),
    "truthfulqa_mc2": _published(51.07, 51.55, 52.76, 92.90, 52.50, 54.65),
    "sadi_truthfulqa_mc3": _published(24.76, 25.32, 25.62, 62.31, 25.79, 26.99),
}
"""Tables 1 and 3 of the paper, of the metric that is a task's first here."""

ROWS = [
    Row("COPA", "sadi_copa", ("em", "acc")),
    Row("COPA", "copa", ("acc",)),
    Row("XCOPA, Italian", "xcopa_it", ("acc",)),
    Row("XCOPA, Chinese", "xcopa_zh", ("acc",)),
    Row("StoryCloze", "sadi_storycloze", ("em", "acc")),
    Row("XNLI, English", "sadi_xnli", ("em", "acc")),
    Row("XNLI, English", "xnli_en", ("acc",)),
    Row("MMLU", "sadi_mmlu", ("em", "acc")),
    Row("SST-2", "sadi_sst2", ("em", "acc")),
    Row("SST-2", "sst2", ("acc",)),
    Row("SST-5", "sadi_sst5", ("em", "acc")),
    Row("BoolQ", "sadi_boolq", ("em", "acc")),
    Row("BoolQ", "boolq", ("acc",)),
    Row("WinoGrande", "sadi_winogrande", ("em", "acc")),
    Row("WinoGrande", "winogrande", ("acc",)),
    Row("ARC, challenge", "arc_challenge", ("acc",)),
    Row("HellaSwag", "hellaswag", ("acc",)),
    Row("PIQA", "piqa", ("acc",)),
    Row("CommonsenseQA", "commonsense_qa", ("acc",)),
    Row("OpenBookQA", "openbookqa", ("acc",)),
    Row("TriviaQA", "triviaqa", ("exact_match",)),
    Row("NQ-Open", "nq_open", ("exact_match",)),
    Row("ToxiGen", "toxigen", ("acc",)),
    Row("TruthfulQA", "truthfulqa_mc1", ("acc",)),
    Row("TruthfulQA", "truthfulqa_mc2", ("acc",)),
    Row("TruthfulQA", "sadi_truthfulqa_mc3", ("acc",)),
    Row("TruthfulQA", "truthfulqa_gen", ("bleu_acc",)),
    Row("GSM8K", "sadi_gsm8k", ("exact_match",)),
    Row("MATH-500", "hendrycks_math500", ("exact_match",)),
    Row("SVAMP", "sadi_svamp", ("exact_match",)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tasks", help="comma-separated, of the table's (default: all)")
    parser.add_argument("--rule", default="auto", help="that settings are chosen by")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    output = given.output.absolute()
    tasks = list(dict.fromkeys(row.task for row in ROWS))
    if given.tasks:
        tasks = [task for task in tasks if task in given.tasks.split(",")]
    with _data(given.data):
        from smollm2 import default_folder, smollm2

        model = given.model or str(smollm2(default_folder()))
        missing = _missing(tasks)
        for task in tasks:
            if task in missing:
                print(f"{task}: not run, its data cannot be had ({missing[task]})", flush=True)
                continue
            command = [str(Path(sys.executable).with_name("sadi-lmeval")), "compare"]
            command += ["--model_args", f"pretrained={model},n_tune={N_TUNE},rule={given.rule}"]
            command += ["--tasks", task, "--methods", ",".join(METHODS), "--num_fewshot", "0"]
            command += ["--limit", str(given.limit), "--output_path", str(output)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(table(output))
    return 0


@contextmanager
def _data(folder: Path | None) -> Iterator[None]:
    """Work where the harness finds its data sets; MMLU's subjects joined if need be."""
    if folder is None:
        yield
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("HF_DATASETS_CACHE", f"{place}/.datasets")
        for owner in folder.absolute().iterdir():
            (Path(place) / owner.name).symlink_to(owner)
        mmlu = folder.absolute() / "cais" / "mmlu"
        if mmlu.is_dir() and not (mmlu / "all").is_dir():
            (Path(place) / "cais").unlink()
            _join_mmlu(mmlu, Path(place) / "cais" / "mmlu")
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(folder.absolute())


def _join_mmlu(subjects: Path, joined: Path) -> None:
    """The rows of the subjects that are there, taken in turn, as the configuration ``all``."""
    (joined / "all").mkdir(parents=True)
    there = sorted(path for path in subjects.iterdir() if path.is_dir())
    print(f"MMLU: {len(there)} of 57 subjects ({', '.join(path.name for path in there)})")
    for split in SPLITS:
        of_each = [(path / f"{split}.jsonl").read_text().splitlines() for path in there]
        most = max(map(len, of_each))
        rows = [lines[i] for i in range(most) for lines in of_each if i < len(lines)]
        (joined / "all" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    files = [f"  - {{split: {split}, path: all/{split}.jsonl}}\n" for split in SPLITS]
    head = "---\nconfigs:\n- config_name: all\n  data_files:\n"
    (joined / "README.md").write_text(f"{head}{''.join(files)}---\n")


def _missing(tasks: list[str]) -> dict[str, str]:
    """The tasks whose data cannot be had, and why."""
    from lm_eval.tasks import TaskManager

    from sadi_lmeval.pairs.coverage import data_set, reach

    index = TaskManager().task_index
    found = {}
    for task in tasks:
        why = reach(data_set(index[task].cfg))
        if why:
            found[task] = why
    return found


def table(folder: Path) -> str:
    """The records of a folder as a table, a line a benchmark and metric."""
    from sadi_lmeval.records.record import FOLDER, load_record

    found = [load_record(path) for path in sorted((folder / FOLDER).glob("*.json"))]
    records = {(record.task, record.method): record for record in found}
    lines = ["| benchmark | task, metric | " + " | ".join(METHODS) + " | majority |"]
    lines.append("|---|---|" + "---:|" * (len(METHODS) + 1))
    for row in ROWS:
        if row.task in PUBLISHED:
            published = PUBLISHED[row.task]
            cells = [f"{published[m]:.2f}" if m in published else "" for m in METHODS]
            lines.append(f"| {row.benchmark} | LLAMA2-7B-CHAT, published | {' | '.join(cells)} | |")
        if (row.task, "none") in records:
            lines += [_line(row, metric, records) for metric in row.metrics]
    return "\n".join(lines)


def _line(row: Row, metric: str, records: Mapping[tuple[str, str], Any]) -> str:
    from sadi_lmeval.reports.diagnostics import diagnose

    cells = []
    for method in METHODS:
        record = records.get((row.task, method))
        value, stderr = record.metrics[metric] if record else (None, None)
        cells.append("" if value is None else f"{100 * value:.1f} ± {100 * (stderr or 0):.1f}")
    majority = diagnose(records[row.task, "none"], None).majority
    cells.append("" if majority is None else f"{100 * majority:.1f}")
    return f"| {row.benchmark} | {row.task}, {metric} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
