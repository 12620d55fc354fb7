"""Methods side by side: the same documents, pairs, folds and tuning budget for each."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import lm_eval
import numpy as np
from lm_eval.api.task import Task
from lm_eval.loggers import EvaluationTracker

from sadi_lmeval.arguments import recorded
from sadi_lmeval.comparison.compared import Answers, ComparedModel, Row
from sadi_lmeval.controls import INSTRUCTION, PROMPT_ONLY, RANDOM, SHUFFLED
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.metrics import is_number, mean_metrics, numbers_of
from sadi_lmeval.harness.run_task import RunTask, digest
from sadi_lmeval.harness.run_tasks import load_task, load_tasks
from sadi_lmeval.identity.key import differing, key_of
from sadi_lmeval.identity.model import OF_THE_MACHINE, model_identity
from sadi_lmeval.identity.task import task_digest
from sadi_lmeval.methods.arm import Arm, own_arguments
from sadi_lmeval.methods.registry import arm_named
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.benchmark import find_benchmark
from sadi_lmeval.pairs.contrasts import gold_and_wrong
from sadi_lmeval.pairs.plan import recipe_of, user_folders
from sadi_lmeval.records.record import FOLDER, Record, file_name, load_record, save_record
from sadi_lmeval.steering.fitting import method_of
from sadi_lmeval.storage.atomic import write_atomically
from sadi_lmeval.storage.journal import Journal
from sadi_lmeval.versions import versions

logger = logging.getLogger("lm_eval.sadi")

_IDENTITY = "comparison.json"
_ANSWERS = "answers.jsonl"
_NOT_OURS = ("task_manager", "model_args", "verbosity", "write_out", "check_integrity")
"""Arguments of the harness that results do not depend on, or that count by themselves."""
_NOT_SHARED = ("cache_dir", "include_path", "labels")
"""Shared arguments that results do not depend on, or that the names of arms set."""
_SHOWN = 600
"""The most characters of a prompt and of a text that a record keeps, for the report."""
_ON_THE_CARD = frozenset(["pretrained", "revision", "dtype"])
"""Model arguments that the model's card covers."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        methods: names of arms, see :func:`sadi_lmeval.methods.registry.arm_names`.
        tasks: leaves, not groups.
        settings: how many settings each method may try while tuning, the same for all.
        elsewhere: tasks, some of ``tasks`` or others, on which what is fitted to each of ``tasks``
            is scored too.
        host: arguments of the harness's ``simple_evaluate``, the same for every method.
        command: that the records are to name.
        instruction: before the prompts of the row ``prompt-only``, after what the host has there.
        log_samples: whether the harness's samples are written beside its results.
    """

    methods: tuple[str, ...]
    tasks: tuple[RunTask, ...]
    settings: int
    elsewhere: tuple[RunTask, ...]
    host: Mapping[str, Any]
    command: str
    instruction: str = INSTRUCTION
    log_samples: bool = False

    @property
    def all_tasks(self) -> list[RunTask]:
        """All that some row is scored on, each once."""
        return list({task.name: task for task in (*self.tasks, *self.elsewhere)}.values())

    @property
    def rows(self) -> dict[Row, list[str]]:
        """Every row, with the names of the tasks that it is scored on."""
        tasks, others = ([each.name for each in of] for of in (self.tasks, self.elsewhere))
        fitted = [method for method in self.methods if arm_named(method).method is not None]
        # What is fitted to no task has one row for all of them.
        every = [task.name for task in self.all_tasks]
        rows = {Row(m): tasks if m in fitted else every for m in self.methods}
        if others:
            rows |= {Row(m, task): [other for other in others if other != task]
                     for m in fitted for task in tasks}  # fmt: skip
        return rows


def compare(model: ComparedModel, what: Comparison, folder: Path) -> list[Path]:
    """Score every task under every method and write the records.

    Records that are there already are not made again; what an interrupted comparison had scored
    is taken from the folder.

    Returns:
        the records' files.

    Raises:
        UserError: the folder holds the records of another run, or a task has no metric by which
            documents can be paired.
    """
    for task in what.all_tasks:
        if task.task.higher_is_better() and not mean_metrics(task.task, ()):
            raise _without_metric(task.task)
    shared, card, processes = model.options, model_identity(model.model_card), model.processes
    needed = what.rows
    arms = {row: _arm(row, what, model) for row in needed}
    if card["weights_digest"] is None:
        # So that nothing is taken for it.
        card["weights_digest"] = processes.broadcast(lambda: f"unreadable {uuid4().hex}")
    claim = _Claim(
        {
            **_asked(what),
            **{k: v for k, v in recorded(shared).items() if k not in _NOT_SHARED},
            "model": card,
        },
        {name: arms[Row(name)].record() for name in what.methods},
        {task.name: _definition(task, shared) for task in _depended_on(what, shared)},
    )
    run = processes.broadcast(lambda: claim.claim(folder, what.command))
    paths = {
        (row, task): folder / FOLDER / file_name(task, *row)
        for row, tasks in needed.items()
        for task in tasks
    }
    there = processes.broadcast(lambda: {key for key, path in paths.items() if path.is_file()})
    left = {
        row: arms[row]
        for row, tasks in needed.items()
        if not all((row, task) in there for task in tasks)
    }
    # Last, as what is prepared for the others has their prompts.
    left = dict(sorted(left.items(), key=lambda item: item[1].instruction is not None))
    answers = folder / _ANSWERS
    if left:
        journal = Journal(answers if processes.notes_down else None, required=True)
        model.compare(left, needed, Answers(journal, processes))
        if what.elsewhere:
            _note_tasks(model, what)
        for number, row in enumerate(left):
            with _without_repetition(number):
                _run(model, row, needed[row], what, run, folder)
    else:
        logger.info("All %d records are in %s", len(paths), folder)
    if processes.is_first:
        answers.unlink(missing_ok=True)
    return list(paths.values())


def check_folder(folder: Path, what: Comparison) -> None:
    """Refuse a folder that cannot hold the records, before a model is loaded.

    Raises:
        UserError: it is a file, holds damaged records, or, as far as is known without a model,
            another run's.
    """
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise UserError(f"--output_path {folder}: is or lies in a file; name a folder")
    known = _known(folder)
    for path in sorted((folder / FOLDER).glob("*.json")):
        record = load_record(path)
        if known is not None and record.run != known["run"]:
            raise UserError(f"record {path}: is not of the run of {_IDENTITY}; delete it")
    if known is not None:
        asked = _asked(what)
        before = {name: known["identity"].get(name) for name in asked}
        _refuse_another(folder, differing(_plain(asked), before))


def _asked(what: Comparison) -> dict[str, Any]:
    """Say what a comparison's records have in common, as far as is known before the model is."""
    counted_apart = own_arguments(None) | OF_THE_MACHINE | _ON_THE_CARD
    model_args = what.host.get("model_args") or {}
    return {
        **{f"lm_eval's {key}": value for key, value in what.host.items() if key not in _NOT_OURS},
        "--model_args": {k: v for k, v in model_args.items() if k not in counted_apart},
        "versions": versions(),
        "settings": what.settings,
    }


