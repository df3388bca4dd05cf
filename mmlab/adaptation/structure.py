"""Which layers of a block are its attention and its feed-forward, found from shapes and their order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, takewhile
from typing import NamedTuple

from torch import nn


class Sublayers(NamedTuple):
    """Module paths inside a block; empty or None where the block has no such thing."""

    attention_inputs: list[str]
    """What makes queries, keys and values: three layers or a fused one, in order of registration."""
    attention_output: str | None
    """The projection behind the attention, or a whole `nn.MultiheadAttention`, which returns a tuple and
    never calls the layers inside it. Where a block attends twice (a decoder), the last one."""
    ffn_inputs: list[str]
    """What widens: one layer, or gate and up of a gated feed-forward."""
    ffn_output: str | None
    """What narrows again."""


class _Layer(NamedTuple):
    path: str
    reads: int
    writes: int


def layer_size(module: nn.Module) -> tuple[int, int] | None:
    """How many features a layer reads and writes at every place; None for what is no such layer.

    Linear layers, ungrouped convolutions that see one place, and the `Conv1D` of transformers (GPT-2).
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        one_place = all(size == 1 for size in (*module.kernel_size, *module.stride, module.groups))
        return (module.in_channels, module.out_channels) if one_place else None
    sizes = getattr(module, "nx", None), getattr(module, "nf", None)
    if isinstance(sizes[0], int) and isinstance(sizes[1], int):
        return sizes[0], sizes[1]
    return None


def sublayers(block: nn.Module) -> Sublayers:
    """Find the attention and the feed-forward of a block such as a transformer layer or an inverted residual.

    The feed-forward's output is the last layer that narrows and has inputs: the layers right before it that
    widen to what it reads, or to twice that (gate and up in one). What it writes is the width of the block.
    The attention's output writes the width, stands before the feed-forward, and has inputs that read the
    width; if several do, the last one whose inputs can make queries, keys and values is taken.
    """
    whole = [name for name, module in block.named_modules() if isinstance(module, nn.MultiheadAttention)]
    layers = list(_layers(block, whole))
    forward = _feed_forward(layers)
    before = layers[: layers.index(forward[0])] if forward else layers
    attention = [] if whole else _attention(before, forward[-1].writes if forward else None)
    return Sublayers(
        attention_inputs=[layer.path for layer in attention[:-1]],
        attention_output=attention[-1].path if attention else whole[-1] if whole else None,
        ffn_inputs=[layer.path for layer in forward[:-1]],
        ffn_output=forward[-1].path if forward else None,
    )


def _layers(block: nn.Module, whole: list[str]) -> Iterator[_Layer]:
    """The layers in order, without what stands in an `nn.MultiheadAttention` or squeezes and excites.

    Squeeze and excitation is a layer and, next to it in the same module, a second one that undoes it.
    """
    layers = [
        _Layer(name, *size)
        for name, module in block.named_modules()
        if (size := layer_size(module)) is not None and _parent(name) not in whole
    ]
    squeezes = {
        layer
        for first, second in pairwise(layers)
        if first.reads == second.writes > first.writes == second.reads
        and _parent(first.path) == _parent(second.path)
        for layer in (first, second)
    }
    return (layer for layer in layers if layer not in squeezes)


def _feed_forward(layers: list[_Layer]) -> list[_Layer]:
    """Its inputs, then its output; nothing where there is none."""
    for place in reversed(range(1, len(layers))):
        output, last = layers[place], layers[place - 1]
        if output.writes < output.reads > last.reads and last.writes in (output.reads, 2 * output.reads):
            start = place - 1
            while start > 0 and layers[start - 1][1:] == last[1:]:
                start -= 1
            return layers[start : place + 1]
    return []


def _attention(layers: list[_Layer], width: int | None) -> list[_Layer]:
    """Its inputs, then its output; without a known width only where there is no doubt."""
    loose: list[_Layer] = []
    for output in reversed(layers):
        inputs = _readers(layers, output)
        if width in (None, output.writes) and inputs:
            if len(inputs) >= 3 or sum(layer.writes for layer in inputs) == 3 * output.reads:
                return [*inputs, output]
            loose = loose or [*inputs, output]
    return loose if width is not None else []


def _readers(layers: list[_Layer], output: _Layer) -> list[_Layer]:
    """Of the layers that read what `output` writes, those that stand nearest to it in the module tree.

    A decoder attends twice, and only the tree says which layers belong together. Readers may come after the
    output where both are in one module: Phi-3 registers the output first.
    """
    here = layers.index(output)
    readers = [
        layer
        for place, layer in enumerate(layers)
        if layer.reads == output.writes
        and (place < here or (place > here and _parent(layer.path) == _parent(output.path)))
    ]
    shared = [_shared(layer.path, output.path) for layer in readers]
    return [layer for layer, depth in zip(readers, shared, strict=True) if depth == max(shared)]


def _shared(one: str, other: str) -> int:
    """Modules that hold both."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
