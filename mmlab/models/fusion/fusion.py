"""What every fusion is: the tokens of each modality of a sample in, tokens of the whole sample out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded


class Fusion(nn.Module, ABC):
    """Makes one of the modalities of each sample.

    Rows are samples. One that lacks a modality has no token of it: its `mask` is False throughout, and what
    stands in `tokens` says nothing. A fusion reads all its modalities in every call and gives what is absent
    weight zero (`masked_fill`, `torch.where`), so that every tower has a gradient, of zeros if need be: the
    collectives of DDP and FSDP2 match whatever a rank's batch lacks.
    """

    dims: Mapping[Modality, int]
    """Size of the tokens of each modality that it reads."""
    dim: int
    """Size of the tokens that it gives."""

    def __init__(self, dims: Mapping[str, int], *, dim: int) -> None:
        """Set the sizes.

        Args:
            dims: By name of the modality; each must be there in every call.
            dim: Of the result.

        Raises:
            ValueError: No modality, or a name that is none.
        """
        super().__init__()
        unknown = [name for name in dims if name not in set(Modality)]
        if unknown or not dims:
            raise ValueError(
                f"{type(self).__name__}: dims={dict(dims)}: give the size of the tokens of each modality to "
                f"fuse, by name: {', '.join(Modality)}"
            )
        self.dims = {modality: dims[modality.value] for modality in Modality if modality.value in dims}
        self.dim = dim

    @abstractmethod
    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample; each has at least one token in the result."""


def has_tokens(encoded: Encoded) -> Bool[Tensor, "samples 1"]:
    """Which samples have the modality, as a column."""
    return encoded.mask.any(dim=1, keepdim=True)


def mean_token(encoded: Encoded) -> Float[Tensor, "samples dim"]:
    """The mean of each sample's tokens, in float32; zeros where it has none."""
    valid = encoded.mask[:, :, None]
    tokens = encoded.tokens.float().masked_fill(~valid, 0)
    return tokens.sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def check_layers(num_layers: int) -> None:
    """Raise ValueError unless there is a layer."""
    if num_layers < 1:
        raise ValueError(f"num_layers={num_layers}: it must be 1 at least")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless a setting is one of those there are."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: set it to one of {', '.join(choices)}")


def check_heads(dim: int, num_heads: int) -> None:
    """Raise ValueError unless the heads divide the size."""
    if num_heads < 1 or dim % num_heads != 0:
        raise ValueError(f"num_heads={num_heads} must divide dim={dim}, and be at least 1")
