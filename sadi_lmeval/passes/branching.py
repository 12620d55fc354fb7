"""What of a model's forward pass can be shared and skipped, found out by trying."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.errors import first_line
from sadi_lmeval.passes.forward import Forward, Resumed
from sadi_lmeval.passes.sequences import Tree, pack

logger = logging.getLogger("lm_eval.sadi")

_FAR = 64
"""Places between a branch and its root in the trial."""
_ROUNDED = 32
"""Tokens of the text whose rounding is measured."""
_FACTOR = 4
"""How much farther apart than two plain ways of one text two ways of another may be."""
_LEAST = 1e-4
"""A difference that is let pass whatever was measured, in standard deviations of logits, or twice
the type's last digit, if that is more: of one text two ways may be the same by chance."""
_MOST = {torch.float32: 1e-3, torch.float64: 1e-3}
_MOST_ELSE = 0.1
"""A difference that is not, by the model's type: what is farther apart is not rounding."""
_BY_LENGTH = ("dynamic", "longrope")
_FULL = ("full_attention", "sliding_attention", "chunked_attention")


def longest_branching_path(model: nn.Module) -> int:
    """Say up to how many tokens a path of a packed row is computed as it would be alone.

    A packed row brings its own attention mask, which takes the place of a sliding or chunked
    window: right as long as no path is longer than the window, or than the length from which
    rotary frequencies change.

    Returns:
        0 where the model cannot take packed rows (linear attention, attention biases that follow
        from the token's index, attention kernels without masks): then every continuation gets a
        row of its own.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    longest = min([*_windows(config), *_fixed_frequencies(config)], default=1 << 62)
    reason = _by_place(config) or _difference(Forward(model), min(longest, _places(config)))
    if reason:
        logger.info("Prompts are not shared between continuations (%s)", reason)
        return 0
    return longest


def _by_place(config: Any) -> str:
    """Say why places in the row count, not tokens on the path; an empty string if they do not."""
    kinds = [*(getattr(config, "layer_types", None) or [])]
    # GPT-Neo's local attention counts places in the row.
    kinds += [kind for kind in getattr(config, "attention_layers", None) or [] if kind == "local"]
    if any(kind not in _FULL for kind in kinds):
        return f"layers of type {', '.join(sorted(set(kinds) - set(_FULL)))}"
    attention = getattr(config, "attn_config", None)  # of MPT
    for part in (config, attention):
        if getattr(part, "alibi", False) or getattr(part, "use_alibi", False):
            return "attention biases by distance in the row (ALiBi)"
    if getattr(config, "keep_window_size", None):
        return "attention that keeps a window of the row (keep_window_size)"
    return ""


def _places(config: Any) -> int:
    """Read how many tokens a model takes, as far as its configuration says."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return min([n for name in names if isinstance(n := getattr(config, name, None), int)],
               default=1 << 62)  # fmt: skip


def _windows(config: Any) -> Iterator[int]:
    """Yield how far back a token sees."""
    for name in ("sliding_window", "attention_chunk_size", "sliding_window_size"):
        window = getattr(config, name, None)
        if isinstance(window, int) and window:
            yield window


