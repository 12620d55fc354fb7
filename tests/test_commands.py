"""``sadi-lmeval pairs`` and ``sadi-lmeval tasks``: what they print, write, refuse and load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sadi_lmeval import cli
from sadi_lmeval.commands import tasks
from sadi_lmeval.folders import contrastive_sets, task_configs
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.pairs import plan
from sadi_lmeval.pairs.benchmark import read_benchmark
from sadi_lmeval.steering import steering
from sadi_lmeval.storage.yaml_files import yaml_files

COMMAND = Path(sys.executable).with_name("sadi-lmeval")
FACTS = task_configs() / "sadi_facts"
GIVEN = "top_k=2,delta=3"
"""With these nothing is tuned, so that all documents are left for pairs."""
ROWS = 24

Lines = list[dict[str, Any]]


def row(index: int) -> dict[str, Any]:
    """A question with a right and two wrong choices, nothing of which is lopsided."""
    choices = [f"one {index}", f"ten {index}", f"six {index}"]
    return {"question": f"what is it {index} ?", "choices": choices, "label": index % 3}


def constant(index: int) -> dict[str, Any]:
    """The right choice is always the same and always the longest."""
    return {"question": f"is it {index} ?", "choices": [f"no{index % 4}", "surely"], "label": 1}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of the user's.

    crossed, told: validation alone, with choices and with text. balanced, lopsided: with a training
    split. both: a group of two. few: too few documents.
    """
    found = tmp_path_factory.mktemp("own")
    data = {
        "rows": [row(n) for n in range(ROWS)],
        "more": [row(n) for n in range(100, 100 + ROWS)],
        "constant": [constant(n) for n in range(ROWS)],
        "few": [row(n) for n in range(3)],
    }
    for name, rows in data.items():
        (found / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))

    def write(name: str, train: str | None, scored: str, **more: Any) -> None:
        files = {"validation": str(found / f"{scored}.jsonl")}
        if train:
            files["train"] = str(found / f"{train}.jsonl")
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}} answer :",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
            **({"training_split": "train"} if train else {}),
            **more,
        }
        config = {key: value for key, value in config.items() if value is not None}
        (found / f"{name}.yaml").write_text(yaml.safe_dump(config))

    write("crossed", None, "rows")
    write("balanced", "rows", "more")
    write("lopsided", "constant", "more")
    write("few", "few", "more")
    text = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[label]}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False},
    }
    write("told", None, "rows", **text)
    (found / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["told", "crossed"]}))
    recipe = {"recipe": "my_recipe", "contrast": "choice", "gold": "{{ (label + 1) % 3 }}"}
    (found / "my_recipe.yaml").write_text(yaml.safe_dump(recipe))
    return found


@pytest.fixture(autouse=True)
def without_the_harness_s_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To index them takes seconds."""
    init = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(init, include_defaults=False))


@pytest.fixture(scope="session")
def task_manager(tasks_folder: Path) -> TaskManager:
    """As that of all tests, without the harness's own tasks."""
    return TaskManager(include_path=str(tasks_folder), include_defaults=False)


@pytest.fixture(autouse=True)
def quiet_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but our own lines on stderr, and data sets are kept here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.utils.tqdm.__init__", silent(datasets.utils.tqdm.__init__))


def silent(init: Callable[..., None]) -> Callable[..., None]:
    def inner(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **{**named, "disable": True})

    return inner


class Said:
    """What the command printed and wrote."""

    def __init__(self, out: str, err: str, lines: Lines) -> None:
        self.out, self.err, self.lines = out, err, lines

    @property
    def counts(self) -> dict[str, int]:
        """The number of pairs that is printed for each place they come from."""
        found = re.findall(r"^(.+?): (\d+) pairs", self.out, re.MULTILINE)
        return {origin: int(count) for origin, count in found}

    @property
    def origins(self) -> dict[str, int]:
        """The same, counted in the file."""
        origins = [line["pairs_from"] for line in self.lines]
        return {origin: origins.count(origin) for origin in origins}

    @property
    def examples(self) -> list[str]:
        return re.findall(r"^\d+\. (?:.|\n)*?\n   \+ .*\n   - .*$", self.out, re.MULTILINE)

    @property
    def warnings(self) -> list[str]:
        return re.findall(r"^warning: (.*)$", self.out, re.MULTILINE)


