"""What it costs that ranks stop together: Lightning's broadcast before every step, and mmlab's agreement.

Lightning broadcasts a tensor of the device before every step of several ranks and reads it; with mmlab
(mmlab/callbacks/preemption.py) ranks compare notes over the CPU every 32 steps. Two ranks train one small
model by Lightning's DDP, on CPU cores over gloo, or with `--device cuda` each on a GPU of its own over NCCL.
Both ways, and a third one that asks nothing, take turns of 32 steps within one run, so what else the machine
does meets all of them. Times are the first rank's; the ratio is the median over rounds of mmlab's turn by
Lightning's turn right before it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from mmlab.callbacks.preemption import Preemption

BAR = 1.0
RANKS = 2
TURN = 32
"""Steps of one way; as often as mmlab asks."""
FULL, QUICK = 80, 10
WAYS = ("nothing is asked", "Lightning's broadcast", "mmlab's agreement")
NOTHING, BROADCAST, AGREEMENT = WAYS


class Network(L.LightningModule):
    """Some layers, so that a GPU has work in its queue."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Run the layers."""
        loss: Tensor = self.layers(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Repeated:
    """A loader of one batch."""

    def __init__(self, batch: Tensor, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.steps):
            yield self.batch


class TakingTurns(Preemption):
    """Changes the way after each turn, and times the turns."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=TURN)
        self.way = NOTHING
        self.times: dict[str, list[list[float]]] = {way: [] for way in WAYS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first turn."""
        # What the agreement has put there.
        self.silent = trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor
        self.start = self.now(pl_module)

    def now(self, module: L.LightningModule) -> list[float]:
        """Seconds by the wall, and of this process on all cores, when the device has done its work."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return [time.perf_counter(), time.process_time()]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask where it is mmlab's turn; end the turn."""
        if self.way == AGREEMENT:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if (batch_idx + 1) % TURN != 0:
            return
        now = self.now(pl_module)
        self.times[self.way].append([1000 * (b - a) / TURN for a, b in zip(self.start, now, strict=True)])
        self.way = WAYS[(WAYS.index(self.way) + 1) % len(WAYS)]
        loop = trainer.fit_loop.epoch_loop
        stock = type(loop)._broadcast_sigterm_tensor.__get__(loop)
        loop._broadcast_sigterm_tensor = stock if self.way == BROADCAST else self.silent
        self.start = self.now(pl_module)


def run_rank(rank: int, arguments: argparse.Namespace, port: int, out: Path) -> None:
    """Train as one of the ranks; the first writes its times."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0",
        "WORLD_SIZE": str(RANKS),
    }  # fmt: skip
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    turns = TakingTurns()
    steps = (arguments.rounds + 1) * len(WAYS) * TURN
    backend = "nccl" if arguments.device == "cuda" else "gloo"
    trainer = L.Trainer(
        accelerator=arguments.device, devices=RANKS, plugins=[LightningEnvironment()], max_steps=steps,
        strategy=DDPStrategy(process_group_backend=backend), callbacks=[turns], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    batches = Repeated(torch.ones(8, arguments.width), steps)
    trainer.fit(Network(arguments.width, arguments.layers), batches)
    if rank == 0:
        # The first round warms up.
        out.write_text(json.dumps({way: found[1:] for way, found in turns.times.items()}))
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rounds")
    parser.add_argument("--rounds", type=int, help=f"turns of each way; {FULL} if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=int, default=64, help="of the layers")
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (QUICK if arguments.quick else FULL)
    if arguments.device == "cuda" and torch.cuda.device_count() < RANKS:
        print(f"agreement: {torch.cuda.device_count()} GPUs here and {RANKS} are needed, nothing measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        spawn(run_rank, (arguments, free_port(), out), nprocs=RANKS)
        times: dict[str, list[list[float]]] = json.loads(out.read_text())
    wall, cpu = ({way: [turn[clock] for turn in turns] for way, turns in times.items()} for clock in (0, 1))
    print(f"| {RANKS} ranks, {arguments.device} | ms a step | middle half | more | CPU ms a step |")
    print("|---|---:|---:|---:|---:|")
    for way, found in wall.items():
        low, _, high = quantiles(found, n=4)
        more = median(a - b for a, b in zip(found, wall[NOTHING], strict=True))
        spent = median(cpu[way])
        print(f"| {way} | {median(found):.3f} | {low:.3f}-{high:.3f} | {more:+.3f} | {spent:.3f} |")
    ratio = median(a / b for a, b in zip(wall[AGREEMENT], wall[BROADCAST], strict=True))
    print(f"median over {arguments.rounds} turns of {TURN} steps each")
    print(f"agreement ratio={ratio:.3f} bar={BAR} {'ok' if ratio <= BAR else 'short'}")


if __name__ == "__main__":
    main()
