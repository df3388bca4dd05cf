"""From settings to orders: what is drawn in which shares and sizes, and what cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from mmlab.data.buckets import Bucketing, measure_lengths
from mmlab.data.chained import ChainedSet
from mmlab.data.lanes import WINDOW, LaneDraws, Lanes, Subset, Unit, check_divides
from mmlab.data.mixture import Ingredient, MixedOrder
from mmlab.data.order import Order, TrainingOrder
from mmlab.data.parts import Mixture
from mmlab.data.randomness import hash_labels
from mmlab.data.reader import Reader
from mmlab.data.remote import RemoteShards
from mmlab.data.samples import SampleSet

_REMOTE = RemoteShards()
_FILLED = 8
"""Samples that a lane of an ingredient has at least; what has fewer repeats its samples."""


@dataclass(frozen=True)
class Loading:
    """How batches are formed and built."""

    eval_batch_size: int | None = None
    """Global batch size of evaluation; None: that of training."""
    num_workers: int = 0
    """Processes of each rank that build batches; must divide the lane groups. 0: the rank builds its own."""
    seed: int = 0
    """Of the order of samples and of augmentation."""
    group_by: str = "caption"
    """What makes two samples positives of each other: `caption`, `key`, or a field such as `json.group`."""
    references: tuple[str, ...] = ()
    """Fields that hold what an answer is compared with in evaluation, and what a classifier over a list of
    answers learns from (`json.answers`; `each.answers` of the turn that evaluation asks)."""
    kind_by: str | None = None
    """Field that says what kind of question a sample is (`json.answer_type`): in evaluation answers are also
    scored apart by its first value, as `<score>@<kind>`."""
    note: str | None = None
    """Field of what more an answer is made from, for tasks that say so (`json`, the whole member)."""
    lanes: Lanes | None = None
    """How an epoch is cut; the number of ranks must divide `lanes.ranks`. None: chosen by sample count and
    batch size, and for the ranks where these do not suit. A run resumes with the lanes that it began with, on
    any number of ranks and workers that divides them."""
    unit: Unit = "auto"
    """What is permuted: all samples, or whole shards and windows of samples; auto: samples up to 2**20, but
    not where they are remote."""
    window: int = WINDOW
    """Samples that are permuted together, where whole shards are permuted."""
    bucketing: Bucketing | None = None
    """Training batches of samples of like length, within a budget of tokens or seconds. None: by chance."""
    remote: RemoteShards = _REMOTE
    """How shards with an address (`https://`, `s3://`, ...) are fetched and kept."""
    features: str | None = None
    """Folder of what frozen encoders gave (`mmlab data features`): read instead of running them."""
    exact: bool = True
    """Whether a resumed run is refused where shards, batch size, seed or lanes differ from its checkpoint's.
    False: it goes on at the same step of the order that now is, so samples may repeat or miss their turn."""


class _Bucket(NamedTuple):
    """Training samples that may share a batch: all, or those of like length."""

    above: int
    """Length that all exceed."""
    bound: int | None
    """Their greatest length; None: lengths do not count."""
    batch_size: int
    """The most samples of a global batch."""


class _Share(NamedTuple):
    """A source's part of a mixture, or all there is."""

    name: str
    samples: SampleSet
    first_shard: int
    first_sample: int
    share: float


def plan_training(
    samples: SampleSet,
    *,
    batch_size: int,
    loading: Loading,
    mixture: Mixture | None,
    readers: Sequence[Reader],
    ranks: int = 1,
) -> Order:
    """The order of training samples.

    Args:
        samples: Of the training split; of a mixture, chained.
        batch_size: Global batch size, over all ranks; with a budget, the largest.
        loading: Settings.
        mixture: The sources' shares; None: there is one.
        readers: What is read; bucketing measures with the reader of its modality.
        ranks: That the run begins with, for the choice of lanes.

    Raises:
        ValueError: Too few samples, or settings that do not fit together; the text says what would.
    """
    total = int(samples.counts.sum())
    bucketing = loading.bucketing
    if total < batch_size and (bucketing is None or bucketing.budget is None):
        raise ValueError(
            f"{total} training samples are fewer than one global batch of {batch_size}: lower "
            f"data.batch_size to at most {total}"
        )
    if loading.unit == "auto" and samples.remote:
        # Else every batch would need as many shards as it has samples, and the cache could hold all or none.
        loading = replace(loading, unit="shard")
    if mixture is None and bucketing is None:
        return TrainingOrder(
            samples.counts,
            batch_size=batch_size,
            seed=loading.seed,
            lanes=loading.lanes or Lanes.choose(total, batch_size, ranks=ranks),
            unit=loading.unit,
            window=loading.window,
        )
    per = "batch" if mixture is None else mixture.per
    if bucketing is not None and per == "sample":
        raise ValueError(
            "samples of like length are batched within one source: set data.source.init_args.per to batch, "
            "or leave data.loading.bucketing out"
        )
    lengths = None
    buckets = [_Bucket(0, None, batch_size)]
    if bucketing is not None:
        lengths, buckets = _bucket(samples, bucketing, batch_size, readers)
    least = min(bucket.batch_size for bucket in buckets)
    lanes = loading.lanes
    if lanes is None:
        smallest = max(size for size in range(1, least + 1) if batch_size % size == 0)
        lanes = Lanes.choose(total, smallest, ranks=ranks)
    check_divides(lanes.ranks, "virtual ranks (lanes.ranks)", batch_size, "batch_size")
    if least < lanes.ranks:
        raise ValueError(
            f"data.loading.bucketing.budget leaves {least} samples for a batch of the longest, fewer than "
            f"lanes.ranks = {lanes.ranks}: raise it, or lower data.loading.lanes.ranks"
        )
    ingredients = [
        ingredient
        for share in _shares(samples, mixture)
        for ingredient in _ingredients(share, buckets, lengths, lanes, loading)
    ]
    return MixedOrder(ingredients, lanes=lanes, seed=loading.seed, per=per)


