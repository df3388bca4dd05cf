"""The conditional random field against a list of all sequences."""

from __future__ import annotations

from itertools import pairwise, product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.models.crf import Transitions, best_tags, negative_log_likelihood


def score(emission: Tensor, tags: tuple[int, ...], transitions: Transitions) -> Tensor:
    total = transitions.start[tags[0]] + transitions.end[tags[-1]]
    total = total + sum(emission[word, tag] for word, tag in enumerate(tags))
    return total + sum((transitions.between[a, b] for a, b in pairwise(tags)), torch.zeros(()))


def draw(seed: int, lengths: list[int], tags: int) -> tuple[Tensor, Tensor, Tensor, Transitions]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    emission = numbers(len(lengths), max(lengths), tags)
    right = torch.randint(0, tags, emission.shape[:2], generator=generator)
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return emission, right, there, Transitions(numbers(tags), numbers(tags, tags), numbers(tags))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3))
def test_against_every_sequence(seed: int, lengths: list[int], tags: int) -> None:
    emission, right, there, transitions = draw(seed, lengths, tags)
    losses = negative_log_likelihood(emission, right, there, transitions)
    best = best_tags(emission, there, transitions)
    for number, length in enumerate(lengths):
        every = list(product(range(tags), repeat=length))
        scores = torch.stack([score(emission[number], one, transitions) for one in every])
        own = score(emission[number], tuple(right[number, :length].tolist()), transitions)
        torch.testing.assert_close(losses[number], scores.logsumexp(0) - own, rtol=1e-4, atol=1e-4)
        found = tuple(best[number, :length].tolist())
        torch.testing.assert_close(
            score(emission[number], found, transitions), scores.max(), rtol=1e-4, atol=1e-4
        )
        assert (best[number, length:] == 0).all()


def test_a_sentence_without_words_has_no_loss_and_a_gradient() -> None:
    emission, right, there, transitions = draw(0, [2, 3], 3)
    there = there & torch.tensor([[False], [True]])
    emission.requires_grad_()
    losses = negative_log_likelihood(emission, right, there, transitions)
    assert losses[0] == 0
    losses.sum().backward()
    assert emission.grad is not None
    assert (emission.grad[0] == 0).all()
    assert emission.grad[1].abs().sum() > 0


def test_what_stands_behind_the_end_changes_nothing() -> None:
    emission, right, there, transitions = draw(1, [2, 4], 3)
    other, tags = emission.clone(), right.clone()
    other[0, 2:], tags[0, 2:] = 1e6, 2
    for one, changed in (
        (
            negative_log_likelihood(emission, right, there, transitions),
            negative_log_likelihood(other, tags, there, transitions),
        ),
        (best_tags(emission, there, transitions), best_tags(other, there, transitions)),
    ):
        assert torch.equal(one, changed)
