"""Causal attention inside each of several samples that lie in one sequence without padding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED = "mmlab_packed"
"""Name of this attention among those of transformers."""
_ALIKE = 0.7
"""Samples run side by side in attention while the shortest has this share of the longest's tokens."""


class Packing(NamedTuple):
    """Where the samples of a packed sequence lie.

    Everything but attention works token by token, so it needs no padding. For attention the samples are laid
    side by side, padded on the right, those of like length together: a causal query never sees what stands
    right of it, so no mask is needed and the fast kernels apply. On a CPU each runs alone instead.
    """

    lengths: tuple[int, ...]
    """Tokens of each sample."""
    position: Int64[Tensor, "1 tokens"]
    """Place of each token in its sample."""
    groups: tuple[Int64[Tensor, "samples longest"], ...]
    """For samples of like length, where each of their tokens lies; padding repeats the first token."""
    inverse: Int64[Tensor, " tokens"]
    """Where each token stands among the groups, written one after the other."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(group.shape[1] for group in self.groups)


def pack(length: Int64[Tensor, " samples"]) -> Packing:
    """Plan the attention of samples that lie one after the other.

    Args:
        length: Tokens of each, at least 1.
    """
    device = length.device
    lengths: list[int] = length.tolist()
    starts = (length.cumsum(0) - length).tolist()
    order = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])
    alike: list[list[int]] = []
    for sample in order:
        if alike and lengths[sample] >= _ALIKE * lengths[alike[-1][0]]:
            alike[-1].append(sample)
        else:
            alike.append([sample])
    position = torch.cat([torch.arange(count) for count in lengths])
    inverse = torch.empty(len(position), dtype=torch.int64)
    groups, before = [], 0
    for samples in alike:
        longest = lengths[samples[0]]
        start = torch.tensor([starts[sample] for sample in samples])[:, None]
        count = torch.tensor([lengths[sample] for sample in samples])[:, None]
        step = torch.arange(longest)
        there = step < count
        index = torch.where(there, start + step, start)
        inverse[index[there]] = before + there.flatten().nonzero().flatten()
        before += there.numel()
        groups.append(index.to(device))
    return Packing(tuple(lengths), position[None].to(device), tuple(groups), inverse.to(device))


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups keys dim"],
    value: Float[Tensor, "batch groups keys dim"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "batch queries heads dim"], None]:
    """Attention as transformers calls it; without `packing` among the options it is its `sdpa`.

    Raises:
        ValueError: A sample is longer than the window of a layer that sees only so far.
    """
    packing: Packing | None = options.pop("packing", None)
    if packing is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return whole
    window = options.pop("sliding_window", None)
    if window is not None and packing.longest > window:
        raise ValueError(
            f"a sample of {packing.longest} tokens in a language model whose layers see {window}: set "
            "packing to false, or shorten the samples"
        )
    options |= {"is_causal": True}
    # On a CPU calls cost little, padding and gathering much. Compiled code would be made for each batch anew.
    alone = query.device.type == "cpu" and not torch.compiler.is_compiling()
    run = _one_by_one if alone else _side_by_side
    return run(module, (query, key, value), packing, options), None


def _one_by_one(
    module: nn.Module, parts: tuple[Tensor, ...], packing: Packing, options: dict[str, Any]
) -> Float[Tensor, "1 tokens heads dim"]:
    # On a CPU bfloat16 attention over 60 tokens takes 2.8 times as long as in float32, over 350 as long.
    wide = [part.float() if part.dtype == torch.bfloat16 else part for part in parts]
    samples = zip(*(torch.split(part, list(packing.lengths), dim=2) for part in wide), strict=True)
    with torch.autocast("cpu", enabled=False):
        done = [sdpa_attention_forward(module, *sample, None, **options)[0] for sample in samples]
    return torch.cat(done, dim=1).to(parts[0].dtype)


def _side_by_side(
    module: nn.Module, parts: tuple[Tensor, ...], packing: Packing, options: dict[str, Any]
) -> Float[Tensor, "1 tokens heads dim"]:
    done = []
    for index in packing.groups:
        rows, longest = index.shape
        samples = [
            tensor[0][:, index.flatten()].reshape(-1, rows, longest, tensor.shape[-1]).transpose(0, 1)
            for tensor in parts
        ]
        output, _ = sdpa_attention_forward(module, *samples, None, **options)
        done.append(output.flatten(0, 1))
    return torch.cat(done)[packing.inverse][None]


def use_packed_attention(model: nn.Module) -> None:
    """Let a transformers model compute attention here."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)  # type: ignore[operator]


def no_mask(embedded: Float[Tensor, "tokens dim"]) -> Float[Tensor, "1 1 1 1"]:
    """What keeps transformers from building a mask over all pairs of packed tokens: one that it passes on."""
    return embedded.new_zeros(1, 1, 1, 1)
