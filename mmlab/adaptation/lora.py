"""Low-rank adaptation and its relatives, by peft's layers."""

from __future__ import annotations

import math
from typing import Any, Literal

import peft
import torch
from jaxtyping import Float
from peft import AdaLoraConfig, LoraConfig
from peft.tuners import adalora
from peft.tuners.lora.layer import Conv1D
from torch import Tensor, nn

from mmlab.adaptation.injected import ADAPTER, InjectedMethod, wrapped
from mmlab.adaptation.rank_budget import RankBudget
from mmlab.adaptation.targets import CONVOLUTIONS, default_paths, find_candidates, named_paths

Kind = Literal["lora", "rslora", "dora", "adalora", "pissa"]
START = 1.5
"""AdaLoRA's rank at the start, as a multiple of that at the end (Zhang et al. 2023, section 4)."""
GAP = 1e-6
"""Least distance between the singular values kept and those left, as a share of the largest."""


class LoRA(InjectedMethod):
    """Adds a product of two thin matrices to each weight (Hu et al. 2022, arXiv:2106.09685).

    `lora`: W + alpha / r B A, with B = 0 at the start.
    `rslora`: W + alpha / sqrt(r) B A (Kalajdzievski 2023, arXiv:2312.03732), for higher ranks.
    `dora`: direction and length of each row apart (Liu et al. 2024, arXiv:2402.09353).
    `adalora`: B diag(E) A; starts at rank 1.5 r and takes triplets away wherever they matter least, until
    each layer has r on average (Zhang et al. 2023, arXiv:2303.10512); see
    :class:`~mmlab.adaptation.rank_budget.RankBudget`.
    `pissa`: B A starts as the principal part of W, which is taken out of W (Meng et al. 2024,
    arXiv:2404.02948).

    All of them start with the function of the network as it is. The weight of a convolution is taken as the
    matrix [out, in * kernel]. Grouped convolutions, layers whose weights are read without being called (those
    of `nn.MultiheadAttention`), layers with a `forward` of their own, and layers that were built fixed cannot
    be adapted.
    """

    tensors = frozenset({"lora_A", "lora_B", "lora_E", "lora_magnitude_vector"})

    def __init__(
        self,
        rank: int = 8,
        *,
        alpha: float = 16.0,
        dropout: float = 0.0,
        kind: Kind = "lora",
        targets: list[str] | None = None,
    ) -> None:
        """Take the settings.

        Args:
            rank: Inner size of the product; of `adalora`, the average at the end.
            alpha: Strength of what is added.
            dropout: Probability on what the added part reads.
            kind: Which relative.
            targets: Patterns of shell style over module paths inside the encoder (`*.query`); None takes
                every layer inside the blocks that can be adapted and is not smaller than the rank.

        Raises:
            ValueError: A setting out of its range.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: it must be at least 1")
        if alpha <= 0:
            raise ValueError(f"alpha={alpha}: it must be above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: it must lie in [0, 1)")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.kind = kind
        self.targets = targets
        self.start_rank = math.ceil(START * rank) if kind == "adalora" else rank
        self.budget = RankBudget(rank)

    def adapt(self, network: nn.Module) -> None:
        """Put the matrices in.

        Raises:
            ValueError: No layer can take them, or `targets` name one that cannot.
        """
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return
        paths = self._paths(network)
        transposed = [path for path in paths if isinstance(network.get_submodule(path), Conv1D)]
        plain = [path for path in paths if path not in set(transposed)]
        for group, fan_in_fan_out in ((plain, False), (transposed, True)):
            if group:
                self.inject(network, self._config(fan_in_fan_out), group)
        for path, layer in wrapped(network).items():
            base = layer.get_base_layer()
            if self.kind != "adalora" and isinstance(base, CONVOLUTIONS):
                layer.lora_A[ADAPTER].dilation = base.dilation  # peft 0.21 leaves it at 1
            if self.kind == "pissa":
                _start_principal(path, layer)
            if self.kind == "adalora":
                self.budget.watch(layer)

    def penalty(self, part: nn.Module) -> Tensor | None:
        """AdaLoRA's: what makes its factors orthogonal."""
        return self.budget.penalty(wrapped(part).values()) if self.kind == "adalora" else None

    def after_step(self, part: nn.Module, step: int, total_steps: int) -> None:
        """Let AdaLoRA share its ranks out."""
        super().after_step(part, step, total_steps)
        if self.kind == "adalora":
            self.budget.step(list(wrapped(part).values()), step, total_steps)

    def _config(self, fan_in_fan_out: bool) -> LoraConfig:
        shared: dict[str, Any] = {
            "lora_alpha": self.alpha, "lora_dropout": self.dropout, "fan_in_fan_out": fan_in_fan_out,
        }  # fmt: skip
        if self.kind == "adalora":
            # peft's own schedule is not used; it wants the number of steps now.
            return AdaLoraConfig(init_r=self.start_rank, target_r=self.rank, total_step=1, **shared)
        return LoraConfig(
            r=self.rank, use_rslora=self.kind == "rslora", use_dora=self.kind == "dora", **shared
        )

    def _paths(self, network: nn.Module) -> list[str]:
        """Where the matrices go."""
        candidates = find_candidates(network)
        if self.targets is not None:
            return named_paths(candidates, self.targets, method=self.kind, refuse=self._refuse)
        found = default_paths(network, candidates)
        refused = {path: self._refuse(candidates[path].module) for path in found}
        chosen = [path for path, reason in refused.items() if reason is None]
        if not chosen:
            reasons = refused or {path: candidate.unfit for path, candidate in candidates.items()}
            first = next((f"{path} {reason}" for path, reason in reasons.items()), "it holds none")
            raise ValueError(
                f"{self.kind}: {type(network).__name__} has no linear layer or convolution that can be "
                f"adapted: {first}"
            )
        return chosen

    def _refuse(self, layer: nn.Module) -> str | None:
        assert isinstance(layer.weight, Tensor)
        sides = tuple(layer.weight.flatten(1).shape)
        if self.start_rank > min(sides):
            begins = f" ({self.kind} starts at {self.start_rank})" if self.start_rank != self.rank else ""
            return (
                f"has a weight of {sides[0]} x {sides[1]}, too small for rank={self.rank}{begins}: lower the "
                "rank, or leave the layer out of targets"
            )
        has_form = not isinstance(layer, CONVOLUTIONS) or (
            isinstance(layer, nn.Conv2d) and hasattr(adalora, "SVDConv2d")
        )
        if self.kind == "adalora" and not has_form:
            return (
                f"is a {type(layer).__name__}, which AdaLoRA has no form of in peft {peft.__version__}: "
                "leave it out, or use kind=lora"
            )
        if self.kind == "dora" and bool((layer.weight.flatten(1) == 0).all(1).any()):
            return "has rows of zeros, which have no direction: leave it out of targets, or use kind=lora"
        return None