def _fixed_frequencies(config: Any) -> Iterator[int]:
    """Yield up to how many tokens rotary frequencies do not follow from the length of the text."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (given, *given.values()):
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _BY_LENGTH:
            longest = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            yield int(longest or config.max_position_embeddings)


def can_resume(model: nn.Module) -> bool:
    """Try whether a pass may begin at any decoder block with what an earlier pass gave it."""
    forward = Forward(model)
    tree, points = Tree(), Points.of([(0, 3), (0, 4)], 1, forward.device)
    tree.add([3, 9, 7, 4, 8])
    try:
        batch = pack([tree], 0, forward.dtype, forward.device)
        starts = range(1, len(forward.blocks))
        trunk, _ = forward.trunk(batch, points, starts)
        if any(states.dim() != 3 for states in trunk.states.values()):
            raise ValueError("its blocks give several streams")
        rounding = gap_of(forward.logits(batch, points), trunk.logits)
        gaps = [
            difference_of(
                forward.logits(batch, points, resumed=Resumed(start, trunk.states[start])),
                *(trunk.logits, rounding, forward.dtype),
            )
            for start in starts
        ]
        reason = next((gap for gap in gaps if gap), "")
    except Exception as error:  # any failure of the trial means: from the first layer
        reason = first_line(error)
    if reason:
        logger.info("Layers below the first edited one are not skipped (%s)", reason)
    return not reason


def _difference(forward: Forward, longest: int) -> str:
    """Say why packed rows do not work; an empty string if they equal plain ones.

    Args:
        longest: the most tokens of a path; the second branch stands as far from its root in the
            row as that allows, up to 64 places, where a bias by distance shows.
    """
    far = max(4, min(_FAR, (longest - 4) // 2))
    root, left, right = _made(far), _made(far + 1)[1:], [9, 3]
    cached = far // 2
    tree = Tree(past=cached)
    start = tree.add(root[cached:])
    tree.add(left, start)
    tree.add(right, start)
    ends = [far - cached - 1, 2 * far - cached - 1, 2 * far - cached + 1]
    try:
        packed = forward.logits(
            pack([tree], 0, forward.dtype, forward.device, forward.prefix(root[:cached])),
            Points.of([(0, end) for end in ends], 1, forward.device),
        )
        plain = [
            _logits(forward, tokens, positions)
            for tokens, positions in (
                (root + left, [far - 1, 2 * far - 1]),
                (root + right, [far + 1]),
            )
        ]
        return difference_of(packed, torch.cat(plain), rounding_of(forward, longest), forward.dtype)
    except Exception as error:  # any failure of the trial means: the plain way
        reason = first_line(error)
        return f"the model does not take an attention mask of its own: {reason}"


def _made(length: int) -> list[int]:
    """Make tokens that every vocabulary has, in no order that repeats."""
    return [Random(place).randrange(3, 10) for place in range(length)]


def _logits(forward: Forward, tokens: list[int], positions: list[int]) -> Tensor:
    """Compute logits ``[n, vocab]`` of one text plainly."""
    path = Tree()
    path.add(tokens)
    batch = pack([path], 0, forward.dtype, forward.device)
    return forward.logits(batch, Points.of([(0, p) for p in positions], 1, forward.device))


def rounding_of(forward: Forward, longest: int) -> float:
    """Measure how far two plain ways of one text's logits are apart: at once, and after a cache.

    Both are right, so that is what the model's type and its kernels round.

    Args:
        longest: the most tokens of the text.
    """
    tokens = _made(min(_ROUNDED, max(8, longest)))
    cached = len(tokens) // 2
    positions = list(range(cached, len(tokens)))
    rest = Tree(past=cached)
    rest.add(tokens[cached:])
    shorter = Tree(past=cached)
    shorter.add(tokens[cached:-3])
    batch = pack([rest, shorter], 0, forward.dtype, forward.device, forward.prefix(tokens[:cached]))
    points = Points.of([(0, p - cached) for p in positions], 2, forward.device)
    return gap_of(forward.logits(batch, points), _logits(forward, tokens, positions))


def difference_of(logits: Tensor, expected: Tensor, rounding: float, dtype: torch.dtype) -> str:
    """Say how far a model's logits are apart; an empty string where it is rounding alone.

    Args:
        rounding: how far two plain ways of the same model are apart.
        dtype: of the model.
    """
    scale = max(float(expected.float().std()), 1.0)
    least = max(_LEAST * scale, 2 * torch.finfo(dtype).eps * float(expected.float().abs().max()))
    allowed = min(max(_FACTOR * rounding, least), most_of(dtype) * scale)
    gap = gap_of(logits, expected)
    return "" if gap <= allowed else f"logits differ by {gap:.1e}"


def most_of(dtype: torch.dtype) -> float:
    """Say how far logits of a model's type may be apart at most, where their deviation is 1."""
    return _MOST.get(dtype, _MOST_ELSE)


def gap_of(one: Tensor, other: Tensor) -> float:
    """Give the largest difference."""
    return float((one.float() - other.float()).abs().max())
