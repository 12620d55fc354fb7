"""Files from strangers: nothing in them is run, nothing is allocated for what they merely claim."""

from __future__ import annotations

import ast
import hashlib
import json
import resource
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sadi_lmeval
from faults.counts import Count
from sadi_lmeval.comparison.sweep import check_output
from sadi_lmeval.errors import UserError
from sadi_lmeval.pairs import templates
from sadi_lmeval.pairs.benchmark import find_benchmark
from sadi_lmeval.pairs.recipe import Recipe, load_recipe
from sadi_lmeval.pairs.static_sets import read_static_set
from sadi_lmeval.records.record import load_record
from sadi_lmeval.storage.fit_file import FORMAT, load_fit

EXAMPLES = 2000
AS_LONG_AS_IT_TAKES = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SOURCES = sorted(Path(sadi_lmeval.__file__).parent.rglob("*.py"))


# ------------------------------------------------------------------ the code itself


def calls_in(path: Path) -> Iterator[tuple[str, int]]:
    """Every function that a file calls, as it is written there, and every module it imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield f"import {name.name}", node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield f"import {node.module}", node.lineno


def test_no_file_of_the_package_opens_pickles_or_runs_what_it_reads(count: Count) -> None:
    forbidden = {
        *("import pickle", "import dill", "import cloudpickle", "import joblib", "import shelve"),
        *("import marshal", "eval", "exec", "compile", "os.system", "torch.load", "numpy.load"),
        *("np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
        *("import subprocess", "importlib.import_module", "__import__"),
    }
    found = [
        (path.name, line, what)
        for path in SOURCES
        for what, line in calls_in(path)
        if what in forbidden
    ]
    # The harness's own modules, by fixed names, when they are imported; and tensors alone.
    assert {(name, what) for name, _, what in found} <= {
        ("registration.py", "importlib.import_module"),
        ("vector_file.py", "torch.load"),
    }
    loads = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    assert all(given.get("weights_only") == "True" for given in loads)
    assert any(what == "yaml.safe_load" for path in SOURCES for what, _ in calls_in(path))
    count("files of the package without pickle, eval or unsafe YAML", read=len(SOURCES))


# ------------------------------------------------------------------ what happens while reading

RUNS = {"exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork",
        "subprocess.Popen", "pickle.find_class", "marshal.loads", "socket.connect", "os.remove",
        "ctypes.dlopen"}  # fmt: skip
"""Audit events of the interpreter that reading a file of plain values has no business with."""


class Watch:
    """Notes down audit events and the files that are opened, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[str, str]] = []
        self.opened: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS:
            self.events.append((event, str(arguments[:1])))
        elif event == "open" and isinstance(arguments[0], str):
            self.opened.append(arguments[0])

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.events.clear()
        self.opened.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False


WATCH = Watch()


def outcome(read: Any, *arguments: Any, within: Path, allowed: tuple[str, ...] = ()) -> str:
    """``accepted`` or ``refused``: in one line, with nothing run and no other file opened.

    Args:
        read: what reads.
        arguments: of it.
        within: where it may open files.
        allowed: audit events that may be there all the same.
    """
    with WATCH.watching():
        try:
            read(*arguments)
            found = "accepted"
        except UserError as error:
            said, found = str(error), "refused"
    assert [event for event in WATCH.events if event[0] not in allowed] == []
    package = str(Path(sadi_lmeval.__file__).parents[1])
    strange = [p for p in WATCH.opened if not p.startswith((str(within), package))]
    assert strange == []
    if found == "refused":
        assert "\n" not in said
        assert len(said) < 5000
    return found


# ------------------------------------------------------------------ recipes

