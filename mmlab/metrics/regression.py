"""Scores of numbers on a scale around 0, as sentiment analysis counts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmlab.metrics.text import Answered, TextScore, with_interval

Numbers = NDArray[np.float64]


class ScaleScores(TextScore):
    """Mean absolute error, correlation, and accuracies of CMU-MOSI and MOSEI, as MMSA computes them.

    - `mae` with its interval; `corr`, Pearson's correlation, not a number where either side is constant (what
      is said: but for rounding).
    - `acc_7`, `acc_5`: both sides are clipped to [-3, 3] (to [-2, 2]) and rounded, halves to even numbers.
    - `acc_2_has0`, `f1_has0`: negative against not negative (0 counts as not negative).
    - `acc_2_non0`, `f1_non0`: negative against positive, over samples whose right value is not 0; a value
      that is said counts as positive above 0. Both F1 are weighted by the right classes. Not a number where
      every right value is 0.

    Where one value that is said is not a number, none of them is. For CH-SIMS, whose labels lie in [-1, 1],
    MMSA has other accuracies (`acc_5`, `acc_3` and `acc_2` with bounds of their own); these here are those of
    MOSI whatever the scale.

    MMSA: Mao et al. 2022, arXiv:2203.12441; its function `__eval_mosi_regression`.
    """

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """The scores."""
        said = np.array([float(one.prediction) for one in answers])
        right = np.array([float(one.references[0]) for one in answers])
        found = with_interval("mae", np.abs(said - right).tolist(), answers)
        found["corr"] = _correlation(said, right)
        for name, limit in (("acc_7", 3), ("acc_5", 2)):
            rounded = (np.round(np.clip(side, -limit, limit)) for side in (said, right))
            found[name] = float(np.mean(np.equal(*rounded)))
        found |= _binary("has0", said >= 0, right >= 0)
        some = right != 0
        found |= _binary("non0", said[some] > 0, right[some] > 0)
        # It is on neither side of a bound, and would count as one more wrong answer.
        return dict.fromkeys(found, math.nan) if np.isnan(said).any() else found


def _correlation(said: Numbers, right: Numbers) -> float:
    # What is said of samples that look alike differs by rounding, which correlates with anything.
    if np.ptp(said) <= 1e-6 * max(1.0, float(np.abs(said).max())) or np.ptp(right) == 0:
        return math.nan
    return float(np.corrcoef(said, right)[0, 1])


def _binary(name: str, said: NDArray[np.bool_], right: NDArray[np.bool_]) -> dict[str, float]:
    """Accuracy, and F1 as the mean over both classes weighted by how many are right."""
    if len(right) == 0:
        return {f"acc_2_{name}": math.nan, f"f1_{name}": math.nan}
    weighted = 0.0
    for kind in (False, True):
        known, told = right == kind, said == kind
        total = known.sum() + told.sum()
        f1 = 2 * (known & told).sum() / total if total else 0.0
        weighted += float(f1 * known.mean())
    return {f"acc_2_{name}": float(np.mean(said == right)), f"f1_{name}": weighted}
