"""Where a model's attention heads, MLP neurons and hidden states are read and scaled.

Architectures are the rows of ``ARCHITECTURES``; an unlisted one that is built like Llama is
found by looking. :func:`register_architecture` adds a row, and so does an installed package with an
entry point of the group ``sadi_lmeval.architectures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from sadi_lmeval.architecture.hooks import Side, Streams, visiting
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.errors import UserError, first_line
from sadi_lmeval.plugins import loaded
from sadi_lmeval.types import Element, HiddenSite, Size


class Architecture(NamedTuple):
    """Module names of one family: of the list of blocks, and within a block.

    Attributes:
        blocks: the list of decoder blocks, from the causal language model.
        heads: the attention output projection; its input holds the heads' outputs. Blocks without
            one are passed over. None where there is none, or no module that has the heads alone.
        mlp: the module whose output is the MLP's contribution, before any residual sum; None where
            it is no single one's.
        neurons: the MLP's activation function; None where a block has several (experts), or where
            it is no module.
    """

    blocks: str
    heads: str | None
    mlp: str | None
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
        entry_width: activations an entry: ``head_dim`` for heads, else 1; where layers differ in
            it, that of the widest.
        hidden_site: of hidden states, which of the two; of other elements without meaning.
        among: of each layer, which decoder block it is in; empty: all of them are, in order.
        streams: where blocks give several streams, which axis is theirs; entries are of all.
        entry_widths: of each layer, where layers differ in it (Gemma 4); empty: they do not. What
            is read of a narrower layer has zeros at the end of each entry, and what is written
            there is left out.
    """

    element: Element
    modules: tuple[nn.Module, ...]
    side: Side
    entries: int
    entry_width: int
    hidden_site: HiddenSite = "mlp"
    among: tuple[int, ...] = ()
    streams: Streams | None = None
    entry_widths: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What tells it from a model's other sites: ``hidden residual``."""
        return f"hidden {self.hidden_site}" if self.element == "hidden" else self.element

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of each layer, which decoder block it is in: others have no such element."""
        return self.among or tuple(range(len(self.modules)))

    @property
    def layers(self) -> int:
        return len(self.modules)

    @property
    def width(self) -> int:
        """Activations a layer and position; where layers differ, with the zeros."""
        return self.entries * self.entry_width

    @property
    def size(self) -> Size:
        own = self.entries * sum(self.entry_widths)
        return Size(self.layers, self.entries, self.width, own or None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``[layers, entries, entry_width]``."""
        return self.layers, self.entries, self.entry_width

    def read(self, layer: int, activations: Tensor, points: Points) -> Tensor:
        """Take a layer's activations at n points, ``[n, width]``.

        Args:
            activations: as its module has them, ``[batch, seq, own width]``.
        """
        values, own = points.read(activations), self._narrower(layer)
        if own is None:
            return values
        entries = values.reshape(len(values), self.entries, own)
        return functional.pad(entries, (0, self.entry_width - own)).flatten(1)

    def write(self, layer: int, activations: Tensor, points: Points, values: Tensor) -> Tensor:
        """Copy a layer's activations, with ``values`` ``[n, width]`` at n points.

        Args:
            activations: as its module has them, ``[batch, seq, own width]``.
        """
        own = self._narrower(layer)
        if own is not None:
            entries = values.reshape(len(values), self.entries, self.entry_width)
            values = entries[..., :own].flatten(1)
        return points.write(activations, values)

    def _narrower(self, layer: int) -> int | None:
        own = self.entry_widths[layer] if self.entry_widths else self.entry_width
        return None if own == self.entry_width else own


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
    kind = str(base.config.model_type)
    modules = _modules(base, element, hidden_site)
    side: Side = "input" if element == "head" else "output"
    measured = _measure(base, modules, side, kind, element)
    return _site(base, element, modules, measured)._replace(hidden_site=hidden_site)


