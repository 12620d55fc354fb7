"""Makes lm-eval releases without plugin discovery know our models and tasks.

Newer releases read the entry points that our distribution declares; lm-eval 0.4.13 reads none. So
the wheel carries a one-line ``.pth`` file by which every interpreter of the environment imports
this package, and this module then waits, as a finder on ``sys.meta_path``, for two modules:

* ``lm_eval.models``: once it has run, our models are registered, as lazy targets. Not a moment
  before: the harness imports its own models only while its registry is empty, so a name of ours
  put there first would make ``hf`` unknown.
* ``lm_eval.tasks.manager``: once it has run, a task index that holds the harness's own tasks holds
  ours too, under names that nobody else has taken.

Where the harness discovers plugins itself, only the models of methods are added that no package
declares for it; models and tasks are judged apart, since that came to them at different times.
Should a release do it under other names than those looked for here, both ways lead to the same
classes and files, and a name is never given twice. An interpreter that never imports lm-eval pays
one dictionary look-up an import.

Setting the environment variable ``SADI_LMEVAL_NO_BRIDGE=1`` switches all of this off.

Every interpreter start runs this module: it may import only what the interpreter itself already
has (not even ``typing``), which is why the rest is imported inside the functions.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers know this name without the import of `typing`
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType
    from typing import Any

SWITCH = "SADI_LMEVAL_NO_BRIDGE"

METHODS = "sadi_lmeval.methods"
"""The group of entry points that name steering methods, ours and those of other packages."""


def model_targets() -> dict[str, str]:
    """Name the model of each installed method for ``--model``, and the class behind it.

    Importing neither: the classes are made when they are asked for.
    """
    from importlib.metadata import entry_points

    names = sorted({point.name for point in entry_points(group=METHODS)})
    # An entry point may not name `linear-act`, which is no identifier.
    return {f"hf-{name}": f"sadi_lmeval.model:{name.replace('-', '_')}" for name in names}


def install() -> None:
    """Add our names to what is imported of lm-eval, and to the rest as soon as it is.

    Does nothing if the environment variable of the module's docstring is set (to other than 0).
    """
    if os.environ.get(SWITCH, "0") not in ("", "0"):
        return
    waiting = dict(_ACTIONS)
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            _attempt(action, sys.modules[name])
            del waiting[name]
    if waiting:
        sys.meta_path.insert(0, AfterImport(waiting))


class AfterImport:
    """A finder that finds nothing itself: it calls an action right after a module has run.

    The other finders find the module; its loader's ``exec_module`` is then wrapped, on that one
    instance, so the module keeps the loader it would have had. When no action is left the finder
    leaves ``sys.meta_path``.
    """

    def __init__(self, actions: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._waiting = dict(actions)
        # (thread, module) pairs being looked for: a finder like this one, which asks all others
        # in its turn, must not be answered with a question.
        self._asking: set[tuple[int, str]] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the spec that the other finders give for a module we wait for, and wrap its loader.

        None for any other module, which makes the import system ask on.
        """
        question = (get_ident(), name)
        if name not in self._waiting or question in self._asking:
            return None
        self._asking.add(question)
        try:
            for finder in [finder for finder in sys.meta_path if finder is not self]:
                find_spec = getattr(finder, "find_spec", None)  # old finders have `find_module`
                spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
                if spec is not None:
                    self._wrap(name, spec.loader)
                    return spec
            return None
        finally:
            self._asking.discard(question)

    def _wrap(self, name: str, loader: Any) -> None:
        run, own = getattr(loader, "exec_module", None), getattr(loader, "__dict__", None)
        if run is None or not isinstance(own, dict):  # no loader, or a class: nothing to wrap
            return

        def exec_module(module: ModuleType) -> None:
            own.pop("exec_module", None)
            run(module)
            self._ran(name, module)

        own["exec_module"] = exec_module

    def _ran(self, name: str, module: ModuleType) -> None:
        action = self._waiting.pop(name, None)  # one of several threads gets it
        if action is not None:
            _attempt(action, module)
        if not self._waiting:
            # A new list: an import that is walking the old one must not skip a finder.
            sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


def _register_models(models: ModuleType) -> None:
    """Register the models that lm-eval's registry lacks.

    Where it reads entry points itself, those that packages declare for it are left to it.
    """
    from importlib.metadata import entry_points

    from lm_eval.api import registry

    native = set()
    if hasattr(registry, "load_plugins"):
        native = {point.name for point in entry_points(group="lm_eval.models")}
    for name, target in model_targets().items():
        if name not in native and name not in registry.model_registry:
            registry.model_registry.register(name, target=target)


def _index_tasks(manager: ModuleType) -> None:
    """Let lm-eval's task index hold our tasks, unless it reads entry points itself.

    ``TaskManager`` derives its lists of tasks, groups and tags from the index that
    ``TaskIndex.build`` returns, so that is the one place to add them. An index without the
    harness's own folder was asked for by ``include_defaults=False`` and stays without ours.
    """
    if hasattr(manager, "discover_plugin_task_paths"):
        return
    import functools
    from pathlib import Path

    from sadi_lmeval.folders import task_configs

    defaults = Path(str(manager.__file__)).parent
    build: Callable[..., dict[str, Any]] = manager.TaskIndex.build

    @functools.wraps(build)
    def build_with_ours(paths: Iterable[Path], **settings: Any) -> dict[str, Any]:
        folders = list(paths)
        index = build(folders, **settings)
        if defaults in folders:
            for name, entry in build([task_configs()], **settings).items():
                index.setdefault(name, entry)
        return index

    manager.TaskIndex.build = staticmethod(build_with_ours)


def _attempt(action: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run an action on the module; a failure is logged, but never stops the import of lm-eval."""
    try:
        action(module)
    except Exception as error:
        import logging

        logging.getLogger(__name__).warning(
            "sadi-lmeval could not add its names to %s (%s: %s)",
            module.__name__,
            type(error).__name__,
            error,
        )


_ACTIONS = {"lm_eval.models": _register_models, "lm_eval.tasks.manager": _index_tasks}
