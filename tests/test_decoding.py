"""Texts that make room for one another as they end, against each text generated alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from conftest import WORDS
from helpers.generation import planned_texts
from helpers.models import tiny
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.branching import longest_branching_path
from sadi_lmeval.passes.decoding import Decoder, can_decode
from sadi_lmeval.passes.endings import Ending, Text
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.packing import UNSTEERED
from sadi_lmeval.passes.prefill import end_tokens, steered_generation
from sadi_lmeval.types import Scope

LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 48},
    "gemma3_text": {"sliding_window": 48, "layer_types": LAYER_TYPES},
    "gpt2": {},
    "falcon": {"multi_query": True},
    "opt": {},
    "qwen3_moe": {},
}
SHARED = [(7 * i + 3) % 50 + 3 for i in range(20)]
ENDS = [[5], [9, 7, 4, 8, 33], [11, 12], [44, 5, 6, 4], [21, 3]]
PROMPTS = [*([*SHARED, *end] for end in ENDS), [5, 9, 7, 4, 8, 33, 21], [11], [5, 9, 7]]
MOST = [3, 6, 1, 4, 5, 4, 5, 2]
"""Tokens that each of the prompts gets."""
BOUNDS = Bounds(None, 64, 1 << 20)
FAMILIES = ["scaled", "clean", "onwards"]


def nothing(tokens: list[int], skip_special_tokens: bool) -> str:
    return ""


ENDLESS = Ending([], frozenset(), 1, nothing, 0)


def texts_of(edits: list[int]) -> list[Text]:
    return [
        Text(list(prompt), ENDLESS, most, edit)
        for prompt, most, edit in zip(PROMPTS, MOST, edits, strict=True)
    ]


def family(model: PreTrainedModel, name: str) -> Edits:
    site = find_site(model, "head")
    scope: Scope = "onwards" if name == "onwards" else "prompt"
    generator = torch.Generator().manual_seed(3)
    made = []
    for layers in ((0, 2), (1,)):
        gain, shift = torch.zeros(2, site.layers, site.width)
        for layer in layers:
            gain[layer, torch.randperm(site.width, generator=generator)[:12]] = 3.0
            shift[layer] = torch.randn(site.width, generator=generator) * (scope == "onwards")
        made.append(Edit(gain, shift))
    return DiagonalEdits(site, made, name == "clean", scope)


def plainly(model: PreTrainedModel, text: Text, edits: Edits) -> tuple[list[int], Tensor]:
    """Tokens and logits ``[most, vocab]`` of a text that transformers generates alone."""
    ids = torch.tensor([text.prompt])
    ones = torch.ones_like(ids)
    options: dict[str, Any] = {"min_new_tokens": text.most, "max_new_tokens": text.most}

    def run() -> Any:
        return model.generate(
            ids,
            attention_mask=ones,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )

    if text.edit == UNSTEERED:
        found = run()
    else:
        with steered_generation(model, edits, text.edit, ids, ones):
            found = run()
    return found.sequences[0, ids.shape[1] :].tolist(), torch.cat(found.logits)


CASES = [
    *(("llama", name) for name in FAMILIES),
    ("mistral", "scaled"),
    ("gemma3_text", "onwards"),
    ("gpt2", "clean"),
    ("falcon", "onwards"),
    ("opt", "onwards"),
    ("qwen3_moe", "scaled"),
]


@pytest.mark.parametrize(
    ("kind", "name", "behind"),
    [*((*case, 0) for case in CASES), ("llama", "onwards", 1), ("llama", "clean", 1)],
)
def test_every_text_is_the_one_that_its_prompt_gets_alone(
    kind: str, name: str, behind: int
) -> None:
    """Under several edits and none, one after the other in the same rows, to the logit.

    And where the tokens of a pass are read after the next one, as on a GPU.
    """
    model = tiny(kind, vocab_size=60, num_hidden_layers=3, **KINDS[kind])
    assert longest_branching_path(model) >= 40
    assert can_decode(model)
    edits = family(model, name)
    texts = texts_of([0, 1, UNSTEERED, 0, 1, 0, UNSTEERED, 1])
    logits: dict[Text, list[Tensor]] = {}

    def watch(seen: list[Text], found: Tensor) -> None:
        for text, row in zip(seen, found, strict=True):
            logits.setdefault(text, []).append(row)

    decoder = Decoder(Forward(model), texts, edits, 0, 3, BOUNDS, 0, watch)
    decoder._behind = behind
    decoder.finish(texts[:2])
    assert all(text.over for text in texts[:2])
    decoder.finish(texts)
    for text in texts:
        tokens, expected = plainly(model, text, edits)
        found = torch.stack(logits[text][: text.most])
        assert len(logits[text]) <= text.most + behind
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert text.made == tokens
    unsteered = Text(texts[1].prompt, texts[1].ending, texts[1].most)
    gap = plainly(model, unsteered, edits)[1][0] - logits[texts[1]][0]
    assert float(gap.abs().max()) > 1e-2


def test_what_prompts_share_is_computed_once_and_nothing_after_the_end_of_a_text() -> None:
    model = tiny("llama", vocab_size=60, num_hidden_layers=3)
    computed: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda module, given, out: computed.append(out[..., 0].numel())
    )
    texts = texts_of([UNSTEERED] * len(PROMPTS))[: len(ENDS)]
    Decoder(Forward(model), texts, None, 0, 2, BOUNDS).finish(texts)
    padded = sum(computed) - len(SHARED) - sum(map(len, ENDS)) - sum(most - 1 for most in MOST[:5])
    assert 0 <= padded <= 8  # of prompts that are computed together
    assert [len(text.made) for text in texts] == MOST[:5]


@pytest.mark.parametrize(("tokens", "most"), [(0, 2), (60, 2), (100, 4), (1000, 8)])
def test_as_many_texts_are_generated_at_once_as_there_is_room_for(tokens: int, most: int) -> None:
    """Two at least; the longest text of all has 25 tokens."""
    model = tiny("llama", vocab_size=60, num_hidden_layers=3)
    size = 2 * 3 * model.config.num_key_value_heads * model.config.head_dim * 4
    texts = [Text(SHARED, ENDLESS, 5) for _ in range(8)]
    at_once: list[int] = []
    decoder = Decoder(Forward(model), texts, None, 0, 2, BOUNDS, tokens * size,
                      lambda seen, logits: at_once.append(len(seen)))  # fmt: skip
    decoder.finish(texts)
    assert [len(text.made) for text in texts] == [5] * 8
    assert max(at_once) == most


def test_a_text_that_is_not_finite_spoils_none_that_has_its_row_next() -> None:
    model = tiny("llama", vocab_size=60, num_hidden_layers=3)
    site = find_site(model, "head")
    endless = Edit(torch.zeros(site.layers, site.width), torch.full((3, site.width), torch.inf))
    edits = DiagonalEdits(site, [endless], False, "onwards")
    texts = texts_of([0, UNSTEERED, 0, UNSTEERED, UNSTEERED, 0, UNSTEERED, UNSTEERED])
    Decoder(Forward(model), texts, edits, 0, 2, BOUNDS).finish(texts)
    for text in texts:
        assert text.failed == (text.edit == 0)
        if text.edit == UNSTEERED:
            assert text.made == plainly(model, text, edits)[0]


# ------------------------------------------------------------------ endings

LETTERS = "abcdefghij\n.|"
SPECIAL = {90: "<s>", 91: "<e>"}


def spelled(tokens: list[int], skip_special_tokens: bool) -> str:
    kept = [t for t in tokens if not (skip_special_tokens and t in SPECIAL)]
    return "".join(SPECIAL.get(t) or LETTERS[t] for t in kept)


def tokens_of(text: str) -> list[int]:
    return [{"S": 90, "E": 91}.get(c, LETTERS.find(c)) for c in text]


def ended(stop: list[str], *given: str, most: int = 9) -> list[str]:
    """As much of each of a batch's texts as is generated before it is over."""
    ending = Ending(stop, frozenset({91}), len(given), spelled, 3)
    texts = [Text([], ending, most) for _ in given]
    left = [tokens_of(each) for each in given]
    while any(not text.over for text in texts):
        for text, tokens in zip(texts, left, strict=True):
            if not text.over:
                text.add(tokens.pop(0))
    return [spelled(text.kept, False).replace("<s>", "S").replace("<e>", "E") for text in texts]


