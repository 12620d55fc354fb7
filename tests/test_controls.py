"""``compare`` with controls and side effects: what they are, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lm_eval.tasks import TaskManager
from torch import Tensor

from sadi_lmeval import cli
from sadi_lmeval.comparison import compare
from sadi_lmeval.comparison.compared import ComparedModel
from sadi_lmeval.controls import INSTRUCTION
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.methods import kappa
from sadi_lmeval.passes import engine
from sadi_lmeval.passes.activations import Answers, read_pairs
from sadi_lmeval.records.record import FOLDER, Record, file_name, load_record, save_record, to_json
from sadi_lmeval.steering import steering
from sadi_lmeval.steering.tuning import choose_settings
from sadi_lmeval.storage.fit_file import Fit, load_fit

Command = Callable[..., list[str]]

METHODS = ["sadi-head", "caa"]
TASKS = ["tiny_choice", "tiny_folds"]
ASIDE = ["tiny_text", "tiny_empty"]
LISTED = ["none", *METHODS, *(f"{name}-shuffled" for name in METHODS), "caa-random", "prompt-only"]
FITTED = [name for name in LISTED if name not in ("none", "prompt-only")]


@contextmanager
def quickly() -> Iterator[pytest.MonkeyPatch]:
    """Without the harness's own tasks, which take seconds to index, and without network."""
    with pytest.MonkeyPatch.context() as patch:
        init = partialmethod(TaskManager.__init__, include_defaults=False)
        patch.setattr(TaskManager, "__init__", init)
        patch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield patch


@pytest.fixture(autouse=True)
def without_the_harness_s_tasks() -> Iterator[None]:
    with quickly():
        yield


@pytest.fixture(scope="module")
def command(model_folder: Path, tasks_folder: Path) -> Command:
    """Arguments of the command: ``command(folder, "tiny_choice", "none,caa", "--limit", "4")``."""

    def arguments(output: Path, tasks: str, methods: str, *options: str, **model: Any) -> list[str]:
        cache = output.parent / "cache"
        given = {"pretrained": model_folder, "cache_dir": cache, "n_pairs": 12, "n_tune": 12}
        text = ",".join(f"{name}={value}" for name, value in {**given, **model}.items())
        return [
            *("compare", "--model_args", text, "--tasks", tasks, "--methods", methods),
            *("--include_path", str(tasks_folder), "--output_path", str(output)),
            *("--settings", "4", "--batch_size", "4", "--device", "cpu", *options),
        ]

    return arguments


def record_of(folder: Path, task: str, method: str, mask_from: str | None = None) -> Record:
    return load_record(folder / FOLDER / file_name(task, method, mask_from))


def fits_of(folder: Path, task: str, method: str, mask_from: str | None = None) -> list[Fit]:
    fits = record_of(folder, task, method, mask_from).steering.fits
    return [load_fit(folder.parent / "cache" / str(fit.file)) for fit in fits]


def records(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / FOLDER).glob("*.json")}


def numbers(folder: Path) -> dict[str, Any]:
    """What the records say, but for the time that they took, and where."""
    found = {}
    for path in (folder / FOLDER).glob("*.json"):
        found[path.name] = to_json(load_record(path))
        del found[path.name]["seconds"], found[path.name]["command"]
    return found


