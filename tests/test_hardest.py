"""The hardest wrong choice: the one that the plain model likes best, found once and kept."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import tiny_llama
from helpers.tasks import CHOICE, everything, load, make_task
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import RunTask, Text
from sadi_lmeval.model import SteeredModel, model_class
from sadi_lmeval.pairs import hardest as module
from sadi_lmeval.pairs.hardest import hardest, scores_of_choices
from sadi_lmeval.pairs.pairs import Pair, build_pairs
from sadi_lmeval.storage import store
from sadi_lmeval.storage.store import read_kept, write_kept


@pytest.fixture(scope="module")
def model(model_folder: Path) -> SteeredModel:
    return model_class("sadi")(pretrained=str(model_folder), device="cpu", batch_size=4)


def plain_log_likelihood(model: SteeredModel, text: Text) -> float:
    """Of an answer after its prompt, by one pass of the model over the whole of it."""
    context = model.tok_encode(text[0]) if text[0] else [model.prefix_token_id]
    answer = model.tok_encode(text[1], add_special_tokens=False)
    with torch.no_grad():
        logits = model.model(torch.tensor([[*context, *answer]])).logits[0].double()
    predicted = logits.log_softmax(-1)[len(context) - 1 : -1]
    return float(predicted[torch.arange(len(answer)), torch.tensor(answer)].sum())


def wrong_texts(task: RunTask, pair: Pair) -> list[Text]:
    """All wrong choices of the pair's document, as scoring writes them."""
    texts = task.texts(pair.document, 0)
    return [text for i, text in enumerate(texts) if i != pair.document["label"]]


