"""The average of weights: its formula, where it is used, and that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import ParallelStrategy
from small_runs import Batches, Run, fit, make_task, make_trainer
from torch import nn

from mmlab.callbacks.averaging import WeightAveraging, decay_at
from mmlab.parallel.strategies import DistributedDataParallel, FullySharded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]
STEPS = 8


class Weights(Callback):
    """The weights after each step, as training goes on with them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})


def averaged(start: dict[str, torch.Tensor], seen: list[dict[str, torch.Tensor]], decay: float) -> Any:
    """The formula, in float64."""
    average = {name: value.double() for name, value in start.items()}
    for update, weights in enumerate(seen):
        share = min(decay, (1 + update) / (10 + update))
        average = {name: share * average[name] + (1 - share) * weights[name].double() for name in average}
    return average


def test_the_decay_rises_to_its_bound() -> None:
    shares = [decay_at(update, 0.5) for update in range(20)]
    assert shares[0] == pytest.approx(0.1)
    assert shares == sorted(shares)
    assert shares[8] == shares[-1] == 0.5


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_model_ends_as_the_average_of_its_weights(tmp_path: Path, decay: float) -> None:
    task = make_task("full")
    start = {name: value.detach().clone() for name, value in task.named_parameters()}
    weights = Weights()
    fit(task, tmp_path, WeightAveraging(decay), weights, steps=STEPS)
    for name, value in averaged(start, weights.seen, decay).items():
        torch.testing.assert_close(task.get_parameter(name).double(), value, rtol=0, atol=1e-6)


def test_training_itself_does_not_change(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": STEPS, "limit_val_batches": 1}
    alone = fit(make_task("full"), tmp_path, **settings)
    run = fit(make_task("full"), tmp_path, WeightAveraging(0.9), **settings)
    assert run.losses == alone.losses
    assert run.results != alone.results


def test_validation_and_checkpoint_are_of_the_average(tmp_path: Path) -> None:
    """The checkpoint, tested without the callback, gives what was validated."""
    chooser = ModelCheckpoint(tmp_path, monitor="val/likeness", save_on_train_epoch_end=False)
    task = make_task("full")
    run = fit(
        task, tmp_path, WeightAveraging(0.9), chooser, steps=STEPS, limit_val_batches=1,
        check_val_every_n_epoch=STEPS, enable_checkpointing=True,
    )  # fmt: skip
    other = make_task("full")
    trainer = make_trainer(tmp_path, steps=1)
    trainer.test(other, Batches(), ckpt_path=chooser.best_model_path, weights_only=True, verbose=False)
    assert other.results["test/likeness"] == pytest.approx(run.results["val/likeness"], abs=1e-6)


def test_only_what_is_trained_is_averaged_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "frozen.ckpt"
    fit(make_task({"text": "frozen", "signal": "full"}), tmp_path, WeightAveraging(), steps=2, save=path)
    saved = torch.load(path, weights_only=True)
    raw = saved["callbacks"]["WeightAveraging"]["raw"]
    assert not any(name.startswith("model.text.encoder") for name in raw)
    assert set(raw) <= set(saved["state_dict"])
    assert any(not torch.equal(raw[name], saved["state_dict"][name]) for name in raw)


class Stop(Callback):
    """Ends the training after a number of steps, as if it were interrupted."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


class SaveInside(Callback):
    """Saves between two steps, before or after the average has been measured."""

    def __init__(self, path: Path, at: int, hook: str) -> None:
        self.path, self.at = path, at
        setattr(self, hook, self._save)

    def _save(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_epoch_end", "on_validation_end"])
def test_a_resumed_run_goes_on_exactly(tmp_path: Path, hook: str) -> None:
    check_resume(tmp_path, hook, torch.float32)


def test_a_resumed_run_of_low_precision_goes_on_exactly(tmp_path: Path) -> None:
    """An average that is rounded at each step would stand still."""
    check_resume(tmp_path, "on_validation_end", torch.bfloat16, precision="bf16-mixed")


def check_resume(folder: Path, hook: str, dtype: torch.dtype, **settings: Any) -> None:
    path = folder / "half.ckpt"
    settings |= {"steps": STEPS, "limit_val_batches": 1}
    first, second = make_task("full"), make_task("full")
    for task in (first, second):
        for module in task.model.get_submodule("text").modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
    whole = fit(first, folder, WeightAveraging(0.9), SaveInside(path, 3, hook), **settings)
    again = fit(second, folder, WeightAveraging(0.9), resume=path, **settings)
    assert again.losses == whole.losses[3:]
    assert again.results == whole.results
    assert all(torch.equal(again.weights[name], value) for name, value in whole.weights.items())


def test_a_checkpoint_without_an_average_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    fit(make_task("full"), tmp_path, Stop(3), steps=STEPS, save=path)
    run = fit(make_task("full"), tmp_path, WeightAveraging(0.9), steps=STEPS, resume=path)
    assert run.losses == fit(make_task("full"), tmp_path, steps=STEPS, resume=path).losses


def test_weights_alone_cannot_be_saved(tmp_path: Path) -> None:
    chooser = ModelCheckpoint(tmp_path, save_weights_only=True)
    trainer = make_trainer(tmp_path, WeightAveraging(), chooser, steps=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match="save_weights_only"):
        trainer.fit(make_task("full"), Batches())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay={decay}"):
        WeightAveraging(decay)


STRATEGIES: dict[str, Callable[[], ParallelStrategy]] = {
    "ddp": partial(DistributedDataParallel, process_group_backend="gloo"),
    "fsdp2": partial(FullySharded, process_group_backend="gloo"),
}


def on_ranks(root: Path, name: str) -> list[Run]:
    """One of two ranks, before and after a resume."""
    path = root / "half.ckpt"
    settings: dict[str, Any] = {"steps": STEPS, "limit_val_batches": 1}
    return [
        fit(
            make_task("full"), root, WeightAveraging(0.9), *more, strategy=STRATEGIES[name](), **settings,
            **files,
        )
        for more, files in (([Stop(3)], {"save": path}), ([], {"resume": path}))
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_two_ranks_average_as_one_does(ranks: Any, tmp_path: Path, strategy: str) -> None:
    alone = fit(make_task("full"), tmp_path, WeightAveraging(0.9), steps=STEPS, limit_val_batches=1)
    first, second = ranks(on_ranks, tmp_path, strategy)
    losses = [
        (a + b) / 2
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    ]
    assert losses == pytest.approx(alone.losses, abs=1e-5)
    assert first[-1].results == pytest.approx(alone.results, abs=1e-5)
    for name, value in alone.weights.items():
        torch.testing.assert_close(first[-1].weights[name], value, rtol=0, atol=2e-5)