@pytest.mark.quick
def test_a_text_is_over_at_its_end_at_a_stop_sequence_or_at_the_most_tokens() -> None:
    assert ended(["\n", "."], "ab\ncd", "aEbbbb", "abcdefghijab", "abc.bb") == [
        "ab\n",
        "aE",
        "abcdefghi",
        "abc.",
    ]


@pytest.mark.quick
def test_a_text_goes_on_while_it_may_still_be_cut_earlier() -> None:
    """As ``hf`` makes more of it as long as another text of its batch is not over."""
    assert ended(["ab.c", "."], "jab.cj", "jab.jj", "jb.jjj") == ["jab.c", "jab.j", "jb."]
    assert ended(["ab.c", "."], "jab.cj") == ["jab."]


@pytest.mark.quick
def test_a_special_token_that_is_no_text_ends_a_batch_once_all_have_it() -> None:
    """That is how ``hf`` has it: alone a text is over there, beside others once all are."""
    assert ended(["<s>"], "abScd") == ["abS"]
    assert ended(["<s>"], "abSabcdefg", "aSaaaaaaaa") == ["abS", "aSa"]
    assert ended(["<s>"], "abSabcde", "aaaaaSaa", "Saaaaaaa") == ["abSabc", "aaaaaS", "Saaaaa"]
    assert ended(["<s>"], "abSabcdefg", "aaaaaaaaaa") == ["abSabcdef", "aaaaaaaaa"]