def prompts(folder: Path, method: str, task: str) -> list[str]:
    [path] = (folder / "harness" / method).glob(f"*/samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [each["arg_0"] for sample in samples for each in sample["arguments"].values()]


class Whole(NamedTuple):
    """A comparison with every control and with side effects.

    Attributes:
        read: at how many sites each pass over pairs read.
        tuned: how many methods shared each choice.
    """

    folder: Path
    read: list[int]
    tuned: list[int]


OPTIONS = ("--side_effects", ",".join(ASIDE), "--limit", "6", "--log_samples", "--html")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "out"
    found = Whole(folder, [], [])
    reading: Any = read_pairs

    def read(forward: Any, readers: Any, *rest: Any, **named: Any) -> None:
        found.read.append(len(readers))
        reading(forward, readers, *rest, **named)

    def choose(trial: Any, candidates: Any, *rest: Any) -> Any:
        found.tuned.append(len(candidates))
        return choose_settings(trial, candidates, *rest)

    with quickly() as patch:
        patch.setattr(engine, "read_pairs", read)
        patch.setattr(steering, "choose_settings", choose)
        names = f"none,{','.join(METHODS)},controls"
        assert cli.main(command(folder, ",".join(TASKS), names, *OPTIONS, rule="best")) == 0
    return found


# ------------------------------------------------------------------ which rows, on what


def test_one_word_makes_every_control_and_each_is_scored_on_the_same_documents(
    whole: Whole,
) -> None:
    own = {file_name(task, name, None) for task in TASKS for name in LISTED}
    everywhere = {file_name(t, name, None) for t in ASIDE for name in ("none", "prompt-only")}
    moved = {file_name(t, name, own) for t in ASIDE for name in FITTED for own in TASKS}
    assert set(records(whole.folder)) == own | everywhere | moved
    for task in [*TASKS, *ASIDE]:
        unsteered = record_of(whole.folder, task, "none")
        mine = [r for r in all_records(whole.folder) if r.task == task]
        assert {tuple(record.documents) for record in mine} == {tuple(unsteered.documents)}
        assert {record.run for record in mine} == {unsteered.run}


def all_records(folder: Path) -> list[Record]:
    return [load_record(path) for path in (folder / FOLDER).glob("*.json")]


def test_a_shuffled_control_has_its_method_s_pairs_folds_and_budget_and_other_labels(
    whole: Whole,
) -> None:
    for task in TASKS:
        for name in METHODS:
            method, control = (
                record_of(whole.folder, task, each) for each in (name, f"{name}-shuffled")
            )
            assert control.pairs_digests == method.pairs_digests
            assert control.steering.arguments == method.steering.arguments
            for one, other in zip(method.steering.fits, control.steering.fits, strict=True):
                assert (one.labels, other.labels) == ("gold", "shuffled")
                assert (one.source, one.n_pairs) == (other.source, other.n_pairs)
                assert one.tuning is not None
                assert other.tuning is not None
                tried = [
                    [tuple(row[axis] for axis in method.steering.axes) for row in tuning.table]
                    for tuning in (one.tuning, other.tuning)
                ]
                assert tried[0] == tried[1]
                assert one.tuning.documents == other.tuning.documents == 12
                assert one.tuning.table[0] == other.tuning.table[0]  # the unsteered model
            for fit, shuffled in zip(
                *(fits_of(whole.folder, task, n) for n in (name, f"{name}-shuffled")), strict=True
            ):
                assert (fit.card["labels"], shuffled.card["labels"]) == ("gold", "shuffled")
                differ = {k for k in fit.card if fit.card[k] != shuffled.card[k]}
                assert differ == {"labels"}
                assert fit.digest != shuffled.digest


def test_a_random_direction_has_the_length_of_the_mean_difference(whole: Whole) -> None:
    for task in TASKS:
        fits, drawn = (record_of(whole.folder, task, n).steering for n in ("caa", "caa-random"))
        assert [fit.sha256 for fit in drawn.fits] == [fit.sha256 for fit in fits.fits]
        assert drawn.arguments == {**fits.arguments, "direction": "random"}


def test_methods_and_controls_share_every_pass(whole: Whole) -> None:
    """One over the pairs of each fit and one over its held-out documents, for all rows at once."""
    fits = 1 + 1  # of the one fold that has the scored documents
    assert whole.read == [len(FITTED)] * fits
    assert set(whole.tuned) == {len(FITTED)}


@pytest.mark.parametrize("name", METHODS)
def test_a_control_is_what_a_run_with_shuffled_labels_gives_alone(
    whole: Whole, evaluate: Any, name: str
) -> None:
    method = name.split("-")[0]
    record = record_of(whole.folder, "tiny_choice", f"{name}-shuffled")
    [fit] = record.steering.fits
    assert fit.tuning is not None
    tried = fit.tuning.table[1:]
    values = [sorted({row[axis] for row in tried}) for axis in record.steering.axes]
    given: dict[str, Any] = {
        "labels": "shuffled",
        "rule": "best",
        "n_tune": 12,
        "grid": "x".join("/".join(map(str, each)) for each in values),
    }
    run = evaluate("tiny_choice", model=f"hf-{method}", limit=6, **given)
    assert [sample["acc"] for sample in run["samples"]["tiny_choice"]] == record.values
    [own] = run["config"]["sadi"]["tiny_choice"]["fits"]
    assert own["labels"] == "shuffled"
    assert own["tuning"]["chosen"] == fit.tuning.chosen
    [kept] = fits_of(whole.folder, "tiny_choice", f"{name}-shuffled")
    alone = load_fit(Path(own["file"]))
    assert alone.card["labels"] == "shuffled"
    for key, tensor in alone.tensors.items():
        torch.testing.assert_close(tensor, kept.tensors[key], atol=1e-4, rtol=1e-3)


def test_without_information_another_selection_comes_out_and_always_the_same(
    evaluate: Any, tmp_path: Path
) -> None:
    found = {}
    cases: dict[str, dict[str, Any]] = {
        "gold": {},
        "shuffled": {"labels": "shuffled"},
        "again": {"labels": "shuffled", "cache_dir": str(tmp_path / "other")},
        "another": {"labels": "shuffled", "seed": 1},
        "another's gold": {"seed": 1},
    }
    for name, given in cases.items():
        run = evaluate("tiny_choice", top_k=3, delta=4, limit=2, **{"n_pairs": 40, **given})
        [fit] = run["config"]["sadi"]["tiny_choice"]["fits"]
        found[name] = fit["selected"]
    assert found["shuffled"] == found["again"] != found["gold"]
    assert found["another"] != found["another's gold"]


def test_of_prompts_the_right_answers_change_places_and_the_model_s_own_stay(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Answers]] = {}
    make = kappa.fit_letter_probes
    for labels in ("gold", "shuffled"):

        def noting(values: Tensor, answers: list[Answers], label: str, to: str = labels) -> Any:
            seen[to] = list(answers)
            return make(values, answers, label)

        monkeypatch.setattr(kappa, "fit_letter_probes", noting)
        given = {"n_pairs": 20, "layer": 1, "alpha": 2, "labels": labels}
        evaluate("letters_choice", model="hf-kappa", limit=2, **given)
    gold, shuffled = seen["gold"], seen["shuffled"]
    assert [a.own for a in gold] == [a.own for a in shuffled]
    right = [[a.right for a in each] for each in (gold, shuffled)]
    assert right[0] != right[1]
    assert sorted(right[0]) == sorted(right[1])


