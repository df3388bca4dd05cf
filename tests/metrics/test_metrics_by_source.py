"""Retrieval metrics of each source of a mixture: what an evaluation of the source alone gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Embeddings, Modality
from mmlab.metrics.retrieval import RetrievalMetrics

SAMPLES = 24
NAMES = ("photos", "silent", "absent")
DIRECTIONS = [
    (Modality.IMAGE, Modality.TEXT),
    (Modality.TEXT, Modality.IMAGE),
    (Modality.AUDIO, Modality.IMAGE),
]


class Output(NamedTuple):
    """Like a model's output."""

    image: Embeddings
    text: Embeddings
    audio: Embeddings

    def get(self, modality: Modality) -> Embeddings:
        rows: Embeddings = getattr(self, modality.value)
        return rows


def evaluation() -> tuple[Output, Batch]:
    """Photos have image, text and audio; what is silent has no audio; both share some groups."""
    generator = torch.Generator().manual_seed(2)
    place = torch.arange(SAMPLES)
    source = (place % 3 == 1).long()
    group = place // 4
    valid = place != 5
    sides = []
    for modality in ("image", "text", "audio"):
        vector = F.normalize(torch.randn(SAMPLES, 6, generator=generator) + F.one_hot(group, 6), dim=1)
        nobody = ~valid | ((source == 1) & (modality == "audio"))
        sides.append(Embeddings(vector, group.masked_fill(nobody, NOBODY), place.masked_fill(nobody, NOBODY)))
    keys = tuple(map(str, range(SAMPLES)))
    return Output(*sides), Batch(keys, place, valid, group, source=source, sources=NAMES)


def compute_on_this_rank(shares: list[list[list[int]]], known: bool = True) -> dict[str, float]:
    """Feed the batches of samples that are this rank's, and compute."""
    output, batch = evaluation()
    metrics = RetrievalMetrics(DIRECTIONS)
    for samples in shares[collectives.rank()]:
        here = torch.tensor(samples, dtype=torch.int64)
        part = Output(*(Embeddings(*(field[here] for field in side)) for side in output))
        metrics.update(part, batch.select(here) if known else None)
    return metrics.compute()


def alone(number: int) -> dict[str, float]:
    """What a run that reads one source alone would measure."""
    _, batch = evaluation()
    assert batch.source is not None
    return compute_on_this_rank([[(batch.source == number).nonzero().flatten().tolist()]], known=False)


EVERYTHING = list(range(SAMPLES))


def test_each_source_is_measured_as_if_alone() -> None:
    values = compute_on_this_rank([[EVERYTHING[10:], EVERYTHING[:10]]])
    photos = {name.removesuffix("@photos"): v for name, v in values.items() if name.endswith("@photos")}
    assert photos == alone(0)
    assert values["image_to_text/queries@photos"] < values["image_to_text/queries"]
    assert values["image_to_text/r1@photos"] != values["image_to_text/r1@silent"]


def test_directions_that_a_source_cannot_answer_are_left_out() -> None:
    values = compute_on_this_rank([[EVERYTHING]])
    silent = {name.removesuffix("@silent"): v for name, v in values.items() if name.endswith("@silent")}
    expected = alone(1)
    assert {name: value for name, value in expected.items() if not name.startswith("audio")} == silent
    assert silent["mean_recall"] > 0
    assert not any(name.endswith("@absent") for name in values)
    assert all(value == value for value in values.values())


def test_the_numbers_over_all_sources_are_those_without_sources() -> None:
    values = compute_on_this_rank([[EVERYTHING]])
    assert {n: v for n, v in values.items() if "@" not in n} == compute_on_this_rank([[EVERYTHING]], False)


def test_two_ranks_give_the_same_bits_as_one(ranks: Any) -> None:
    _, batch = evaluation()
    assert batch.source is not None
    by_source = [[(batch.source == n).nonzero().flatten().tolist()] for n in (0, 1)]
    values = compute_on_this_rank([[EVERYTHING]])
    for shares in ([[EVERYTHING[1::2]], [EVERYTHING[0::2]]], by_source):
        for there in ranks(compute_on_this_rank, shares):
            assert there == values
            assert list(there) == list(values)