@pytest.fixture
def pairs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: ``pairs("crossed", "--recipe", "truthfulness")``."""

    def run(task: str, *options: str, model_args: str = GIVEN, include: Path = folder) -> Said:
        output = tmp_path / "pairs.jsonl"
        given = ["pairs", task, "--include_path", str(include), "--output", str(output)]
        capsys.readouterr()
        code = cli.main([*given, "--model_args", model_args, *options])
        said = capsys.readouterr()
        assert code == 0, said.err
        text = output.read_text()
        assert text.endswith("\n")
        return Said(said.out, said.err, [json.loads(line) for line in text.splitlines()])

    return run


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr of a command that fails."""
    capsys.readouterr()
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert line.startswith("sadi-lmeval: error: ")
    return line


def scored(folder: Path, name: str) -> list[tuple[dict[str, Any], list[tuple[str, Any]]]]:
    """The documents that a task scores and what the harness itself asks of a model for each."""
    task = TaskManager(include_path=str(folder)).load([name])["tasks"][name]
    task.set_config("num_fewshot", 0)
    task.build_all_requests()
    found: dict[int, list[tuple[str, Any]]] = {}
    for request in task.instances:
        found.setdefault(request.doc_id, []).append(request.args)
    return [(task.eval_docs[index], asked) for index, asked in found.items()]


# ------------------------------------------------------------------ pairs: what is shown


