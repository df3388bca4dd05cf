"""What tasks share in which a classifier fuses modalities: its loss, and what keeps modalities in balance."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

from torch.optim import Optimizer

from mmlab.adaptation.policy import Policy
from mmlab.balance.balance import Balance, Criterion
from mmlab.batch import Batch
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.objectives.loss import Loss
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask


class FusionTask(BaseTask):
    """Trains a classifier of several modalities; a leaf says what logits should be and names the loss.

    Args:
        model: Called by the base.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        balance: Keeps one modality from being learned at the expense of the others; None: nothing does.

    Raises:
        ValueError: The balance does not go with the model.
    """

    model: FusionClassifier
    learned: str
    """Name of the loss."""

    def __init__(
        self,
        model: FusionClassifier,
        *,
        optimization: Optimization,
        adaptation: Policy,
        balance: Balance | None = None,
    ) -> None:
        if balance is not None:
            balance.prepare(model)
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.balance = balance

    @abstractmethod
    def criterion(self, batch: Batch) -> Criterion:
        """The loss of a batch's logits over samples that count, of those whose label is known."""

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The loss, and what the balance makes of it."""
        said = self(batch)
        criterion = self.criterion(batch)
        if self.balance is None:
            return {self.learned: criterion(said.logits, said.valid)}
        return self.balance.losses(self.learned, said, criterion)

    def setup(self, stage: str) -> None:
        """Begin anew, before a checkpoint is read."""
        if stage == "fit" and self.balance is not None:
            self.balance.start()

    def on_fit_start(self) -> None:
        """Look whether there is what the balance acts on and learns from.

        Raises:
            ValueError: It would do nothing.
        """
        super().on_fit_start()
        if self.balance is not None:
            names = [name for name, _ in self.model.named_parameters()]
            self.balance.check([name for name in names if self.adaptation.trainable(name)])
        if self._validates() and not self.trainer.enable_validation:
            raise ValueError(
                f"balance: {type(self.balance).__name__} with every set learns from validation losses: "
                "validate, or leave every out"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the balance act on gradients, which are unscaled here and clipped after."""
        if self.balance is None:
            return
        self.balance.before_step(self.model, seed=partial(self.seed_at, self.global_step))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every > 0 and (self.global_step + 1) % every == 0:
            numbers = self.balance.numbers().items()
            self.log_dict({f"train/balance/{name}": number for name, number in numbers})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch, and what each modality says of it alone where the balance learns from that."""
        super().validation_step(batch, batch_idx)
        if self.balance is not None and self._validates():
            self.balance.measure(self(batch), self.criterion(batch))

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, and let the balance learn from it."""
        super().on_validation_epoch_end()
        if self.balance is not None and self._validates():
            found = self.balance.after_validation()
            self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True)

    def _validates(self) -> bool:
        """Whether this is a validation that the balance learns from."""
        fits = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        return self.balance is not None and self.balance.validates and fits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the balance has learned."""
        super().on_save_checkpoint(checkpoint)
        if self.balance is not None:
            checkpoint["balance"] = self.balance.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the balance go on from there."""
        super().on_load_checkpoint(checkpoint)
        if self.balance is not None:
            self.balance.load_state_dict(checkpoint.get("balance", {}))
