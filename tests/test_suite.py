"""Every covered benchmark on stand-in rows: it loads, and its pairs are right, wrong and clean."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from helpers.stand_ins import (
    FOLDED,
    PLANTED,
    SCORED,
    SST5,
    SUBJECTS,
    TRAIN,
    Row,
    Suite,
    data_sets,
    the_suite,
)
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.plan import Drawn, Plan, draw, find_plan

CHOSEN = ("top_k", "delta")
"""Numbers that are chosen on held-out documents."""
Said = Callable[[Row, str], bool]
"""Whether an answer to a row is right, or wrong, by the row alone."""


class Covered(NamedTuple):
    """What a harness task's pairs must be like.

    Attributes:
        data: its repository and configuration.
        key: the column that tells the rows apart and stands in the prompt.
        right, wrong: of its positive and its negative answer, without the spaces around it.
        pairs_from: the splits of the pairs; none: cross-fitted.
        scored: the split that is scored.
        makes: how many pairs all rows of those splits make; of a cross-fitted task each fold's.
    """

    data: tuple[str, str]
    recipe: str
    key: str
    right: Said
    wrong: Said
    pairs_from: tuple[str, ...] = ("train",)
    scored: str = "validation"
    makes: Sequence[int] = (len(TRAIN),)


# ------------------------------------------------------------------ what is right by a row


def one_of(
    right: Callable[[Row], str], others: Callable[[Row], Sequence[str]]
) -> tuple[Said, Said]:
    """Of a task with choices: the right one, and another one of all of them."""

    def is_right(row: Row, answer: str) -> bool:
        assert right(row) in others(row)
        return answer == right(row)

    def is_wrong(row: Row, answer: str) -> bool:
        return answer in others(row) and answer != right(row)

    return is_right, is_wrong


def labels(*names: str) -> tuple[Said, Said]:
    return one_of(lambda row: names[row["label"]], lambda row: names)


def letters(index: Callable[[Row], int], names: str = "ABCD") -> tuple[Said, Said]:
    return one_of(lambda row: names[index(row)], lambda row: names)


def opposite_of_five() -> tuple[Said, Said]:
    opposite = {0: [4], 1: [3], 2: [0, 4], 3: [1], 4: [0]}
    return (
        lambda row, answer: answer == row["label_text"],
        lambda row, answer: answer in [SST5[each] for each in opposite[row["label"]]],
    )


def lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def causes() -> tuple[Said, Said]:
    return one_of(
        lambda row: lowered(row["choice2"] if row["label"] else row["choice1"]),
        lambda row: [lowered(row["choice1"]), lowered(row["choice2"])],
    )


def endings() -> tuple[Said, Said]:
    return one_of(
        lambda row: row[f"sentence_quiz{row['answer_right_ending']}"],
        lambda row: [row["sentence_quiz1"], row["sentence_quiz2"]],
    )


def filled_in() -> tuple[Said, Said]:
    """The harness has the options in the middle of the sentence."""

    def with_option(row: Row, number: str) -> str:
        words = row["sentence"].split(" ")
        rest = words[words.index("_") + 1 :]
        return " ".join([row[f"option{number}"], *rest])

    return one_of(
        lambda row: with_option(row, row["answer"]),
        lambda row: [with_option(row, "1"), with_option(row, "2")],
    )


def entailed(*signs: str) -> tuple[Said, Said]:
    """The harness writes premise and hypothesis with one of three words between."""
    texts = [f"{{premise}}, {sign}, {{hypothesis}}" for sign in signs]
    return one_of(
        lambda row: texts[row["label"]].format(**row),
        lambda row: [text.format(**row) for text in texts],
    )


def named_choice() -> tuple[Said, Said]:
    return one_of(
        lambda row: dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))[
            row["answerKey"]
        ],
        lambda row: row["choices"]["text"],
    )


def answers_of(
    own: Callable[[Row], str], aliases: Callable[[Row], list[str]], every: list[Row]
) -> tuple[Said, Said]:
    """The row's own answer, and another training row's that is none of its own in any spelling."""
    known = {own(row) for row in every[: len(TRAIN)]}
    return (
        lambda row, answer: answer == own(row),
        lambda row, answer: (
            answer in known and answer.lower() not in {alias.lower() for alias in aliases(row)}
        ),
    )


def is_hateful(row: Row) -> bool:
    return bool(row["toxicity_ai"] + row["toxicity_human"] > 5.5)


def about_its_group(hateful: bool) -> Said:
    """A training statement about the row's group, and neither the row itself nor a scored one."""

    def said(row: Row, answer: str) -> bool:
        splits = data_sets()["skg/toxigen-data", "annotated"]
        scored = {" ".join(each["text"].lower().split()) for each in splits["test"]}
        texts = {
            each["text"].strip()
            for each in splits["train"]
            if each["target_group"] == row["target_group"] and is_hateful(each) == hateful
        }
        apart = " ".join(answer.lower().split()) not in scored
        return answer in texts and answer != row["text"].strip() and apart

    return said


