"""Operations of a step against formulas, whatever runs twice or was compiled; peaks of devices."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from mmlab.callbacks.flops import FlopCounter, StepFlops
from mmlab.callbacks.peaks import compute_precision, peak, rated_peak
from mmlab.parallel.recompute import checkpoint_blocks

BATCH, TOKENS, WIDTH, LAYERS, VOCABULARY = 2, 16, 32, 3, 64


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=VOCABULARY, tie_word_embeddings=False,
        )
    )  # fmt: skip


def llama_flops() -> int:
    """Forward and backward, 2 operations a multiply-add (Kaplan et al. 2020, section 2.1).

    The backward pass of attention has five products where the forward pass has two: the scores are
    computed again from queries and keys, which is what torch counts.
    """
    rows = BATCH * TOKENS
    weights = LAYERS * (4 + 3 * 4) * WIDTH**2 + WIDTH * VOCABULARY
    attention = LAYERS * 2 * BATCH * TOKENS**2 * WIDTH
    return 3 * 2 * rows * weights + attention * (2 + 5)


def test_a_language_model() -> None:
    model, ids = llama(), torch.ones(BATCH, TOKENS, dtype=torch.int64)
    with FlopCounter() as counter:
        model(ids).logits.sum().backward()
    assert counter.total == llama_flops()


def test_what_is_frozen_has_no_gradient_of_weights() -> None:
    frozen, trained, x = nn.Linear(8, 8), nn.Linear(8, 4), torch.randn(3, 8)
    frozen.requires_grad_(False)
    with FlopCounter() as counter:
        trained(frozen(x)).sum().backward()
    assert counter.total == 2 * 3 * (8 * 8 + 2 * 8 * 4)  # and the trained layer's input needs none


def test_what_is_computed_again_counts_once() -> None:
    model, ids = llama(), torch.ones(BATCH, TOKENS, dtype=torch.int64)
    checkpoint_blocks(model, 1.0)
    with FlopCounter() as counter:
        model(ids).logits.sum().backward()
    assert counter.total == llama_flops()
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)
    with FlopCounter() as counter:  # what nobody announced cannot be told from work
        checkpoint(nn.Sequential(layer, nn.GELU(), layer), x, use_reentrant=False).sum().backward()
    assert counter.total > 3 * 2 * 2 * 3 * 8 * 8


def test_convolutions() -> None:
    convolution = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    with FlopCounter() as counter:
        convolution(torch.randn(2, 3, 8, 8)).sum().backward()
    assert counter.total == 2 * 2 * (2 * 8 * 8 * 5 * 3 * 9)  # the picture needs no gradient


class Compiled(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.eager = 0
        self.layer.compile(backend=self._backend)

    def _backend(self, graph: Any, _: Any) -> Any:
        self.graphs = getattr(self, "graphs", 0) + 1
        return graph.forward

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x))


def test_a_compiled_model_is_counted_as_it_was_written_and_runs_compiled_again() -> None:
    module, flops, x = Compiled(), StepFlops(), torch.randn(3, 8)
    shapes = ((0,), (0, 3, 8))
    assert flops.of(shapes) is None
    assert flops.begin(shapes, module)
    module(x).sum().backward()
    flops.end()
    assert not hasattr(module, "graphs")
    assert flops.of(shapes) == 2 * 2 * 3 * 8 * 8
    assert not flops.begin(shapes, module)
    module(x)
    assert module.graphs == 1


def test_shapes_that_were_not_counted_take_the_nearest() -> None:
    flops, module = StepFlops(), L.LightningModule()
    for size in (8, 16):
        flops.begin(((0,), (0, size)), module)
        _ = torch.ones(2, size) @ torch.ones(size, 2)
        flops.end()
    assert [flops.of(((0,), (0, size))) for size in (7, 11, 13, 90)] == [64, 64, 128, 128]
    assert flops.of(((0,), (0, 8), (1, 8))) is None


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "tf32", 495),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "bf16", None),
        ("NVIDIA H200", "fp64", None),
        ("Somebody's first chip", "bf16", None),
    ],
)
def test_rated_peaks(name: str, precision: Any, tera: float | None) -> None:
    assert rated_peak(name, precision) == (None if tera is None else tera * 1e12)


def test_a_cpu_is_measured() -> None:
    cpu = torch.device("cpu")
    found = peak(cpu, compute_precision("32-true", cpu))
    assert 1e8 < found.flops < 1e14
    assert found.source == "cpu, fp32, measured by a matrix product"
    assert [compute_precision(p, cpu) for p in ("bf16-mixed", "16-mixed", "64-true")] == [
        "bf16",
        "fp16",
        "fp64",
    ]


def count_sharded() -> list[int]:
    """Operations of one step on this rank: plain, by DDP, by FSDP2."""
    mesh = init_device_mesh("cpu", (2,))
    totals = []
    for wrap in (
        lambda model: model,
        nn.parallel.DistributedDataParallel,
        lambda model: fully_shard(model, mesh=mesh),
    ):
        model = wrap(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
        model(torch.randn(4, 8, requires_grad=True)).sum().backward()
        with FlopCounter() as counter:
            model(torch.randn(4, 8, requires_grad=True)).sum().backward()
        totals.append(counter.total)
    return totals


@pytest.mark.slow
def test_spreading_a_model_does_not_change_its_operations(ranks: Any) -> None:
    expected = 3 * 2 * 4 * 2 * 8 * 16
    assert ranks(count_sharded) == [[expected] * 3] * 2
