"""Whether cached features are those of the encoders that a run has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mmlab.data.module import ShardData
from mmlab.models.fingerprint import fingerprint, fixed_encoders
from mmlab.runs.checkpoint import read_weights
from mmlab.tasks.base import BaseTask


def check_features(data: ShardData, task: BaseTask, checkpoint: str | None) -> None:
    """Refuse features of other encoders than this run has.

    Args:
        data: Which may read cached features.
        task: With the encoders.
        checkpoint: From which the run takes weights.

    Raises:
        ValueError: The features, or the weights, are of other encoders.
    """
    features = data.features
    if features is None:
        return
    encoders = fixed_encoders(task.model, task.adaptation.trainable)
    features.check_encoders(
        {m: None if encoder is None else fingerprint(encoder) for m, encoder in encoders.items()}
    )
    if checkpoint is None or not Path(checkpoint).exists():
        return
    # What the checkpoint holds replaces what was just checked.
    weights = read_weights(Path(checkpoint)).state
    for name, module in task.named_modules():
        used = any(module is encoders.get(modality) for modality in features.modalities)
        if used and not _holds(weights, f"{name}.", module):
            raise ValueError(
                f"--ckpt_path {checkpoint}: its {name} is not the encoder that gave the features in "
                f"{features.folder}: leave data.loading.features out"
            )


def _holds(weights: Mapping[str, torch.Tensor], prefix: str, module: torch.nn.Module) -> bool:
    """Whether a state dict holds a module's own weights, or leaves them to the pretrained ones."""
    return all(
        (kept := weights.get(prefix + name)) is None or torch.equal(kept, value.cpu().to(kept.dtype))
        for name, value in module.state_dict().items()
    )
