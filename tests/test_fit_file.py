"""Files of fits: what is written comes back, and nothing else is taken for it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.models import tiny_llama
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import entry_means
from sadi_lmeval.methods.iti import ITI
from sadi_lmeval.methods.sadi import SADI
from sadi_lmeval.storage import fit_file
from sadi_lmeval.storage.fit_file import Fit, load_fit, save_fit

VALUES = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
CARD: dict[str, Any] = {
    "kind": "mean_difference",
    "model_type": "llama",
    "element": "head",
    "shape": [3, 4, 8],
    "task": "tiny – ünïcode",
    "documents": ["a", "b"],
    "n_pairs": 2,
}

PROBES = {
    "accuracy": VALUES[..., 0],
    "mass_mean": VALUES,
    "probe": 2 * VALUES,
    "mass_mean_std": VALUES[..., 1],
    "probe_std": VALUES[..., 2],
}


def difference(values: Tensor = VALUES, card: dict[str, Any] = CARD) -> Fit:
    return Fit({"difference": values}, card)


def probes(**changes: Tensor) -> Fit:
    return Fit({**PROBES, **changes}, {**CARD, "kind": "probes"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "of" / "a" / "new" / "folder.safetensors"
    save_fit(difference(), path)
    return path


def test_a_fit_comes_back_as_it_was_saved(saved: Path) -> None:
    loaded = load_fit(saved)
    assert set(loaded.tensors) == {"difference"}
    assert torch.equal(loaded.tensors["difference"], VALUES)
    assert loaded.tensors["difference"].dtype == torch.float32
    assert loaded.card == CARD


def test_values_that_are_not_contiguous_come_back_too(tmp_path: Path) -> None:
    values = torch.randn(8, 4, 3).transpose(0, 2)
    path = tmp_path / "fit"
    save_fit(difference(values), path)
    assert torch.equal(load_fit(path).tensors["difference"], values)


def test_probes_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "fit"
    save_fit(probes(), path)
    loaded = load_fit(path)
    assert set(loaded.tensors) == set(PROBES)
    for name, values in PROBES.items():
        assert torch.equal(loaded.tensors[name], values), name
    assert loaded.card == probes().card
    assert loaded.digest == probes().digest


def test_the_digest_is_of_every_tensor_with_its_name_and_shape() -> None:
    found = [
        probes().digest,
        *(probes(**{name: values + 1}).digest for name, values in PROBES.items()),
        probes(mass_mean=PROBES["probe"], probe=PROBES["mass_mean"]).digest,
        difference().digest,
        difference(VALUES.view(3, 8, 4)).digest,
        Fit({"other": VALUES}, CARD).digest,
    ]
    assert len(set(found)) == len(found)
    turned = dict(reversed(PROBES.items()))
    assert Fit(turned, {}).digest == found[0]


def test_saving_twice_replaces_the_file_and_leaves_nothing_else(saved: Path) -> None:
    other = difference(VALUES + 1)
    save_fit(other, saved)
    assert torch.equal(load_fit(saved).tensors["difference"], other.tensors["difference"])
    assert list(saved.parent.iterdir()) == [saved]


def test_the_score_of_a_head_is_the_mean_over_its_activations() -> None:
    scores = entry_means(VALUES, {})
    assert scores.shape == (3, 4)
    for layer in range(3):
        for head in range(4):
            mean = sum(VALUES[layer, head].tolist()) / 8
            assert float(scores[layer, head]) == pytest.approx(mean, abs=1e-6)


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    """The tensors that a kind's collector makes at the site of CARD."""
    site = find_site(tiny_llama(40), "head")
    method = {"mean_difference": SADI(), "probes": ITI()}[kind]
    collector = method.collector(site, 2, 0)
    assert collector.kind == kind
    return collector.shapes


def used(path: Path, kind: str | None) -> None:
    """Load a file; with a kind, as a run does that needs a fit of it."""
    found = load_fit(path)
    if kind is not None:
        site = find_site(tiny_llama(40), "head")
        found.check_fits(kind, shapes_of(kind), site, "llama", str(path))


