"""Where a model's attention heads, MLP neurons and hidden states are read and scaled.

Architectures are the rows of ``ARCHITECTURES``; an unlisted one that is built like Llama is
found by looking. :func:`register_architecture` adds a row, and so does an installed package with an
entry point of the group ``sadi_lmeval.architectures``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sadi_lmeval.architecture.hooks import Side, visiting
from sadi_lmeval.errors import UserError
from sadi_lmeval.plugins import loaded
from sadi_lmeval.types import Element, HiddenSite, Size


class Architecture(NamedTuple):
    """Module names of one family: of the list of blocks, and within a block.

    Attributes:
        blocks: the list of decoder blocks, from the causal language model.
        heads: the attention output projection; its input holds the heads' outputs.
        mlp: the module whose output is the MLP's contribution, before any residual sum.
        neurons: the MLP's activation function; None where a block has several (experts).
    """

    blocks: str
    heads: str
    mlp: str
    neurons: str | None


_LLAMA = Architecture("model.layers", "self_attn.o_proj", "mlp", "mlp.act_fn")

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "cohere": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "phi": Architecture("model.layers", "self_attn.dense", "mlp", "mlp.activation_fn"),
    "phi3": Architecture("model.layers", "self_attn.o_proj", "mlp", "mlp.activation_fn"),
    "gpt2": Architecture("transformer.h", "attn.c_proj", "mlp", "mlp.act"),
    "gptj": Architecture("transformer.h", "attn.out_proj", "mlp", "mlp.act"),
    "gpt_neox": Architecture("gpt_neox.layers", "attention.dense", "mlp", "mlp.act"),
    "opt": Architecture("model.decoder.layers", "self_attn.out_proj", "fc2", "activation_fn"),
    "falcon": Architecture("transformer.h", "self_attention.dense", "mlp", "mlp.act"),
    # BLOOM and MPT add the residual inside the MLP module: its last projection comes before.
    "bloom": Architecture(
        "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", "mlp.gelu_impl"
    ),
    "mpt": Architecture("transformer.blocks", "attn.out_proj", "ffn.down_proj", "ffn.act"),
    "mixtral": Architecture("model.layers", "self_attn.o_proj", "mlp", None),
    "qwen3_moe": Architecture("model.layers", "self_attn.o_proj", "mlp", None),
}


GROUP = "sadi_lmeval.architectures"
"""Entry points: a ``config.model_type`` as the name, an :class:`Architecture` as the object."""


def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Say where the sites of an architecture are.

    Args:
        model_type: as in the model's ``config.model_type``.
        architecture: the module names.
    """
    ARCHITECTURES[model_type] = architecture


