"""The page shows what the records hold, escapes it, and needs nothing but itself."""

from __future__ import annotations

import html
import random
import re
import runpy
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.records import answered, make_record, scored
from sadi_lmeval import cli
from sadi_lmeval.records.record import Record
from sadi_lmeval.reports.drawing import DARK, LIGHT
from sadi_lmeval.reports.leaderboard import boards_of
from sadi_lmeval.reports.page import page
from sadi_lmeval.reports.repeating import command_of, without_places

browsing = runpy.run_path(str(Path(__file__).parents[1] / "bench" / "browser.py"))

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
        if method != "sadi-hidden":  # as of a record of before
            columns = min(entries, 64)
            found = [[round(draw.gauss(0, 1), 2) for _ in range(columns)] for _ in range(30)]
            name = "mean difference"
            fit["found"] = {"name": name, "width": -(-entries // 64), "rows": found}
        fits.append(fit)
    return {
        "method": method, "parameters": names, "layers": 30, "entries": entries, "folds": folds,
        "element": {"sadi-neuron": "neuron", "sadi-hidden": "hidden"}.get(method, "head"),
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
        "Warnings", "Gain over the unsteered model", "points over unsteered", "Answers chosen",
        "Transfer between tasks", "What was tried, and what was found", "How to repeat a row",
        "sadi-neuron on boolq", "fit 1 of 2", "24 neurons a column: the one furthest from 0",
        "acc, 300 documents", "held-out documents", "answer 2", "average of 4 tasks",
        "fold 1 of 2 left out",
    ):  # fmt: skip
        assert part in words


def test_a_gain_that_is_warned_of_is_marked_in_the_plot(text: str) -> None:
    assert text.count("<title>sadi-neuron: see the warnings</title>") == 1
    assert "sadi-head: see the warnings" not in text


def row_of(text: str, method: str) -> str:
    """The words of a method's row of the settings."""
    table = text[text.index('aria-label="Settings"') :]
    [row] = re.findall(rf'<th scope="row" role="rowheader">{method}</th>(.*?)</tr>', table, re.S)
    return Reader(row).text


def test_the_held_out_gain_is_the_chosen_settings_mean_over_folds_with_its_documents() -> None:
    def fit(difference: float, k: int) -> dict[str, Any]:
        rows = [
            {"top_k": 0, "delta": 0.0, "difference": 0.0},
            {"top_k": k, "delta": 9.0, "difference": difference, "difference_stderr": k / 100},
        ]
        chosen = {"top_k": k, "delta": 9.0}
        rule = {"rule": "sure", "p_max": difference / 2, "documents": 10 * k}
        return {"tuning": {"objective": "metric", "chosen": chosen, **rule, "table": rows}}

    steering = {"parameters": ["top_k", "delta"], "fits": [fit(0.3, 6), fit(0.1, 8)]}
    records = [
        answered([0, 0, 1, 1], [1, 0, 1, 0]),
        answered([1, 0, 1, 1], [1, 0, 1, 0], method="sadi", steering=steering),
    ]
    text = page(boards_of(records))
    assert row_of(text, "sadi") == (
        "boolq K 6/8, delta 9 +20.0 ± 5.0 140 documents +25.0 4 documents sure p_max 0.150/0.050"
    )
    assert "sadi, held out: +20.0" in text
    assert "sadi, scored: +25.0" in text


def test_the_held_out_gain_of_a_metric_that_is_better_lower_has_the_metric_s_own_sign() -> None:
    tuning = {
        "objective": "metric",
        "chosen": {"delta": 9.0},
        "table": [{"delta": 9.0, "difference": 0.1}],
    }
    steering = {"parameters": ["delta"], "fits": [{"delta": 9.0, "tuning": tuning}]}
    lower: dict[str, Any] = {"higher_is_better": False}
    records = [make_record(**lower), make_record(method="sadi", steering=steering, **lower)]
    assert "delta 9 −10.0" in row_of(page(boards_of(records)), "sadi")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([(0, 0.0)], "unsteered"),
        ([(0, 0.0), (0, 0.0)], "unsteered"),
        ([(6, 9.0), (0, 0.0)], "K 6, delta 9 / unsteered"),
        ([(6, 9.0), (6, -4.0)], "K 6, delta 9/−4"),
    ],
)
def test_a_fit_without_a_setting_is_said_to_be_unsteered(
    chosen: list[tuple[int, float]], said: str
) -> None:
    fits = [{"top_k": k, "delta": delta} for k, delta in chosen]
    steering = {"method": "sadi", "parameters": ["top_k", "delta"], "fits": fits}
    text = page(boards_of([make_record(), make_record(method="sadi", steering=steering)]))
    assert row_of(text, "sadi").startswith(f"boolq {said} –")
    assert "K 0" not in text


