from __future__ import annotations

import pytest
import timm
import torch

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.image import ImageEncoder


def pixels(rows: int, size: int = 64) -> Input:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=generator)
    return Input(data, torch.arange(rows), torch.ones(rows, dtype=torch.bool))


def reference(encoder: ImageEncoder, inputs: Input, mean: float, std: float) -> torch.Tensor:
    return encoder.backbone.forward_features((inputs.data.float() / 255 - mean) / std)


def test_a_feature_map_is_read_row_by_row() -> None:
    encoder = ImageEncoder("test_resnet", pretrained=False).eval()
    inputs = pixels(2, 96)
    tokens, mask = encoder(inputs)
    maps = reference(encoder, inputs, 0.5, 0.5)
    rows, dim, height, width = maps.shape
    assert (height, width) == (3, 3)
    assert tokens.shape == (rows, height * width, encoder.dim)
    assert dim == encoder.dim
    assert mask.all()
    torch.testing.assert_close(tokens[1, 1 * width + 2], maps[1, :, 1, 2], rtol=1e-4, atol=1e-5)


def test_maps_with_channels_last_are_read_alike() -> None:
    encoder = ImageEncoder("swin_tiny_patch4_window7_224", pretrained=False, image_size=64).eval()
    inputs = pixels(1)
    mean = torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN)[:, None, None]
    std = torch.tensor(timm.data.IMAGENET_DEFAULT_STD)[:, None, None]
    maps = encoder.backbone.forward_features((inputs.data.float() / 255 - mean) / std)
    tokens, _ = encoder(inputs)
    assert maps.shape == (1, 2, 2, encoder.dim)
    torch.testing.assert_close(tokens[0, 1], maps[0, 0, 1], rtol=1e-4, atol=1e-4)


def test_a_class_token_comes_first() -> None:
    encoder = ImageEncoder("test_vit", pretrained=False).eval()
    inputs = pixels(2, 160)
    tokens, mask = encoder(inputs)
    torch.testing.assert_close(tokens, reference(encoder, inputs, 0.5, 0.5), rtol=1e-4, atol=1e-4)
    assert tokens.shape == (2, 1 + 100, encoder.dim)
    assert mask.shape == (2, 101)


def test_frozen_batch_norm_keeps_its_statistics_and_passes_gradients() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder("test_resnet", pretrained=False).train()
    inputs = pixels(3)
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    trained = encoder(inputs).tokens
    trained.square().sum().backward()
    torch.testing.assert_close(dict(encoder.named_buffers()), before, rtol=0, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    # Ranks with different rows agree: a row gives the same in every batch.
    alone = encoder(Input(inputs.data[:1], inputs.owner[:1], inputs.present[:1])).tokens
    torch.testing.assert_close(alone, trained[:1], rtol=1e-4, atol=1e-4)


def test_live_batch_norm_moves_its_statistics() -> None:
    encoder = ImageEncoder("test_resnet", pretrained=False, freeze_batch_norm=False).train()
    before = encoder.backbone.bn1.running_mean.clone()
    encoder(pixels(3))
    assert not torch.equal(encoder.backbone.bn1.running_mean, before)
    assert not encoder.eval().backbone.bn1.training


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit3", "test_efficientnet"])
def test_whatever_is_trainable_gets_a_gradient(name: str) -> None:
    encoder = ImageEncoder(name, pretrained=False)
    encoder(pixels(2, 160 if "vit" in name else 64)).tokens.sum().backward()
    left_out = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert left_out == []
    fixed = {n for n, p in encoder.named_parameters() if not p.requires_grad}
    assert all("conv_head" in n or "attn_pool" in n for n in fixed)
    assert bool(fixed) == (name != "test_efficientnet")


def test_a_row_of_nobody_gives_no_nan() -> None:
    encoder = ImageEncoder("test_resnet", pretrained=False)
    empty = Input(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([NOBODY]), torch.tensor([False]))
    tokens = encoder(empty).tokens
    tokens.sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_half_precision() -> None:
    encoder = ImageEncoder("test_resnet", pretrained=False).to(torch.bfloat16).eval()
    assert encoder(pixels(1)).tokens.dtype == torch.bfloat16


def test_drop_path_reaches_the_model() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder("test_vit", pretrained=False, drop_path=0.9).train()
    inputs = pixels(1, 160)
    assert not torch.equal(encoder(inputs).tokens, encoder(inputs).tokens)
