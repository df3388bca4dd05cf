"""Text and other modalities together: what an encoder gives stands where the prompt names it, or beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlab.batch import MARKERS, NOBODY, Input, Modality
from mmlab.models.encoders.encoder import Encoded


class Media(NamedTuple):
    """All rows of one modality, as a language model reads them."""

    encoded: Encoded
    inputs: Input


class Beside(NamedTuple):
    """Media that stand beside the text, for what looks at them from there."""

    tokens: Float[Tensor, "media dim"]
    """Those of all rows, one after the other, in the order of their markers; one at least, even of nobody."""
    length: Int64[Tensor, " rows"]
    """Media tokens of each row."""
    number: Int64[Tensor, " media"]
    """Which marker of its row each stands for, 0 the first."""
    before: Int64[Tensor, " tokens"]
    """How many media tokens of its row stand before each token of the text."""


class Interleaved(NamedTuple):
    """The rows of a text input, one after the other without padding, with media in their places or beside."""

    embedded: Float[Tensor, "tokens dim"]
    length: Int64[Tensor, " rows"]
    """Tokens of each row."""
    at: Int64[Tensor, " targets"]
    """The token before each target: its successor is to be said."""
    target: Int64[Tensor, " targets"]
    """Token ids to be said."""
    row: Int64[Tensor, " targets"]
    """Row of each target."""
    beside: Beside | None = None
    """None where media stand among the text."""


class _Found(NamedTuple):
    """The ids and markers of all rows, one after the other, and the media tokens that these stand for."""

    ids: Int64[Tensor, " ids"]
    row: Int64[Tensor, " ids"]
    is_target: Bool[Tensor, " ids"]
    size: Int64[Tensor, " ids"]
    """Tokens that each stands for, 1 where it is no marker."""
    first: Int64[Tensor, " ids"]
    """Of a marker, where its tokens begin among all of `tokens`."""
    tokens: list[Float[Tensor, "media dim"]]
    """What the model has encoded, by modality."""


Embed = Callable[[Int64[Tensor, " tokens"]], Float[Tensor, "tokens dim"]]


def interleave(text: Input, embed: Embed, media: Mapping[Modality, Media]) -> Interleaved:
    """Put the tokens of media where :data:`mmlab.batch.MARKERS` stand.

    The n-th marker of a modality in a row stands for the n-th row of that modality that the row's sample
    owns. Media that no marker names get a gradient of zero, so that every rank trains the same parameters.

    Args:
        text: Token ids and markers; the data have seen to it that each marker has its media.
        embed: Embeddings of token ids.
        media: What the model has encoded; a marker of any other modality is an error of the config.

    Raises:
        ValueError: A marker of a modality that the model does not read.
    """
    found = _find(text, media)
    words = embed(found.ids.clamp(min=0))
    table = torch.cat([words, *(tokens.to(words.dtype) for tokens in found.tokens)])
    own = torch.arange(len(found.ids), device=words.device)
    first = torch.where(found.ids < 0, found.first + len(words), own)
    return Interleaved(
        embedded=table[_ranges(first, found.size)],
        length=_per_row(found.size, found.row, text),
        at=(found.size.cumsum(0) - found.size)[found.is_target] - 1,
        target=found.ids[found.is_target],
        row=found.row[found.is_target],
    )


def put_beside(text: Input, embed: Embed, media: Mapping[Modality, Media]) -> Interleaved:
    """Take markers out of the text, and put their media beside it; as for the rest :func:`interleave`.

    Raises:
        ValueError: A marker of a modality that the model does not read; a row in which nothing but markers
            stands before what is to be said.
    """
    found = _find(text, media)
    marker = found.ids < 0
    begins = torch.nn.functional.pad(found.row[~marker].diff(), (1, 0), value=1) > 0
    length = _per_row((~marker).long(), found.row, text)
    if bool((length == 0).any()) or bool((begins & found.is_target[~marker]).any()):
        raise ValueError(
            "a prompt has no word before what is to be said, only media, which are no tokens of a text that "
            "looks at them: put words before the answer, or leave injection out"
        )
    index = _ranges(found.first[marker], found.size[marker])
    of = torch.repeat_interleave(found.row[marker], found.size[marker])
    number = torch.repeat_interleave(_nth(found.row[marker]), found.size[marker])
    blank = index.new_zeros(1)
    media_length = torch.zeros_like(length).index_add_(0, of, torch.ones_like(of))
    earlier = (
        torch.where(marker, found.size, 0).cumsum(0) - (media_length.cumsum(0) - media_length)[found.row]
    )
    is_target = found.is_target[~marker]
    return Interleaved(
        embedded=embed(found.ids[~marker]),
        length=length,
        at=is_target.nonzero().flatten() - 1,
        target=found.ids[found.is_target],
        row=found.row[found.is_target],
        beside=Beside(
            tokens=torch.cat(found.tokens)[index if len(index) > 0 else blank],
            length=media_length,
            number=number if len(index) > 0 else blank,
            before=earlier[~marker],
        ),
    )


def _find(text: Input, media: Mapping[Modality, Media]) -> _Found:
    """Find what each marker stands for."""
    mask, length = text.mask, text.length
    assert mask is not None, "text has lengths"
    assert length is not None, "text has lengths"
    ids = text.data[mask]
    row = torch.repeat_interleave(length)
    sample = _samples(text.owner)[row]
    count, first = torch.ones_like(ids), torch.zeros_like(ids)
    tokens: list[Tensor] = []
    offset = 0
    known = ids >= 0
    for modality, (encoded, inputs) in media.items():
        marked = (ids == MARKERS[modality]).nonzero().flatten()
        known[marked] = True
        of = _first_rows(inputs.owner)[sample[marked]] + _nth(row[marked])
        counts = encoded.mask.sum(dim=1)
        starts = counts.cumsum(0) - counts + offset
        count[marked], first[marked] = counts[of], starts[of]
        tokens.append(encoded.tokens[encoded.mask])
        offset += len(tokens[-1])
    if not bool(known.all()):
        names = {MARKERS[modality]: modality.value for modality in MARKERS}
        name = names[int(ids[~known][0])]
        raise ValueError(
            f"a prompt names <{name}>, but the model reads no {name}: add it to the model and the data, or "
            "take it out of the prompt"
        )
    is_target = torch.zeros_like(known) if text.target is None else text.target[mask]
    return _Found(ids, row, is_target, count, first, tokens)


def _ranges(first: Int64[Tensor, " ranges"], count: Int64[Tensor, " ranges"]) -> Int64[Tensor, " members"]:
    """The numbers first, first + 1, ..., so many for each."""
    of = torch.repeat_interleave(count)
    return first[of] + torch.arange(len(of), device=of.device) - (count.cumsum(0) - count)[of]


def _per_row(count: Int64[Tensor, " ids"], row: Int64[Tensor, " ids"], text: Input) -> Int64[Tensor, " rows"]:
    """Sum what belongs to each row."""
    return torch.zeros_like(text.owner).index_add_(0, row, count)


def questions(text: Input) -> Input:
    """What stands before the last answer of each row, or all of a row without one."""
    if text.target is None:
        return text
    assert text.length is not None, "text has lengths"
    before = torch.nn.functional.pad(text.target, (1, 0))[:, :-1]
    starts = text.target & ~before
    step = torch.arange(text.target.shape[1], device=text.target.device)
    last = torch.where(starts, step, -1).amax(dim=1)
    length = torch.where(last < 0, text.length, last)
    return Input(text.data, text.owner, text.present, length)


def _samples(owner: Int64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
    """The sample in whose place each row stands, its own or, for a row of nobody, the one that has none."""
    later = (owner[1:] != owner[:-1]) | (owner[1:] == NOBODY)
    return torch.nn.functional.pad(later.long().cumsum(0), (1, 0))


def _first_rows(owner: Int64[Tensor, " rows"]) -> Int64[Tensor, " samples"]:
    """The first row of each sample."""
    sample = _samples(owner)
    return torch.searchsorted(sample, torch.arange(int(sample[-1]) + 1, device=owner.device))


def _nth(row: Int64[Tensor, " markers"]) -> Int64[Tensor, " markers"]:
    """How many markers of the same row stand before each."""
    place = torch.arange(len(row), device=row.device)
    return place - torch.searchsorted(row, row)
