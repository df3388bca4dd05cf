"""Which samples a run reads: splits of shards, what is joined to them, and mixtures of sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from mmlab.assets.cache import cache_dir
from mmlab.data.chained import ChainedSet
from mmlab.data.joined import JoinedSet
from mmlab.data.mixture import Per
from mmlab.data.remote import RemoteShards
from mmlab.data.samples import SampleSet
from mmlab.data.shards import ShardSet
from mmlab.data.some_of import SomeOf
from mmlab.data.source import Source

Split = Literal["train", "val", "test", "predict"]
Patterns = str | list[str]


@dataclass(frozen=True)
class Splits:
    """Which shards are what: paths, patterns (`*`, `?`), ranges (`train-{000000..000099}.tar`), addresses.

    Paths are relative to the source's folder where there is a source. There, a split that is left out is
    `<split>-*.tar`, if there are any; without a source, a split that is left out does not exist.
    """

    train: Patterns | None = None
    val: Patterns | None = None
    test: Patterns | None = None
    predict: Patterns | None = None
    join: dict[str, Patterns] | None = None
    """More members for the samples of a split, from other shards with the same keys, such as sounds or
    precomputed features: `{train: "audio-*.tar"}`. Relative to the working directory."""
    train_share: float = 1.0
    """Share of the training samples that is used, above 0 and at most 1: how much data does it take?"""
    share_seed: int = 0
    """Which samples these are; of one seed, a smaller share is part of a larger one."""

    def __post_init__(self) -> None:
        if not 0 < self.train_share <= 1:
            raise ValueError(
                f"data.splits.train_share={self.train_share}: it is a share of the training samples: above "
                "0, at most 1"
            )


_SPLITS = Splits()


@dataclass(frozen=True)
class Part:
    """One source of a mixture: what `data.source` and `data.splits` are for a run with one."""

    source: Source | None = None
    """A public data set that brings its shards; None: `splits` says where they are."""
    splits: Splits = _SPLITS
    """Which shards are what. Evaluation reads the parts one after the other."""
    weight: float | None = None
    """Share of the training samples, relative to the other parts' weights; give all or none."""


class Mixture:
    """Several sources: training draws from each in a given share, evaluation reads all.

    A source may lack modalities. Losses and metrics are logged for each source too.
    """

    def __init__(self, parts: dict[str, Part], *, temperature: float = 1.0, per: Per = "sample") -> None:
        """Settings.

        Args:
            parts: The sources, by name.
            temperature: Without weights, a source of n samples has the weight n^(1 / temperature): 1 is in
                proportion to size, more raises small sources, up to equal shares (Devlin et al. 2019, for the
                languages of multilingual BERT).
            per: Whether sources are mixed within each batch (`sample`) or a whole batch is from one
                (`batch`).

        Raises:
            ValueError: No parts, or a temperature that is not positive.
        """
        if not parts:
            raise ValueError("a mixture needs parts: name at least one source")
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} of the mixture: must be above 0")
        self.parts = parts
        self.temperature = temperature
        self.per: Per = per

    def shares(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Weight of each source that training draws from.

        Args:
            counts: Training samples of each.

        Raises:
            ValueError: Weights for some only, or not positive.
        """
        given = {name: self.parts[name].weight for name in counts}
        lacking = [name for name, weight in given.items() if weight is None]
        if lacking and len(lacking) < len(given):
            raise ValueError(
                f"source {lacking[0]!r} of the mixture has no weight, but others have: give all or none"
            )
        for name, weight in given.items():
            if weight is not None and weight <= 0:
                raise ValueError(
                    f"weight {weight} of source {name!r}: must be above 0; leave out a source that is not "
                    "to be drawn from"
                )
        return {
            name: float(count) ** (1 / self.temperature) if given[name] is None else float(given[name] or 0)
            for name, count in counts.items()
        }


def open_samples(
    source: Source | Mixture | None, splits: Splits, split: Split, *, remote: RemoteShards
) -> SampleSet | None:
    """The samples of a split, or None where it does not exist; prepares sources and indexes shards.

    Args:
        source: Where the shards are from; None: `splits` says where they are.
        splits: Which shards are what.
        split: Of them, which.
        remote: How shards with an address are read.

    Raises:
        ValueError: Nothing matches a pattern, or what is joined has other keys.
    """
    if not isinstance(source, Mixture):
        return _open(source, splits, split, remote)
    found = {name: _open(part.source, part.splits, split, remote) for name, part in source.parts.items()}
    parts = {name: samples for name, samples in found.items() if samples is not None}
    return ChainedSet(parts, sources=tuple(source.parts)) if parts else None


def _open(source: Source | None, splits: Splits, split: Split, remote: RemoteShards) -> SampleSet | None:
    patterns: Patterns | None = getattr(splits, split)
    if source is None:
        if patterns is None:
            return None
        samples: SampleSet = ShardSet.find(patterns, remote=remote)
    else:
        folder = _prepare(source)
        if patterns is None:
            patterns = f"{split}-*.tar"
            if not any(folder.glob(patterns)):
                return None
        samples = ShardSet.find(patterns, folder=folder, remote=remote)
    if splits.join is not None and split in splits.join:
        samples = JoinedSet(samples, ShardSet.find(splits.join[split], remote=remote))
    if split == "train" and splits.train_share < 1:
        samples = SomeOf(samples, share=splits.train_share, seed=splits.share_seed)
    return samples


def _prepare(source: Source) -> Path:
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{source.name}.lock"):
        return source.prepare()