def refused(path: Path, kind: str | None = None) -> str:
    """What is said of the file, or of it as a fit of a kind: one line that names it."""
    with pytest.raises(UserError) as caught:
        used(path, kind)
    said = str(caught.value)
    assert str(path) in said
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 0.1, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: float) -> None:
    content = saved.read_bytes()
    end = int(kept * len(content)) if isinstance(kept, float) else kept
    saved.write_bytes(content[:end])
    refused(saved)


def test_a_file_with_more_at_its_end_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0" * 4)
    refused(saved)


def test_a_flipped_bit_is_refused_unless_it_changes_nothing_that_is_read(saved: Path) -> None:
    content, random_ = saved.read_bytes(), random.Random(0)
    header = int.from_bytes(content[:8], "little") + 8
    places = [random_.randrange(header) for _ in range(40)]
    places += [random_.randrange(header, len(content)) for _ in range(20)]
    found = []
    for place in places:
        bit = random_.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        saved.write_bytes(bytes(flipped))
        try:
            loaded = load_fit(saved)
        except UserError:
            found.append(place)
        else:
            assert place < header
            assert torch.equal(loaded.tensors["difference"], VALUES), (place, bit)
            assert loaded.card == CARD, (place, bit)
    assert len(found) > 50


def test_every_flipped_bit_of_the_values_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(len(content) - 32, len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        saved.write_bytes(bytes(flipped))
        assert "damaged" in refused(saved)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\0" * 100, b"\x80\x04]q\x00.", b"PK\x03\x04" + b"\0" * 60]
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fit.safetensors"
    path.write_bytes(content)
    refused(path)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    torch.save({"difference": VALUES}, path)
    refused(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path)
    refused(tmp_path / "missing.safetensors")


def test_safetensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    save_file({"difference": VALUES}, path)
    assert "not a fit of this package" in refused(path)
    save_file({"difference": VALUES}, path, {"format": "sadi-lmeval 3"})
    assert "'sadi-lmeval 2'" in refused(path)
    save_file({"weight": VALUES}, path, {"format": "sadi-lmeval 1"})
    refused(path)


def forged(
    card: Any, values: Tensor | dict[str, Tensor], path: Path, form: str = "sadi-lmeval 1"
) -> None:
    """A file whose checksum of the card is right, whatever the card says."""
    text = card if isinstance(card, str) else json.dumps(card)
    digest = hashlib.sha256(text.encode()).hexdigest()
    metadata = {"format": form, "card": text, "card_sha256": digest}
    tensors = values if isinstance(values, dict) else {"difference": values}
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "card", ["{}", "[]", "null", '"text"', "7", "not json", '{"sha256": 3}', "[" * 100_000]
)
def test_a_card_that_is_none_is_refused(tmp_path: Path, card: str) -> None:
    path = tmp_path / "fit.safetensors"
    forged(card, VALUES, path)
    refused(path)


@pytest.mark.parametrize(
    "values",
    [VALUES.double(), VALUES[:2], VALUES.flatten(), torch.tensor(1.0), VALUES[:0]],
    ids=["float64", "layers", "flat", "scalar", "empty"],
)
def test_values_of_another_type_or_shape_than_the_card_says_are_refused(
    tmp_path: Path, values: Tensor
) -> None:
    path = tmp_path / "fit.safetensors"
    digest = difference(values).digest if values.dim() else ""
    forged({**CARD, "sha256": digest}, values, path)
    refused(path, "mean_difference")


@pytest.mark.parametrize("form", ["sadi-lmeval 1", "sadi-lmeval 2"])
def test_a_file_with_right_checksums_is_taken(tmp_path: Path, form: str) -> None:
    """So that what is refused above is not refused for its checksums."""
    path = tmp_path / "fit.safetensors"
    forged({**CARD, "sha256": difference().digest}, VALUES, path, form)
    used(path, "mean_difference")
    assert torch.equal(load_fit(path).tensors["difference"], VALUES)
    assert load_fit(path).card == CARD


