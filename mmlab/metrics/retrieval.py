"""Retrieval metrics over a whole evaluation and all ranks, for each direction and each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torchmetrics import Metric

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Embeddings, Modality
from mmlab.metrics.ranking import Scores, bootstrap_interval, rank_relevant, summarize


@runtime_checkable
class EmbeddingOutput(Protocol):
    """What a model with a tower for each modality gives."""

    def get(self, modality: Modality) -> Embeddings | None:
        """The rows of a modality; None without a tower for it."""


class RetrievalMetrics(Metric):
    """Metrics of several directions over a whole evaluation.

    Each modality is kept once, as float32 on the CPU. `compute` gathers the rows of all ranks and sorts them
    by place, so its numbers are the same bit for bit on any number of ranks.
    """

    full_state_update = False

    def __init__(self, directions: Sequence[tuple[Modality, Modality]]) -> None:
        """Start empty.

        Args:
            directions: Modality of the queries and modality of the candidates, for each direction.
        """
        # compute() gathers: Metric's own way fails on CPU tensors beside NCCL, and on a rank without rows.
        super().__init__(sync_on_compute=False)
        self.directions = list(directions)
        self.modalities = sorted({modality for direction in directions for modality in direction})
        self.sources: tuple[str, ...] = ()
        for modality in self.modalities:
            for field in Embeddings._fields:
                self.add_state(f"{modality}_{field}", default=[], dist_reduce_fx="cat")
        # Of each sample: a row's place says whose it is, so the rows of a source need not be kept again.
        self.add_state("place", default=[], dist_reduce_fx="cat")
        self.add_state("source", default=[], dist_reduce_fx="cat")

    def update(self, output: EmbeddingOutput, batch: Batch | None = None) -> None:
        """Keep the rows of a batch that take part.

        Args:
            output: What the model made of the batch.
            batch: Says from which source each sample is; None: there is one.
        """
        for modality in self.modalities:
            rows = output.get(modality)
            assert rows is not None, f"a direction names {modality}, for which the model has no tower"
            keep = rows.group != NOBODY
            kept = Embeddings(*(field[keep].detach().cpu() for field in rows))
            for field, stored in zip(
                kept._replace(vector=kept.vector.float()), self._stored(modality), strict=True
            ):
                stored.append(field)
        if batch is not None and batch.source is not None:
            self.sources = batch.sources
            self._list("place").append(batch.place.cpu())
            self._list("source").append(batch.source.cpu())

    def embeddings(self, modality: Modality) -> Embeddings:
        """All ranks' rows of a modality in the order of their places; every rank must call it."""
        empty = (torch.empty(0, 0), *[torch.empty(0, dtype=torch.int64)] * 2)
        own = [_joined(stored, none) for stored, none in zip(self._stored(modality), empty, strict=True)]
        rows = Embeddings(*map(collectives.gather_rows, own))
        order = rows.place.argsort(stable=True)
        return Embeddings(*(field[order] for field in rows))

    def compute(self) -> dict[str, float]:
        """Every field of :class:`~mmlab.metrics.ranking.Ranking` as `image_to_text/r1`, and `mean_recall`.

        Beside R@1, R@10 and `mean_recall` stand their 95 % intervals over groups of queries, `r1_low`, ...
        `mean_recall` is the mean of R@1, R@5 and R@10 over the directions that have queries: one number to
        select models by. Where there are several sources, `image_to_text/r1@name` is what an evaluation of
        that source alone would give; directions in which it has no query to answer are left out.

        Every rank must call it.
        """
        rows = {modality: self.embeddings(modality) for modality in self.modalities}
        values = self._evaluate(rows, unanswered=True)
        values.setdefault("mean_recall", float("nan"))
        none = torch.empty(0, dtype=torch.int64)
        place, source = (
            collectives.gather_rows(_joined(self._list(name), none)) for name in ("place", "source")
        )
        for number, name in enumerate(self.sources):
            places = place[source == number]
            own = {modality: _standing_at(places, every) for modality, every in rows.items()}
            part = self._evaluate(own, unanswered=False)
            values |= {f"{metric}@{name}": value for metric, value in part.items()}
        return values

    def _evaluate(self, rows: Mapping[Modality, Embeddings], *, unanswered: bool) -> dict[str, float]:
        """Metrics of these rows; whether with directions in which no query has a relevant candidate."""
        values: dict[str, float] = {}
        recalls: list[float] = []
        scores: list[Scores] = []
        for query, candidate in self.directions:
            ranks = rank_relevant(rows[query], rows[candidate])
            ranking = summarize(ranks)
            numbers = ranking._asdict()
            if ranking.queries > 0:
                recalls += [ranking.r1, ranking.r5, ranking.r10]
                for k in (1, 10):
                    interval = bootstrap_interval([Scores(ranks.first <= k, ranks.group)], seed=0)
                    numbers |= {f"r{k}_low": interval.low, f"r{k}_high": interval.high}
                found = torch.stack([ranks.first <= k for k in (1, 5, 10)]).double().mean(dim=0)
                scores.append(Scores(found, ranks.group))
            if ranking.queries > 0 or unanswered:
                values |= {f"{query}_to_{candidate}/{name}": value for name, value in numbers.items()}
        if recalls:
            interval = bootstrap_interval(scores, seed=0)
            values["mean_recall"] = sum(recalls) / len(recalls)
            values |= {"mean_recall_low": interval.low, "mean_recall_high": interval.high}
        return values

    def _stored(self, modality: Modality) -> list[list[Tensor]]:
        """The lists that hold vectors, groups and places of a modality."""
        return [self._list(f"{modality}_{field}") for field in Embeddings._fields]

    def _list(self, name: str) -> list[Tensor]:
        """A state of this metric."""
        stored: list[Tensor] = getattr(self, name)
        return stored


def _joined(stored: Sequence[Tensor], none: Tensor) -> Tensor:
    """What batches left, in one piece."""
    return torch.cat(list(stored)) if stored else none


def _standing_at(places: Int64[Tensor, " samples"], rows: Embeddings) -> Embeddings:
    """The rows of some samples."""
    own = torch.isin(rows.place, places)
    return Embeddings(*(field[own] for field in rows))
