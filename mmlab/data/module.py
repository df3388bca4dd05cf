"""The data of a run as Lightning asks for it: shards, orders, loaders, and the checks before training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn

from mmlab.assets.cache import cache_dir
from mmlab.data.audio import AudioReader
from mmlab.data.decode import BrokenMember
from mmlab.data.exhibit import Exhibit, exhibit
from mmlab.data.image import ImageReader
from mmlab.data.loader import Loader
from mmlab.data.order import WINDOW, EvaluationOrder, Lanes, Order, TrainingOrder
from mmlab.data.reader import Reader
from mmlab.data.samples import RawSample
from mmlab.data.shards import ShardSet
from mmlab.data.signal import SignalReader
from mmlab.data.source import Source
from mmlab.data.stream import Stream
from mmlab.data.text import TextReader

Split = Literal["train", "val", "test", "predict"]

_STAGES: dict[TrainerFn, tuple[Split, ...]] = {
    TrainerFn.FITTING: ("train", "val"),
    TrainerFn.VALIDATING: ("val",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("predict",),
}
_LOOKED_AT = 256
"""Samples, spread over the training shards, that are searched for each modality before training."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Which shards are what: paths, patterns (`*`, `?`) or ranges (`train-{000000..000099}.tar`).

    They are relative to the source's folder where there is a source. There, a split that is left out is
    `<split>-*.tar`, if there are any; without a source, a split that is left out does not exist.
    """

    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    predict: str | list[str] | None = None


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
    lanes: Lanes | None = None
    """How an epoch is cut; the number of ranks must divide `lanes.ranks`. None: chosen by sample count and
    batch size. A run resumes with the lanes that it began with, on any valid number of ranks and workers."""
    unit: Literal["auto", "sample", "shard"] = "auto"
    """What is permuted: all samples, or whole shards and windows of samples; auto: samples up to 2**20."""
    window: int = WINDOW
    """Samples that are permuted together, where whole shards are permuted."""


_SPLITS = Splits()
_LOADING = Loading()


class ShardData(LightningDataModule):
    """Shards -> batches, for every stage; resumes exactly, on any valid number of ranks and workers."""

    def __init__(
        self,
        *,
        batch_size: int,
        source: Source | None = None,
        splits: Splits = _SPLITS,
        image: ImageReader | None = None,
        text: TextReader | None = None,
        audio: AudioReader | None = None,
        signal: SignalReader | None = None,
        loading: Loading = _LOADING,
    ) -> None:
        """Settings.

        Args:
            batch_size: Global batch size, over all ranks.
            source: A public data set that brings its shards; None: `splits` says where they are.
            splits: Which shards are what.
            image: How pictures are read; None: they are not.
            text: How text is read; None: it is not.
            audio: How sounds are read; None: they are not.
            signal: How other signals are read; None: they are not.
            loading: How batches are formed and built.
        """
        super().__init__()
        self.batch_size = batch_size
        self.source = source
        self.splits = splits
        self.readers: tuple[Reader, ...] = tuple(r for r in (image, text, audio, signal) if r is not None)
        self.loading = loading
        if not self.readers:
            raise ValueError("the data read no modality: set at least one of image, text, audio, signal")
        self._shards: dict[Split, ShardSet] = {}
        self._orders: dict[Split, Order] = {}
        self._loaders: list[Loader] = []

    def prepare_data(self) -> None:
        """Fetch and convert the source, index the shards, fetch tokenizers: in one process of each node."""
        for split in ("train", "val", "test", "predict"):
            self._find(split)
        for reader in self.readers:
            reader.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the shards of a stage and check all that can be checked before it runs.

        Raises:
            ValueError: A split, a modality or samples are missing, or ranks, workers or batch sizes do not
                divide what they must; the text says which values are valid.
        """
        ranks, _ = self._ranks()
        stage = TrainerFn.FITTING if stage is None else TrainerFn(stage)
        for split in _STAGES[stage]:
            shards = self._find(split)
            if shards is None:
                if split == "val" and stage is TrainerFn.FITTING:
                    # Lightning validates whenever this method is not the base class's own.
                    self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
                    continue
                raise ValueError(f"no {split} shards: set data.splits.{split}, or a source that has them")
            damaged = [path for path, info in zip(shards.paths, shards.infos, strict=True) if info.damage]
            if damaged:
                _log.warning(
                    "%d of %d %s shards are cut off or damaged (%s); their complete samples are used",
                    len(damaged), len(shards), split, damaged[0],
                )  # fmt: skip
            order = self._order(split, shards)
            order.check(ranks, self.loading.num_workers)
            if split == "train":
                self._check_modalities(shards, order)
            self._shards[split], self._orders[split] = shards, order

    def _find(self, split: Split) -> ShardSet | None:
        """The shards of a split, or None where it does not exist."""
        patterns: str | Sequence[str] | None = getattr(self.splits, split)
        if self.source is None:
            return None if patterns is None else ShardSet.find(patterns)
        folder = self._folder(self.source)
        if patterns is None:
            patterns = f"{split}-*.tar"
            if not any(folder.glob(patterns)):
                return None
        return ShardSet.find(patterns, folder=folder)

    def _folder(self, source: Source) -> Path:
        locks = cache_dir() / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{source.name}.lock"):
            return source.prepare()

    def _order(self, split: Split, shards: ShardSet) -> Order:
        samples = int(shards.counts.sum())
        if samples == 0:
            raise ValueError(f"the {split} shards hold no samples ({shards.paths[0]}, ...)")
        settings = self.loading
        if split != "train":
            size = self.batch_size if settings.eval_batch_size is None else settings.eval_batch_size
            return EvaluationOrder(shards.counts, batch_size=size)
        if samples < self.batch_size:
            raise ValueError(
                f"{samples} training samples are fewer than one global batch of {self.batch_size}: lower "
                f"data.batch_size to at most {samples}"
            )
        return TrainingOrder(
            shards.counts,
            batch_size=self.batch_size,
            seed=settings.seed,
            lanes=settings.lanes,
            unit=settings.unit,
            window=settings.window,
        )

    def _check_modalities(self, shards: ShardSet, order: Order) -> None:
        """Raise ValueError for a modality that none of the samples looked at has."""
        numbers = np.unique(np.linspace(0, order.samples - 1, _LOOKED_AT).astype(np.int64))
        stored = EvaluationOrder(shards.counts, batch_size=1)
        missing = list(self.readers)
        for number in numbers:
            if not missing:
                return
            places = stored.places(int(number))
            try:
                members = shards.read(int(places.shard[0]), int(places.sample[0])).members
            except BrokenMember:  # counted when its turn comes
                continue
            missing = [reader for reader in missing if not reader.finds(members)]
        if missing:
            extensions = ", ".join(f"{name} ({count})" for name, count in shards.extensions.items())
            raise ValueError(
                f"no {missing[0].modality} in the training shards, by {missing[0].describe()}; they have "
                f"{extensions}: correct data.{missing[0].modality}, or leave it out"
            )

    def train_dataloader(self) -> Loader:
        """Training batches, from where the run stands."""
        return self._load("train")

    def val_dataloader(self) -> Loader:
        """Validation batches."""
        return self._load("val")

    def test_dataloader(self) -> Loader:
        """Test batches."""
        return self._load("test")

    def predict_dataloader(self) -> Loader:
        """Batches to predict."""
        return self._load("predict")

    def _load(self, split: Split) -> Loader:
        ranks, rank = self._ranks()
        stream = Stream(
            self._shards[split],
            self._orders[split],
            self.readers,
            seed=self.loading.seed if split == "train" else None,
            rank=rank,
            ranks=ranks,
            group_by=self.loading.group_by,
        )
        loader = Loader(
            stream,
            steps=self._orders[split].steps,
            num_workers=self.loading.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            position=None if self.trainer is None else self._position,
        )
        self._loaders.append(loader)
        return loader

    def _ranks(self) -> tuple[int, int]:
        """Number of processes that get different data, and which of them this is."""
        if self.trainer is None:
            return 1, 0
        # Ranks that hold parts of one model (tensor parallel) get the same data; the strategy knows.
        sampling = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        return int(sampling["num_replicas"]), int(sampling["rank"])

    def _position(self) -> int:
        """The step that training takes next: the batches that this run has trained on, in all its epochs.

        Lightning keeps this count in its checkpoints, and is right about it in the middle of an epoch, at its
        end, and when a batch was taken but not finished.
        """
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # To overfit is to see the same few batches in every epoch.
        overfit = self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        counts = progress.current if overfit else progress.total
        assert isinstance(counts, _ProcessedTracker)
        return counts.processed

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the data: the next step, and all that decides which samples it holds."""
        if "train" not in self._orders or self.trainer is None:
            return {}
        return {"step": self._position(), "order": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a resumed run reads what it would have read.

        Raises:
            ValueError: Shards, seed, batch size or lanes differ from the checkpoint's.
        """
        if "train" not in self._orders or self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        now, then = self._identity(), state.get("order", {})
        differing = [f"{name} {then[name]} -> {now[name]}" for name in then if then[name] != now.get(name)]
        if differing:
            raise ValueError(
                f"the checkpoint was trained on another order of samples ({', '.join(differing)}): restore "
                "these values to go on exactly, or start a new run from its weights"
            )

    def _identity(self) -> dict[str, int | str]:
        order = self._orders["train"]
        assert isinstance(order, TrainingOrder)
        return {"shards": self.digest("train"), **order.settings}

    def has(self, split: Split) -> bool:
        """Whether there are shards of a split; prepares the source."""
        return self._find(split) is not None

    def digest(self, split: Split) -> str:
        """Digest of a split's indices, once its stage is set up."""
        return self._shards[split].digest

    def digests(self) -> dict[str, str]:
        """Digest of each split that is set up."""
        return {split: shards.digest for split, shards in self._shards.items()}

    def exhibit(self, split: Split, place: int) -> Exhibit:
        """The sample at a place as a person takes it in."""
        return exhibit(self.read_raw(split, place), self.readers)

    def read_raw(self, split: Split, place: int) -> RawSample:
        """The bytes of the sample at a place, as in :attr:`mmlab.batch.Batch.place`."""
        order = self._orders[split]
        step, offset = divmod(place, order.batch_size)
        places = order.places(step)
        return self._shards[split].read(int(places.shard[offset]), int(places.sample[offset]))
