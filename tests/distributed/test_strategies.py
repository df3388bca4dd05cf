"""Sharding on two gloo ranks, against the same model unsharded, and what strategies refuse or set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_runs import Fit, retrieval, run
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmlab import collectives
from mmlab.parallel.sharding import can_gather_by_parameter, shard
from mmlab.parallel.strategies import DistributedDataParallel, FullySharded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]


class Layer(nn.Module):
    """A block with a low-rank addition, as LoRA makes it."""

    def __init__(self, base: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 6).to(base).requires_grad_(base == torch.float32)
        self.low = nn.Linear(6, 2, bias=False)
        self.high = nn.Linear(2, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        return x + self.linear(hidden.to(self.linear.weight.dtype)).float() + self.high(self.low(hidden))


class Root(nn.Module):
    """What a task is for sharding: a module with children, never called itself."""

    def __init__(self, base: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(5, 6), nn.Sequential(*(Layer(base) for _ in range(3))), nn.Linear(6, 3)
        )


def mesh(replicas: int = 1) -> DeviceMesh:
    if replicas == 1:
        return init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    return init_device_mesh("cpu", (replicas, 2 // replicas), mesh_dim_names=("replicate", "shard"))


def inputs(number: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(4, 5, generator=generator)


def own(x: Tensor) -> Tensor:
    return x[collectives.rank() * 2 :][:2]


def gradients(root: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in root.named_parameters()
    }


def pairs_of_gradients(setting: str) -> list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]]:
    """Gradients of the sharded and of the whole model; losses of ranks are means over their rows."""
    base = torch.bfloat16 if setting == "frozen in low precision" else torch.float32
    sharded, whole = Root(base), Root(base)
    shard(sharded, mesh(2 if setting == "replicas" else 1))
    shard(sharded, mesh())  # what is sharded stays
    assert sum(isinstance(module, FSDPModule) for module in sharded.modules()) == 4
    found = []
    for stage in range(3 if setting == "staged" else 1):
        if setting == "staged":
            for root in (sharded, whole):
                for layer in root.model[1][: 2 - stage]:
                    layer.requires_grad_(False)
                for layer in root.model[1][2 - stage :]:
                    layer.requires_grad_(True)
                root.model[0].requires_grad_(stage == 2)
                root.zero_grad()
        passes = 2 if setting == "two passes" else 1
        sum(sharded.model(own(inputs(n))).square().mean() for n in range(passes)).backward()
        sum(whole.model(inputs(n)).square().mean() for n in range(passes)).backward()
        found.append((gradients(sharded), gradients(whole)))
    return found


@pytest.mark.parametrize("setting", ["plain", "replicas", "two passes", "frozen in low precision", "staged"])
def test_gradients_are_those_of_the_whole_model(ranks: Any, setting: str) -> None:
    for found in ranks(pairs_of_gradients, setting):
        counts = []
        for got, wanted in found:
            assert got.keys() == wanted.keys()
            counts.append(sum(value is not None for value in wanted.values()))
            for name, value in wanted.items():
                assert (got[name] is None) == (value is None), name
                if value is not None:
                    torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)
        assert counts == sorted(set(counts)), "each stage opens something"
        assert counts[0] > 0


def gathered_types(dtype: torch.dtype | None, whole: bool = False) -> dict[str, torch.dtype]:
    root = Root()
    root.model[1].full_precision = whole  # type: ignore[assignment]
    shard(root, mesh(), dtype=dtype)
    seen: dict[str, torch.dtype] = {}
    layer = root.model[1][0]
    layer.linear.register_forward_pre_hook(
        lambda m, _: seen.update(matrix=m.weight.dtype, vector=m.bias.dtype)
    )
    root.model[0].register_forward_pre_hook(lambda m, _: seen.update(around=m.weight.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        root.model(own(inputs())).square().mean().backward()
    seen["gradient"] = layer.linear.weight.grad.dtype
    return seen


def test_matrices_of_blocks_travel_in_the_type_of_autocast(ranks: Any) -> None:
    single, half = torch.float32, torch.bfloat16
    for found in ranks(gathered_types, half):
        matrix = half if can_gather_by_parameter() else single
        assert found == {"matrix": matrix, "vector": single, "around": single, "gradient": single}
    for found in [*ranks(gathered_types, None), *ranks(gathered_types, half, True)]:
        assert set(found.values()) == {single}


def test_under_autocast_shards_equal_copies(ranks: Any, tmp_path: Path) -> None:
    """They round the same numbers: what autocast turns into bfloat16 is gathered as that."""
    copies, _ = ranks(run, tmp_path, tmp_path, Fit(strategy="ddp", steps=3, precision="bf16-mixed"))
    shards, _ = ranks(run, tmp_path, tmp_path, Fit(strategy="fsdp2", steps=3, precision="bf16-mixed"))
    # Where each rounds for itself, a number between two of bfloat16 (2^-9 apart) may fall to either side.
    tolerance = 1e-5 if can_gather_by_parameter() else 1e-3
    assert shards.losses == pytest.approx(copies.losses, abs=tolerance)
    for name, value in copies.weights.items():
        torch.testing.assert_close(shards.weights[name], value, rtol=0, atol=tolerance)


class Writer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(config)


def generated(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """What both write after the prompt of this rank; ranks stop at different lengths."""
    sharded, whole = Writer(config), Writer(config)
    shard(sharded, mesh())
    assert sum(isinstance(module, FSDPModule) for module in sharded.modules()) == 3
    prompt = torch.tensor([[1, 5 + 7 * collectives.rank(), 9]])
    settings = {"max_new_tokens": 12 - 8 * collectives.rank(), "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    return tuple(w.model.generate(prompt, attention_mask=mask, **settings) for w in (sharded, whole))


def test_text_is_generated_under_sharding(ranks: Any) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    answers = ranks(generated, config)
    for got, wanted in answers:
        assert torch.equal(got, wanted)
    assert len(answers[0][0][0]) != len(answers[1][0][0])


def refused(kind: str) -> str:
    root = Root()
    if kind == "own":
        root.scale = nn.Parameter(torch.ones(1))
    axes = mesh()
    if kind == "mesh":
        axes = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    try:
        shard(root, axes)
    except ValueError as error:
        return str(error)
    return ""


def test_what_cannot_be_sharded_is_said(ranks: Any) -> None:
    assert ranks(refused, "own")[0].startswith("Root.scale would not be averaged over ranks")
    assert "set trainer.strategy to mmlab.parallel.strategies.FullySharded" in ranks(refused, "mesh")[0]
    with pytest.raises(ValueError, match="replicas=0: it must be at least 1"):
        FullySharded(replicas=0)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (
            Fit(strategy="three replicas"),
            r"ValueError: replicas=3 on 2 ranks: .* set a number that divides 2\n",
        ),
        (
            Fit(strategy="fsdp2", batch=1),
            r"ValueError: batch size 1: must be divisible by the 2 ranks; the nearest valid value is 2",
        ),
    ],
    ids=["replicas", "batch"],
)
def test_what_does_not_fit_the_ranks_is_said_at_the_start(
    ranks: Any, tmp_path: Path, fit: Fit, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        ranks(run, tmp_path, tmp_path, fit)


def statistics_after_training() -> list[float]:
    """The running mean of each rank's batches, before and after they are brought together."""
    strategy, task = FullySharded(), retrieval()
    task.model.add_module("norm", nn.BatchNorm1d(2))
    norm = task.model.get_submodule("norm")
    norm.train()
    norm(torch.full((3, 2), 10.0 + collectives.rank()))
    strategy._lightning_module = task
    before = float(norm.running_mean[0])
    strategy.on_validation_start()
    return [before, float(norm.running_mean[0])]


def test_running_statistics_are_those_of_the_first_rank(ranks: Any) -> None:
    (first, shared), (second, same) = ranks(statistics_after_training)
    assert first != second
    assert shared == same == first


def test_copies_use_a_static_graph_unless_gradients_are_accumulated(ranks: Any, tmp_path: Path) -> None:
    settings = DistributedDataParallel()._ddp_kwargs
    assert settings["gradient_as_bucket_view"] is True
    plain, _ = ranks(run, tmp_path, tmp_path, Fit(strategy="ddp", steps=2))
    summed, _ = ranks(run, tmp_path, tmp_path, Fit(strategy="ddp", steps=2, accumulate=2))
    assert (plain.static_graph, summed.static_graph) == (True, False)
