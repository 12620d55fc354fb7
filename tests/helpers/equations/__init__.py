"""Each method's equations written out: what it measures of pairs, and what it makes of activations.

Nothing of the package's methods is used: plain loops over the activations of plain passes. A
method ``my-name`` has a module ``my_name`` here, which is found by that name.
"""

from __future__ import annotations

from importlib import import_module

from helpers.equations.contract import Equations
from sadi_lmeval.methods.registry import method_names


def equations_of(method: str) -> Equations:
    """The equations of a method.

    Raises:
        ModuleNotFoundError: it has none yet.
    """
    module = import_module(f"helpers.equations.{method.replace('-', '_')}")
    found: Equations = module.EQUATIONS
    return found


EQUATIONS: dict[str, Equations] = {
    name: equations_of(name) for name in method_names() if name != "vector"
}
"""By the method's name; of one that measures nothing of pairs see ``test_vector.py``."""
