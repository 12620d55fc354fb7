"""What a first run costs, with nothing cached, part by part against one pass of ``hf``.

    python bench/first_run.py [--tasks truthfulqa_mc1,boolq] [--limit 200] [--again]
        [--model_args element=head,race=false] [--model FOLDER] [--data FOLDER]

Prints a table: the multiplications of the blocks' and the head's weights, the CPU time and the time
of pairs, choice and scoring, each as a part of what ``hf`` takes for the same documents at its best
batch size. Multiplications and their parts do not depend on what else the machine does. ``--again``
adds a second run, which takes fits and choices out of the cache. ``--limit 0``: the whole tasks.
The model is SmolLM2-135M-Instruct in float32 unless ``--model`` names another. ``--data`` is a
folder to run in, in which the harness finds the data sets when there is no hub.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

MOST = {"--limit 200": 1.0, "whole tasks": 0.5}
"""Passes of hf, at most."""


class Cost(NamedTuple):
    """What a part of a run takes; seconds of the CPU and of the clock."""

    multiplications: float = 0.0
    cpu: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Meter:
    """Adds up costs by the part of the run that is innermost when they arise."""

    def __init__(self, counted: list[int]) -> None:
        self.counted = counted
        self.parts: dict[str, Cost] = {}
        self._inside = ["all else"]
        self._last = self._now()

    def _now(self) -> Cost:
        return Cost(float(self.counted[0]), time.process_time(), time.perf_counter())

    def _note(self) -> None:
        now = self._now()
        spent = Cost(*(a - b for a, b in zip(now, self._last, strict=True)))
        name = self._inside[-1]
        self.parts[name] = self.parts.get(name, Cost()).plus(spent)
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._note()
        self._inside.append(name)
        try:
            yield
        finally:
            self._note()
            self._inside.pop()

    def metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return function(*arguments, **keywords)

        return called

    @property
    def total(self) -> Cost:
        total = Cost()
        for cost in self.parts.values():
            total = total.plus(cost)
        return total


PARTS = {
    "pairs": "sadi_lmeval.steering.steering.fits_of",
    "choice": "sadi_lmeval.steering.steering.choose_settings",
    "held-out against scored documents": "sadi_lmeval.model.with_unsteered",
    "scoring": "sadi_lmeval.model.SteeredModel._loglikelihood",
}
"""By the function that does it; the first request of a run brings the others about."""


def run(lm: Any, tasks: list[str], limit: int | None, names: dict[str, str]) -> Meter:
    """Run ``lm_eval.simple_evaluate`` and say what its parts take; loading is not counted."""
    import lm_eval
    from speed import multiplications

    with multiplications(lm.model) as counted, ExitStack() as stack:
        meter = Meter(counted)
        for name, function in names.items():
            measured = meter.metered(name, pkgutil.resolve_name(function))
            stack.enter_context(patch(function, measured))
        lm_eval.simple_evaluate(lm, tasks=list(tasks), limit=limit, bootstrap_iters=0)
        meter._note()
    return meter


def show(title: str, meter: Meter, whole: Cost) -> None:
    """Print a table of a run's parts; the unit is a pass of hf."""
    print(f"\n| {title} | multiplications | CPU time | time |\n|---|---|---|---|")
    for name, cost in [*meter.parts.items(), ("**together**", meter.total)]:
        said = " | ".join(f"{a / b:.3f}" for a, b in zip(cost, whole, strict=True))
        print(f"| {name} | {said} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default="truthfulqa_mc1,boolq")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--size", type=int, help="batch size of hf; without it the best is found")
    parser.add_argument("--model_args", default="element=head")
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    tasks, limit = given.tasks.split(","), given.limit or None
    from offline import run_quietly_in

    with run_quietly_in(given.data) as folder:
        from lm_eval.utils import simple_parse_args_string
        from smollm2 import default_folder, smollm2
        from speed import Bench, best_size

        bench = Bench(given.model or str(smollm2(default_folder())), 1, folder)
        whole = Cost()
        for task in tasks:  # each at its own best batch size
            size = given.size or best_size(bench, task, given.limit or 200, None)
            whole = whole.plus(run(bench.plain(size), [task], limit, {}).total)
        lm = bench.steered(**simple_parse_args_string(given.model_args))
        first = run(lm, tasks, limit, PARTS)
        show("first run", first, whole)
        if given.again:
            lm = bench.steered(**simple_parse_args_string(given.model_args))
            show("second run", run(lm, tasks, limit, PARTS), whole)
    passes = first.total.seconds / whole.seconds
    most = MOST["--limit 200" if limit else "whole tasks"]
    print(f"\nfirst run: {passes:.2f} passes of hf (wanted at most {most:g})")
    return int(passes > most)


if __name__ == "__main__":
    sys.exit(main())
