"""Fits of methods to drawn pairs, or to their prompts: out of the cache, or measured."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, RunTask
from sadi_lmeval.identity.key import key_of
from sadi_lmeval.identity.model import PROVENANCE
from sadi_lmeval.methods.arm import Arm
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.collectors import Given
from sadi_lmeval.pairs.hardest import own_choices
from sadi_lmeval.pairs.pairs import Pair
from sadi_lmeval.pairs.plan import Plan, examples
from sadi_lmeval.pairs.prompts import LabelledPrompt, labelled_prompts
from sadi_lmeval.pairs.sources import QUESTIONS_BY, Identity, Source
from sadi_lmeval.passes.activations import Answers, Collector, Labelled, TokenPair, TokenPrompt
from sadi_lmeval.passes.steerable import SteerableModel, folder_for
from sadi_lmeval.steering.labels import Relabel, Relabelled, rights_permuted, sides_swapped
from sadi_lmeval.storage.fit_file import Fit, load_fit, of_site, save_fit
from sadi_lmeval.storage.hub import fit_path
from sadi_lmeval.storage.store import Kind, get_or_build
from sadi_lmeval.versions import code_digest, versions

logger = logging.getLogger("lm_eval.sadi")


class Fitted(NamedTuple):
    """A fit with its source.

    Attributes:
        source: the file, or where the pairs come from, for messages.
        key: its cache key; empty for a fit that was given by hand.
        file: where it is kept, or None.
        of_model: the model that it was made for, where that is another one.
        is_new: whether it was measured in this run.
    """

    fit: Fit
    source: str
    key: str
    file: Path | None
    of_model: str | None = None
    is_new: bool = False


FITS: Kind[Fit] = Kind(
    "fit",
    ".safetensors",
    lambda path, key: load_fit(path),
    lambda fit, path, key: save_fit(fit, path),
)


class _Needed(NamedTuple):
    """A fit that some arm needs."""

    card: dict[str, Any]
    site: Site
    method: Method

    def collector(self, count: int, seed: int, shuffled: Relabel) -> Collector:
        collector = self.method.collector(self.site, count, seed)
        return collector if self.card["labels"] == "gold" else Relabelled(collector, shuffled)


def method_of(arm: Arm) -> Method:
    """Give the method of an arm that steers."""
    if arm.method is None:
        raise ValueError(f"arm {arm.name} is the unsteered model")
    return arm.method


def known_fit(arm: Arm, model: SteerableModel) -> Fitted | None:
    """Give the fit of an arm that measures nothing of pairs; None: it measures them.

    Raises:
        UserError: what it knows does not fit the model.
    """
    method = method_of(arm)
    if method.fitted_on != "nothing":
        return None
    element, hidden_site = method.place
    site = model.engine.site(element, hidden_site)
    collector = method.collector(site, 1, arm.options.seed)
    if not isinstance(collector, Given):
        raise TypeError(f"method {method.name} is fitted on nothing, but its collector is no Given")
    if arm.options.labels == "shuffled":
        raise UserError(
            f"labels=shuffled: hf-{method.name} measures no pairs, so it has no labels to shuffle; "
            "leave that control out"
        )
    card = {
        "kind": collector.kind,
        "element": element,
        "hidden_site": hidden_site if element == "hidden" else None,
        "shape": list(site.shape),
    }
    fit = of_site(collector.tensors(collector.source), site, card)
    return Fitted(fit, collector.source, "", Path(collector.source))


def fits_of(
    plan: Plan,
    source: Source,
    pairs: list[Pair],
    arms: Sequence[Arm],
    model: SteerableModel,
) -> list[Fitted]:
    """Fit each arm to the pairs; one that measures nothing has its fit already.

    See :func:`_measured`.
    """
    known = [known_fit(arm, model) for arm in arms]
    rest = [arm for arm, fit in zip(arms, known, strict=True) if fit is None]
    measured = iter(_measured(plan, source, pairs, rest, model))
    return [next(measured) if fit is None else fit for fit in known]


def _measured(
    plan: Plan,
    source: Source,
    pairs: list[Pair],
    arms: Sequence[Arm],
    model: SteerableModel,
) -> list[Fitted]:
    """Fit each arm to the pairs: take fits out of the cache, or measure all others in one pass.

    Methods that are fitted on prompts have those of the same documents, and a pass of their own.

    Args:
        plan, source: where the pairs come from.
        pairs: the same for all arms.
        arms: that steer; where the cache is comes from the first.
        model: reads.

    Raises:
        UserError: nothing can be made of the activations, or a document does not suit a method.
    """
    if not arms:
        return []
    task = plan.source_task
    origin: dict[str, Any] = {
        "task": task.name,
        "source": plan.pairs_from(source),
        "recipe": plan.recipe.recipe,
        "recipe_digest": plan.recipe.digest,
    }
    shown = examples(plan, source, arms[0].options)
    folds = plan.sources.folds and not plan.is_static
    label = task.name + (f", {source.label}" if folds else "")
    prompts: list[LabelledPrompt] = []
    if any(map(_is_on_prompts, arms)):
        prompts = labelled_prompts(plan, source, pairs, arms[0].options)
        refuse_unsuited(task, arms, [prompt.document for prompt in prompts])
    return fits_of_pairs(pairs, shown, origin, arms, model, label, prompts)


def fits_of_pairs(
    pairs: Sequence[Pair],
    shown: Sequence[Identity],
    origin: Mapping[str, Any],
    arms: Sequence[Arm],
    model: SteerableModel,
    label: str,
    prompts: Sequence[LabelledPrompt] = (),
) -> list[Fitted]:
    """Fit each arm to pairs, wherever these come from.

    Args:
        pairs: the same for all arms.
        shown: what their prompts show as examples.
        origin: where they come from: ``task``, ``source``, and more for the card.
        arms: that steer, at least one; where the cache is comes from the first.
        model: reads.
        label: of the pairs, for messages.
        prompts: of the pairs' documents, where they are of documents with choices.

    Raises:
        UserError: nothing can be made of the activations, or a method needs prompts.
    """
    for arm in arms:
        if _is_on_prompts(arm) and not prompts:
            raise UserError(
                f"method {method_of(arm).name}: is fitted on a task's prompts with their choices, "
                "which pairs do not have; name the task (from_task=TASK)"
            )
    seed = arms[0].options.seed
    tokens = [
        TokenPair(model.encode(*pair.positive), model.encode(*pair.negative)) for pair in pairs
    ]
    identities = [*(pair.known_as for pair in pairs), *shown]
    shared: dict[str, Any] = {
        **model.model_card,
        **origin,
        "n_pairs": len(pairs),
        "pairs_digest": key_of({"pairs": tokens}),
        "documents": [i.content for i in identities],
        "questions": [i.question for i in identities if i.question],
        "questions_by": QUESTIONS_BY,
        "seed": seed,
        "versions": versions(),
    }
    of_prompts = _of_prompts(prompts, model)
    needed: dict[str, _Needed] = {}
    keys = []
    for arm in arms:
        method = method_of(arm)
        element, hidden_site = method.place
        site = model.engine.site(element, hidden_site)
        probe = method.collector(site, 1, seed)
        card = {
            **shared,
            **(of_prompts if _is_on_prompts(arm) else {}),
            "kind": probe.kind,
            "labels": arm.options.labels,
            "measured_by": method.measured_by,
            "code": [code_digest(made_by) for made_by in _made_by(probe)],
            "element": site.element,
            "hidden_site": hidden_site if element == "hidden" else None,
            "shape": list(site.shape),
        }
        if method.measured_by:
            card["measured_for"] = [method.name, method.code]
        keys.append(key_of({k: v for k, v in card.items() if k not in PROVENANCE}))
        needed[keys[-1]] = _Needed(card, site, method)

    measured: set[str] = set()

    def build(missing: list[str], _: Path | None) -> dict[str, Fit]:
        measured.update(missing)
        collectors: dict[str, Collector] = {}
        for fitted_on in ("prompts", "pairs"):  # prompts may be refused by their answers
            mine = [key for key in missing if needed[key].method.fitted_on == fitted_on]
            if not mine:
                continue
            texts: Sequence[Labelled] = tokens
            shuffled = sides_swapped(len(tokens), seed)
            if fitted_on == "prompts":
                texts = answered = _answered(prompts, model, folder)
                answers = [prompt.answers for prompt in answered]
                for key in mine:
                    needed[key].method.check_answers(answers, label)
                shuffled = rights_permuted(answers, seed)
            fresh = {key: needed[key].collector(len(texts), seed, shuffled) for key in mine}
            readers = [(needed[key].site, each) for key, each in fresh.items()]
            said = f"{fitted_on.capitalize()} of {label}"
            model.engine.read(readers, texts, said, model.processes)
            collectors |= fresh
        if not model.processes.is_first:
            return {}
        return {
            key: of_site(each.tensors(label), needed[key].site, needed[key].card)
            for key, each in collectors.items()
        }

    folder = folder_for(arms[0].options, model)
    fits = get_or_build(folder, FITS, keys, build, model.processes)
    named = f"{origin['task']} ({origin['source']})"
    return [
        Fitted(fits[key].value, named, key, fits[key].file, is_new=key in measured) for key in keys
    ]


def refuse_unsuited(
    task: RunTask, arms: Iterable[Arm], documents: Sequence[Document] | None = None
) -> None:
    """Refuse documents that a method cannot be fitted to, or cannot steer.

    Args:
        task: of the documents.
        arms: the unsteered one takes any.
        documents: that fits are made of; None: all that the task scores.

    Raises:
        UserError: naming task and method, and what the document is like.
    """
    for method in dict.fromkeys(method_of(arm) for arm in arms if not arm.is_unsteered):
        if type(method).unsuited is Method.unsuited:
            continue  # documents take time to render
        for document in task.evaluated() if documents is None else documents:
            words = method.unsuited(task.question(document), task.choices(document))
            if words is not None:
                raise UserError(f"task {task.name}: hf-{method.name} takes {words}")


def _is_on_prompts(arm: Arm) -> bool:
    return method_of(arm).fitted_on == "prompts"


def _of_prompts(prompts: Sequence[LabelledPrompt], model: SteerableModel) -> dict[str, Any]:
    """Say what a fit depends on beside the pairs that the prompts are of."""
    asked = [[model.continuation(*text) for text in prompt.choices] for prompt in prompts]
    labels = [prompt.right for prompt in prompts]
    return {
        "n_prompts": len(prompts),
        "prompts_digest": key_of({"prompts": asked, "right": labels}),
    }


def _answered(
    prompts: Sequence[LabelledPrompt], model: SteerableModel, folder: Path | None
) -> list[TokenPrompt]:
    """Give the prompts as scoring has them, with the choice that the unsteered model makes."""
    own = own_choices(model, folder)([prompt.choices for prompt in prompts])
    tokens = [list(model.continuation(*prompt.choices[0]).context) for prompt in prompts]
    answers = [Answers(prompt.right, its) for prompt, its in zip(prompts, own, strict=True)]
    return [TokenPrompt(*each) for each in zip(tokens, answers, strict=True)]


def _made_by(collector: Collector) -> list[Any]:
    """Give the class of a collector, and the function that it leaves the making to, if any."""
    make = getattr(collector, "make", None)
    return [type(collector)] if make is None else [type(collector), make]


def saved_setting(source: str, arm: Arm) -> dict[str, float]:
    """Give the setting that a fit of the user's brings along for an arm's method, by axis.

    Raises:
        UserError: it is no fit, or damaged.
    """
    steering = load_fit(fit_path(source)).steering
    if steering.get("method") != method_of(arm).name:
        return {}
    read = {axis.name: axis.read(steering.get(axis.name)) for axis in arm.axes}
    return {name: number for name, number in read.items() if number is not None}


def given_fit(path: str, arm: Arm, site: Site, model: SteerableModel) -> Fitted:
    """Load a fit of the user's.

    Raises:
        UserError: it is none, is damaged, or does not fit the method or the model.
    """
    method = method_of(arm)
    fit = load_fit(fit_path(path))
    collector = method.collector(site, 1, arm.options.seed)
    model_type = model.model_card["model_type"]
    fit.check_fits(collector.kind, collector.shapes, site, model_type, path)
    hidden_site, needed = fit.card.get("hidden_site"), method.place[1]
    if site.element == "hidden" and hidden_site != needed:
        raise UserError(
            f"fit {path} is for hidden_site={hidden_site}, but this run has {needed}; pass that of "
            "the fit"
        )
    of_model = other_model(fit.card, model.model_card)
    if of_model is not None:
        logger.warning(
            "fit %s was made for another model of the same shape (%s), which the results name; "
            "what was found there may mean nothing here",
            *(path, of_model),
        )
    return Fitted(fit, path, "", Path(path), of_model)


def other_model(card: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Name the model of a fit's card, if it is not this one: by the weights, else by the name."""
    name = PurePath(str(card.get("model"))).name
    known = card.get("weights_digest"), here.get("weights_digest")
    if None not in known and "config_digest" in card:  # earlier cards digest other things
        return None if known[0] == known[1] else name
    return None if name == PurePath(str(here.get("model"))).name else name