def check_sites(model: Any, element: Element, hidden_site: HiddenSite) -> Site | None:
    """Find a site in a model without weights (on the ``meta`` device).

    None where its forward pass does not run there, and its modules do not say.

    Raises:
        UserError: as :func:`find_site` would.
    """
    modules = _modules(model, element, hidden_site)
    side: Side = "input" if element == "head" else "output"
    try:
        measured = _measure(model, modules, side, model.config.model_type, element, "meta")
    except _CannotRun as failed:
        if isinstance(failed.__cause__, (AttributeError, TypeError, ValueError)):
            raise  # it would fail with weights, too; what depends on values has other errors
        widths = [getattr(each, "in_features", None) for each in modules.values()]
        known = [width for width in widths if width is not None]
        if element != "head" or len(known) < len(widths):
            return None
        measured = _Measured([*modules], known, None)
    return _site(model, element, modules, measured)


def _modules(model: Any, element: Element, hidden_site: HiddenSite) -> dict[int, nn.Module]:
    """Give the modules of an element by decoder block."""
    kind = str(model.config.model_type)
    architecture = _architecture(model)
    names = {"head": architecture.heads, "neuron": architecture.neurons, "hidden": architecture.mlp}
    name = "" if (element, hidden_site) == ("hidden", "residual") else names[element]
    try:
        blocks = decoder_blocks(model)
        if name is None:
            raise UserError(_missing(kind, element, blocks))
        having = {
            number: block.get_submodule(name)
            for number, block in enumerate(blocks)
            if any(each == name for each, _ in block.named_modules())
            and not (element == "head" and number in _linear(model))
        }
        if 0 < len(having) < len(blocks) and element != "head":
            raise UserError(
                f"model type {kind!r}: only {len(having)} of its {len(blocks)} layers have "
                f"{name!r}, and element={element} needs one in each"
            )
        if len({id(module) for module in having.values()}) < len(having):
            raise UserError(
                f"model type {kind!r}: its layers share one {name!r}, and element={element} needs "
                "one in each"
            )
        return having or {0: blocks[0].get_submodule(name)}
    except AttributeError as error:
        raise UserError(
            f"model type {kind!r}: {error}; sadi_lmeval.register_architecture says where its sites "
            "are"
        ) from None