def test_a_record_without_a_rule_has_none_on_the_page() -> None:
    tuning = {
        "objective": "metric",
        "chosen": {"delta": 9.0},
        "beats_unsteered": True,
        "table": [{"delta": 9.0, "difference": 0.1}],
    }
    steering = {"parameters": ["delta"], "fits": [{"tuning": tuning}]}
    text = page(boards_of([make_record(), make_record(method="sadi", steering=steering)]))
    assert row_of(text, "sadi") == "boolq delta 9 +10.0 0.0 4 documents –"


def test_a_gain_in_another_measure_than_the_metric_is_in_no_plot_of_gains() -> None:
    tuning = {
        "objective": "likelihood",
        "chosen": {"top_k": 1, "delta": 9.0},
        "documents": 7,
        "table": [{"top_k": 1, "delta": 9.0, "difference": 2.5}],
    }
    steering = {"parameters": ["top_k", "delta"], "fits": [{"tuning": tuning}]}
    text = page(boards_of([make_record(), make_record(method="sadi", steering=steering)]))
    assert "+2.500 log-likelihood, 7 documents 0.0" in row_of(text, "sadi")
    assert "sadi, held out" not in text


@pytest.mark.parametrize(
    ("objective", "said"), [("metric", "+10.5"), ("exact_match", "+10.5"), ("likelihood", "+0.105")]
)
def test_a_difference_of_log_likelihoods_is_no_share(objective: str, said: str) -> None:
    tuning = {
        "objective": objective,
        "chosen": {"top_k": 1, "delta": 9.0},
        "table": [{"top_k": 1, "delta": 9.0, "difference": 0.105, "difference_stderr": 0.02}],
    }
    steering = {
        "method": "sadi",
        "parameters": ["top_k", "delta"],
        "fits": [{"top_k": 1, "delta": 9.0, "tuning": tuning}],
    }
    text = page(boards_of([make_record(), make_record(method="sadi", steering=steering)]))
    assert f"<title>K 1, delta 9: {said} ± 0.02" in text or f"{said} ± 2.0</title>" in text
    assert "<title>chosen: K 1, delta 9</title>" in text


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
    for shown in (" +10.5 ", " (−20.0) ", " (×) "):
        assert shown in words.text


def test_all_heatmaps_of_a_measure_have_one_scale_of_colours() -> None:
    def steered(task: str, difference: float) -> list[Record]:
        table = [{"top_k": 1, "delta": d, "difference": difference} for d in (4.0, 9.0)]
        tuning = {"objective": "metric", "chosen": {"top_k": 1, "delta": 9.0}, "table": table}
        fits = [{"top_k": 1, "delta": 9.0, "tuning": tuning}]
        steering = {"method": "sadi", "parameters": ["top_k", "delta"], "fits": fits}
        return [make_record(task=task), make_record(task=task, method="sadi", steering=steering)]

    text = page(boards_of([*steered("boolq", 0.4), *steered("rte", 0.1)]))
    assert text.count("difference from unsteered, points, from −40.0 to +40.0") == 1
    colours = re.findall(r'class="f-(\w+)" d="[^"]*"><title>K 1, delta 4: (\S+)</title>', text)
    assert colours == [("b5", "+40.0"), ("b2", "+10.0")]


def test_units_are_binned_into_at_most_64_columns_inside_the_map() -> None:
    """Single activations of an entry count for it."""
    selected = [[0, 0], [0, 15, 7], [1, 999], [7, 0], [0, 1000], ["x", 1], [1, 1, 1, 1], 3]
    steering = {"layers": 2, "entries": 1000, "fits": [{"selected": selected}]}
    text = page(boards_of([make_record(method="sadi", steering=steering)]))
    titles = re.findall(r"<title>(layer .*?)</title>", text)
    assert titles == ["layer 0, units 0–15: 2", "layer 1, units 992–999: 1"]


