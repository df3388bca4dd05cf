"""Towers of any set of modalities, fused for each sample and sorted into classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.batch import Batch, Modality
from mmlab.models.encoders.encoder import Encoded, input_of
from mmlab.models.fusion.fusion import Fusion
from mmlab.models.fusion.missing import Substitution, leave_out
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.heads import ClassificationHead
from mmlab.models.unimodal import Alone, Unimodal


class Classified(NamedTuple):
    """What the model thinks of each sample."""

    logits: Float[Tensor, "samples classes"]
    valid: Bool[Tensor, " samples"]
    """See :attr:`mmlab.batch.Batch.valid`; logits of other samples say nothing."""
    place: Int64[Tensor, " samples"]
    """See :attr:`mmlab.batch.Batch.place`."""
    alone: Alone | None = None
    """What each modality says alone, where :attr:`FusionClassifier.unimodal` is asked."""


class FusionClassifier(nn.Module):
    """One tower per modality, a fusion of what they give, and a head over classes."""

    unimodal: Unimodal | None
    """Tells what each modality says alone; set by what keeps them in balance, before training."""

    def __init__(
        self,
        *,
        fusion: Fusion,
        head: ClassificationHead,
        image: FusionTower | None = None,
        text: FusionTower | None = None,
        audio: FusionTower | None = None,
        signal: FusionTower | None = None,
        modality_dropout: float = 0.0,
        missing: Substitution | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            fusion: Made for the modalities and sizes of the towers.
            head: Made for the size of the fusion.
            image: Encoder and pooling of images.
            text: Of text.
            audio: Of sounds.
            signal: Of signals.
            modality_dropout: Probability that training leaves a modality of a sample out, never all of them.
            missing: What stands in the place of a modality that a sample lacks; None: the fusion leaves it
                out.

        Raises:
            ValueError: An encoder of another modality; a fusion, a head or a substitution that is made for
                others; a probability outside [0, 1).
        """
        super().__init__()
        if not 0 <= modality_dropout < 1:
            raise ValueError(f"modality_dropout={modality_dropout}: it must be at least 0 and below 1")
        self.modality_dropout = modality_dropout
        self.missing = missing
        self.image = image
        self.text = text
        self.audio = audio
        self.signal = signal
        self.fusion = fusion
        self.head = head
        self.unimodal = None
        dims = {modality.value: tower.dim for modality, tower in self.towers()}
        for modality, tower in self.towers():
            if tower.encoder.modality != modality:
                raise ValueError(
                    f"the {modality} tower has {type(tower.encoder).__name__}, an encoder of "
                    f"{tower.encoder.modality}: move it to that tower"
                )
        made_for = {modality.value: size for modality, size in fusion.dims.items()}
        for part, found in ((fusion, made_for), (missing, None if missing is None else missing.dims)):
            if found is not None and found != dims:
                raise ValueError(
                    f"the towers give {dims}, but {type(part).__name__} is made for dims={found}: set it to "
                    "what they give"
                )
        if head.dim != fusion.dim:
            raise ValueError(
                f"{type(head).__name__} is made for dim={head.dim}, but {type(fusion).__name__} gives "
                f"{fusion.dim}: set it to that"
            )

    def towers(self) -> Iterator[tuple[Modality, FusionTower]]:
        """The towers that this model has."""
        for modality in Modality:
            tower = getattr(self, modality.value)
            if tower is not None:
                yield modality, tower

    def forward(self, batch: Batch) -> Classified:
        """Run every tower once, whatever the batch lacks.

        Raises:
            ValueError: The run does not read a modality that the model has a tower for.
        """
        encoded = {}
        for modality, tower in self.towers():
            encoded[modality] = tower(input_of(batch, modality))
        kept = encoded
        if self.training and self.modality_dropout > 0:
            kept = leave_out(encoded, self.modality_dropout)
        if self.missing is not None:
            self.missing.count(kept)
        logits = self.classify(kept)
        alone = None if self.unimodal is None else self.unimodal(encoded, self.classify)
        return Classified(logits, batch.valid, batch.place, alone)

    def classify(self, encoded: Mapping[Modality, Encoded]) -> Float[Tensor, "samples classes"]:
        """Logits of what the towers gave, whatever is missing of it."""
        logits: Tensor = self.head(self.fusion(encoded if self.missing is None else self.missing(encoded)))
        return logits