def _linear(model: Any) -> set[int]:
    """Find layers whose attention is linear: a state along the text, without heads over tokens."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    return {number for number, kind in enumerate(kinds) if "linear" in str(kind)}


def _missing(kind: str, element: str, blocks: Sequence[nn.Module]) -> str:
    """Say why there is no such element."""
    if element == "neuron":
        if any("expert" in name for block in blocks for name, _ in block.named_modules()):
            return (
                f"element=neuron: a layer of model type {kind!r} has several experts, so a neuron "
                "has no single activation; pass element=head or element=hidden"
            )
        return (
            f"element=neuron: no module of model type {kind!r} is its MLP's activation function; "
            "pass element=head or element=hidden"
        )
    parts = {name for block in blocks for name, _ in block.named_modules()}
    if element == "head" and any("att" in name and "expert" in name for name in parts):
        return (
            f"element=head: the attention of model type {kind!r} has several experts, each with "
            "heads of its own; pass element=hidden"
        )
    what, other = {
        "head": ("attention heads were", "element=hidden"),
        "hidden": ("MLP was", "element=hidden,hidden_site=residual"),
    }[element]
    return (
        f"element={element}: the {what} not found in the layers of model type {kind!r}; pass "
        f"{other}, or say where they are with sadi_lmeval.register_architecture"
    )


def _site(model: Any, element: Element, modules: dict[int, nn.Module], measured: _Measured) -> Site:
    blocks, width = tuple(measured.layers), max(measured.widths)
    carriers = tuple(modules[number] for number in blocks)
    if element != "head":
        return Site(element, carriers, "output", width, 1, among=blocks, streams=measured.streams)
    if min(measured.widths) < width:
        heads, head_dims = _unlike_heads(model, measured)
        return Site(
            element, carriers, "input", heads, max(head_dims), among=blocks, entry_widths=head_dims
        )
    config = model.config.get_text_config()
    heads = _number(config, "num_attention_heads") or 0
    # Of latent attention head_dim is a part of the keys' width; what comes out has the values'.
    head_dim = _number(config, "v_head_dim") or _number(config, "head_dim")
    head_dim = head_dim or width // max(1, heads)
    if heads * head_dim != width:
        raise UserError(
            f"model type {model.config.model_type!r}: {heads} heads of {head_dim} do not make the "
            f"width {width} of its attention output"
        )
    return Site(element, carriers, "input", heads, head_dim, among=blocks)


def _unlike_heads(model: Any, measured: _Measured) -> tuple[int, tuple[int, ...]]:
    """Find how many heads the layers have, and each layer's own ``head_dim``.

    A layer may be wider because its heads are, or because it has more: its attention module says.

    Raises:
        UserError: it does not, or layers differ in the number of heads.
    """
    kind, of_layers = str(model.config.model_type), decoder_blocks(model)
    attention = str(_architecture(model).heads).rpartition(".")[0]
    modules = [of_layers[number].get_submodule(attention) for number in measured.layers]
    head_dims = [_number(each, "v_head_dim") or _number(each, "head_dim") or 0 for each in modules]
    pairs = list(zip(measured.widths, head_dims, strict=True))
    if not all(head_dim and width % head_dim == 0 for width, head_dim in pairs):
        raise UserError(
            f"model type {kind!r}: the outputs of its attention are {_either(measured.widths)} "
            "wide, and its attention modules do not say how wide a head is"
        )
    heads = [width // head_dim for width, head_dim in pairs]
    if len(set(heads)) > 1:
        raise UserError(
            f"model type {kind!r}: its layers have {_either(heads)} attention heads each; all must "
            "have as many"
        )
    return heads[0], tuple(head_dims)


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(set(numbers))))


def _number(config: Any, name: str) -> int | None:
    """Read a number of a configuration or a module.

    None where there is none, or where layers differ in it.
    """
    try:
        value = getattr(config, name, None)
    except Exception:  # transformers has a kind of its own for the second
        return None
    return value if isinstance(value, int) else None


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """List the decoder blocks in order.

    Raises:
        UserError: the architecture is not known and not built like a known one.
        AttributeError: it is known, but this model is not built like that.
    """
    base = unwrapped(model)
    return list(base.get_submodule(_architecture(base).blocks).children())


def _architecture(base: Any) -> Architecture:
    kind = str(base.config.model_type)
    layers = _number(base.config.get_text_config(), "num_hidden_layers")
    architecture = ARCHITECTURES.get(kind) or _installed(kind) or _look(base, layers)
    if architecture is None:
        raise UserError(
            f"model type {kind!r}: its layers were not found; known are "
            f"{', '.join(sorted(ARCHITECTURES))}; sadi_lmeval.register_architecture adds one"
        )
    return architecture


def _installed(kind: str) -> Architecture | None:
    """Load the row of an installed package, if one has it.

    Raises:
        UserError: the package's entry point cannot be loaded, or is something else.
    """
    for point in entry_points(group=GROUP, name=kind):
        architecture = loaded(point, "architecture")
        if not isinstance(architecture, Architecture):
            raise UserError(f"architecture {kind!r}: {point.value} is no sadi_lmeval.Architecture")
        return architecture
    return None


def size_in(config: Any, element: Element) -> Size | None:
    """Read a site's size off a configuration, before a model is loaded.

    None where it does not say.
    """
    text = config.get_text_config()
    name = {"head": "num_attention_heads", "hidden": "hidden_size", "neuron": "intermediate_size"}
    layers, entries = (_number(text, n) for n in ("num_hidden_layers", name[element]))
    if layers is None or entries is None:
        return None
    return Size(layers, entries)


def unwrapped(model: Any) -> Any:
    """Take the causal language model itself out of what torch.compile or PEFT has put around it.

    Raises:
        UserError: the wrapper puts virtual tokens before every text, so that positions are others.
    """
    model = getattr(model, "_orig_mod", model)
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
    """Say where a model's inputs are to be: with its first weights, or where these are offloaded,
    on the CPU, from where accelerate takes them to where they are needed.
    """
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


_HEADS = ("o_proj", "out_proj", "c_proj", "dense")
_NOT_HEADS = ("linear_attn", "cross", "encoder_attn", "inter_attention", "expert")
_NOT_TEXT = ("vision", "visual", "image", "audio")
_MLPS = ("mlp", "mlps", "ffn", "feed_forward", "block_sparse_moe", "shared_mlp", "mlp_block")
_NEURONS = ("act_fn", "act", "activation_fn")
_SPREAD = (
    ("fc1", "fc2", "activation_fn"),  # as in OPT
    ("intermediate.dense", "output.dense", "intermediate.intermediate_act_fn"),
)  # as in BERT
"""Names where the MLP is no module: of its projections, and of its activation function."""


def _look(model: Any, layers: int | None) -> Architecture | None:
    """Find the module names of an unlisted architecture by their usual endings.

    The blocks are those of the text's decoder: a vision tower may have as many.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and not any(word in name for word in _NOT_TEXT)
    ]
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = {id(module) for module in decoder.modules()} if decoder is not None else set()
    lists.sort(key=lambda each: (len(each[1]) != layers, id(each[1]) not in inside))
    for name, blocks in lists:
        names = _within(name, blocks, _linear(model))
        known = names.heads is not None and names.mlp is not None and len(blocks) == layers
        if known or all(isinstance(block, GradientCheckpointingLayer) for block in blocks):
            return names
    return None