def true_or_false(targets: str) -> tuple[Said, Said]:
    """Of a multiple-choice configuration of TruthfulQA."""

    def said(wanted: int) -> Said:
        return lambda row, answer: (
            (answer, wanted) in zip(row[targets]["choices"], row[targets]["labels"], strict=True)
        )

    return said(1), said(0)


def true_or_false_text() -> tuple[Said, Said]:
    """The harness ends each answer with a full stop, and adds one that is nobody's: not here."""
    return (
        lambda row, answer: answer in [f"{text}." for text in row["correct_answers"]],
        lambda row, answer: answer in [f"{text}." for text in row["incorrect_answers"]],
    )


NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def differ_in_their_last_number_alone(right: str, wrong: str) -> bool:
    last = list(NUMBER.finditer(right))[-1]
    before, after = right[: last.start()], right[last.end() :]
    if not (wrong.startswith(before) and wrong.endswith(after)):
        return False
    other = wrong[len(before) : len(wrong) - len(after)]
    value, number = last.group(), NUMBER.fullmatch(other)
    return number is not None and float(value.replace(",", "")) != float(other.replace(",", ""))


def last_number_changed(answer_of: Callable[[Row], str]) -> tuple[Said, Said]:
    return (
        lambda row, answer: answer == answer_of(row),
        lambda row, answer: differ_in_their_last_number_alone(answer_of(row), answer),
    )


