"""Batch normalisation, kept from seeing rows that no sample owns."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from mmlab.batch import NOBODY

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def run_owned(
    network: nn.Module,
    run: Callable[[Tensor], Tensor],
    data: Shaped[Tensor, "rows *rest"],
    owner: Int64[Tensor, " rows"],
) -> Shaped[Tensor, "rows *out"]:
    """Run a network on rows, and see to it that those of no sample change nothing for the others.

    Only statistics of a batch tie rows together: where none are taken, in evaluation and where they are
    frozen, all rows are run. Else those that somebody owns are, and the others are zeros. Of fewer than two
    there are no statistics, and the running ones are used; unless other ranks wait for this one's
    (`SyncBatchNorm`).

    Args:
        network: Whose batch normalisation may take statistics.
        run: Calls it.
        data: What it is called with.
        owner: See :attr:`mmlab.batch.Input.owner`.
    """
    norms = [part for part in network.modules() if isinstance(part, BATCH_NORMS) and part.training]
    if not norms:
        return run(data)
    owned = owner != NOBODY
    count = int(owned.sum())
    if count == len(owned):
        return run(data)
    if count > 1:
        found = run(data[owned])
        rows = found.new_zeros(len(data), *found.shape[1:])
        rows[owned] = found
        return rows
    if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return run(data)
    for norm in norms:
        norm.eval()
    try:
        return run(data)
    finally:
        for norm in norms:
            norm.train()