WRONGS: list[list[Text]] = [
    [("the cat is", " red"), ("the cat is", " a very old dog"), ("the cat is", " blue")],
    [("who sees it", " one")],
    [("where is it", " on the road"), ("where is it", " in the house")],
    [("the cat is", " blue"), ("the cat is", " red")],
]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents were asked about, each time that the model was asked."""
    found: list[int] = []
    ask = module._scored

    def counted(model: Any, wrongs: Sequence[Sequence[Text]]) -> list[list[float]]:
        found.append(len(wrongs))
        return ask(model, wrongs)

    monkeypatch.setattr(module, "_scored", counted)
    return found


# ------------------------------------------------------------------ which it is


@pytest.mark.parametrize("name", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_input"])
def test_the_hardest_wrong_choice_has_the_highest_plain_log_likelihood(
    model: SteeredModel, tasks_folder: Path, tmp_path: Path, name: str
) -> None:
    task = load(tasks_folder, name)
    likes = hardest(model, tmp_path)
    documents = task.evaluated()
    pairs = build_pairs(task, CHOICE, documents, everything, 20, 0, 0, "hardest", likes)
    assert len(pairs) == 20
    places = set()
    for pair in pairs:
        wrongs = wrong_texts(task, pair)
        values = [plain_log_likelihood(model, text) for text in wrongs]
        found = ["".join(text) for text in wrongs].index("".join(pair.negative))
        assert values[found] == pytest.approx(max(values), abs=1e-4)
        places.add(found)
    assert places == {0, 1}


def test_the_hardest_is_found_for_each_document_by_itself(
    model: SteeredModel, tmp_path: Path
) -> None:
    found = hardest(model, tmp_path)(WRONGS)
    for each, index in zip(WRONGS, found, strict=True):
        values = [plain_log_likelihood(model, text) for text in each]
        assert index == values.index(max(values))
    assert found == [hardest(model, tmp_path / "anew")([each])[0] for each in WRONGS]


def test_of_equally_likely_choices_the_first_is_the_hardest(
    model: SteeredModel, tmp_path: Path
) -> None:
    text = ("the cat is", " red")
    assert hardest(model, tmp_path)([[text, text, text]]) == [0]


@pytest.mark.parametrize("wrongs", [[], [[("a", " b")]], [[("a", " b")], [("c", " d")]]])
def test_where_there_is_nothing_to_choose_the_model_is_not_asked(
    model: SteeredModel, tmp_path: Path, wrongs: list[list[Text]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("a pass for nothing")

    monkeypatch.setattr(model.model, "forward", fail)
    assert hardest(model, tmp_path)(wrongs) == [0] * len(wrongs)


def test_a_task_with_two_choices_has_the_same_pairs_either_way(
    model: SteeredModel, tmp_path: Path
) -> None:
    rows = [{"question": f"q {i}", "choices": ["yes", "no"], "label": i % 2} for i in range(12)]
    task = make_task(tmp_path, "two", {"validation": rows})
    likes = hardest(model, tmp_path / "cache")
    found = build_pairs(task, CHOICE, rows, everything, 12, 0, 0, "hardest", likes)
    assert found == build_pairs(task, CHOICE, rows, everything, 12, 0, 0)
    assert len(found) == 12


def test_documents_without_a_wrong_choice_leave_nothing_to_ask(
    model: SteeredModel, tmp_path: Path
) -> None:
    rows = [{"question": f"q {i}", "choices": ["yes"], "label": 0} for i in range(3)]
    task = make_task(tmp_path, "one", {"validation": rows})
    likes = hardest(model, tmp_path / "cache")
    assert build_pairs(task, CHOICE, rows, everything, 12, 0, 0, "hardest", likes) == []


def test_without_a_model_the_hardest_is_the_user_s_error(tasks_folder: Path) -> None:
    task = load(tasks_folder, "tiny_choice")
    with pytest.raises(UserError, match="negative=hardest") as caught:
        build_pairs(task, CHOICE, task.evaluated(), everything, 4, 0, 0, "hardest")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ the cache


def test_it_is_found_once_and_kept(model: SteeredModel, tmp_path: Path, passes: list[int]) -> None:
    found = hardest(model, tmp_path)(WRONGS)
    assert hardest(model, tmp_path)(WRONGS) == found
    assert passes == [len(WRONGS)]
    assert len(list(tmp_path.glob("*.hardest.json"))) == 1
    assert hardest(model, tmp_path / "elsewhere")(WRONGS) == found
    assert passes == [len(WRONGS)] * 2


def test_how_likely_each_choice_is_is_kept_and_found_anew_where_it_is_of_others(
    model: SteeredModel, tmp_path: Path, passes: list[int]
) -> None:
    choices = [each for each in WRONGS if len(each) > 1]
    found = scores_of_choices(model, tmp_path)(choices)
    for each, scores in zip(choices, found, strict=True):
        values = [plain_log_likelihood(model, text) for text in each]
        assert scores == pytest.approx(values, abs=1e-4)
    assert scores_of_choices(model, tmp_path)(choices) == found
    assert len(passes) == 1
    [path] = tmp_path.glob("*.choices.json")
    key = path.name.removesuffix(".choices.json")
    for other in ([scores[:-1] for scores in found], [0, 1, 2], None):
        write_kept(other, path, key)
        assert scores_of_choices(model, tmp_path)(choices) == found
    assert len(passes) == 4
    assert scores_of_choices(model, tmp_path)([[("who sees it", " one")]]) == [[0.0]]


def test_scores_that_are_not_finite_are_kept_as_they_are(
    model: SteeredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [[-math.inf, math.nan, -1 / 3]]
    monkeypatch.setattr(module, "_scored", lambda *_: odd)
    for _ in range(2):
        [found] = scores_of_choices(model, tmp_path)([WRONGS[0]])
        assert str(found) == str(odd[0])
        monkeypatch.setattr(module, "_scored", None)  # from the cache


def test_what_is_kept_is_what_is_given(
    model: SteeredModel, tmp_path: Path, passes: list[int]
) -> None:
    found = hardest(model, tmp_path)(WRONGS)
    [path] = tmp_path.glob("*.hardest.json")
    key = path.name.removesuffix(".hardest.json")
    assert read_kept(path, key) == found
    other = [(index + 1) % len(each) for index, each in zip(found, WRONGS, strict=True)]
    write_kept(other, path, key)
    assert hardest(model, tmp_path)(WRONGS) == other
    assert len(passes) == 1


@pytest.mark.parametrize(
    "wrongs",
    [
        WRONGS[:3],
        WRONGS[::-1],
        [WRONGS[0][::-1], *WRONGS[1:]],
        [[("the dog is", text) for _, text in WRONGS[0]], *WRONGS[1:]],
    ],
)
def test_other_texts_are_found_anew(
    model: SteeredModel, tmp_path: Path, passes: list[int], wrongs: list[list[Text]]
) -> None:
    hardest(model, tmp_path)(WRONGS)
    hardest(model, tmp_path)(wrongs)
    assert len(passes) == 2
    assert len(list(tmp_path.glob("*.hardest.json"))) == 2


def test_another_model_s_is_found_anew(
    model: SteeredModel, tokenizer: Any, tmp_path: Path, passes: list[int]
) -> None:
    one = hardest(model, tmp_path)(WRONGS)
    torch.manual_seed(1)
    other = tiny_llama(len(tokenizer), initializer_range=0.2)
    wrapped = model_class("sadi")(pretrained=other, tokenizer=tokenizer, device="cpu", batch_size=4)
    found = hardest(wrapped, tmp_path)(WRONGS)
    assert len(passes) == 2
    for each, index in zip(WRONGS, found, strict=True):
        values = [plain_log_likelihood(wrapped, text) for text in each]
        assert index == values.index(max(values))
    assert hardest(model, tmp_path)(WRONGS) == one
    assert len(passes) == 2


@pytest.mark.parametrize("arguments", [{"add_bos_token": True}, {"max_length": 4}])
def test_what_changes_the_tokens_makes_it_found_anew(
    model: SteeredModel,
    model_folder: Path,
    tmp_path: Path,
    passes: list[int],
    arguments: dict[str, Any],
) -> None:
    other = model_class("sadi")(
        pretrained=str(model_folder), device="cpu", batch_size=4, **arguments
    )
    wrongs = [[("one two three four five six", f" {word}") for word in ("red", "blue", "green")]]
    one, another = ([each.continuation(*text) for text in wrongs[0]] for each in (model, other))
    assert one != another
    hardest(model, tmp_path)(wrongs)
    hardest(other, tmp_path)(wrongs)
    assert len(passes) == 2


DAMAGED = [
    b"",
    b"\xff\xfe",
    b"{",
    b"null",
    b"7",
    b"{}",
    b"[]",
    b"[0, 0, 0]",
    b"[0, 0, 0, 0, 0]",
    b"[3, 0, 0, 0]",
    b"[0, 1, 0, 0]",
    b"[-1, 0, 0, 0]",
    b"[0.0, 0, 0, 0]",
    b"[true, 0, 0, 0]",
    b"[null, 0, 0, 0]",
    b'["0", 0, 0, 0]',
    b"[[0], 0, 0, 0]",
    b"[" * 100000,
    b"[" + b"7" * 5000 + b", 0, 0, 0]",
]


def checked(content: bytes) -> bytes:
    """A file whose checksum is right, whatever it holds."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content + b"\n"


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_made_anew(
    model: SteeredModel, tmp_path: Path, passes: list[int], content: bytes
) -> None:
    found = hardest(model, tmp_path)(WRONGS)
    [path] = tmp_path.glob("*.hardest.json")
    whole = path.read_bytes()
    key = path.name.removesuffix(".hardest.json").encode()
    under_its_key = b'{"key": "' + key + b'", "value": ' + content + b"}"
    damages = [content, checked(content), checked(under_its_key)]
    for number, damaged in enumerate(damages, start=2):
        path.write_bytes(damaged)
        assert hardest(model, tmp_path)(WRONGS) == found
        assert len(passes) == number
        assert path.read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_made_costs_time_alone(
    model: SteeredModel, tmp_path: Path, passes: list[int]
) -> None:
    expected = hardest(model, tmp_path)(WRONGS)
    file = tmp_path / "file"
    file.write_text("")
    for _ in range(2):
        assert hardest(model, file / "cache")(WRONGS) == expected
    assert len(passes) == 3
    assert file.read_text() == ""


def test_a_folder_where_nothing_can_be_written_costs_time_and_a_warning(
    model: SteeredModel,
    tmp_path: Path,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full disk: the lock can be had, but no file."""
    expected = hardest(model, tmp_path / "good")(WRONGS)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_checked", fail)
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        assert hardest(model, tmp_path / "full")(WRONGS) == expected
    assert "No space left on device" in caplog.text
    assert len(passes) == 2


def test_a_folder_that_is_read_only_is_read_from(
    model: SteeredModel, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else has filled it."""
    expected = hardest(model, tmp_path)(WRONGS)

    class ReadOnly:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __enter__(self) -> None:
            raise PermissionError(13, "Permission denied", str(self.path))

        def __exit__(self, *arguments: object) -> None:
            pass

    monkeypatch.setattr("sadi_lmeval.storage.store.FileLock", ReadOnly)
    assert hardest(model, tmp_path)(WRONGS) == expected
    assert len(passes) == 1
    assert hardest(model, tmp_path)(WRONGS[:3]) == expected[:3]
    assert len(passes) == 2
    assert len(list(tmp_path.glob("*.hardest.json"))) == 1
