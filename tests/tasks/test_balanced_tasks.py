"""Where words are learned at once and a voice hardly: modulated gradients, blended losses, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from test_sentiment_task import array

from mmlab.adaptation.policy import MethodName, Policy
from mmlab.balance.balance import Balance
from mmlab.balance.blend import GradientBlend, Measured
from mmlab.balance.modulation import GradientModulation
from mmlab.batch import Batch
from mmlab.callbacks.robustness import without
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader
from mmlab.models.encoders.signal import FeatureEncoder
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.optim import Optimization
from mmlab.parallel.activations import activation_bytes
from mmlab.tasks.outcome import Classes
from mmlab.tasks.sentiment import SentimentTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
LABELS = ["no", "yes"]
ALPHA = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words say it plainly, the voice in much noise; some samples have no words, some no voice."""
    folder = tmp_path_factory.mktemp("balance")
    rng = np.random.default_rng(0)

    def sample(number: int) -> dict[str, Any]:
        right = number % 2
        words = np.array([4.0 * (2 * right - 1), 1.0]) + rng.normal(0, 0.3, 2)
        voice = np.array([[0.3 * (2 * right - 1), 0.5, 0.1]]) + rng.normal(0, 1, (2, 3))
        found = {"__key__": f"k{number}", "json": json.dumps({"label": LABELS[right]}).encode()}
        found |= {} if number % 8 == 3 else {"text.npy": array(words)}
        return found if number % 5 == 2 else found | {"audio.npy": array(voice)}

    for split, count in (("train", 120), ("val", 40)):
        write_shards(map(sample, range(count)), folder, split)
    return folder


def make_data(folder: Path, **splits: str) -> ShardData:
    named = {split: str(folder / f"{split}-*.tar") for split in ("train", "val")} | splits
    return ShardData(
        batch_size=20,
        splits=Splits(**{split: files for split, files in named.items() if files}),
        text=SignalReader("text.npy", channels=2, modality="text"),
        audio=SignalReader("audio.npy", channels=3, modality="audio"),
        loading=Loading(eval_batch_size=16, references=("json.label",), group_by="key"),
    )


def make_task(balance: Balance | None, towers: MethodName = "full") -> SentimentTask:
    torch.manual_seed(0)
    return SentimentTask(
        FusionClassifier(
            text=FusionTower(FeatureEncoder(2, dim=16, modality="text")),
            audio=FusionTower(FeatureEncoder(3, dim=16, modality="audio")),
            fusion=ConcatenationFusion({"text": 16, "audio": 16}, dim=32),
            head=ClassificationHead(32, classes=2),
        ),
        outcome=Classes(LABELS),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.1)),
        adaptation=Policy(towers),
        balance=balance,
    )


def right_number(batch: Batch) -> torch.Tensor:
    """0 for padding."""
    return torch.tensor([LABELS.index(known[0]) if known else 0 for known in batch.references])