class Site(NamedTuple):
    """One kind of element in one model.

    Attributes:
        element: what it is.
        modules: one module a layer.
        side: whether the module's input or its output is the element's activation.
        entries: selectable elements a layer: heads, neurons or hidden units.
        entry_width: activations an entry: ``head_dim`` for heads, else 1.
        hidden_site: of hidden states, which.
    """

    element: Element
    modules: tuple[nn.Module, ...]
    side: Side
    entries: int
    entry_width: int
    hidden_site: HiddenSite = "mlp"

    @property
    def layers(self) -> int:
        return len(self.modules)

    @property
    def width(self) -> int:
        """Activations a layer and position."""
        return self.entries * self.entry_width

    @property
    def size(self) -> Size:
        return Size(self.layers, self.entries, self.width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``[layers, entries, entry_width]``."""
        return self.layers, self.entries, self.entry_width


def find_site(model: nn.Module, element: Element, hidden_site: HiddenSite = "mlp") -> Site:
    """Find the modules that carry an element's activations, and measure their widths.

    Args:
        model: a causal language model, a PEFT wrapper around one included.
        element: ``head``, ``neuron`` or ``hidden``.
        hidden_site: for ``hidden``: the MLP's output (as the reference code) or the block's.

    Raises:
        UserError: the architecture is not known and not built like a known one, or has no such
            element.
    """
    base = unwrapped(model)
    config = base.config.get_text_config()
    kind = str(base.config.model_type)
    architecture = _architecture(base)
    names = {"head": architecture.heads, "neuron": architecture.neurons, "hidden": architecture.mlp}
    if element == "hidden" and hidden_site == "residual":
        names["hidden"] = ""
    name = names[element]
    if name is None:
        raise UserError(
            f"element=neuron: a layer of model type {kind!r} has several experts, so a neuron has "
            "no single activation; pass element=head or element=hidden"
        )
    try:
        blocks = decoder_blocks(model)
        having = sum(any(n == name for n, _ in block.named_modules()) for block in blocks)
        if 0 < having < len(blocks):
            raise UserError(
                f"model type {kind!r}: only {having} of its {len(blocks)} layers have {name!r}, "
                f"and element={element} needs one in each"
            )
        modules = tuple(block.get_submodule(name) for block in blocks)
    except AttributeError as error:
        raise UserError(
            f"model type {kind!r}: {error}; sadi_lmeval.register_architecture says where its sites "
            "are"
        ) from None
    side: Side = "input" if element == "head" else "output"
    width = _measure(base, modules, side, kind, element)
    if element != "head":
        which = hidden_site if element == "hidden" else "mlp"
        return Site(element, modules, side, width, 1, which)
    heads = int(config.num_attention_heads)
    # Of latent attention head_dim is a part of the keys' width; what comes out has the values'.
    head_dim = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
    head_dim = head_dim or width // heads
    if heads * head_dim != width:
        raise UserError(
            f"model type {kind!r}: {heads} heads of {head_dim} do not make the width {width} of "
            "its attention output"
        )
    return Site(element, modules, side, heads, int(head_dim))


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder blocks in order.

    Raises:
        UserError: the architecture is not known and not built like a known one.
        AttributeError: it is known, but this model is not built like that.
    """
    base = unwrapped(model)
    return list(base.get_submodule(_architecture(base).blocks).children())


def _architecture(base: Any) -> Architecture:
    kind = str(base.config.model_type)
    layers = base.config.get_text_config().num_hidden_layers
    architecture = ARCHITECTURES.get(kind) or _installed(kind) or _look(base, layers)
    if architecture is None:
        raise UserError(
            f"model type {kind!r}: its attention heads and MLPs were not found; known are "
            f"{', '.join(sorted(ARCHITECTURES))}; sadi_lmeval.register_architecture adds one"
        )
    return architecture


def _installed(kind: str) -> Architecture | None:
    """Load the row of an installed package, if one has it.

    Raises:
        UserError: the package's entry point cannot be loaded, or is something else.
    """
    for point in entry_points(group=GROUP, name=kind):
        found = loaded(point, "architecture")
        if not isinstance(found, Architecture):
            raise UserError(f"architecture {kind!r}: {point.value} is no sadi_lmeval.Architecture")
        return found
    return None


def size_in(config: Any, element: Element) -> Size | None:
    """Read a site's size off a configuration, before a model is loaded.

    None where it does not say.
    """
    text = config.get_text_config()
    name = {"head": "num_attention_heads", "hidden": "hidden_size", "neuron": "intermediate_size"}
    layers, entries = (getattr(text, n, None) for n in ("num_hidden_layers", name[element]))
    if not isinstance(layers, int) or not isinstance(entries, int):
        return None
    return Size(layers, entries)


def unwrapped(model: Any) -> Any:
    """The causal language model itself, out of a PEFT wrapper if there is one.

    Raises:
        UserError: the wrapper puts virtual tokens before every text, so that positions are others.
    """
    if not hasattr(model, "get_base_model"):
        return model
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise UserError(
            f"peft: {type(adapter).__name__} puts virtual tokens before every text, so the last "
            "prompt token is not where it is looked for; steer a model without such an adapter, "
            "or with one that changes weights (LoRA)"
        )
    return model.get_base_model()


def input_device(model: nn.Module) -> torch.device:
    """Where a model's inputs are to be: with its first weights, or where these are offloaded, on
    the CPU, from where accelerate takes them to where they are needed.
    """
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def _look(model: nn.Module, layers: int) -> Architecture | None:
    """Module names of an unlisted architecture, found by their usual endings."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != layers:
            continue
        inside = dict(module[0].named_modules())
        heads = [
            n
            for n in inside
            if "att" in n and n.rpartition(".")[2] in ("o_proj", "out_proj", "c_proj", "dense")
        ]
        mlps = [n for n in inside if n in ("mlp", "ffn", "feed_forward")]
        if len(heads) != 1 or len(mlps) != 1:
            continue
        neurons = [
            n
            for n in inside
            if n.startswith(mlps[0] + ".")
            and n.rpartition(".")[2] in ("act_fn", "act", "activation_fn")
        ]
        single = len(neurons) == 1 and not any("expert" in n for n in inside)
        return Architecture(name, heads[0], mlps[0], neurons[0] if single else None)
    return None


def _measure(
    model: nn.Module, modules: tuple[nn.Module, ...], side: Side, kind: str, element: str
) -> int:
    """The width of a site, read off a forward pass over two tokens.

    That also proves that every module takes part in the forward pass.
    """
    widths: list[int] = []

    def read(layer: int, activations: Tensor) -> None:
        widths.append(activations.shape[-1])

    device = input_device(model)
    with torch.no_grad(), visiting(dict(enumerate(modules)), side, read):
        model(torch.zeros(1, 2, dtype=torch.long, device=device))
    if len(widths) != len(modules) or len(set(widths)) != 1:
        raise UserError(
            f"model type {kind!r}: its {element} activations were seen in {len(widths)} of "
            f"{len(modules)} layers, {len(set(widths))} widths; all must have one width"
        )
    return widths[0]
