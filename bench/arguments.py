"""The table of arguments in README.md, made from their declarations.

    python bench/arguments.py [README.md]

Prints the table; with a file, replaces the one in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from sadi_lmeval.arguments import declared
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import UNSTEERED, methods
from sadi_lmeval.options import Options

BEGIN, END = "<!-- arguments -->\n", "<!-- end of arguments -->\n"


def of_method(method: type[Method]) -> Iterator[tuple[str, str, str]]:
    """A method's numbers and arguments: name, default, meaning."""
    for axis in method.axes:
        yield axis.name, "`auto`", axis.doc
    for name, argument in declared(method).items():
        yield name, argument.default, argument.doc


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Every argument: the model that takes it, its name, default and meaning."""
    for name, method in methods().items():
        for row in of_method(method):
            yield f"`hf-{name}`", *row
    yield "all", "method", "the model's own", f"`{UNSTEERED}`: unsteered, on the same fast path"
    yield (
        "all",
        "grid",
        "the method's own",
        (
            "what `auto` chooses from: the values of the method's numbers in their order, as "
            "`1/2/4x4/9`, or by name, as a mapping"
        ),
    )
    for name, argument in declared(Options).items():
        yield "all", name, argument.default, argument.doc


def table() -> str:
    lines = ["| of | argument | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {model} | `{n}` | {default} | {doc} |" for model, n, default, doc in rows()]
    return "\n".join(lines) + "\n"


def replaced(text: str) -> str:
    """A text with the table between the two comments."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")
