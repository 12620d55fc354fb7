"""A fit of a method with the setting that it steers with: what the Python API hands out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from torch import nn

from sadi_lmeval.api.steered import steer, steered, unsteered_copy
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.errors import UserError, nearest
from sadi_lmeval.identity.model import other_model
from sadi_lmeval.identity.weights import weights_digest
from sadi_lmeval.methods.arm import Arm, read_arm
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import argument_names
from sadi_lmeval.settings import Setting
from sadi_lmeval.storage.fit_file import Fit, load_fit, save_fit
from sadi_lmeval.storage.hub import fit_path, push_fit
from sadi_lmeval.storage.store import default_folder

if TYPE_CHECKING:
    from sadi_lmeval.model import SteeredModel

logger = logging.getLogger("lm_eval.sadi")

_COMPARED: WeakKeyDictionary[Any, set[tuple[Any, Any]]] = WeakKeyDictionary()
"""Of each model the models of fits, by name and weights, that it was compared with: its weights are
read once, not whenever it is steered."""


@dataclass(frozen=True)
class SteeringFit:
    """What a method has measured of pairs, and the setting that it steers with.

    Attributes:
        fit: the tensors, and the card that says where they are from.
        arm: the method with its arguments, and the numbers of its setting as far as they are set.
    """

    fit: Fit
    arm: Arm

    @property
    def method(self) -> Method:
        assert self.arm.method is not None
        return self.arm.method

    @property
    def setting(self) -> dict[str, Any]:
        """The numbers that are set, by name; others have their usual values or must be given.

        Of the unsteered model that is the strength, 0: its other numbers are none.
        """
        named = zip(self.arm.axes, self.arm.given, strict=True)
        return {
            axis.name: value
            for axis, value in named
            if isinstance(value, (int, float)) and (axis.strength or not self.arm.is_unsteered)
        }

    def with_setting(self, strength: float | None = None, **numbers: float) -> SteeringFit:
        """Give the fit with other numbers, or other arguments of the method that it serves too.

        Args:
            strength: of the method's own strength (``delta``, ``alpha``, ``multiplier``), whatever
                it is called; 0 is the unsteered model.
            numbers: of the setting, and arguments of the method, by name.

        Raises:
            UserError: a name or a number that the method does not have.
        """
        given: dict[str, Any] = {**self._arguments(), **numbers}
        if strength is not None:
            strengths = [axis.name for axis in self.arm.axes if axis.strength]
            if not strengths:
                raise UserError(
                    f"strength={strength}: {self.method.name} has none; pass "
                    f"{' or '.join(self.arm.axes.names)}"
                )
            name = strengths[0]
            if name in numbers:
                raise UserError(f"strength={strength} and {name}={numbers[name]}: pass one of them")
            given[name] = strength
        own = argument_names(type(self.method))
        for name in numbers:
            if name not in own:
                raise UserError(f"{name}={numbers[name]}: {nearest(name, own)}")
        arm = read_arm(self.method.name, {**given, "seed": self.arm.options.seed})
        return replace(self, arm=arm)

    def with_choice(self, of_choice: Mapping[str, Any]) -> SteeringFit:
        """Give the fit with a card that says how its setting was chosen, and on which documents.

        Args:
            of_choice: see :mod:`sadi_lmeval.steering.chosen`; empty: it was not.
        """
        return replace(self, fit=replace(self.fit, card={**self.fit.card, **of_choice}))

    @contextmanager
    def steering(
        self, model: nn.Module, strength: float | None = None, **numbers: float
    ) -> Iterator[None]:
        """Steer a model until the block is left: ``with fit.steering(model): model.generate(…)``.

        The last prompt token of each row is edited, and every later one too if the method's scope
        is ``onwards``: in ``generate`` (batches padded on the left, beams, streaming), and in
        forward passes that have an attention mask. Several such blocks may stand within one
        another.

        Args:
            model: a causal language model of transformers, of the architecture that the fit is of.
            strength, numbers: see :meth:`with_setting`.

        Raises:
            UserError: the fit is of another architecture or shape, or a number is missing.
        """
        with steered(model, self.edits(model, strength, **numbers)):
            yield

    def edits(self, model: nn.Module, strength: float | None = None, **numbers: float) -> Edits:
        """Make the edit of the setting for a model.

        Raises:
            UserError: as of :meth:`steering`.
        """
        if strength is not None or numbers:
            return self.with_setting(strength, **numbers).edits(model)
        # Finding it may take a pass of the model, which is not to be steered by others.
        site = find_site(unsteered_copy(model), *self.method.place)
        self._check(site, model)
        self._warn_of_another(model)
        return self.edits_at(site)

    def edits_at(self, site: Site) -> Edits:
        """Make the edit of the setting at a site that the fit is known to be of."""
        setting = self._setting(site)
        return self.method.edits(site, self.fit.tensors, [setting], self.arm.options.seed)

    def harness_model(self, model: Any, tokenizer: Any, **arguments: Any) -> SteeredModel:
        """Make the harness model that scores with this fit, for ``lm_eval.simple_evaluate``.

        The fit is written to the cache folder, which the harness model reads it from.

        Args:
            model, tokenizer: of transformers.
            arguments: of ``hf-METHOD`` and of the harness's ``hf``.

        Raises:
            UserError: the folder cannot be written, or the fit has documents of the task.
        """
        from sadi_lmeval.api.fitting import harness_model

        folder = Path(arguments.get("cache_dir") or default_folder())
        file = self.save(folder / f"{self.fit.digest}.safetensors")
        given = {**self._arguments(), **arguments, "fit": str(file)}
        return harness_model(self.method.name, model, tokenizer, **given)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file that ``sadi_lmeval.load`` and ``mask=`` read.

        It holds the setting too, and no path of this machine.

        Raises:
            UserError: the folder cannot be written.
        """
        path = Path(path)
        try:
            save_fit(self._with_card(), path)
        except OSError as error:
            raise UserError(f"fit {path}: cannot be written ({error})") from None
        return path

    def export(self, path: str | Path, to: Literal["gguf", "steered"]) -> Path:
        """Write a file for llama.cpp or the harness, see :func:`sadi_lmeval.api.exporting.export`.

        Raises:
            UserError: the format cannot carry what the fit does.
        """
        from sadi_lmeval.api.exporting import export

        return export(self, path, to)

    def push_to_hub(self, repository: str, **arguments: Any) -> str:
        """Upload the fit and a model card to the Hugging Face hub.

        Args:
            repository: ``user/name``; it is made if it is not there.
            arguments: ``private``, ``token``, ``commit_message``, as huggingface_hub has them.

        Returns:
            the address of the commit.

        Raises:
            UserError: the hub refuses it.
        """
        return push_fit(self._with_card(), repository, **arguments)

    def _arguments(self) -> dict[str, Any]:
        """All that the method's own ``hf-METHOD`` would be given."""
        record = {name: value for name, value in self.arm.record().items() if name != "method"}
        return {**{n: v for n, v in record.items() if v is not None}, **self.setting}

    def _with_card(self) -> Fit:
        steering = {"method": self.method.name, **self._arguments(), "seed": self.arm.options.seed}
        card = {**self.fit.card, "steering": steering}
        # How another setting did says nothing about this one.
        choice = card.get("choice", {})
        setting = {} if self.arm.is_unsteered else self.setting
        if (choice.get("arm"), choice.get("setting")) != (self.method.record(), setting):
            card.pop("choice", None)
        return replace(self.fit, card=card)

    def _check(self, site: Site, model: Any) -> None:
        collector = self.method.collector(site, 1, self.arm.options.seed)
        source = str(self.fit.card.get("source", "the fit"))
        self.fit.check_fits(
            collector.kind, collector.shapes, site, str(model.config.model_type), source
        )

    def _warn_of_another(self, model: Any) -> None:
        """Say once that the fit is of another model of its shape, by the weights where known."""
        card = self.fit.card
        if "model" not in card:  # a vector out of a file
            return
        of_fit, compared = (card["model"], card.get("weights_digest")), _COMPARED.get(model, set())
        if of_fit in compared:
            return
        _COMPARED[model] = compared | {of_fit}
        here = {"model": model.config.name_or_path, "weights_digest": weights_digest(model)}
        of_model = other_model(card, here)
        if of_model is not None:
            logger.warning(
                "fit %s was made for another model of the same shape (%s); what was found there "
                "may mean nothing here",
                *(card.get("source", self.fit.digest), of_model),
            )

    def _setting(self, site: Site) -> Setting:
        axes = self.arm.axes
        if self.arm.is_unsteered:
            return axes.unsteered
        if self.arm.is_chosen:
            usual = dict(zip(axes.names, self.method.usual, strict=True))
            numbers: dict[str, Any] = {**usual, **self.setting}
            missing = [axis for axis in axes if numbers[axis.name] is None]
            if missing:
                most = missing[0].bound(site.size)
                raise UserError(
                    f"{self.method.name} needs {missing[0].name}=, {missing[0].allowed}"
                    f"{'' if most is None else f' up to {most}'}; or fit it with from_task=, which "
                    "chooses it on held-out documents"
                )
            return self.with_setting(**numbers)._setting(site)
        axes.check(self.arm.largest(), site.size, site.element)
        [setting] = self.arm.search_space(site.size).settings
        return setting


