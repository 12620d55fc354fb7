"""Records come back as they were written, or are refused in one line."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.records import make_record
from sadi_lmeval.errors import UserError
from sadi_lmeval.records.record import (
    FOLDER,
    file_name,
    load_record,
    load_records,
    save_record,
)
from sadi_lmeval.records.steering import ChoiceRecord, FitRecord, SteeringRecord

pytestmark = pytest.mark.quick


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = make_record(values=[1.0, None, 0.1 + 0.2], mask_from="truthfulqa_mc1")
    path = save_record(record, tmp_path)
    assert path == tmp_path / FOLDER / "boolq.none@truthfulqa_mc1.json"
    assert load_record(path) == record
    assert load_records([tmp_path]) == [record]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_finite_values_and_any_text_come_back(
    tmp_path: Path, values: list[float | None], text: str
) -> None:
    record = make_record(
        values=values, metrics={"acc": [None, None]}, labels=[text, text], command=text
    )
    assert load_record(save_record(record, tmp_path)) == record


def test_a_value_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        save_record(make_record(values=[math.nan]), tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_record_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    path = save_record(make_record(), tmp_path)
    content = path.read_bytes()
    for length in range(0, len(content.rstrip()), 97):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"^record .*(cut off|not a record)") as caught:
            load_record(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    record = make_record()
    path = save_record(record, tmp_path)
    content = path.read_bytes()
    refused = 0
    for position in random.Random(0).sample(range(len(content)), 150):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 7
        path.write_bytes(flipped)
        try:
            found = load_record(path)
        except UserError as error:
            refused += "\n" not in str(error)
        else:
            assert found == record  # white space alone differs
    assert refused > 75


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b'{"format": "other"}', b"\x00\xff", b"[" * 100000]
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^record .*other\.json") as caught:
        load_record(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unknown_field_is_refused_though_the_checksum_fits(tmp_path: Path) -> None:
    from sadi_lmeval.records.record import _digest

    path = save_record(make_record(), tmp_path)
    whole = json.loads(path.read_text())
    content = {k: v for k, v in whole.items() if k not in ("format", "sha256")}
    for changed in ({**content, "extra": 1}, {k: v for k, v in content.items() if k != "gold"}):
        path.write_text(
            json.dumps({"format": whole["format"], "sha256": _digest(changed), **changed})
        )
        with pytest.raises(UserError, match="does not match"):
            load_record(path)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records of a comparison"):
        load_records([tmp_path])


def test_a_file_name_holds_no_separator() -> None:
    name = file_name("a/../b", "m\\n", "c:d")
    assert name.startswith("a_.._b.m_n@c_d~")
    assert name.endswith(".json")
    assert file_name("boolq", "sadi-head", "rte") == "boolq.sadi-head@rte.json"


def test_no_two_records_share_a_file_name() -> None:
    parts = ["a", "a/b", "a_b", "a b", "a.b", "b", "b.b", "a@b", "b@a"]
    every = [*product(parts, parts, [None, *parts])]
    assert len({file_name(*each) for each in every}) == len(every)


UNSAID: dict[int, dict[str, Any]] = {
    1: {"task_digest": "", "pairs_digests": [], "prompts": [], "texts": []},
    2: {"prompts": [], "texts": []},
}
"""What records of earlier formats do not say."""


@pytest.mark.parametrize("form", UNSAID)
def test_a_record_of_an_earlier_format_is_read_and_says_no_more_than_it_did(
    tmp_path: Path, form: int
) -> None:
    path = save_record(make_record(), tmp_path)
    content = json.loads(path.read_text())
    for name in ("format", "sha256", *UNSAID[form]):
        del content[name]
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    earlier = {"format": f"sadi-lmeval record {form}", "sha256": sha256(text.encode()).hexdigest()}
    path.write_text(json.dumps({**earlier, **content}))
    assert load_record(path) == make_record(**UNSAID[form])


@pytest.mark.parametrize("name", ["prompts", "texts"])
def test_texts_are_one_a_document_or_none(tmp_path: Path, name: str) -> None:
    texts = ["a", "", "c", "d"]
    whole = make_record(prompts=texts, texts=texts)
    assert load_record(save_record(whole, tmp_path)) == whole
    wrongs: tuple[Any, ...] = (texts[:3], [1, 2, 3, 4], "text")
    for wrong in wrongs:
        path = save_record(make_record(**{name: wrong}), tmp_path)
        with pytest.raises(UserError, match=rf"is not as this package writes it \({name}\)"):
            load_record(path)


def test_how_a_task_was_steered_comes_back_as_it_was_written() -> None:
    choice = ChoiceRecord("accuracy", 20, {"top_k": 2, "delta": 4.0}, "best", 0.2, [{"score": 0.5}])
    fits = tuple(
        FitRecord(f"fold {i}", 12, {"top_k": 2, "delta": d}, [[0, 1], [2, 3]], "k", "s", file, made)
        for i, (d, file, made) in enumerate([(4.0, "k.safetensors", choice), (9.0, None, None)])
    )
    steered = SteeringRecord(
        arguments={"method": "sadi", "steering": "adaptive"},
        axes=("top_k", "delta"),
        version="1",
        task_digest="ab",
        element="hidden",
        hidden_site="mlp",
        layers=4,
        entries=16,
        recipe="multiple_choice",
        recipe_digest="cd",
        pairs_from="training",
        folds=2,
        mask_from="other",
        fits=fits,
        not_finite=3,
    )
    unsteered = SteeringRecord({"method": "none"}, (), "1", "ab")
    given = replace(steered, fit_file="a.safetensors", fits=fits[1:])
    for record in (steered, unsteered, given):
        assert json.loads(json.dumps(record.to_json())) == record.to_json()
    assert SteeringRecord.from_json(steered.to_json()).fits == fits
    assert SteeringRecord.from_json(steered.to_json()).to_json() == steered.to_json()
    assert SteeringRecord.from_json(given.to_json()).to_json() == given.to_json()
