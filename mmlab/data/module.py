"""The data of a run as Lightning asks for it: shards, orders, loaders, and the checks before training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn

from mmlab.data.audio import AudioReader
from mmlab.data.exhibit import Exhibit, exhibit
from mmlab.data.features import Features
from mmlab.data.fields import EACH, has_field
from mmlab.data.image import ImageReader
from mmlab.data.interactions import InteractionReader
from mmlab.data.loader import Loader
from mmlab.data.mixture import MixedOrder
from mmlab.data.named import Named, check_named, spread
from mmlab.data.order import EvaluationOrder, Order, TrainingOrder
from mmlab.data.parts import Mixture, Split, Splits, open_samples
from mmlab.data.plan import Loading, check_room, plan_training
from mmlab.data.prompt import PromptReader
from mmlab.data.reader import Reader, read_asked, with_asked
from mmlab.data.samples import RawSample, SampleSet
from mmlab.data.signal import SignalReader
from mmlab.data.source import Source
from mmlab.data.stream import Known, Stream
from mmlab.data.text import TextReader
from mmlab.data.windows import Skips, stream_step
from mmlab.data.words import WordReader

_STAGES: dict[TrainerFn, tuple[Split, ...]] = {
    TrainerFn.FITTING: ("train", "val"),
    TrainerFn.VALIDATING: ("val",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("predict",),
}
_CALLED: dict[Split, str] = {"train": "training", "val": "validation"}
"""Splits whose samples must have what the config names."""
_log = logging.getLogger(__name__)
_SPLITS = Splits()
_LOADING = Loading()


class ShardData(LightningDataModule):
    """Shards -> batches, for every stage; resumes exactly, on any valid number of ranks and workers."""

    skips: Skips
    """What training leaves out of the stream; checkpoints keep it."""

    def __init__(
        self,
        *,
        batch_size: int,
        source: Source | Mixture | None = None,
        splits: Splits = _SPLITS,
        image: ImageReader | SignalReader | None = None,
        text: TextReader | PromptReader | WordReader | SignalReader | None = None,
        audio: AudioReader | SignalReader | None = None,
        signal: SignalReader | InteractionReader | None = None,
        loading: Loading = _LOADING,
    ) -> None:
        """Settings.

        Args:
            batch_size: Global batch size, over all ranks.
            source: A public data set that brings its shards, or a mixture of several; None: `splits` says
                where the shards are.
            splits: Which shards are what.
            image: How pictures are read; None: they are not. A `SignalReader` reads features of them.
            text: How text is read; None: it is not.
            audio: How sounds are read; None: they are not.
            signal: How other signals are read, or who chose what (`InteractionReader`); None: they are not.
            loading: How batches are formed and built.

        Raises:
            ValueError: No modality is read, one by the reader of another, a turn's field is named where no
                reader knows turns, or a share of a mixture.
        """
        super().__init__()
        self.batch_size = batch_size
        self.source = source
        self.splits = splits
        given = {"image": image, "text": text, "audio": audio, "signal": signal}
        for name, reader in given.items():
            if reader is not None and reader.modality != name:
                raise ValueError(
                    f"data.{name} has a {type(reader).__name__} for {reader.modality}: set its modality to "
                    f"{name}"
                )
        readers = [reader for reader in given.values() if reader is not None]
        if isinstance(source, Mixture) and splits.train_share < 1:
            raise ValueError(
                f"data.splits.train_share={splits.train_share}: a mixture has none of its own: set "
                "data.source.init_args.parts.NAME.splits.train_share of each part"
            )
        self.readers: tuple[Reader, ...] = tuple(reader.beside(readers) for reader in readers)
        self.loading = loading
        if not self.readers:
            raise ValueError("the data read no modality: set at least one of image, text, audio, signal")
        self._check_each()
        self.skips = Skips()
        self._shards: dict[Split, SampleSet] = {}
        self._orders: dict[Split, Order] = {}
        self._loaders: list[Loader] = []
        self._readers: dict[Split, tuple[Reader, ...]] = {}

    def prepare_data(self) -> None:
        """Fetch and convert the source, index the shards, fetch tokenizers: in one process of each node."""
        for reader in self.readers:
            reader.prepare()
        found = {split: self.find(split) for split in get_args(Split)}
        if found["train"] is not None and self.loading.bucketing is not None:
            self._order("train", found["train"], ranks=1)  # the lengths that it measures are kept

    def setup(self, stage: str | None = None) -> None:
        """Open the shards of a stage and check all that can be checked before it runs.

        Raises:
            ValueError: A split, a modality, a field or samples are missing, or ranks, workers or batch sizes
                do not divide what they must; the text says which values are valid.
        """
        ranks, _ = self._ranks()
        stage = TrainerFn.FITTING if stage is None else TrainerFn(stage)
        raw: dict[Split, SampleSet] = {}
        for split in _STAGES[stage]:
            found = self.find(split)
            if found is None and split == "val" and stage is TrainerFn.FITTING:
                # Lightning validates whenever this method is not the base class's own.
                self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
                continue
            shards, order = self._plan(split, found, ranks=ranks)
            raw[split] = shards
            if shards.damaged:
                _log.warning(
                    "%d of %d %s shards are cut off or damaged (%s); their complete samples are used",
                    len(shards.damaged), len(shards.counts), split, shards.damaged[0],
                )  # fmt: skip
            order.check(ranks, self.loading.num_workers)
            if split == "train":
                assert isinstance(order, TrainingOrder | MixedOrder)
                nodes = 1 if self.trainer is None else self.trainer.num_nodes
                check_room(shards, order.lanes, loading=self.loading, nodes=nodes)
                self._check_modalities(shards)
            readers = self.readers
            if self.features is not None:
                joined = self.features.join(split, shards)
                if joined is not None:
                    shards, readers = joined, self.features.readers(readers)
            self._shards[split], self._orders[split], self._readers[split] = shards, order, readers
        self._check_fields(raw)

    @cached_property
    def features(self) -> Features | None:
        """What frozen encoders gave, where the run uses it."""
        return None if self.loading.features is None else Features.open(Path(self.loading.features))

    def find(self, split: Split) -> SampleSet | None:
        """The samples of a split, or None where it does not exist."""
        return open_samples(self.source, self.splits, split, remote=self.loading.remote)

    def _order(self, split: Split, shards: SampleSet, *, ranks: int) -> Order:
        if int(shards.counts.sum()) == 0:
            raise ValueError(f"the {split} shards hold no samples ({shards.names[0]}, ...)")
        if split == "train":
            return plan_training(
                shards,
                batch_size=self.batch_size,
                loading=self.loading,
                mixture=self.source if isinstance(self.source, Mixture) else None,
                readers=self.readers,
                ranks=ranks,
            )
        size = self.loading.eval_batch_size
        return EvaluationOrder(shards.counts, batch_size=self.batch_size if size is None else size)

    def plan(self, split: Split, *, ranks: int = 1) -> tuple[SampleSet, Order]:
        """The samples of a split and their order, for so many ranks, without a trainer; prepares the source.

        Raises:
            ValueError: As for :meth:`setup`.
        """
        return self._plan(split, self.find(split), ranks=ranks)

    def _plan(self, split: Split, shards: SampleSet | None, *, ranks: int) -> tuple[SampleSet, Order]:
        if shards is None:
            raise ValueError(f"no {split} shards: set data.splits.{split}, or a source that has them")
        return shards, self._order(split, shards, ranks=ranks)

    def _check_each(self) -> None:
        """Raise ValueError for a field of a turn where samples are not taken apart into turns."""
        if any(isinstance(reader, PromptReader) and reader.each is not None for reader in self.readers):
            return
        for where, field in (
            ("group_by", self.loading.group_by),
            *(("references", field) for field in self.loading.references),
            ("kind_by", self.loading.kind_by or ""),
            ("note", self.loading.note or ""),
        ):
            if field.startswith(EACH):
                raise ValueError(
                    f"data.loading.{where}: {field} needs turns: set data.text.each of a PromptReader to the "
                    "field that holds them, or name a field of the sample, such as json.answer"
                )

    def _check_fields(self, shards: Mapping[Split, SampleSet]) -> None:
        """Raise ValueError for a field that none of the samples looked at has.

        What is read in evaluation must be in validation samples where there are any, prompts and groups in
        samples of either split. Samples to test or predict may lack answers, and are not looked at.
        """
        sets = {_CALLED[split]: found for split, found in shards.items() if split in _CALLED}
        if not sets:
            return
        named = []
        if self.loading.group_by not in ("caption", "key"):
            named.append(self._named("group_by", self.loading.group_by))
        prompts = [reader for reader in self.readers if isinstance(reader, PromptReader)]
        if "train" in shards:
            named += [one for reader in prompts for one in reader.named_prompts()]
        check_named(named, sets)
        evaluated = {_CALLED["val"]: shards["val"]} if "val" in shards else sets
        named = [self._named("references", field) for field in self.loading.references]
        if "val" in shards:
            for setting, field in (("kind_by", self.loading.kind_by), ("note", self.loading.note)):
                named += [] if field is None else [self._named(setting, field)]
            named += [one for reader in prompts for one in reader.named_choices()]
        check_named(named, evaluated)

    def _named(self, setting: str, field: str) -> Named:
        def lacking(members: Mapping[str, bytes]) -> list[str]:
            found = has_field(with_asked(members, [field], self.readers), field)
            return [] if found else [field]

        return Named(f"loading.{setting}", lacking)

    def _check_modalities(self, shards: SampleSet) -> None:
        """Raise ValueError for a modality that none of the samples looked at has."""
        missing = list(self.readers)
        for members in spread(shards):
            missing = [reader for reader in missing if not reader.finds(members)]
            if not missing:
                return
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
            self._readers[split],
            seed=self.loading.seed if split == "train" else None,
            rank=rank,
            ranks=ranks,
            group_by=self.loading.group_by,
            known=Known(
                self.loading.references,
                kind_by=self.loading.kind_by if split in ("val", "test") else None,
                note=None if split == "train" else self.loading.note,
            ),
        )
        loader = Loader(
            stream,
            steps=self._orders[split].steps,
            num_workers=self.loading.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            position=None if self.trainer is None else self._position,
            skips=self.skips if split == "train" and not self._overfits() else (),
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
        counts = progress.current if self._overfits() else progress.total
        assert isinstance(counts, _ProcessedTracker)
        return counts.processed

    def _overfits(self) -> bool:
        """Whether training is to see the same few batches in every epoch."""
        return self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the data: the next step, and all that decides which samples it holds."""
        if "train" not in self._orders or self.trainer is None:
            return {}
        return {"step": self._position(), "order": self._identity(), "skips": [[*w] for w in self.skips]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a resumed run reads what it would have read.

        Raises:
            ValueError: Shards, seed, batch size or lanes differ from the checkpoint's, and `loading.exact`.
        """
        if "train" not in self._orders or self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.skips.go_on(state.get("skips", []), state.get("step", 0))
        now, then = self._identity(), state.get("order", {})
        differing = [
            f"{name} {then.get(name)} -> {now.get(name)}"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        if differing and self.loading.exact:
            raise ValueError(
                f"the checkpoint was trained on another order of samples ({', '.join(differing)}): restore "
                "these values to go on exactly, or set data.loading.exact to false to go on with the new ones"
            )
        if differing:
            _log.warning("the order of samples changes at this step: %s", ", ".join(differing))

    def _identity(self) -> dict[str, int | str]:
        return {"shards": self.digest("train"), **self._orders["train"].settings}

    def has(self, split: Split) -> bool:
        """Whether there are shards of a split; prepares the source."""
        return self.find(split) is not None

    def digest(self, split: Split) -> str:
        """Digest of a split's indices, once its stage is set up."""
        return self._shards[split].digest

    def digests(self) -> dict[str, str]:
        """Digest of each split that is set up."""
        return {split: shards.digest for split, shards in self._shards.items()}

    def exhibit(self, split: Split, place: int) -> Exhibit:
        """The sample at a place as a person takes it in."""
        return exhibit(self.read_raw(split, place), self.readers)

    def field(self, split: Split, place: int, field: str) -> list[Any]:
        """The values of a field of the sample at a place; `each.` is one of the turn that is asked."""
        return read_asked(self.read_raw(split, place).members, field, self.readers)

    def read_raw(self, split: Split, place: int) -> RawSample:
        """The bytes of the sample at a place, as in :attr:`mmlab.batch.Batch.place`."""
        order = self._orders[split]
        step, offset = divmod(place, order.batch_size)
        places = order.places(step)
        return self._shards[split].read(int(places.shard[offset]), int(places.sample[offset]))

    def samples_at(self, split: Split, step: int) -> list[tuple[str, str]]:
        """Shard and key of each sample that this rank reads at a step: of training, or of a pass."""
        ranks, rank = self._ranks()
        # What an order keeps between calls belongs to the thread that trains.
        order, shards = copy.deepcopy(self._orders[split]), self._shards[split]
        at = stream_step(step, self.skips) if split == "train" else step
        places = order.places(at, rank=rank, ranks=ranks)
        pairs = zip(*places[:2], strict=True)
        return [(shards.names[one], shards.key(int(one), int(sample))) for one, sample in pairs if one >= 0]
