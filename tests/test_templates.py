"""Templates: they read a document's fields, do nothing else, and fail in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sadi_lmeval.errors import UserError
from sadi_lmeval.pairs.templates import rendered, texts, value

pytestmark = pytest.mark.quick

DOCUMENT: dict[str, Any] = {
    "question": "what is it",
    "label": 2,
    "labels": [0, 1, 1],
    "answers": ["a b", "c", ""],
    "targets": {"labels": [1, 0], "choices": ["x", "y"]},
}


def refusal(template: str, document: dict[str, Any] = DOCUMENT) -> str:
    """What is said of a template; the document is as before."""
    before = copy.deepcopy(document)
    with pytest.raises(UserError) as caught:
        rendered(template, document, "recipe mine: gold")
    assert document == before
    assert str(caught.value).startswith("recipe mine: gold ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ what they can say


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("as it is", "as it is"),
        ("{{ question }}?", "what is it?"),
        ("{{ label + 1 }}", "3"),
        ("{{ targets.labels }}", "[1, 0]"),
        ("{{ targets['choices'][1] }}", "y"),
        ("{{ ['n', 'o', 'p'][label] }}", "p"),
        ("{{ question | upper }}", "WHAT IS IT"),
        ("{% if label == 2 %}two{% else %}other{% endif %}", "two"),
        ("{% for each in labels %}{{ each }};{% endfor %}", "0;1;1;"),
    ],
)
def test_a_template_says_what_jinja_makes_of_the_fields(template: str, expected: str) -> None:
    assert rendered(template, DOCUMENT, "x") == expected


def test_the_same_template_is_rendered_anew_for_each_document() -> None:
    template = "{{ question }}"
    assert [rendered(template, {"question": q}, "x") for q in "aba"] == ["a", "b", "a"]


@pytest.mark.parametrize("name", ["self", "context", "template", "environment", "range", "loop"])
def test_a_field_may_have_any_name(name: str) -> None:
    assert rendered("{{ question }}", {"question": "q", name: 7}, "x") == "q"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ label }}", 2),
        ("{{ labels }}", [0, 1, 1]),
        ("{{ [label, 5] }}", [2, 5]),
        ("-3", -3),
        ("[]", []),
        ("{{ targets.labels }}", [1, 0]),
    ],
)
def test_a_value_is_a_number_or_a_list(template: str, expected: Any) -> None:
    assert value(template, DOCUMENT, "x") == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ question }}",
        "",
        "[0, 1",
        "__import__('os').getcwd()",
        "[len('a')]",
        "open('x')",
        "1 if True else 2",
        "lambda: 1",
        "[x for x in [1]]",
        "1/0",
        "\0",
        "[" * 5000,
        f"{'-' * 100000}1",
        "7" * 5000,
    ],
)
def test_what_is_no_value_is_refused_and_not_run(template: str) -> None:
    with pytest.raises(UserError) as caught:
        value(template, DOCUMENT, "recipe mine: gold")
    assert str(caught.value).startswith("recipe mine: gold ")
    assert "must give a number or a list" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ question }}", ["what is it"]),
        ("{{ answers }}", ["a b", "c"]),
        ("{{ labels }}", ["0", "1", "1"]),
        ("{{ targets.choices }}", ["x", "y"]),
        ("[sic] he said", ["[sic] he said"]),
        ("[", ["["]),
        ("[]", []),
        ("", []),
        (" \n ", []),
        ("{{ ['', ' '] }}", []),
        ("{{ ['it\\'s', 'a \"b\"', '[c]'] }}", ["it's", 'a "b"', "[c]"]),
        ("[open('x')]", ["[open('x')]"]),
        ("[" * 5000, ["[" * 5000]),
        (f"[{'-' * 100000}1]", ["[" + "-" * 100000 + "1]"]),
    ],
)
def test_texts_are_one_text_or_those_of_a_list_without_blank_ones(
    template: str, expected: list[str]
) -> None:
    assert texts(template, DOCUMENT, "x") == expected


@given(st.lists(st.text(max_size=12), max_size=4))
@settings(max_examples=200)
def test_the_texts_of_a_field_come_back_as_they_are(field: list[str]) -> None:
    expected = [text for text in field if text.strip()]
    assert texts("{{ field }}", {"field": field}, "x") == expected


# ------------------------------------------------------------------ what they must not do


@pytest.mark.parametrize(
    "template",
    [
        "{{ question.__class__ }}",
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ question['__class__'] }}",
        "{{ question | attr('__class__') }}",
        "{{ (question | attr('__class__')).mro() }}",
        "{{ [question] | map(attribute='__class__') | first }}",
        "{{ '{0.__class__}'.format(question) }}",
        "{{ '{x.__class__}'.format_map({'x': question}) }}",
        "{{ question.format.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ range.__call__ }}",
        "{{ ().__class__.__base__ }}",
        "{{ labels.__setitem__(0, 9) }}",
        "{% for x in question.__class__.__mro__ %}{{ x }}{% endfor %}",
        "{% set x = question.__class__ %}{{ x.__name__ }}",
        "{% if lipsum.__globals__ %}a{% endif %}",
    ],
)
def test_a_template_that_reaches_for_code_is_refused(template: str) -> None:
    said = refusal(template)
    assert "unsafe" in said or "undefined" in said or "no attribute" in said, said


@pytest.mark.parametrize(
    "template",
    [
        "{{ labels.append(1) }}",
        "{{ labels.pop() }}",
        "{{ labels.clear() }}",
        "{{ labels.sort() }}",
        "{{ labels.insert(0, 1) }}",
        "{{ answers.remove('c') }}",
        "{{ targets.update({'labels': 1}) }}",
        "{{ targets.pop('labels') }}",
        "{{ targets.setdefault('new', 1) }}",
        "{% set x = targets.labels.extend([1]) %}",
        "{% do labels.append(1) %}",
    ],
)
def test_a_template_cannot_change_the_document(template: str) -> None:
    refusal(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ open('/etc/passwd').read() }}",
        "{{ __import__('os') }}",
        "{{ eval('1') }}",
        "{{ exec('1') }}",
        "{{ os.getcwd() }}",
        "{{ config }}",
        "{{ request }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import path %}",
        "{% extends 'base' %}",
    ],
)
def test_neither_functions_nor_files_are_within_reach(template: str) -> None:
    refusal(template)


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ targets.nothing }}", "no attribute 'nothing'"),
        ("{{ labels[7] }}", "no element 7"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% if nothing %}a{% endif %}", "'nothing' is undefined"),
        ("{% for x in nothing %}a{% endfor %}", "'nothing' is undefined"),
        ("{{ [nothing, label] }}", "'nothing' is undefined"),
        ("{{ {'a': nothing} }}", "'nothing' is undefined"),
    ],
)
def test_a_field_that_is_not_there_is_named(template: str, words: str) -> None:
    said = refusal(template)
    assert words in said
    assert template in said


@pytest.mark.parametrize(
    "template",
    [
        "{{ label",
        "{% if label %}",
        "{{ question | no_such_filter }}",
        "{% nonsense %}",
        "{{ label() }}",
        "{{ question + 1 }}",
        "{{ 1 // 0 }}",
        "{{ question | int + labels }}",
        "{{ labels.index(9) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ '%d' | format('x') }}",
        "{{ '{0}'.format() }}",
        "{{ '{a}'.format() }}",
        "{{ question.encode('no-such-encoding') }}",
        "{{ cycler() }}",
        "{{ question | urlize(rel=1) }}",
        "{{ question | truncate(1, leeway=0) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{\nlabel\n+\n",
    ],
)
def test_a_faulty_template_is_the_user_s_error_in_one_line(template: str) -> None:
    refusal(template)


pieces = st.sampled_from(
    "{{ }} {% %} {# #} label labels question nothing . [ ] ( ) ' \" | + - 0 7 list if else for x "
    "in endfor endif set = == ~ , upper first length {0} __class__ format".split()
)


@given(st.lists(pieces, max_size=9).map(" ".join))
@example("{{ labels | first . __class__ }}")
@settings(max_examples=400)
def test_whatever_a_template_says_it_gives_text_or_is_refused_in_one_line(template: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    for read in (rendered, value, texts):
        said = ""
        try:
            read(template, document, "recipe mine: right")
        except UserError as error:
            said = str(error)
        assert not said or said.startswith("recipe mine: right ")
        assert "\n" not in said
    assert document == DOCUMENT


@pytest.mark.parametrize("asked", ["'a' * 10**10", "[0] * 100000", "9 ** 9 ** 9", "text * 2"])
def test_a_template_may_not_ask_for_more_memory_than_its_document_takes(asked: str) -> None:
    with pytest.raises(UserError, match="is not allowed here"):
        rendered(f"{{{{ {asked} }}}}", {"text": "a"}, "x")
    assert rendered("{{ 3 * 1.5 }}", {}, "x") == "4.5"


@pytest.mark.parametrize(
    "asked",
    [
        "{{ '%1000000000d' % label }}",
        "{{ question.center(1000000000) }}",
        "{{ question.ljust(1000000000) }}",
        "{{ question.rjust(1000000000) }}",
        "{{ question.zfill(1000000000) }}",
        "{{ '\\t'.expandtabs(1000000000) }}",
        "{{ '{:1000000000d}'.format(label) }}",
        "{{ '{a:1000000000d}'.format_map({'a': label}) }}",
        "{{ question | center(1000000000) }}",
        "{{ '%1000000000d' | format(label) }}",
        "{{ question | indent(1000000000, true) }}",
        "{{ lipsum(n=100000) }}",
    ],
)
def test_a_template_may_not_make_a_text_as_long_as_a_number_says(asked: str) -> None:
    assert refusal(asked)


def test_a_template_may_divide_numbers_with_a_remainder() -> None:
    assert rendered("{{ 7 % 4 }}", DOCUMENT, "x") == "3"
