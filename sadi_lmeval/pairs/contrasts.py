"""Right and wrong answers to a document, by a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.pairs import templates
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.wrong_numbers import with_wrong_number


def gold_and_wrong(
    task: RunTask, recipe: Recipe, document: Document
) -> tuple[list[int], list[int]]:
    """List the indices of the right and of the wrong choices of a document.

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
    if recipe.contrast == "choice" and recipe.gold is not None:
        gold = _gold_of_template(recipe, recipe.gold, document)
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


def contrasted_choices(
    task: RunTask, recipe: Recipe, document: Document
) -> tuple[list[int], list[int]]:
    """List the indices of the right choices, and of the wrong ones that the recipe contrasts with.

    Raises:
        UserError: the task has no choices, or the recipe names one that there is not.
    """
    gold, wrong = gold_and_wrong(task, recipe, document)
    if recipe.wrong is None or not wrong:
        return gold, wrong
    named = templates.value(recipe.wrong, document, f"recipe {recipe.recipe}: wrong")
    if not isinstance(named, list) or not all(type(i) is int and i in wrong for i in named):
        raise UserError(
            f"recipe {recipe.recipe}: its template {recipe.wrong!r} must give a list of indices of "
            f"wrong choices ({', '.join(map(str, wrong))}), but gave {named!r}"
        )
    return gold, named


def _gold_of_template(recipe: Recipe, template: str, document: Document) -> list[int]:
    name = f"recipe {recipe.recipe}: its gold template"
    gold = templates.value(template, document, name)
    if isinstance(gold, list):
        return [index for index, label in enumerate(gold) if label]
    if isinstance(gold, bool) or not isinstance(gold, int):
        raise UserError(f"{name} {template!r} gave {gold!r}, but an index or a 0/1 list is needed")
    return [gold]


def answers(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    index: int,
    allowed: Callable[[Document], bool],
    random: Random,
) -> tuple[str, str] | None:
    """Give a right and a wrong answer to a document as texts, or None where it makes no pair.

    Args:
        task: of the documents.
        recipe: one that contrasts texts.
        documents: where another document's answer comes from.
        index: of the document.
        allowed: whether a document may take part in a pair.
        random: draws what is wrong.
    """
    document = documents[index]
    if recipe.contrast == "answers":
        right, wrong = right_texts(recipe, document), _texts(recipe, "wrong", document)
        wrong = [text for text in wrong if text not in right]
        return (random.choice(right), random.choice(wrong)) if right and wrong else None
    right_one = right_answer(task, recipe, document)
    if recipe.contrast == "wrong_number":
        wrong_one = with_wrong_number(right_one, random)
    else:
        wrong_one = _other_answer(task, recipe, documents, index, allowed, random)
    return None if wrong_one is None or not right_one.strip() else (right_one, wrong_one)


def right_answer(task: RunTask, recipe: Recipe, document: Document) -> str:
    """Give the right answer to a document that a generation task is tuned on; blank: there is none.

    What the recipe says, or the task's target.
    """
    if recipe.answer is not None:
        return templates.rendered(recipe.answer, document, f"recipe {recipe.recipe}: answer")
    if recipe.contrast == "answers":
        return next(iter(right_texts(recipe, document)), "")
    return target(task, document)


def right_texts(recipe: Recipe, document: Document) -> list[str]:
    """List all right answers to a document of a recipe that lists them."""
    return _texts(recipe, "right", document)


def _texts(recipe: Recipe, key: str, document: Document) -> list[str]:
    return templates.texts(str(getattr(recipe, key)), document, f"recipe {recipe.recipe}: {key}")


def target(task: RunTask, document: Document) -> str:
    """Give the document's answer as text: the first where there are several."""
    answer = task.task.doc_to_target(document)
    if isinstance(answer, list):
        answer = answer[0] if answer else ""
    if isinstance(answer, int) and task.task.config.doc_to_choice is not None:
        answer = task.task.doc_to_choice(document)[answer]
    return str(answer)


def _other_answer(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    index: int,
    allowed: Callable[[Document], bool],
    random: Random,
) -> str | None:
    """Draw another document's answer; none of its answers is one of this document's."""
    own = _right(task, recipe, documents[index])
    for other in random.sample(range(len(documents)), min(20, len(documents))):
        answer = right_answer(task, recipe, documents[other])
        apart = own.isdisjoint(_right(task, recipe, documents[other]))
        if answer.strip() and apart and allowed(documents[other]):
            return answer
    return None


def _right(task: RunTask, recipe: Recipe, document: Document) -> set[str]:
    """Give all that the task and the recipe count as right, without regard to case and spaces."""
    answer = task.task.doc_to_target(document)
    every = answer if isinstance(answer, list) else [target(task, document)]
    every = [*every, right_answer(task, recipe, document)]
    return {normalized(str(each)) for each in every}


def normalized(text: str) -> str:
    """Write a text without regard to case and spacing."""
    return " ".join(text.split()).lower()
