"""How likely a language model holds the right answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from mmlab.metrics.text import Answered, TextScore


class Perplexity(TextScore):
    """exp of the mean of -log p over the tokens of all right answers, what ends each included.

    The right answer of a sample is the one that its prompt holds: of several, the first. Samples whose prompt
    holds none do not count.
    """

    of_losses: ClassVar[bool] = True

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`perplexity`, in [1, inf]."""
        mean = math.fsum(one.loss for one in answers) / sum(one.tokens for one in answers)
        # math.exp would raise where this is infinite.
        return {"perplexity": float(torch.tensor(mean, dtype=torch.float64).exp())}
