"""Which documents' pairs may steer which evaluated document.

Nothing that is scored may have helped to choose what it is scored with. Documents are compared
by content, so a document that stands in two splits or twice in one split is still the same.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask, digest
from sadi_lmeval.pairs.benchmark import Benchmark

_SHARED = 5
"""A question that more evaluated documents share than this identifies none of them."""


QUESTIONS_BY = "letters and digits"
"""How a fit's card knows questions."""


class Identity(NamedTuple):
    """What a document is known by: its content, and its own part of the prompt."""

    content: str
    question: str


_identities: WeakKeyDictionary[Any, dict[str, Identity]] = WeakKeyDictionary()
"""Of each task's documents by content: to render a question takes a millisecond."""


class _Spaces(dict[int, int | str]):
    """A space in place of every sign that is no part of a word, told when it is first met."""

    def __missing__(self, sign: int) -> int | str:
        kind = unicodedata.category(chr(sign))
        apart = kind[0] in "PSZ" or kind in ("Cc", "Cf")
        self[sign] = " " if apart else sign
        return self[sign]


_SPACES = _Spaces()


def words(text: str) -> str:
    """Keep the letters and digits of a text, a space between words, whatever its case and signs."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_SPACES).split())


def identity(task: RunTask, document: Document) -> Identity:
    """Tell what a document is known by; where it asks nothing, its choices in any order."""
    content = digest(document)
    known = _identities.setdefault(task.task, {})
    if content not in known:
        asked = words(task.question(document))
        if not asked:
            asked = "\0".join(sorted(map(words, task.choices(document)))).strip("\0")
        known[content] = Identity(content, question_digest(asked) if asked else "")
    return known[content]


def question_digest(asked: str) -> str:
    """Digest a question's words, however they are set apart."""
    return digest({"question": asked.replace(" ", "")})


@dataclass(frozen=True)
class Known:
    """Documents that must not be among the pairs of a fit."""

    contents: frozenset[str]
    questions: frozenset[str]

    @classmethod
    def of(cls, identities: Iterable[Identity]) -> Known:
        identities = list(identities)
        counts = Counter(i.question for i in set(identities) if i.question)
        return cls(
            frozenset(i.content for i in identities),
            frozenset(question for question, count in counts.items() if count <= _SHARED),
        )

    def has(self, document: Identity) -> bool:
        return document.content in self.contents or document.question in self.questions


class Source(NamedTuple):
    """Documents that the pairs of one fit come from.

    Attributes:
        label: for people: the split, or which fold is left out.
        documents: candidates, in data order.
        allowed: whether a candidate is none of the documents that the fit will score.
    """

    label: str
    documents: Sequence[Document]
    allowed: Callable[[Document], bool]


class Sources(NamedTuple):
    """Where the pairs of all fits of a task come from.

    Attributes:
        task: the task whose documents make the pairs.
        sources: one a fit.
        split: the dataset split or splits of the pairs.
        folds: the number of folds, or None where the task is not cross-fitted.
        fit_of: the index of the source whose fit an evaluated document is scored with.
    """

    task: RunTask
    sources: list[Source]
    split: str
    folds: int | None
    fit_of: Callable[[Document], int]

    def undivided(self) -> Sources:
        """Give one source of all the documents that are cross-fitted; its fit may score none."""
        whole = Source(f"all of {self.split}", self.task.evaluated(), lambda _: True)
        return self._replace(sources=[whole], folds=None, fit_of=lambda _: 0)


def splits_of_pairs(
    benchmark: Benchmark, training: str | None, validation: str | None, test: str | None
) -> tuple[str, ...]:
    """Name the splits that pairs come from, of a task with these splits; none: cross-fitted."""
    if benchmark.pairs_from:
        return benchmark.pairs_from
    if training:
        return (training,)
    return (validation,) if test and validation else ()


def find_sources(
    evaluated: RunTask, source: RunTask, benchmark: Benchmark, folds: int | None
) -> Sources:
    """Find where the pairs that steer ``evaluated`` come from.

    The benchmark's ``pairs_from`` decides; without it the training split of ``source``, else its
    validation split if its test split is scored; else ``source`` is cross-fitted: contiguous
    folds in data order over the whole evaluated split, each scored with the fit of the others.

    Args:
        evaluated: the task that is scored.
        source: the task whose documents make the pairs; mostly the same.
        benchmark: of ``source``.
        folds: the number of folds that the user asked for, or None.

    Raises:
        UserError: the split of the pairs is the one that is scored.
    """
    config = source.task.config
    splits = splits_of_pairs(
        benchmark, config.training_split, config.validation_split, config.test_split
    )
    if source.evaluated_split() in splits:
        if folds is None:
            raise UserError(
                f"task {source.name}: its pairs would come from {source.evaluated_split()!r}, the "
                "split that is scored; pass folds=2 to cross-fit it, or name other splits under "
                "pairs_from in a benchmark file"
            )
        splits = ()
    scored = evaluated.evaluated()
    if splits:
        known = Known.of(identity(evaluated, document) for document in scored)
        several = [source.documents(split) for split in splits]
        documents = several[0] if len(several) == 1 else [d for each in several for d in each]
        label = "+".join(splits)

        def allowed(document: Document) -> bool:
            return not known.has(identity(source, document))

        return Sources(source, [Source(label, documents, allowed)], label, None, lambda _: 0)
    return _cross_fitted(evaluated, source, folds or benchmark.folds)


