"""Code of a checkout runs as it is written, and leaves nothing behind where it was imported."""

from __future__ import annotations

import importlib
import sys
import textwrap
import trace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from authors import cuda_is, importing_from, watching

pytestmark = pytest.mark.quick

CODE = """
    from a_package_of_theirs.part import score
    from trace import doubled
    import torch

    def measured(values):
        total = doubled(torch.tensor(values).to("cuda"))
        return total.shape

    def scored():
        return score(1)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "steering.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "trace.py").write_text("def doubled(value):\n    return 2 * value\n")
    return tmp_path


def test_a_checkout_is_imported_whatever_else_is_called_so(checkout: Path) -> None:
    path, finders = list(sys.path), list(sys.meta_path)
    with importing_from(checkout, ["a_package_of_theirs"]):
        theirs = importlib.import_module("steering")
    assert theirs.doubled(3) == 6
    assert sys.modules["trace"] is trace
    assert "steering" not in sys.modules
    assert (sys.path, sys.meta_path) == (path, finders)


def test_what_is_not_installed_is_imported_and_not_used(checkout: Path) -> None:
    with importing_from(checkout, ["a_package_of_theirs"]):
        theirs = importlib.import_module("steering")
    with pytest.raises(RuntimeError, match=r"a_package_of_theirs\.part is not installed"):
        theirs.scored()
    with pytest.raises(ModuleNotFoundError), importing_from(checkout, []):
        importlib.import_module("steering")
    assert sys.modules["trace"] is trace


def test_what_a_function_does_not_return_is_read_off_it(checkout: Path) -> None:
    with importing_from(checkout, ["a_package_of_theirs"]):
        theirs = importlib.import_module("steering")
    with (
        cuda_is(torch.device("meta")),
        watching(theirs.measured, lambda found: found["total"]) as n,
    ):
        assert theirs.measured([1.0, 2.0]) == (2,)
    [total] = n
    assert total.device.type == "meta"
    assert torch.ones(1).to("cpu").device.type == "cpu"
    assert "to" not in vars(torch.Tensor)