def test_the_map_shows_what_the_fit_found_beside_what_is_steered() -> None:
    found = {"name": "probe accuracy", "width": 1, "rows": [[0.5, 0.9], [0.7, 0.5]]}
    fit = {"top_k": 1, "delta": 9.0, "selected": [[0, 1]], "found": found}
    whole = {"layers": 2, "entries": 2, "element": "head", "parameters": ["top_k", "delta"]}
    steering = {"method": "sadi", **whole, "fits": [fit]}
    text = page(boards_of([make_record(), make_record(method="sadi", steering=steering)]))
    assert 'aria-label="sadi on boolq: probe accuracy, 2 layers by 2 heads; 1 selected"' in text
    assert "<title>layer 0, head 1: 1</title>" in text
    assert "steering.fits[0].found" not in text


@pytest.mark.parametrize("rows", [[], [[]], [[1, "x"]], [[1], [1, 2]], 3, [[1.0] * 99] * 99])
def test_a_map_that_is_not_as_it_is_written_is_not_shown(rows: Any) -> None:
    found = {"name": "n", "width": 1, "rows": rows}
    fit = {"delta": 9.0, "selected": [[0, 1]], "found": found}
    steering = {"method": "sadi", "layers": 2, "entries": 2, "parameters": ["delta"], "fits": [fit]}
    text = page(boards_of([make_record(), make_record(method="sadi", steering=steering)]))
    assert Reader(text).open == []
    assert "<title>layer 0, unit 1: 1</title>" in text


def test_p_values_and_documents_are_in_the_table() -> None:
    words = Reader(page(boards_of([scored(20, "none"), scored(32, "caa"), scored(21, "iti")]))).text
    assert "boolq acc, 40 documents" in words
    assert re.search(r"caa 80\.0 ± 6\.4 \+30\.0 ↑\* \[\+\d.*?\] p < 0\.001 iti .*? p 1", words)


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
    assert "boolq acc, 40 documents elsewhere side effects unsteered" in words
    assert "+25.0 ↑* † [+12.5, +40.0]" in words
    assert "−30.0 ↓* ± 7.3" in words
    assert "† Not better than without information: iti does not beat iti-shuffled: boolq (" in words


def test_texts_that_changed_are_shown_before_and_after() -> None:
    def generated(method: str, values: list[float | None], texts: list[str]) -> Record:
        return make_record(
            method=method, values=values, chosen=[None] * 4, gold=[[]] * 4, labels=None,
            prompts=[f"question {n}" for n in range(4)], texts=texts,
        )  # fmt: skip

    records = [
        generated("none", [1.0, 0.0, 0.0, 1.0], ["a", "b", "c", "d"]),
        generated("caa", [0.0, 1.0, 0.0, 1.0], ["wrong now", "right now", "", "d"]),
    ]
    words = Reader(page(boards_of(records))).text
    assert "caa on boolq 3 of 4 texts differ, 1 became right, 1 wrong" in words
    assert (
        "question 1 unsteered, wrong b caa, right right now "
        "question 0 unsteered, right a caa, wrong wrong now "
        "question 2 unsteered, wrong c caa, wrong (empty)"
    ) in words
    assert "question 3" not in words


