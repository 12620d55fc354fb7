"""KAPPA: have the model's choice read what it knows (arXiv 2509.23782)."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import whole
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import KeptPrompts, Shapes
from sadi_lmeval.passes.activations import Answers
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

logger = logging.getLogger("lm_eval.sadi")

_STEPS = 1000
_GRADIENT = 1e-9
"""Where a fit stops. At scikit-learn's 1e-4, rounding shows in the third digit of scores."""
_SMALLEST = 1e-6
"""Singular values of W_P below this part of the largest are rounding: its rows sum to zero."""

AXES = Axes(
    Axis("layer", "the decoder block after which the choice is rewritten, counted from 0",
         whole=True, least=0, counts="layer"),
    Axis("alpha", "strength: the prediction probe reads alpha · z_K afterwards; 0 is the unsteered "
         "model", strength=True),
)  # fmt: skip
ALPHAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The authors' 30 and 80 belong to their code's form, which leaves the inverse out."""


@dataclass(frozen=True)
class KAPPA(Method):
    """x' = x + W_P⁺ (alpha · z_K − z_P) after a decoder block, at the last prompt token.

    z_K and z_P are the logits of two softmax probes, W_K x + b_K of the right letter and
    W_P x + b_P of the letter that the unsteered model chooses; their rows are centred over the
    letters.
    """

    name = "kappa"
    axes = AXES
    arms = {}  # noqa: RUF012
    ablations = {"kappa": {}}  # noqa: RUF012  # most tasks have no letters
    fitted_on = "prompts"

    scope: Scope = scoped("prompt")
    blocks: int = whole(
        1, 1, "how many successive decoder blocks are edited, from `layer` on", measured=False
    )

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    def unsuited(self, question: str, choices: Sequence[str]) -> str | None:
        if are_named_letters(question, choices):
            return None
        asked = ", ".join(repr(choice[:20]) for choice in choices[:3]) or "none"
        return (
            "choices that are single letters which the prompt names, as in 'A. … B. … Answer:', "
            f"and a document has {asked}"
        )

    def check_answers(self, answers: Sequence[Answers], label: str) -> None:
        probed_letters(answers, label)

    def collector(self, site: Site, pairs: int, seed: int) -> KeptPrompts:
        shapes: Shapes = {
            "knowledge": (site.layers, -1, site.width),
            "knowledge_bias": (site.layers, -1),
            "prediction": (site.layers, -1, site.width),
            "prediction_bias": (site.layers, -1),
        }
        return KeptPrompts("letter_probes", site, pairs, shapes, fit_letter_probes)

    def search_space(self, size: Size | None) -> SearchSpace:
        last = 1 if size is None else max(1, size.layers - self.blocks + 1)
        return SearchSpace(AXES, (tuple(range(last)), ALPHAS))

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DirectionEdits:
        edited = [
            # By the equation 0 would take the model's choice away; it is the unsteered model.
            list(range(int(layer), min(int(layer) + self.blocks, site.layers))) if alpha else []
            for layer, alpha in settings
        ]
        layers = sorted({layer for mine in edited for layer in mine})
        read = ("knowledge", "prediction")
        return DirectionEdits(
            site,
            rewritten,
            [[alpha] for _, alpha in settings],
            edited,
            self.scope,
            read={n: torch.cat([tensors[name][n] for name in read]) for n in layers},
            offset={n: torch.cat([tensors[f"{name}_bias"][n] for name in read]) for n in layers},
            write={n: pseudo_inverse(tensors["prediction"][n]).T for n in layers},
        )


def are_named_letters(prompt: str, choices: Sequence[str]) -> bool:
    """Return whether choices are letters, each of which a prompt lists (``A.``, ``(A)``)."""
    letters = [choice.strip() for choice in choices]
    return len(set(letters)) == len(letters) > 1 and all(
        len(letter) == 1
        and letter.isalpha()
        and re.search(rf"(?<!\w){letter}\s?[.):]", prompt) is not None
        for letter in letters
    )


def rewritten(projections: Tensor, norm: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Compute alpha · z_K − z_P of ``[z_K, z_P]``, ``[n, 2k]``; the norm is not looked at."""
    knowledge, prediction = projections.chunk(2, dim=-1)
    return projections.new_ones(len(projections)), numbers * knowledge - prediction