@pytest.mark.quick
def test_only_where_the_likeliest_token_is_taken_are_texts_decoded() -> None:
    class Model:
        generation_config = None

    assert end_tokens(Model(), {"do_sample": False, "eos_token_id": [3, 4]}) == frozenset([3, 4])
    assert end_tokens(Model(), {"num_beams": 1, "top_k": 7, "temperature": 0.0}) == frozenset()
    for option in (
        {"do_sample": True},
        {"num_beams": 2},
        {"use_cache": False},
        {"max_new_tokens": 4},
        {"repetition_penalty": 1.1},
        {"an_option_of_tomorrow": 1},
    ):
        assert end_tokens(Model(), option) is None


# ------------------------------------------------------------------ the harness

INSTRUCTION = " ".join(WORDS[:40])
STOPS: list[list[str]] = [["</s>"], ["cat", "red", "</s>"], ["is", "a"], ["<unk>", "the"], ["<s>"]]


def texts(results: dict[str, Any]) -> list[str]:
    samples = sorted(results["samples"]["tiny_text"], key=lambda sample: sample["doc_id"])
    return [str(sample["resps"][0][0]) for sample in samples]


@pytest.mark.parametrize(
    ("stop", "size", "instruction"),
    [
        (STOPS[1], 3, None),
        pytest.param(STOPS[2], "auto", INSTRUCTION, marks=pytest.mark.slow),
        pytest.param(STOPS[3], 1, None, marks=pytest.mark.slow),
        pytest.param(STOPS[4], 2, None, marks=pytest.mark.slow),
    ],
)
def test_texts_are_those_of_hf_and_steered_ones_those_of_the_plain_way(
    evaluate: Any,
    stop: list[str],
    size: int | str,
    instruction: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = planned_texts(monkeypatch)

    def run(**arguments: Any) -> list[str]:
        settings = {"gen_kwargs": {"until": stop, "max_gen_toks": 12}, "batch_size": size}
        if arguments.get("model") == "hf" and size == "auto":
            settings["batch_size"] = 8
        if instruction:
            settings["system_instruction"] = instruction
        return texts(evaluate("tiny_text", limit=12, settings=settings, **arguments))

    assert run(delta=0) == run(model="hf")
    steered = run(delta=40)
    assert planned == [12, 12]
    monkeypatch.setattr(Engine, "can_decode", False)
    assert run(delta=40) == steered != run(model="hf")
    assert planned == [12, 12, 0]