def test_the_list_of_fits_says_which_are_of_shuffled_labels(
    whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = whole.folder.parent / "cache"
    assert cli.main(["fits", "--cache_dir", str(cache)]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if "tiny_choice" in line]
    shuffled = [line for line in listed if "(train, labels shuffled)" in line]
    assert len(shuffled) == len(METHODS)
    assert len(listed) == len(FITTED)


# ------------------------------------------------------------------ a prompt alone


def test_the_prompt_alone_is_the_unsteered_model_with_an_instruction(
    whole: Whole, evaluate: Any
) -> None:
    settings = {"system_instruction": INSTRUCTION}
    run = evaluate(*TASKS, *ASIDE, model="hf", limit=6, settings=settings)
    for task in [*TASKS, *ASIDE]:
        record = record_of(whole.folder, task, "prompt-only")
        theirs = run["samples"][task]
        assert record.documents == [digest(sample["doc"]) for sample in theirs]
        assert record.values == [sample[record.metric] for sample in theirs]
        said = {"method": "none", "system_instruction": INSTRUCTION}
        assert record.steering.arguments == said
        for method in LISTED if task in TASKS else ("none", "prompt-only"):
            begun = [p.startswith(INSTRUCTION) for p in prompts(whole.folder, method, task)]
            assert begun == [method == "prompt-only"] * len(begun)


@pytest.mark.parametrize("chat", [(), ("--apply_chat_template",)])
def test_an_instruction_of_the_user_s_is_in_every_row_and_ours_after_it_in_one(
    command: Command, evaluate: Any, tmp_path: Path, chat: tuple[str, ...]
) -> None:
    folder = tmp_path / "out"
    options = ("--system_instruction", "the cat", "--prompt_only", "the dog", "--log_samples")
    names = "prompt-only,none,caa"
    given = command(folder, "tiny_choice", names, *options, *chat, "--limit", "4")
    assert cli.main(given) == 0
    for name in names.split(","):
        alone = name == "prompt-only"
        found = prompts(folder, name, "tiny_choice")
        assert all("the cat" in prompt for prompt in found)
        assert all(("the cat\nthe dog" in prompt) is alone for prompt in found)
    record = record_of(folder, "tiny_choice", "prompt-only")
    assert record.steering.arguments["system_instruction"] == "the cat\nthe dog"
    # The pairs of the others are without it, although this row was named first.
    settings = {"system_instruction": "the cat", "apply_chat_template": bool(chat)}
    caa = record_of(folder, "tiny_choice", "caa").steering
    run = evaluate("tiny_choice", model="hf-caa", limit=4, settings=settings, layer=1)
    [own] = run["config"]["sadi"]["tiny_choice"]["fits"]
    [kept], alone_fit = fits_of(folder, "tiny_choice", "caa"), load_fit(Path(own["file"]))
    assert kept.card["pairs_digest"] == alone_fit.card["pairs_digest"]
    assert caa.fits[0].n_pairs == own["n_pairs"]


def test_a_chat_template_without_a_system_s_turn_has_no_such_row(
    command: Command, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(model_folder, tmp_path / "model"))
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for message in messages %}<s> {{ message.content }} {% endfor %}"
    )
    for path in (own / "chat_template.jinja", own / "tokenizer_config.json"):
        if path.suffix == ".jinja":
            path.write_text(template)
        elif "chat_template" in (content := json.loads(path.read_text())):
            path.write_text(json.dumps({**content, "chat_template": template}))
    options = ("--apply_chat_template", "--limit", "3")
    given = command(tmp_path / "out", "tiny_choice", "none,prompt-only", *options, pretrained=own)
    said = refused(given, capsys)
    assert "prompt-only: the chat template of model leaves out system instructions" in said
    assert not records(tmp_path / "out")