def pseudo_inverse(rows: Tensor) -> Tensor:
    """Compute W⁺ of a probe's rows W ``[k, width]``, which sum to zero: ``[width, k]`` float32.

    The paper's W^T (W W^T)⁻¹, on the k − 1 directions that the rows span.
    """
    centred = rows.double() - rows.double().mean(dim=0)  # what float32 has left of their sum
    inverse: Tensor = torch.linalg.pinv(centred, rtol=_SMALLEST)
    return inverse.float()


def probed_letters(answers: Sequence[Answers], label: str) -> NDArray[np.int64]:
    """Give the letters that both probes have a row for, ``[k]`` ascending.

    Raises:
        UserError: there are fewer than two.
    """
    right, own = _right_and_own(answers)
    letters = np.intersect1d(right, own)
    if len(letters) < 2:
        raise UserError(
            f"{label}: hf-kappa needs two letters that are right for some of its prompts and the "
            f"model's own for some, but of {len(answers)} prompts {len(set(right.tolist()))} "
            f"letters are right and {len(set(own.tolist()))} the model's own; pass a larger "
            "n_pairs, or show the model examples (--num_fewshot)"
        )
    return letters


def _right_and_own(answers: Sequence[Answers]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the index of each prompt's right letter, and of the model's own, ``[prompts]``."""
    return np.array([each.right for each in answers]), np.array([each.own for each in answers])


def fit_letter_probes(values: Tensor, answers: Sequence[Answers], label: str) -> dict[str, Tensor]:
    """Fit both probes of every layer.

    Args:
        values: residuals of the prompts' last tokens, ``[prompts, layers, width, 1]``.
        answers: of each prompt the index of the right letter, and of the model's own.
        label: for the progress bar.

    Returns:
        the probes' rows ``[layers, k, width]`` and biases ``[layers, k]``, of the k letters that
        are right for some prompt and the model's own for some prompt, in order.

    Raises:
        UserError: there are fewer than two such letters.
    """
    letters = probed_letters(answers, label)
    right, own = _right_and_own(answers)
    layers, width = values.shape[1:3]
    found = {
        "knowledge": torch.zeros(layers, len(letters), width),
        "knowledge_bias": torch.zeros(layers, len(letters)),
        "prediction": torch.zeros(layers, len(letters), width),
        "prediction_bias": torch.zeros(layers, len(letters)),
    }
    unfinished = 0
    read = values.flatten(2).double().numpy()
    bar = tqdm(total=2 * layers, desc=f"Probes of {label}", unit="probe")
    # A probe is too small for several threads of BLAS, which wait for one another.
    with threadpool_limits(1, "blas"), bar:
        for layer in range(layers):
            for name, labels in (("knowledge", right), ("prediction", own)):
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always", ConvergenceWarning)
                    rows, biases = softmax_probe(read[:, layer], labels, letters)
                unfinished += any(w.category is ConvergenceWarning for w in warned)
                found[name][layer] = torch.from_numpy(rows).float()
                found[f"{name}_bias"][layer] = torch.from_numpy(biases).float()
                bar.update()
    if unfinished:
        logger.debug("%d of %d probes stopped at %d steps", unfinished, 2 * layers, _STEPS)
    return found


def softmax_probe(
    values: NDArray[np.float64], labels: NDArray[np.int64], letters: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a softmax regression, and give the rows and biases of some of its classes, centred.

    The bias is not penalised and rows lie in the span of the prompts, which are mostly fewer than
    the width. So it is the same regression about the prompts' mean and on a basis of that span,
    where it takes a twentieth of the time and comes closer to its end.

    Args:
        values: ``[prompts, width]``.
        labels: the class of each, ``[prompts]``.
        letters: classes that occur, ``[k]`` ascending.

    Returns:
        ``[k, width]`` and ``[k]``.
    """
    mean = values.mean(axis=0)
    basis, _ = np.linalg.qr((values - mean).T)  # [width, at most prompts]
    probe = LogisticRegression(C=1.0, max_iter=_STEPS, tol=_GRADIENT)
    probe.fit((values - mean) @ basis, labels)
    rows = probe.coef_ @ basis.T
    biases = probe.intercept_ - rows @ mean
    if len(probe.classes_) == 2:  # one row, of the second class against the first
        rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
    places = np.searchsorted(probe.classes_, letters)
    rows, biases = rows[places], biases[places]
    return rows - rows.mean(axis=0), biases - biases.mean()
