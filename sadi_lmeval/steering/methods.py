"""The methods as the rest of the package sees them.

A new one is a file in ``interventions``, a row here, and its arguments in ``options``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.interventions.caa import caa_edit
from sadi_lmeval.interventions.edit import Edit, Edits, Scope
from sadi_lmeval.interventions.iti import Probes, best_heads, iti_edit
from sadi_lmeval.interventions.sadi import binary_mask, entry_scores, sadi_edit
from sadi_lmeval.options import Element, HiddenSite, Method, Options, parse
from sadi_lmeval.settings import CAA_STRENGTHS, ITI_GRID, SADI_GRIDS, Grid, Setting
from sadi_lmeval.storage.mask import Kind, Measurement


class _Way(NamedTuple):
    """How a method steers.

    Attributes:
        kind: what is measured of the pairs.
        scope: whether it edits the last prompt token alone, or every later token too.
        site: where it reads and edits.
        grid: what is tried where the user gives nothing, for a model's layers and entries a
            layer; where they are not known yet, what is tried at most.
        usual: where and strength, each for where the user gives the other alone; None: it is
            then chosen.
        edits: of each setting.
        selected: the (layer, entry) of a setting, or None where it is a whole layer.
    """

    kind: Kind
    scope: Scope
    site: Callable[[Options], tuple[Element, HiddenSite]]
    grid: Callable[[Options, tuple[int, int] | None], Grid]
    usual: Callable[[Options], tuple[int | None, float | None]]
    edits: Callable[[Measurement, Sequence[Setting], Options], Iterator[Edit]]
    selected: Callable[[Measurement, Setting, Options], Tensor | None]


def _sadi_grid(options: Options, size: tuple[int, int] | None) -> Grid:
    return _at_most(SADI_GRIDS[options.element], size)


def _sadi_mask(found: Measurement, setting: Setting, options: Options) -> Tensor:
    scores = entry_scores(found.tensors["difference"])
    return binary_mask(scores, setting.where, options.selection, options.seed)


def _sadi_edits(
    found: Measurement, settings: Sequence[Setting], options: Options
) -> Iterator[Edit]:
    of_each = {setting.where: setting for setting in settings}
    masks = {where: _sadi_mask(found, setting, options) for where, setting in of_each.items()}
    for where, delta in settings:
        yield sadi_edit(masks[where], found.tensors["difference"], delta, options.steering)


_SADI = _Way(
    kind="mean_difference",
    scope="prompt",
    site=lambda options: (options.element, options.hidden_site),
    grid=_sadi_grid,
    # The middle of the reference code's grids, and its strength 10.
    usual=lambda options: ({"head": 6, "neuron": 100, "hidden": 10}[options.element], 9.0),
    edits=_sadi_edits,
    selected=_sadi_mask,
)


def _iti_edits(found: Measurement, settings: Sequence[Setting], options: Options) -> Iterator[Edit]:
    probes = Probes(**found.tensors)
    for top_k, alpha in settings:
        yield iti_edit(probes, top_k, alpha, options.direction)


_ITI = _Way(
    kind="probes",
    scope="onwards",
    site=lambda options: ("head", "mlp"),
    grid=lambda options, size: _at_most(ITI_GRID, size),
    usual=lambda options: (48, 15.0),  # the authors' for LLaMA-7B
    edits=_iti_edits,
    selected=lambda found, setting, options: best_heads(found.tensors["accuracy"], setting.where),
)


def _caa_grid(options: Options, size: tuple[int, int] | None) -> Grid:
    return Grid(tuple(range(1 if size is None else size[0])), CAA_STRENGTHS)


def _caa_edits(found: Measurement, settings: Sequence[Setting], options: Options) -> Iterator[Edit]:
    difference = found.tensors["difference"].flatten(1)
    for layer, multiplier in settings:
        yield caa_edit(difference, layer, multiplier)


_CAA = _Way(
    kind="mean_difference",
    scope="onwards",
    site=lambda options: ("hidden", "residual"),
    grid=_caa_grid,
    usual=lambda options: (None, 1.0),  # which layer depends on the model
    edits=_caa_edits,
    selected=lambda found, setting, options: None,
)

_WAYS: dict[Method, _Way] = {"sadi": _SADI, "iti": _ITI, "caa": _CAA}


def options_of(arguments: dict[str, Any], method: Method = "sadi") -> Options:
    """The model arguments of a method, checked.

    Raises:
        UserError: naming every fault at once.
    """
    options = parse(arguments, method)
    _check_grid(options)
    return options


def kind_of(options: Options) -> Kind:
    """What is measured of the pairs."""
    return _way(options).kind


def site_of(options: Options) -> tuple[Element, HiddenSite]:
    """Where a method reads and edits."""
    return _way(options).site(options)


def edits_of(
    measurement: Measurement, settings: Sequence[Setting], options: Options
) -> Iterator[Edit]:
    """The edit of each setting."""
    return _way(options).edits(measurement, settings, options)


def joined(site: Site, edits: Iterable[Edit], options: Options) -> Edits:
    """Edits of one method, so that each position of a batch can have its own."""
    return Edits(site, edits, options.activations == "clean", _way(options).scope)


def selected(measurement: Measurement, setting: Setting, options: Options) -> list[Any] | None:
    """The [layer, entry] of what a setting steers; None where it is a whole layer."""
    found = _way(options).selected(measurement, setting, options)
    return None if found is None else found.nonzero().tolist()


def is_unsteered(options: Options) -> bool:
    return options.method == "none" or options.strength == 0


def tuned(options: Options) -> bool:
    """Whether the arguments leave a number to be chosen on held-out documents."""
    given = options.where, options.strength
    if is_unsteered(options):
        return False
    return "auto" in _with_usual(options, given) or options.grid is not None


def grid(options: Options, size: tuple[int, int] | None = None) -> Grid:
    """The settings to choose from: the user's grid or the method's own, a number that the user
    fixed in place of its list. Of two numbers of which one is given, the other has its usual value.

    Args:
        options: the user's.
        size: layers of the model and entries a layer, where known: the method's own grid goes no
            further.
    """
    chosen = options.grid or _way(options).grid(options, size)
    where, strength = options.where, options.strength
    if options.grid is None:
        usual, strength = _with_usual(options, (where, strength))
        if where is None and isinstance(usual, int) and size is not None:
            usual = min(usual, size[0] * size[1])
        where = usual
    if isinstance(where, int):
        chosen = chosen._replace(where=(where,))
    if isinstance(strength, (int, float)):
        chosen = chosen._replace(strength=(strength,))
    return chosen


def _with_usual(options: Options, given: tuple[Any, Any]) -> tuple[Any, Any]:
    """Where and strength, what is not given replaced: by ``auto``, or beside one by its usual."""
    if given == (None, None):
        return "auto", "auto"
    return tuple(
        (usual if usual is not None else "auto") if value is None else value
        for value, usual in zip(given, _way(options).usual(options), strict=True)
    )  # type: ignore[return-value]


def largest_where(options: Options) -> int:
    """The largest K or layer that the user asks for; 0 where it is left to us."""
    if options.grid is not None:
        return max(grid(options).where)
    return options.where if isinstance(options.where, int) else 0


def check_where(where: int, layers: int, entries: int, options: Options) -> None:
    """Refuse to steer more entries than a model has, or a layer that it has not.

    Raises:
        UserError: naming both numbers.
    """
    element, _ = site_of(options)
    if options.parameters.where == "layer":
        if where >= layers:
            raise UserError(f"layer={where}: this model has layers 0 to {layers - 1}")
    elif where > layers * entries:
        raise UserError(
            f"top_k={where}: this model has {layers * entries} entries of element {element} "
            f"({layers} layers of {entries})"
        )


def _check_grid(options: Options) -> None:
    """Refuse a grid that is too large, or steers nothing."""
    if not tuned(options):
        return
    count, strength = len(grid(options).settings), options.parameters.strength
    if count > options.max_settings:
        raise UserError(
            f"grid of {count} settings: at most max_settings={options.max_settings} are tried; "
            "pass a smaller grid= or a larger max_settings="
        )
    if not count:
        raise UserError(
            f"grid: {strength} 0 alone steers nothing, and the unsteered model is always tried; "
            f"pass another {strength}"
        )


def _at_most(grid: Grid, size: tuple[int, int] | None) -> Grid:
    """A grid without the K that are more than there are entries; if all are, with all entries."""
    if size is None:
        return grid
    entries = size[0] * size[1]
    where = tuple(k for k in grid.where if k <= entries)
    return grid._replace(where=where or (entries,))


def _way(options: Options) -> _Way:
    """Of the unsteered model SADI's, which then edits nothing."""
    return _WAYS["sadi" if options.method == "none" else options.method]
