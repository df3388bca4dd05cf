"""Methods that add nothing to a network: all of it is trained, none of it, or the last layer behind it."""

from __future__ import annotations

from torch import nn

from mmlab.adaptation.method import EncoderMethod, Method, within
from mmlab.adaptation.reinitialize import reinitialize
from mmlab.models.network import Network


class Full(Method):
    """Everything is trained."""

    def __init__(self, reinitialize: int = 0) -> None:
        """Take the settings.

        Args:
            reinitialize: How many blocks at the top of each encoder start again at random, as what they have
                learnt may be too much of the task they were pretrained for.

        Raises:
            ValueError: It is below 0.
        """
        if reinitialize < 0:
            raise ValueError(f"reinitialize={reinitialize}: it must be at least 0")
        self.reinitialize = reinitialize

    def apply(self, part: nn.Module) -> nn.Module:
        """Start the top blocks again, of every encoder of the part or of the part itself.

        Raises:
            ValueError: There are fewer blocks.
        """
        if self.reinitialize > 0:
            encoders: list[nn.Module] = [module for module in part.modules() if isinstance(module, Network)]
            for network in encoders or [part]:
                reinitialize(network, self.reinitialize)
        return part

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """Every parameter."""
        return True


class Frozen(EncoderMethod):
    """Encoders keep their weights and stay in evaluation mode; what follows them is trained."""

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """Nothing of an encoder."""
        return False


class Probe(Frozen):
    """Linear probe: as frozen, and of what follows the encoders only the last linear layer is trained."""

    def apply(self, part: nn.Module) -> nn.Module:
        """Find the encoders and the layer.

        Raises:
            ValueError: No linear layer follows the encoders.
        """
        super().apply(part)
        after = [
            name
            for name, module in part.named_modules()
            if isinstance(module, nn.Linear) and not any(within(name, encoder) for encoder in self.encoders)
        ]
        if not after:
            raise ValueError(
                f"probe: {type(part).__name__} has no linear layer after its encoders: use frozen there, or "
                "name a part that has one (a whole tower)"
            )
        self.layer = after[-1]
        return part

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """The last linear layer's, and what is added to encoders."""
        return any(within(name, path) for path in (self.layer, *self.added))