# ------------------------------------------------------------------ never twice


SMALL = (
    *("tiny_choice,tiny_folds", "none,caa,controls"),
    *("--side_effects", "tiny_empty", "--limit", "4"),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("small") / "out"
    with quickly():
        assert cli.main(command(folder, *SMALL)) == 0
    return folder


@pytest.mark.parametrize("count", [1, 8])
def test_a_comparison_with_controls_goes_on_where_it_was_interrupted(
    command: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    folder, left = tmp_path / "out", count

    def interrupting(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return save_record(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compare, "save_record", interrupting)
        assert cli.main(command(folder, *SMALL)) == 130
    before = records(folder)
    assert len(before) == count
    assert cli.main(command(folder, *SMALL)) == 0
    assert numbers(folder) == numbers(small)
    assert {name: content for name, content in records(folder).items() if name in before} == before
    assert (folder / "leaderboard.md").read_text() == (small / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    "lost",
    [
        ("tiny_choice", "prompt-only", None),
        ("tiny_folds", "caa-shuffled", None),
        ("tiny_empty", "caa", "tiny_folds"),
        ("tiny_empty", "none", None),
    ],
)
def test_one_record_that_was_taken_away_is_made_again_as_it_was(
    command: Command, small: Path, tmp_path: Path, lost: tuple[str, str, str | None]
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "out"))
    (folder / FOLDER / file_name(*lost)).unlink()
    before = records(folder)
    assert cli.main(command(folder, *SMALL)) == 0
    assert {name: content for name, content in records(folder).items() if name in before} == before
    assert numbers(folder) == numbers(small)


def test_controls_and_side_effects_are_added_to_a_finished_comparison(
    command: Command, small: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert cli.main(command(folder, SMALL[0], "none,caa", "--limit", "4")) == 0
    before = records(folder)
    assert cli.main(command(folder, *SMALL)) == 0
    assert {name: content for name, content in records(folder).items() if name in before} == before
    assert numbers(folder) == numbers(small)


def test_another_instruction_is_another_comparison(
    command: Command, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "out"))
    said = refused(command(folder, *SMALL, "--prompt_only", "the dog"), capsys)
    assert "(it differs in system_instruction)" in said
    assert records(folder) == records(small)


# ------------------------------------------------------------------ in the table


def test_the_table_says_what_does_not_beat_its_control_and_has_side_effects(whole: Whole) -> None:
    """Six documents are too few to beat anything."""
    table = (whole.folder / "leaderboard.md").read_text()
    assert "| method | tiny_choice (acc) | tiny_folds (acc) | average | elsewhere |" in table
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if "±" in line}
    assert set(rows) >= {"unsteered", *LISTED} - {"none"}
    for name in LISTED:
        row = rows["unsteered" if name == "none" else name]
        assert row.count("†") == (3 if name in METHODS else 0), row
    for name in METHODS:
        assert f"- {name} does not beat {name}-shuffled: tiny_choice (" in table
    page = (whole.folder / "report.html").read_text()
    assert "<li>caa does not beat caa-shuffled: tiny_choice (" in page
    [run] = json.loads((whole.folder / "leaderboard.json").read_text())["runs"]
    for row in run["rows"]:
        if row["method"] == "none":
            assert row["elsewhere"] is None
            continue
        gains = [
            mean_of(record) - mean_of(record_of(whole.folder, record.task, "none"))
            for record in all_records(whole.folder)
            if record.method == row["method"] and record.task in ASIDE
        ]
        assert len(gains) == (2 if row["method"] == "prompt-only" else 4)
        assert row["elsewhere"]["difference"][0] == pytest.approx(sum(gains) / len(gains))


def mean_of(record: Record) -> float:
    values = [value for value in record.values if value is not None]
    assert len(values) == len(record.values)
    return sum(values) / len(values)


# ------------------------------------------------------------------ mistakes


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("sadi-lmeval: error: ")
    return last


@pytest.mark.parametrize(
    ("methods", "options", "model", "words"),
    [
        ("none,controls", (), {}, "--methods none,controls: controls are of methods that steer"),
        ("none,ity-shuffled", (), {}, "unknown method 'ity-shuffled'"),
        ("caa,controls", (), {}, "--methods: none is missing"),
        ("none,caa", ("--side_effects", "tiny_emty"), {}, "unknown task 'tiny_emty'"),
        ("none,caa", ("--side_effects", ""), {}, "--side_effects: an empty list"),
        ("none,caa", ("--side_effects", "a,a"), {}, "--side_effects: a named twice"),
        ("none,caa", ("--side_effects", "tiny_choice"), {}, "is the only task itself"),
        ("none,caa", ("--side_effects", "tiny_rolling"), {}, "loglikelihood_rolling"),
        ("none,caa", ("--prompt_only", "the dog"), {}, "--methods lists no prompt-only"),
        ("none,prompt-only", ("--prompt_only", " "), {}, "an empty instruction"),
        ("none,caa", (), {"labels": "shuffled"}, "--model_args labels: several are tried"),
        ("none,caa", (), {"direction": "probe"}, "--model_args direction: several are tried"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    methods: str,
    options: tuple[str, ...],
    model: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(ComparedModel, "_create_model", None)
    given = command(tmp_path / "out", "tiny_choice", methods, *options, **model)
    assert words in refused(given, capsys)
    assert list(tmp_path.iterdir()) == []
