"""Perplexity from sums of losses: the formula, whatever the answers' lengths."""

from __future__ import annotations

import math

import pytest

from mmlab.metrics.perplexity import Perplexity
from mmlab.metrics.text import Answered


def answers(*losses: tuple[float, int]) -> list[Answered]:
    return [Answered(n, "", (), str(n), loss=loss, tokens=tokens) for n, (loss, tokens) in enumerate(losses)]


def test_it_is_the_inverse_of_the_geometric_mean_of_the_tokens_probabilities() -> None:
    probabilities = [[0.5, 0.25], [0.1], [0.9, 0.9, 0.9]]
    found = Perplexity()(answers(*((-sum(map(math.log, one)), len(one)) for one in probabilities)))
    product = math.prod(probability for one in probabilities for probability in one)
    assert found == {"perplexity": pytest.approx(product ** (-1 / 6))}


def test_every_token_counts_alike_not_every_answer() -> None:
    assert Perplexity()(answers((9.0, 1), (0.0, 8)))["perplexity"] == pytest.approx(math.e)


def test_a_model_that_excludes_the_right_answer_is_infinitely_perplexed() -> None:
    assert Perplexity()(answers((1e9, 1)))["perplexity"] == math.inf
    assert Perplexity()(answers((math.inf, 1), (1.0, 1)))["perplexity"] == math.inf