def subtraction(row: Row) -> str:
    """A row of SVAMP worked out, without decimals that say nothing."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", row["Equation"])]
    one, other, left = (
        f"{x:.10f}".rstrip("0").rstrip(".") for x in [*numbers, numbers[0] - numbers[1]]
    )
    return f"( {one} - {other} ) = {left}"


def box_changed() -> tuple[Said, Said]:
    """Of MATH-500: what stands outside of the last box is the same."""

    def wrong(row: Row, answer: str) -> bool:
        before, after = row["solution"].rsplit(row["answer"], 1)
        assert before.endswith("\\boxed{")
        inside = answer[len(before) : len(answer) - len(after)]
        whole = answer.startswith(before) and answer.endswith(after)
        return whole and differ_in_their_last_number_alone(row["answer"], inside)

    return (lambda row, answer: answer == row["solution"]), wrong


# ------------------------------------------------------------------ the tasks

RIGHT_WRONG = "right_wrong"
TRIVIA = data_sets()["mandarjoshi/trivia_qa", "rc.nocontext"]["train"]
NQ = data_sets()["google-research-datasets/nq_open", "nq_open"]["train"]
GLUE, COPA, BOOLQ = (
    ("nyu-mll/glue", "sst2"),
    ("aps/super_glue", "copa"),
    ("aps/super_glue", "boolq"),
)
GLUE = ("nyu-mll/glue", "sst2")
GRANDE, STORY = ("allenai/winogrande", "winogrande_xl"), ("LSDSem/story_cloze", "2016")
ALL, TOXIGEN = ("cais/mmlu", "all"), ("skg/toxigen-data", "annotated")
MC, GEN = (("truthfulqa/truthful_qa", config) for config in ("multiple_choice", "generation"))
TEST: dict[str, Any] = {"scored": "test"}
VALIDATED: dict[str, Any] = {"pairs_from": ("validation",), "scored": "test"}
HALVES: dict[str, Any] = {"pairs_from": (), "makes": (7, 9)}
MMLU: dict[str, Any] = {"pairs_from": ("dev", "validation"), "scored": "test"}
of_mmlu = letters(lambda row: row["answer"])
of_label = letters(lambda row: row["label"])
of_ending = letters(lambda row: row["answer_right_ending"] - 1)

TASKS: dict[str, Covered] = {
    "boolq": Covered(BOOLQ, RIGHT_WRONG, "question", *labels("no", "yes")),
    "sadi_boolq": Covered(BOOLQ, RIGHT_WRONG, "question", *labels("no", "yes")),
    "copa": Covered(COPA, RIGHT_WRONG, "premise", *causes()),
    "sadi_copa": Covered(COPA, RIGHT_WRONG, "premise", *of_label),
    "winogrande": Covered(GRANDE, RIGHT_WRONG, "sentence", *filled_in()),
    "sadi_winogrande": Covered(
        GRANDE, RIGHT_WRONG, "sentence", *letters(lambda row: "12".index(row["answer"]))
    ),
    "xnli_en": Covered(
        ("facebook/xnli", "en"),
        RIGHT_WRONG,
        "premise",
        *entailed("right? Yes", "right? Also", "right? No"),
    ),
    "xnli_de": Covered(
        ("facebook/xnli", "de"),
        RIGHT_WRONG,
        "premise",
        *entailed("richtig? Ja", "richtig? Auch", "richtig? Nein"),
    ),
    "sadi_xnli": Covered(
        ("facebook/xnli", "en"),
        RIGHT_WRONG,
        "premise",
        *labels("entailment", "neutral", "contradiction"),
    ),
    "sst2": Covered(GLUE, RIGHT_WRONG, "sentence", *labels("negative", "positive")),
    "sadi_sst2": Covered(GLUE, RIGHT_WRONG, "sentence", *labels("negative", "positive")),
    "sadi_sst5": Covered(
        ("SetFit/sst5", "default"), "opposite_sentiment", "text", *opposite_of_five(), **TEST
    ),
    "mmlu_anatomy": Covered(
        ("cais/mmlu", "anatomy"), RIGHT_WRONG, "question", *of_mmlu, **MMLU, makes=[5]
    ),
    "sadi_mmlu": Covered(ALL, RIGHT_WRONG, "question", *of_mmlu, **MMLU, makes=[40]),
    **{
        f"sadi_mmlu_{discipline}": Covered(
            ALL, RIGHT_WRONG, "question", *of_mmlu, **MMLU, makes=[10]
        )
        for discipline in SUBJECTS
    },
    "xcopa_it": Covered(
        ("cambridgeltl/xcopa", "it"), RIGHT_WRONG, "premise", *causes(), **VALIDATED
    ),
    "xcopa_zh": Covered(
        ("cambridgeltl/xcopa", "zh"), RIGHT_WRONG, "premise", *causes(), **VALIDATED
    ),
    "storycloze_2016": Covered(STORY, RIGHT_WRONG, "input_sentence_1", *endings(), **VALIDATED),
    "sadi_storycloze": Covered(STORY, RIGHT_WRONG, "input_sentence_1", *of_ending, **VALIDATED),
    "xstorycloze_en": Covered(
        ("juletxara/xstory_cloze", "en"),
        RIGHT_WRONG,
        "input_sentence_1",
        *endings(),
        scored="eval",
    ),
    "xstorycloze_eu": Covered(
        ("juletxara/xstory_cloze", "eu"),
        RIGHT_WRONG,
        "input_sentence_1",
        *endings(),
        scored="eval",
    ),
    "triviaqa": Covered(
        ("mandarjoshi/trivia_qa", "rc.nocontext"),
        "other_answer",
        "question",
        *answers_of(
            lambda row: row["answer"]["value"], lambda row: row["answer"]["aliases"], TRIVIA
        ),
    ),
    "nq_open": Covered(
        ("google-research-datasets/nq_open", "nq_open"),
        "other_target",
        "question",
        *answers_of(lambda row: row["answer"][0], lambda row: row["answer"], NQ),
    ),
    "toxigen": Covered(
        TOXIGEN,
        RIGHT_WRONG,
        "text",
        *one_of(lambda row: "Yes" if is_hateful(row) else "No", lambda row: ["No", "Yes"]),
        **TEST,
        makes=[len(TRAIN) + 4],
    ),
    "sadi_toxigen": Covered(
        TOXIGEN, "benign_hateful", "text", about_its_group(False), about_its_group(True), **TEST
    ),
    "truthfulqa_mc1": Covered(MC, RIGHT_WRONG, "question", *true_or_false("mc1_targets"), **HALVES),
    "truthfulqa_mc2": Covered(
        MC, "right_wrong_mc2", "question", *true_or_false("mc2_targets"), **HALVES
    ),
    "sadi_truthfulqa_mc3": Covered(
        MC, "right_wrong_mc2", "question", *true_or_false("mc2_targets"), **HALVES
    ),
    "truthfulqa_gen": Covered(GEN, "true_false", "question", *true_or_false_text(), **HALVES),
    "sadi_truthfulqa_gen": Covered(GEN, "true_false", "question", *true_or_false_text(), **HALVES),
    "gsm8k": Covered(  # its five examples and one to spare come from the same split
        ("openai/gsm8k", "main"),
        "wrong_number",
        "question",
        *last_number_changed(lambda row: row["answer"]),
        **TEST,
        makes=[len(TRAIN) - 6],
    ),
    "sadi_gsm8k": Covered(
        ("openai/gsm8k", "main"),
        "wrong_number",
        "question",
        *last_number_changed(lambda row: row["answer"]),
        **TEST,
    ),
    "hendrycks_math500": Covered(
        ("HuggingFaceH4/MATH-500", "default"),
        "wrong_number_worked",
        "problem",
        *box_changed(),
        pairs_from=(),
        scored="test",
        makes=[5, 8],
    ),
    "sadi_svamp": Covered(
        ("ChilleD/SVAMP", "default"),
        "wrong_number",
        "Body",
        *last_number_changed(subtraction),
        **TEST,
    ),
    "hellaswag": Covered(
        ("Rowan/hellaswag", "default"),
        RIGHT_WRONG,
        "ctx_a",
        *one_of(lambda row: row["endings"][int(row["label"])], lambda row: row["endings"]),
    ),
    "arc_challenge": Covered(
        ("allenai/ai2_arc", "ARC-Challenge"), RIGHT_WRONG, "question", *named_choice(), **TEST
    ),
    "arc_easy": Covered(
        ("allenai/ai2_arc", "ARC-Easy"), RIGHT_WRONG, "question", *named_choice(), **TEST
    ),
    "piqa": Covered(
        ("baber/piqa", "default"),
        RIGHT_WRONG,
        "goal",
        *one_of(
            lambda row: row["sol2"] if row["label"] else row["sol1"],
            lambda row: [row["sol1"], row["sol2"]],
        ),
    ),
    "commonsense_qa": Covered(
        ("tau/commonsense_qa", "default"),
        RIGHT_WRONG,
        "question",
        *one_of(lambda row: row["answerKey"], lambda row: "ABCDE"),
    ),
    "openbookqa": Covered(
        ("allenai/openbookqa", "main"), RIGHT_WRONG, "question_stem", *named_choice(), **TEST
    ),
}
EVERY = pytest.mark.parametrize("name", TASKS)
WITH_TRAINING_ROWS = pytest.mark.parametrize("name", [n for n, c in TASKS.items() if c.pairs_from])
CROSS_FITTED = pytest.mark.parametrize("name", [n for n, c in TASKS.items() if not c.pairs_from])


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return the_suite(tmp_path_factory.getbasetemp())


@functools.cache
def planned(suite: Suite, name: str) -> Plan:
    return find_plan(suite.task(name), Options())


@functools.cache
def drawn(suite: Suite, name: str, tuning: bool = False) -> list[Drawn]:
    plan = planned(suite, name)
    return [
        draw(plan, source, Options(), CHOSEN if tuning else ()) for source in plan.sources.sources
    ]


def rows(name: str, *splits: str) -> list[Row]:
    return [row for split in splits for row in data_sets()[TASKS[name].data][split]]


def row_of(name: str, pair: Pair) -> Row:
    """The raw row of a pair's document."""
    covered = TASKS[name]
    key = pair.document[covered.key]
    found = [
        r for r in rows(name, *covered.pairs_from or [covered.scored]) if r[covered.key] == key
    ]
    assert found
    return found[0]


