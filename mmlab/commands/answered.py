"""What answers were said of: the samples that have their keys, and vectors of both by a retrieval run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor

from mmlab.batch import Batch, Input, Modality
from mmlab.commands.shards_check import plain
from mmlab.data.decode import BrokenMember
from mmlab.data.module import ShardData
from mmlab.data.order import EvaluationOrder
from mmlab.data.parts import Split
from mmlab.data.samples import SampleSet
from mmlab.data.stream import Known, Stream
from mmlab.data.text import TextReader
from mmlab.metrics.clip_score import Judged
from mmlab.tasks.retrieval import RetrievalTask

_MEDIA = (Modality.IMAGE, Modality.AUDIO)
"""What answers are held against: the first that the run has aligned with text."""
_SPLITS: tuple[Split, ...] = ("test", "val", "predict", "train")


class Found(NamedTuple):
    """Samples, some of which are meant by keys."""

    where: str
    """Split or patterns, for people."""
    samples: SampleSet
    places: dict[str, int]
    """Number of the sample of each key, in stored order."""
    unclear: int
    """Keys that several samples have, which are not among the places."""

    @property
    def hits(self) -> int:
        """Keys that any sample has."""
        return len(self.places) + self.unclear


def look_up(where: str, samples: SampleSet, keys: Collection[str]) -> Found:
    """Find the sample of each key."""
    places: dict[str, int] = {}
    several: set[str] = set()
    starts = EvaluationOrder(samples.counts, batch_size=1).starts
    for shard, count in enumerate(samples.counts.tolist()):
        for sample in range(count):
            try:
                key = samples.key(shard, sample)
            except BrokenMember:  # of the index: a sample without a key is nobody's
                continue
            if key in keys:
                several |= {key} & places.keys()
                places[key] = int(starts[shard]) + sample
    return Found(where, samples, {k: n for k, n in places.items() if k not in several}, len(several))


def find_split(data: ShardData, keys: Collection[str]) -> Found:
    """The split that has most of the keys.

    Raises:
        ValueError: None has any, or it is unclear which is meant.
    """
    found: dict[str, Found] = {}
    for split in _SPLITS:
        if split == "train" and any(one.hits == len(keys) for one in found.values()):
            break  # of perhaps millions of samples
        samples = data.find(split)
        if samples is not None and samples.digest not in found:
            found[samples.digest] = look_up(split, samples, keys)
    most = max((one.hits for one in found.values()), default=0)
    if most == 0:
        raise ValueError(
            f"no key of the answers ({plain(next(iter(keys)))}, ...) is in the shards of the run "
            f"({', '.join(one.where for one in found.values()) or 'it has none'}): name the shards that they "
            "are from (--data)"
        )
    best = [one for one in found.values() if one.hits == most]
    if len(best) > 1:
        raise ValueError(
            f"{most} keys of the answers are in {best[0].where} and as many in {best[1].where}: name the "
            "shards that are meant (--data)"
        )
    return best[0]


class Judge:
    """The towers of a retrieval run that texts, and what texts are of, go through."""

    def __init__(self, task: RetrievalTask, data: ShardData, trainer: Trainer) -> None:
        """Take the towers.

        Args:
            task: Goes to the device; its weights may be loaded afterwards.
            data: Says how media and texts are read.
            trainer: Knows device and precision; it is not run.

        Raises:
            ValueError: The run has aligned text with neither image nor audio, or reads prompts.
        """
        aligned = [set(pair) for pair in task.pairs]
        medium = next((one for one in _MEDIA if {one, Modality.TEXT} in aligned), None)
        if medium is None:
            pairs = ", ".join(f"{a} with {b}" for a, b in task.pairs)
            raise ValueError(f"the run aligns {pairs}: answers are judged by one of image or audio with text")
        readers = {reader.modality: reader for reader in data.readers}
        text = readers[Modality.TEXT]
        if not isinstance(text, TextReader):
            raise ValueError(f"the run reads text by {type(text).__name__}: judging needs a TextReader")
        self.medium = medium
        self.media = readers[medium]
        self.text = text
        self.group_by = data.loading.group_by
        size = data.loading.eval_batch_size
        self.batch_size = data.batch_size if size is None else size
        self._trainer = trainer
        self._device = trainer.strategy.root_device
        self._model = task.eval().to(self._device).model

    def embed(self, modality: Modality, inputs: Input) -> Float[Tensor, "rows dim"]:
        """Unit vectors of rows, on the CPU."""
        tower = dict(self._model.towers())[modality]
        with torch.inference_mode(), self._trainer.precision_plugin.forward_context():
            vector: Tensor = tower(inputs.to(self._device))
        return vector.cpu()

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Unit vectors of texts, at least one, each cut as the run cuts them."""
        data, length = self.text.stack([self.text.encode(text) for text in texts])[:2]
        present = torch.ones(len(texts), dtype=torch.bool)
        return self.embed(Modality.TEXT, Input(data, torch.arange(len(texts)), present, length))


def collect(
    judge: Judge, found: Found, said: Mapping[str, str], fields: Sequence[str]
) -> tuple[Judged | None, Counter[str]]:
    """Embed the samples found, what was said of each, and its references.

    Args:
        judge: The model.
        found: Where the samples are.
        said: Text by key.
        fields: That hold the references.

    Returns:
        The vectors, None where there are none, and how many samples were left out for which reason.
    """
    order = EvaluationOrder(found.samples.counts, batch_size=judge.batch_size)
    readers = (judge.media, judge.text)
    known = Known(tuple(fields))
    stream = Stream(found.samples, order, readers, seed=None, group_by=judge.group_by, known=known)
    left_out: Counter[str] = Counter()
    parts: list[Judged] = []
    for step in sorted({place // judge.batch_size for place in found.places.values()}):
        batch = stream.batch(step)
        wanted = [found.places.get(key) == n for key, n in zip(batch.keys, batch.place.tolist(), strict=True)]
        left_out.update(skip.reason for skip in batch.skips if skip.key in found.places)
        inputs = batch.get(judge.medium)
        assert inputs is not None
        usable = torch.tensor(wanted) & batch.valid
        if lacking := int((usable & ~inputs.present).sum()):
            left_out[f"no {judge.medium} in the sample"] += lacking
        chosen = (usable & inputs.present).nonzero().flatten()
        if len(chosen) > 0:
            parts.append(_embed(judge, batch.select(chosen), said, start=sum(len(p.group) for p in parts)))
    return (Judged(*map(torch.cat, zip(*parts, strict=True))) if parts else None), left_out


def _embed(judge: Judge, batch: Batch, said: Mapping[str, str], *, start: int) -> Judged:
    """Vectors of a batch in which every sample has the medium; `start`: number of its first sample."""
    inputs = batch.get(judge.medium)
    assert inputs is not None
    media = judge.embed(judge.medium, inputs)
    # Of several sounds the first, which an evaluation without `every` takes.
    first = torch.searchsorted(inputs.owner, torch.arange(len(batch)))
    known = [[text for text in texts if text.strip()] for texts in batch.references]
    owner = [number for number, texts in enumerate(known) for _ in texts]
    texts = judge.embed_texts([said[key] for key in batch.keys] + [text for own in known for text in own])
    return Judged(
        media[first],
        texts[: len(batch)],
        texts[len(batch) :],
        torch.tensor(owner, dtype=torch.int64) + start,
        batch.group,
    )
