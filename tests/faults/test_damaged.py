"""Kept files that are cut or have a flipped bit: found out and rebuilt, never taken as they are.

Half of the damage is truncation at a random place, half one random bit.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Evaluate
from faults.counts import Count
from faults.results import alike
from sadi_lmeval.errors import UserError
from sadi_lmeval.steering import tuning
from sadi_lmeval.storage.fit_file import load_fit

PLACES = 200
RUN: dict[str, Any] = {
    "n_pairs": 8,
    "n_tune": 8,
    "grid": "1/2x4/9",
    "rule": "best",
    "negative": "hardest",
}


def damaged(content: bytes, chosen: random.Random) -> bytes:
    place = chosen.randrange(len(content))
    if chosen.random() < 0.5:
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << chosen.randrange(8)
    return bytes(flipped)


def results_of(found: dict[str, Any]) -> Any:
    """All that a run has found but times."""
    samples = [(s["doc_id"], s["resps"]) for s in found["samples"]["tiny_choice"]]
    return found["results"], found["config"]["sadi"], samples


def test_a_damaged_file_of_the_cache_changes_no_result(
    evaluate: Evaluate, tmp_path: Path, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, kept = tmp_path / "cache", tmp_path / "kept"
    with monkeypatch.context() as patch:  # as a killed run leaves them
        patch.setattr(tuning, "remove_journals", lambda folder, key: None)
        undisturbed = results_of(evaluate("tiny_choice", limit=4, **RUN))
    shutil.copytree(cache, kept)
    files = sorted(path.name for path in kept.iterdir() if path.suffix != ".lock")
    endings = ["hardest.json", "safetensors", "tuning.json", "tuning.jsonl", "unsteered.json"]
    assert sorted(name.partition(".")[2] for name in files) == endings
    chosen, told = random.Random(0), Counter[str]()
    for number in range(PLACES):
        name = files[number % len(files)]
        shutil.rmtree(cache)
        shutil.copytree(kept, cache)
        if name.endswith(".jsonl"):  # looked at only where the choice is not there yet
            next(cache.glob("*.tuning.json")).unlink()
        content = damaged((kept / name).read_bytes(), chosen)
        (cache / name).write_bytes(content)
        found = results_of(evaluate("tiny_choice", limit=4, **RUN))
        assert alike(found, undisturbed), (number, name)
        rebuilt = not (cache / name).exists() or (cache / name).read_bytes() != content
        told[f"{name[name.index('.') + 1 :]}_{'rebuilt' if rebuilt else 'unharmed'}"] += 1
    unharmed = sum(number for what, number in told.items() if what.endswith("unharmed"))
    assert unharmed < PLACES / 20  # bits of a header that are not read
    count(f"{PLACES} damaged files of a cache, the same result", **told)


def test_a_damaged_fit_that_is_given_by_hand_is_refused(
    evaluate: Evaluate, tmp_path: Path, count: Count
) -> None:
    evaluate("tiny_choice", limit=4, top_k=2, delta=3)
    [path] = (tmp_path / "cache").glob("*.safetensors")
    content, sound = path.read_bytes(), load_fit(path)
    given = tmp_path / "given.safetensors"
    chosen, told = random.Random(1), Counter[str]()
    for _ in range(PLACES):
        given.write_bytes(damaged(content, chosen))
        try:
            found = load_fit(given)
        except UserError as error:
            said = str(error)
        else:
            assert found.card == sound.card
            assert torch.equal(found.tensors["difference"], sound.tensors["difference"])
            told["unharmed"] += 1
            continue
        assert str(given) in said
        assert "\n" not in said
        told["refused"] += 1
    assert told["refused"] > PLACES * 0.9
    given.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"given\.safetensors"):
        evaluate("tiny_choice", limit=4, top_k=2, delta=3, mask=str(given))
    count(f"{PLACES} damaged fits that are given by hand", **told)
