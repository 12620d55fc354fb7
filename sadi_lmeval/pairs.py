"""Contrastive pairs out of a task's own documents (paper section 3.1)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

from jinja2 import TemplateError
from lm_eval import utils as harness

from sadi_lmeval.errors import UserError, first_line
from sadi_lmeval.recipe import Recipe
from sadi_lmeval.run_tasks import Document, RunTask, Text
from sadi_lmeval.sources import Known, identity


class Pair(NamedTuple):
    """The same prompt with a right and with a wrong answer, and the document it is from."""

    positive: Text
    negative: Text
    document: Document


def build_pairs(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool],
    wanted: int,
    num_fewshot: int,
    seed: int,
) -> list[Pair]:
    """Draw ``wanted`` pairs from ``documents``, or as many as can be made of them.

    The draw depends on the seed and the documents alone. A document that makes no pair (no
    gold choice, no number in its target) is passed over, and so is one that stands there again.

    Args:
        task: renders the texts.
        recipe: what is contrasted.
        documents: where the pairs come from.
        allowed: whether a document may make a pair.
        wanted: how many pairs.
        num_fewshot: few-shot examples in each prompt; they never are documents of the pairs.
        seed: of the draw and of the choice of wrong answers.
    """
    random = Random(seed)
    order = random.sample(range(len(documents)), len(documents))
    examples = _few_shot_examples(task, allowed, num_fewshot, seed)
    reserved = Known.of(identity(task, document) for document in examples)
    made: list[tuple[int, str | None]] = []  # document, and the wrong answer where it is drawn
    seen: set[str] = set()
    for index in order:
        if len(made) == wanted:
            break
        document = documents[index]
        known_as = identity(task, document)
        if known_as.content in seen or reserved.has(known_as) or not allowed(document):
            continue
        seen.add(known_as.content)
        if recipe.contrast == "choice":
            if all(gold_and_wrong(task, recipe, document)):
                made.append((index, None))
            continue
        answer = target(task, document)
        if recipe.contrast == "wrong_number":
            wrong = with_wrong_number(answer, random)
        else:
            wrong = _other_target(task, documents, index, allowed, random)
        if answer.strip() and wrong is not None:
            made.append((index, wrong))
    with task.few_shot_pool(examples, seed):
        return [
            _pair(task, recipe, documents[index], wrong, num_fewshot, random)
            for index, wrong in made
        ]


def usable_documents(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool],
    num_fewshot: int,
    seed: int,
) -> Iterator[Document]:
    """Documents that could make a pair, each once, in the order of the draw."""
    examples = _few_shot_examples(task, allowed, num_fewshot, seed)
    reserved = Known.of(identity(task, document) for document in examples)
    seen: set[str] = set()
    for index in Random(seed).sample(range(len(documents)), len(documents)):
        document = documents[index]
        known_as = identity(task, document)
        if reserved.has(known_as) or known_as.content in seen or not allowed(document):
            continue
        seen.add(known_as.content)
        if recipe.contrast == "choice":
            if all(gold_and_wrong(task, recipe, document)):
                yield document
        elif target(task, document).strip():
            yield document


def scored_texts(
    task: RunTask,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool] | None,
    num_fewshot: int,
    seed: int,
) -> list[list[Text]]:
    """What the harness would score for documents; of a generation task its target, forced.

    Args:
        task: renders the texts.
        documents: those to score.
        allowed: with it the few-shot examples are those of the pairs; None: as the harness draws
            them for the documents that it scores, in this order.
        num_fewshot: few-shot examples in each prompt.
        seed: of the draw.
    """
    examples = [] if allowed is None else _few_shot_examples(task, allowed, num_fewshot, seed)
    with task.few_shot_pool(examples, seed):
        found = [task.texts(document, num_fewshot) for document in documents]
    if task.output_type != "generate_until":
        return found
    return [
        [(context, task.target_delimiter() + target(task, document))]
        for [(context, _)], document in zip(found, documents, strict=True)
    ]


def _few_shot_examples(
    task: RunTask, allowed: Callable[[Document], bool], num_fewshot: int, seed: int
) -> list[Document]:
    """The documents that every prompt of the pairs shows as examples, and one to spare.

    An example shows its answer and so helps to make the mask: like a pair's document it must be
    none that the mask will score.

    Raises:
        UserError: too few are left.
    """
    if not num_fewshot:
        return []
    pool = task.few_shot_documents()
    examples: list[Document] = []
    for document in pool if task.shows_first_examples else Random(seed).sample(pool, len(pool)):
        if len(examples) <= num_fewshot and allowed(document):
            examples.append(document)
    if len(examples) < min(num_fewshot + 1, len(pool)) or not pool:
        raise UserError(
            f"task {task.name}: {len(examples)} few-shot examples are left that are not scored, "
            f"but the pairs need {num_fewshot + 1}; pass pairs_num_fewshot=0"
        )
    return examples


def _pair(
    task: RunTask,
    recipe: Recipe,
    document: Document,
    wrong: str | None,
    num_fewshot: int,
    random: Random,
) -> Pair:
    texts = task.texts(document, num_fewshot)
    if wrong is None:
        gold, others = gold_and_wrong(task, recipe, document)
        return Pair(texts[random.choice(gold)], texts[random.choice(others)], document)
    context = texts[0][0]
    delimiter = "" if task.output_type == "loglikelihood" else task.target_delimiter()
    answer = target(task, document)
    return Pair((context, delimiter + answer), (context, delimiter + wrong), document)


def gold_and_wrong(
    task: RunTask, recipe: Recipe, document: Document
) -> tuple[list[int], list[int]]:
    """Indices of the right and of the wrong choices of a document.

    Raises:
        UserError: the task has no choices.
    """
    if task.task.config.doc_to_choice is None:
        raise UserError(
            f"recipe {recipe.recipe} contrasts choices, but task {task.name} has none; "
            "pass recipe=other_target or recipe=wrong_number"
        )
    choices = task.task.doc_to_choice(document)
    gold: Any
    if recipe.gold is not None:
        gold = _gold_of_template(recipe, document)
    elif getattr(task.task, "multiple_input", 0):
        gold = task.task.doc_to_text(document)
    else:
        gold = task.task.doc_to_target(document)
    right = {
        choices.index(g) if isinstance(g, str) and g in choices else g
        for g in (gold if isinstance(gold, list) else [gold])
    }
    indices = [i for i in range(len(choices)) if i in right]
    return indices, [i for i in range(len(choices)) if i not in right] if indices else []


def _gold_of_template(recipe: Recipe, document: Document) -> int | list[int]:
    try:
        gold = ast.literal_eval(harness.apply_template(recipe.gold, document))
    except (TemplateError, ValueError, SyntaxError, TypeError, RecursionError) as error:
        reason = first_line(error)
        raise UserError(
            f"recipe {recipe.recipe}: its gold template {recipe.gold!r} must give an index or a "
            f"0/1 list ({reason})"
        ) from None
    if isinstance(gold, list):
        return [index for index, label in enumerate(gold) if label]
    if isinstance(gold, bool) or not isinstance(gold, int):
        raise UserError(
            f"recipe {recipe.recipe}: its gold template {recipe.gold!r} gave {gold!r}, but an "
            "index or a 0/1 list is needed"
        )
    return gold


def target(task: RunTask, document: Document) -> str:
    """The document's answer as text: the first where there are several."""
    answer = task.task.doc_to_target(document)
    if isinstance(answer, list):
        answer = answer[0] if answer else ""
    if isinstance(answer, int) and task.task.config.doc_to_choice is not None:
        answer = task.task.doc_to_choice(document)[answer]
    return str(answer)


