"""Contrastive pairs out of a task's own documents (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask, Text
from sadi_lmeval.options import Negative
from sadi_lmeval.pairs.contrasts import answers, contrasted_choices, right_answer
from sadi_lmeval.pairs.recipe import Recipe
from sadi_lmeval.pairs.sources import Identity, Known, identity
from sadi_lmeval.passes.prefixes import shared_length

Likes = Callable[[Sequence[Sequence[Text]]], Sequence[int]]
"""Of each document's wrong answers, the index of the one that the unsteered model likes best."""


class Pair(NamedTuple):
    """The same prompt with a right and with a wrong answer, and the document it is from."""

    positive: Text
    negative: Text
    document: Document
    known_as: Identity


class _Made(NamedTuple):
    """A document that makes a pair.

    Attributes:
        answers: its right and its wrong answer; None where it has choices.
    """

    document: Document
    known_as: Identity
    answers: tuple[str, str] | None


def build_pairs(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool],
    target: int,
    num_fewshot: int,
    seed: int,
    negative: Negative = "random",
    likes: Likes | None = None,
) -> list[Pair]:
    """Draw ``target`` pairs from ``documents``, or as many as can be made of them.

    The draw depends on the seed and the documents alone. A document that makes no pair (no
    gold choice, no number in its target) is passed over, and so is one that stands there again.

    Args:
        task: renders the texts.
        recipe: what is contrasted; not a static one.
        documents: where the pairs come from.
        allowed: whether a document may make a pair.
        target: how many pairs.
        num_fewshot: few-shot examples in each prompt; they never are documents of the pairs.
        seed: of the draw and of the choice of wrong answers.
        negative: which wrong choice: a ``random`` one, ``all``, each in a pair of its own, or the
            ``hardest``.
        likes: finds the hardest; needed for that alone.
    """
    random = Random(seed)
    order = random.sample(range(len(documents)), len(documents))
    examples = few_shot_examples(task, allowed, num_fewshot, seed)
    made: list[_Made] = []
    count = 0
    for index, known_as in _candidates(task, documents, allowed, examples, order):
        if count >= target:
            break
        document = documents[index]
        if recipe.contrast == "choice":
            gold, wrong = contrasted_choices(task, recipe, document)
            if gold and wrong and task.fits(document):
                made.append(_Made(document, known_as, None))
                count += len(wrong) if negative == "all" else 1
            continue
        both = answers(task, recipe, documents, index, allowed, random)
        if both is not None and task.fits(document, *both):
            made.append(_Made(document, known_as, both))
            count += 1
    with task.few_shot_pool(examples, seed):
        texts = [task.texts(each.document, num_fewshot) for each in made]
    if recipe.contrast == "choice":
        return _of_choices(task, recipe, made, texts, negative, likes, random)[:target]
    delimiter = task.answer_delimiter()
    pairs = []
    for each, [(context, _), *_] in zip(made, texts, strict=True):
        positive, wrong_one = each.answers or ("", "")
        pairs.append(
            Pair(
                (context, delimiter + positive),
                (context, delimiter + wrong_one),
                each.document,
                each.known_as,
            )
        )
    return pairs


def _of_choices(
    task: RunTask,
    recipe: Recipe,
    made: Sequence[_Made],
    texts: Sequence[Sequence[Text]],
    negative: Negative,
    likes: Likes | None,
    random: Random,
) -> list[Pair]:
    """Make the pairs of documents with choices."""
    chosen: list[tuple[Text, list[Text]]] = []
    for each, choices in zip(made, texts, strict=True):
        gold, wrong = contrasted_choices(task, recipe, each.document)
        positive = choices[random.choice(gold)]
        drawn = [random.choice(wrong)] if negative == "random" else wrong
        chosen.append((positive, [choices[index] for index in drawn]))
    if negative == "hardest":
        if likes is None:
            raise UserError("negative=hardest: which wrong choice is, a model must say")
        best = likes([wrongs for _, wrongs in chosen])
        chosen = [(p, [wrongs[i]]) for (p, wrongs), i in zip(chosen, best, strict=True)]
    return [
        Pair(*_with_one_prompt(positive, wrong), each.document, each.known_as)
        for each, (positive, wrongs) in zip(made, chosen, strict=True)
        for wrong in wrongs
    ]


def _with_one_prompt(positive: Text, negative: Text) -> tuple[Text, Text]:
    """Divide two texts so that their prompts are the same, byte for byte.

    Where the options stand in the prompts (WinoGrande), the prompt ends before them, at the last
    space or line end that both have; the texts as a whole stay what they are.
    """
    if positive[0] == negative[0]:
        return positive, negative
    begun = positive[0][: shared_length(positive[0], negative[0])]
    shared = begun[: max(begun.rfind(" "), begun.rfind("\n")) + 1].rstrip()
    texts = ["".join(text)[len(shared) :] for text in (positive, negative)]
    return (shared, texts[0]), (shared, texts[1])


def usable_documents(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool],
    num_fewshot: int,
    seed: int,
) -> Iterator[Document]:
    """Yield documents with a right answer, each once, in the order of the draw."""
    examples = few_shot_examples(task, allowed, num_fewshot, seed)
    order = Random(seed).sample(range(len(documents)), len(documents))
    for index, _ in _candidates(task, documents, allowed, examples, order):
        document = documents[index]
        if recipe.contrast == "choice":
            if all(contrasted_choices(task, recipe, document)) and task.fits(document):
                yield document
            continue
        right = right_answer(task, recipe, document)
        if right.strip() and task.fits(document, right):
            yield document


def _candidates(
    task: RunTask,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool],
    examples: Sequence[Document],
    order: Sequence[int],
) -> Iterator[tuple[int, Identity]]:
    """Yield documents that may be used, each once, in an order: allowed, none of the examples."""
    reserved = Known.of(identity(task, document) for document in examples)
    seen: set[str] = set()
    for index in order:
        document = documents[index]
        known_as = identity(task, document)
        if known_as.content in seen or reserved.has(known_as) or not allowed(document):
            continue
        seen.add(known_as.content)
        yield index, known_as


def scored_texts(
    task: RunTask,
    recipe: Recipe,
    documents: Sequence[Document],
    allowed: Callable[[Document], bool] | None,
    num_fewshot: int,
    seed: int,
) -> list[list[Text]]:
    """Give what the harness would score for documents; of a generation task its answer, forced.

    Args:
        task: renders the texts.
        recipe: of the documents: says what the answer is.
        documents: those to score.
        allowed: with it the few-shot examples are those of the pairs; None: as the harness draws
            them for the documents that it scores, in this order.
        num_fewshot: few-shot examples in each prompt.
        seed: of the draw.
    """
    examples = [] if allowed is None else few_shot_examples(task, allowed, num_fewshot, seed)
    with task.few_shot_pool(examples, seed):
        texts = [task.texts(document, num_fewshot) for document in documents]
    if task.output_type != "generate_until":
        return texts
    return [
        [(context, task.answer_delimiter() + right_answer(task, recipe, document))]
        for [(context, _)], document in zip(texts, documents, strict=True)
    ]


def few_shot_examples(
    task: RunTask, allowed: Callable[[Document], bool], num_fewshot: int, seed: int
) -> list[Document]:
    """Draw the documents that every prompt of the pairs shows as examples, and one to spare.

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