TEXTS = ["description", "gold", "right", "wrong", "answer", "pairs", "prompt"]
CONTRASTS = ["choice", "other_target", "wrong_number", "answers", "static"]
hostile = st.sampled_from(
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ 'a' * 99999999999 }}",
        "{% for i in range(10**12) %}x{% endfor %}",
        "{{ 9**9**9 }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('true') }}",
        "../../etc/passwd",
        "/etc/passwd",
        "pairs.jsonl",
        "/dev/zero",
        "~/.bashrc",
        "pairs\0.jsonl",
        "{{ prompt }}",
        "{{ choices[0] }}",
        "{{ label",
    ]
)
values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.dates()),
        *(st.text(max_size=8), st.binary(max_size=4), hostile, st.sampled_from(CONTRASTS)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
text_or_hostile = st.one_of(
    hostile, st.text(max_size=12), st.sampled_from(["{{ label }}", "{{ choices }}", "pairs.jsonl"])
)


def of_contrast(contrast: str) -> Any:
    """Recipes with the keys that a contrast has."""
    needed, possible = {
        "choice": ((), ("gold", "wrong")),
        "other_target": ((), ("answer",)),
        "wrong_number": ((), ("answer",)),
        "answers": (("right", "wrong"), ("answer",)),
        "static": (("pairs",), ("prompt",)),
    }[contrast]
    return st.fixed_dictionaries(
        {
            "recipe": st.text(min_size=1, max_size=8),
            "contrast": st.just(contrast),
            **dict.fromkeys(needed, text_or_hostile),
        },
        optional=dict.fromkeys(("description", *possible), text_or_hostile),
    )


sound = st.sampled_from(CONTRASTS).flatmap(of_contrast)
odd = st.dictionaries(
    st.one_of(st.sampled_from(["recipe", "contrast", *TEXTS]), st.text(max_size=5), st.integers()),
    values,
    max_size=6,
)
raw = st.sampled_from(
    [
        "!!python/object/apply:os.system ['true']",
        "recipe: !!python/name:os.system\ncontrast: choice",
        "recipe: mine\ncontrast: !!python/object/new:type ['x', [], {}]",
        "a: &a [x, x]\nb: &b [*a, *a]\nrecipe: [*b, *b]\ncontrast: choice",
        "a: &a {k: v}\nrecipe: {<<: [*a, *a]}\ncontrast: choice",
        "recipe: mine\ncontrast: choice\ngold: " + "1:" * 200 + "1",
        "recipe: mine\ncontrast: choice\ngold: " + "9" * 5000,
        "recipe: " + "[" * 5000,
        "%YAML 9.9\n---\nrecipe: mine",
        "recipe: a\n---\nrecipe: b",
    ]
)
files = st.one_of(
    sound.map(lambda content: yaml.safe_dump(content, allow_unicode=True)),
    odd.map(lambda content: yaml.safe_dump(content, allow_unicode=True)),
    st.text(max_size=60),
    raw,
)


def test_generated_recipes_are_accepted_or_refused_in_one_line(
    tmp_path: Path, count: Count
) -> None:
    told = Counter[str]()
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "positive": "a", "negative": "b"}\n')
    path = tmp_path / "file.yaml"
    document = {"choices": ["a", "b"], "label": 1, "prompt": "p"}

    def use(recipe: Recipe) -> None:
        for key in ("gold", "right", "wrong", "answer", "prompt"):
            template = getattr(recipe, key)
            if template is not None:
                templates.rendered(template, document, f"recipe {recipe.recipe!r}: {key}")
        if recipe.pairs is not None:
            read_static_set(Path(recipe.pairs))

    @AS_LONG_AS_IT_TAKES
    @given(files)
    def each(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        found = outcome(load_recipe, str(path), [], within=tmp_path)
        if found == "accepted":  # jinja makes Python of a template; its sandbox is what counts
            recipe = load_recipe(str(path), [])
            found = outcome(use, recipe, within=tmp_path, allowed=("compile", "exec"))
        told[found] += 1
        assert outcome(find_benchmark, "some_task", [tmp_path], within=tmp_path)

    for template in ("{{ label }}", "{% include 'x' %}"):  # what is imported late is imported now
        with suppress(UserError):
            templates.rendered(template, document, "once")
    each()
    assert min(told["accepted"], told["refused"]) > EXAMPLES / 20
    count(f"{sum(told.values())} generated recipes", **told)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
MERGES = "a0: &a0 {k0: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: v}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "recipe: *a29\ncontrast: choice",
        MERGES + "recipe: *a11\ncontrast: choice",
        "recipe: mine\ncontrast: choice\ngold: " + "59:" * 80_000 + "1",
        "recipe: mine\ncontrast: choice\ngold: " + "x" * (1 << 20),
    ],
    ids=["aliases", "merges", "sexagesimal", "large"],
)
def test_a_small_file_that_stands_for_a_huge_one_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    tracemalloc.start()
    try:
        assert outcome(load_recipe, str(path), [], within=tmp_path) == "refused"
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------ fits

