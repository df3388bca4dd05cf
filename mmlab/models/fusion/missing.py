"""Modalities that a sample lacks: left out on purpose in training, and what may stand in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mmlab import collectives
from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import check_choice, has_tokens
from mmlab.models.network import FollowsSteps

Standing = Literal["learned", "zero", "mean"]


def drop_modalities(
    present: Bool[Tensor, "samples modalities"], share: float
) -> Bool[Tensor, "samples modalities"]:
    """Leave out each modality of each sample with a probability, but never all that it has.

    Where the draw leaves none, one of those that the sample has stays, each as likely.

    Args:
        present: Which there are.
        share: The probability.
    """
    draw = torch.rand(present.shape, device=present.device)
    kept = present & (draw >= share)
    last = draw.masked_fill(~present, -1).argmax(dim=1)
    spared = torch.nn.functional.one_hot(last, present.shape[1]).bool() & present
    return torch.where(kept.any(dim=1, keepdim=True), kept, spared)


def leave_out(encoded: Mapping[Modality, Encoded], share: float) -> dict[Modality, Encoded]:
    """The same samples with some modalities left out; see :func:`drop_modalities`."""
    present = torch.cat([has_tokens(part) for part in encoded.values()], dim=1)
    kept = drop_modalities(present, share)
    return {
        modality: part._replace(mask=part.mask & kept[:, [number]])
        for number, (modality, part) in enumerate(encoded.items())
    }


class Substitution(nn.Module, FollowsSteps):
    """Puts one token in the place of a modality that a sample lacks.

    `learned`: a vector that is trained, random at the start; `zero`: zeros; `mean`: the mean of all tokens of
    that modality in the steps before, over all ranks. Without it, a fusion leaves out what is not there.
    """

    def __init__(self, dims: dict[str, int], *, kind: Standing = "learned") -> None:
        """Make what stands there.

        Args:
            dims: Size of the tokens of each modality, by its name.
            kind: Which it is.

        Raises:
            ValueError: `kind` is none of these.
        """
        super().__init__()
        check_choice("kind", kind, get_args(Standing))
        self.dims = dims
        self.kind = kind
        if kind == "learned":
            # Of unit size: the norms of fusions would blow up the gradient of a vector near zero.
            self.tokens = nn.ParameterDict({name: torch.randn(size) for name, size in dims.items()})
        # What runs again in the backward pass then leaves the buffers alone, as those of batch norms.
        self.track_running_stats = kind == "mean"
        for name, size in dims.items():
            if kind == "mean":  # sum and number, in float64: a mean over millions
                self.register_buffer(f"{name}_sum", torch.zeros(size + 1, dtype=torch.float64))
                new = torch.zeros(size + 1, dtype=torch.float64)
                self.register_buffer(f"{name}_new", new, persistent=False)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> dict[Modality, Encoded]:
        """Fill every gap."""
        found = {}
        for modality, (tokens, mask) in encoded.items():
            gap = ~mask.any(dim=1, keepdim=True)
            first = torch.zeros_like(mask)
            first[:, :1] = gap
            token = self._token(modality, tokens)
            found[modality] = Encoded(torch.where(first[:, :, None], token, tokens), mask | first)
        return found

    @torch.no_grad()
    def count(self, encoded: Mapping[Modality, Encoded]) -> None:
        """In training, keep what is there for the mean of later steps; once for each sample of a step."""
        if self.kind != "mean" or not self.training:
            return
        for modality, (tokens, mask) in encoded.items():
            own = tokens.double().masked_fill(~mask[:, :, None], 0).sum(dim=(0, 1))
            new: Tensor = getattr(self, f"{modality.value}_new")
            new += torch.cat([own, mask.sum()[None].double()])

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what this step has seen to the means, on every rank: within a step they do not change."""
        for name in self.dims if self.kind == "mean" else ():
            new: Tensor = getattr(self, f"{name}_new")
            total: Tensor = getattr(self, f"{name}_sum")
            total += collectives.total(new)
            new.zero_()

    def _token(self, modality: Modality, tokens: Tensor) -> Tensor:
        if self.kind == "learned":
            learned: Tensor = self.tokens[modality.value]
            return learned
        if self.kind == "zero":
            return tokens.new_zeros(tokens.shape[2])
        total: Tensor = getattr(self, f"{modality.value}_sum")
        return (total[:-1] / total[-1].clamp(min=1)).to(tokens)