def _depended_on(what: Comparison, options: Options) -> list[RunTask]:
    """List the tasks that records depend on: those that are scored, and that of the pairs."""
    name = options.mask_from
    tasks = what.all_tasks
    if name is None or name in {task.name for task in tasks}:
        return tasks
    return [*tasks, load_task(name, user_folders(options, tasks[0]), tasks[0])]


def _definition(task: RunTask, options: Options) -> dict[str, Any]:
    """Say what a task's records depend on beside the run: its definition, and its pairs' source.

    What the run gives counts in place of what the benchmark file says, and is the run's.
    """
    chooses = task.task.config.doc_to_choice is not None
    asks = task.output_type in ("generate_until", "loglikelihood")
    recipe = recipe_of(task, options) if chooses or asks else None
    pairs = None if recipe is None or recipe.pairs is None else Path(recipe.pairs).read_bytes()
    benchmark = find_benchmark(task.name, user_folders(options, task))
    return {
        "task": task_digest(task),
        "recipe": None if recipe is None else recipe.digest,
        "pairs file": None if pairs is None else hashlib.sha256(pairs).hexdigest(),
        "pairs_from": list(benchmark.pairs_from),
        "n_pairs": None if options.n_pairs else benchmark.n_pairs,
        "folds": None if options.folds else benchmark.folds,
        "settings": benchmark.settings,
    }