def test_each_row_has_its_own_command_and_no_folder_of_the_machine() -> None:
    command = (
        "sadi-lmeval compare --model_args pretrained=/home/me/models/tiny,cache_dir=/tmp/fits "
        "--tasks boolq --methods none,sadi-head,caa --include_path '/home/me/my tasks' -o /home/x"
    )
    model = {"model": "/home/me/models/tiny", "weights_digest": "ab12"}
    records = [
        make_record(command=command, model=model, method=name) for name in ("none", "sadi-head")
    ]
    text = page(boards_of(records))
    assert "/home" not in text
    assert "/tmp" not in text
    assert re.search(r'<h2 id="run1">tiny</h2>', text)
    commands = [html.unescape(found) for found in re.findall("<code>(.*?)</code>", text)]
    given = "sadi-lmeval compare --model_args pretrained=…/tiny,cache_dir=…/fits --tasks boolq"
    assert commands[0].startswith(given)
    assert commands[0].endswith("--methods none --output_path DIR")
    assert commands[1].endswith("--methods none,sadi-head --output_path DIR")
    read, _ = cli._parser().parse_known_args(shlex.split(commands[1])[1:])
    assert (read.methods, read.output_path) == ("none,sadi-head", Path("DIR"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/a", "…/a"),
        ("pretrained=/a/b c", "pretrained=…/b c"),
        ("org/name and https://x.org/a/b", "org/name and https://x.org/a/b"),
        ("../up/x ./here/y ~/z", "../up/x ./here/y ~/z"),
        (r"C:\\Users\\me\\model", "…/model"),
        ("1/2x4/9", "1/2x4/9"),
        ('["/root/a/b.txt", "/c/d"]', '["…/b.txt", "…/d"]'),
    ],
)
def test_absolute_paths_are_shortened_and_nothing_else(given: str, said: str) -> None:
    assert without_places(given) == said


def test_a_command_of_another_kind_is_as_it_was() -> None:
    for command in ("lm_eval --model hf", "sadi-lmeval compare 'unclosed", ""):
        assert command_of(command, "caa") == command


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


WITHIN = """
(() => {
  const width = document.documentElement.clientWidth, out = [];
  for (const e of document.querySelectorAll("SELECTOR")) {
    const box = e.getBoundingClientRect();
    const out_of = box.left < -0.5 || box.right > width + 0.5;
    if (box.width && out_of) out.push(e.outerHTML.slice(0, 99));
  }
  return out;
})()
"""
"""What is not wholly between the left and the right edge of the window."""


@pytest.mark.skipif(browsing["PROGRAM"] is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_whole_on_a_telephone_and_a_desk(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with browsing["browser"](tmp_path / "profile") as shown:
        for width, dark in ((1280, False), (390, False), (390, True)):
            shown.open(path, width, 900, dark)
            shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
            widths = "[document.documentElement.scrollWidth, innerWidth]"
            assert shown.evaluate(widths) == [width, width]
            assert shown.evaluate("document.querySelectorAll('svg.plot').length") > 50
            seen = "h2, h3, svg.plot, .settings td, .results td, .bar, pre, .warnings"
            if width == 1280:
                seen += ", .settings th, .results th"
            assert shown.evaluate(WITHIN.replace("SELECTOR", seen)) == []
            # No letters leave their plot.
            clipped = """[...document.querySelectorAll('svg.plot text')].filter(e => {
                const [a, b] = [e, e.ownerSVGElement].map(e => e.getBoundingClientRect());
                return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1;
            }).map(e => e.textContent)"""
            assert shown.evaluate(clipped) == []
            small = """[...document.querySelectorAll('svg text, small, td, p')].filter(
                e => parseFloat(getComputedStyle(e).fontSize) < 11).length"""
            assert shown.evaluate(small) == 0
            ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(20, 23, 26)") == dark
        # By the keyboard alone: links first, then plots' regions and folded parts.
        shown.press("Tab", 9)
        assert shown.evaluate("document.activeElement.getAttribute('href')") == "#gains1"
        kinds = "[...document.querySelectorAll('summary, .scroll, pre, nav a')]"
        assert shown.evaluate(f"{kinds}.every(e => e.tabIndex === 0)")
        assert shown.errors == []


def test_tables_and_plots_say_what_they_are(text: str) -> None:
    elements = Reader(text).elements
    for tag, attributes in elements:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 10
    assert text.count('<svg class="plot"') == len(re.findall(r'viewBox="[^"]*"><title>[^<]', text))


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_letters_stand_out_from_their_ground(colours: dict[str, str]) -> None:
    """At least 4.5 to 1, as WCAG asks for."""
    grounds = {
        "ink": [
            "page",
            "panel",
            "alert",
            "rule",
            "edge",
            *(f"{c}{n}" for c in "bw" for n in "123"),
        ],
        "soft": ["page", "panel"],
        "accent": ["page"],
        "worse": ["page"],
        "on-dark": [f"{c}{n}" for c in "bw" for n in "45"],
        "page": ["soft"],
    }
    for letters, under in grounds.items():
        for ground in under:
            light, dark = sorted(map(luminance, (colours[letters], colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (letters, ground)
