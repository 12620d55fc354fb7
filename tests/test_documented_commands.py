"""Every command and every piece of Python in the documents is taken by what it is written for.

Commands are read by the parsers that would read them, with their options, methods, arguments of
models and make's targets, but run nothing; the Python of the API is run on a tiny model.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lm_eval._cli.run import Run
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import sadi_lmeval
from sadi_lmeval import cli
from sadi_lmeval.methods.arm import SETTING_NAMES
from sadi_lmeval.methods.registry import argument_names, check_arm_names, methods, spelled_out
from sadi_lmeval.options import NAMES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("lm_eval", "sadi-lmeval", "make", "python bench/")
EXAMPLE = "nudge"
"""The method that docs/extending.md writes; tests/test_extending.py runs it."""


class Command(NamedTuple):
    """A command of a document.

    Attributes:
        whole: whether it stands there with all that it needs, not as a mention in a sentence.
    """

    document: str
    words: list[str]
    whole: bool


def commands() -> Iterator[Command]:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        blocks = re.findall(r"(?:^(?: {4}|\t).*\n)+", plain, flags=re.MULTILINE)
        blocks += re.findall(r"^```sh\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        lines = [
            line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()
        ]
        mentions = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^ {4}.*$", "", plain, flags=re.M))
        for line, block in [(x, True) for x in lines] + [(x, False) for x in mentions]:
            # A heading's or a sentence's mention may have no arguments at all.
            if line.startswith(PROGRAMS) and re.match(r"[\w./ -]+?(\s|$)", line):
                words = shlex.split(line, comments=True)
                complete = block and not {"…", "..."} & set(words)
                kept = [word for word in words if word not in ("…", "...")]
                yield Command(path.name, kept, complete)


COMMANDS = list(commands())


def of(program: str) -> pytest.MarkDecorator:
    mine = [each for each in COMMANDS if each.words[0] == program and len(each.words) > 1]
    assert mine, f"no command of {program} is found in the documents"
    return pytest.mark.parametrize(
        "command", mine, ids=[f"{c.document}: {' '.join(c.words)[:70]}" for c in mine]
    )


class Refused(Exception):
    pass


@pytest.fixture(autouse=True)
def parsers_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(self: argparse.ArgumentParser, message: str) -> None:
        raise Refused(message)

    monkeypatch.setattr(argparse.ArgumentParser, "error", error)


def harness_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    Run.create(parser.add_subparsers())
    return parser.parse_args(["run", *words])


def check_model_arguments(arguments: dict[str, Any], names: set[str]) -> None:
    """Every argument is one of the methods, or of the harness's ``hf``."""
    known = {*signature(HFLM.__init__).parameters, *NAMES, *SETTING_NAMES, "method"}
    for name in names - {EXAMPLE}:
        known |= argument_names(methods()[name])
    if EXAMPLE in names:
        known |= argument_names(methods()["caa"]) | {"average"}
    assert set(arguments) <= known


# ------------------------------------------------------------------ commands


def without_requirements(parser: argparse.ArgumentParser) -> None:
    """A mention need not have what a command needs."""
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                without_requirements(each)


def read(command: Command) -> argparse.Namespace | None:
    """What the program's own parser reads; None: a mention that ends before an option's value."""
    words = command.words[1:]
    try:
        if command.words[0] == "lm_eval":
            return harness_options(words)
        parser = cli._parser()
        if not command.whole:
            without_requirements(parser)
        given, rest = parser.parse_known_args(cli._joined(words))
        given.rest = rest
        if given.command == "compare":
            more = harness_options([*given.passed, *rest])
            given.model_args, given.rest = more.model_args, []
        elif given.command == "sweep":
            given.model_args = simple_parse_args_string(given.model_args or "")
        return given
    except Refused as refused:
        if command.whole or "expected at least one" not in str(refused):
            raise
    return None


@of("lm_eval")
def test_the_harness_takes_a_command(command: Command) -> None:
    given = read(command)
    if given is None:
        return
    name = (given.model or "hf").removeprefix("hf-")
    assert name in {*methods(), EXAMPLE, "hf", "NAME", "METHOD"}
    if name in {*methods(), EXAMPLE}:
        check_model_arguments(dict(given.model_args or {}), {name})
    assert not command.whole or given.tasks


@of("sadi-lmeval")
def test_our_own_command_takes_a_command(command: Command) -> None:
    given = read(command)
    if given is None:
        return
    if given.command not in ("compare", "sweep"):
        assert given.rest == []
        return
    axes = {axis.name for method in methods().values() for axis in method.axes} | {"share"}
    names = {word.partition("=")[0] for word in given.rest if word.startswith("--")}
    assert names <= {f"--{name}" for name in axes}
    arms = [name for name in (given.methods or "").split(",") if name]
    check_arm_names(spelled_out([name for name in arms if name != EXAMPLE]))
    arguments = dict(given.model_args or {})
    check_model_arguments(arguments, {*methods(), *({EXAMPLE} & set(arms))})


@of("make")
def test_make_has_a_target(command: Command) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert command.words[1] in targets


class Parsed(BaseException):
    pass


@of("python")
def test_a_script_takes_a_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / command.words[1]
    assert script.is_file()
    source = script.read_text(encoding="utf-8")
    if "ArgumentParser(" not in source:
        assert all(word in source for word in command.words[2:] if word.startswith("--"))
        return
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: Any, *given: Any, **more: Any) -> None:
        parse(self, *given, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr("sys.argv", command.words[1:])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")


# ------------------------------------------------------------------ Python


def blocks_of_python() -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        found += [(path.name, block) for block in blocks]
    return found


PYTHON = blocks_of_python()


@pytest.mark.parametrize("block", PYTHON, ids=[name for name, _ in PYTHON])
def test_python_compiles_and_names_what_is_there(block: tuple[str, str]) -> None:
    name, code = block
    compile(code, name, "exec")
    for attribute in re.findall(r"\bsadi\.(\w+)", code):
        assert hasattr(sadi_lmeval, attribute)


def test_the_python_of_the_api_runs(
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = [code for name, code in PYTHON if name in ("README.md", "index.md", "python.md")]
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there: dict[str, Any] = {
        "model": harness_model,
        "tokenizer": tokenizer,
        "pairs": [{"prompt": "is it so", "positive": "yes", "negative": "no"}],
        "inputs": {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 2},
        "question": {"role": "user", "content": "who sings"},
    }
    for code in blocks:
        # The tiny model has three layers.
        exec(code.replace("layer=13", "layer=1"), there)
        there["fit"].save("x.safetensors")  # what the next one loads
    assert (tmp_path / "honest.safetensors").is_file()
    for rows in ("prompt", "completion"):
        [code] = [code for code in blocks if f'"{rows}"' in code]
        exec(code, there)
        assert there["sadi"].fit(harness_model, tokenizer, there["pairs"], "caa").fit.tensors