# ------------------------------------------------------------------ what the pairs say


@EVERY
def test_a_task_loads_unmodified_and_makes_its_pairs_by_its_own_recipe(
    suite: Suite, name: str
) -> None:
    covered, plan = TASKS[name], planned(suite, name)
    assert plan.recipe.recipe == covered.recipe
    assert plan.sources.folds == (None if covered.pairs_from else 2)
    assert plan.sources.split == "+".join(covered.pairs_from or [covered.scored])
    assert [len(each.pairs) for each in drawn(suite, name)] == list(covered.makes)


@EVERY
def test_both_texts_of_a_pair_share_their_prompt_byte_for_byte(suite: Suite, name: str) -> None:
    covered = TASKS[name]
    for each in drawn(suite, name):
        for pair in each.pairs:
            (prompt, right), (other_prompt, wrong) = pair.positive, pair.negative
            assert prompt.encode() == other_prompt.encode()
            assert right != wrong
            key = row_of(name, pair)[covered.key].strip()
            if name == "winogrande":  # its prompt ends at the blank
                assert prompt == key.split(" _ ")[0]
            elif name in ("xnli_en", "xnli_de"):
                assert prompt == ""
            else:
                assert key.removesuffix(".") in prompt


@EVERY
def test_the_positive_is_right_and_the_negative_wrong_by_the_raw_row(
    suite: Suite, name: str
) -> None:
    covered = TASKS[name]
    for each in drawn(suite, name):
        for pair in each.pairs:
            row, right, wrong = row_of(name, pair), pair.positive[1], pair.negative[1]
            assert right.startswith(" ") or not pair.positive[0]
            assert covered.right(row, right.strip()), (row, right)
            assert covered.wrong(row, wrong.strip()), (row, wrong)
            assert not covered.right(row, wrong.strip())


