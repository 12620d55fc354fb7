"""What of a model's forward pass can be shared and skipped, found out by trying."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.errors import first_line
from sadi_lmeval.passes.forward import Forward, Resumed
from sadi_lmeval.passes.sequences import Tree, pack

logger = logging.getLogger("lm_eval.sadi")

_BY_LENGTH = ("dynamic", "longrope")
_FULL = ("full_attention", "sliding_attention", "chunked_attention")


def longest_branching_path(model: nn.Module) -> int:
    """Up to how many tokens a path of a packed row is computed as it would be alone.

    A packed row brings its own attention mask, which takes the place of a sliding or chunked
    window: right as long as no path is longer than the window, or than the length from which
    rotary frequencies change.

    Returns:
        0 where the model cannot take packed rows (linear attention, attention biases that follow
        from the token's index, attention kernels without masks): then every continuation gets a
        row of its own.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    kinds = [*(getattr(config, "layer_types", None) or [])]
    # GPT-Neo's local attention counts places in the row, not tokens on the path.
    kinds += [kind for kind in getattr(config, "attention_layers", None) or [] if kind == "local"]
    if any(kind not in _FULL for kind in kinds):
        reason = f"layers of type {', '.join(sorted(set(kinds) - set(_FULL)))}"
    else:
        reason = _difference(model)
    if reason:
        logger.info("Prompts are not shared between continuations (%s)", reason)
        return 0
    return min([*_windows(config), *_fixed_frequencies(config)], default=1 << 62)


def _windows(config: Any) -> Iterator[int]:
    """How far back a token sees."""
    for name in ("sliding_window", "attention_chunk_size", "sliding_window_size"):
        window = getattr(config, name, None)
        if isinstance(window, int) and window:
            yield window


def _fixed_frequencies(config: Any) -> Iterator[int]:
    """Up to how many tokens rotary frequencies do not follow from the length of the text."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (given, *given.values()):
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _BY_LENGTH:
            longest = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            yield int(longest or config.max_position_embeddings)


def can_resume(model: nn.Module) -> bool:
    """Whether a pass may begin at any decoder block with what an earlier pass gave it."""
    forward = Forward(model)
    tree, points = Tree(), Points.of([(0, 3), (0, 4)], 1, forward.device)
    tree.add([3, 9, 7, 4, 8])
    try:
        batch = pack([tree], 0, forward.dtype, forward.device)
        starts = range(1, len(forward.blocks))
        trunk, _ = forward.trunk(batch, points, starts)
        if any(states.dim() != 3 for states in trunk.states.values()):
            raise ValueError("its blocks give several streams")
        gaps = [
            difference_of(
                forward.logits(batch, points, resumed=Resumed(start, trunk.states[start])),
                trunk.logits,
            )
            for start in starts
        ]
        reason = next((gap for gap in gaps if gap), "")
    except Exception as error:  # any failure of the trial means: from the first layer
        reason = first_line(error)
    if reason:
        logger.info("Layers below the first edited one are not skipped (%s)", reason)
    return not reason


def _difference(model: nn.Module) -> str:
    """Why packed rows do not work, or an empty string if they equal plain ones."""
    forward = Forward(model)
    trunk, left, right = [5, 9, 7, 4, 8, 6], [3, 5, 4], [9, 3]
    tree = Tree(past=3)
    root = tree.add(trunk[3:])
    tree.add(left, root)
    tree.add(right, root)
    try:
        packed = forward.logits(
            pack([tree], 0, forward.dtype, forward.device, forward.prefix(trunk[:3])),
            Points.of([(0, 2), (0, 5), (0, 7)], 1, forward.device),
        )
        plain = []
        for tokens, positions in ((trunk + left, [5, 8]), (trunk + right, [7])):
            path = Tree()
            path.add(tokens)
            batch = pack([path], 0, forward.dtype, forward.device)
            points = Points.of([(0, p) for p in positions], 1, forward.device)
            plain.append(forward.logits(batch, points))
    except Exception as error:  # any failure of the trial means: the plain way
        reason = first_line(error)
        return f"the model does not take an attention mask of its own: {reason}"
    return difference_of(packed, torch.cat(plain))


def difference_of(found: Tensor, expected: Tensor) -> str:
    """How far logits are apart, or an empty string where it is rounding alone."""
    gap = float((found.float() - expected.float()).abs().max())
    scale = float(expected.float().std())
    allowed = 1e-3 if expected.dtype == torch.float32 else 0.1
    return "" if gap <= allowed * max(scale, 1.0) else f"logits differ by {gap:.1e}"
