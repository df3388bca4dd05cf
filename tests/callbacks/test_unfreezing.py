"""Staged training: what opens when, that it survives a resume, and that two ranks train what one does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from small_runs import Batches, Run, fit, make_task, make_trainer

from mmlab.adaptation.staged import Staged
from mmlab.callbacks.unfreezing import Unfreezing
from mmlab.parallel.strategies import DistributedDataParallel, FullySharded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
]
STEPS = 10


def changes(values: list[int]) -> list[int]:
    """The places at which a value differs from the one before."""
    return [place for place in range(1, len(values)) if values[place] != values[place - 1]]


def test_stages_open_at_their_steps(tmp_path: Path) -> None:
    task = make_task(Staged(3, every=0.2))
    run = fit(task, tmp_path, Unfreezing(), steps=STEPS)
    assert changes(run.trained) == [2, 4, 6]
    assert run.trained == sorted(run.trained)
    assert run.trained[-1] == len(list(task.parameters()))


def test_every_may_be_steps(tmp_path: Path) -> None:
    run = fit(make_task(Staged(2, every=3)), tmp_path, Unfreezing(), steps=STEPS)
    assert changes(run.trained) == [3, 6]


def test_what_is_closed_does_not_move_and_what_is_opened_does(tmp_path: Path) -> None:
    task = make_task(Staged(3, every=2))
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    fit(task, tmp_path, Unfreezing(), steps=3)
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    inside = {name.removeprefix("model.text.encoder.") for name in moved if "text.encoder." in name}
    assert inside == {"norm.weight", "norm.bias"} | {
        f"layers.2.{part}" for part in ("norm.weight", "norm.bias", "linear.weight", "linear.bias")
    }
    assert any(name.startswith("model.text.projection") for name in moved)


def test_nothing_opens_within_an_accumulated_step(tmp_path: Path) -> None:
    run = fit(
        make_task(Staged(2, every=1)), tmp_path, Unfreezing(), steps=4, accumulate_grad_batches=2, per_epoch=8
    )
    assert changes(run.trained) == [2, 4]


def test_without_stages_nothing_happens(tmp_path: Path) -> None:
    run = fit(make_task("full"), tmp_path, Unfreezing(), steps=3)
    assert fit(make_task("full"), tmp_path, steps=3).losses == run.losses


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_resumed_run_goes_on_exactly(tmp_path: Path, at: int) -> None:
    """In every stage and at its borders; the optimizer is the one that would show a lost state."""
    optimizer = {"optimizer": partial(torch.optim.AdamW, lr=0.01)}
    whole = fit(make_task(Staged(3, every=2), **optimizer), tmp_path, Unfreezing(), steps=STEPS)
    path = tmp_path / "half.ckpt"
    part = fit(
        make_task(Staged(3, every=2), **optimizer), tmp_path, Unfreezing(), Stop(at), steps=STEPS, save=path
    )
    again = fit(make_task(Staged(3, every=2), **optimizer), tmp_path, Unfreezing(), steps=STEPS, resume=path)
    assert part.losses + again.losses == whole.losses
    assert part.trained + again.trained == whole.trained
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())


class Stop(Callback):
    """Ends the training after a number of steps, as if it were interrupted."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


class Scores(Callback):
    """Gives the validations scores of its own."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val/score", self.values[trainer.global_step - 1])


def patient(
    root: Path, values: list[float], *more: Callback, steps: int, mode: str = "max", **where: Any
) -> Run:
    chooser = ModelCheckpoint(
        root / "checkpoints", monitor="val/score", mode=mode, save_on_train_epoch_end=False
    )
    return fit(
        make_task(Staged(2, patience=2)), root, Unfreezing(), Scores(values), chooser, *more, steps=steps,
        enable_checkpointing=True, limit_val_batches=1, **where,
    )  # fmt: skip


def test_patience_waits_for_the_score(tmp_path: Path) -> None:
    values = [0.1, 0.2, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1]
    #          best best 1    2 -> opens before step 4; best, 1, 2 -> opens before step 7
    assert changes(patient(tmp_path / "max", values, steps=8).trained) == [4, 7]
    lower = [-value for value in values]
    assert changes(patient(tmp_path / "min", lower, steps=8, mode="min").trained) == [4, 7]


def test_patience_survives_a_resume(tmp_path: Path) -> None:
    values = [0.1, 0.2, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1]
    whole = patient(tmp_path / "whole", values, steps=8)
    part = patient(tmp_path / "part", values, Stop(3), steps=8, save=tmp_path / "half.ckpt")
    again = patient(tmp_path / "again", values, steps=8, resume=tmp_path / "half.ckpt")
    assert part.trained + again.trained == whole.trained
    assert part.losses + again.losses == whole.losses


STRATEGIES: dict[str, Callable[[], ParallelStrategy]] = {
    "ddp": partial(DistributedDataParallel, process_group_backend="gloo"),
    "plain_ddp": partial(DDPStrategy, process_group_backend="gloo"),
    "fsdp2": partial(FullySharded, process_group_backend="gloo"),
}


def on_ranks(root: Path, name: str, at: int | None) -> list[Run]:
    """One of two ranks: a run through all stages, or its parts before and after a step."""

    def once(*callbacks: Callback, **where: Any) -> Run:
        task = make_task(Staged(3, every=2))
        return fit(task, root, Unfreezing(), *callbacks, steps=STEPS, strategy=STRATEGIES[name](), **where)

    if at is None:
        return [once()]
    path = root / "half.ckpt"
    return [once(Stop(at), save=path), once(resume=path)]


@pytest.mark.parametrize(
    ("strategy", "at"),
    [("ddp", None), ("ddp", 4), pytest.param("plain_ddp", 3, marks=pytest.mark.slow), ("fsdp2", 3)],
)
def test_two_ranks_train_what_one_does(ranks: Any, tmp_path: Path, strategy: str, at: int | None) -> None:
    alone = fit(make_task(Staged(3, every=2)), tmp_path, Unfreezing(), steps=STEPS)
    first, second = ranks(on_ranks, tmp_path, strategy, at)
    losses = [
        (a + b) / 2
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    ]
    assert len({round(loss, 3) for loss in losses}) == STEPS, "the model does not learn"
    assert losses == pytest.approx(alone.losses, abs=1e-5)
    assert [count for run in first for count in run.trained] == alone.trained
    for name, value in alone.weights.items():
        assert torch.equal(first[-1].weights[name], second[-1].weights[name]), name
        torch.testing.assert_close(first[-1].weights[name], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"text": Staged(every=2), "signal": Staged(every=3)}, "give them the same every"),
        ({"*": Staged(patience=1)}, "patience needs a score"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, towers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, Unfreezing(), steps=2).fit(make_task(towers), Batches())