def _cross_fitted(evaluated: RunTask, source: RunTask, folds: int) -> Sources:
    documents = source.evaluated()
    if len(documents) < folds:
        raise UserError(
            f"task {source.name}: {len(documents)} documents are too few for {folds} folds"
        )
    identities = [identity(source, document) for document in documents]
    fold_of: dict[str, int] = {}
    fold_of_question: dict[str, int] = {}
    identifying = Known.of(identities).questions
    for index, known_as in enumerate(identities):
        fold = fold_of.setdefault(known_as.content, index * folds // len(documents))
        if known_as.question in identifying:
            fold_of_question.setdefault(known_as.question, fold)

    def fit_of(document: Document) -> int:
        """Find the fit; one of another task, none of ``source``'s, may have any: the first."""
        fold = fold_of.get(digest(document))
        if fold is None and fold_of_question:
            fold = fold_of_question.get(identity(evaluated, document).question)
        if fold is None and evaluated.name == source.name:
            raise UserError(
                f"task {evaluated.name}: a scored document is in none of the {folds} folds, so it "
                "may have helped to make its own fit; process_docs must give the same documents "
                f"each time ({' '.join(evaluated.question(document).split())[-120:]!r})"
            )
        return fold or 0

    sources = []
    for fold in range(folds):
        held_out = Known.of(i for i in identities if fold_of[i.content] == fold)
        others = [
            document
            for document, known_as in zip(documents, identities, strict=True)
            if fold_of[known_as.content] != fold
        ]
        sources.append(
            Source(
                f"fold {fold + 1} of {folds} left out",
                others,
                lambda document, held_out=held_out: (
                    not held_out.has(  # type: ignore[misc]
                        identity(source, document)
                    )
                ),
            )
        )
    return Sources(source, sources, str(source.evaluated_split()), folds, fit_of)


def refuse_scored_documents(
    evaluated: RunTask, documents: Iterable[Document], card: dict[str, object], source: str
) -> None:
    """Guard against scoring a document with a fit that its own pair helped to make.

    Args:
        evaluated: the task that is scored.
        documents: those that will be scored with the fit.
        card: the fit's card, with the identities of its pairs' documents.
        source: the fit's name, for the message.

    Raises:
        UserError: naming the first such document.
    """
    contents, questions = made_from(card).contents, made_from(card).questions
    known_by = identity if card.get("questions_by") == QUESTIONS_BY else _earlier_identity
    identifying: frozenset[str] | None = None
    for document in documents:
        known_as = known_by(evaluated, document)
        asked = known_as.question in questions
        if asked and identifying is None:  # over the whole split, whatever part of it is scored
            whole = (known_by(evaluated, other) for other in evaluated.evaluated())
            identifying = Known.of(whole).questions
        if known_as.content in contents or (asked and known_as.question in (identifying or ())):
            text = " ".join(evaluated.question(document).split())
            raise UserError(
                f"fit {source} was built from a document that task {evaluated.name} scores: "
                f"{text[-120:]!r} (content {known_as.content}); use a fit from other documents"
            )


def _earlier_identity(task: RunTask, document: Document) -> Identity:
    """Give what earlier releases, which kept signs, wrote on a fit's card."""
    text = " ".join(task.question(document).split()).lower()
    return Identity(digest(document), digest({"question": text}) if text else "")


def made_from(card: dict[str, object]) -> Known:
    """Give the documents that a fit was made from, or its setting chosen on, as its card tells."""
    chosen_on = card.get("chosen_on")
    cards = [card, chosen_on] if isinstance(chosen_on, dict) else [card]
    return Known(
        frozenset(text for each in cards for text in _texts(each, "documents")),
        frozenset(text for each in cards for text in _texts(each, "questions")),
    )


def _texts(card: Mapping[str, object], key: str) -> list[str]:
    value = card.get(key)
    return [str(entry) for entry in value] if isinstance(value, list) else []
