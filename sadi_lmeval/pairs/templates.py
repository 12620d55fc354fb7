"""Templates of recipes, over the fields of a document: rendered, nothing else."""

from __future__ import annotations

import ast
import functools
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sadi_lmeval.errors import UserError, first_line


class _Missing(StrictUndefined):
    """A field that is not there, noticed inside a list too."""

    __repr__ = StrictUndefined._fail_with_undefined_error


class _Sandbox(ImmutableSandboxedEnvironment):
    """Beside code, a template may not ask for more memory than its document takes."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or not all(isinstance(each, (int, float)) for each in (left, right)):
            raise SecurityError(f"{operator} is not allowed here, but between two numbers")
        return left % right if operator == "%" else left * right

    def wrap_str_format(self, value: Any) -> None:
        """Leave ``format`` of texts to :meth:`is_safe_attribute`."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padded = isinstance(obj, str) and attr in _PADDING
        return not padded and super().is_safe_attribute(obj, attr, value)


_PADDING = frozenset("center ljust rjust zfill expandtabs format format_map".split())
"""What makes a text as long as a number says."""
_environment = _Sandbox(undefined=_Missing)
for _name in ("center", "indent", "format", "wordwrap"):
    del _environment.filters[_name]
del _environment.globals["lipsum"]
_FAULTS = (
    *(TemplateError, ValueError, SyntaxError, TypeError, LookupError, AttributeError),
    *(RuntimeError, ArithmeticError, AssertionError, MemoryError),
)


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return _environment.from_string(template)


def rendered(template: str, document: dict[str, Any], name: str) -> str:
    """Render what a template says of a document.

    Args:
        template: jinja2; it reads the document's fields and can do nothing else.
        document: of the dataset.
        name: of the recipe and key, for the message.

    Raises:
        UserError: the template is faulty, or names a field that the document lacks.
    """
    try:
        return _compiled(template).render(document)
    except _FAULTS as error:
        raise UserError(f"{name} {template!r}: {first_line(error)}") from None


def value(template: str, document: dict[str, Any], name: str) -> Any:
    """Read what a template says of a document as a number or list.

    Raises:
        UserError: it is neither, or as in :func:`rendered`.
    """
    text = rendered(template, document, name)
    try:
        return ast.literal_eval(text)
    except _FAULTS as error:
        raise UserError(
            f"{name} {template!r} must give a number or a list ({first_line(error)})"
        ) from None


def texts(template: str, document: dict[str, Any], name: str) -> list[str]:
    """Read what a template says of a document as texts: the entries of a list, or one text.

    Texts that are empty or blank are left out.

    Raises:
        UserError: as in :func:`rendered`.
    """
    text = rendered(template, document, name)
    entries: Any = [text]
    if text.startswith("["):
        try:
            entries = ast.literal_eval(text)
        except _FAULTS:
            entries = [text]  # a text that begins with a bracket
    return [str(each) for each in entries if str(each).strip()]
