"""Staged unfreezing: what follows the encoders first, then their blocks from the top."""

from __future__ import annotations

from torch import nn

from mmlab.adaptation.method import EncoderMethod
from mmlab.models.blocks import find_blocks
from mmlab.models.depth import network_depths


class Staged(EncoderMethod):
    """Everything is trained in the end, but the encoders open from the top, group by group.

    So that new layers on top do not pull good features apart before they have learned anything themselves
    (gradual unfreezing: Howard and Ruder 2018, arXiv:1801.06146, section 3.3). Stage 0 trains what follows
    the encoders; then the blocks of each encoder open in equal groups, from the top, and what lies before its
    first block (embeddings, a stem) with the last group. An encoder of fewer blocks than groups opens one
    block a stage; a network without blocks opens whole at the last.

    :class:`mmlab.callbacks.unfreezing.Unfreezing` opens the stages; `mmlab fit` always has it.
    """

    def __init__(self, stages: int = 3, *, every: int | float = 0.2, patience: int | None = None) -> None:
        """Say when to open what.

        Args:
            stages: Groups in which encoders open.
            every: Stage k opens at k times this: optimizer steps if a whole number, a share of the run if a
                fraction below 1.
            patience: Open the next stage when this many validations in a row have not brought the score that
                checkpoints are chosen by above its best, instead of by steps.

        Raises:
            ValueError: A setting is out of its range, or the last stage would never open.
        """
        if stages < 1:
            raise ValueError(f"staged: stages={stages}: it must be at least 1")
        if patience is not None and patience < 1:
            raise ValueError(f"staged: patience={patience}: it must be at least 1 validation")
        if every <= 0 or (isinstance(every, float) and every >= 1):
            raise ValueError(
                f"staged: every={every}: a fraction is the share of the run and lies between 0 and 1; a "
                "number of steps is a whole number from 1"
            )
        if isinstance(every, float) and patience is None and stages * every >= 1:
            raise ValueError(
                f"staged: {stages} stages every {every:g} of the run: the last would not open before the run "
                f"ends; lower every below {1 / stages:g}"
            )
        self.stages = stages
        self.every = every
        self.patience = patience
        self._stages: dict[str, int] = {}

    def adapt(self, network: nn.Module) -> None:
        """Nothing is added."""

    def apply(self, part: nn.Module) -> nn.Module:
        """Find out what opens when."""
        super().apply(part)
        for encoder in self.encoders:
            network = part.get_submodule(encoder)
            blocks = len(find_blocks(network))
            for name, depth in network_depths(network).items():
                opens = self.stages if depth == blocks else 1 + depth * self.stages // blocks
                self._stages[f"{encoder}.{name}".lstrip(".")] = opens
        return part

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """Everything."""
        return True

    def stage(self, name: str) -> int:
        """0 for what follows the encoders; inside them from 1 at the top to `stages` at the input."""
        return self._stages.get(name, 0)

    def opening_step(self, stage: int, total_steps: int) -> int:
        """The optimizer step before which a stage opens where no `patience` is set.

        Args:
            stage: From 1.
            total_steps: Of the whole run.
        """
        share = stage * self.every
        return share if isinstance(share, int) else round(share * total_steps)
