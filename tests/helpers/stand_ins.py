"""Stand-in rows for the data sets of the covered benchmarks, in the folders that a hub would have.

``datasets.load_dataset("aps/super_glue", "boolq")`` takes a folder of that name in the current
directory before it asks a hub, so the harness's own tasks load unmodified. All rows are made up.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
import torch
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from sadi_lmeval.folders import task_configs
from sadi_lmeval.harness.run_task import RunTask
from sadi_lmeval.harness.run_tasks import load_tasks

Row = dict[str, Any]
Splits = dict[str, list[Row]]

HARNESS = Path(lm_eval.tasks.__file__).parent
HARNESS_FOLDERS = """super_glue winogrande xnli glue/sst2 mmlu/default xcopa storycloze xstorycloze
triviaqa nq_open toxigen truthfulqa gsm8k hendrycks_math hellaswag arc piqa commonsense_qa
openbookqa""".split()
"""Where the harness defines the covered tasks; to index all of its folders takes half a minute."""

TRAIN, SCORED, PLANTED = range(12), range(100, 106), 100
"""Row numbers of the split of the pairs and of the scored one, and a row that stands in both."""
FOLDED = [*range(16), 3]
"""Row numbers of a split that is cross-fitted: one row stands in both halves."""

XCOPA = "et ht id it qu sw ta th tr vi zh".split()
XNLI = "ar bg de el en es fr hi ru sw th tr ur vi zh".split()
XSTORYCLOZE = "ar en es eu hi id my ru sw te zh".split()

_COLOURS = "amber blue copper dusty emerald foggy golden hazel ivory jade".split()
_BEASTS = "badger crane dormouse ermine ferret goose heron ibex jackdaw kestrel lemming".split()


def beast(i: int) -> str:
    """A different one for each row number below 110."""
    return f"{_COLOURS[i % 10]} {_BEASTS[i // 10]}"


def in_order(right: str, wrong: str, place: int) -> tuple[str, str]:
    """A right and a wrong text, the right one at a place."""
    return (wrong, right) if place else (right, wrong)


# ------------------------------------------------------------------ one row of each data set


def boolq(i: int) -> Row:
    habit = "sleeps until noon" if i % 2 else "is up before dawn"
    return {
        "question": f"does the {beast(i)} sleep until noon",
        "passage": f"Late riser -- The {beast(i)} lives by the mill and {habit}.",
        "idx": i,
        "label": i % 2,
    }


def copa(i: int) -> Row:
    question = "effect" if i % 2 else "cause"
    right, wrong = {
        "cause": ("Thunder rolled over the hills.", "Its tail is short."),
        "effect": ("It stayed dry.", "The pond froze over."),
    }[question]
    one, other = in_order(right, wrong, i // 2 % 2)
    return {
        "premise": f"The {beast(i)} ran into the barn.",
        "choice1": one,
        "choice2": other,
        "question": question,
        "idx": i,
        "label": i // 2 % 2,
    }


def xcopa(i: int) -> Row:
    return {**copa(i), "changed": False}


def winogrande(i: int) -> Row:
    right, wrong = [("Anna", "Andrew"), ("Bert", "Clara")][i // 2 % 2]
    one, other = in_order(right, wrong, i % 2)
    return {
        "sentence": f"{wrong} handed the {beast(i)} to {right} because _ had asked for a pet.",
        "option1": one,
        "option2": other,
        "answer": str(i % 2 + 1),
    }


def xnli(i: int) -> Row:
    hypotheses = ["Somebody waits.", "The gate was painted green.", "Nobody waits at all."]
    return {
        "premise": f"A {beast(i)} waits at the gate",
        "hypothesis": hypotheses[i % 3],
        "label": i % 3,
    }


def sst2(i: int) -> Row:
    word = "delightful" if i % 2 else "dreary"
    return {"sentence": f"a {word} tale of a {beast(i)} ", "label": i % 2, "idx": i}


SST5 = ["very negative", "negative", "neutral", "positive", "very positive"]


def sst5(i: int) -> Row:
    word = ["unbearable", "dull", "ordinary", "pleasant", "splendid"][i % 5]
    text = f"a {word} hour with a {beast(i)}"
    return {"text": text, "label": i % 5, "label_text": SST5[i % 5]}


def mmlu(i: int, subject: str) -> Row:
    choices = ["a lamp", "a map", "a bell", "a rope"]
    return {
        "question": f"In {subject}, what does the {beast(i)} with {choices[i % 4]} carry?",
        "subject": subject,
        "choices": choices,
        "answer": i % 4,
    }


def storycloze(i: int) -> Row:
    right, wrong = "They ate the warm bread together.", "The moon is made of slate."
    one, other = in_order(right, wrong, i % 2)
    return {
        "story_id": f"story-{i}",
        "input_sentence_1": f"A {beast(i)} found some flour.",
        "input_sentence_2": "It mixed a dough.",
        "input_sentence_3": "The oven was hot by then.",
        "input_sentence_4": "Soon all the neighbours came by.",
        "sentence_quiz1": one,
        "sentence_quiz2": other,
        "answer_right_ending": i % 2 + 1,
    }


_PLACES = ["Oak Bridge", "Fern's End", 'The "Blue" Door', "Long Meadow", "Mill 7"]


def triviaqa(i: int) -> Row:
    """Several rows have the same answer, spelt differently; the planted one has its own."""
    place = "Hollow Tower" if i == PLANTED else _PLACES[i % 5]
    aliases = [place, f"Old {place}", place.upper()]
    aliases = aliases[i % 3 :] + aliases[: i % 3]
    normalized = [alias.lower() for alias in aliases]
    return {
        "question": f"Where does the {beast(i)} live",
        "question_id": f"q_{i}",
        "question_source": "none",
        "answer": {
            "aliases": aliases,
            "normalized_aliases": normalized,
            "matched_wiki_entity_name": "",
            "normalized_matched_wiki_entity_name": "",
            "normalized_value": place.lower(),
            "type": "WikipediaEntity",
            "value": place,
        },
    }


def nq_open(i: int) -> Row:
    return {
        "question": f"where does the {beast(i)} sleep",
        "answer": triviaqa(i)["answer"]["aliases"],
    }


GROUPS = ["gnomes", "elves", "trolls"]


def toxigen(i: int, group: str | None = None, hateful: bool | None = None) -> Row:
    group = GROUPS[i % 3] if group is None else group
    hateful = bool(i // 3 % 2) if hateful is None else hateful
    remark = "are all rude" if hateful else "are kind"
    ratings = [(5.0, 4.67), (2.5, 3.01)] if hateful else [(1.0, 1.33), (2.5, 3.0)]
    by_ai, by_people = ratings[i % 2]
    return {
        "text": f"{group} who keep a {beast(i)} {remark}",
        "target_group": group,
        "factual?": "n/a",
        "framing": "none",
        "intent": 1.0,
        "toxicity_ai": by_ai,
        "toxicity_human": by_people,
        "actual_method": "made up",
    }


def truthfulqa_mc(i: int) -> Row:
    true = [f"The {beast(i)} drinks water", "It drinks what rivers carry", "Water"][: 1 + i % 3]
    false = [f"The {beast(i)} drinks ink", "It drinks moonlight", "Nothing at all"][
        : 1 + i // 2 % 3
    ]
    return {
        "question": f"What does a {beast(i)} drink?",
        "mc1_targets": {"choices": [true[0], *false], "labels": [1] + [0] * len(false)},
        "mc2_targets": {
            "choices": true + false,
            "labels": [1] * len(true) + [0] * len(false),
        },
    }


def truthfulqa_gen(i: int) -> Row:
    targets = truthfulqa_mc(i)["mc2_targets"]
    both = list(zip(targets["choices"], targets["labels"], strict=True))
    return {
        "type": "Non-Adversarial",
        "category": "Beasts",
        "question": truthfulqa_mc(i)["question"],
        "best_answer": targets["choices"][0],
        "correct_answers": [choice for choice, label in both if label],
        "incorrect_answers": [choice for choice, label in both if not label],
        "source": "none",
    }


def gsm8k(i: int) -> Row:
    a, b = i + 2, [3, 500, 12][i % 3]
    answer = f"It hides {a} * {b} = <<{a}*{b}={a * b}>>{a * b:,} acorns.\n#### {a * b:,}"
    if i % 12 == 5:
        answer = f"It was {a} degrees, and it fell by {2 * a}: $-{a}.\n#### -{a}"
    return {
        "question": f"A {beast(i)} hides {a} times {b} acorns. How many is it?",
        "answer": answer,
    }


def math500(i: int) -> Row:
    """Of every five rows, one has no number in its box."""
    a = i + 2
    boxed = [f"{a * a}", f"\\frac{{{a}}}{{{a + 1}}}", f"{a}.25", f"{a},\\!500", "\\text{even}"]
    answer = boxed[i % 5]
    return {
        "problem": f"Find the {beast(i)}'s share of ${a}$ nuts.",
        "solution": f"In step 1 we get \\boxed{{0}}. So it is $\\boxed{{{answer}}}$, by step {a}.",
        "answer": answer,
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": f"test/prealgebra/{i}.json",
    }


def svamp(i: int) -> Row:
    """One answer has more than six digits, others have decimals."""
    a, b = {0: (1234567.0, 3.0), 1: (20.5, 0.25), 101: (2500000.0, 1.0)}.get(i, (i + 9.0, 4.0))
    body, question = f"A {beast(i)} had {a} nuts and ate {b} of them. ", " How many are left?"
    return {
        "ID": f"chal-{i}",
        "Body": body,
        "Question": question,
        "Equation": f"( {a} - {b} )",
        "Answer": str(a - b),
        "Type": "Subtraction",
        "question_concat": body + question,
    }


def hellaswag(i: int) -> Row:
    endings = ["sinks into a book", "is eaten by a door", "sings to a brick", "melts"]
    right = endings.pop(0)
    endings.insert(i % 4, right)
    return {
        "ind": i,
        "activity_label": "Reading",
        "ctx_a": f"A {beast(i)} sits down in the library.",
        "ctx_b": "it",
        "ctx": f"A {beast(i)} sits down in the library. it",
        "endings": endings,
        "source_id": "none",
        "split": "none",
        "split_type": "indomain",
        "label": str(i % 4),
    }


def arc(i: int) -> Row:
    labels = ["1", "2", "3", "4"] if i % 3 == 0 else ["A", "B", "C", "D"]
    texts = ["steam", "frost", "sand", "glass"]
    question = f"What does the {beast(i)} see over a kettle that boils, in case {i}?"
    right = texts.pop(0)
    texts.insert(i % 4, right)
    choices = {"text": texts, "label": labels}
    return {"id": f"a{i}", "question": question, "choices": choices, "answerKey": labels[i % 4]}


def openbookqa(i: int) -> Row:
    row = arc(i)
    labels = ["A", "B", "C", "D"]
    return {
        "id": row["id"],
        "question_stem": row["question"],
        "choices": {"text": row["choices"]["text"], "label": labels},
        "answerKey": labels[i % 4],
    }


def piqa(i: int) -> Row:
    one, other = in_order("Pour in water.", "Pour in gravel.", i % 2)
    return {"goal": f"Fill the {beast(i)}'s cup.", "sol1": one, "sol2": other, "label": i % 2}


def commonsense_qa(i: int) -> Row:
    return {
        "id": f"c{i}",
        "question": f"Where does the {beast(i)} keep its coat?",
        "question_concept": "coat",
        "choices": {"label": list("ABCDE"), "text": ["peg", "sea", "sky", "loaf", "drum"]},
        "answerKey": "ABCDE"[i % 5],
    }


# ------------------------------------------------------------------ the data sets

SUBJECTS = {
    "humanities": ["philosophy", "formal_logic"],
    "social_sciences": ["sociology", "econometrics"],
    "stem": ["anatomy", "astronomy"],
    "other": ["virology", "nutrition"],
}
"""A few of each discipline, whose rows make pairs."""


@functools.cache
def subjects_of_the_harness() -> dict[str, str]:
    """MMLU's subjects with their disciplines, as the harness's own task files have them."""
    found = {}
    for file in (HARNESS / "mmlu" / "default").glob("mmlu_*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        tag = content["tag"].removeprefix("mmlu_").removesuffix("_tasks")
        found[content["dataset_name"]] = tag
    return found


def _splits(make: Callable[[int], Row], pairs: str = "train", scored: str = "validation") -> Splits:
    planted = make(PLANTED)
    for index in ("idx", "ind"):
        if index in planted:
            planted[index] = 999  # the same document all the same
    return {pairs: [*map(make, TRAIN), planted], scored: [*map(make, SCORED)]}


def _with_validation(make: Callable[[int], Row]) -> Splits:
    """Three splits: the last one is scored."""
    return {**_splits(make, scored="test"), "validation": [*map(make, range(50, 55))]}


def _mmlu(subjects: list[str], tested: list[str]) -> Splits:
    return {
        "dev": [mmlu(i, subject) for subject in subjects for i in (0, 1)],
        "validation": [mmlu(i, subject) for subject in subjects for i in (2, 3, 4, PLANTED)],
        "test": [mmlu(i, subject) for i in (PLANTED, 101) for subject in tested],
    }


def _toxigen() -> Splits:
    found = _splits(toxigen, scored="test")
    scored = found["test"][0]["text"]
    found["train"] += [
        {**toxigen(PLANTED), "text": scored.upper().replace(" ", "  ")},  # the planted one again
        toxigen(20, "dwarves", hateful=False),
        toxigen(21, "dwarves", hateful=False),  # no hateful statement about them
        toxigen(22, "ogres", hateful=True),
        toxigen(23, "ogres", hateful=False),  # none that is hateful but the other one itself
    ]
    return found


@functools.cache
def data_sets() -> dict[tuple[str, str], Splits]:
    """The splits of every data set by repository and configuration."""
    few = [subject for subjects in SUBJECTS.values() for subject in subjects]
    found: dict[tuple[str, str], Splits] = {
        ("aps/super_glue", "boolq"): _splits(boolq),
        ("aps/super_glue", "copa"): _splits(copa),
        ("allenai/winogrande", "winogrande_xl"): _splits(winogrande),
        ("nyu-mll/glue", "sst2"): _splits(sst2),
        ("SetFit/sst5", "default"): _with_validation(sst5),
        ("cais/mmlu", "all"): _mmlu(few, sorted(subjects_of_the_harness())),
        ("cais/mmlu", "anatomy"): _mmlu(["anatomy"], ["anatomy"] * 3),
        ("LSDSem/story_cloze", "2016"): _splits(storycloze, "validation", "test"),
        ("mandarjoshi/trivia_qa", "rc.nocontext"): _splits(triviaqa),
        ("google-research-datasets/nq_open", "nq_open"): _splits(nq_open),
        ("skg/toxigen-data", "annotated"): _toxigen(),
        ("truthfulqa/truthful_qa", "multiple_choice"): {
            "validation": [*map(truthfulqa_mc, FOLDED)]
        },
        ("truthfulqa/truthful_qa", "generation"): {"validation": [*map(truthfulqa_gen, FOLDED)]},
        ("openai/gsm8k", "main"): _splits(gsm8k, scored="test"),
        ("HuggingFaceH4/MATH-500", "default"): {"test": [*map(math500, FOLDED)]},
        ("ChilleD/SVAMP", "default"): _splits(svamp, scored="test"),
        ("Rowan/hellaswag", "default"): _splits(hellaswag),
        ("allenai/ai2_arc", "ARC-Challenge"): _with_validation(arc),
        ("allenai/ai2_arc", "ARC-Easy"): _with_validation(arc),
        ("allenai/openbookqa", "main"): _with_validation(openbookqa),
        ("baber/piqa", "default"): _splits(piqa),
        ("tau/commonsense_qa", "default"): _splits(commonsense_qa),
    }
    found |= {("cambridgeltl/xcopa", x): _splits(xcopa, "validation", "test") for x in XCOPA}
    found |= {("facebook/xnli", x): _splits(xnli) for x in XNLI}
    found |= {
        ("juletxara/xstory_cloze", x): _splits(storycloze, scored="eval") for x in XSTORYCLOZE
    }
    return found


def write_data_sets(folder: Path) -> None:
    """A folder for every data set, with a README that lists its files."""
    configs: dict[str, list[Row]] = {}
    for (name, config), splits in data_sets().items():
        files = []
        for split, rows in splits.items():
            path = folder / name / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        entry = {"config_name": config, "data_files": files}
        configs.setdefault(name, []).append({**entry, "default": config == "default"})
    for name, listed in configs.items():
        text = yaml.safe_dump({"configs": listed}, sort_keys=False)
        (folder / name / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")


# ------------------------------------------------------------------ the tasks


@contextmanager
def hub_at(folder: Path, cache: Path) -> Iterator[None]:
    """Load data sets out of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