def keep_lanes(loading: Loading, state: Mapping[str, Any]) -> Loading:
    """Settings with the lanes that a checkpoint was trained with, where they leave the choice.

    Another number of ranks might choose others.

    Args:
        loading: Settings.
        state: Of the data, in the checkpoint.
    """
    lanes = state.get("order", {}).get("lanes")
    if loading.lanes is not None or lanes is None:
        return loading
    return replace(loading, lanes=Lanes.read(lanes))


def check_room(samples: SampleSet, lanes: Lanes, *, loading: Loading, nodes: int) -> None:
    """Raise ValueError where the cache cannot hold the remote shards that a node reads at a time.

    Each lane is in the middle of one shard; a smaller cache would fetch shards anew for every batch.
    """
    if not samples.remote:
        return
    total, largest = int(samples.sizes.sum()), int(samples.sizes.max())
    lanes_of_node = math.ceil(lanes.count / nodes)
    needed = min(total, lanes_of_node * largest) if loading.unit != "sample" else total
    if needed > loading.remote.cache_bytes:
        raise ValueError(
            f"a node reads {lanes_of_node} lanes at a time, in shards of up to {largest / 1e9:.3g} GB, but "
            f"data.loading.remote.cache_bytes is {loading.remote.cache_bytes / 1e9:.3g} GB: raise it to "
            f"{needed}, or set data.loading.lanes to fewer ({lanes.ranks} x {lanes.groups} now)"
        )


def _bucket(
    samples: SampleSet, bucketing: Bucketing, batch_size: int, readers: Sequence[Reader]
) -> tuple[Int32[np.ndarray, " samples"], list[_Bucket]]:
    """Measure the samples and say which share batches."""
    reader = next((reader for reader in readers if reader.modality == bucketing.by), None)
    if reader is None:
        raise ValueError(
            f"data.loading.bucketing.by is {bucketing.by}, which is not read: add data.{bucketing.by}"
        )
    lengths = measure_lengths(samples, reader)
    bounds = bucketing.bounds(lengths).tolist()
    return lengths, [
        _Bucket(above, bound, bucketing.batch_size(bound, reader=reader, most=batch_size))
        for above, bound in pairwise([0, *bounds])
    ]


def _shares(samples: SampleSet, mixture: Mixture | None) -> Iterator[_Share]:
    """The sources that have training samples."""
    if mixture is None:
        yield _Share("all", samples, 0, 0, 1.0)
        return
    assert isinstance(samples, ChainedSet)
    counts = {name: int(part.counts.sum()) for name, part in samples.parts.items()}
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        raise ValueError(f"source {empty[0]!r} of the mixture has no training samples: leave it out")
    shares = mixture.shares(counts)
    shard = sample = 0
    for name, part in samples.parts.items():
        yield _Share(name, part, shard, sample, shares[name])
        shard, sample = shard + len(part.counts), sample + counts[name]


def _ingredients(
    share: _Share,
    buckets: Sequence[_Bucket],
    lengths: Int32[np.ndarray, " samples"] | None,
    lanes: Lanes,
    loading: Loading,
) -> Iterator[Ingredient]:
    """What a source gives to each bucket that it has samples for."""
    starts = np.concatenate([[0], np.cumsum(share.samples.counts)])
    total = int(starts[-1])
    for bucket in buckets:
        chosen: Subset | np.ndarray = share.samples.counts
        count, name = total, share.name
        if lengths is not None and bucket.bound is not None:
            own = lengths[share.first_sample : share.first_sample + total]
            chosen = Subset(np.flatnonzero((own > bucket.above) & (own <= bucket.bound)), starts)
            count, name = len(chosen.numbers), f"{share.name}, length to {bucket.bound}"
        if count == 0:
            continue
        size = bucket.batch_size // lanes.ranks * lanes.ranks
        if bucket.bound is not None:  # no batch is larger than its bucket
            size = max(lanes.ranks, min(size, count // lanes.ranks * lanes.ranks))
        draws = LaneDraws(
            chosen,
            # Another seed for each, or sets of one size would be drawn in one order.
            seed=hash_labels(loading.seed, share.first_shard, bucket.above),
            lanes=lanes,
            unit=loading.unit,
            window=loading.window,
            copies=max(1, math.ceil(_FILLED * lanes.count / count)),
        )
        yield Ingredient(name, draws, share.share * count / total, size, share.first_shard)
