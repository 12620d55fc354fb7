"""What a method's equations, written out, say of it: the questions that every method is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from helpers.forms import PLAIN, Form
from helpers.loops import Change, Gated, Where

LAYERS, HEADS, HEAD_DIM, WIDTH = 3, 4, 8, 32
"""Of the tiny model."""
HEAD_DIMS = (HEAD_DIM,) * LAYERS
"""Of each layer; a test of a model whose layers differ puts others here."""

Numbers = tuple[float, ...]
"""Of a setting."""
Places = set[tuple[int, ...]]
"""(layer, head), or (layer, head, dimension); in the hidden states (layer, unit)."""
Given = Mapping[str, Any]
"""Arguments of a run by name, the numbers of its setting among them."""


class Equations(NamedTuple):
    """A method, written out.

    Attributes:
        given: arguments of a run that steers noticeably.
        where: what is read and edited, of a run's arguments.
        measure: takes the activations of the right and of the wrong texts,
            ``[pairs, layers, width]`` each, in double precision, and the run's arguments; gives
            whatever the rest takes. Of a method that is fitted on prompts: the activations of the
            prompts, and of each the index of the right choice and of the model's own.
        change: what the run's setting does to activations; with a gate where it has one.
        places: what the run's setting edits; None: whole layers.
        assert_measured: compares a fit's tensors with what was measured here.
        cases: changes to ``given`` that are scored as well.
        generated: changes to ``given`` with which texts are generated.
        served: other arguments that the same fit serves.
        chosen: arguments that leave the setting to be chosen, and the settings that are tried.
        narrowed: arguments that fix a part of the setting, and the settings that are tried.
        usual: arguments that leave nothing to be chosen, and the setting.
        scope: of the edits where the run's arguments name none.
        form: in which the tests' tasks ask the method.
    """

    given: dict[str, Any]
    where: Callable[[Given], Where]
    measure: Callable[[Tensor, Any, Given], Any]
    change: Callable[[Any, Given], Change | Gated | None]
    places: Callable[[Any, Given], Places | None]
    assert_measured: Callable[[Mapping[str, Tensor], Any], None]
    served: Sequence[dict[str, Any]]
    chosen: tuple[dict[str, Any], Sequence[Numbers]]
    narrowed: Sequence[tuple[dict[str, Any], Sequence[Numbers]]]
    usual: Sequence[tuple[dict[str, Any], Numbers]]
    cases: Sequence[dict[str, Any]] = ({},)
    generated: Sequence[dict[str, Any]] = ({},)
    scope: Any = "onwards"
    form: Form = PLAIN


def head_dim(layer: int) -> int:
    return HEAD_DIMS[layer]


def part_of(layer: int, head: int) -> slice:
    """The activations of a head."""
    return slice(head * head_dim(layer), (head + 1) * head_dim(layer))


def as_passes_have(fitted: Tensor) -> Tensor:
    """A fit's ``[layers, entries, entry_width]`` as ``[layers, width]``: a narrower layer's are
    together at the beginning of its row, not at that of each entry.
    """
    rows = [of[:, : head_dim(layer)].flatten() for layer, of in enumerate(fitted)]
    return pad_sequence(rows, batch_first=True)
