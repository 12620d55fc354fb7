"""What every installed method keeps to, whatever it does: the contracts of methods and of edits."""

from __future__ import annotations

import functools
import hashlib
import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from helpers.models import tiny_llama
from helpers.vector_files import made, vector_files
from sadi_lmeval.architecture.sites import Site, find_site
from sadi_lmeval.arguments import declared
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.field import FieldEdits
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import arm_names, method_class, method_names
from sadi_lmeval.passes.activations import Answers
from sadi_lmeval.settings import Axis, Setting
from sadi_lmeval.types import Element, HiddenSite

pytestmark = pytest.mark.quick

PLACES: list[tuple[Element, HiddenSite]] = [
    ("head", "mlp"),
    ("neuron", "mlp"),
    ("hidden", "mlp"),
    ("hidden", "residual"),
]
PAIRS, SEED = 10, 0
NUMBERS = (0.5, 0.25, -0.5, -1.5, 3.0)
"""Of an axis that takes any number; of a share two are left."""


@functools.cache
def sites() -> dict[tuple[Element, HiddenSite], Site]:
    """The sites of a tiny model, all of one width."""
    model = tiny_llama(40, intermediate_size=32)
    found = {place: find_site(model, *place) for place in PLACES}
    assert {site.width for site in found.values()} == {32}
    return found


def others(method: Method, name: str) -> list[Any]:
    """Other allowed values of an argument, by its declaration."""
    own = getattr(method, name)
    if declared(method)[name].is_file:
        return [path for path in vector_files() if path != own]
    found = []
    for value in get_args(get_type_hints(type(method))[name]) or (0, 0.5, 1, 2, 100):
        try:
            found.append(declared(method)[name].read(value))
        except ValueError:
            continue
    return [value for value in dict.fromkeys(found) if value != own]


def variants() -> dict[str, Method]:
    """Each method, arm and ablation, and what differs from an arm in one argument."""
    named = {name: made(method_class(name)) for name in method_names()}
    arms = {name: made(arm.method, **arm.sets) for name, arm in arm_names().items() if arm.method}
    named |= {name: method for name, method in arms.items() if method not in named.values()}
    kinds = [method_class(name) for name in method_names()]
    for name in [name for kind in kinds for name in kind.arms or kind.ablations]:
        for key in declared(arms[name]):
            for value in others(arms[name], key):
                changed = replace(arms[name], **{key: value})
                if changed not in named.values():
                    named[f"{name} {key}={Path(str(value)).name}"] = changed
    return named


METHODS = variants()
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@functools.cache
def fit_of(method: Method, site: Site) -> dict[str, Tensor]:
    """What the method's own collector makes of made-up activations."""
    collector = method.collector(site, PAIRS, SEED)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2 * PAIRS, site.layers, site.width, generator=generator)
    if method.fits_on == "prompts":
        scores = [(-1.0, -i / 3, -2.0, -4.0) for i in range(PAIRS)]
        answers = [Answers(i % 3, i % 4, scores[i]) for i in range(PAIRS)]
        collector.add([*range(PAIRS)], answers, values[:PAIRS])
    else:
        collector.add([*range(PAIRS)] * 2, [1] * PAIRS + [-1] * PAIRS, values)
    return collector.tensors("test")


def edits_of(method: Method, settings: list[Setting]) -> Edits:
    site = sites()[method.place]
    return method.edits(site, fit_of(method, site), settings, SEED)


def numbers_of(axis: Axis) -> list[float]:
    """Some numbers of an axis that this model has."""
    read = [axis.read(number) for number in ((0, 1, 2, 5) if axis.whole else NUMBERS)]
    most = min(axis.bound(site.size) or 5 for site in sites().values())
    return [number for number in read if number is not None and number <= most]


def steering(method: Method) -> list[Setting]:
    every = itertools.product(*(numbers_of(axis) for axis in method.axes))
    return [found for found in (Setting(*n) for n in every) if method.axes.steers(found)]


