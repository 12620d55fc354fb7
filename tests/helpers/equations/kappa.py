"""KAPPA, written out (arXiv 2509.23782)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.equations.contract import LAYERS, Equations, Given
from helpers.forms import LETTERS
from helpers.loops import Change


class Probe(NamedTuple):
    """A softmax probe: of each letter its row and its bias; both sum to zero over the letters."""

    rows: list[np.ndarray[Any, Any]]
    biases: list[float]

    def logits(self, x: np.ndarray[Any, Any]) -> list[float]:
        return [
            sum(float(w) * float(v) for w, v in zip(row, x, strict=True)) + bias
            for row, bias in zip(self.rows, self.biases, strict=True)
        ]


class Layer(NamedTuple):
    """The probe of the right letter, and that of the model's own."""

    knowledge: Probe
    prediction: Probe


def probe_of(texts: Tensor, labels: Sequence[int], letters: Sequence[int]) -> Probe:
    """Softmax regression of ``[prompts, width]``, of which some letters are looked at."""
    exact = LogisticRegression(C=1.0, solver="newton-cg", max_iter=10**5, tol=1e-9)
    fitted = exact.fit(texts.numpy(), labels)
    classes = fitted.classes_.tolist()
    if len(classes) == 2:  # the logit of the second against the first
        row, bias = fitted.coef_[0], float(fitted.intercept_[0])
        every = {classes[0]: (-row / 2, -bias / 2), classes[1]: (row / 2, bias / 2)}
    else:
        every = {c: (fitted.coef_[i], fitted.intercept_[i]) for i, c in enumerate(classes)}
    mean = sum(every[letter][0] for letter in letters) / len(letters)
    shared = sum(every[letter][1] for letter in letters) / len(letters)
    return Probe(
        [every[letter][0] - mean for letter in letters],
        [float(every[letter][1] - shared) for letter in letters],
    )


def layers_of(prompts: Tensor, answers: list[tuple[int, int]], given: Given) -> list[Layer]:
    """Both probes of each layer, of the letters that are right somewhere and chosen somewhere."""
    right, own = [r for r, _ in answers], [o for _, o in answers]
    letters = [letter for letter in range(26) if letter in right and letter in own]
    return [
        Layer(probe_of(prompts[:, n], right, letters), probe_of(prompts[:, n], own, letters))
        for n in range(LAYERS)
    ]


def kappa_change(layers: list[Layer], given: Given) -> Change:
    """x' = x + W_P^T (W_P W_P^T)⁻¹ (α z_K − z_P): of all steps that get there the shortest."""
    first, alpha = int(given["layer"]), given["alpha"]
    edited = range(first, first + given.get("blocks", 1))

    def change(layer: int, values: Tensor) -> Tensor:
        if layer not in edited:
            return values
        after = values.clone()
        probes = layers[layer]
        for position, value in enumerate(values):
            x = value.double().numpy()
            knows, says = probes.knowledge.logits(x), probes.prediction.logits(x)
            missing = [alpha * k - p for k, p in zip(knows, says, strict=True)]
            step = np.linalg.lstsq(np.stack(probes.prediction.rows), missing, rcond=1e-9)[0]
            after[position] = torch.from_numpy(x + step)
        return after

    return change


def assert_probes(tensors: Mapping[str, Tensor], expected: list[Layer]) -> None:
    for number, layer in enumerate(expected):
        for name, probe in layer._asdict().items():
            found = tensors[name][number].numpy()
            assert found == pytest.approx(np.stack(probe.rows), abs=2e-3)  # where the fit stops
            assert np.abs(found).max() > 0.1
            assert tensors[f"{name}_bias"][number].tolist() == pytest.approx(probe.biases, abs=2e-3)


EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "alpha": 4},
    where=lambda given: "residual",
    measure=layers_of,
    change=kappa_change,
    places=lambda layers, given: None,
    assert_measured=assert_probes,
    served=[{"layer": 2}, {"alpha": -3}, {"blocks": 2}],
    chosen=({"grid": "0/2x1/8", "n_tune": 10}, [(0, 1.0), (0, 8.0), (2, 1.0), (2, 8.0)]),
    narrowed=[
        ({"layer": 2, "alpha": "auto"}, [(2, a) for a in (1, 2, 4, 8, 16, 32)]),
        ({"alpha": 2.5}, [(layer, 2.5) for layer in range(LAYERS)]),
    ],
    usual=[({"layer": 2, "alpha": 4}, (2, 4))],
    cases=[{"layer": 0, "alpha": -2}, {"layer": 2, "scope": "onwards"}, {"blocks": 2}],
    generated=[],
    scope="prompt",
    form=LETTERS,
)