def test_every_label_of_five_is_among_the_pairs_and_neutral_meets_both_ends(suite: Suite) -> None:
    seen: set[tuple[str, str]] = set()
    plan = planned(suite, "sadi_sst5")
    [source] = plan.sources.sources
    for seed in range(8):
        pairs = draw(plan, source, Options(seed=seed), ()).pairs
        seen |= {(pair.positive[1].strip(), pair.negative[1].strip()) for pair in pairs}
    assert seen == {
        ("very negative", "very positive"),
        ("negative", "positive"),
        ("neutral", "very negative"),
        ("neutral", "very positive"),
        ("positive", "negative"),
        ("very positive", "very negative"),
    }


# ------------------------------------------------------------------ what never makes a pair


@WITH_TRAINING_ROWS
@pytest.mark.parametrize("tuning", [False, True], ids=["pairs", "pairs and tuning"])
def test_a_scored_document_that_stands_among_the_training_ones_is_in_no_pair(
    suite: Suite, name: str, tuning: bool
) -> None:
    covered = TASKS[name]
    scored = {row[covered.key] for row in rows(name, covered.scored)}
    planted = [row for row in rows(name, *covered.pairs_from) if row[covered.key] in scored]
    assert planted
    if name in ("mmlu_anatomy", "gsm8k"):
        tuning = False  # five or six rows are too few
    [found] = drawn(suite, name, tuning)
    used = [pair.document[covered.key] for pair in found.pairs]
    held_out = [document[covered.key] for document in found.held_out]
    assert used
    assert bool(held_out) == tuning
    for text in (*used, *held_out):
        assert " ".join(text.lower().split()) not in {key.lower().strip() for key in scored}
    assert len({*used, *held_out}) == len(used) + len(held_out)