class Suite:
    """The covered tasks over the stand-ins; each is loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hub"
        self.cache = folder / "cache"
        self.manager = self.manager_with(None)
        self._tasks: dict[str, RunTask] = {}
        write_data_sets(self.folder)

    @staticmethod
    def manager_with(metadata: dict[str, Any] | None) -> TaskManager:
        folders = [task_configs(), *(HARNESS / name for name in HARNESS_FOLDERS)]
        return TaskManager(
            include_path=[str(each) for each in folders], include_defaults=False, metadata=metadata
        )

    @contextmanager
    def here(self) -> Iterator[None]:
        with hub_at(self.folder, self.cache):
            yield

    def task(self, name: str) -> RunTask:
        if name not in self._tasks:
            with self.here():
                [self._tasks[name]] = load_tasks([name], [], None, {}, self.manager)
        return self._tasks[name]

    def evaluate(self, model: LM | str, *tasks: Any, **settings: Any) -> dict[str, Any]:
        with self.here():
            return evaluate(model, *tasks, **{"task_manager": self.manager, **settings})


def evaluate(model: LM | str, *tasks: Any, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), **{"bootstrap_iters": 0, **settings}
    )
    return found


@functools.cache
def the_suite(folder: Path) -> Suite:
    """One for all test files of a session, which share its temporary folder."""
    return Suite(folder / "stand_ins")


# ------------------------------------------------------------------ models that only say things

RUDE, KIND = "rude", "kind"


def write_classifier(
    folder: Path, logits: dict[str, float], problem_type: str | None = None
) -> Path:
    """A text-classification model that looks at the last word of a text.

    Args:
        folder: where it is saved.
        logits: of each label where that word is ``rude``; else the same with the other sign.
        problem_type: as transformers' configurations have it.
    """
    words = {word: i for i, word in enumerate(["<unk>", "<pad>", RUDE, KIND])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    settings = {"n_layer": 0, "n_embd": 2, "n_head": 1, "n_positions": 64, "pad_token_id": 1}
    config = GPT2Config(
        vocab_size=len(words),
        id2label=dict(enumerate(logits)),
        label2id={label: i for i, label in enumerate(logits)},
        problem_type=problem_type,
        **settings,
    )
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(torch.tensor([[-1.0, 1.0]]))
        model.transformer.wte.weight[words[RUDE]] = torch.tensor([1.0, -1.0])
        model.score.weight.copy_(torch.tensor([[logit, 0.0] for logit in logits.values()]))
    model.save_pretrained(folder)
    return folder


class Scripted(LM):  # type: ignore[misc]
    """Log-likelihoods that follow from the texts alone, and one generated text a document."""

    def __init__(self, says: Callable[[str, Row], str] = lambda task, document: "") -> None:
        super().__init__()
        self.says = says

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [likelihood(*request.args) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.says(request.task_name, request.doc) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def likelihood(context: str, continuation: str) -> tuple[float, bool]:
    """What :class:`Scripted` says of a text: a number, and whether it is the greedy one."""
    number = zlib.crc32(f"{context}\0{continuation}".encode())
    return -(number % 9973) / 100, number % 3 == 0
