"""``--use_cache``: no response of another steering, another model or plain ``hf`` comes back."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, CachingLM, hash_args
from sqlitedict import SqliteDict

from sadi_lmeval.harness.response_cache import ResponseCache

REQUEST = ("a prompt", " an answer")
KINDS = ("loglikelihood", "generate_until")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDict]:
    with SqliteDict(str(tmp_path / "responses.db"), autocommit=True) as opened:
        yield opened


def cache(database: SqliteDict, steering: str) -> ResponseCache:
    found = ResponseCache(database)
    found.steering = steering
    return found


def test_a_response_comes_back_under_the_same_steering(database: SqliteDict) -> None:
    cache(database, "one").add_partial("loglikelihood", REQUEST, (-1.5, True))
    assert cache(database, "one").get("loglikelihood", REQUEST) == (-1.5, True)


@pytest.mark.parametrize(
    ("kind", "response"),
    [
        ("loglikelihood", (-1.0, False)),
        ("loglikelihood", (0.0, False)),
        ("generate_until", ""),
        ("generate_until", "text"),
    ],
)
def test_a_response_that_counts_as_false_comes_back_too(
    database: SqliteDict, kind: str, response: object
) -> None:
    cache(database, "one").add_partial(kind, REQUEST, response)
    assert cache(database, "one").get(kind, REQUEST) == response


class Planted:
    """Is unpickled to a call of a function."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "planted",
    [
        pickle.dumps(Planted()),
        b"",
        "[" * 100_000,
        "null",
        "1",
        "[1]",
        '[1.0, "x"]',
        '{"a": 1}',
        "[null, true]",
    ],
    ids=range(9),
)
def test_what_is_no_response_in_a_stranger_s_database_is_passed_over_and_not_run(
    tmp_path: Path, kind: str, planted: Any
) -> None:
    path = str(tmp_path / "responses.db")
    key = cache(None, "one").key(kind, REQUEST)
    as_it_is = {"encode": sqlite3.Binary if isinstance(planted, bytes) else str}
    with SqliteDict(path, autocommit=True, **as_it_is) as strange:
        strange[key] = planted
    with SqliteDict(path, autocommit=True) as opened:
        assert cache(opened, "one").get(kind, REQUEST) is None


def test_another_steering_kind_or_request_never_gets_it(database: SqliteDict) -> None:
    cache(database, "one").add_partial("loglikelihood", REQUEST, (-1.5, True))
    one = cache(database, "one")
    assert cache(database, "two").get("loglikelihood", REQUEST) is None
    assert one.get("generate_until", REQUEST) is None
    assert one.get("loglikelihood", REQUEST[::-1]) is None
    assert one.get("loglikelihood", ("a prompt an", " answer")) is None
    assert one.get("loglikelihood", ("a prompt", " an answer", "")) is None


def test_keys_tell_every_part_of_a_generation_request() -> None:
    found = cache(None, "one")
    every: list[dict[str, Any]] = [
        {"until": ["\n"]},
        {"until": []},
        {"until": ["\n"], "temperature": 1},
        {},
    ]
    keys = {found.key("generate_until", ("p", settings)) for settings in every}
    assert len(keys) == 4


def test_without_a_steering_nothing_is_kept_or_found(database: SqliteDict) -> None:
    cache(database, "").add_partial("loglikelihood", REQUEST, (-1.5, True))
    assert len(database) == 0
    assert cache(database, "").get("loglikelihood", REQUEST) is None


def test_without_a_database_nothing_happens() -> None:
    found = ResponseCache(None)
    found.steering = "one"
    found.add_partial("loglikelihood", REQUEST, (-1.5, True))
    assert found.get("loglikelihood", REQUEST) is None


def test_the_key_of_a_plain_run_is_hidden_and_not_overwritten(tmp_path: Path) -> None:
    path = str(tmp_path / "responses.db")
    key = hash_args("loglikelihood", REQUEST)
    with SqliteDict(path, autocommit=True) as plain:
        plain[key] = (-9.0, False)
    with SqliteDict(path, autocommit=True) as shared:
        ours = cache(shared, "one")
        assert key not in shared
        assert ours.get("loglikelihood", REQUEST) is None
        shared[key] = (-1.0, True)
    with SqliteDict(path, autocommit=True) as plain:
        assert plain[key] == (-9.0, False)


class FakeLM:
    """Answers as its strength says, through our cache, and counts what it computes."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.computed = 0
        self.cache_hook = ResponseCache(None)

    def set_cache_hook(self, hook: CacheHook) -> None:
        self.cache_hook = ResponseCache(hook.dbdict)

    def answer(self, kind: str, requests: list[Instance]) -> list[Any]:
        found = []
        self.cache_hook.steering = f"delta {self.strength}"
        for request in requests:
            response = self.cache_hook.get(kind, request.args)
            if response is None:
                self.computed += 1
                text = f"{request.args} at {self.strength}"
                response = text if kind == "generate_until" else (self.strength, True)
                self.cache_hook.add_partial(kind, request.args, response)
            found.append(response)
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        return self.answer("loglikelihood", requests)

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        return self.answer("generate_until", requests)


def ask(lm: FakeLM, kind: str, database: Path) -> list[str]:
    """What the harness's own wrapper gives for two requests, as texts."""
    settings: list[Any] = [" x", " y"] if kind == "loglikelihood" else [{"until": ["\n"]}, {}]
    requests = [
        Instance(request_type=kind, doc={}, arguments=("prompt", s), idx=0) for s in settings
    ]
    wrapped = CachingLM(lm, str(database))
    answers: list[Any] = getattr(wrapped, kind)(requests)
    wrapped.dbdict.close()
    return [a if isinstance(a, str) else f"answered at {a[0]}" for a in answers]


@pytest.mark.parametrize("kind", KINDS)
def test_the_harness_s_wrapper_never_answers_for_another_steering(
    tmp_path: Path, kind: str
) -> None:
    database = tmp_path / "responses.db"
    one, other, again = FakeLM(1.0), FakeLM(2.0), FakeLM(1.0)
    first = ask(one, kind, database)
    assert all(answer.endswith("at 1.0") for answer in first)
    second = ask(other, kind, database)
    assert all(answer.endswith("at 2.0") for answer in second)
    assert ask(again, kind, database) == first
    assert (one.computed, other.computed, again.computed) == (2, 2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_harness_s_wrapper_never_answers_with_a_plain_run_s_responses_nor_for_one(
    tmp_path: Path, kind: str
) -> None:
    """A plain run before ours, and one after it, in the same database."""

    class Plain(FakeLM):
        def set_cache_hook(self, hook: CacheHook) -> None:
            self.cache_hook = hook

        def answer(self, kind: str, requests: list[Instance]) -> list[Any]:
            self.computed += len(requests)
            return [f"{request.args} plain" for request in requests]

    for order in ([Plain, FakeLM], [FakeLM, Plain]):
        database = tmp_path / f"{order[0].__name__}.db"
        for make in order:
            lm = make(1.0)
            answers = ask(lm, kind, database)
            end = "plain" if make is Plain else "at 1.0"
            assert all(answer.endswith(end) for answer in answers)
            assert lm.computed == 2
