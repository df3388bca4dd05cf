"""Encoders that nothing trains, and a digest that says whether one is still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoder

_PLAIN = (bool, int, float, str, tuple, list, torch.dtype, type(None))
# What an encoder is called and how it is run decides nothing of what it gives.
_IGNORED = {"training", "name", "name_or_path", "gradient_checkpointing"}


def fixed_encoders(model: nn.Module, trainable: Callable[[str], bool]) -> dict[Modality, Encoder | None]:
    """The encoders that give the same tokens for ever, by what they read.

    Args:
        model: To which the adaptation has been applied.
        trainable: Whether a parameter is trained, now or later; see :meth:`Policy.trainable`.

    Returns:
        None for a modality whose encoder is trained, or that two encoders read: a batch brings one input for
        both.
    """
    found: dict[Modality, list[Encoder]] = {}
    fixed: set[Encoder] = set()
    for path, module in model.named_modules():
        if isinstance(module, Encoder):
            found.setdefault(module.modality, []).append(module)
            if not any(trainable(f"{path}.{name}") for name, _ in module.named_parameters()):
                fixed.add(module)
    return {
        modality: several[0] if len(several) == 1 and several[0] in fixed else None
        for modality, several in found.items()
    }


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 over classes, plain attributes, parameters and buffers (those not in checkpoints too).

    Equal fingerprints mean equal tokens, up to the precision and the release of torch. It takes about a
    second for 500 MB of weights.
    """
    digest = hashlib.sha256()
    for name, module in encoder.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        digest.update(json.dumps([name, kind, _attributes(module)], sort_keys=True).encode())
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of what a state dict holds.

    It says whether weights that a checkpoint leaves out are those that it was trained beside.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def _attributes(module: nn.Module) -> dict[str, str]:
    """Attributes that hold numbers, words, or functions such as an activation."""
    found: dict[str, str] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in _IGNORED:
            continue
        if isinstance(value, FunctionType | BuiltinFunctionType):
            found[name] = value.__qualname__
        elif isinstance(value, _PLAIN) and " at 0x" not in repr(value):
            found[name] = repr(value)
    return found


def _content(tensor: Tensor) -> bytes:
    """The bytes of a tensor, whatever its type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
