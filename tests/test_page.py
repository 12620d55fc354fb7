"""The page shows what the records hold, escapes it, and needs nothing but itself."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.records import answered, make_record, scored
from sadi_lmeval.records.record import Record
from sadi_lmeval.reports.leaderboard import boards_of
from sadi_lmeval.reports.page import page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

TASKS: dict[str, tuple[list[str] | None, list[float]]] = {
    "boolq": (["no", "yes"], [0.38, 0.62]),
    "copa": (["choice1", "choice2"], [0.45, 0.55]),
    "mmlu_stem": (None, [0.24, 0.26, 0.22, 0.28]),
    "truthfulqa_mc1": (None, [1.0]),
}
METHODS = {
    "none": 0.0, "sadi-head": 0.04, "sadi-neuron": 0.09, "sadi-hidden": 0.02, "iti": 0.05,
    "caa": -0.03,
}  # fmt: skip
COMMAND = (
    "sadi-lmeval compare --model_args pretrained=HuggingFaceTB/SmolLM2-135M-Instruct "
    "--tasks boolq,copa,mmlu_stem,truthfulqa_mc1 --output runs/smollm2"
)


def example() -> list[Record]:
    """Six methods on four tasks, and the transfers of one."""
    found = [_example(method, task) for task in TASKS for method in METHODS]
    return found + [
        _example("sadi-head", target, source)
        for source in TASKS
        for target in TASKS
        if source != target
    ]


def _example(method: str, task: str, mask_from: str | None = None) -> Record:
    labels, prior = TASKS[task]
    gold = [index for index, share in enumerate(prior) for _ in range(round(300 * share))]
    random.Random(task).shuffle(gold)
    size = max(len(prior), 4 if labels is None else 2)
    draw = random.Random("answers")
    gain = METHODS[method] * (0.3 if mask_from else 1)
    if (method, task) == ("sadi-neuron", "boolq"):
        chosen: list[int | None] = [1 if draw.random() < 0.97 else 0 for _ in gold]
    else:
        known = 0.04 if task == "boolq" else 0.38
        chosen = [g if draw.random() < known + gain else draw.randrange(size) for g in gold]
    return answered(
        chosen,
        gold,
        task=task,
        method=method,
        mask_from=mask_from,
        labels=labels,
        metric="acc_norm" if task == "mmlu_stem" else "acc",
        metrics={
            "acc_norm" if task == "mmlu_stem" else "acc": [
                sum(c == g for c, g in zip(chosen, gold, strict=True)) / len(gold), None
            ]
        },
        command=COMMAND,
        model={
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            "model_type": "llama",
            "weights_digest": "sha256:4c5f0e3f7f9f0f2c",
            "dtype": "float32",
        },
        steering=_steering(method, task, gain),
    )  # fmt: skip


def _steering(method: str, task: str, gain: float) -> dict[str, Any]:
    if method == "none":
        return {"method": "none", "parameters": []}
    names = ["layer", "multiplier"] if method == "caa" else (
        ["top_k", "alpha"] if method == "iti" else ["top_k", "delta"]
    )  # fmt: skip
    where = [8, 10, 12, 14, 16] if method == "caa" else [1, 2, 4, 6, 8, 10]
    strength = [4.0, 9.0, 14.0, 19.0, 29.0, 49.0, 79.0]
    if method == "caa":
        strength = [-2.0, -1.0, 0.5, 1.0, 1.5, 2.0]
    entries = {"sadi-neuron": 1536, "sadi-hidden": 576}.get(method, 9)
    folds = 2 if task == "truthfulqa_mc1" else 1
    draw = random.Random(f"{method} {task}")
    fits = []
    for fold in range(folds):
        table: list[dict[str, Any]] = [{names[0]: 0, names[1]: 0.0, "difference": 0.0}]
        for w in where:
            for s in strength:
                difference = gain + draw.gauss(0.01, 0.015) - 0.25 * (abs(s) * w / 800) ** 2
                table.append({names[0]: w, names[1]: s, "difference": difference, "score": 0.5})
        table[-1]["difference"] = None
        best = max(table, key=lambda row: -1.0 if row["difference"] is None else row["difference"])
        fit: dict[str, Any] = {
            "source": task if folds == 1 else f"{task} (fold {fold + 1} of 2 left out)",
            "n_pairs": 150,
            names[0]: best[names[0]],
            names[1]: best[names[1]],
            "sha256": f"{draw.getrandbits(256):064x}",
            "cache_key": f"{draw.getrandbits(256):064x}",
            "file": None,
            "tuning": {
                "objective": "metric",
                "documents": 100,
                "chosen": {name: best[name] for name in names},
                "rule": "best",
                "p_max": 0.04,
                "table": table,
            },
        }
        if method != "caa":
            k = 100 if method == "sadi-neuron" else 10
            drawn = {
                (int(30 * draw.betavariate(5, 1.4)), draw.randrange(entries)) for _ in range(k)
            }
            fit["selected"] = [list(pair) for pair in sorted(drawn)]
        fits.append(fit)
    return {
        "method": method, "parameters": names, "layers": 30, "entries": entries, "folds": folds,
        "recipe": "right_wrong", "pairs_from": "train", "fits": fits,
    }  # fmt: skip


class Reader(HTMLParser):
    """The elements of a page, and whether each is closed where it should be."""

    VOID = frozenset(["meta", "link", "br"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text() -> str:
    return page(boards_of(example()))


def test_the_page_is_well_formed_and_has_no_script(text: str) -> None:
    read = Reader(text)
    assert read.open == []
    tags = {tag for tag, _ in read.elements}
    assert {"table", "svg", "details", "style"} <= tags
    assert not tags & {"script", "iframe", "object", "img", "video", "form"}
    assert not [name for _, attributes in read.elements for name in attributes if name[:2] == "on"]
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_refers_to_nothing_outside_itself(text: str) -> None:
    for _, attributes in Reader(text).elements:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert (attributes.get(name) or "#")[0] == "#" or attributes[name] == "data:,"
    assert not re.search(r"url\(|@import|https?:", text)


def test_the_page_shows_each_part(text: str) -> None:
    words = Reader(text).text
    for part in (
        "Warnings", "From tuning to test", "Answers chosen", "Transfer between tasks",
        "Settings tried while tuning", "Entries selected", "How to repeat a row",
        "sadi-neuron on boolq", "top_k \\ alpha", "layer \\ multiplier", "fold 1 of 2 left out",
        "a column is 24 entries", COMMAND,
    ):  # fmt: skip
        assert part in words


def test_the_gap_is_of_the_chosen_settings_mean_over_folds() -> None:
    def fit(difference: float, k: int) -> dict[str, Any]:
        rows = [
            {"top_k": 0, "delta": 0.0, "difference": 0.0},
            {"top_k": k, "delta": 9.0, "difference": difference},
        ]
        chosen = {"top_k": k, "delta": 9.0}
        rule = {"rule": "sure", "p_max": difference / 2}
        return {"tuning": {"objective": "metric", "chosen": chosen, **rule, "table": rows}}

    steering = {"parameters": ["top_k", "delta"], "fits": [fit(0.3, 6), fit(0.1, 4)]}
    records = [
        answered([0, 0, 1, 1], [1, 0, 1, 0]),
        answered([1, 0, 1, 1], [1, 0, 1, 0], method="sadi", steering=steering),
    ]
    words = Reader(page(boards_of(records))).text
    assert "boolq sadi +20.0 +25.0 +5.0 top_k 6/4, delta 9 by sure, p_max 0.150/0.050" in words


def test_a_record_without_a_rule_has_none_on_the_page() -> None:
    tuning = {
        "objective": "metric",
        "chosen": {"delta": 9.0},
        "beats_unsteered": True,
        "table": [{"delta": 9.0, "difference": 0.1}],
    }
    steering = {"parameters": ["delta"], "fits": [{"tuning": tuning}]}
    words = Reader(page(boards_of([make_record(), make_record(method="sadi", steering=steering)])))
    [row] = re.findall(r"sadi \+10.0 0.0 -10.0 delta 9(.{12})", words.text)
    assert "by" not in row


def test_a_gain_in_another_measure_than_the_metric_has_no_gap() -> None:
    tuning = {
        "objective": "likelihood",
        "chosen": {"top_k": 1, "delta": 9.0},
        "table": [{"top_k": 1, "delta": 9.0, "difference": 2.5}],
    }
    steering = {"parameters": ["top_k", "delta"], "fits": [{"tuning": tuning}]}
    words = Reader(page(boards_of([make_record(), make_record(method="sadi", steering=steering)])))
    assert "sadi n/a by likelihood 0.0 n/a" in words.text


@pytest.mark.parametrize(
    ("objective", "said"), [("metric", "+10.5"), ("exact_match", "+10.5"), ("likelihood", "+0.105")]
)
def test_a_difference_of_log_likelihoods_is_no_share(objective: str, said: str) -> None:
    tuning = {
        "objective": objective,
        "chosen": {"top_k": 1, "delta": 9.0},
        "table": [{"top_k": 1, "delta": 9.0, "difference": 0.105}],
    }
    steering = {
        "method": "sadi",
        "parameters": ["top_k", "delta"],
        "fits": [{"top_k": 1, "delta": 9.0, "tuning": tuning}],
    }
    words = Reader(page(boards_of([make_record(), make_record(method="sadi", steering=steering)])))
    assert f"1 {said}" in words.text


def test_a_setting_that_was_dropped_early_is_in_brackets() -> None:
    rows = [(4.0, 0.105, 100), (9.0, -0.2, 10), (19.0, None, 10)]
    table = [
        {"top_k": 1, "delta": delta, "difference": gain, "documents": documents}
        for delta, gain, documents in rows
    ]
    chosen = {"top_k": 1, "delta": 4.0}
    tuning = {"objective": "metric", "documents": 100, "chosen": chosen, "table": table}
    fits = [{**chosen, "tuning": tuning}]
    steering = {"method": "sadi", "parameters": ["top_k", "delta"], "fits": fits}
    words = Reader(page(boards_of([make_record(), make_record(method="sadi", steering=steering)])))
    assert "1 +10.5 (-20.0) (×)" in words.text


def test_entries_are_binned_into_at_most_64_columns_inside_the_map() -> None:
    """Single activations of an entry count for it."""
    selected = [[0, 0], [0, 15, 7], [1, 999], [7, 0], [0, 1000], ["x", 1], [1, 1, 1, 1], 3]
    steering = {"layers": 2, "entries": 1000, "fits": [{"selected": selected}]}
    text = page(boards_of([make_record(method="sadi", steering=steering)]))
    titles = re.findall(r"<title>(layer .*?)</title>", text)
    assert titles == ["layer 0, entries 0–15: 2", "layer 1, entries 992–999: 1"]


def test_the_page_says_what_does_not_beat_its_control_and_what_happens_elsewhere() -> None:
    records = [
        *(scored(20, "none", task) for task in ("boolq", "rte")),
        scored(30, "iti"),
        scored(29, "iti-shuffled"),
        *(scored(8, name, "rte", mask_from="boolq") for name in ("iti", "iti-shuffled")),
    ]
    text = page(boards_of(records))
    assert Reader(text).open == []
    words = Reader(text).text
    assert "boolq acc elsewhere unsteered" in words
    assert "[+12.5, +40.0] ↑* †" in words
    assert "-30.0 ± 7.3 ↓*" in words
    assert "† Not better than without information: iti does not beat iti-shuffled: boolq (" in words


HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}{% raw %}\"'><img src=x onerror=alert(1)>&amp;"


def test_whatever_came_from_data_is_escaped() -> None:
    steering = {
        "method": HOSTILE, HOSTILE: HOSTILE, "parameters": [HOSTILE, "delta"],
        "layers": 3, "entries": 4,
        "fits": [{"source": HOSTILE, "selected": [[1, 1]], "tuning": {
            "objective": HOSTILE, "rule": HOSTILE, "chosen": {HOSTILE: 1, "delta": 9.0},
            "table": [{HOSTILE: 1, "delta": 9.0, "difference": 0.1}]}}],
    }  # fmt: skip
    common: dict[str, Any] = {
        "task": HOSTILE, "metric": HOSTILE, "metrics": {HOSTILE: [0.5, 0.1]}, "command": HOSTILE,
        "labels": [HOSTILE, "yes"], "model": {"model": HOSTILE, HOSTILE: HOSTILE},
        "versions": {HOSTILE: HOSTILE}, "run": HOSTILE,
    }  # fmt: skip
    records = [
        make_record(**common),
        make_record(**common, method=HOSTILE, steering=steering, values=[1.0, None, 0.0, 0.0]),
        make_record(**common, method=HOSTILE, mask_from=HOSTILE + "2"),
    ]
    text = page(boards_of(records))
    assert "<script" not in text
    assert "<img" not in text
    read = Reader(text)
    assert read.open == []
    assert HOSTILE in " ".join(read.words)
    assert "49" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_without_an_error_or_a_request(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    # The page's own policy forbids every request, so that one would be an error here.
    assert "CONSOLE" not in done.stderr
    assert "How to repeat a row" in done.stdout