def _known(folder: Path) -> dict[str, Any] | None:
    """Read what a folder's records have in common; None of a new folder.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / _IDENTITY
    try:
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if not (
                isinstance(known, dict)
                and all(isinstance(known.get(k), dict) for k in ("identity", "arms", "tasks"))
                and known.get("run") == key_of(known["identity"])
                and known.get("check") == key_of({k: known[k] for k in ("arms", "tasks")})
            ):
                raise ValueError("not as it was written")
            return known
        if any((folder / FOLDER).glob("*.json")):
            raise UserError(
                f"--output_path {folder}: has records but no {_IDENTITY}; name another folder"
            )
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"--output_path {folder}: {_IDENTITY} is cut off or damaged ({error}); name another "
            "folder"
        ) from None
    return None


def _plain(content: Any) -> Any:
    """Give what is read back after a value was written as JSON."""
    return json.loads(json.dumps(content, default=str))


def _refuse_another(folder: Path, differ: Sequence[str]) -> None:
    """Refuse what does not belong to the run that a folder holds.

    Args:
        folder: for the message.
        differ: what is not the same.

    Raises:
        UserError: naming it.
    """
    noted = folder / _ANSWERS
    if not differ or not (any((folder / FOLDER).glob("*.json")) or _size(noted)):
        return
    raise UserError(
        f"--output_path {folder}: holds another run's records (it differs in "
        f"{', '.join(differ)}); name another folder"
    )


@dataclass(frozen=True)
class _Claim:
    """What the records of a folder are of.

    Attributes:
        identity: what all of them have in common; records of one identity may be compared.
        arms: of each arm's name its method's own arguments.
        tasks: of each task what its definition is.
    """

    identity: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]

    def claim(self, folder: Path, command: str) -> str:
        """Note down what a folder's records are of, or see that it is the same.

        A folder where nothing has been scored yet, as a first attempt leaves it that was refused
        for an option, belongs to nobody.

        Returns:
            the run.

        Raises:
            UserError: the folder holds another run, or cannot be written.
        """
        identity, arms, tasks = _plain([self.identity, self.arms, self.tasks])
        run, known = key_of(identity), _known(folder)
        if known is not None:
            differ = differing(identity, known["identity"])
            for name, before in known["arms"].items():
                differ += differing(arms[name], before) if name in arms else []
            for name, before in known["tasks"].items():
                changed = differing(tasks[name], before) if name in tasks else []
                differ += [f"the {what} of {name}" for what in changed]
            _refuse_another(folder, list(dict.fromkeys(differ)))
            if not differ:
                arms, tasks = {**known["arms"], **arms}, {**known["tasks"], **tasks}
                if (arms, tasks) == (known["arms"], known["tasks"]):
                    return run
        content = {
            "run": run,
            "identity": identity,
            "arms": arms,
            "tasks": tasks,
            "check": key_of({"arms": arms, "tasks": tasks}),
            "command": command,
        }
        try:
            write_atomically(folder / _IDENTITY, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as error:
            raise UserError(f"--output_path {folder}: cannot be written ({error})") from None
        return run


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _arm(row: Row, what: Comparison, model: ComparedModel) -> Arm:
    """Give the arm of a row, its search space no larger than any other's."""
    arm = model.arms[row.arm]
    if arm.instruction is not None:
        return replace(arm, instruction=_instruction(what, model))
    if row.mask_from is not None:
        arm = replace(arm, options=replace(arm.options, mask_from=row.mask_from))
    if arm.is_unsteered:
        return arm
    site = model.engine.site(*method_of(arm).place)
    return replace(arm, space=arm.search_space(site.size).thinned(what.settings))


