"""Steering methods as models of lm-evaluation-harness: SADI, ITI, CAA, and those of others.

Importing this package loads neither torch nor lm_eval, and does one thing: it makes the harness
know our names (``sadi_lmeval.registration``). What others build on is here, by name, and loaded
when it is first asked for; everything else is imported by its module's name.

Data goes one way through the folders: the pairs of a task (``pairs``) are read, and requests
scored, in forward passes (``passes``) at the sites of a model (``architecture``); a method
(``methods``) is fitted to what was read, which is kept (``storage``) under a key of all that it
depends on (``identity``), and makes its edits (``edits``), one of which is chosen for each task
(``steering``); many of them are tried side by side (``comparison``), what came is recorded
(``records``), and tables are made of that (``reports``). ``harness`` is the host, as all of them
see it.
"""

import os

from sadi_lmeval.registration import install

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sadi_lmeval.api.fitting import fit
    from sadi_lmeval.api.steering_fit import SteeringFit, load, wrap
    from sadi_lmeval.architecture.sites import Architecture, Site, register_architecture
    from sadi_lmeval.arguments import argument, choice, file, folder, number, text, whole
    from sadi_lmeval.edits.contract import Edits
    from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
    from sadi_lmeval.edits.directions import DirectionEdits
    from sadi_lmeval.edits.field import FieldEdits
    from sadi_lmeval.edits.scaled import ScaledEdits
    from sadi_lmeval.errors import UserError
    from sadi_lmeval.methods.base import Method, scoped
    from sadi_lmeval.methods.collectors import Given, Kept, KeptPrompts, MeanDifference
    from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
    from sadi_lmeval.types import Element, HiddenSite, Scope, Size

_PUBLIC = {
    "api.fitting": ("fit",),
    "api.steering_fit": ("SteeringFit", "load", "wrap"),
    "architecture.sites": ("Architecture", "Site", "register_architecture"),
    "arguments": ("argument", "choice", "file", "folder", "number", "text", "whole"),
    "edits.contract": ("Edits",),
    "edits.diagonal": ("DiagonalEdits", "Edit"),
    "edits.directions": ("DirectionEdits",),
    "edits.field": ("FieldEdits",),
    "edits.scaled": ("ScaledEdits",),
    "errors": ("UserError",),
    "methods.base": ("Method", "scoped"),
    "methods.collectors": ("Given", "Kept", "KeptPrompts", "MeanDifference"),
    "settings": ("Axes", "Axis", "SearchSpace", "Setting"),
    "types": ("Element", "HiddenSite", "Scope", "Size"),
}
"""Of each module, what users and other packages take."""

__all__ = [
    "Architecture",
    "Axes",
    "Axis",
    "DiagonalEdits",
    "DirectionEdits",
    "Edit",
    "Edits",
    "Element",
    "FieldEdits",
    "Given",
    "HiddenSite",
    "Kept",
    "KeptPrompts",
    "MeanDifference",
    "Method",
    "ScaledEdits",
    "Scope",
    "SearchSpace",
    "Setting",
    "Site",
    "Size",
    "SteeringFit",
    "UserError",
    "__version__",
    "argument",
    "choice",
    "file",
    "fit",
    "folder",
    "load",
    "number",
    "register_architecture",
    "scoped",
    "text",
    "whole",
    "wrap",
]


def __getattr__(name: str) -> object:
    for module, names in _PUBLIC.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The harness finds our task configs as the package `sadi_lmeval.task_configs`. A wheel has that
# folder in here; in a checkout it lies one level up, so look there too.
if not os.path.isdir(os.path.join(__path__[0], "task_configs")):
    __path__.append(os.path.dirname(__path__[0]))

install()
