"""open_clip's model, loss and training step, in an environment of its own; benchmarks/gpu.py runs this file.

    python open_clip_training.py SIZE DEVICE BATCH STEPS

As its trainer runs with `--precision amp_bf16`: AdamW over two groups, ClipLoss, the step of
`open_clip_train/train.py` for one process; once as it is, once with `--torchcompile`. Each prints one line of
JSON. Operations are counted by torch's counter over one step.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 160, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49_408, "width": 64, "heads": 2, "layers": 2},
}


def build(name: str) -> nn.Module:
    if name == "tiny":
        return open_clip.CLIP(**TINY, output_dict=True)
    model: nn.Module = open_clip.create_model(name, pretrained=None, output_dict=True)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name]
    chosen = {id(p) for p in plain}
    decayed = [p for _, p in named if id(p) not in chosen]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


class Step:
    """One step of training on a batch that lies on the host."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.plain = getattr(model, "_orig_mod", model)
        self.loss = ClipLoss(cache_labels=True)
        self.optimizer = make_optimizer(model)

    def __call__(self, images: Tensor, texts: Tensor) -> None:
        """Run it."""
        images = images.to(self.device, dtype=torch.float32, non_blocking=True)
        texts = texts.to(self.device, non_blocking=True)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            output = self.model(images, texts)
            loss = self.loss(**output, output_dict=True)["contrastive_loss"]
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.plain.logit_scale.clamp_(0, math.log(100))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    name, device_name, *numbers = sys.argv[1:]
    rows, steps = map(int, numbers)
    device = torch.device(device_name)
    side = TINY["vision_cfg"]["image_size"] if name == "tiny" else 224
    images, texts = torch.randn(rows, 3, side, side), torch.randint(0, 49_408, (rows, 77))
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        images, texts = images.pin_memory(), texts.pin_memory()
    flops = 0
    for title in ("open_clip", "open_clip, compiled"):
        torch.manual_seed(0)
        model = build(name).to(device).train()
        step = Step(torch.compile(model) if "compiled" in title else model, device)
        if flops == 0:
            with FlopCounterMode(display=False) as counter:
                step(images, texts)
            flops = counter.get_total_flops()
        for _ in range(4):
            step(images, texts)
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        for _ in range(steps):
            step(images, texts)
        wait(device)
        seconds = (time.perf_counter() - start) / steps
        found = {
            "name": f"{name}, {title}", "rate": rows / seconds, "unit": "samples/s",
            "memory": peak_gb(device), "tflops": flops / seconds / 1e12, "note": "",
        }  # fmt: skip
        print(json.dumps(found), flush=True)
        del model, step


if __name__ == "__main__":
    main()
