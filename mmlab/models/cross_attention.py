"""Gated cross-attention: layers between those of a language model, through which its text looks at media."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmlab.models.blocks import find_blocks
from mmlab.models.interleave import Beside
from mmlab.models.language_model import LanguageModel
from mmlab.models.packed_attention import pack


@dataclass(frozen=True)
class CrossAttention:
    """Settings of the layers that are put into a language model (Flamingo: Alayrac et al. 2022).

    Raises:
        ValueError: If a setting is out of its range.
    """

    every: int = 4
    """A layer stands before every so many-th block of the language model."""
    num_heads: int = 8
    """Of attention; it must divide the size of the language model's embeddings."""
    expansion: int = 4
    """How many times as wide as the embeddings the hidden layer of a feed-forward network is."""

    def __post_init__(self) -> None:
        if min(self.every, self.num_heads, self.expansion) < 1:
            raise ValueError(
                f"every={self.every}, num_heads={self.num_heads}, expansion={self.expansion}: at least 1 each"
            )


class Group(NamedTuple):
    """Rows with about as many tokens that look, side by side."""

    query: Int64[Tensor, "rows queries"]
    """Among the tokens that look; padding repeats the first."""
    media: Int64[Tensor, "rows seen"]
    """Among the media tokens; padding repeats the last."""
    sees: Bool[Tensor, "rows 1 queries seen"]


class Look(NamedTuple):
    """Who looks at what, in one pass through the language model."""

    shape: tuple[int, int]
    """Rows and tokens of the batch that a block reads."""
    at: Int64[Tensor, " looking"]
    """The tokens that look, counted over all of the batch, its padding too."""
    groups: tuple[Group, ...]
    inverse: Int64[Tensor, " looking"]
    """Where each stands among the groups, written one after the other."""
    weight: float
    """1; or 0 where nobody sees anything, and a token looks at a blank so that all ranks do the same."""


def plan(
    before: Int64[Tensor, "batch tokens"], row: Int64[Tensor, "batch tokens"], length: Int64[Tensor, " rows"]
) -> Look:
    """Plan the attention of tokens to the media that stand before them in their row.

    Args:
        before: Media tokens that each token of a batch sees, the first of its row's; 0 for padding.
        row: The row of each, ascending.
        length: Media tokens of each row, all rows one after the other.
    """
    shape = before.shape[0], before.shape[1]
    at = before.flatten().nonzero().flatten()
    if len(at) == 0:
        one = at.new_zeros(1)
        return Look(shape, one, (Group(one[None], one[None], (one == 0)[None, None, None]),), one, 0.0)
    seen, start = before.flatten()[at], length.cumsum(0) - length
    rows, looking = torch.unique_consecutive(row.flatten()[at], return_counts=True)
    first = looking.cumsum(0) - looking
    packing = pack(looking)
    groups = []
    for query in packing.groups:
        of = rows[torch.searchsorted(first, query[:, 0].contiguous(), right=True) - 1]
        column = torch.arange(int(seen[query].max()), device=at.device)
        media = start[of][:, None] + torch.minimum(column, length[of][:, None] - 1)
        groups.append(Group(query, media, (column < seen[query][..., None])[:, None]))
    return Look(shape, at, tuple(groups), packing.inverse, 1.0)


class GatedCrossAttention(nn.Module):
    """Text looks at media, then a feed-forward network; tanh of a gate, 0 at the start, lets each in.

    Tokens that see no media pass unchanged.
    """

    def __init__(self, dim: int, *, num_heads: int, expansion: int) -> None:
        """Make the layers; `num_heads` divides `dim`."""
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, expansion * dim, bias=False),
            nn.GELU(),
            nn.Linear(expansion * dim, dim, bias=False),
        )
        # FSDP shards no parameter without dimensions.
        self.attention_gate, self.feed_forward_gate = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        media: Float[Tensor, "media dim"],
        look: Look,
        known: Float[Tensor, "media two_dims"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "media two_dims"]]:
        """Let tokens look.

        Args:
            hidden: What a block would read.
            media: Tokens of media.
            look: Who looks at what.
            known: Keys and values of the media, where this layer has given them before.

        Returns:
            What the block is to read, and keys and values.
        """
        flat = hidden.flatten(0, 1)
        text = flat[look.at]
        if known is None:
            known = self.key_value(media)
        text = text + look.weight * self.attention_gate.tanh() * self._attend(text, known, look)
        text = text + look.weight * self.feed_forward_gate.tanh() * self.feed_forward(text)
        return flat.index_copy(0, look.at, text.to(flat.dtype)).reshape(hidden.shape), known

    def _attend(self, text: Tensor, known: Tensor, look: Look) -> Tensor:
        query = self.query(self.norm(text)).reshape(len(text), self.num_heads, -1)
        key, value = known.reshape(len(known), 2, self.num_heads, -1).unbind(1)
        done = []
        for group in look.groups:
            parts = query[group.query], key[group.media], value[group.media]
            asked, keys, values = (part.transpose(1, 2) for part in parts)
            seen = F.scaled_dot_product_attention(asked, keys, values, attn_mask=group.sees)
            done.append(seen.transpose(1, 2).flatten(0, 1).flatten(1))
        attended: Tensor = self.output(torch.cat(done)[look.inverse])
        return attended


