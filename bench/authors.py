"""The code of a method's authors, run out of a checkout of it: nothing of it is changed or copied.

What such code asks for and what is not here is stood in for, by name: packages that are not
installed, and a CUDA device.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

Locals = dict[str, Any]


def commit_of(checkout: Path) -> str:
    """Give the commit of a checkout, with a plus sign where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


class _StandIn(ModuleType):
    """A package that is not here: any name can be imported of it, and none can be used."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        whole = f"{self.__name__}.{name}"

        def missing(*arguments: Any, **keywords: Any) -> Any:
            raise RuntimeError(f"{whole} was called, but {self.__name__} is not installed")

        return missing


class _StandIns(MetaPathFinder, Loader):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def importing_from(checkout: Path, stood_in_for: Sequence[str]) -> Iterator[None]:
    """Import modules of a checkout by their names, whatever else is called so.

    Args:
        checkout: stands first on the path in the block.
        stood_in_for: packages of which it imports names; those that are installed are the real
            ones.
    """
    own = {path.stem for path in checkout.iterdir() if path.suffix == ".py" or path.is_dir()}

    def taken_out() -> dict[str, ModuleType]:
        return {
            name: sys.modules.pop(name)
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in own or isinstance(module, _StandIn)
        }

    others, finder = taken_out(), _StandIns(stood_in_for)
    sys.path.insert(0, str(checkout))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(checkout))
        taken_out()
        sys.modules.update(others)


def loaded_as(name: str, file: Path) -> ModuleType:
    """Load a file as a module of a package that is installed: it may import its neighbours."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def watching(function: Any, keep: Callable[[Locals], Any]) -> Iterator[list[Any]]:
    """Note what a function's own variables are whenever it returns: it runs as it is written.

    Args:
        function: written in Python.
        keep: makes of the variables what is noted.
    """
    assert isinstance(function, FunctionType)
    code, noted = function.__code__, list[Any]()

    def at_call(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_lines = False
        return at_return

    def at_return(frame: FrameType, event: str, _: Any) -> None:
        if event == "return":
            noted.append(keep(frame.f_locals))

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield noted
    finally:
        sys.settrace(before)


@contextmanager
def cuda_is(device: torch.device) -> Iterator[None]:
    """Move tensors to another device where code names ``cuda``."""
    moved = torch.Tensor.to

    def to(tensor: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        def here(value: Any) -> Any:
            return device if isinstance(value, str) and value == "cuda" else value

        given = {name: here(value) for name, value in keywords.items()}
        return moved(tensor, *(here(value) for value in arguments), **given)

    with patch.object(torch.Tensor, "to", to):
        yield
