"""Bottleneck adapters: small networks added to what the layers of a fixed one compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.adaptation.graft import Graft, graft, leave_fast_path
from mmlab.adaptation.method import EncoderMethod
from mmlab.adaptation.structure import layer_size, sublayers
from mmlab.adaptation.trial import Call, calls, can_run, first_tensor
from mmlab.models.blocks import find_blocks

_CONVOLUTIONS: Mapping[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
"""By the number of directions in which a feature map extends."""


class Adapters(EncoderMethod):
    """Adds scale * up(gelu(down(x))) to what a fixed network computes, with few features between the two.

    `houlsby` (Houlsby et al. 2019, arXiv:1902.00751): x is what the last layer of the attention writes, and
    again what the last layer of the feed-forward writes, both before the residual is added. `parallel` (He et
    al. 2022, arXiv:2110.04366): x is what the first layer of the feed-forward reads, and the sum is with what
    its last layer writes. Where a layer is a convolution, so is the adapter, over single places. A block
    without these (a unit of a ResNet; for `parallel` one that makes its map smaller on the way, too) gets an
    adapter behind its own output.

    `up` starts at zero, so the network computes what it did. What is not linear cannot be merged.
    """

    merges = False

    def __init__(
        self, size: int = 64, *, placement: Literal["houlsby", "parallel"] = "houlsby", scale: float = 1.0
    ) -> None:
        """Take the settings.

        Args:
            size: Features in the middle of an adapter.
            placement: `houlsby` or `parallel`.
            scale: Factor of what is added; He et al. use 4 with `parallel`.

        Raises:
            ValueError: The size is not positive.
        """
        if size < 1:
            raise ValueError(f"adapters: size={size}, but an adapter needs at least 1 feature")
        self.size = size
        self.placement = placement
        self.scale = scale

    def adapt(self, network: nn.Module) -> None:
        """Put adapters into every block that the network runs.

        Raises:
            ValueError: There is no place for an adapter.
        """
        blocks = [block.module for block in find_blocks(network)]
        ran = {call.module: call for call in calls(network, network.modules())} if can_run(network) else None
        if ran is not None:
            blocks = [block for block in blocks if block in ran]
        added = [self._inside(block, ran) or self._behind(block, ran) for block in blocks]
        if not any(added or [self._inside(network, ran)]):
            raise ValueError(
                f"adapters: {type(network).__name__} has no attention, feed-forward or block to put them "
                "behind: use lora, or adapt the whole encoder if this is a part of one"
            )
        leave_fast_path(network, Graft)

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """What was added."""
        return re.search(r"(^|\.)adapter\.(down|up)\.", name) is not None

    def _inside(self, block: nn.Module, ran: Mapping[nn.Module, Call] | None) -> bool:
        """Adapt the attention and the feed-forward of a block; whether it has what that needs."""
        found = sublayers(block)
        paths = [found.attention_output, found.ffn_output]
        if self.placement == "parallel":
            paths = [*found.ffn_inputs[:1], found.ffn_output] if not _shrinks(block) else []
        layers = [block.get_submodule(path) for path in paths if path is not None]
        if not layers or (ran is not None and any(layer not in ran for layer in layers)):
            return False
        if self.placement == "parallel":
            first, last = layers
            adapter = self._build(_size(first)[0], _size(last)[1], _directions(first), near=first)
            carried = Carried()
            graft(first, Reading, adapter=adapter, carried=carried)
            graft(last, Writing, carried=carried)
            return True
        for layer in layers:
            width = _size(layer)[1]
            graft(layer, Behind, adapter=self._build(width, width, _directions(layer), near=layer))
        return True

    def _behind(self, block: nn.Module, ran: Mapping[nn.Module, Call] | None) -> bool:
        """Adapt the output of a block; whether its shape is known."""
        if ran is None:
            return False
        output = first_tensor(ran[block].output)
        kind = _CONVOLUTIONS.get(output.ndim - 2, nn.Linear)
        channels = {getattr(m, "out_channels", None) for m in block.modules() if isinstance(m, kind)}
        directions = output.ndim - 2 if output.shape[1] in channels else 0
        width = output.shape[-1 if directions == 0 else 1]
        graft(block, Behind, adapter=self._build(width, width, directions, near=block))
        return True

    def _build(self, reads: int, writes: int, directions: int, *, near: nn.Module) -> Bottleneck:
        """An adapter on a module's device, in float32 at least: what is trained needs the digits."""
        like = next(near.parameters())
        adapter = Bottleneck(reads, writes, self.size, directions=directions, scale=self.scale)
        return adapter.to(like.device, torch.promote_types(like.dtype, torch.float32))


class Bottleneck(nn.Module):
    """scale * up(gelu(down(x))), zero at the start."""

    def __init__(self, reads: int, writes: int, size: int, *, directions: int, scale: float) -> None:
        """Make the layers.

        Args:
            reads: Features of x.
            writes: Features of the result.
            size: Features between.
            directions: In which a feature map extends, whose features are dim 1; 0: they are the last dim.
            scale: Factor of the result.
        """
        super().__init__()
        if directions == 0:
            self.down: nn.Module = nn.Linear(reads, size)
            self.up: nn.Module = nn.Linear(size, writes)
        else:
            self.down = _CONVOLUTIONS[directions](reads, size, 1)
            self.up = _CONVOLUTIONS[directions](size, writes, 1)
        self.scale = scale
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """In the type of x, whatever that of the weights."""
        # Under autocast the layers choose the type themselves.
        cast = not torch.is_autocast_enabled(x.device.type)
        added: Tensor = self.up(F.gelu(self.down(x.to(self._dtype()) if cast else x)))
        return (self.scale * added).to(x.dtype)

    def _dtype(self) -> torch.dtype:
        return next(self.down.parameters()).dtype


class Behind(Graft):
    """Adds to what a module gives, a tensor or a tuple with one in front, what the adapter makes of it."""

    adapter: Bottleneck

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, then the adapter."""
        output = super().forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] + self.adapter(output[0]), *output[1:])
        return output + self.adapter(output)


class Carried:
    """What an adapter beside a feed-forward hands from the first layer to the last."""

    value: Tensor | None = None


class Reading(Graft):
    """The first layer of a feed-forward: the adapter reads what it reads."""

    adapter: Bottleneck
    carried: Carried

    def forward(self, x: Tensor) -> Any:
        """Run the adapter, then the layer."""
        self.carried.value = self.adapter(x)
        return super().forward(x)


class Writing(Graft):
    """The last layer of a feed-forward: what the adapter made is added to what it writes."""

    carried: Carried

    def forward(self, x: Tensor) -> Any:
        """Run the layer, and add."""
        added, self.carried.value = self.carried.value, None
        assert added is not None, "the last layer of a feed-forward ran without its first"
        output = super().forward(x)
        return output + added.to(output.dtype)


def _size(layer: nn.Module) -> tuple[int, int]:
    """Features that a layer reads and writes."""
    if isinstance(layer, nn.MultiheadAttention):
        return layer.embed_dim, layer.embed_dim
    size = layer_size(layer)
    assert size is not None
    return size


def _directions(layer: nn.Module) -> int:
    """In how many a layer's feature map extends; 0 where features are the last dim."""
    return next((number for number, kind in _CONVOLUTIONS.items() if isinstance(layer, kind)), 0)


def _shrinks(block: nn.Module) -> bool:
    """Whether a convolution of a block steps over places."""
    kinds = tuple(_CONVOLUTIONS.values())
    return any(isinstance(module, kinds) and max(module.stride) > 1 for module in block.modules())
