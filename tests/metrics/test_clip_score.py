"""CLIPScore and RefCLIPScore: against the formulas in float64, and the scale that stands beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import normalize

from mmlab.metrics.clip_score import (
    Judged,
    clip_score,
    closest_reference,
    ref_clip_score,
    shuffled,
    summarize,
)

SAMPLES, DIM = 40, 6
OWNER = [n for n in range(SAMPLES) for _ in range(n % 4)]
"""Sample n has n mod 4 references: some have none."""


@pytest.fixture(scope="module")
def rows() -> Judged:
    torch.manual_seed(3)
    media, answers = torch.randn(SAMPLES, DIM), torch.randn(SAMPLES, DIM)
    return Judged(
        media,
        media + answers,
        media[OWNER] + torch.randn(len(OWNER), DIM) / 2,
        torch.tensor(OWNER),
        torch.arange(SAMPLES) // 2,
    )


def naive(rows: Judged) -> tuple[np.ndarray, np.ndarray]:
    """CLIP-S of each sample, and RefCLIP-S, NaN without references; as the paper's own program normalises."""
    media, answers, references = (normalize(part.double().numpy()) for part in rows[:3])
    score = 2.5 * np.clip((media * answers).sum(axis=1), 0, None)
    both = np.full(SAMPLES, np.nan)
    for n in set(OWNER):
        closest = max(0.0, *(references[np.array(OWNER) == n] @ answers[n]))
        both[n] = 2 / (1 / score[n] + 1 / closest) if score[n] > 0 and closest > 0 else 0.0
    return score, both


def test_scores_are_those_of_the_formulas(rows: Judged) -> None:
    score, both = naive(rows)
    assert 0 < (score == 0).sum() < SAMPLES / 2  # some are cut at 0
    found = clip_score(rows.media, rows.answers)
    np.testing.assert_allclose(found, score, rtol=0, atol=1e-12)
    closest = closest_reference(rows.answers, rows.references, rows.owner)
    known = ~np.isnan(both)
    np.testing.assert_allclose(ref_clip_score(found, closest)[known], both[known], rtol=0, atol=1e-12)


def test_means_are_those_of_the_formulas(rows: Judged) -> None:
    score, both = naive(rows)
    found = summarize(rows)
    assert found["answers/clip_score"] == pytest.approx(score.mean(), abs=1e-12)
    assert found["answers/ref_clip_score"] == pytest.approx(np.nanmean(both), abs=1e-12)
    for name in ("answers/clip_score", "answers/ref_clip_score", "references/clip_score"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


@pytest.mark.parametrize(
    ("text", "score"), [([3.0, 4.0], 2.5 * 0.6), ([-3.0, 4.0], 0.0), ([0.0, 1.0], 0.0), ([2.0, 0.0], 2.5)]
)
def test_score_of_an_angle(text: list[float], score: float) -> None:
    found = clip_score(torch.tensor([[1.0, 0.0]]), torch.tensor([text]))
    assert found.item() == pytest.approx(score, abs=1e-7)


@pytest.mark.parametrize(
    ("score", "closest", "both"), [(1.0, 0.5, 2 / 3), (2.5, 1.0, 10 / 7), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_harmonic_mean(score: float, closest: float, both: float) -> None:
    found = ref_clip_score(torch.tensor([score]).double(), torch.tensor([closest]).double())
    assert found.item() == pytest.approx(both)


def test_references_are_averaged_in_a_sample_then_over_samples() -> None:
    media = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    references = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    rows = Judged(media, media, references, torch.tensor([0, 0, 1]), torch.arange(3))
    assert summarize(rows)["references/clip_score"] == pytest.approx(2.5 * (0.5 + 0.6) / 2, abs=1e-6)


def test_what_no_sample_has_is_left_out() -> None:
    vector = torch.tensor([[1.0, 0.0]])
    none = torch.empty(0, 2), torch.empty(0, dtype=torch.int64)
    found = summarize(Judged(vector, vector, *none, torch.tensor([5])))
    assert set(found) == {"answers/clip_score", "answers/clip_score_low", "answers/clip_score_high"}
    assert set(found.values()) == {2.5}


def test_shuffled_answers_are_those_of_other_groups() -> None:
    """Samples of one group are alike and of two groups orthogonal: what is shuffled fits nothing."""
    group = torch.tensor([4, 4, 4, 7, 7, 9, 9, 9])
    vector = torch.eye(10)[group]
    found = summarize(Judged(vector, vector, vector, torch.arange(8), group))
    assert found["answers/clip_score"] == found["references/clip_score"] == 2.5
    assert found["answers/ref_clip_score"] == pytest.approx(2 * 2.5 / 3.5)
    assert found["shuffled/clip_score"] == found["shuffled/ref_clip_score"] == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 99))
def test_shuffling_draws_each_once_and_leaves_the_group_where_it_can(groups: list[int], seed: int) -> None:
    group = torch.tensor(groups)
    other = shuffled(group, seed=seed)
    assert sorted(other.tolist()) == list(range(len(groups)))
    largest = max(groups.count(one) for one in groups)
    stays = int((group[other] == group).sum())
    assert stays == max(0, 2 * largest - len(groups))
    assert torch.equal(other, shuffled(group, seed=seed))


def test_shuffling_draws_anew_with_another_seed() -> None:
    group = torch.arange(30)
    assert not torch.equal(shuffled(group, seed=0), shuffled(group, seed=1))