def _other_target(
    task: RunTask,
    documents: Sequence[Document],
    index: int,
    allowed: Callable[[Document], bool],
    random: Random,
) -> str | None:
    """Another document's answer that is none of this document's answers."""
    own = _answers(task, documents[index])
    for other in random.sample(range(len(documents)), min(20, len(documents))):
        answer = target(task, documents[other])
        if answer.strip() and answer.strip().lower() not in own and allowed(documents[other]):
            return answer
    return None


def _answers(task: RunTask, document: Document) -> set[str]:
    answer = task.task.doc_to_target(document)
    every: Iterable[object] = answer if isinstance(answer, list) else [target(task, document)]
    return {str(a).strip().lower() for a in every}


_LONGEST_NUMBER = 1000
"""Signs; longer ones are no answers, and Python refuses to read some of them."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def with_wrong_number(text: str, random: Random) -> str | None:
    """``text`` with its last number replaced by a near, different one; None if it has none.

    The number keeps its form: sign, thousands separators and decimal places.
    """
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    match = matches[-1]
    written = match.group().rstrip(",")
    if len(written) > _LONGEST_NUMBER:
        return None
    digits, _, decimals = written.lstrip("-").replace(",", "").partition(".")
    value = int(digits + decimals) * (-1 if written.startswith("-") else 1)
    reach = max(3, abs(value) // 5)
    offset = random.choice([-1, 1]) * random.randint(1, reach)
    negative = written.startswith("-")
    wrong = value + offset
    if (wrong < 0) != negative:
        wrong = value - offset
    text_of = str(abs(wrong)).zfill(len(decimals) + 1)
    whole = text_of[: len(text_of) - len(decimals)]
    new = (
        f"{'-' if wrong < 0 else ''}{int(whole):,}"
        if "," in written
        else (f"{'-' if wrong < 0 else ''}{whole}")
    )
    if decimals:
        new += "." + text_of[len(text_of) - len(decimals) :]
    return text[: match.start()] + new + text[match.start() + len(written) :]
