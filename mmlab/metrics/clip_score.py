"""CLIPScore and RefCLIPScore: how well texts fit pictures or sounds, by a model that embeds both.

Hessel et al. 2021 (arXiv:2104.08718), section 3, with c a text, v a medium, R the references of v:

    CLIP-S(c, v) = w max(cos(c, v), 0), w = 2.5
    RefCLIP-S(c, R, v) = harmonic mean of CLIP-S(c, v) and max(max over r in R of cos(c, r), 0)

There the model is CLIP (ViT-B/32) and each text begins with "A photo depicts"; here the texts stand as they
are. How large cosines get depends on the model, its temperature and its data: by a small model of one's own,
numbers are comparable between what the same run has judged only, and with neither published ones nor those
by another run. What references and shuffled answers get by it is the scale to read them on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mmlab.metrics.ranking import Scores, bootstrap_interval

WEIGHT = 2.5
"""Brings the cosines of CLIP to about 0 to 1; with it a score may exceed 1."""


class Judged(NamedTuple):
    """Vectors of samples, of what was said of each, and of what people said."""

    media: Float[Tensor, "samples dim"]
    answers: Float[Tensor, "samples dim"]
    references: Float[Tensor, "references dim"]
    owner: Int64[Tensor, " references"]
    """The sample that a reference is of; a sample may own any number."""
    group: Int64[Tensor, " samples"]
    """Samples of one group are resampled together, and never shuffled among each other."""


def clip_score(
    media: Float[Tensor, "pairs dim"], texts: Float[Tensor, "pairs dim"]
) -> Float64[Tensor, " pairs"]:
    """CLIP-S of each pair, from 0 to 2.5."""
    return WEIGHT * _cosine(media, texts).clamp(min=0)


def closest_reference(
    texts: Float[Tensor, "samples dim"],
    references: Float[Tensor, "references dim"],
    owner: Int64[Tensor, " references"],
) -> Float64[Tensor, " samples"]:
    """Cosine with the closest reference of each sample, at least 0; 0 where it has none."""
    cosine = _cosine(texts[owner], references)
    return torch.zeros(len(texts), dtype=torch.float64).scatter_reduce(0, owner, cosine, "amax")


def ref_clip_score(
    score: Float64[Tensor, " samples"], closest: Float64[Tensor, " samples"]
) -> Float64[Tensor, " samples"]:
    """RefCLIP-S from what :func:`clip_score` and :func:`closest_reference` give; 0 where either is 0."""
    total = score + closest
    return 2 * score * closest / total.where(total != 0, 1.0)


def shuffled(group: Int64[Tensor, " samples"], *, seed: int) -> Int64[Tensor, " samples"]:
    """For each sample another one of another group, drawn so that each is drawn once.

    Where a group has more than half of all samples, some of its samples stay inside it.
    """
    generator = torch.Generator().manual_seed(seed)
    _, number, counts = torch.unique(group, return_inverse=True, return_counts=True)
    drawn = torch.randperm(len(group), generator=generator)
    of_group = torch.randperm(len(counts), generator=generator)[number]
    # Group after group, each is moved by the size of the largest, and so out of its own.
    order = drawn[of_group[drawn].argsort(stable=True)]
    other = torch.empty_like(order)
    other[order] = order.roll(-int(counts.max()))
    return other


def summarize(rows: Judged, *, seed: int = 0) -> dict[str, float]:
    """Means over samples, each with its 95 % interval over groups as `<name>_low` and `<name>_high`.

    `answers/clip_score`, and for scale `references/clip_score` (the mean over the references of a sample:
    what a person's text gets) and `shuffled/clip_score` (answers to samples of other groups); where there are
    references, `answers/ref_clip_score` and `shuffled/ref_clip_score` over the samples that have some. What
    no sample has is left out.

    Args:
        rows: On the CPU, at least one sample.
        seed: Of the shuffling and the resampling.
    """
    known = torch.zeros(len(rows.group), dtype=torch.bool)
    known[rows.owner] = True
    every = torch.ones_like(known)
    other = shuffled(rows.group, seed=seed)
    moved = rows.group[other] != rows.group
    found: dict[str, float] = {}

    def add(name: str, values: Float64[Tensor, " samples"], of: Bool[Tensor, " samples"]) -> None:
        if of.any():
            interval = bootstrap_interval([Scores(values[of], rows.group[of])], seed=seed)
            mean = float(values[of].mean())
            found.update({name: mean, f"{name}_low": interval.low, f"{name}_high": interval.high})

    for name, texts, of in (("answers", rows.answers, every), ("shuffled", rows.answers[other], moved)):
        score = clip_score(rows.media, texts)
        add(f"{name}/clip_score", score, of)
        closest = closest_reference(texts, rows.references, rows.owner)
        add(f"{name}/ref_clip_score", ref_clip_score(score, closest), of & known)
    right = clip_score(rows.media[rows.owner], rows.references)
    count = torch.bincount(rows.owner, minlength=len(known)).clamp(min=1)
    mean = torch.zeros(len(known), dtype=torch.float64).index_add(0, rows.owner, right) / count
    add("references/clip_score", mean, known)
    return found


def _cosine(left: Float[Tensor, "rows dim"], right: Float[Tensor, "rows dim"]) -> Float64[Tensor, " rows"]:
    return F.cosine_similarity(left.double(), right.double(), dim=-1)
