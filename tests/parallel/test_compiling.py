"""Compiled blocks: no graph breaks, few graphs for many lengths, the numbers of eager mode.

What is compiled runs in processes of its own, without the tests' checks of shapes: these would be compiled.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_micro_batch import gradients, make_batch
from test_recompute import bert, convolutions, whisper
from torch import Tensor, nn

from mmlab.models.blocks import find_blocks
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.parallel import compiling
from mmlab.parallel.compiling import compile_model
from mmlab.parallel.micro_batch import run_in_parts
from mmlab.parallel.recompute import checkpoint_blocks

SHAPES = ((6, 7), (6, 9), (3, 12), (5, 8), (2, 10))
"""Rows and steps. Where both are equal at first, torch takes that for a rule and compiles once more later."""
Run = Callable[[nn.Module, int, int], Tensor]


def graphs() -> int:
    """How many were compiled; none may have been broken or given up."""
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], counters["graph_break"]
    assert counters["frames"]["total"] == counters["frames"]["ok"]
    return int(counters["stats"]["unique_graphs"])


def reset() -> None:
    """Forget what is compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def run_text(network: nn.Module, rows: int, steps: int) -> Tensor:
    # Never full: transformers leaves out a mask that is, which is another graph.
    mask = (torch.arange(steps) < torch.randint(1, steps, (rows, 1))).long()
    return network(input_ids=torch.randint(0, 30, (rows, steps)), attention_mask=mask).last_hidden_state


def run_sound(network: nn.Module, rows: int, steps: int) -> Tensor:
    return network(torch.randn(rows, 80, 40)).last_hidden_state


def run_pictures(network: nn.Module, rows: int, steps: int) -> Tensor:
    return network.forward_features(torch.randn(rows, 3, 32, 32))


def run_signal(network: nn.Module, rows: int, steps: int) -> Tensor:
    return network(make_batch([1] * rows).signal).tokens


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=4, num_heads=2)


def signal() -> nn.Module:
    return SignalEncoder(3, dim=16, num_layers=3, dropout=0.1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Run]] = {
    "bert": (bert, run_text),
    "whisper": (whisper, run_sound),
    "vit": (vit, run_pictures),
    "signal": (signal, run_signal),
    "convolutions": (convolutions, run_pictures),
}


def count_graphs(kind: str) -> tuple[int, int]:
    """Blocks of a network, and graphs after training and evaluation on all shapes."""
    reset()
    make, run = NETWORKS[kind]
    network = make()
    holder = nn.ModuleList([network])
    names = list(holder.state_dict())
    compile_model(holder, backend="eager")
    assert list(holder.state_dict()) == names
    for training in (True, False):
        network.train(training)
        for rows, steps in SHAPES:
            with torch.set_grad_enabled(training):
                output = run(network, rows, steps)
            if training:
                output.sum().backward()
    return len(find_blocks(network)), graphs()


def count_graphs_of_pictures() -> list[int]:
    """Graphs of an image encoder after batches of 4, 4, 3 and 5."""
    reset()
    encoder = ImageEncoder("test_vit", pretrained=False)
    compile_model(encoder, backend="eager")
    found = []
    for rows in (4, 4, 3, 5):
        encoder.backbone.forward_features(torch.randn(rows, 3, 160, 160))
        found.append(graphs())
    return found


def model_of_signals() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(signal=Tower(SignalEncoder(3, dim=16, num_layers=2), dim=8))


def trained(model: DualEncoder, size: int) -> dict[str, Tensor]:
    output = run_in_parts(model, make_batch([1] * 6), size).signal
    return gradients(model, (output.vector @ output.vector.T).exp().mean())


def difference(backend: str, share: float) -> float:
    """Of gradients: of compiled blocks within parts, with a share recomputed, and of the plain model."""
    reset()
    expected = trained(model_of_signals(), 6)
    model = model_of_signals()
    checkpoint_blocks(model, share)
    compile_model(model, backend=backend)
    found = trained(model, 3)
    assert graphs() == (2 if share == 0.5 else 1)
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def alone(expression: str) -> Any:
    """What an expression gives in a process of its own."""
    code = f"import json, test_compiling as t; print(json.dumps({expression}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)  # a machine that others use, too
def test_no_graph_breaks_and_a_graph_for_each_mode() -> None:
    found = alone("{kind: t.count_graphs(kind) for kind in t.NETWORKS}")
    blocks, graphs = found.pop("convolutions")
    assert graphs <= 2 * 2 * blocks, "units of all sizes, for the batch size seen first and for any"
    assert {kind: graphs for kind, (_, graphs) in found.items()} == dict.fromkeys(found, 2)


@pytest.mark.slow
def test_image_encoders_are_compiled_for_their_batch_first() -> None:
    assert alone("t.count_graphs_of_pictures()") == [1, 1, 2, 2]


@pytest.mark.slow
def test_compiled_blocks_within_parts_and_recomputed() -> None:
    assert alone("t.difference('aot_eager', 0.5)") < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(900)  # a machine that others use, too
def test_inductor_gives_the_gradients_of_eager_mode() -> None:
    assert max(alone("[t.difference('inductor', share) for share in (0.0, 0.5, 1.0)]")) < 1e-5


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"C\+\+ compiler, and none is on the PATH: install"):
        compile_model(model_of_signals())