class Injection(nn.Module):
    """The layers that are put into a language model; outside :meth:`reading` and :meth:`answering` they rest.

    They are no part of the language model: whatever method adapts it, they are trained whole. A token of the
    text sees all media whose markers stand before it in its prompt, and not only the last as in Flamingo:
    who asks about two pictures, or a picture and a sound, names them first. What a token sees is told apart
    by a code of the marker's number. Text without media before it passes unchanged.
    """

    def __init__(self, language: LanguageModel, settings: CrossAttention) -> None:
        """Make the layers, and hang each before its block.

        Raises:
            ValueError: Settings that do not fit the language model, or blocks that no layer can stand before.
        """
        super().__init__()
        dim = language.dim
        if dim % settings.num_heads != 0:
            raise ValueError(
                f"injection.num_heads={settings.num_heads} must divide {dim}, the size of the embeddings of "
                f"{language.name}"
            )
        blocks = _decoder_blocks(language)
        if settings.every > len(blocks):
            raise ValueError(
                f"injection.every={settings.every}: at most {len(blocks)}, the blocks of {language.name}"
            )
        chosen = blocks[settings.every - 1 :: settings.every]
        self.layers = nn.ModuleList(
            GatedCrossAttention(dim, num_heads=settings.num_heads, expansion=settings.expansion)
            for _ in chosen
        )
        self._stage = _Stage()
        for block, layer in zip(chosen, self.layers, strict=True):
            block.register_forward_pre_hook(_Before(layer, self._stage))

    @contextmanager
    def reading(self, beside: Beside, length: Int64[Tensor, " rows"], *, packed: bool) -> Iterator[None]:
        """Let a language model see media while it runs.

        Args:
            beside: The media.
            length: Tokens of each row of the text.
            packed: Whether the rows run one after the other, or each padded on the right.
        """
        row = torch.repeat_interleave(length)
        if packed:
            look = plan(beside.before[None], row[None], beside.length)
        else:
            before = pad_sequence(list(torch.split(beside.before, length.tolist())), batch_first=True)
            look = plan(before, _numbered(before), beside.length)
        with self._stage.set(_Scene(_coded(beside), look, None)):
            yield

    @contextmanager
    def answering(self, beside: Beside, length: Int64[Tensor, " rows"], *, copies: int) -> Iterator[None]:
        """Let a language model see media while it generates; new tokens see all of their row's.

        Args:
            beside: The media.
            length: Tokens of each row of the text, which are padded on the left.
            copies: Beams of each row, side by side.
        """
        rows = list(torch.split(beside.before, length.tolist()))
        prompt = pad_sequence(rows, batch_first=True, padding_side="left").repeat_interleave(copies, dim=0)
        new = beside.length.repeat_interleave(copies)[:, None]
        first, later = (plan(before, _numbered(before) // copies, beside.length) for before in (prompt, new))
        with self._stage.set(_Scene(_coded(beside), first, later)):
            yield


class _Scene:
    """What there is to see in one run of a language model."""

    def __init__(self, media: Tensor, first: Look, later: Look | None) -> None:
        self.media = media
        self.first = first
        self.later = later
        """Of each step after the first of a generation; None where there is one step only."""
        self.known: dict[nn.Module, Tensor] = {}
        """Keys and values of each layer, in a generation."""


class _Stage:
    """What the layers and the hooks in front of the blocks have in common: the scene, while there is one."""

    scene: _Scene | None = None

    @contextmanager
    def set(self, scene: _Scene) -> Iterator[None]:
        before, self.scene = self.scene, scene
        try:
            yield
        finally:
            self.scene = before


class _Before:
    """Runs a layer on what a block is about to read; an object, so that it is copied with the model."""

    def __init__(self, layer: nn.Module, stage: _Stage) -> None:
        self.layer = layer
        self.stage = stage

    def __call__(self, block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        scene = self.stage.scene
        if scene is None:
            return None
        hidden, *others = arguments
        known = scene.known.get(self.layer)
        look = scene.first if known is None or scene.later is None else scene.later
        if hidden.shape[:2] != look.shape:
            raise ValueError(
                f"a block reads {tuple(hidden.shape[:2])} tokens where the text has {look.shape}: with "
                "injection nothing else may stand among them, so do not adapt the language model by prompts"
            )
        hidden, known = self.layer(hidden, scene.media, look, known)
        if scene.later is not None:
            scene.known[self.layer] = known
        return hidden, *others


def _numbered(before: Int64[Tensor, "batch tokens"]) -> Int64[Tensor, "batch tokens"]:
    """The number of its row at each place of a batch."""
    return torch.arange(len(before), device=before.device)[:, None].expand_as(before)


def _coded(beside: Beside) -> Float[Tensor, "media dim"]:
    """Media tokens, with sines and cosines of their marker's number (Vaswani et al. 2017, section 3.5)."""
    dim = beside.tokens.shape[1]
    steps = torch.arange(0, dim, 2, device=beside.number.device, dtype=torch.float64)
    angle = beside.number[:, None] * torch.exp(steps * (-math.log(10000) / dim))
    code = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]
    return beside.tokens + code.to(beside.tokens.dtype)


@torch.no_grad()
def _decoder_blocks(language: LanguageModel) -> list[nn.Module]:
    """The blocks of a language model, in order.

    Raises:
        ValueError: They do not read one sequence of embeddings, one block after the other.
    """
    blocks = [block.module for block in find_blocks(language)]
    read: list[tuple[nn.Module, Any]] = []

    def note(block: nn.Module, arguments: tuple[Any, ...]) -> None:
        read.append((block, getattr(arguments[0], "shape", None) if arguments else None))

    embedded = language.embed(torch.arange(3))[None]
    training = language.training
    language.eval()
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(note).remove)
        language.backbone(inputs_embeds=embedded, use_cache=False)
    language.train(training)
    if not blocks or read != [(block, embedded.shape) for block in blocks]:
        raise ValueError(
            f"{language.name} does not run a sequence through its blocks one by one, so nothing can be put "
            "between them: leave injection out"
        )
    return blocks