def test_a_card_says_which_tensors_the_file_has(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "sadi-lmeval 2"
    assert json.loads(metadata["card"])["tensors"] == {"difference": [3, 4, 8]}


@pytest.mark.parametrize(
    "listed",
    [{}, {"difference": [3, 8, 4]}, {"mean": [3, 4, 8]}, {"difference": [3, 4, 8], "mean": [3]}, 7],
)
def test_other_tensors_than_the_card_says_are_refused(tmp_path: Path, listed: Any) -> None:
    path = tmp_path / "fit.safetensors"
    card = {**CARD, "sha256": difference().digest, "tensors": listed}
    forged(card, VALUES, path, "sadi-lmeval 2")
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("probes", {"difference": VALUES}),
        ("mean_difference", PROBES),
        ("mean", {"difference": VALUES}),
        (None, {"difference": VALUES}),
        (["probes"], PROBES),
        ("probes", {k: v for k, v in PROBES.items() if k != "probe_std"}),
        ("probes", {**PROBES, "accuracy": VALUES}),
        ("probes", {**PROBES, "accuracy": VALUES[:2, :, 0]}),
        ("probes", {**PROBES, "probe": VALUES[..., 0]}),
        ("probes", {**PROBES, "probe": VALUES.double()}),
    ],
)
def test_a_file_without_the_tensors_of_its_kind_is_refused(
    tmp_path: Path, kind: Any, tensors: dict[str, Tensor]
) -> None:
    path = tmp_path / "fit.safetensors"
    tensors = {
        name: values.clone(memory_format=torch.contiguous_format)
        for name, values in tensors.items()
    }
    digest = Fit(tensors, {}).digest
    forged({**CARD, "kind": kind, "sha256": digest}, tensors, path)
    refused(path, str(kind) if kind in ("mean_difference", "probes") else "mean_difference")


def test_a_huge_file_is_not_opened(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_file, "_LARGEST", 100)
    assert "larger than" in refused(saved)


