"""The loss of each source of a mixture against loops over its anchors, and on two ranks against one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Embeddings
from mmlab.objectives.contrastive import info_nce, sigmoid_loss
from mmlab.objectives.loss import Loss, losses_by_source

SCALE, BIAS = 4.0, -1.0
NAMES = ("photos", "films", "songs")
SAMPLES = 8
OBJECTIVES: dict[str, Callable[[Embeddings, Embeddings], Loss]] = {
    "info_nce": lambda a, b: info_nce(a, b, SCALE),
    "sigmoid": lambda a, b: sigmoid_loss(a, b, SCALE, BIAS),
}


def make_batch(source: list[int]) -> Batch:
    """Samples whose places do not ascend."""
    place = 100 - 3 * torch.arange(len(source))
    valid = torch.ones(len(source), dtype=torch.bool)
    keys = tuple(map(str, range(len(source))))
    return Batch(keys, place, valid, place, source=torch.tensor(source), sources=NAMES)


def make_rows(batch: Batch, seed: int, groups: list[int], repeats: int = 1) -> Embeddings:
    """Rows of every sample; those of group NOBODY have no place either, as the model gives them."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.tensor(groups).repeat_interleave(repeats)
    vector = F.normalize(torch.randn(len(group), 5, generator=generator, dtype=torch.float64), dim=1)
    place = batch.place.repeat_interleave(repeats).masked_fill(group == NOBODY, NOBODY)
    return Embeddings(vector, group, place)


def take(rows: Embeddings, batch: Batch, samples: slice) -> tuple[Embeddings, Batch]:
    """What one rank holds."""
    per_sample = len(rows.group) // len(batch)
    here = slice(samples.start * per_sample, samples.stop * per_sample)
    return Embeddings(*(field[here] for field in rows)), batch.select(torch.arange(len(batch))[samples])


MIXED = [0, 1, 0, 1, 0, 0, 1, 0]
LEFT = [0, 1, 2, 3, 4, NOBODY, 6, 7]
RIGHT = [0, 1, 2, 2, 4, 5, NOBODY, 7]


def loss_by_hand(name: str, a: Embeddings, b: Embeddings, places: set[int]) -> float:
    """The formula with the anchors of some samples only."""

    def cross_entropy(queries: Embeddings, candidates: Embeddings) -> float:
        found = []
        for vector, group, place in zip(*queries, strict=True):
            scores = [SCALE * float(vector @ v) for v, g in zip(*candidates[:2], strict=True) if g != NOBODY]
            own = [SCALE * float(vector @ v) for v, g in zip(*candidates[:2], strict=True) if g == group]
            if int(place) in places and group != NOBODY and own:
                found.append(math.log(sum(map(math.exp, scores))) - sum(own) / len(own))
        return sum(found) / len(found)

    if name == "info_nce":
        return (cross_entropy(a, b) + cross_entropy(b, a)) / 2
    total = 0.0
    for vector, group, place in zip(*a, strict=True):
        for other, their in zip(*b[:2], strict=True):
            if int(place) in places and NOBODY not in (int(group), int(their)):
                sign = 1 if group == their else -1
                total += math.log1p(math.exp(-sign * (SCALE * float(vector @ other) + BIAS)))
    return total / (sum(int(place) in places for side in (a, b) for place in side.place) / 2)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_anchors_of_a_source_are_compared_with_everything(name: str, repeats: int) -> None:
    batch = make_batch(MIXED)
    a, b = make_rows(batch, 0, LEFT), make_rows(batch, 1, RIGHT, repeats)
    values = losses_by_source({"pair": OBJECTIVES[name](a, b)}, batch)
    assert values.keys() == {"loss@photos", "loss@films"}
    for number, source in enumerate(NAMES[:2]):
        places = set(batch.place[batch.source == number].tolist())
        assert values[f"loss@{source}"] == pytest.approx(loss_by_hand(name, a, b, places), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_of_one_source_has_the_loss_that_is_minimised(name: str) -> None:
    batch = make_batch([1] * SAMPLES)
    loss = OBJECTIVES[name](make_rows(batch, 0, LEFT), make_rows(batch, 1, RIGHT, 2))
    values = losses_by_source({"pair": loss}, batch)
    assert values == {"loss@films": pytest.approx(loss.value.item(), rel=1e-5)}
    assert not any(share.loss.requires_grad for share in loss.shares)


def test_a_source_without_rows_in_a_loss_is_left_out_of_it() -> None:
    batch = make_batch([0, 0, 0, 0, 1, 1, 1, 1])
    groups = list(range(SAMPLES))
    image, text = make_rows(batch, 0, groups), make_rows(batch, 1, groups)
    audio = make_rows(batch, 2, [0, 1, 2, 3, *[NOBODY] * 4])
    losses = {"text": info_nce(image, text, SCALE), "audio": info_nce(image, audio, SCALE)}
    values = losses_by_source(losses, batch)
    assert values.keys() == {
        "loss@photos", "loss/text@photos", "loss/audio@photos", "loss@films", "loss/text@films",
    }  # fmt: skip
    assert values["loss@photos"] == pytest.approx(values["loss/text@photos"] + values["loss/audio@photos"])
    assert values["loss@films"] == values["loss/text@films"]


@pytest.mark.parametrize("source", [[1, 1, 1, 1], [1, 1, 0, 1]], ids=["one source", "mixed"])
def test_a_scalar_is_known_for_batches_of_one_source(source: list[int]) -> None:
    batch = make_batch(source)
    rows = make_rows(batch, 0, [0, 1, 2, 3])
    losses = {"known": info_nce(rows, rows, SCALE), "scalar": Loss(torch.tensor(2.5))}
    values = losses_by_source(losses, batch)
    if source == [1, 1, 1, 1]:
        assert values["loss/scalar@films"] == 2.5
        assert values["loss@films"] == pytest.approx(losses["known"].value.item() + 2.5)
    else:
        assert values.keys() == {"loss/known@photos", "loss/known@films"}


def values_of_rank(name: str, source: list[int]) -> tuple[dict[str, float], float]:
    """What this rank finds with its part of the batch; everything in one process."""
    share = SAMPLES // collectives.world_size()
    here = slice(collectives.rank() * share, (collectives.rank() + 1) * share)
    whole = make_batch(source)
    a, batch = take(make_rows(whole, 0, LEFT), whole, here)
    b, _ = take(make_rows(whole, 1, RIGHT, 2), whole, here)
    loss = OBJECTIVES[name](a, b)
    losses = {"pair": loss, "scalar": Loss(loss.value)}
    return losses_by_source(losses, batch), loss.value.item()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "source",
    [MIXED, [0, 0, 0, 0, 2, 2, 2, 2], [1] * SAMPLES],
    ids=["mixed", "a source for each rank", "one source"],
)
def test_two_ranks_find_what_one_finds(ranks: Any, name: str, source: list[int]) -> None:
    alone, _ = values_of_rank(name, source)
    for values, _ in ranks(values_of_rank, name, source):
        assert values == pytest.approx(alone, rel=1e-5)
    assert ("loss/scalar@films" in alone) == (source == [1] * SAMPLES)