def wrap(model: nn.Module, *fits: SteeringFit) -> nn.Module:
    """Give a model that is always steered by fits; it shares its weights with the given one.

    It serves a pipeline, or the harness's ``HFLM(pretrained=…)`` for tasks that generate. Tasks
    that score log-likelihoods do not tell a model where their prompts end: for those there is
    :meth:`SteeringFit.harness_model`.

    Raises:
        UserError: as of :meth:`SteeringFit.steering`.
    """
    made = unsteered_copy(model)
    for fit in fits:
        steer(made, fit.edits(model))
    return made


def load(source: str | Path, **arguments: Any) -> SteeringFit:
    """Load a fit: a file of :meth:`SteeringFit.save` or of the cache, or a repository of the hub.

    Args:
        source: a path, or ``user/repository`` (``user/repository@revision``).
        arguments: the method and its numbers, where the file does not say them: ``method="sadi"``.

    Raises:
        UserError: there is no such file, or it is damaged or not a fit.
    """
    fit = load_fit(fit_path(str(source)))
    return of_fit(fit, arguments, str(source))


def of_fit(fit: Fit, given: Mapping[str, Any], source: str) -> SteeringFit:
    """Give a fit with what its card, or else the user, says about the method and the setting."""
    known = fit.steering
    method = given.get("method", known.get("method", (fit.card.get("measured_for") or [None])[0]))
    if not isinstance(method, str):
        raise UserError(f"fit {source}: does not say which method it is for; pass method=NAME")
    arguments = {k: v for k, v in {**known, **given}.items() if k != "method"}
    return SteeringFit(fit, read_arm(method, arguments))