def _instruction(what: Comparison, model: ComparedModel) -> str:
    """Give the instruction of ``prompt-only``, after the one that all rows have.

    Raises:
        UserError: the model's chat template leaves out what a system says.
    """
    system = what.host.get("system_instruction")
    instruction = what.instruction if not system else f"{system}\n{what.instruction}"
    if what.host.get("apply_chat_template"):
        model.chat_template(what.host["apply_chat_template"])
        said = [("system", instruction), ("user", "?")]
        prompt = model.apply_chat_template([{"role": r, "content": text} for r, text in said])
        if what.instruction not in prompt:
            raise UserError(
                f"{PROMPT_ONLY}: the chat template of {model.model_card['model']} leaves out "
                "system instructions, so this row would be the unsteered model's; list the other "
                f"controls by name in --methods ({RANDOM}, NAME{SHUFFLED}), or leave out "
                "--apply_chat_template"
            )
    return instruction


def _note_tasks(model: ComparedModel, what: Comparison) -> None:
    """Have every task noted as the harness renders it, before the first is scored.

    A task whose own records are there already is not scored again, but others are fitted on it.
    """
    host, chat = what.host, bool(what.host.get("apply_chat_template"))
    settings = {
        "system_instruction": host.get("system_instruction"),
        "apply_chat_template": chat,
        "fewshot_as_multiturn": host.get("fewshot_as_multiturn"),
        "chat_template": model.apply_chat_template if chat else None,
    }
    if chat:
        model.chat_template(host["apply_chat_template"])
    manager, shots = host.get("task_manager"), host.get("num_fewshot")
    names = [task.name for task in what.all_tasks]
    for task in load_tasks(names, [], shots, settings, manager):
        task.task.build_all_requests(limit=1, rank=model.rank, world_size=1, **settings)


def _run(
    model: ComparedModel, row: Row, tasks: list[str], what: Comparison, run: str, folder: Path
) -> None:
    """Let the harness score the tasks of a row, and write its results and our records."""
    model.turn(row)
    name = row.arm if row.mask_from is None else f"{row.arm}@{row.mask_from}"
    tracker = EvaluationTracker(output_path=str(folder / "harness" / name))
    start = time.perf_counter()
    host = dict(what.host)
    if model.arm.instruction is not None:
        host["system_instruction"] = model.arm.instruction
    results = lm_eval.simple_evaluate(
        model=model, tasks=tasks, log_samples=True, evaluation_tracker=tracker, **host
    )
    if not model.processes.is_first:
        return
    seconds = time.perf_counter() - start
    samples = results.pop("samples")
    # Made first, as saving samples changes them; saved last, as a row with records is not run.
    records = [
        _record(task, row, results, samples[task], model, what, run, seconds / len(tasks))
        for task in tasks
    ]
    kept = samples if what.log_samples else None
    tracker.save_results_aggregated(results=results, samples=kept)
    for task in kept or ():
        tracker.save_results_samples(task_name=task, samples=samples[task])
    for record in records:
        if not (folder / FOLDER / record.file_name).exists():
            save_record(record, folder)


@contextmanager
def _without_repetition(number: int) -> Iterator[None]:
    """Let the harness say what it has to say of the tasks once, not once a method."""
    host = logging.getLogger("lm_eval")
    before = host.level, logger.level
    if number:
        logger.setLevel(logger.getEffectiveLevel())  # ours are about the method
        host.setLevel(logging.ERROR)
    try:
        yield
    finally:
        host.setLevel(before[0])
        logger.setLevel(before[1])


