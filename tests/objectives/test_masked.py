"""Masked language modelling: which words are hidden, random numbers that are hashes, the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.data.randomness import hash_labels
from mmlab.objectives.masked import Hidden, MaskedTokens, hide_tokens
from mmlab.objectives.noise import HIDDEN, uniform

MASK = 3
DRAWN = torch.arange(10, 500)
labels = st.integers(-(2**63), 2**63 - 1)


def hide(
    lengths: list[int], *, steps: int, share: float = 0.15, seed: int = 0
) -> tuple[Hidden, Tensor, Tensor]:
    """Rows [1, words ..., 2, 0, ...] of ids that differ; which are words."""
    ids = torch.zeros(len(lengths), steps, dtype=torch.int64)
    words = torch.zeros_like(ids, dtype=torch.bool)
    for row, count in enumerate(lengths):
        ids[row, : count + 2] = torch.tensor([1, *range(100, 100 + count), 2])
        words[row, 1 : count + 1] = True
    masked = MaskedTokens(share)
    place = torch.arange(len(lengths))
    return masked.hide(ids, words, place, mask=MASK, drawn=DRAWN, seed=seed), ids, words


class TestNoise:
    @given(st.lists(labels, min_size=1, max_size=4))
    def test_it_is_splitmix64(self, given_labels: list[int]) -> None:
        word = hash_labels(*given_labels)
        found = uniform(*given_labels[:-1], torch.tensor([given_labels[-1]]))
        assert float(found) == (word >> 40) / 2**24

    def test_it_is_uniform_and_uncorrelated(self) -> None:
        found = uniform(HIDDEN, 1, torch.arange(400)[:, None], torch.arange(250)).double()
        assert float(found.min()) >= 0
        assert float(found.max()) < 1
        counts = torch.histc(found, bins=20, min=0, max=1)
        expected = found.numel() / 20
        assert float(((counts - expected) ** 2 / expected).sum()) < 43.8  # chi-square, 19 degrees, p = 0.001
        for a, b in ((found[1:], found[:-1]), (found[:, 1:], found[:, :-1])):
            correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
            assert abs(float(correlation)) < 4 / found.numel() ** 0.5


class TestHiding:
    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.floats(0.05, 0.9), st.integers(0, 9))
    def test_a_share_of_the_words_of_each_row_one_at_least(
        self, lengths: list[int], share: float, seed: int
    ) -> None:
        found, ids, words = hide(lengths, steps=max(lengths) + 3, share=share, seed=seed)
        wanted = [min(n, max(1, round(torch.tensor(share * n).item()))) for n in lengths]
        assert found.target.sum(dim=1).tolist() == wanted
        assert not (found.target & ~words).any()
        assert torch.equal(found.ids[~found.target], ids[~found.target])

    def test_of_ten_eight_are_masked_and_one_is_another_word(self) -> None:
        found, ids, _ = hide([40] * 2000, steps=42, share=0.5)
        hidden, before = found.ids[found.target], ids[found.target]
        masked, same = hidden == MASK, hidden == before
        assert float(masked.double().mean()) == pytest.approx(0.8, abs=0.01)
        assert float(same.double().mean()) == pytest.approx(0.1, abs=0.01)
        others = hidden[~masked & ~same]
        assert set(others.tolist()) <= set(DRAWN.tolist())
        assert len(set(others.tolist())) > 480

    def test_every_word_is_as_likely(self) -> None:
        found, _, words = hide([20] * 4000, steps=22)
        share = found.target.double().mean(dim=0)[words[0]]
        assert float(share.min()) > 0.15 - 0.03
        assert float(share.max()) < 0.15 + 0.03

    def test_what_is_hidden_depends_on_the_place_alone(self) -> None:
        """Not on how far a row is padded, what stands beside it, or how ranks share the batch."""
        found, ids, words = hide([5, 12, 1, 8], steps=20)
        masked = MaskedTokens()
        alone = [
            masked.hide(a[None, :15], b[None, :15], torch.tensor([row]), mask=MASK, drawn=DRAWN, seed=0)
            for row, (a, b) in enumerate(zip(ids, words, strict=True))
        ]
        assert torch.equal(torch.cat([one.ids for one in alone]), found.ids[:, :15])
        assert not torch.equal(hide([5, 12, 1, 8], steps=20, seed=1)[0].ids, found.ids)

    def test_rows_of_one_sample_are_hidden_apart(self) -> None:
        ids = torch.arange(100, 140).repeat(2, 1)
        found = MaskedTokens().hide(
            ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([7, 7]), mask=MASK, drawn=DRAWN, seed=0
        )
        assert not torch.equal(found.target[0], found.target[1])

    def test_noise_at_its_ends_is_taken(self) -> None:
        ids = torch.full((1, 2), 100)
        for value in (0.0, 1 - 2**-24):
            found = hide_tokens(ids, ids > 0, torch.full((1, 2, 3), value), mask=MASK, drawn=DRAWN, share=0.5)
            assert found.target.sum() == 1

    @pytest.mark.parametrize("share", [0.0, 1.0, 15.0])
    def test_a_share_that_is_none_is_refused(self, share: float) -> None:
        with pytest.raises(ValueError, match=f"share={share}: it must be above 0 and below 1"):
            MaskedTokens(share)


class Guessed(NamedTuple):
    logits: Tensor
    token: Tensor
    place: Tensor


def loss_of_rank(sizes: list[int]) -> dict[str, Any]:
    """The loss of this rank's words, and its gradient."""
    rank = torch.distributed.get_rank()
    logits = all_logits(sum(sizes)).split(sizes)[rank].requires_grad_()
    token = torch.arange(sum(sizes)).remainder(7).split(sizes)[rank]
    loss = MaskedTokens()(Guessed(logits, token, torch.zeros_like(token))).value
    loss.backward()
    assert logits.grad is not None
    return {"value": loss.item(), "grad": logits.grad / torch.distributed.get_world_size()}


def all_logits(count: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", [[5, 2], [4, 0]])
def test_the_loss_is_the_mean_over_the_words_of_all_ranks(ranks: Any, sizes: list[int]) -> None:
    found = ranks(loss_of_rank, sizes)
    logits = all_logits(sum(sizes)).double().requires_grad_()
    token = torch.arange(sum(sizes)).remainder(7)
    expected = -(logits.exp() / logits.exp().sum(dim=1, keepdim=True)).log()[range(len(token)), token].mean()
    expected.backward()
    assert sum(one["value"] for one in found) / 2 == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad is not None
    torch.testing.assert_close(
        torch.cat([one["grad"] for one in found]).double(), logits.grad, rtol=1e-5, atol=1e-7
    )
