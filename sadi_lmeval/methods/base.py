"""What a steering method says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice, declared, recorded
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.activations import Answers, Collector
from sadi_lmeval.settings import Axes, SearchSpace, Setting
from sadi_lmeval.storage.fit_file import ENTRY_WIDTHS
from sadi_lmeval.types import Element, HiddenSite, Scope, Size
from sadi_lmeval.versions import code_digest

Tensors = Mapping[str, Tensor]
"""What was measured of the pairs or prompts, by name, float32."""


class Found(NamedTuple):
    """What a fit says of every entry, as pictures show it.

    Attributes:
        name: of the number: "probe accuracy".
        scores: ``[layers, entries]``.
    """

    name: str
    scores: Tensor


def entry_means(values: Tensor, tensors: Tensors) -> Tensor:
    """Give the mean of each entry over its own activations, ``[layers, entries]``.

    Args:
        values: ``[layers, entries, entry_width]``; in layers of narrower entries zero beyond these.
        tensors: of the fit, which say where there are such layers.
    """
    widths = tensors.get(ENTRY_WIDTHS)
    return values.mean(dim=-1) if widths is None else values.sum(dim=-1) / widths.unsqueeze(-1)


def scoped(default: Scope = "onwards") -> Any:
    """Declare the argument ``scope`` of a method that leaves it to the user."""
    return choice(
        default, get_args(Scope), "which tokens are edited: the last prompt token and every later "
        "one (`onwards`), or that one alone (`prompt`)", measured=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Method(ABC):
    """A steering method and its arguments.

    A subclass is a frozen dataclass whose fields are its arguments, each declared with
    :mod:`sadi_lmeval.arguments`. The numbers that are chosen for a task are its axes, which become
    arguments too. A module holds one method; an entry point of the group ``sadi_lmeval.methods``
    names its class, and from then on ``--model hf-NAME`` and the arms are there.

    Attributes:
        name: of the method: that of its entry point.
        axes: the numbers of a setting; those that only a value of an argument brings are not
            there where it has another.
        arms: names by which ``sweep`` and ``compare`` list the method, each with the arguments
            that it sets.
        ablations: the same, but not among those that ``all`` stands for.
        compared: whether ``compare`` and ``sweep`` take the arms where the user names none.
        protocols: the arguments that a value of ``protocol=`` sets.
        fitted_on: ``pairs``, or ``prompts``: those of the same documents, up to where their choices
            begin; the collector is then told which choice is right and which is the model's own.
            Or ``nothing``: all is known before any pair is, and the collector is a
            :class:`~sadi_lmeval.methods.collectors.Given`.
    """

    name: ClassVar[str]
    axes: ClassVar[Axes]
    arms: ClassVar[Mapping[str, Mapping[str, Any]]]
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    compared: ClassVar[bool] = False
    fitted_on: ClassVar[Literal["pairs", "prompts", "nothing"]] = "pairs"

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """Say which tokens are edited: a class attribute, or an argument (see :func:`scoped`)."""

    @property
    @abstractmethod
    def place(self) -> tuple[Element, HiddenSite]:
        """Say where activations are read and edited."""

    @abstractmethod
    def collector(self, site: Site, pairs: int, seed: int) -> Collector:
        """Make what measures the pairs or prompts, see :mod:`sadi_lmeval.methods.collectors`.

        Args:
            site: of the model.
            pairs: how many there are.
            seed: of whatever is drawn.
        """

    @abstractmethod
    def search_space(self, size: Size | None) -> SearchSpace:
        """List what is tried where the user gives nothing.

        Args:
            size: of the model's site; None where it is not known yet: the most that is tried.
        """

    @abstractmethod
    def edits(self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int) -> Edits:
        """Make the edit of each setting.

        Args:
            site: of the model.
            tensors: what the collector has made.
            settings: at least one; the unsteered one may be among them, and edits nothing.
            seed: of whatever is drawn.
        """

    @property
    def usual(self) -> tuple[float | None, ...]:
        """Give each axis its value where the user gives only others; None: it is then chosen."""
        return (None,) * len(self.axes)

    def unsuited(self, question: str, choices: Sequence[str]) -> str | None:
        """Say what documents must be like, if one is not; None: the method takes it.

        Every document that is scored, and every one of a fit on prompts, is asked about before
        anything is measured.

        Args:
            question: the document's own part of the prompt.
            choices: the document's; none where it has none.

        Returns:
            the end of "hf-NAME takes …", with what came.
        """
        return None

    def check_answers(self, answers: Sequence[Answers], label: str) -> None:
        """Refuse prompts that nothing can be made of, by their answers alone.

        Asked of a method that is fitted on prompts, before any activation is read.

        Args:
            answers: of each prompt.
            label: of the prompts, for messages.

        Raises:
            UserError: they are such.
        """
        return

    def edit_size(self, setting: Setting) -> float:
        """Say how large an edit is: of equally good settings the smallest is taken.

        As it stands: the strength, times the number of entries that are edited.
        """
        size = 1.0
        for axis, value in zip(self.axes, setting, strict=True):
            if axis.strength or axis.counts in ("entries", "activations"):
                size *= abs(value)
        return size

    def selected(self, tensors: Tensors, setting: Setting, seed: int) -> Tensor | None:
        """Say what a setting edits; None: whole layers.

        Returns:
            ``[layers, entries]`` bool; or ``[layers, entries, entry_width]``, where single
            activations of an entry are edited.
        """
        return None

    def found(self, tensors: Tensors) -> Found | None:
        """Say what a fit found of every entry, for the report; None: nothing of single entries.

        As it stands: the mean difference of the pairs' sides, where the fit has one.
        """
        difference = tensors.get("difference")
        if difference is None or difference.dim() < 2:
            return None
        scores = entry_means(difference, tensors) if difference.dim() > 2 else difference
        return Found("mean difference", scores)

    def record(self) -> dict[str, Any]:
        """Describe the method as plain JSON: in results files, and in every key."""
        return {"method": self.name, **recorded(self)}

    @property
    def measured_by(self) -> dict[str, Any]:
        """What a fit depends on beside the model, the site and the pairs or prompts."""
        own = declared(self)
        return {name: value for name, value in recorded(self).items() if own[name].measured}

    @property
    def code(self) -> str:
        """A digest of the module that the method stands in."""
        return code_digest(type(self))
