"""InfoNCE of a global batch in one process, forward and backward: memory, time, gradient.

mmlab stands beside the loss written plainly, one matrix of all logits and a cross-entropy of its rows and of
its columns, and beside open_clip 3.3.0's ClipLoss. Each measurement runs in a process of its own. Memory is
the peak above what the process held with the embeddings made (resident pages, Linux only; on a GPU what torch
allocated). Time is wall time, the best of the runs that fit into two seconds, at least one. Gradients are
compared with those of the full matrix: the largest difference, as a part of the largest gradient.

What would need more memory than there is, judged from the size before, is left out, and the table says so.
Where there is a GPU, the table comes once more for it.

open_clip's environment is that of benchmarks/loader.py; without --peer it is made in mmlab's cache folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

DIM, SCALE = 512, 1 / 0.07
SIZES, QUICK, LARGEST = (1024, 4096, 8192, 16_384, 32_768, 65_536), (1024, 4096, 8192), 131_072
COMPARED = 32_768
BARS = {"memory": 1 / 16, "gradient": 1e-5, "time": 0.8}


def full_matrix() -> Loss:
    def loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        logits = (scale * a) @ b.T
        target = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss


def with_mmlab() -> Loss:
    from mmlab.batch import Embeddings
    from mmlab.objectives.contrastive import info_nce

    def loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        group = torch.arange(len(a), device=a.device)
        return info_nce(Embeddings(a, group, group), Embeddings(b, group, group), scale).value

    return loss


def with_open_clip() -> Loss:
    from open_clip.loss import ClipLoss

    loss: Loss = ClipLoss()
    return loss


# Each imports its library itself: mmlab and open_clip live in two environments.
IMPLEMENTATIONS = {"mmlab": with_mmlab, "full matrix": full_matrix, "open_clip": with_open_clip}


class Measured(NamedTuple):
    """What one implementation needed."""

    seconds: float
    memory: float
    """In MB."""


def make(rows: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors, those of the other side near to theirs, and the scale."""
    generator = torch.Generator().manual_seed(0)
    a = F.normalize(torch.randn(rows, DIM, generator=generator), dim=1)
    b = F.normalize(a + 0.1 * torch.randn(rows, DIM, generator=generator), dim=1)
    return tuple(t.to(device).requires_grad_() for t in (a, b, torch.tensor([SCALE])))  # type: ignore[return-value]


def memory_mb(field: str) -> float:
    """Memory of this process: VmRSS is what it holds, VmHWM the most it held since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def available_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**20
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**10


def run(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Gradients of all inputs."""
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    if gradients[0].is_cuda:
        torch.cuda.synchronize()
    return gradients


def measure(name: str, rows: int, device: str, kept: Path) -> Measured:
    """Measure in this process; the gradients go into a file."""
    # If the estimate was wrong, this process is the one to go.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    loss = IMPLEMENTATIONS[name]()
    run(loss, make(256, device))
    inputs = make(rows, device)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    baseline = torch.cuda.memory_allocated() / 2**20 if on_gpu else memory_mb("VmRSS")
    seconds: list[float] = []
    while not seconds or sum(seconds) + seconds[-1] < 2:
        start = time.perf_counter()
        gradients = run(loss, inputs)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory_mb("VmHWM")
            torch.save([gradient.cpu() for gradient in gradients], kept)
        del gradients
    return Measured(min(seconds), peak - baseline)


