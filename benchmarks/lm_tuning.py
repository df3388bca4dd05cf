"""Tuning a language model that sees, beside transformers' Trainer: tokens a second on the same samples.

mmlab runs `mmlab fit` on experiments/question_answering/easy_vqa.yaml, with pictures of 128 pixels that are
one conversation with all their questions, 61 to 346 tokens long. transformers_tuning.py runs the Trainer on a
model that is put together the way LLaVA is: padded to the longest of the batch, -100 where nothing is to be
said, embeddings of pictures put in the place of their tokens. Both have the same language model, image tower,
LoRA, start, samples, batches, optimizer, precision and threads; packing and the vocabulary at the answers
only are mmlab's own.

Each runs in a process that lives through all rounds, and the two take turns, so what else the machine does
meets both. Samples are decoded and tokenized before. Tokens are those of samples, media included, never
padding. The ratio is the median over rounds of what both took for the same batches; it grows with the
padding, and so with the batch. On a busy machine look at the processor time. Memory is that of the
process (resident pages, Linux only), and what of it came on top of the loaded model. That the losses of the
first batch agree says that both compute the same; those of all steps, that they train the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contrastive import memory_mb
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from loader import Contender
from torch import Tensor

from mmlab.batch import Batch
from mmlab.commands.command_line import CommandLine
from mmlab.commands.train import build
from mmlab.models.media import MediaTower

BAR, LOSS_BAR = 1.5, 1e-4
FULL, QUICK = (4, 8), (2, 1)
"""Rounds, and batches, of which each is a step of every round. A round more comes first: it warms up, and
`mmlab fit` counts the operations of sizes that are new to it."""
TURN = {"opening": "<image>", "user": "{each.question}", "assistant": "{each.answer}"}
CONFIG = Path(__file__).parents[1] / "experiments" / "question_answering" / "easy_vqa.yaml"
PEER = Path(__file__).with_name("transformers_tuning.py")


class Turns:
    """Training that waits for its turn before every round of steps, and says what the round took."""

    def __init__(self, rounds: int, steps: int) -> None:
        self.rounds, self.steps = rounds, steps
        self.losses: list[Tensor] = []
        # If memory is short, this process is the one to go.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        # Answers alone go to the standard output; what else is printed must not be taken for one.
        self.answers, sys.stdout = sys.stdout, sys.stderr

    def begin(self, model: torch.nn.Module) -> None:
        """The model is loaded, and the first step comes next."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        self.held = memory_mb("VmRSS")
        self._tell({"trained": trained})
        self._wait()

    def step(self, loss: Tensor) -> None:
        """A step is done."""
        self.losses.append(loss.detach())
        if len(self.losses) % self.steps != 0:
            return
        found = {"wall": time.perf_counter() - self.start, "cpu": time.process_time() - self.began}
        memory = {"peak": memory_mb("VmHWM"), "above": memory_mb("VmHWM") - self.held}
        self._tell({**found, **memory, "losses": [float(loss) for loss in self.losses[-self.steps :]]})
        if len(self.losses) < self.rounds * self.steps:
            self._wait()

    def _tell(self, found: dict[str, Any]) -> None:
        print(json.dumps(found), file=self.answers, flush=True)

    def _wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit("nobody waits for the next round")
        self.start, self.began = time.perf_counter(), time.process_time()