numbers = st.one_of(
    st.integers(0, 64), st.integers(), st.sampled_from([2**31, 2**63, 2**64, 10**30, -1])
)
shapes = st.one_of(st.just([1, 2, 2]), st.lists(numbers, max_size=4), values)
dtypes = st.sampled_from(["F32", "F32", "F32", "F64", "F16", "I8", "BOOL", "nonsense"])
offsets = st.one_of(st.just([0, 16]), st.lists(numbers, min_size=2, max_size=2))
cards = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["mean_difference", "mean_difference", "probes", "other", None]),
        "shape": shapes,
    },
    optional={"sha256": st.text(max_size=64), "element": values, "documents": values},
)
ZEROS = hashlib.sha256(b"difference [1, 2, 2] " + bytes(16)).hexdigest()
right_card = {"kind": "mean_difference", "shape": [1, 2, 2], "sha256": ZEROS, "task": "t"}
listing_card = st.builds(lambda shapes: {**right_card, "tensors": shapes},
                         st.just({"difference": [1, 2, 2]}) | values)  # fmt: skip
"""As format 2 has it: it says which tensors there are."""


@st.composite
def fits(draw: Any) -> bytes:
    """Bytes like a fit's file: some are one, some claim sizes that are not there."""
    content = draw(st.one_of(st.just(right_card), listing_card, cards, values))
    card = json.dumps(content, default=str, allow_nan=True)
    tensor = {"dtype": draw(dtypes), "shape": draw(shapes), "data_offsets": draw(offsets)}
    right = {"dtype": "F32", "shape": [1, 2, 2], "data_offsets": [0, 16]}
    header = {
        "__metadata__": {
            "format": draw(st.sampled_from(["sadi-lmeval 1", FORMAT, "sadi-lmeval 9"])),
            "card": draw(st.sampled_from([card, card, card, "not json", "[" * 3000])),
            "card_sha256": hashlib.sha256(card.encode()).hexdigest(),
        },
        draw(st.sampled_from(["difference", "difference", "probe"])): draw(
            st.one_of(st.just(right), st.just(right), st.just(tensor))
        ),
    }
    text = json.dumps(header, default=str).encode()
    length = draw(st.one_of(st.just(len(text)), st.just(len(text)), numbers)) % 2**64
    body = draw(st.one_of(st.just(bytes(16)), st.just(bytes(16)), st.binary(max_size=24)))
    whole: bytes = length.to_bytes(8, "little") + text + body
    return whole


def test_generated_fit_headers_are_accepted_or_refused_in_one_line(
    tmp_path: Path, count: Count
) -> None:
    told = Counter[str]()
    path = tmp_path / "fit.safetensors"

    @AS_LONG_AS_IT_TAKES
    @given(fits())
    def each(content: bytes) -> None:
        path.write_bytes(content)
        found = outcome(load_fit, path, within=tmp_path)
        told[found] += 1
        if found == "accepted":
            fit = load_fit(path)
            assert fit.card["shape"] == list(fit.tensors["difference"].shape)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB
    assert min(told["accepted"], told["refused"]) > EXAMPLES / 50
    count(f"{sum(told.values())} generated fits", **told)


# ------------------------------------------------------------------ JSON

lines = st.one_of(
    st.text(max_size=40),
    values.map(lambda value: json.dumps(value, default=str)),
    st.fixed_dictionaries({"prompt": st.text(), "positive": st.text(), "negative": st.text()}).map(
        json.dumps
    ),
    st.sampled_from(
        ["[" * 100_000, '{"run": "x", "task": "t", "method": "m"}', '{"run": "', "9" * 5000]
    ),
)


@pytest.mark.parametrize("reader", [read_static_set, load_record, check_output])
def test_generated_json_is_accepted_or_refused_in_one_line(
    tmp_path: Path, count: Count, reader: Any
) -> None:
    told = Counter[str]()
    path = tmp_path / "file.jsonl"

    @settings(AS_LONG_AS_IT_TAKES, max_examples=500)
    @given(st.lists(lines, max_size=3))
    def each(texts: list[str]) -> None:
        path.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
        told[outcome(reader, path, within=tmp_path)] += 1

    each()
    assert told["refused"]
    count(f"{sum(told.values())} generated files for {reader.__name__}", **told)