def measure_alone(python: Path, name: str, rows: int, device: str, kept: Path) -> Measured | None:
    """Measure in a process of its own; None if it did not survive."""
    command = [python, __file__, "--measure", name, str(rows), device, str(kept)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return Measured(*json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else None


def difference(ours: Path, theirs: Path) -> float:
    """The largest difference of any gradient, as a part of that gradient's largest entry."""
    pairs = zip(torch.load(ours), torch.load(theirs), strict=True)
    return max(((mine - other).abs().max() / other.abs().max()).item() for mine, other in pairs)


def show(name: str, rows: int, found: Measured, gradient: float | None) -> None:
    beside = "" if gradient is None else f"{gradient:12.1e}"
    print(f"{name:14}{rows:9,}{found.seconds:12.3f}{found.memory:12.0f}{beside}", flush=True)


def compare(sizes: tuple[int, ...], device: str, peer: Path) -> dict[int, dict[str, float]]:
    """Print the table; ratios of mmlab to the full matrix at each size that both reached."""
    print(f"\n{device}: {DIM} dimensions, float32, {torch.get_num_threads()} threads")
    print(f"{'':14}{'rows':>9}{'seconds':>12}{'MB above':>12}{'gradient':>12}")
    before: dict[str, tuple[int, Measured]] = {}
    ratios = {}
    for rows in sizes:
        found: dict[str, Measured] = {}
        with tempfile.TemporaryDirectory() as folder:
            kept = {name: Path(folder) / f"{name}.pt" for name in IMPLEMENTATIONS}
            for name in ("full matrix", "mmlab", "open_clip"):
                growth = 1 if name == "mmlab" else 2
                last_rows, last = before.get(name, (rows, Measured(0, 0)))
                needed = last.memory * (rows / last_rows) ** growth
                if needed > 0.95 * available_mb(device):
                    print(f"{name:14}{rows:9,}  left out: would need about {needed / 2**10:.0f} GB")
                    continue
                python = peer if name == "open_clip" else Path(sys.executable)
                one = measure_alone(python, name, rows, device, kept[name])
                if one is None:
                    print(f"{name:14}{rows:9,}  did not survive, for memory perhaps: its error stands above")
                    continue
                found[name], before[name] = one, (rows, one)
                known = name != "full matrix" and "full matrix" in found
                show(name, rows, one, difference(kept[name], kept["full matrix"]) if known else None)
            if {"mmlab", "full matrix"} <= found.keys():
                ours, theirs = found["mmlab"], found["full matrix"]
                ratios[rows] = {
                    "memory": ours.memory / theirs.memory,
                    "gradient": difference(kept["mmlab"], kept["full matrix"]),
                    "time": ours.seconds / theirs.seconds,
                }
    return ratios


def conclude(ratios: dict[int, dict[str, float]], title: str) -> None:
    """Say what came out at the size that the bars are for, or at the largest below it."""
    if not ratios:
        print(f"{title} ratio=nan bar={BARS['time']} short (the full matrix does not fit at any size)")
        return
    rows = COMPARED if COMPARED in ratios else max(ratios)
    for name, bar in BARS.items():
        value = ratios[rows][name]
        line = title if name == "time" else f"{title}_{name}"
        where = "" if rows == COMPARED else f" (at {rows:,} rows; the bar is for {COMPARED:,})"
        print(f"{line} ratio={value:.3g} bar={bar:.3g} {'ok' if value <= bar else 'short'}{where}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"up to {QUICK[-1]:,} rows")
    parser.add_argument("--largest", action="store_true", help=f"{LARGEST:,} rows on the CPU, too")
    parser.add_argument("--peer", type=Path, help="Python of an environment with open_clip 3.3.0")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        name, rows, device, kept = arguments.measure
        print(json.dumps(measure(name, int(rows), device, Path(kept))))
        return
    if arguments.peer is None:
        from loader import make_peer  # needs mmlab, which open_clip's environment has not

        arguments.peer = make_peer()
    if torch.cuda.is_available():
        sizes = QUICK if arguments.quick else (*SIZES, LARGEST)
        conclude(compare(sizes, "cuda", arguments.peer), "contrastive_gpu")
    sizes = QUICK if arguments.quick else (*SIZES, LARGEST) if arguments.largest else SIZES
    conclude(compare(sizes, "cpu", arguments.peer), "contrastive")


if __name__ == "__main__":
    main()