def principal(
    weight: Float[Tensor, "out in"], rank: int
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """Split off the principal part of a matrix: B A is its best approximation of that rank.

    B = U S^1/2 and A = S^1/2 V^T over the largest singular values (Meng et al. 2024, arXiv:2404.02948,
    equations 2 and 3), in float64, from the eigenvectors of the smaller Gram matrix: exact, and two to three
    times as fast as the whole decomposition. The signs of the vectors are arbitrary, their product is not, so
    that every build from the same weight leaves the same rest.

    Raises:
        ValueError: The next singular value is alike, so that the principal part is not unique.
    """
    weight = weight.double()
    wide = weight.shape[0] <= weight.shape[1]
    values, vectors = torch.linalg.eigh(weight @ weight.T if wide else weight.T @ weight)
    singular = values.flip(0)[: rank + 1].clamp(min=0).sqrt()
    after = float(singular[rank]) if len(singular) > rank else 0.0
    if not float(singular[rank - 1]) - after > GAP * float(singular[0]):
        raise ValueError(
            f"its singular values {rank} and {rank + 1} are alike ({singular[rank - 1]:.3g}, {after:.3g}), "
            f"so that no part of rank {rank} is the principal one: choose another rank, or leave it out of "
            "targets"
        )
    root = singular[:rank].sqrt()
    top = vectors[:, -rank:].flip(1)
    if wide:
        return top * root, (top.T @ weight) / root[:, None]
    return (weight @ top) / root, (top * root).T


@torch.no_grad()
def _start_principal(path: str, layer: Any) -> None:
    """Move the principal part of a layer's weight into its matrices."""
    base, scale = layer.get_base_layer(), layer.scaling[ADAPTER]
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight.flatten(1)
    try:
        b, a = principal(weight, layer.r[ADAPTER])
    except ValueError as error:
        raise ValueError(f"pissa: {path}: {error}") from error
    matrices = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
    for matrix, value in zip(matrices, (b, a), strict=True):
        matrix.copy_((value / math.sqrt(scale)).reshape(matrix.shape))
    # What is left counts for what rounding took from the matrices.
    product = matrices[0].flatten(1).double() @ matrices[1].flatten(1).double()
    rest = weight.double() - scale * product
    base.weight.copy_((rest.T if isinstance(base, Conv1D) else rest).reshape(base.weight.shape))