def _within(name: str, blocks: nn.ModuleList, linear: set[int]) -> Architecture:
    """Find the module names of a list of blocks, None where one is not clear."""
    named = [[n for n, _ in block.named_modules()] for block in blocks]
    inside = list(dict.fromkeys(n for names in named for n in names))
    heads = {
        n
        for number, names in enumerate(named)
        for n in names
        if number not in linear
        and ("att" in n or n.endswith("o_proj"))
        and n.rpartition(".")[2] in _HEADS
        and not any(other in n for other in _NOT_HEADS)
    }
    mlps = [n for n in inside if n in _MLPS]
    single = [names for names in named if not any("expert" in n for n in names)]
    neurons = {
        n
        for names in single
        for n in names
        if n.rpartition(".")[0] in mlps and n.rpartition(".")[2] in _NEURONS
    }
    for first, last, activation in _SPREAD if not mlps else ():
        if {first, last} <= set(inside):
            mlps, neurons = [last], {activation} & set(inside)
    return Architecture(
        name,
        heads.pop() if len(heads) == 1 else None,
        mlps[0] if len(mlps) == 1 else None,
        neurons.pop() if len(neurons) == len(mlps) == 1 else None,
    )


class _CannotRun(UserError):
    """A forward pass over a few tokens failed."""


class _Measured(NamedTuple):
    """What a forward pass says of a site.

    Attributes:
        layers: those that take part in it: of some models (Mllama) others need an image.
        widths: of each, activations a position; those of heads alone may differ.
        streams: see :class:`Site`.
    """

    layers: list[int]
    widths: list[int]
    streams: Streams | None


def _measure(
    model: nn.Module,
    modules: dict[int, nn.Module],
    side: Side,
    kind: str,
    element: str,
    device: torch.device | str | None = None,
) -> _Measured:
    """Measure a site in a forward pass over two tokens.

    That also proves that a module takes part in the forward pass once, and in order.
    """
    seen: list[int] = []
    widths: list[tuple[int, Streams | None]] = []

    def read(layer: int, activations: Tensor) -> None:
        seen.append(layer)
        streams: Streams | None = None
        if activations.dim() == 4:
            streams = "third" if activations.shape[1] == tokens.shape[1] else "first"
        positions = activations.shape[:-1].numel()
        if activations.dim() < 4 and positions != tokens.numel():
            raise UserError(
                f"model type {kind!r}: its layers see {positions} positions of a text of "
                f"{tokens.numel()} tokens, so the last token is not where it is looked for"
            )
        axis = {None: 1, "first": activations.shape[0], "third": activations.shape[-2]}[streams]
        widths.append((activations.shape[-1] * axis, streams))

    tokens = torch.zeros(1, 2, dtype=torch.long, device=device or input_device(model))
    try:
        with torch.no_grad(), visiting(modules, side, read):
            model(tokens)
    except UserError:
        raise
    except Exception as error:
        raise _CannotRun(
            f"model type {kind!r}: its forward pass over a text alone fails ({first_line(error)})"
        ) from error
    found = set(widths)
    if seen != sorted(set(seen)) or not found or (len(found) > 1 and element != "head"):
        raise UserError(
            f"model type {kind!r}: its {element} activations were seen in {len(seen)} of "
            f"{len(modules)} layers, {len(found)} widths; all must have one width"
        )
    return _Measured(seen, [width for width, _ in widths], widths[0][1])
