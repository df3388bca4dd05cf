"""What stands behind each word of a page: against torchvision's RoIAlign."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from mmlab.models.regions import regions


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 7), width=st.integers(1, 7), points=st.integers(1, 3), seed=st.integers(0, 10**6)
)
def test_regions_are_those_of_roi_align(height: int, width: int, points: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(2, height, width, 3, generator=generator)
    ends = torch.rand(2, 5, 2, 2, generator=generator).sort(dim=2).values  # left, top; right, bottom
    ends[0, 0] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    box = torch.cat([ends[:, :, 0], ends[:, :, 1]], dim=2)
    scale = torch.tensor([width, height, width, height])
    expected = roi_align(
        grid.permute(0, 3, 1, 2),
        [(part * scale) for part in box],
        output_size=1,
        sampling_ratio=points,
        aligned=True,
    ).reshape(2, 5, 3)
    torch.testing.assert_close(regions(grid, box, points=points), expected, rtol=1e-4, atol=1e-5)


def test_a_box_sees_its_own_part() -> None:
    grid = torch.arange(8.0).reshape(1, 2, 4, 1)
    box = torch.tensor([[[0.25, 0.0, 0.5, 0.5], [0.75, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    found = regions(grid, box, points=1).flatten().tolist()
    assert found == pytest.approx([1.0, 7.0, 3.5])


def test_words_far_away_change_nothing() -> None:
    grid = torch.randn(1, 3, 3, 2, requires_grad=True)
    regions(grid, torch.tensor([[[0.05, 0.05, 0.1, 0.1]]])).sum().backward()
    assert grid.grad is not None
    assert grid.grad[0, 0, 0].abs().sum() > 0
    assert not grid.grad[0, 2].any()