class Watched(Callback):
    """By hand, in each step: coefficients, and gradients before and after they act."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.coefficients: list[dict[str, float]] = []
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        means = {}
        with torch.no_grad():
            for one, other in (("text", "audio"), ("audio", "text")):
                draws = {m: torch.full((len(batch),), float(m.value != other)) for m, _ in batch.inputs()}
                logits = pl_module.model(without(batch, 0.5, draws)).logits.double()
                right = logits.softmax(dim=1)[torch.arange(len(batch)), right_number(batch)]
                means[one] = float(right[getattr(batch, one).present].mean())
        ratios = {"text": means["text"] / means["audio"], "audio": means["audio"] / means["text"]}
        self.coefficients.append(
            {name: 1 - math.tanh(ALPHA * ratio) if ratio > 1 else 1.0 for name, ratio in ratios.items()}
        )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        self.before.append({n: p.grad.clone() for n, p in pl_module.model.named_parameters()})

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.after.append({n: p.grad.clone() for n, p in pl_module.model.named_parameters()})


def test_what_is_learned_quickly_is_held_back_by_the_formula(
    folder: Path, trainer: Callable[..., L.Trainer]
) -> None:
    task, watched = make_task(GradientModulation(ALPHA, noise=False)), Watched()
    fit = trainer(watched, max_steps=12, max_epochs=-1, limit_val_batches=0, log_every_n_steps=1)
    fit.fit(task, make_data(folder))
    for wanted, before, after in zip(watched.coefficients, watched.before, watched.after, strict=True):
        for name, gradient in before.items():
            factor = wanted.get(name.partition(".")[0], 1.0)
            torch.testing.assert_close(after[name], gradient * factor, rtol=1e-4, atol=1e-8)
    last = watched.coefficients[-1]
    assert last["text"] < 1 - math.tanh(ALPHA)
    assert last["audio"] == 1
    for name, coefficient in last.items():
        logged = float(fit.callback_metrics[f"train/balance/coefficient/{name}"])
        assert logged == pytest.approx(coefficient, rel=1e-5)


class Losses(Callback):
    """By hand: the mean loss of each branch over the steps since the last validation, and over that."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.measured: list[dict[str, list[float]]] = []
        self.weights: list[list[float]] = []
        self.known: list[list[Measured]] = []
        """What the blend has measured itself."""

    def add(self, task: L.LightningModule, batch: Batch, stage: str) -> None:
        model, found = task.model, []
        with torch.no_grad():
            said = model(batch)
            for logits, counts in (
                (said.logits, batch.valid),
                *((model.unimodal.heads[name].layers(getattr(model, name)(getattr(batch, name)).tokens[:, 0]),
                   getattr(batch, name).present) for name in ("text", "audio")),
            ):  # fmt: skip
                right = logits.double().log_softmax(dim=1)[torch.arange(len(batch)), right_number(batch)]
                found.append([-float(right[counts].sum()), float(counts.sum())])
        self.sums[stage] = self.sums.get(stage, 0) + torch.tensor(found).double()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.add(pl_module, batch, "train")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.add(pl_module, batch, "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.measured.append({stage: (s[:, 0] / s[:, 1]).tolist() for stage, s in self.sums.items()})
        self.sums = {}
        self.weights.append(pl_module.balance.weights)
        self.known.append(pl_module.balance._before)


def test_losses_are_blended_by_how_each_generalises(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    task, kept = make_task(GradientBlend(every=1)), Losses()
    trainer(kept, max_epochs=4).fit(task, make_data(folder, val=str(folder / "val-*.tar")))
    assert kept.weights[0] == pytest.approx([1 / 3] * 3)
    for number in range(1, 4):
        old, new = kept.known[number - 1], kept.known[number]
        found = []
        for k in range(3):
            # Losses first: differences of their differences are rounded too much to be compared by hand.
            assert new[k].validated == pytest.approx(kept.measured[number]["val"][k], rel=1e-5)
            assert new[k].trained == pytest.approx(kept.measured[number]["train"][k], rel=1e-5)
            gained = old[k].validated - new[k].validated
            grown = new[k].validated - new[k].trained - (old[k].validated - old[k].trained)
            found.append(max(gained, 0) / max(abs(grown), 1e-3) ** 2)
        wanted = [0.1 / 3 + 0.9 * w / sum(found) for w in found]
        assert kept.weights[number] == pytest.approx(wanted, rel=1e-9)
    assert kept.weights[1] != pytest.approx([1 / 3] * 3, rel=0.05)


@pytest.mark.parametrize("balance", [GradientModulation(), GradientBlend(every=1)])
def test_a_step_that_is_only_measured_leaves_nothing_behind(
    folder: Path, trainer: Callable[..., L.Trainer], balance: Balance
) -> None:
    task, data = make_task(balance), make_data(folder)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    # As the command line does on several devices: on fake tensors, which must not stay.
    assert activation_bytes(task, batch).held() > 0
    fit = trainer(max_epochs=2, log_every_n_steps=1)
    fit.fit(task, make_data(folder))
    assert any(name.startswith("train/balance/") for name in fit.callback_metrics)


def test_without_balance_nothing_is_asked(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    task = make_task(None)
    fit = trainer(max_epochs=1)
    fit.fit(task, make_data(folder))
    assert task.model.unimodal is None
    assert not any("balance" in name for name in fit.callback_metrics)


def test_what_does_not_fit_is_refused(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(ValueError, match="learns from validation losses: validate, or leave every out"):
        trainer(max_epochs=1).fit(make_task(GradientBlend(every=1)), make_data(folder, val=""))
    with pytest.raises(ValueError, match="holds back towers, but none is trained: train towers"):
        trainer(max_epochs=1).fit(make_task(GradientModulation(), "frozen"), make_data(folder))
    with pytest.raises(ValueError, match="weights are of fused, text: give one to each of fused, text,"):
        make_task(GradientBlend({"fused": 1.0, "text": 1.0}))
    with pytest.raises(ValueError, match="the model has one tower, text: there is nothing to balance"):
        GradientModulation().prepare(
            FusionClassifier(
                text=FusionTower(FeatureEncoder(2, dim=16, modality="text")),
                fusion=ConcatenationFusion({"text": 16}, dim=8),
                head=ClassificationHead(8, classes=2),
            )
        )
