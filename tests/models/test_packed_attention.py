"""Attention of packed samples, run alone as on a CPU and side by side as on a GPU, against each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmlab.models.packed_attention import pack, packed_attention

LENGTHS = [7, 31, 1, 12, 30]


class Attention(nn.Module):
    """What transformers asks of the layer that it computes attention for."""

    num_key_value_groups = 2
    is_causal = True


def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two."""
    torch.manual_seed(0)
    sizes = (4, 2, 2)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 8, dtype=torch.float64, requires_grad=True) for heads in sizes
    )
    return query, key, value


@pytest.mark.parametrize("compiling", [False, True])
def test_attention_and_gradients_equal_those_of_each_sample_by_itself(
    compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, whole = Attention(), parts()
    options: dict[str, Any] = {"scaling": 0.3, "dropout": 0.0}
    samples = zip(*(part.split(LENGTHS, dim=2) for part in whole), strict=True)
    wanted = torch.cat(
        [sdpa_attention_forward(layer, *sample, None, **options)[0] for sample in samples], dim=1
    )
    weight = torch.randn_like(wanted)
    gradients = torch.autograd.grad((wanted * weight).sum(), whole)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    got, _ = packed_attention(layer, *whole, None, packing=pack(torch.tensor(LENGTHS)), **options)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((got * weight).sum(), whole), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_bfloat16_is_attended_to_in_float32_on_a_cpu() -> None:
    layer, half = Attention(), [part.detach().to(torch.bfloat16) for part in parts()]
    options: dict[str, Any] = {"packing": pack(torch.tensor(LENGTHS)), "scaling": 0.3, "dropout": 0.0}
    wanted, _ = packed_attention(layer, *(part.float() for part in half), None, **options)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = packed_attention(layer, *half, None, **options)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted.to(torch.bfloat16), rtol=0, atol=0)
