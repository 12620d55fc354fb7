"""How a task was steered: the entry of a results file under ``config.sadi``.

The types here write it and read it. A record that is read may come from a stranger, so whatever is
not as it is written here is read as if it were not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

RESERVED = frozenset(
    "element hidden_site layers entries recipe pairs_from folds mask_from fit_file parameters fits "
    "when version not_finite degenerate task_digest recipe_digest method source n_pairs selected "
    "cache_key sha256 file tuning score stderr difference difference_stderr margin documents "
    "likelihood_difference likelihood_difference_stderr objective run task split model "
    "of_model unsteered labels found tied edit_size".split()
)
"""Keys of a record or of a line of ``sweep``: no method may call an argument like one of them,
unless it means the site's own element."""


@dataclass(frozen=True)
class ChoiceRecord:
    """How a setting was chosen on held-out documents.

    Attributes:
        objective: what settings were judged by.
        documents: how many held-out documents.
        chosen: the setting, by axis.
        rule: that it was chosen by; None in records of earlier releases, which took the best.
        p_max: how often chance alone makes the best of all settings as good as it is; None where it
            is not known.
        table: of each setting that was tried, the unsteered model first: its numbers by axis, and
            ``score``, ``stderr``, ``difference``, ``difference_stderr``, ``margin``,
            ``not_finite``, ``likelihood_difference``, ``likelihood_difference_stderr``,
            ``documents``: fewer than all where it was dropped; not there in earlier releases.
        beats_unsteered: what earlier releases wrote in place of rule and p_max: whether the chosen
            setting was better by more than a standard error.
    """

    objective: str
    documents: int
    chosen: dict[str, Any]
    rule: str | None
    p_max: float | None
    table: list[dict[str, Any]]
    beats_unsteered: bool | None = None

    def to_json(self) -> dict[str, Any]:
        earlier = self.beats_unsteered is not None
        other = ("rule", "p_max") if earlier else ("beats_unsteered",)
        return {name: value for name, value in vars(self).items() if name not in other}

    @classmethod
    def from_json(cls, given: object) -> ChoiceRecord | None:
        """Read what :meth:`to_json` wrote; None where it is nothing of the kind."""
        values = _mapping(given)
        if not values:
            return None
        table = values.get("table")
        rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
        return cls(
            str(values.get("objective")),
            int(finite(values.get("documents")) or 0),
            _mapping(values.get("chosen")),
            _text(values.get("rule")),
            finite(values.get("p_max")),
            rows,
            values["beats_unsteered"] is True if "beats_unsteered" in values else None,
        )


@dataclass(frozen=True)
class FoundRecord:
    """What a fit found of every entry, small enough for a picture.

    Attributes:
        name: of the number.
        width: entries that share a column: the one furthest from 0 stands for them.
        rows: of each layer a number a column, three digits long; none of a layer without a site.
    """

    name: str
    width: int
    rows: list[list[float]]

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, given: object) -> FoundRecord | None:
        """Read what :meth:`to_json` wrote; None where it is nothing of the kind."""
        values = _mapping(given)
        rows, width = values.get("rows"), finite(values.get("width"))
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            return None
        numbers = [[finite(number) for number in row] for row in rows]
        known = [[number for number in row if number is not None] for row in numbers]
        if known != numbers or len({len(row) for row in known if row}) != 1 or not width:
            return None
        return cls(str(values.get("name")), int(width), known)


