"""Chat templates that leave the model a thought to write before its answer."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from helpers.models import CHAT_TEMPLATE
from sadi_lmeval.model import model_class

SWITCH = CHAT_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    " <think> </think>{% endif %}"
)
OPENS = CHAT_TEMPLATE + "{% if add_generation_prompt %} <think>{% endif %}"
CLOSES = CHAT_TEMPLATE + "{% if add_generation_prompt %} <think> </think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "arguments", "said"),
    [
        pytest.param(SWITCH, {}, "enable_thinking=False", id="not asked not to"),
        pytest.param(SWITCH, {"enable_thinking": False}, "", id="asked not to"),
        pytest.param(
            SWITCH, {"chat_template_args": {"enable_thinking": False}}, "", id="asked otherwise"
        ),
        pytest.param(SWITCH, {"method": "none"}, "", id="unsteered"),
        pytest.param(OPENS, {}, "gen_prefix", id="always thinks"),
        pytest.param(CLOSES, {}, "", id="never thinks"),
        pytest.param(CHAT_TEMPLATE, {}, "", id="no thoughts"),
    ],
)
def test_a_model_that_would_think_first_is_named(
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    template: str,
    arguments: dict[str, Any],
    said: str,
) -> None:
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = template
    model = model_class("sadi")(
        str(model_folder), tokenizer=thinking, device="cpu", top_k=2, delta=3, **arguments
    )
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        assert model.chat_template(True) == template
    assert len(caplog.messages) == bool(said)
    if said:
        [message] = caplog.messages
        assert str(model_folder) in message
        assert f"pass {said}" in message or f"an empty thought as {said}" in message
