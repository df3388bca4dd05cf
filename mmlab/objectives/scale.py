"""Losses of numbers and of ordered classes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Error = Literal["absolute", "squared", "huber"]


def number_errors(
    said: Float[Tensor, " samples"], wanted: Float[Tensor, " samples"], *, error: Error
) -> Float[Tensor, " samples"]:
    """|d|, d^2, or d^2 / 2 up to 1 and |d| - 1/2 above (Huber 1964), of the difference d, in float32."""
    said, wanted = said.float(), wanted.float()
    if error == "absolute":
        return F.l1_loss(said, wanted, reduction="none")
    if error == "squared":
        return F.mse_loss(said, wanted, reduction="none")
    return F.huber_loss(said, wanted, reduction="none")


def rank_errors(
    logits: Float[Tensor, "samples steps"], rank: Int64[Tensor, " samples"]
) -> Float[Tensor, " samples"]:
    """-log p(rank) as a sum of yes and no: is the rank above k? One logit for each k but the last.

    sum_k -log sigmoid(s_k logit_k) with s_k = 1 where rank > k, else -1 (extended binary classification: Li
    and Lin 2006; for networks Niu et al. 2016, eq. 5 without weights), in float32.
    """
    above = rank[:, None] > torch.arange(logits.shape[1], device=rank.device)
    return F.binary_cross_entropy_with_logits(logits.float(), above.float(), reduction="none").sum(dim=1)