@pytest.mark.parametrize("name", ["triviaqa", "nq_open"])
def test_no_answer_of_a_scored_document_is_another_one_s_wrong_answer(
    suite: Suite, name: str
) -> None:
    plan = planned(suite, name)
    [source] = plan.sources.sources
    pairs = [
        pair for seed in range(10) for pair in draw(plan, source, Options(seed=seed), ()).pairs
    ]
    assert any("Hollow Tower" in str(document) for document in source.documents)
    assert not any("hollow tower" in pair.negative[1].lower() for pair in pairs)
    assert not any("hollow tower" in pair.positive[1].lower() for pair in pairs)


@CROSS_FITTED
@pytest.mark.parametrize("tuning", [False, True], ids=["pairs", "pairs and tuning"])
def test_a_cross_fitted_document_is_in_no_pair_of_the_mask_that_scores_it(
    suite: Suite, name: str, tuning: bool
) -> None:
    covered, plan = TASKS[name], planned(suite, name)
    documents = plan.task.evaluated()
    keys = [document[covered.key] for document in documents]
    assert len(keys) == len(FOLDED)
    assert keys[-1] == keys[3]  # it stands in both halves
    masks = [plan.sources.fit_of(document) for document in documents]
    assert set(masks) == {0, 1}
    assert masks[-1] == masks[3]
    options = Options(n_pairs=3, n_tune=2) if tuning else Options()
    for mask, source in enumerate(plan.sources.sources):
        found = draw(plan, source, options, CHOSEN if tuning else ())
        used = {pair.document[covered.key] for pair in found.pairs}
        used |= {document[covered.key] for document in found.held_out}
        assert used
        assert used.isdisjoint(key for key, by in zip(keys, masks, strict=True) if by == mask)


@pytest.mark.parametrize("name", [name for name in TASKS if "mmlu" in name])
def test_pairs_of_mmlu_never_come_from_its_test_split(suite: Suite, name: str) -> None:
    [found] = drawn(suite, name)
    tested = {row["question"] for row in rows(name, "test")}
    other = {row["question"] for row in rows(name, "dev", "validation")}
    questions = {pair.document["question"] for pair in found.pairs}
    assert questions
    assert questions.isdisjoint(tested)
    assert questions <= other
    for split in ("dev", "validation"):
        assert not questions.isdisjoint(row["question"] for row in rows(name, split))
    subjects = {pair.document["subject"] for pair in found.pairs}
    wanted = {
        "mmlu_anatomy": ["anatomy"],
        "sadi_mmlu": [subject for each in SUBJECTS.values() for subject in each],
    }
    assert subjects == set(wanted.get(name) or SUBJECTS[name.removeprefix("sadi_mmlu_")])


def test_the_stand_ins_have_a_planted_row_and_every_label(suite: Suite) -> None:
    """What the tests above rest on."""
    assert PLANTED in SCORED
    assert PLANTED not in TRAIN
    for name in ("boolq", "copa", "sst2", "sadi_sst5", "xnli_en", "piqa"):
        found = {row["label"] for row in rows(name, "train")}
        assert found == set(range(max(found) + 1))
        assert len(found) > 1
