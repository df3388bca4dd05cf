from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.models.encoders.encoder import Encoded
from mmlab.models.pooling import (
    AttentivePooling,
    FirstTokenPooling,
    LastTokenPooling,
    MeanPooling,
    Pooling,
    SegmentPooling,
)


def encoded(lengths: list[int]) -> Encoded:
    """What stands after a row's end is poison."""
    tokens = torch.randn(len(lengths), max(lengths), 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Encoded(tokens.masked_fill(~mask[:, :, None], torch.nan).requires_grad_(), mask)


def attentive() -> AttentivePooling:
    pooling = AttentivePooling(6)
    torch.nn.init.normal_(pooling.query, generator=torch.Generator().manual_seed(1))
    return pooling


def weighted(row: np.ndarray) -> np.ndarray:
    score = np.exp(row @ attentive().query.detach().double().numpy() / np.sqrt(6))
    return score @ row / score.sum()


@pytest.mark.parametrize(
    ("pooling", "reference"),
    [(MeanPooling(), lambda row: row.mean(axis=0)), (FirstTokenPooling(), lambda row: row[0]),
     (LastTokenPooling(), lambda row: row[-1]), (attentive(), weighted)],
)  # fmt: skip
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_against_a_reference_in_float64(pooling: Pooling, reference, lengths: list[int]) -> None:
    given_ = encoded(lengths)
    vectors = pooling(given_)
    for row, length in enumerate(lengths):
        expected = reference(given_.tokens[row, :length].detach().double().numpy())
        np.testing.assert_allclose(vectors[row].detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    vectors.sum().backward()
    assert given_.tokens.grad.isfinite().all()


def test_the_first_token_is_the_first_valid_one() -> None:
    """Behind a fusion that puts modalities side by side, one that a sample lacks may stand before."""
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[False, True, True], [True, True, False]])
    assert FirstTokenPooling()(Encoded(tokens, mask)).tolist() == [[2.0, 3.0], [6.0, 7.0]]


def test_attention_starts_as_the_mean_and_can_leave_it() -> None:
    pooling = AttentivePooling(6)
    given_ = encoded([4, 2])
    torch.testing.assert_close(pooling(given_), MeanPooling()(given_))
    pooling(given_).square().sum().backward()
    assert pooling.query.grad.abs().max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), segments=st.integers(1, 5))
def test_segments_are_adaptive_average_pooling_of_the_valid_tokens(lengths: list[int], segments: int) -> None:
    given_ = encoded(lengths)
    vectors = SegmentPooling(segments)(given_)
    for row, length in enumerate(lengths):
        valid = given_.tokens[row, :length].T[None].double()
        expected = torch.nn.functional.adaptive_avg_pool1d(valid, segments)[0].T.flatten()
        torch.testing.assert_close(vectors[row].double(), expected, rtol=1e-4, atol=1e-6)
    vectors.sum().backward()
    assert given_.tokens.grad.isfinite().all()


def test_segments_must_be_positive() -> None:
    with pytest.raises(ValueError, match="segments=0: it must be at least 1"):
        SegmentPooling(0)
