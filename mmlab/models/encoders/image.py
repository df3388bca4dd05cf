"""Images by any timm model that gives feature maps or tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm.data
import torch
from torch import Tensor, nn

from mmlab.batch import Input, Modality
from mmlab.models.encoders.batch_norm import BATCH_NORMS, run_owned
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.pretrained import load_vision


class ImageEncoder(Encoder):
    """A timm model on uint8 pixels.

    Each place of a feature map is a token, row by row; a model of tokens (ViT) keeps its own, with class
    and register tokens first. Pixels are normalised on the device with the mean and deviation that the
    model was trained with.
    """

    modality = Modality.IMAGE

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        drop_path: float | None = None,
        image_size: int | None = None,
        freeze_batch_norm: bool = True,
    ) -> None:
        """Load the model.

        Args:
            name: An asset, a folder in timm's format, a timm name, or a Hugging Face id of a timm model.
            pretrained: False starts from random weights.
            drop_path: Share of residual branches to drop in training; None leaves the model's default.
            image_size: Side in pixels, for models of fixed size (ViT, Swin); None leaves their own.
            freeze_batch_norm: Keep the running statistics as they are, in training too: those of a small
                batch are noisy, and would make ranks differ. Gradients still flow. Set it to false where
                a network with batch normalisation is trained from random weights.

        Raises:
            ValueError: No such model, or it gives neither feature maps nor tokens.
        """
        super().__init__()
        self.name = name
        self.freeze_batch_norm = freeze_batch_norm
        self.backbone: Any = load_vision(
            name, pretrained=pretrained, drop_path=drop_path, image_size=image_size
        )
        settings = timm.data.resolve_model_data_config(self.backbone)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(settings["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(settings["std"])[:, None, None], persistent=False)
        self._size = settings["input_size"][1:] if image_size is None else (image_size, image_size)
        self.backbone.eval()
        with torch.enable_grad():
            tokens = self._tokens(torch.zeros(1, 3, *self._size))
        self.dim = tokens.shape[-1]
        _fix_unused(self.backbone, tokens)
        self.train()

    def encode(self, inputs: Input) -> Encoded:
        """Encode pixels, uint8 [rows, 3, height, width]."""
        pixels = (inputs.data.float() / 255 - self.mean.float()) / self.std.float()
        # The buffers follow the module to half precision, and so must the pixels. Convolutions keep the
        # memory format of what they read; this one is 1.6 times as fast (EfficientNet-Lite0 on a CPU).
        pixels = pixels.to(self.mean.dtype, memory_format=torch.channels_last)
        tokens = run_owned(self.backbone, self._tokens, pixels, inputs.owner)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def example(self) -> Input:
        """A picture of the size that the model was made for."""
        return replace(super().example(), data=torch.zeros(1, 3, *self._size, dtype=torch.uint8))

    def train(self, mode: bool = True) -> ImageEncoder:
        """Set the mode; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def _tokens(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.backbone.forward_features(pixels)
        if features.ndim == 3:
            return features
        if features.ndim != 4:
            raise ValueError(
                f"{self.name!r} gives features of shape {tuple(features.shape)}; an image encoder needs "
                "maps [rows, channels, height, width] or tokens [rows, tokens, channels]: choose another one"
            )
        if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)


def _fix_unused(backbone: nn.Module, tokens: Tensor) -> None:
    """Fix the parameters that the tokens do not depend on.

    Some models hold layers between features and classifier (MobileNetV3, SigLIP); DDP stops with
    "Expected to have finished reduction" over parameters that never get a gradient.
    """
    seen, todo = set(), [tokens.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    used = {id(node.variable) for node in seen if hasattr(node, "variable")}
    for parameter in backbone.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in used)