def idle(method: Method) -> list[Setting]:
    """Settings of a strength of 0, and the one that stands for the unsteered model."""
    found = [method.axes.unsteered]
    if any(axis.strength for axis in method.axes):
        every = [[0.0] if axis.strength else numbers_of(axis) for axis in method.axes]
        found += [Setting(*numbers) for numbers in itertools.product(*every)]
    return list(dict.fromkeys(found))


def rows_of(site: Site, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Activations ``[count, width]``, among them some that arithmetic does not leave alone."""
    rows = torch.randn(count, site.width, generator=torch.Generator().manual_seed(2))
    rows[::2, ::3] = -0.0
    rows[1::4, 1::3] = torch.inf
    return rows.to(dtype)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal, a zero's sign included; any NaN is as good as another."""
    assert found.dtype == expected.dtype
    number = ~expected.isnan()
    assert torch.equal(~found.isnan(), number)
    as_bits = torch.int32 if found.dtype == torch.float32 else torch.int16
    assert torch.equal(found.view(as_bits)[number], expected.view(as_bits)[number])


def assert_same_rows(edits: Edits, found: Tensor, expected: Tensor) -> None:
    """To the bit; but a field's product of matrices adds up in an order that depends on how many
    rows there are, which later steps along the field make larger.
    """
    if isinstance(edits, FieldEdits):
        of_float32: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
        rounding = of_float32 if found.dtype == torch.float32 else {}
        torch.testing.assert_close(found, expected, equal_nan=True, **rounding)
    else:
        assert_same_bits(found, expected)


@each_type
@each_method
def test_a_row_depends_on_itself_alone(method: Method, dtype: torch.dtype) -> None:
    settings = [*steering(method), *idle(method)]
    edits = edits_of(method, settings)
    rows = rows_of(edits.site, 3 * len(settings), dtype)
    which = torch.arange(len(rows)) % len(settings)
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))[: len(rows) // 2]
    for layer in range(edits.site.layers):
        before = rows.clone()
        whole = edits.apply(layer, rows, which)
        assert whole.shape == rows.shape
        assert_same_bits(rows, before)
        assert_same_rows(edits, edits.apply(layer, rows[some], which[some]), whole[some])
        for row in some[:4].tolist():
            one = edits.apply(layer, rows[[row]], which[[row]])
            assert_same_rows(edits, one, whole[[row]])
    assert any(
        not torch.equal(edits.apply(layer, rows, which), rows) for layer in range(edits.site.layers)
    )


@each_type
@each_method
def test_a_strength_of_nothing_leaves_every_bit(method: Method, dtype: torch.dtype) -> None:
    """Alone and beside settings that steer, as the first and as the last.

    Where no number is a strength, 0 in all of them, which stands for the unsteered model, is a
    setting that no user can ask for.
    """
    assert any(axis.strength or axis.read(0) is None for axis in method.axes)
    nothing, something = idle(method), steering(method)
    for settings in (nothing, [*nothing, *something], [*something, *nothing]):
        edits = edits_of(method, settings)
        rows = rows_of(edits.site, len(nothing), dtype)
        which = torch.tensor([settings.index(setting) for setting in nothing])
        assert {edits.first_layers[i] for i in which.tolist()} == {edits.site.layers}
        for layer in range(edits.site.layers):
            assert_same_bits(edits.apply(layer, rows, which), rows)


@each_type
@each_method
def test_settings_side_by_side_are_each_of_them_alone(method: Method, dtype: torch.dtype) -> None:
    settings = [*steering(method), *idle(method)]
    together = edits_of(method, settings)
    assert together.count == len(settings)
    rows = rows_of(together.site, 8, dtype)
    touched = set()
    for number, setting in enumerate(settings):
        alone = edits_of(method, [setting])
        assert alone.first_layers == [together.first_layers[number]]
        assert alone.digest(0) == together.digest(number)
        touched |= set(alone.layers)
        for layer in range(together.site.layers):
            found = together.apply(layer, rows, torch.full((len(rows),), number))
            expected = alone.apply(layer, rows, torch.zeros(len(rows), dtype=torch.long))
            assert_same_bits(found, expected)
            if layer < together.first_layers[number]:
                assert_same_bits(found, rows)
    assert together.layers == sorted(touched)


@each_method
def test_every_number_of_a_setting_shows_in_the_digest(method: Method) -> None:
    settings = steering(method)
    for place in range(len(method.axes)):
        assert len({setting[place] for setting in settings}) > 1
    edits = edits_of(method, settings)
    assert len({edits.digest(number) for number in range(edits.count)}) == len(settings)
    assert edits_of(method, settings).digest(0) == edits.digest(0)


@each_method
def test_the_same_numbers_at_another_site_have_another_digest(method: Method) -> None:
    own = sites()[method.place]
    tensors, settings = fit_of(method, own), steering(method)[:1]
    alike = [
        site._replace(entries=own.entries, entry_width=own.entry_width) for site in sites().values()
    ]
    found = {method.edits(site, tensors, settings, SEED).digest(0) for site in alike}
    assert len(found) == len(PLACES)


@each_method
def test_what_a_setting_is_said_to_select_is_what_it_edits(method: Method) -> None:
    for setting in steering(method):
        edits = edits_of(method, [setting])
        site = edits.site
        selected = method.selected(fit_of(method, site), setting, SEED)
        if selected is None:
            continue
        if selected.dim() == 2:  # whole entries, else single activations of them
            assert selected.shape == (site.layers, site.entries)
            selected = selected.unsqueeze(-1).expand(site.shape)
        assert selected.shape == site.shape
        rows = torch.rand(2, site.width, generator=torch.Generator().manual_seed(4)) + 1
        for layer in range(site.layers):
            changed = edits.apply(layer, rows, torch.zeros(2, dtype=torch.long)) != rows
            assert torch.equal(changed, selected[layer].flatten().expand_as(changed))


@each_method
def test_what_a_fit_found_is_a_number_for_every_entry(method: Method) -> None:
    """Or nothing, where single entries have no number."""
    [setting, *_] = steering(method)
    site = edits_of(method, [setting]).site
    found = method.found(fit_of(method, site))
    if found is not None:
        assert found.name
        assert found.scores.shape == (site.layers, site.entries)
    elif method.selected(fit_of(method, site), setting, SEED) is not None:
        pytest.fail("single entries are selected, and nothing says by what")


@each_method
def test_the_record_holds_every_argument_and_shows_every_change(method: Method) -> None:
    record = method.record()
    own = declared(method)
    plain = {f.name: getattr(method, f.name) for f in fields(method) if not own[f.name].is_file}
    files = {name: record[name] for name in own if own[name].is_file}
    assert record == {"method": method.name, **plain, **files}
    for name, text in files.items():  # by its content, and no place on this machine
        path = Path(getattr(method, name))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert text == f"{path.name} sha256:{digest[:16]}"
    for name in declared(method):
        values = others(method, name)
        assert values, f"no other value of {name} is known"
        for value in values:
            changed = replace(method, **{name: value}).record()
            shown = changed[name] if own[name].is_file else value
            assert changed == {**record, name: shown} != record


@each_method
def test_what_is_not_measured_shares_the_fit(method: Method) -> None:
    site = sites()[method.place]
    for name, argument in declared(method).items():
        for value in others(method, name) if not argument.measured else ():
            other = replace(method, **{name: value})
            assert other.measured_by == method.measured_by
            found, expected = fit_of(other, site), fit_of(method, site)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_every_method_and_arm_is_here() -> None:
    for name, arm in arm_names().items():
        assert arm.method is None or made(arm.method, **arm.sets) in METHODS.values(), name
    assert {method.name for method in METHODS.values()} == set(method_names())
