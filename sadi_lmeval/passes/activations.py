"""Activations of pairs or of prompts, at the last token of each text (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.contract import Reads
from sadi_lmeval.passes.batches import Bounds, batches
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.memory import in_halves
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.prefixes import (
    LONGEST_MASKED,
    Group,
    group_by_prefix,
    shared_length,
)
from sadi_lmeval.passes.sequences import Past, Tree, pack
from sadi_lmeval.processes import ALONE, Processes
from sadi_lmeval.types import Token


class TokenPair(NamedTuple):
    """A contrastive pair as tokens: prompt and answer together."""

    positive: list[int]
    negative: list[int]

    @property
    def texts(self) -> Sequence[tuple[list[int], int]]:
        """The positive text with 1 and the negative one with −1."""
        return (self.positive, 1), (self.negative, -1)


class Answers(NamedTuple):
    """What is known of the choices of a prompt.

    Attributes:
        right: the index of the right one.
        own: of the unsteered model's own.
        scores: the unsteered model's log-likelihood of each; empty where only indices are known.
    """

    right: int
    own: int
    scores: tuple[float, ...] = ()


class TokenPrompt(NamedTuple):
    """A prompt as tokens, up to where its choices begin."""

    prompt: list[int]
    answers: Answers

    @property
    def texts(self) -> Sequence[tuple[list[int], Answers]]:
        """The prompt with its answers."""
        return ((self.prompt, self.answers),)


class Labelled(Protocol):
    """What activations are read of: one text or two, each with its label."""

    @property
    def texts(self) -> Sequence[tuple[list[int], Any]]:
        """Tokens, and what collectors are told of them."""


class Collector(Protocol):
    """Makes what a method needs of activations as they come.

    Attributes:
        kind: of what is made, a name that files carry.
        shapes: of each tensor that is made, by name; -1 stands for any length.
    """

    kind: str
    shapes: dict[str, tuple[int, ...]]

    def add(self, items: list[int], labels: list[Any], values: Tensor) -> None:
        """Take some texts' activations.

        Args:
            items: of each text, the index of its pair or prompt.
            labels: of each text: of a pair 1 for the positive and -1 for the negative one; of a
                prompt its :class:`Answers`.
            values: ``[texts, layers, width]`` on the CPU.
        """

    def join(self, processes: Processes) -> None:
        """Put together what each process has taken."""

    def tensors(self, label: str) -> dict[str, Tensor]:
        """Make the tensors, float32, when every text has been taken.

        Args:
            label: of the texts, for a progress bar.

        Raises:
            UserError: an activation is not finite.
        """


def read_pairs(
    forward: Forward,
    readers: Sequence[tuple[Site, Collector]],
    pairs: Sequence[Labelled],
    pad: int,
    branching: bool,
    bounds: Bounds,
    label: str,
    processes: Processes = ALONE,
    longest_path: int = 1 << 62,
    token: Token = "last",
) -> None:
    """Read activations at the last token of each text, in every layer, at several sites at once.

    Or their means over each text's tokens: then every text is computed by itself, since the
    activations of a beginning are not kept at every site and layer.

    What the two texts of a pair share at their beginning is computed once where the model takes
    packed rows.

    Args:
        forward: the model.
        readers: sites, and what takes their activations.
        pairs: T pairs, or prompts, at least one.
        pad: the padding token.
        branching: whether the model takes packed rows with branches.
        bounds: the size of a batch.
        label: for the progress bar.
        processes: of the run; each reads its part of the pairs, and gets the readings of all.
            Where they divide batches, the first one gets all readings, in their order, the others
            none.
        longest_path: longer texts are not packed, nor are long ones that share little.
        token: what is read of a text.
    """
    branching = branching and token == "last"
    mine = processes.shard(pairs)
    for packed in (False, True):
        part = [
            (index, pair)
            for index, pair in mine
            if (branching and _fits(pair, longest_path)) == packed
        ]
        if part:
            numbers, own = [index for index, _ in part], [pair for _, pair in part]
            _read(forward, readers, own, numbers, pad, packed, bounds, label, processes, token)
    for _, collector in readers if not processes.divide_batches else ():
        collector.join(processes)


def _read(
    forward: Forward,
    readers: Sequence[tuple[Site, Collector]],
    pairs: Sequence[Labelled],
    numbers: list[int],
    pad: int,
    branching: bool,
    bounds: Bounds,
    label: str,
    processes: Processes,
    token: Token,
) -> None:
    """Read pairs, or one process's part of them, which have these numbers among all."""
    last = token == "last"
    reads = [Reads(site, () if last else tuple(range(site.layers))) for site, _ in readers]

    def run(batch: list[_Row], prefix: Callable[[], Past | None]) -> list[_Values]:
        past, found = prefix(), []

        def part(rows: list[_Row]) -> None:
            ends = [(i, end, row.pair, said)
                    for i, row in enumerate(rows) for end, said in row.ends]  # fmt: skip
            points = Points.of([(i, end) for i, end, *_ in ends], len(rows), forward.device)
            inputs = pack([row.tree for row in rows], pad, forward.dtype, forward.device, past)
            values = [
                (each if last else each[:, site.layers :]).cpu()
                for each, (site, _) in zip(
                    forward.activations(inputs, points, reads), reads, strict=True
                )
            ]
            which, labels = [numbers[pair] for *_, pair, _ in ends], [said for *_, said in ends]
            found.append((which, labels, values))

        in_halves(batch, part)
        return found

    def jobs() -> Iterator[Callable[[], list[_Values]]]:
        for beginning, rows in rows_of(pairs, branching):
            prefix = forward.prefix_of(beginning)
            for batch in batches(rows, bounds, len(beginning)):
                yield partial(run, batch, prefix)

    count = sum(len(pair.texts) for pair in pairs)
    with tqdm(total=count, desc=label, unit="text", disable=not processes.is_first) as bar:
        for found in processes.run(jobs(), for_all=False):
            for which, labels, values in found:
                for (_, collector), activations in zip(readers, values, strict=True):
                    collector.add(which, labels, activations)
                bar.update(len(which))