def test_a_fit_fits_the_model_and_element_that_it_was_made_for() -> None:
    site = find_site(tiny_llama(40), "head")
    for fit, kind in ((difference(), "mean_difference"), (probes(), "probes")):
        fit.check_fits(kind, shapes_of(kind), site, "llama", "mine.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "probes"}, ["kind probes", "mean_difference"]),
        ({"kind": None}, ["kind None"]),
        ({"model_type": "gpt2"}, ["model_type gpt2", "llama"]),
        ({"element": "neuron"}, ["element neuron", "head"]),
        ({"shape": [2, 4, 8]}, ["shape [2, 4, 8]", "[3, 4, 8]"]),
        ({"shape": [3, 8, 4]}, ["shape [3, 8, 4]", "[3, 4, 8]"]),
        ({"shape": None}, ["shape None"]),
    ],
)
def test_a_fit_of_another_kind_architecture_element_or_shape_is_refused(
    changes: dict[str, Any], words: list[str]
) -> None:
    site = find_site(tiny_llama(40), "head")
    with pytest.raises(UserError) as caught:
        difference(VALUES, {**CARD, **changes}).check_fits(
            "mean_difference", shapes_of("mean_difference"), site, "llama", "mine.safetensors"
        )
    assert all(word in str(caught.value) for word in ["mine.safetensors", *words])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        save_fit(difference(), tmp_path / "fit.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_older_file_as_it_was(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_fit(difference(VALUES + 1), saved)
    monkeypatch.undo()
    assert torch.equal(load_fit(saved).tensors["difference"], VALUES)
    assert list(saved.parent.iterdir()) == [saved]


def test_a_card_that_is_no_json_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_fit(difference(VALUES, {"element": object()}), tmp_path / "fit.safetensors")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ files of earlier releases

EARLIER: dict[str, Any] = {
    "dtype": "torch.float32",
    "mixed_precision": "None",
    "model": "/a/folder/on/another/machine",
    "model_type": "llama",
    "n_pairs": 12,
    "pairs_digest": "cc796d428b02e51454bbd35d0dd73cb35eee12c63a40976450043757113ac220",
    "recipe": "right_wrong",
    "recipe_digest": "c127c928a4bcbdd8243e024cf6e263a56566524a571d21a1297e4e96120e2cbb",
    "revision": "main",
    "seed": 0,
    "source": "train",
    "task": "tiny_choice",
    "task_digest": "81451dbc77f24e3c31c4d8ef3ee57033",
    "versions": {"lm-eval": "0.4.13", "sadi-lmeval": "0.1.0", "torch": "2.13.0"},
    "weights_digest": "e0b8ba631483cca764c3218e791fb001",
}
"""What a card of format 1 said beside the kind, the site and the documents."""


def write_as_earlier(fit: Fit, path: Path) -> None:
    """Write a fit as releases with format 1 did: its card lists no tensors."""
    content = hashlib.sha256()
    for name in sorted(fit.tensors):
        content.update(f"{name} {list(fit.tensors[name].shape)} ".encode())
        content.update(fit.tensors[name].numpy().tobytes())
    of_the_fit = ("kind", "element", "hidden_site", "shape", "documents", "questions")
    card = {**EARLIER, **{key: fit.card[key] for key in of_the_fit}, "sha256": content.hexdigest()}
    forged(json.dumps(card, sort_keys=True), fit.tensors, path)


def test_a_file_of_format_1_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    card = {**CARD, "hidden_site": None, "documents": ["a"], "questions": ["b"]}
    for fit in (difference(VALUES, card), Fit(PROBES, {**card, "kind": "probes"})):
        tensors = {name: values.contiguous() for name, values in fit.tensors.items()}
        path = tmp_path / "fit.safetensors"
        write_as_earlier(Fit(tensors, fit.card), path)
        used(path, fit.card["kind"])
        loaded = load_fit(path)
        assert {"documents": ["a"], "questions": ["b"], **EARLIER}.items() <= loaded.card.items()
        assert set(loaded.tensors) == set(tensors)
        for name, values in tensors.items():
            assert torch.equal(loaded.tensors[name], values), name


def scores(results: dict[str, Any]) -> list[Any]:
    return [sample["filtered_resps"] for sample in results["samples"]["tiny_choice"]]


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("hf-sadi", {"top_k": 3, "delta": 4}),
        ("hf-sadi", {"element": "neuron", "top_k": 3, "delta": 4}),
        ("hf-sadi", {"element": "hidden", "top_k": 3, "delta": 4}),
        ("hf-iti", {"top_k": 3, "alpha": 5, "direction": "probe"}),
        ("hf-caa", {"layer": 1, "multiplier": 2}),
    ],
)
def test_a_file_of_format_1_steers_as_the_fit_in_it_does(
    evaluate: Any, tmp_path: Path, model: str, arguments: dict[str, Any]
) -> None:
    own = evaluate("tiny_choice", model=model, **arguments)
    [fit] = own["config"]["sadi"]["tiny_choice"]["fits"]
    old = tmp_path / "old.safetensors"
    write_as_earlier(load_fit(Path(fit["file"])), old)
    given = (
        {"mask": str(old), **arguments},
        {"mask": fit["file"], **arguments},
        {"method": "none"},
    )
    found, other, plain = (
        evaluate("tiny_choice", model=model, cache_dir=str(tmp_path / "none"), **each)
        for each in given
    )
    said = found["config"]["sadi"]["tiny_choice"]
    assert said["fit_file"] == "old.safetensors"
    assert said["fits"][0]["sha256"] == fit["sha256"]
    assert said["fits"][0].get("selected") == fit.get("selected")
    assert scores(found) == scores(other) == scores(own) != scores(plain)
    assert not (tmp_path / "none").exists()


def test_a_file_of_format_1_is_refused_where_its_documents_are_scored(
    evaluate: Any, tmp_path: Path
) -> None:
    steered = {"top_k": 3, "delta": 4}
    found = evaluate("tiny_folds", limit=None, **steered)["config"]["sadi"]["tiny_folds"]
    old = tmp_path / "old.safetensors"
    write_as_earlier(load_fit(Path(found["fits"][0]["file"])), old)
    with pytest.raises(UserError, match=r"old\.safetensors was built from .* tiny_folds scores"):
        evaluate("tiny_folds", limit=None, mask=str(old), **steered)
