"""Self-supervised pretraining: what belongs together, hidden words, pairs, captions; no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch, Modality
from mmlab.metrics.pretraining import PretrainingMetrics
from mmlab.models.dual_encoder import DualEncoderOutput
from mmlab.models.encoders.encoder import input_of
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.fusion import mean_token
from mmlab.models.fusion.tower import side_by_side
from mmlab.models.pretraining_model import PretrainingModel, PretrainingOutput
from mmlab.objectives.contrastive import ContrastiveObjective
from mmlab.objectives.loss import Loss
from mmlab.objectives.masked import MaskedTokens
from mmlab.objectives.matching import Matching, Pairs, sample_vectors
from mmlab.objectives.sequence import TokenCrossEntropy
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask


class PretrainingTask(BaseTask):
    """Trains on any set of objectives that need no labels, and measures what that is good for.

    Evaluation is retrieval with the vectors as they are, a linear probe on the mean of each encoder's tokens
    (where `data.loading.references` names a label), and how well words are told.

    Args:
        model: With the parts that the objectives need, and no others.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        contrastive: What belongs together lies together; None: projections are not trained.
        masked: Hidden words are guessed from the rest and from what the text is of.
        matching: A text is told from others of the rank's own samples that nearly fit.
        captioning: Each word is said after those before it.
        weights: Of the losses, by these four names; 1 where left out.

    Raises:
        ValueError: No objective, one that the model has no part for or a part that none reads; a weight of
            none, or one that is not positive.
    """

    model: PretrainingModel

    def __init__(
        self,
        model: PretrainingModel,
        *,
        optimization: Optimization,
        adaptation: Policy,
        contrastive: ContrastiveObjective | None = None,
        masked: MaskedTokens | None = None,
        matching: Matching | None = None,
        captioning: TokenCrossEntropy | None = None,
        weights: dict[str, float] | None = None,
    ) -> None:
        objectives: dict[str, nn.Module | None] = {
            "contrastive": contrastive, "masked": masked, "matching": matching, "captioning": captioning,
        }  # fmt: skip
        _prepare(model, objectives)
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.contrastive, self.masked = contrastive, masked
        self.matching, self.captioning = matching, captioning
        self.weights = _checked(weights or {}, objectives)

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """One for each objective, times its weight."""
        output: PretrainingOutput = self(self._hidden(batch, self.seed))
        found: dict[str, Loss] = {}
        if self.contrastive is not None:
            found["contrastive"] = self.contrastive(*map(output.get, self.model.modalities))
        if self.masked is not None:
            found["masked"] = self.masked(output.guessed)
        if self.matching is not None:
            compared = output if self.contrastive is not None else None
            pairs = chosen_pairs(batch, self.model, self.matching, compared, seed=self.seed)
            logits = self.model.match(batch, output.read, pairs.text, pairs.beside)
            found["matching"] = self.matching(logits, pairs, batch.place)
        if self.captioning is not None:
            found["captioning"] = self.captioning(output.said)
        return {name: loss.times(self.weights[name]) for name, loss in found.items()}

    def make_metrics(self) -> Metric:
        """Retrieval in both directions where vectors are trained, probe, words."""
        return PretrainingMetrics([] if self.contrastive is None else self.model.directions)

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Keep vectors, and how well words are told; what is hidden of a sample is the same in every run."""
        output: PretrainingOutput = self(self._hidden(batch, 0))
        metrics.update(output, batch)
        assert isinstance(metrics, PretrainingMetrics)
        metrics.add(token_means(batch, self.model, output), output.guessed, output.said, batch)

    def predict(self, batch: Batch) -> DualEncoderOutput:
        """The vectors."""
        output: PretrainingOutput = self(batch)
        return output.embeddings

    def _hidden(self, batch: Batch, seed: int) -> Batch:
        return batch if self.masked is None else hidden(batch, self.model, self.masked, seed=seed)


