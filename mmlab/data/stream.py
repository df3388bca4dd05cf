"""Order -> bytes -> samples -> batches."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from torch import Tensor

from mmlab.batch import NOBODY, Batch, Modality, Skip
from mmlab.data.collate import Sample, collate
from mmlab.data.decode import BrokenMember
from mmlab.data.fields import read_field
from mmlab.data.order import Order
from mmlab.data.randomness import draw_seed
from mmlab.data.reader import Reader, read_asked, with_asked
from mmlab.data.samples import RawSample, SampleSet
from mmlab.data.text import TextReader


class Known(NamedTuple):
    """Fields of what is known of a sample's answer."""

    references: tuple[str, ...] = ()
    """What it may be."""
    kind_by: str | None = None
    """What kind of question it is for."""
    note: str | None = None
    """What more an answer is made from."""


class Stream:
    """One rank's share of every global batch."""

    def __init__(
        self,
        shards: SampleSet,
        order: Order,
        readers: Sequence[Reader],
        *,
        seed: int | None,
        rank: int = 0,
        ranks: int = 1,
        group_by: str = "caption",
        known: Known | None = None,
    ) -> None:
        """Settings.

        Args:
            shards: The samples that `order` counts.
            order: Which sample stands where.
            readers: One for each modality to read.
            seed: Of the random numbers of augmentation, in training. None: evaluation, which draws none.
            rank: Of this process.
            ranks: Processes that share each batch.
            group_by: What makes two samples positives of each other: `caption`, the same first caption but
                for case and spaces; `key`, the same key; or a field such as `json.group`. Samples without it
                are alone. Here and in `known`, `each.answer` is a field of the turn that evaluation asks.
            known: What else answers are compared by; None: nothing.
        """
        self.shards = shards
        self.order = order
        self._remote = shards.remote
        self._coming: dict[int, dict[int, None]] = {}
        # An order keeps the windows that it is in; looking ahead would throw them out again and again.
        self._scout = copy.deepcopy(order) if self._remote else order
        self.readers = tuple(readers)
        self.text = next((r.raw for r in readers if isinstance(r.raw, TextReader)), None)
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.group_by = group_by
        self.known = Known() if known is None else known

    def batch(self, step: int) -> Batch:
        """This rank's share of global batch `step`: a pure function, whatever was read before."""
        places = self.order.places(step, rank=self.rank, ranks=self.ranks)
        samples = [
            self._sample(int(shard), int(sample), int(place))
            for shard, sample, place in zip(*places, strict=True)
        ]
        return collate(
            samples,
            self.readers,
            sources=self.shards.sources,
            references=len(self.known.references) > 0,
            kinds=self.known.kind_by is not None,
            notes=self.known.note is not None,
        )

    def announce(self, step: int, *, now: int) -> None:
        """Say at step `now` that another comes up, for what must be fetched ahead."""
        if not self._remote:
            return
        places = self._scout.places(step, rank=self.rank, ranks=self.ranks)
        self._coming[step] = dict.fromkeys(shard for shard in places.shard.tolist() if shard != NOBODY)
        self._coming = {step: shards for step, shards in self._coming.items() if step >= now}
        self.shards.announce(
            list(dict.fromkeys(shard for coming in self._coming.values() for shard in coming))
        )

    def _sample(self, shard: int, sample: int, place: int) -> Sample:
        if shard == NOBODY:
            return Sample(key="", place=place, group=NOBODY, valid=False)
        rng = None if self.seed is None else Random(draw_seed(self.seed, place))
        at = "shard"
        try:
            raw = self.shards.read(shard, sample)
            rows: dict[Modality, tuple[Tensor, ...]] = {}
            for reader in self.readers:
                at = reader.modality.value
                rows[reader.modality] = reader.read(raw.members, rng)
            at = "sample"
            for reader in self.readers:
                reader.check(rows)
            at = "group"
            group = self._group(raw, shard, sample)
            at = "references"
            references = self._references(raw.members)
            at = "kind"
            kind = self._kind(raw.members)
            at = "note"
            note = self._note(raw.members)
        except BrokenMember as error:
            key = self._key(shard, sample)
            skip = Skip(key, f"{at}: {error}")
            source = self.shards.source(shard)
            return Sample(key=key, place=place, group=NOBODY, valid=False, skip=skip, source=source)
        return Sample(
            key=raw.key,
            place=place,
            group=group,
            rows=rows,
            source=self.shards.source(shard),
            references=references,
            kind=kind,
            note=note,
        )

    def _references(self, members: Mapping[str, bytes]) -> tuple[str, ...]:
        """What the answer may be."""
        members = with_asked(members, self.known.references, self.readers)
        found = [value for field in self.known.references for value in read_field(members, field)]
        try:
            return tuple(value if isinstance(value, str) else json.dumps(value) for value in found)
        except RecursionError:
            raise BrokenMember("JSON nested too deeply") from None

    def _kind(self, members: Mapping[str, bytes]) -> str:
        """The kind of sample; a slash would make another name of a score."""
        if self.known.kind_by is None:
            return ""
        found = read_asked(members, self.known.kind_by, self.readers)
        return str(found[0]).replace("/", "-") if found else ""

    def _note(self, members: Mapping[str, bytes]) -> str:
        """What more an answer is made from: a text as it is, other values as JSON."""
        found = [] if self.known.note is None else read_asked(members, self.known.note, self.readers)
        if not found or isinstance(found[0], str):
            return found[0] if found else ""
        try:
            return json.dumps(found[0])
        except RecursionError:
            raise BrokenMember("JSON nested too deeply") from None

    def _key(self, shard: int, sample: int) -> str:
        """The key of a sample that cannot be read; its line of the index may be broken too."""
        try:
            return self.shards.key(shard, sample)
        except BrokenMember:
            return f"{self.shards.names[shard]}#{sample}"

    def _group(self, raw: RawSample, shard: int, sample: int) -> int:
        if self.group_by == "key":
            return stable_hash("key", raw.key)
        if self.group_by != "caption":
            values = read_asked(raw.members, self.group_by, self.readers)
        else:
            captions = [] if self.text is None else self.text.captions(raw.members)
            values = [" ".join(caption.casefold().split()) for caption in captions[:1]]
        if not values:
            return stable_hash("sample", f"{shard}/{sample}")
        try:
            return stable_hash("value", json.dumps(values, sort_keys=True))
        except RecursionError:
            raise BrokenMember("JSON nested too deeply") from None


def stable_hash(kind: str, text: str) -> int:
    """63 bits of BLAKE2b: the same in every process and release, and a positive int64."""
    digest = hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