_Values = tuple[list[int], list[Any], list[Tensor]]
"""Of some texts the index of each one's pair, its label, and the activations at every site."""


def rows_of(pairs: Sequence[Labelled], branching: bool) -> Iterator[tuple[list[int], list[_Row]]]:
    """Yield what some pairs begin with, and the rows of these pairs."""
    # Each pair's own end lets what two pairs share be all that either of them shares.
    shared = [[*pair.texts[0][0][: _shared(pair)], -1 - i] for i, pair in enumerate(pairs)]
    for group in group_by_prefix(shared) if branching else [Group(0, list(range(len(pairs))))]:
        rows: list[_Row] = []
        for member in group.members:
            pair = pairs[member]
            rows += [_packed(pair, member, group.length)] if branching else _apart(pair, member)
        yield shared[group.members[0]][: group.length], rows


class _Row(NamedTuple):
    """A packed row, and the last token of each of its texts with the text's label."""

    tree: Tree
    pair: int
    ends: list[tuple[int, Any]]
    scored: int = 0  # nothing is read off logits

    @property
    def length(self) -> int:
        return self.tree.length

    @property
    def is_masked(self) -> bool:
        return not self.tree.is_path


def _fits(pair: Labelled, longest_path: int) -> bool:
    """Return whether all texts of a pair may stand in one row."""
    lengths = [len(text) for text, _ in pair.texts]
    shared = _shared(pair)
    return max(lengths) <= longest_path and sum(n - shared for n in lengths) <= LONGEST_MASKED


def as_requests(pairs: Iterable[Labelled], longest_path: int) -> Iterator[Continuation]:
    """Yield the texts that stand in packed rows as requests: after what its pair shares, each."""
    for pair in pairs:
        if _fits(pair, longest_path):
            start = max(1, _shared(pair))
            for text, _ in pair.texts:
                if len(text) > start:
                    yield Continuation(tuple(text[:start]), tuple(text[start:]))


def _shared(pair: Labelled) -> int:
    """Count tokens that all texts of a pair begin with; each keeps at least one of its own."""
    first, *others = (text for text, _ in pair.texts)
    alike = [shared_length(first, other) for other in others]
    return min([len(first) - 1, *(len(other) - 1 for other in others), *alike])


def _packed(pair: Labelled, number: int, past: int) -> _Row:
    """Put all texts in one row, what they share once."""
    shared = _shared(pair)
    tree = Tree(past=past)
    root = tree.add(pair.texts[0][0][past:shared])
    ends = []
    for text, label in pair.texts:
        tree.add(text[shared:], root)
        ends.append((tree.length - 1, label))
    return _Row(tree, number, ends)


def _apart(pair: Labelled, number: int) -> list[_Row]:
    rows = []
    for text, label in pair.texts:
        tree = Tree()
        tree.add(text)
        rows.append(_Row(tree, number, [(tree.length - 1, label)]))
    return rows
