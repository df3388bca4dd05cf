"""The contract between data and models: modalities, inputs, batches, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

NOBODY = -1
"""Owner of a padding row, and group of a row that takes part in no comparison."""


class Modality(StrEnum):
    """A kind of signal; the value is the name of the field of :class:`Batch`."""

    IMAGE = "image"
    TEXT = "text"
    AUDIO = "audio"
    SIGNAL = "signal"


USER, ITEM, HISTORY = 0, 1, 2
"""Places in a row of interactions: the number of the user, that of the item, and from here on those of the
items that the user chose before, the latest last; :data:`NOBODY` where there is none."""

MARKERS = {Modality.IMAGE: -2, Modality.AUDIO: -3, Modality.SIGNAL: -4}
"""Token ids that stand in text for a row of another modality: the n-th for the sample's n-th row."""


class Skip(NamedTuple):
    """A sample that could not be read."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Input:
    """All rows of one modality in a batch.

    A sample may own no row (it lacks the modality), one, or several (five captions, two pictures).
    Absent samples still fill one row that nobody owns: every rank then runs every encoder on the same
    number of rows, so collectives match whatever is missing.
    """

    data: Shaped[Tensor, "rows *rest"]
    """image: uint8 [rows, 3, H, W]; text: int64 token ids and :data:`MARKERS` [rows, T]; audio: float32
    waveform in [-1, 1] [rows, S]; signal: float32 [rows, T, C], or int64 [rows, T], interactions
    (:data:`USER`). Sequences are padded on the right."""
    owner: Int64[Tensor, " rows"]
    """The sample of the batch that row belongs to, ascending, or :data:`NOBODY`."""
    present: Bool[Tensor, " samples"]
    """Which samples own at least one row."""
    length: Int64[Tensor, " rows"] | None = None
    """Valid steps of each row, at least 1; None where rows have one size (images)."""
    encoded: bool = False
    """Whether `data` holds what the encoder gave once, tokens [rows, T, D], instead of what it reads."""
    target: Bool[Tensor, "rows steps"] | None = None
    """Of text, the tokens that a language model is to say, or the first of each word that is told of; None
    where it is only read."""
    box: Float[Tensor, "rows steps 4"] | None = None
    """Of text on a page, where the word stands that each token is part of: left, top, right and bottom as
    shares of the page, in [0, 1]; zeros at special tokens and padding. None where the run reads no boxes."""
    masked: Int64[Tensor, "rows steps"] | None = None
    """Of text, the same token ids with those of `target` hidden, for a model that is to guess them."""

    @property
    def mask(self) -> Bool[Tensor, "rows steps"] | None:
        """True at valid steps, or None where rows have one size."""
        if self.length is None:
            return None
        steps = torch.arange(self.data.shape[1], device=self.length.device)
        return steps < self.length[:, None]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Input:
        """Copy to a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Input:
        """Copy to page-locked memory, from which copies to a GPU can overlap with its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Input:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)

    def without(self, samples: Bool[Tensor, " samples"]) -> Input:
        """The same rows, of which nobody owns those of some samples: they lack the modality.

        Every row stays, so a sample may then stand for several rows of nobody.
        """
        gone = samples[self.owner.clamp(min=0)]
        return replace(self, owner=self.owner.masked_fill(gone, NOBODY), present=self.present & ~samples)

    def select(self, samples: Int64[Tensor, " chosen"]) -> Input:
        """Keep the rows of some samples, renumbered in the order given.

        Args:
            samples: Distinct sample numbers. One that owns no row gets back a row that nobody owns.
        """
        chosen: list[Tensor] = []
        owner: list[int] = []
        unowned = (self.owner == NOBODY).nonzero().flatten()
        for new, old in enumerate(samples.tolist()):
            rows = (self.owner == old).nonzero().flatten()
            if len(rows) == 0:
                assert len(unowned) > 0, "a sample without rows, and no row that nobody owns"
                chosen.append(unowned[:1])
                owner.append(NOBODY)
            else:
                chosen.append(rows)
                owner += [new] * len(rows)
        rows = torch.cat(chosen)
        return replace(
            self,
            data=self.data[rows],
            owner=torch.tensor(owner, dtype=torch.int64, device=self.owner.device),
            present=self.present[samples],
            length=None if self.length is None else self.length[rows],
            target=None if self.target is None else self.target[rows],
            box=None if self.box is None else self.box[rows],
            masked=None if self.masked is None else self.masked[rows],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch."""

    keys: tuple[str, ...]
    """Key of each sample, as in its shard; empty for padding."""
    place: Int64[Tensor, " samples"]
    """Where each sample stands: in training step x global batch + offset, in evaluation its number."""
    valid: Bool[Tensor, " samples"]
    """False for the padding of the last evaluation batch and for samples that could not be read."""
    group: Int64[Tensor, " samples"]
    """Samples of one group are positives of each other; :data:`NOBODY` where not valid."""
    image: Input | None = None
    """None where the run reads no images at all; a batch without any has rows that nobody owns."""
    text: Input | None = None
    """As for images."""
    audio: Input | None = None
    """As for images."""
    signal: Input | None = None
    """As for images."""
    skips: tuple[Skip, ...] = field(default=())
    """What could not be read, with the reason."""
    source: Int64[Tensor, " samples"] | None = None
    """Which of `sources` each sample is from; None where the run reads one source."""
    sources: tuple[str, ...] = ()
    """Names of all sources of the run, the same in every batch; empty where it reads one."""
    references: tuple[tuple[str, ...], ...] = ()
    """What the answer of each sample may be, () where nothing is known; empty where the run reads none."""
    kinds: tuple[str, ...] = ()
    """What kind of question each sample is, "" where it does not say; empty where the run reads none."""
    notes: tuple[str, ...] = ()
    """What more an answer is made from in evaluation, "" where a sample lacks it; empty where the run reads
    none."""

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, modality: Modality) -> Input | None:
        """The input of a modality, or None where the run does not read it."""
        value: Input | None = getattr(self, modality.value)
        return value

    def source_of(self, sample: int) -> str:
        """Name of the source that a sample is from; empty where the run reads one."""
        return "" if self.source is None else self.sources[int(self.source[sample])]

    def kind_of(self, sample: int) -> str:
        """Kind of a sample; empty where it is not known."""
        return self.kinds[sample] if self.kinds else ""

    def patterns(self) -> list[str]:
        """Names of the modalities that each sample has, joined by `+`; `none` where it has none."""
        present = [(modality.value, inputs.present.tolist()) for modality, inputs in self.inputs()]
        return ["+".join(name for name, has in present if has[n]) or "none" for n in range(len(self))]

    def inputs(self) -> Iterator[tuple[Modality, Input]]:
        """The modalities that this run reads, with their inputs."""
        for modality in Modality:
            value = self.get(modality)
            if value is not None:
                yield modality, value

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy to a device."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor | Input)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory."""
        pinned = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor | Input)
        }
        return replace(self, **pinned)

    def select(self, samples: Int64[Tensor, " chosen"]) -> Batch:
        """Keep some samples, in the order given; skips stay with the whole batch."""
        return replace(
            self,
            keys=tuple(self.keys[i] for i in samples.tolist()),
            place=self.place[samples],
            valid=self.valid[samples],
            group=self.group[samples],
            image=None if self.image is None else self.image.select(samples),
            text=None if self.text is None else self.text.select(samples),
            audio=None if self.audio is None else self.audio.select(samples),
            signal=None if self.signal is None else self.signal.select(samples),
            skips=(),
            source=None if self.source is None else self.source[samples],
            references=tuple(self.references[i] for i in samples.tolist()) if self.references else (),
            kinds=tuple(self.kinds[i] for i in samples.tolist()) if self.kinds else (),
            notes=tuple(self.notes[i] for i in samples.tolist()) if self.notes else (),
        )


class Embeddings(NamedTuple):
    """Vectors of one modality, each with what it may be compared to."""

    vector: Shaped[Tensor, "rows dim"]
    """Unit length."""
    group: Int64[Tensor, " rows"]
    """Rows of equal group, across modalities too, are positives; :data:`NOBODY`: not to be compared."""
    place: Int64[Tensor, " rows"]
    """Place of the row's sample; orders rows gathered from several ranks."""
