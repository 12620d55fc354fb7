"""Labelled prompts: those of the pairs' documents, each with all its choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, Text
from sadi_lmeval.options import Options
from sadi_lmeval.pairs.pairs import Pair, scored_texts
from sadi_lmeval.pairs.plan import Plan, num_fewshot
from sadi_lmeval.pairs.sources import Source


class LabelledPrompt(NamedTuple):
    """A document's prompt with its choices.

    Attributes:
        choices: as the harness scores them.
        right: the index of the one that the document's pair has as its positive text.
    """

    choices: list[Text]
    right: int
    document: Document


def labelled_prompts(
    plan: Plan, source: Source, pairs: Sequence[Pair], options: Options
) -> list[LabelledPrompt]:
    """Give the prompts of the documents of pairs, each once, in the order of the pairs.

    So methods that are fitted on prompts see the documents that the others see, with the same
    few-shot examples, and what a control does to the sides of the pairs it does to the labels.

    Args:
        plan, source: where the pairs come from.
        pairs: at least one; of several of one document the first counts.
        options: the user's.

    Raises:
        UserError: the pairs are not of choices, or no single prompt has them all.
    """
    task, recipe = plan.source_task, plan.recipe
    if recipe.contrast != "choice" or task.output_type != "multiple_choice":
        raise UserError(
            f"task {task.name}, recipe {recipe.recipe} ({recipe.contrast}): there are no choices "
            "that prompts could be labelled with; pass mask_from=TASK of a multiple-choice task"
        )
    of_documents = {pair.known_as.content: pair for pair in reversed(pairs)}
    first = [pair for pair in pairs if of_documents[pair.known_as.content] is pair]
    documents = [pair.document for pair in first]
    shots = num_fewshot(plan, options)
    texts = scored_texts(task, recipe, documents, source.allowed, shots, options.seed)
    prompts = []
    for pair, of_document in zip(first, texts, strict=True):
        # With acc_mutual_info the harness asks for each choice without a prompt, too.
        choices = of_document[: len(task.choices(pair.document))]
        if len({context for context, _ in choices}) > 1:
            raise UserError(
                f"task {task.name}: its choices stand in the prompts, so that no prompt has them "
                "all; pass mask_from=TASK of a task whose choices come after the prompt"
            )
        prompts.append(LabelledPrompt(choices, choices.index(pair.positive), pair.document))
    return prompts
