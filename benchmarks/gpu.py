"""CLIP and language models on a GPU: samples or tokens a second, memory, share of the device's peak (MFU).

mmlab trains CLIP ViT-B/32 and ViT-L/14 of random weights (bf16 mixed, compiled, fused AdamW, memory-linear
InfoNCE) on pixels that lie ready, and once more from JPEGs in tars by its loader; open_clip 3.3.0's model,
loss and step stand beside it on the same GPU, at the same batch size, in bf16, compiled and not. Language
models of the size of SmolLM2-135M and of a billion parameters are trained to say the next token, whole and by
LoRA. Each model runs in a process of its own. Operations are the model's, by torch's formulas, counted in one
step of each. The whole takes ten minutes at most: what there is no time for is left out.

open_clip is taken from --open-clip (the Python of an environment, its folder, or a folder of packages), from
this environment, or from one that is made in mmlab's cache folder; where it cannot be had its lines are
missing. Without a GPU nothing is measured; `--device cpu --quick` runs every line on small models.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_training import Result

from mmlab.callbacks.peaks import Peak, peak

BAR, MFU_BARS = 1.2, {"ViT-L-14": 0.45, "Llama": 0.40, "SmolLM2": 0.40}
SECONDS = 570
HERE = Path(__file__).parent


class Work(NamedTuple):
    """A process of the benchmark."""

    script: str
    words: tuple[str, ...]


def plan(device: str, *, quick: bool) -> list[Work]:
    """What runs, the most telling first; batch sizes are for 140 GB and go down with the memory."""
    if device == "cpu":
        clip, language = ("tiny", device, "8", "3"), ("tiny", device, "2", "16", "3")
        peer = Work("open_clip_training.py", clip)
        return [Work("gpu_clip.py", (*clip, "1")), peer, Work("gpu_language.py", language)]
    memory = torch.cuda.mem_get_info()[1] / 140e9
    workers = str(max(1, min(14, len(os.sched_getaffinity(0)) - 2)))
    steps = "10" if quick else "30"
    found = []
    for name, most in (("ViT-L-14", 256), ("ViT-B-32", 2048)):
        rows = str(2 ** math.floor(math.log2(most * min(1.0, memory))))
        found.append(Work("gpu_clip.py", (name, device, rows, steps, workers)))
        found.append(Work("open_clip_training.py", (name, device, rows, steps)))
    for name, most in (("Llama-1B", 8), ("SmolLM2-135M", 16)):
        rows = str(max(1, round(most * min(1.0, memory))))
        found.append(Work("gpu_language.py", (name, device, rows, "2048", steps)))
    return found


def find_peer(given: Path | None) -> tuple[str, dict[str, str]] | None:
    """A Python that has open_clip, and what its environment needs; None where there is none."""
    if given is not None:
        if (given / "bin" / "python").exists():
            return str(given / "bin" / "python"), {}
        if given.is_dir():
            return sys.executable, {"PYTHONPATH": str(given)}
        return str(given), {}
    if importlib.util.find_spec("open_clip") is not None:
        return sys.executable, {}
    from loader import make_peer  # pip may have to fetch it

    try:
        return str(make_peer()), {}
    except SystemExit as error:
        print(f"open_clip cannot be had here, so its lines are missing: {error}".splitlines()[0])
        return None


def run(work: Work, python: str, environment: dict[str, str], *, seconds: float) -> list[Result]:
    """The lines of one process; those that it printed before it failed or its time was over, too."""
    process = subprocess.Popen(
        [python, str(HERE / work.script), *work.words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", **environment},
    )
    try:
        out, err = process.communicate(timeout=None if math.isinf(seconds) else seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err = "the time was over"
    found = [Result(**json.loads(line)) for line in out.splitlines() if line.startswith("{")]
    if process.returncode != 0:
        reason = next((line for line in reversed(err.splitlines()) if line.strip()), "no word")
        print(f"{work.words[0]}, {work.script}: ended early: {reason[:300]}", flush=True)
    return found


def show(results: list[Result], best: Peak) -> None:
    print(f"\npeak: {best.flops / 1e12:.4g} TFLOP/s ({best.source})\n")
    print("| training | rate | memory | TFLOP/s | MFU |\n|---|---|---|---|---|")
    for result in results:
        mfu = f"{100 * result.tflops * 1e12 / best.flops:.1f} %"
        rate = f"{result.rate:,.0f} {result.unit}"
        print(f"| {result.name} | {rate} | {result.memory:.1f} GB | {result.tflops:.3g} | {mfu} |")
    print()
    for result in results:
        if result.note:
            print(f"{result.name}: {result.note}")


def conclude(results: list[Result], best: Peak) -> None:
    """The lines that say whether the bars are met; the last one is that of open_clip."""
    for part, bar in MFU_BARS.items():
        reached = [r.tflops * 1e12 / best.flops for r in results if part in r.name and "clip" not in r.name]
        if reached:
            verdict = "ok" if max(reached) >= bar else "short"
            print(f"gpu_mfu_{part.lower()} ratio={max(reached):.3f} bar={bar} {verdict}")
    ratios = {}
    for size in {result.name.partition(",")[0] for result in results}:
        ours = [r.rate for r in results if r.name == f"{size}, mmlab"]
        theirs = [r.rate for r in results if r.name.startswith(f"{size}, open_clip")]
        if ours and theirs:
            ratios[size] = ours[0] / max(theirs)
    for size, ratio in sorted(ratios.items()):
        print(f"{size}: {ratio:.2f} x open_clip's faster way")
    if ratios:
        ratio = min(ratios.values())
        print(f"gpu ratio={ratio:.2f} bar={BAR} {'ok' if ratio >= BAR else 'short'}")
    else:
        print("gpu: no ratio, since not both were measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--open-clip", type=Path, metavar="PATH", help="where open_clip 3.3.0 is")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer steps; on a CPU, small models")
    arguments = parser.parse_args()
    device: str = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu: no GPU here, nothing measured (--device cpu --quick runs every line on small models)")
        return
    if device == "cpu" and not arguments.quick:
        parser.error("--device cpu needs --quick: these models are for GPUs")
    end = time.monotonic() + (SECONDS if device == "cuda" else math.inf)
    peer = find_peer(arguments.open_clip)
    best = peak(torch.device(device), "bf16")
    results: list[Result] = []
    for work in plan(device, quick=arguments.quick):
        python, environment = (sys.executable, {})
        if work.script == "open_clip_training.py":
            if peer is None:
                continue
            python, environment = peer
        left = end - time.monotonic()
        if left < 30:
            print(f"{work.words[0]}, {work.script}: left out, the time is over")
            continue
        found = run(work, python, environment, seconds=left)
        for result in found:
            print(f"{result.name}: {result.rate:,.0f} {result.unit}", file=sys.stderr, flush=True)
        results += found
    show(results, best)
    conclude(results, best)
    if device == "cpu":
        print("gpu: small models on a CPU: this says that every line runs, and no more")


if __name__ == "__main__":
    main()