@dataclass(frozen=True)
class FitRecord:
    """A fit, and the setting with which it steers.

    Attributes:
        source: where its pairs come from, or the file that it was read from.
        n_pairs: how many.
        setting: numbers by axis.
        selected: the [layer, entry] of what is edited, or [layer, entry, activation of it]; None
            where whole layers are.
        cache_key: under which it is kept; empty for one that was given by hand.
        sha256: of its tensors.
        file: the name of its file in the cache folder, or None.
        tuning: how the setting was chosen; None where it was given.
        of_model: the model that the fit was made for, where that is another one.
        labels: of its pairs: ``gold`` or ``shuffled``.
        tied: how many entries or activations are as good as the last selected one, and are not
            selected; None where that is not counted.
        found: what it says of every entry; None in results files, in records of earlier releases,
            and of methods that say nothing of single entries.
    """

    source: str
    n_pairs: int | None
    setting: dict[str, Any]
    selected: list[list[int]] | None
    cache_key: str
    sha256: str
    file: str | None
    tuning: ChoiceRecord | None
    of_model: str | None = None
    labels: str = "gold"
    found: FoundRecord | None = None
    tied: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "n_pairs": self.n_pairs,
            **self.setting,
            **({} if self.selected is None else {"selected": self.selected}),
            **({} if self.tied is None else {"tied": self.tied}),
            "cache_key": self.cache_key,
            "sha256": self.sha256,
            "file": self.file,
            **({} if self.of_model is None else {"of_model": self.of_model}),
            **({} if self.labels == "gold" else {"labels": self.labels}),
            **({} if self.tuning is None else {"tuning": self.tuning.to_json()}),
            **({} if self.found is None else {"found": self.found.to_json()}),
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any], axes: Sequence[str]) -> FitRecord:
        """Read what :meth:`to_json` wrote."""
        selected, n_pairs = given.get("selected"), finite(given.get("n_pairs"))
        tied = finite(given.get("tied"))
        return cls(
            str(given.get("source")),
            None if n_pairs is None else int(n_pairs),
            _numbers(given, axes),
            _places(selected) if isinstance(selected, list) else None,
            str(given.get("cache_key")),
            str(given.get("sha256")),
            str(given["file"]) if isinstance(given.get("file"), str) else None,
            ChoiceRecord.from_json(given.get("tuning")),
            str(given["of_model"]) if isinstance(given.get("of_model"), str) else None,
            str(given["labels"]) if isinstance(given.get("labels"), str) else "gold",
            FoundRecord.from_json(given.get("found")),
            None if tied is None else int(tied),
        )

    @property
    def chosen(self) -> dict[str, Any]:
        """The setting that steers, by axis."""
        if self.tuning is None:
            return self.setting
        return {name: self.tuning.chosen.get(name) for name in self.setting}


_BY_CHANCE = 0.05
"""A difference whose p is below this is told of."""


@dataclass(frozen=True)
class UnsteeredRecord:
    """The unsteered model on the documents that settings are chosen on, and on those scored.

    Attributes:
        held_out, scored: mean of what settings are judged by, larger is better.
        held_out_stderr, scored_stderr: their standard errors.
        held_out_documents, scored_documents: how many of each.
    """

    held_out: float
    held_out_stderr: float
    held_out_documents: int
    scored: float
    scored_stderr: float
    scored_documents: int

    @property
    def p(self) -> float:
        """How often chance makes two samples of the same documents differ as much.

        By the normal distribution, with the variance of all documents together: a few that are all
        right have none of their own.
        """
        n, m, gap = self.held_out_documents, self.scored_documents, self.held_out - self.scored
        squares = self.held_out_stderr**2 * n * (n - 1) + self.scored_stderr**2 * m * (m - 1)
        if not n or not m or not (total := squares + gap**2 * n * m / (n + m)):
            return 1.0
        error = math.sqrt(total / (n + m - 1) * (1 / n + 1 / m))
        return math.erfc(abs(gap) / error / math.sqrt(2))

    @property
    def warning(self) -> str | None:
        """Say that the two differ by more than chance, in one line; None where they do not."""
        if self.p >= _BY_CHANCE:
            return None
        return (
            f"the unsteered model scores {self.held_out:.3g} on the held-out documents and "
            f"{self.scored:.3g} on the scored ones, rarely by chance (p {self.p:.2g}): what was "
            "chosen on the former need not suit the latter"
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "p": self.p}

    @classmethod
    def from_json(cls, given: object) -> UnsteeredRecord | None:
        """Read what :meth:`to_json` wrote; None where it is nothing of the kind."""
        values = _mapping(given)
        numbers = [finite(values.get(item.name)) for item in fields(cls)]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            return None
        held_out, held_out_stderr, n, scored, scored_stderr, m = known
        return cls(held_out, held_out_stderr, int(n), scored, scored_stderr, int(m))


