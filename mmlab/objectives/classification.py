"""Losses of samples that are sorted into classes."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab.objectives.loss import Loss, mean_of


def soft_cross_entropy(
    logits: Float[Tensor, "samples classes"],
    target: Float[Tensor, "samples classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " samples"]:
    """Cross-entropy towards any distribution over classes, in float32.

    -sum_c t_c log softmax(logits)_c with t_c = (1 - s) target_c + s w / C and w = sum_c target_c, for a
    smoothing s over C classes (Szegedy et al. 2016, arXiv:1512.00567, section 7). What a target lacks to 1
    counts for nothing: one of zeros has the loss 0.
    """
    target = target.float()
    weight = target.sum(dim=1, keepdim=True)
    target = (1 - label_smoothing) * target + label_smoothing * weight / target.shape[1]
    return -(target * logits.float().log_softmax(dim=1)).sum(dim=1)


class SoftCrossEntropy(nn.Module):
    """Mean of :func:`soft_cross_entropy` over the global batch, a sample weighing what its target sums to."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Take the settings.

        Args:
            label_smoothing: Share of a target that is spread over all classes.

        Raises:
            ValueError: It is not in [0, 1).
        """
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: it must be at least 0 and below 1")
        self.label_smoothing = label_smoothing

    def forward(
        self,
        logits: Float[Tensor, "samples classes"],
        target: Float[Tensor, "samples classes"],
        place: Int64[Tensor, " samples"],
    ) -> Loss:
        """The loss; 0 where no target of any rank has weight. Every rank must call it.

        Args:
            logits: Of this rank's samples.
            target: A distribution over classes; less than 1 in all where the rest is no class, zeros where
                the sample takes no part.
            place: Of each sample.
        """
        losses = soft_cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        return mean_of(losses, target.float().sum(dim=1), place)