def hidden(batch: Batch, model: PretrainingModel, masked: MaskedTokens, *, seed: int) -> Batch:
    """The batch with words to guess.

    Args:
        batch: As it is read.
        model: Knows which tokens are words.
        masked: Hides them.
        seed: Of what is hidden.
    """
    words, text = model.ordinary_words(batch), input_of(batch, Modality.TEXT)
    found = masked.hide(
        text.data,
        words,
        batch.place[text.owner.clamp(min=0)],
        mask=model.mask,
        drawn=model.ordinary.nonzero().flatten(),
        seed=seed,
    )
    return replace(batch, text=replace(text, masked=found.ids, target=found.target))


def chosen_pairs(
    batch: Batch,
    model: PretrainingModel,
    matching: Matching,
    compared: PretrainingOutput | None,
    *,
    seed: int,
) -> Pairs:
    """The pairs of a batch that are asked about.

    Args:
        batch: Whose samples they are.
        model: Says what stands beside text.
        matching: Chooses them.
        compared: By whose vectors samples are alike; None: all are equally.
        seed: Of the draws.
    """
    vectors, there = [], batch.valid
    for modality in (Modality.TEXT, model.beside):
        inputs = input_of(batch, modality)
        there = there & inputs.present
        vectors.append(
            torch.zeros(len(batch), 1, device=there.device)
            if compared is None
            else sample_vectors(compared.get(modality).vector, inputs.owner, len(batch))
        )
    group = torch.where(there, batch.group, NOBODY)
    return matching.choose(vectors[0], vectors[1], group, batch.place, seed=seed)


def token_means(batch: Batch, model: PretrainingModel, output: PretrainingOutput) -> dict[str, Tensor]:
    """The mean over each sample's tokens, by the name of the modality; zeros where it has none."""
    found = {}
    for modality, encoded in ((Modality.TEXT, output.read.text), (model.beside, output.read.beside)):
        found[modality.value] = mean_token(side_by_side(encoded, input_of(batch, modality)))
    return found


def _prepare(model: PretrainingModel, objectives: Mapping[str, nn.Module | None]) -> None:
    """Raise ValueError unless model and objectives fit; what no loss reads gets no gradient, and is fixed."""
    if not any(objectives.values()):
        raise ValueError(f"no objective: give one or more of {', '.join(objectives)}")
    parts = {
        "masked": (model.masked_head, "masked: true"),
        "matching": (model.matching_head, "matching: true"),
        "captioning": (model.decoder, "a decoder"),
    }
    for name, (part, setting) in parts.items():
        if objectives[name] is not None and part is None:
            raise ValueError(
                f"{name} needs a part of the model: give the model {setting}, or leave {name} out"
            )
        if objectives[name] is None and part is not None:
            raise ValueError(f"the model has {setting}, which nothing trains: give {name}, or leave it out")
    if not any(objectives[name] for name in ("contrastive", "masked", "matching")):
        # Captions are said with the words of the text encoder, and read nothing else of it.
        assert model.text is not None
        encoder = model.text.encoder
        assert isinstance(encoder, TextEncoder), "words are told by one"
        for parameter in encoder.parameters():
            parameter.requires_grad_(parameter is encoder.words.weight)
    if objectives["contrastive"] is None:
        for _, tower in model.towers():  # DDP refuses what gets no gradient
            tower.pooling.requires_grad_(False)
            tower.projection.requires_grad_(False)


def _checked(weights: Mapping[str, float], objectives: Mapping[str, nn.Module | None]) -> dict[str, float]:
    """The weight of each objective in use."""
    used = [name for name, objective in objectives.items() if objective is not None]
    for name, weight in weights.items():
        if name not in used:
            raise ValueError(f"weights has {name!r}, which is not in use: there are {', '.join(used)}")
        if not 0 < weight < math.inf:
            raise ValueError(f"weights: {name}={weight}: a number above 0; leave {name} out to do without")
    return {name: float(weights.get(name, 1.0)) for name in used}