def test_both_folds_of_a_cross_fitted_task_are_counted_and_written(pairs: Any) -> None:
    said = pairs("crossed")
    folds = [f"fold {n} of 2 left out" for n in (1, 2)]
    assert said.counts == said.origins == dict.fromkeys(folds, ROWS // 2)
    halves = [{digest(row(n)) for n in part} for part in (range(12, 24), range(12))]
    for fold, half in zip(folds, halves, strict=True):
        assert {line["document"] for line in said.lines if line["pairs_from"] == fold} == half
    assert {line["task"] for line in said.lines} == {"crossed"}
    assert said.out.startswith("task crossed, recipe right_wrong (choice)\n")
    assert f"{ROWS} pairs: " in said.err


def test_the_pairs_of_a_task_shipped_here_are_shown(pairs: Any) -> None:
    said = pairs("sadi_facts", include=FACTS, model_args="n_pairs=20")
    assert said.counts == said.origins == {"train": 20}
    assert "train: 20 pairs, 100 held-out documents to tune on\n" in said.out
    rows = [json.loads(line) for line in (FACTS / "train.jsonl").read_text().splitlines()]
    by_digest = {digest(each): each for each in rows}
    assert len({line["document"] for line in said.lines}) == 20
    for line in said.lines:
        known = by_digest[line["document"]]
        wrong = [f" {c}" for c in known["choices"]]
        assert line["prompt"] == f"Question: {known['question']}\nAnswer:"
        assert line["positive"] == wrong.pop(known["answer"])
        assert line["negative"] in wrong


def test_held_out_documents_are_told_only_where_something_is_tuned(pairs: Any) -> None:
    assert (
        "train: 15 pairs, 9 held-out documents to tune on" in pairs("balanced", model_args="").out
    )
    assert "held-out" not in pairs("balanced").out
    assert "train: 5 pairs, 7 held-out" in pairs("balanced", model_args="n_pairs=5,n_tune=7").out


@pytest.mark.parametrize("count", [0, 1, 5, 99])
def test_as_many_examples_as_asked_for_are_printed_of_the_first_mask_alone(
    pairs: Any, count: int
) -> None:
    said = pairs("crossed", "--examples", str(count))
    shown = min(count, ROWS // 2)
    assert len(said.examples) == shown
    for example, line in zip(said.examples, said.lines[:shown], strict=True):
        assert line["prompt"] in example
        assert len(said.lines) == ROWS


def test_ten_examples_are_printed_without_being_asked(pairs: Any) -> None:
    assert len(pairs("crossed").examples) == 10


def test_the_contrasted_part_of_each_example_is_marked(pairs: Any) -> None:
    said = pairs("crossed", "--examples", "99")
    for example, line in zip(said.examples, said.lines, strict=False):
        number = line["positive"].split()[1]
        one, other = (line[side].split()[0] for side in ("positive", "negative"))
        assert example.endswith(f"\n   + «{one}» {number}\n   - «{other}» {number}")


def test_lengths_and_labels_of_the_sides_are_printed(pairs: Any, folder: Path) -> None:
    said = pairs("lopsided")
    assert (
        "answers: 6.0 characters positive, 3.0 negative; the positive is longer in 100%" in said.out
    )
    assert "positive labels: 'surely' 100%\n" in said.out
    assert re.search(r"negative labels: ('no\d' \d+%(, )?){4}\n", said.out)
    assert "labels" not in pairs("crossed").out


def test_lopsided_pairs_are_warned_of_and_balanced_ones_are_not(pairs: Any) -> None:
    assert pairs("lopsided").warnings == [
        "every positive answer is the same: 'surely'",
        "the positive answer is the longer one in 100% of the pairs",
    ]
    assert pairs("balanced").warnings == pairs("crossed").warnings == []


# ------------------------------------------------------------------ pairs: what is in the file


def test_prompts_and_choices_are_those_that_the_harness_scores(pairs: Any, folder: Path) -> None:
    lines = {line["document"]: line for line in pairs("crossed").lines}
    asked = scored(folder, "crossed")
    assert len(lines) == len(asked) == ROWS
    for document, requests in asked:
        line = lines[digest(document)]
        right = requests.pop(document["label"])
        assert (line["prompt"], line["positive"]) == right
        assert (line["prompt"], line["negative"]) in requests


def test_prompts_of_generated_text_are_those_that_the_harness_asks(
    pairs: Any, folder: Path
) -> None:
    said = pairs("told")
    assert "recipe other_target (other_target)" in said.out
    lines = {line["document"]: line for line in said.lines}
    asked = scored(folder, "told")
    targets = {f" {document['choices'][document['label']]}" for document, _ in asked}
    assert len(lines) == len(asked) == ROWS
    for document, [request] in asked:
        line = lines[digest(document)]
        assert line["prompt"] == request[0]
        assert line["positive"] == f" {document['choices'][document['label']]}"
        assert line["negative"] in targets - {line["positive"]}


def test_a_line_has_these_keys(pairs: Any) -> None:
    keys = {"task", "pairs_from", "prompt", "positive", "negative", "document"}
    assert all(set(line) == keys for line in pairs("crossed").lines)


@pytest.mark.parametrize("shots", [1, 3])
def test_few_shot_examples_stand_in_the_prompts(pairs: Any, shots: int) -> None:
    plain = {line["document"]: line for line in pairs("balanced").lines}
    lines = pairs("balanced", "--num_fewshot", str(shots)).lines
    assert (
        len(lines) == ROWS - shots - 1
    )  # an example is none of the pairs, nor is the one to spare
    beginnings = set()
    for line in lines:
        zero = plain[line["document"]]
        assert line["prompt"].endswith("\n\n" + zero["prompt"])
        beginnings.add(line["prompt"].removesuffix(zero["prompt"]))
        assert line["positive"] == zero["positive"]
    [examples] = beginnings
    whole = {f"{each['prompt']}{each['positive']}" for each in plain.values()}
    parts = examples.removesuffix("\n\n").split("\n\n")
    assert len(parts) == shots
    assert set(parts) <= whole
    assert not {line["prompt"].removeprefix(examples) for line in lines} & {
        part.partition(" answer :")[0] + " answer :" for part in parts
    }


def test_the_pairs_shown_are_those_that_a_run_makes_its_masks_of(
    pairs: Any, evaluate: Any, monkeypatch: pytest.MonkeyPatch, tasks_folder: Path
) -> None:
    drawn: list[tuple[str, str, str]] = []
    inner = plan.draw

    def draw(*arguments: Any, **named: Any) -> Any:
        found = inner(*arguments, **named)
        drawn.extend((*pair.positive, pair.negative[1]) for pair in found.pairs)
        return found

    monkeypatch.setattr(steering, "draw", draw)
    given = {"n_pairs": 9, "seed": 3, "negative": "all"}
    settings = {"num_fewshot": 1, "system_instruction": "two"}
    evaluate("tiny_folds", settings=settings, limit=50, top_k=2, delta=3, **given)
    options = ("--num_fewshot", "1", "--system_instruction", "two")
    model_args = ",".join(f"{name}={value}" for name, value in given.items())
    said = pairs("tiny_folds", *options, model_args=f"{GIVEN},{model_args}", include=tasks_folder)
    assert len(drawn) == 18
    assert [(line["prompt"], line["positive"], line["negative"]) for line in said.lines] == drawn


def test_the_chat_template_is_that_of_the_model(pairs: Any, model_folder: Path) -> None:
    plain = pairs("crossed").lines
    given = f"{GIVEN},pretrained={model_folder}"
    options = ("--apply_chat_template", "--system_instruction", "two", "--device", "cpu")
    lines = pairs("crossed", *options, model_args=given).lines
    assert len(lines) == len(plain) == ROWS
    for line, zero in zip(lines, plain, strict=True):
        expected = f"<s> system : two </s> <s> user : {zero['prompt']} </s> <s> assistant :"
        assert line["prompt"] == expected
        assert line["positive"] == zero["positive"].strip()


def test_the_length_limit_of_the_reference_counts_the_chat_template(
    pairs: Any,
    folder: Path,
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With it all documents are over the limit here, without it none is."""
    texts = [line["prompt"] + line["positive"] for line in pairs("balanced").lines]
    [length] = {len(tokenizer.encode(text)) for text in texts}
    monkeypatch.setattr("sadi_lmeval.model.REFERENCE_LENGTH", length)
    given = f"{GIVEN},protocol=reference,pretrained={model_folder}"
    options = ["--device", "cpu", "--model_args", given]
    assert len(pairs("balanced", *options).lines) == ROWS
    arguments = ["pairs", "balanced", "--include_path", str(folder), *options]
    capsys.readouterr()
    caplog.clear()
    assert cli.main([*arguments, "--apply_chat_template"]) == 1
    assert "makes 0 contrastive pairs" in capsys.readouterr().err
    assert f"{ROWS} of {ROWS} documents are over {length} tokens" in caplog.text


# ------------------------------------------------------------------ pairs: recipes


def test_a_static_set_is_shown_once_whatever_the_folds(pairs: Any) -> None:
    said = pairs("crossed", "--recipe", "truthfulness")
    assert said.out.startswith("task crossed, recipe truthfulness (static)\n")
    assert said.counts == said.origins == {"recipe truthfulness": 150}
    text = (contrastive_sets() / "truthfulness.jsonl").read_text()
    written = [json.loads(line) for line in text.splitlines()]
    known = {
        (f"Question: {each['prompt']}\nAnswer:", f" {each['positive']}", f" {each['negative']}")
        for each in written
    }
    found = {(line["prompt"], line["positive"], line["negative"]) for line in said.lines}
    assert len(found) == 150
    assert found <= known


def test_the_recipe_of_the_option_counts_more_than_that_of_the_model_arguments(pairs: Any) -> None:
    said = pairs("crossed", "--recipe", "my_recipe", model_args=f"{GIVEN},recipe=truthfulness")
    assert "recipe my_recipe (choice)" in said.out
    labels = {digest(row(n)): row(n) for n in range(ROWS)}
    for line in said.lines:
        document = labels[line["document"]]
        assert line["positive"] == f" {document['choices'][(document['label'] + 1) % 3]}"


def test_a_recipe_file_is_taken_by_its_path(pairs: Any, folder: Path) -> None:
    by_name = pairs("crossed", "--recipe", "my_recipe").lines
    assert pairs("crossed", "--recipe", str(folder / "my_recipe.yaml")).lines == by_name
    assert by_name != pairs("crossed").lines


# ------------------------------------------------------------------ pairs: which wrong choice


def test_all_wrong_choices_make_a_pair_each(pairs: Any) -> None:
    lines = pairs("balanced", model_args=f"{GIVEN},negative=all").lines
    assert len(lines) == 2 * ROWS
    for index in range(ROWS):
        document = row(index)
        own = [line for line in lines if line["document"] == digest(document)]
        wrong = [f" {choice}" for choice in document["choices"]]
        assert {line["positive"] for line in own} == {wrong.pop(document["label"])}
        assert sorted(line["negative"] for line in own) == sorted(wrong)


def test_the_hardest_wrong_choice_is_the_model_s_likeliest(
    pairs: Any,
    tmp_path: Path,
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    given = f"{GIVEN},pretrained={model_folder},cache_dir={tmp_path / 'cache'}"
    options = ("--device", "cpu")
    lines = pairs("balanced", *options, model_args=f"{given},negative=hardest").lines
    assert len(lines) == ROWS
    model = LlamaForCausalLM.from_pretrained(model_folder).eval()

    def likelihood(prompt: str, answer: str) -> float:
        before, after = tokenizer.encode(prompt), tokenizer.encode(answer)
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        return sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after))

    documents = {digest(row(n)): row(n) for n in range(ROWS)}
    for line in lines:
        document = documents[line["document"]]
        wrong = [f" {choice}" for choice in document["choices"]]
        assert line["positive"] == wrong.pop(document["label"])
        assert line["negative"] == max(wrong, key=lambda each: likelihood(line["prompt"], each))
    assert pairs("balanced", *options, model_args=f"{given},negative=hardest").lines == lines


# ------------------------------------------------------------------ pairs: mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["both"], ["both is a group", "name one of its tasks", "crossed", "told"]),
        (["crosed"], ["unknown task 'crosed'", "'crossed'"]),
        (["crossed", "--recipe", "right_wrng"], ["unknown recipe 'right_wrng'", "'right_wrong'"]),
        (["crossed", "--recipe", "absent.yaml"], ["recipe=absent.yaml: no such file"]),
        (["told", "--recipe", "right_wrong"], ["contrasts choices", "told"]),
        (["crossed", "--include_path", "absent"], ["absent", "no such folder"]),
        (["crossed", "-a", "negative=hardst"], ["negative=hardst", "'hardest'"]),
        (["crossed", "-a", "negative=hardest"], ["pass --model_args pretrained=MODEL"]),
        (["crossed", "-a", "protocol=reference"], ["pass --model_args pretrained=MODEL"]),
        (["crossed", "--apply_chat_template"], ["pass --model_args pretrained=MODEL"]),
        (["crossed", "-a", "n_pairs"], ["n_pairs=", "at least 1"]),
        (["crossed", "-a", "n_pairs=0,folds=1"], ["n_pairs=0", "folds=1"]),
        (["crossed", "-a", "n_pair=3,pretrained=x"], ["'n_pair'", "did you mean 'n_pairs'"]),
        (["crossed", "-a", "top_k=2,delta=3,n_pairs=13"], ["makes 12", "13 are needed"]),
        (["few"], ["train", "3 documents", "4 are needed"]),
        (["crossed", "--examples", "-1"], ["--examples -1", "at least 0"]),
        (["crossed", "--num_fewshot", "-1"], ["--num_fewshot -1", "at least 0"]),
        (
            ["crossed", "--recipe", "truthfulness", "-a", "pairs_num_fewshot=2"],
            ["static set", "leave it out"],
        ),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "pairs.jsonl").write_text("as before\n")
    given = ["pairs", "--include_path", str(folder), "--output", str(output / "pairs.jsonl")]
    line = refused([*given, *arguments], capsys)
    assert all(word in line for word in words), line
    assert [path.name for path in output.iterdir()] == ["pairs.jsonl"]
    assert (output / "pairs.jsonl").read_text() == "as before\n"


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["told", {"task": "crossed", "num_fewshot": 2}], "(told, crossed)"),
        (list("abcdefg"), "(a, b, c, d, e, …)"),
    ],
)
def test_a_group_is_refused_before_its_data_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tasks: list[Any],
    said: str,
) -> None:
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": tasks}))
    monkeypatch.setattr(TaskManager, "load", None)
    line = refused(["pairs", "both", "--include_path", str(tmp_path)], capsys)
    assert f"both is a group: name one of its tasks {said}" in line


def test_a_model_that_cannot_be_loaded_costs_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"negative=hardest,pretrained={tmp_path}"
    arguments = ["pairs", "crossed", "--include_path", str(folder), "--model_args", given]
    line = refused(arguments, capsys)
    assert f"--model_args pretrained={tmp_path}: cannot be loaded" in line


def test_a_misspelt_argument_is_refused_where_the_model_is_loaded_too(
    folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"negative=hardest,n_pair=3,pretrained={model_folder}"
    arguments = ["pairs", "crossed", "--include_path", str(folder), "--model_args", given]
    assert "did you mean 'n_pairs'" in refused(arguments, capsys)


def test_what_hf_sadi_takes_is_taken_where_no_model_is_loaded(pairs: Any) -> None:
    given = "pretrained=absent,dtype=float32,delta_weights=x,attn_implementation=eager"
    assert pairs("crossed", model_args=f"{GIVEN},{given}").lines == pairs("crossed").lines


def test_an_output_in_no_folder_is_refused_before_anything_is_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "absent" / "pairs.jsonl"
    arguments = ["pairs", "crossed", "--include_path", str(folder), "--output", str(output)]
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    assert said.err == f"sadi-lmeval: error: --output {output}: no such folder\n"
    assert said.out == ""
    assert not output.parent.exists()


def test_an_output_that_cannot_be_written_is_told_and_nothing_is_left_of_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    place = tmp_path / "place"
    (place / "pairs").mkdir(parents=True)
    arguments = ["pairs", "crossed", "--include_path", str(folder), "-a", GIVEN, "--output"]
    line = refused([*arguments, str(place / "pairs")], capsys)
    assert f"--output {place / 'pairs'}: cannot be written" in line
    assert [path.name for path in place.iterdir()] == ["pairs"]
    (place / "pairs").rmdir()
    (place / "pairs").write_text("as before\n")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        line = refused([*arguments, str(place / "pairs")], capsys)
    assert "No space left on device" in line
    assert [path.name for path in place.iterdir()] == ["pairs"]
    assert (place / "pairs").read_text() == "as before\n"


# ------------------------------------------------------------------ tasks


def listed(text: str) -> list[dict[str, str]]:
    """The rows of the list of tasks by its headers, with the benchmark above them."""
    head, *lines = text.partition("\nNot available:")[0].splitlines()
    names = ["tasks", "recipe", "pairs from", "scored", "data"]
    places = [head.index(name) for name in names]
    rows: list[dict[str, str]] = []
    benchmark = ""
    for line in filter(None, lines):
        if not line.startswith(" "):
            benchmark = line
            continue
        cells = [line[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)]
        if cells[0]:
            rows.append({"benchmark": benchmark, **dict(zip(names, cells, strict=True))})
        else:  # the rest of the cell above
            rows[-1]["data"] += cells[-1]
    return rows


def lay_out(folder: Path, config: str) -> None:
    """A data set as the Hub has it, in a folder."""
    (folder / config).mkdir(parents=True)
    rows = "".join(json.dumps(row(n)) + "\n" for n in range(4))
    files = []
    for split in ("train", "validation"):
        (folder / config / f"{split}.jsonl").write_text(rows)
        files.append({"split": split, "path": f"{config}/{split}.jsonl"})
    head = {"configs": [{"config_name": config, "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """A folder with a benchmark file and tasks over data that is here, and that is not."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, path in (("here", "made/up"), ("away", "made/away")):
        config = {
            "task": name,
            "dataset_path": path,
            "dataset_name": "plain",
            "output_type": "multiple_choice",
            "training_split": "train",
            "validation_split": "validation",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    mine = {"benchmark": "mine", "tasks": ["her*", "away", "nowhere"], "pairs_from": ["train"]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    return folder


def test_the_user_s_benchmarks_are_listed_with_whether_their_data_can_be_had(
    benchmarks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "made" / "up", "plain")
    assert cli.main(["tasks", "--include_path", str(benchmarks)]) == 0
    said = capsys.readouterr().out
    found = listed(said)
    mine = {each["tasks"]: each for each in found if each["benchmark"] == "mine"}
    assert [each["benchmark"] for each in found[:3]] == ["mine"] * 3
    assert mine["her*"] == {
        "benchmark": "mine",
        "tasks": "her*",
        "recipe": "default",
        "pairs from": "train",
        "scored": "validation",
        "data": "yes",
    }
    assert mine["away"]["data"] == "no"
    assert "made/away" in said.partition("\nNot available:\n")[2]
    assert mine["nowhere"]["data"] == "not in this lm-eval"
    assert (mine["nowhere"]["pairs from"], mine["nowhere"]["scored"]) == ("train", "")


def test_a_pattern_is_listed_with_the_number_of_its_tasks(
    benchmarks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("her_a", "her_b"):
        text = (benchmarks / "here.yaml").read_text().replace("task: here", f"task: {name}")
        (benchmarks / f"{name}.yaml").write_text(text)
    assert cli.main(["tasks", "--include_path", str(benchmarks), "--offline"]) == 0
    assert listed(capsys.readouterr().out)[0]["tasks"] == "her* (3)"


def test_a_long_cell_takes_several_lines_of_the_list() -> None:
    long = f"made/{'up-' * 30}"
    rows = {"mine": [("here", "right_wrong", "train", "test", long)]}
    said = tasks._table(("tasks", "recipe", "pairs from", "scored", "data"), rows)
    assert max(map(len, said.splitlines())) <= 100
    assert listed(said)[0] == {
        "benchmark": "mine",
        "tasks": "here",
        "recipe": "right_wrong",
        "pairs from": "train",
        "scored": "test",
        "data": long,
    }


@pytest.mark.parametrize(
    "command",
    [
        *(["tasks"], ["pairs"], ["condition"], ["sweep"], ["compare"], ["report"], ["fits"]),
        ["fits", "export"],
        [],
    ],
    ids=" ".join,
)
def test_help_fits_in_100_columns(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "102")  # argparse leaves two of them free
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: sadi-lmeval")
    assert max(map(len, said.splitlines())) <= 100


def test_of_several_data_sets_it_is_told_how_many_can_be_had(
    benchmarks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "made" / "up", "plain")
    for name, path in (("her_a", "made/up"), ("her_b", "made/away"), ("her_c", "made/gone")):
        text = (benchmarks / "here.yaml").read_text()
        text = text.replace("task: here", f"task: {name}").replace("made/up", path)
        (benchmarks / f"{name}.yaml").write_text(text)
    assert cli.main(["tasks", "--include_path", str(benchmarks)]) == 0
    found = listed(capsys.readouterr().out)[0]
    assert (found["tasks"], found["data"]) == ("her* (4)", "1 of 3")


def test_offline_names_the_data_and_looks_for_none(
    benchmarks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("data was looked for")

    monkeypatch.setattr("sadi_lmeval.pairs.coverage.reach", never)
    monkeypatch.setattr("sadi_lmeval.pairs.coverage.datasets.load_dataset_builder", never)
    assert cli.main(["tasks", "--include_path", str(benchmarks), "--offline"]) == 0
    said = capsys.readouterr()
    assert {each["tasks"]: each["data"] for each in listed(said.out)[:3]} == {
        "her*": "made/up",
        "away": "made/away",
        "nowhere": "not in this lm-eval",
    }
    assert said.err == ""


def test_faulty_files_and_folders_of_benchmarks_cost_one_line(
    benchmarks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(benchmarks / "absent")
    assert "no such folder" in refused(["tasks", "--include_path", absent], capsys)
    (benchmarks / "mine.yaml").write_text("benchmark: mine\ntasks: one\n")
    line = refused(["tasks", "--include_path", str(benchmarks), "--offline"], capsys)
    assert "mine.yaml: tasks must be a list of harness task names" in line


# ------------------------------------------------------------------ as a user runs them


def run(
    *command: str | Path, cwd: Path, offline: str | None = "1", **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_HOME": str(cwd / "home"),
        "HF_DATASETS_CACHE": str(cwd / "datasets"),
        "OMP_NUM_THREADS": "1",
        **({} if offline is None else {"HF_HUB_OFFLINE": offline}),
        **more,
    }
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=300,
    )


def test_the_installed_command_shows_the_pairs_of_sadi_facts(tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    done = run(COMMAND, "pairs", "sadi_facts", "--output", output, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = Said(done.stdout, done.stderr, [json.loads(line) for line in output.open()])
    assert said.out.startswith("task sadi_facts, recipe right_wrong (choice)\n")
    assert said.counts == said.origins == {"train": 150}
    assert "150 pairs, 100 held-out documents to tune on" in said.out
    assert len(said.examples) == 10
    assert said.warnings == []
    first = said.lines[0]
    sides = {"+": first["positive"], "-": first["negative"]}
    answers = [f"   {sign} «{answer.strip()}»" for sign, answer in sides.items()]
    assert said.examples[0] == "\n".join([f"1. {first['prompt']}", *answers])


@pytest.mark.slow
def test_the_installed_command_lists_every_benchmark_and_what_can_be_had(tmp_path: Path) -> None:
    lay_out(tmp_path / "aps" / "super_glue", "copa")
    done = run(COMMAND, "tasks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {each["tasks"].partition(" ")[0]: each for each in listed(done.stdout)}
    shipped = [read_benchmark(path) for path in yaml_files(task_configs())]
    expected = {name: each.benchmark for each in shipped if each for name in each.tasks}
    subjects = [name for name in expected if re.fullmatch(r"mmlu_[a-z_]+", name)]
    assert found["mmlu_*"]["tasks"] == f"mmlu_* ({len(subjects)})"
    assert len(subjects) == 57
    unfolded = {name: each["benchmark"] for name, each in found.items() if name != "mmlu_*"}
    assert unfolded == {n: benchmark for n, benchmark in expected.items() if n not in subjects}
    assert max(map(len, done.stdout.splitlines())) <= 100
    data = {name: each["data"] for name, each in found.items()}
    assert data["sadi_facts"] == data["sadi_customers"] == "comes with the task"
    assert data["copa"] == data["sadi_copa"] == "yes"
    had = ("sadi_facts", "sadi_customers", "copa", "sadi_copa")
    rest = [data[name] for name in data if name not in had]
    assert set(rest) == {"no"}
    assert "openai/gsm8k" in done.stdout.partition("\nNot available:\n")[2]
    assert found["truthfulqa_mc1"]["pairs from"] == "2 folds"


LOOKING = """
import os, sys
from functools import partialmethod

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        os._exit(99)

sys.addaudithook(hook)
from lm_eval.tasks import TaskManager
TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)
from sadi_lmeval import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("options", "code"), [(["--offline"], 0), ([], 99)])
def test_only_offline_touches_no_network(
    benchmarks: Path, tmp_path: Path, options: list[str], code: int
) -> None:
    command = [sys.executable, "-c", LOOKING, "tasks", "--include_path", str(benchmarks), *options]
    done = run(*command, cwd=tmp_path, offline=None)
    assert done.returncode == code, done.stderr


LOADED = """
import json, sys
code = None
try:
    import sadi_lmeval.cli
    if sys.argv[1:]:
        sadi_lmeval.cli.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HEAVY = {"torch", "transformers", "lm_eval", "datasets", "numpy"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in ("pairs", "tasks", "sweep", "compare", "report")),
    ],
    ids=" ".join,
)
def test_neither_the_import_nor_help_loads_torch(tmp_path: Path, arguments: list[str]) -> None:
    done = run(sys.executable, "-c", LOADED, *arguments, cwd=tmp_path)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == (0 if arguments else None)
    assert "sadi_lmeval" in loaded
    assert not HEAVY & set(loaded)


def test_the_installed_command_s_help_loads_no_torch(tmp_path: Path) -> None:
    done = run(COMMAND, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    for name in ("tasks", "pairs", "sweep", "compare", "report"):
        assert f"    {name} " in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sadi_lmeval.cli" in loaded
    assert not HEAVY & loaded
