"""Methods that train a few of a network's own parameters and add none."""

from __future__ import annotations

from torch import nn

from mmlab.adaptation.method import EncoderMethod

NORMS = (
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


class BitFit(EncoderMethod):
    """Trains every bias of the encoders, those of norms too (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    def adapt(self, network: nn.Module) -> None:
        """Look whether there is anything to train.

        Raises:
            ValueError: The network has no biases.
        """
        named = list(network.named_parameters())
        fixed = not any(parameter.requires_grad for _, parameter in named)
        if not fixed and not any(self.trains(name, parameter) for name, parameter in named):
            raise ValueError(
                f"bitfit: {type(network).__name__} has no biases: use layernorm, which trains the scales of "
                "its norms, or lora"
            )

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """A vector called `bias` or `..._bias`; tables of relative positions are none."""
        leaf = name.rpartition(".")[2]
        return parameter.ndim == 1 and (leaf == "bias" or leaf.endswith("_bias"))


class NormTuning(EncoderMethod):
    """Trains scales and shifts of the encoders' norms (Zhao et al. 2024, arXiv:2312.11420).

    Running statistics of batch norms are no parameters; whoever built the encoder says whether they move.
    """

    def __init__(self) -> None:
        self.norms: set[str] = set()
        """Names of what is trained, from the encoder."""

    def adapt(self, network: nn.Module) -> None:
        """Find the norms.

        Raises:
            ValueError: The network has none with a scale.
        """
        found = {
            f"{path}.{name}".lstrip(".")
            for path, module in network.named_modules()
            if is_norm(module)
            for name, _ in module.named_parameters(recurse=False)
        }
        if not found and any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(
                f"layernorm: {type(network).__name__} has no norms with a scale: use bitfit, which trains "
                "its biases, or lora"
            )
        self.norms |= found

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """Scales and shifts of norms."""
        return name in self.norms


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: by class, or from what it holds, as libraries bring their own RMSNorm.

    A norm of another class holds no modules and, as vectors of one length, a `weight` and perhaps a `bias`.
    """
    if isinstance(module, NORMS):
        return True
    held = dict(module.named_parameters(recurse=False))
    return (
        not isinstance(module, nn.PReLU)
        and not any(True for _ in module.children())
        and set(held) in ({"weight"}, {"weight", "bias"})
        and all(parameter.ndim == 1 for parameter in held.values())
    )
