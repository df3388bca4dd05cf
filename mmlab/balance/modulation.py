"""OGM-GE: gradients of modalities that are ahead are made smaller (Peng et al. 2022, arXiv:2203.15332)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mmlab import collectives
from mmlab.balance.balance import Balance, Criterion
from mmlab.models.fusion_classifier import Classified, FusionClassifier
from mmlab.models.unimodal import MaskedPasses, Unimodal
from mmlab.objectives.loss import Loss


def discrepancy_ratios(
    score: Float[Tensor, " modalities"], count: Float[Tensor, " modalities"]
) -> Float[Tensor, " modalities"]:
    """How far each modality is ahead: its mean score over the mean of those of the others.

    For two modalities that all samples have it is the discrepancy ratio of section 3.2. It is 1 where a
    modality has no sample, or all others have none.

    Args:
        score: Sum over the samples that have the modality of the probability of the right class.
        count: Number of these samples.
    """
    there = (count > 0).to(score)
    mean = there * score / count.clamp(min=1)
    others = (mean.sum() - mean) / (there.sum() - there).clamp(min=1)
    known = (there > 0) & (there.sum() - there > 0)
    return torch.where(known, mean / others, 1.0)


def modulation_coefficients(
    ratio: Float[Tensor, " modalities"], *, alpha: float
) -> Float[Tensor, " modalities"]:
    """Equation 10 by the program: 1 - tanh(alpha ratio) where a modality is ahead (ratio > 1), else 1."""
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), 1.0)


def right_scores(loss: Loss) -> Float[Tensor, "2"]:
    """Sum over samples of exp(-loss), and how many count.

    For cross-entropy without smoothing exp(-loss) is the probability of the right class, whatever a class
    weighs; for ranks that of all right steps; for numbers it falls from 1 with the error.
    """
    assert loss.shares, "a loss that tells what each sample adds"
    counts = loss.shares[0].weight > 0
    each = torch.where(counts, loss.shares[0].loss / loss.shares[0].weight, torch.inf)
    return torch.stack([torch.exp(-each).sum(), counts.sum()]).double()


class GradientModulation(Balance):
    """On-the-fly gradient modulation with generalisation enhancement (OGM-GE).

    In each optimizer step the gradients of every tower are multiplied by
    :func:`modulation_coefficients`, and get Gaussian noise of the deviation that each tensor of them has, as
    in the authors' program (which does so for convolutions only). Scores are those of the model itself with
    all other modalities missing, so any fusion will do, and of samples that have the modality; the sums go
    over the global batch, all that is accumulated for a step. Fusion and head stay as they are.

    An optimizer that divides by the size of gradients (Adam, AdamW) undoes a factor that stays the same, and
    only changes of it matter: the paper trains with SGD. Such an optimizer also makes whole steps of the
    smallest noise, and would move weights that the batch has not read, such as rows of a table of words:
    unlike in the authors' program, neither a row of a gradient that is zero throughout gets noise nor a
    gradient without deviation.
    """

    def __init__(self, alpha: float = 0.3, *, noise: bool = True) -> None:
        """Take the settings.

        Args:
            alpha: How much a modality is held back that is ahead; the paper takes 0.1 to 1.
            noise: Whether gradients get noise (GE).

        Raises:
            ValueError: `alpha` is not above 0.
        """
        if not alpha > 0:
            raise ValueError(f"alpha={alpha}: it must be above 0; leave balance out to hold nothing back")
        self.alpha = alpha
        self.noise = noise
        self.start()

    def unimodal(self, model: FusionClassifier) -> Unimodal:
        """The model itself, with all other modalities missing."""
        return MaskedPasses()

    def check(self, trained: Collection[str]) -> None:
        """Raise ValueError where no tower is trained: there is no gradient to modulate."""
        if not any(name.startswith(f"{modality}.") for modality in self.modalities for name in trained):
            raise ValueError(
                "balance: GradientModulation holds back towers, but none is trained: train towers "
                "(adaptation.towers), or leave balance out"
            )

    def start(self) -> None:
        """Forget the scores."""
        self._scores: Tensor | None = None
        self._coefficients: Tensor | None = None

    def losses(self, name: str, said: Classified, criterion: Criterion) -> dict[str, Loss]:
        """The loss of all modalities together; the scores are added to those of this optimizer step."""
        assert said.alone is not None, "modulation asks in training"
        logits, present = said.alone
        found = [right_scores(criterion(logits[:, n], present[:, n])) for n in range(logits.shape[1])]
        scores = torch.stack(found, dim=1)
        self._scores = scores if self._scores is None else self._scores + scores
        return {name: criterion(said.logits, said.valid)}

    @torch.no_grad()
    def before_step(self, model: FusionClassifier, *, seed: Callable[[int], int]) -> None:
        """Modulate the gradients of the towers; nothing waits for the device."""
        assert self._scores is not None, "losses before gradients"
        score, count = collectives.total(self._scores)
        self._scores = None
        self._coefficients = modulation_coefficients(discrepancy_ratios(score, count), alpha=self.alpha)
        towers = [tower for _, tower in model.towers()]
        for number, (tower, coefficient) in enumerate(zip(towers, self._coefficients, strict=True)):
            gradients = [p.grad for p in tower.parameters() if p.grad is not None]
            if gradients and self.noise:
                modulate(gradients, coefficient, seed=seed(number))
            else:
                for gradient in gradients:
                    _own(gradient).mul_(coefficient.to(gradient.dtype))

    def numbers(self) -> dict[str, Tensor | float]:
        """The coefficient of each modality."""
        if self._coefficients is None:
            return {}
        pairs = zip(self.modalities, self._coefficients, strict=True)
        return {f"coefficient/{modality.value}": coefficient for modality, coefficient in pairs}


def modulate(gradients: list[Tensor], coefficient: Float[Tensor, ""], *, seed: int) -> None:
    """g <- k g + N(0, std(g) + 1e-8) in place, for each tensor; its deviation is that before.

    Tensors whose deviation is 0 and rows (along the first of several dims) that are 0 get no noise. Not each
    number that is 0: some, as those of the bias of keys in attention, are 0 but for rounding, which differs
    with the number of ranks.

    Noise depends on the seed and the shapes alone: ranks that hold copies draw the same, and those that hold
    shards (FSDP2) their parts of that, one tensor at a time whole.

    Args:
        gradients: All sharded over one mesh, or none.
        coefficient: k.
        seed: Of the draws.
    """
    generator = torch.Generator(gradients[0].device).manual_seed(seed)
    for gradient, spread in zip(gradients, deviations(gradients), strict=True):
        drawn = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
        if isinstance(gradient, DTensor):
            # Every rank has drawn the whole: no rank needs to send anything.
            drawn = distribute_tensor(
                drawn, gradient.device_mesh, gradient.placements, src_data_rank=None
            ).to_local()
        own = _own(gradient)
        noise = drawn * torch.where(spread > 0, spread + 1e-8, 0.0).to(own.dtype)
        if own.ndim > 1:
            noise.transpose(0, -1).mul_(own.flatten(1).any(dim=1))
        own.mul_(coefficient.to(own.dtype)).add_(noise)


def deviations(tensors: list[Tensor]) -> Float[Tensor, " tensors"]:
    """The standard deviation of each whole tensor, with n - 1 below; 0 for a single number.

    Args:
        tensors: All sharded over one mesh, or none.
    """
    size = torch.tensor([tensor.numel() for tensor in tensors], dtype=torch.float64)
    size = size.to(tensors[0].device, non_blocking=True)
    total = _over_shards(torch.stack([_own(t).sum(dtype=torch.float64) for t in tensors]), tensors[0])
    mean = total / size
    apart = [_own(tensor) - m.to(tensor.dtype) for tensor, m in zip(tensors, mean, strict=True)]
    squares = [part.square().sum(dtype=torch.float64) for part in apart]
    return (_over_shards(torch.stack(squares), tensors[0]) / (size - 1).clamp(min=1)).sqrt()


def _over_shards(sums: Tensor, like: Tensor) -> Tensor:
    """Sums of shards as those of whole tensors."""
    if isinstance(like, DTensor):
        for axis, placement in enumerate(like.placements):
            if placement.is_shard():
                dist.all_reduce(sums, group=like.device_mesh.get_group(axis))
    return sums


def _own(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; writing to it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