def _record(
    name: str,
    row: Row,
    results: dict[str, Any],
    samples: Sequence[dict[str, Any]],
    model: ComparedModel,
    what: Comparison,
    run: str,
    seconds: float,
) -> Record:
    prepared = model.steering_of(row, name)
    task = prepared.task
    first = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == first]
    better = results["higher_is_better"].get(name, {})
    given = results["results"][name]
    metric = _metric(task.task, samples, {k: given.get(f"{k},{first}") for k in better})
    metrics = {
        key.partition(",")[0]: [_finite(value), _finite(given.get(key.replace(",", "_stderr,", 1)))]
        for key, value in given.items()
        if key.endswith(f",{first}") and "_stderr" not in key
    }
    counted = results["config"]["sadi"][name]
    not_finite = int(counted["not_finite"])
    # Which of the generated texts they are is not known.
    generates = task.output_type == "generate_until"
    bad_text = generates and not_finite > 0
    finite = [_all_finite(sample) and not bad_text for sample in samples]
    if not all(finite):  # the harness takes the first of such scores for the highest
        metrics = {key: [None, None] for key in metrics}
    choices = [task.choices(sample["doc"]) for sample in samples]
    same = bool(choices[0]) and all(each == choices[0] for each in choices)
    chooses = task.task.config.doc_to_choice is not None
    recipe = recipe_of(task, replace(model.options, recipe=None), static=False) if chooses else None
    seeds = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
    return Record(
        run=run,
        command=what.command,
        model=model.model_card,
        versions=versions(),
        seeds={**{s: results["config"][s] for s in seeds}, "seed": model.options.seed},
        limit=results["config"]["limit"],
        num_fewshot=task.num_fewshot,
        task=name,
        task_version=str(results["versions"].get(name)),
        method=row.arm,
        mask_from=row.mask_from,
        metric=metric,
        higher_is_better=bool(better.get(metric, True)),
        metrics=metrics,
        documents=[digest(sample["doc"]) for sample in samples],
        values=[
            _finite(sample[metric]) if sound else None
            for sample, sound in zip(samples, finite, strict=True)
        ],
        chosen=[
            _chosen(sample, mine if task.output_type == "multiple_choice" else [], metric)
            for sample, mine in zip(samples, choices, strict=True)
        ],
        gold=[
            gold_and_wrong(task, recipe, sample["doc"])[0] if recipe is not None else []
            for sample in samples
        ],
        labels=choices[0] if same else None,
        steering=prepared.pictured().with_counts(not_finite, int(counted.get("degenerate", 0))),
        task_digest=prepared.record.task_digest,
        pairs_digests=prepared.pairs_digests,
        prompts=[_end(_prompt(sample)) for sample in samples] if generates else [],
        texts=[str(sample["resps"][0][0])[:_SHOWN] for sample in samples] if generates else [],
        seconds=seconds,
    )


def _prompt(sample: Mapping[str, Any]) -> str:
    """Give the prompt of a document of a task that generates text."""
    return str(sample["arguments"][0][0])


def _end(text: str) -> str:
    return text if len(text) <= _SHOWN else f"…{text[1 - _SHOWN :]}"


def _metric(task: Task, samples: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    """Find the first metric that is the mean of one number a document.

    Args:
        given: what the harness gives for the task, by metric.

    Raises:
        UserError: there is none.
    """
    for name in mean_metrics(task, samples[0]["metrics"]):
        values = numbers_of(samples, name)
        if values is None or not is_number(given.get(name)):
            continue
        if (
            math.isclose(np.mean(values), given[name], abs_tol=1e-9)
            or not np.isfinite(values).all()
        ):
            return name
    raise _without_metric(task)


def _without_metric(task: Task) -> UserError:
    return UserError(
        f"task {task.config.task}: none of its metrics ({', '.join(task.higher_is_better())}) is "
        "the mean of one number a document, so methods cannot be compared on it"
    )


def _finite(value: Any) -> float | None:
    if not is_number(value):
        return None
    return float(value) if math.isfinite(value) else None


def _all_finite(sample: Mapping[str, Any]) -> bool:
    """Return whether a document's log-likelihoods are all finite; generated text counts as such."""
    return all(
        math.isfinite(response[0])
        for response in sample["filtered_resps"]
        if isinstance(response, (tuple, list)) and response and isinstance(response[0], float)
    )


def _chosen(sample: Mapping[str, Any], choices: Sequence[str], metric: str) -> int | None:
    """Give the choice that the metric takes for the answer; of equals the first, as in the harness.

    Args:
        choices: of the document; empty where it has none, or is answered by a text.
        metric: by the log-likelihood, or by that of a character, of a byte, or over the choice's
            own without the prompt.
    """
    responses = sample["filtered_resps"]
    if not choices or len(responses) < len(choices) or not _all_finite(sample):
        return None
    values = np.array([response[0] for response in responses])
    scores, others = values[: len(choices)], values[len(choices) :]
    with np.errstate(divide="ignore", invalid="ignore"):  # a choice may be empty
        if metric == "acc_norm":
            scores = scores / [len(choice) for choice in choices]
        elif metric == "acc_bytes":
            scores = scores / [len(choice.encode()) for choice in choices]
        elif metric == "acc_mutual_info" and len(others) == len(scores):
            scores = scores - others
    return int(np.argmax(scores))
