"""The tables of arguments in README.md and docs/arguments.md, made from their declarations.

    python bench/arguments.py

README.md has those that all methods share and those of ``hf-sadi``; docs/arguments.md has all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sadi_lmeval.arguments import declared
from sadi_lmeval.methods.base import Method
from sadi_lmeval.methods.registry import UNSTEERED, methods
from sadi_lmeval.options import Options

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- arguments -->\n", "<!-- end of arguments -->\n"
HEADER = """# Arguments

What `--model_args` takes beside the arguments of the harness's `hf`, and what `sadi_lmeval.fit`
takes. This page is made by `python bench/arguments.py` from the declarations in the code.
"""


class Row(NamedTuple):
    """An argument: its name, default and meaning."""

    name: str
    default: str
    meaning: str


def of_method(method: type[Method]) -> Iterator[Row]:
    """A method's numbers and arguments."""
    for axis in method.axes:
        yield Row(axis.name, "`auto`", axis.doc)
    for name, argument in declared(method).items():
        yield Row(name, argument.default, argument.doc)


def of_all() -> Iterator[Row]:
    """What all methods share."""
    yield Row("method", "the model's own", f"`{UNSTEERED}`: unsteered, on the same fast path")
    yield Row(
        "baseline",
        "`false`",
        "every request is answered unsteered, too: the table has `METRIC_unsteered` and the paired "
        "`METRIC_difference` beside each metric",
    )
    yield Row(
        "grid",
        "the method's own",
        "what `auto` chooses from: the values of the method's numbers in their order, as "
        "`1/2/4x4/9`, or by name, as a mapping",
    )
    for name, argument in declared(Options).items():
        yield Row(name, argument.default, argument.doc)


def table(rows: Iterable[Row]) -> str:
    lines = ["| argument | default | meaning |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.default} | {row.meaning} |" for row in rows]
    return "\n".join(lines) + "\n"


def in_readme() -> str:
    """The table of README.md."""
    return table([*of_method(methods()["sadi"]), *of_all()])


def page() -> str:
    """The whole of docs/arguments.md."""
    parts = [HEADER, "## Of every method\n", table(of_all()).replace("](docs/", "](")]
    for name, method in methods().items():
        first = (method.__doc__ or "").strip().splitlines()[0]
        parts += [f"## hf-{name}\n", f"{first}\n"]
        parts.append(table(of_method(method)).replace("](docs/", "]("))
    return "\n".join(parts)


def replaced(text: str) -> str:
    """A text with the table between the two comments."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{in_readme()}\n{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "docs" / "arguments.md").write_text(page(), encoding="utf-8")