@dataclass(frozen=True)
class SteeringRecord:
    """How a task was steered.

    Attributes:
        arguments: the method's name and its own arguments; ``method`` is ``none`` for the
            unsteered model.
        axes: the names of a setting's numbers.
        version: of this package.
        task_digest: of the task's definition.
        element, hidden_site: where activations are edited; None where nothing is.
        layers, entries: of that site.
        recipe, pairs_from: how and of what the pairs were made.
        recipe_digest: of all that the recipe says.
        folds: of a cross-fitted task.
        mask_from: another task, on whose pairs the method was fitted.
        fit_file: the name of the file that the user gave.
        when: the condition that prompts must meet to be steered: its ``file``, its ``sha256``, and
            its ``layer``, ``threshold`` and ``side``; None: all are steered.
        fits: one, or one a fold.
        setting: numbers by axis, where there are no fits.
        unsteered: whether the documents that the setting was chosen on are like the scored ones;
            None where nothing was chosen, and in a comparison, which has the unsteered model.
        not_finite: documents without a finite log-probability.
        degenerate: generated texts that are empty, or one short piece over and over.
    """

    arguments: dict[str, Any]
    axes: tuple[str, ...]
    version: str
    task_digest: str
    element: str | None = None
    hidden_site: str | None = None
    layers: int | None = None
    entries: int | None = None
    recipe: str | None = None
    recipe_digest: str | None = None
    pairs_from: str | None = None
    folds: int | None = None
    mask_from: str | None = None
    fit_file: str | None = None
    when: dict[str, Any] | None = None
    fits: tuple[FitRecord, ...] = ()
    setting: dict[str, Any] = field(default_factory=dict)
    unsteered: UnsteeredRecord | None = None
    not_finite: int = 0
    degenerate: int = 0

    def with_counts(self, not_finite: int, degenerate: int) -> SteeringRecord:
        return replace(self, not_finite=not_finite, degenerate=degenerate)

    def to_json(self) -> dict[str, Any]:
        """Give the entry of the results file: plain JSON values, no place on this machine."""
        content: dict[str, Any] = dict(self.arguments)
        if self.element is not None:
            content["element"] = self.element
            if self.layers is not None:  # a strength of 0 names an element, and edits no site
                content |= {"layers": self.layers, "entries": self.entries}
        if self.hidden_site is not None:
            content["hidden_site"] = self.hidden_site
        if self.fits and self.fit_file is None:
            content |= {
                "recipe": self.recipe,
                "recipe_digest": self.recipe_digest,
                "pairs_from": self.pairs_from,
            }
        if self.fits:
            content["folds"] = self.folds
        for name in ("mask_from", "fit_file", "when"):
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        content["parameters"] = list(self.axes)
        for name in self.axes:
            values = [fit.setting[name] for fit in self.fits] or [self.setting.get(name)]
            content[name] = values[0] if len(set(values)) == 1 else values
        if self.fits:
            content["fits"] = [fit.to_json() for fit in self.fits]
        if self.unsteered is not None:
            content["unsteered"] = self.unsteered.to_json()
        content |= {"version": self.version, "task_digest": self.task_digest}
        content["not_finite"] = self.not_finite
        return {**content, **({"degenerate": self.degenerate} if self.degenerate else {})}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> SteeringRecord:
        """Read what :meth:`to_json` wrote, in releases before this one too."""
        names = given.get("parameters")
        axes = tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()
        fits = given.get("fits", given.get("masks"))
        listed = [fit for fit in fits if isinstance(fit, dict)] if isinstance(fits, list) else []
        layers, entries = (finite(given.get(name)) for name in ("layers", "entries"))
        known = {*RESERVED, *axes, "masks", "mask_file"} - {"method"}
        return cls(
            arguments={k: v for k, v in given.items() if k not in known},
            axes=axes,
            version=str(given.get("version", "")),
            task_digest=str(given.get("task_digest", "")),
            element=_text(given.get("element")),
            hidden_site=_text(given.get("hidden_site")),
            layers=None if layers is None else int(layers),
            entries=None if entries is None else int(entries),
            recipe=_text(given.get("recipe")),
            recipe_digest=_text(given.get("recipe_digest")),
            pairs_from=_text(given.get("pairs_from")),
            folds=int(finite(given.get("folds")) or 0) or None,
            mask_from=_text(given.get("mask_from")),
            fit_file=_text(given.get("fit_file", given.get("mask_file"))),
            when=_mapping(given.get("when")) or None,
            fits=tuple(FitRecord.from_json(fit, axes) for fit in listed),
            setting=_numbers(given, axes),
            unsteered=UnsteeredRecord.from_json(given.get("unsteered")),
            not_finite=int(finite(given.get("not_finite")) or 0),
            degenerate=int(finite(given.get("degenerate")) or 0),
        )


def finite(value: object) -> float | None:
    """Give a number that may be computed with, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 and not math.isnan(value) else None


def _numbers(given: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """Read the numbers of a setting as they are; what is no finite number is None."""
    values = {name: given.get(name) for name in axes}
    return {name: None if finite(value) is None else value for name, value in values.items()}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _places(value: list[Any]) -> list[list[int]]:
    """Read lists of finite numbers, as [layer, entry] or [layer, entry, activation of it]."""
    places = []
    for place in value:
        numbers = [finite(n) for n in place] if isinstance(place, list) else []
        if len(numbers) in (2, 3) and None not in numbers:
            places.append([int(n or 0) for n in numbers])
    return places
