"""Collectives on two gloo ranks: values, gradients, ranks with different numbers of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlab import collectives


def gather_and_weigh(rows: int) -> tuple[Tensor, Tensor]:
    """Gather a rank's rows; the gradient of a sum that each rank weighs in its own way."""
    own = torch.arange(rows * 2.0).reshape(rows, 2) + 100 * collectives.rank()
    own.requires_grad_()
    everybody = collectives.gather(own)
    weight = torch.arange(everybody.numel(), dtype=torch.float32).view_as(everybody)
    (gradient,) = torch.autograd.grad((everybody * weight * (1 + collectives.rank())).sum(), own)
    return everybody.detach(), gradient


def test_gather_joins_ranks_and_sums_their_gradients(ranks) -> None:
    (first, first_gradient), (second, second_gradient) = ranks(gather_and_weigh, 3)
    expected = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(first, torch.cat([expected, expected + 100]))
    assert torch.equal(first, second)
    weight = torch.arange(12.0).reshape(6, 2) * (1 + 2)
    assert torch.equal(torch.cat([first_gradient, second_gradient]), weight)


def gather_discontiguous() -> Tensor:
    own = torch.arange(6).reshape(2, 3).T + 10 * collectives.rank()
    return collectives.gather(own)


def test_gather_takes_integers_in_any_layout(ranks) -> None:
    expected = torch.arange(6).reshape(2, 3).T
    assert torch.equal(ranks(gather_discontiguous)[0], torch.cat([expected, expected + 10]))


def sum_in_place_of_nothing() -> tuple[Tensor, Tensor]:
    own = torch.tensor([1.0 + collectives.rank(), 2.0])
    return collectives.total(own), own


def test_total_sums_and_leaves_its_argument(ranks) -> None:
    for rank, (summed, own) in enumerate(ranks(sum_in_place_of_nothing)):
        assert summed.tolist() == [3.0, 4.0]
        assert own.tolist() == [1.0 + rank, 2.0]


def gather_uneven(rows_of_rank: list[int], dtype: torch.dtype) -> Tensor:
    rows = rows_of_rank[collectives.rank()]
    own = torch.full((rows, 3 if rows else 0), collectives.rank() + 1, dtype=dtype)
    return collectives.gather_rows(own)


def test_gather_rows_takes_any_number_of_rows(ranks) -> None:
    for rows, dtype in (([2, 5], torch.float32), ([0, 3], torch.int64), ([4, 0], torch.bool)):
        expected = torch.cat([torch.full((n, 3), i + 1, dtype=dtype) for i, n in enumerate(rows) if n > 0])
        for gathered in ranks(gather_uneven, rows, dtype):
            assert torch.equal(gathered, expected)
    assert [len(gathered) for gathered in ranks(gather_uneven, [0, 0], torch.float32)] == [0, 0]


def same_group_again() -> tuple[bool, int]:
    group = collectives.cpu_group()
    assert group is not None
    return group is collectives.cpu_group(), group.size()


def test_cpu_group_is_made_once(ranks) -> None:
    assert ranks(same_group_again) == [(True, 2), (True, 2)]


def test_one_process_needs_no_group() -> None:
    own = torch.randn(2, 3, requires_grad=True)
    assert (collectives.world_size(), collectives.rank(), collectives.cpu_group()) == (1, 0, None)
    assert collectives.gather(own) is own
    assert torch.equal(collectives.gather_rows(own), own)
    assert torch.equal(collectives.total(own), own)
    assert not collectives.total(own).requires_grad