class Taking(Callback):
    """Lightning's steps, in turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait."""
        self.turns.begin(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self.turns.step(outputs["loss"])


class InMemory:
    """A loader of batches, over and over."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return islice(cycle(self.batches), self.steps)


class Tuning(CommandLine):
    """`mmlab fit` on batches in memory."""

    turns: Turns
    start: Path

    def fit(self, **kwargs: Any) -> None:
        """Leave the samples, and the weights that training begins with, to the peer; then train."""
        batches = list(islice(self.datamodule.train_dataloader(), self.turns.steps))
        tower = self.model.model.image
        assert isinstance(tower, MediaTower)
        with torch.no_grad():
            tokens = tower(batches[0].image).tokens.shape[1]
        trained = {name: p for name, p in self.model.model.named_parameters() if p.requires_grad}
        kept = {
            "tower": tower.state_dict(),
            "media": tokens,
            "lora": {name: p.detach() for name, p in trained.items() if "lora_" in name},
            "samples": [sample for batch in batches for sample in samples(batch)],
        }
        torch.save(kept, self.start)
        loader = InMemory(batches, self.trainer.max_steps)
        self.datamodule.train_dataloader = lambda: loader  # type: ignore[method-assign, assignment, return-value]
        self.trainer.callbacks.append(Taking(self.turns))  # type: ignore[attr-defined]
        super().fit(**kwargs)


def samples(batch: Batch) -> list[dict[str, Tensor]]:
    """Pixels, token ids with a marker for the picture, and which tokens are to be said."""
    text, image = batch.text, batch.image
    assert text is not None
    assert image is not None
    assert text.length is not None
    assert text.target is not None
    assert text.owner.tolist() == image.owner.tolist() == list(range(len(batch)))
    lengths = text.length.tolist()
    return [
        {"pixels": image.data[row], "ids": text.data[row, :length], "said": text.target[row, :length]}
        for row, length in enumerate(lengths)
    ]


def serve(folder: Path, rounds: int, steps: int, batch: int) -> None:
    """Train in this process, in turns."""
    Tuning.turns, Tuning.start = Turns(rounds, steps), folder / "start.pt"
    optimization = "model.init_args.optimization"
    settings = {
        "runs": folder, "data.batch_size": batch, "data.loading.num_workers": 0, "trainer.devices": 1,
        "trainer.accelerator": "cpu", "trainer.max_steps": rounds * steps, "trainer.limit_val_batches": 0,
        "trainer.val_check_interval": "null", "trainer.enable_progress_bar": "false",
        "checkpoint.monitor": "null", "test_best": "false",
        f"{optimization}.optimizer.init_args.fused": "true",
        f"{optimization}.optimizer.init_args.lr": 5e-4, f"{optimization}.rates": "{}",
        f"{optimization}.schedule.warmup": 0, f"{optimization}.schedule.min_ratio": 1.0,
        "data.source.init_args.per_picture": "true", "data.image.init_args.size": 128,
        "data.text.init_args.each": "json.questions", "data.text.init_args.prompts": json.dumps([TURN]),
    }  # fmt: skip
    build(Tuning, ["fit", "--config", str(CONFIG), *words(settings)])


def words(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


class Tuner(Contender):
    """One of the two."""

    def __init__(self, program: Path, *arguments: object) -> None:
        super().__init__([sys.executable, str(program), "--serve", *map(str, arguments)])
        self.trained = self.answer()["trained"]
        self.found: list[dict[str, Any]] = []

    def run(self) -> None:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.found.append(self.answer())

    def losses(self) -> list[float]:
        """Of all steps."""
        return [loss for found in self.found for loss in found["losses"]]


def show(name: str, tuner: Tuner, tokens: int, steps: int) -> None:
    wall, cpu = (median(found[clock] for found in tuner.found[1:]) for clock in ("wall", "cpu"))
    last = tuner.found[-1]
    print(
        f"{name:14}{tokens / wall:10.1f}{tokens / cpu:19.1f}{wall / steps:9.2f}"
        f"{last['peak']:10.0f}{last['above']:18.0f}"
    )


def describe(lengths: list[int], batch: int, threads: int) -> None:
    """What is read."""
    padded = sum(batch * max(lengths[i : i + batch]) for i in range(0, len(lengths), batch))
    print(
        f"{len(lengths)} conversations of easy-VQA, of {min(lengths)} to {max(lengths)} tokens, median "
        f"{median(lengths):.0f}; batches of {batch}, in which padding adds {padded / sum(lengths) - 1:.0%}; "
        f"float32; threads: {threads}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} rounds of {QUICK[1]} batches")
    parser.add_argument("--rounds", type=int, help=f"{FULL[0]} of {FULL[1]} batches if not given")
    parser.add_argument("--batch", type=int, default=8, help="samples; 8, the Trainer's own default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    if arguments.serve is not None:
        folder, *numbers = arguments.serve
        rounds, steps, batch, threads = map(int, numbers)
        torch.set_num_threads(threads)
        serve(Path(folder), rounds, steps, batch)
        return
    rounds, steps = QUICK if arguments.quick else FULL
    rounds = 1 + (arguments.rounds or rounds)
    with tempfile.TemporaryDirectory() as folder:
        told = (folder, rounds, steps, arguments.batch, arguments.threads)
        mmlab = Tuner(Path(__file__), *told)
        peer = Tuner(PEER, *told)
        if mmlab.trained != peer.trained:
            sys.exit(f"mmlab trains {mmlab.trained:,} parameters, transformers {peer.trained:,}")
        for number in range(rounds):
            for tuner in (mmlab, peer) if number % 2 == 0 else (peer, mmlab):
                tuner.run()
        start = torch.load(Path(folder) / "start.pt")
        for tuner in (mmlab, peer):
            tuner.close()
    lengths = [len(sample["ids"]) - 1 + start["media"] for sample in start["samples"]]
    describe(lengths, arguments.batch, arguments.threads)
    print(
        f"{'':14}{'tokens/s':>10}{'tokens/CPU second':>19}{'s/step':>9}{'peak MB':>10}{'above model, MB':>18}"
    )
    for name, tuner in (("mmlab", mmlab), ("transformers", peer)):
        show(name, tuner, sum(lengths), steps)
    differences = [abs(a - b) for a, b in zip(mmlab.losses(), peer.losses(), strict=True)]
    print(f"loss of the first batch: {mmlab.losses()[0]:.6f} and {peer.losses()[0]:.6f}")
    print(
        f"lm_tuning_loss ratio={differences[0]:.1e} bar={LOSS_BAR:g} "
        f"{'ok' if differences[0] <= LOSS_BAR else 'short'} (difference at the first batch; at most "
        f"{max(differences):.1e} in {len(differences)} steps, loss at the end {mmlab.losses()[-1]:.3f})"
    )
    for title, clock in (("lm_tuning_cpu", "cpu"), ("lm_tuning", "wall")):
        pairs = zip(mmlab.found[1:], peer.found[1:], strict=True)
        ratios = sorted(theirs[clock] / ours[clock] for ours, theirs in pairs)
        ratio = median(ratios)
        print(
            f"{title} ratio={ratio:.2f} bar={BAR} {'ok' if ratio >= BAR else 'short'} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
