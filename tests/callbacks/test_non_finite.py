"""What is not finite stops the run or is left out: the weights are those of a run without."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from small_runs import Batches, SmallTask, Trace, make_task, make_trainer
from torch import Tensor

from mmlab.batch import Batch
from mmlab.callbacks import non_finite
from mmlab.callbacks.non_finite import NonFinite, NonFiniteError
from mmlab.objectives.loss import Loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]
STEPS = 6


class Spoils(Callback):
    """Makes the loss, or the gradients, of some batches infinite or no number."""

    def __init__(self, *steps: int, how: str = "loss", value: float = float("nan")) -> None:
        self.steps = steps
        self.how = how
        self.value = value
        self._handles: list[Any] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        bad = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 in self.steps
        assert isinstance(pl_module, SpoiledTask)
        pl_module.times = self.value if bad and self.how == "loss" else 1.0
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if bad and self.how == "gradients":
            parameter = next(p for p in pl_module.parameters() if p.requires_grad)
            self._handles = [parameter.register_hook(lambda gradient: gradient * self.value)]


class SpoiledTask(SmallTask):
    """Its loss is multiplied; a batch norm keeps statistics."""

    times = 1.0

    def losses(self, batch: Batch) -> dict[str, Tensor | Loss]:
        assert batch.signal is not None
        if isinstance(self.model.get_submodule("norm"), torch.nn.BatchNorm1d):
            # It takes what a broken batch holds into its statistics.
            self.model.get_submodule("norm")(batch.signal.data[:, 0] * self.times)
        found = super().losses(batch)
        return {n: (x if isinstance(x, Loss) else Loss(x)).times(self.times) for n, x in found.items()}


class LeavesOut(Callback):
    """The reference: the update of some steps does not happen."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.steps:
            pl_module.zero_grad(set_to_none=True)


def spoiled_task(**settings: Any) -> SpoiledTask:
    task = make_task("full", optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1), **settings)
    task.__class__ = SpoiledTask
    task.model.add_module("norm", torch.nn.BatchNorm1d(2, affine=False))
    assert isinstance(task, SpoiledTask)
    return task


def fit(
    folder: Path, *callbacks: Callback, steps: int = STEPS, **settings: Any
) -> tuple[dict[str, Tensor], list[float]]:
    trace, task = Trace(), spoiled_task()
    trainer = make_trainer(folder, *callbacks, trace, steps=steps, **settings)
    trainer.fit(task, Batches(steps * 2, per_epoch=4))
    return {name: value.detach().clone() for name, value in task.state_dict().items()}, trace.losses


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(("how", "value"), [("loss", "nan"), ("loss", "inf"), ("gradients", "inf")])
def test_a_step_that_is_left_out_changes_nothing(
    tmp_path: Path, how: str, value: str, clip: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    guard = NonFinite("skip")
    spoils = Spoils(1, 4, how=how, value=float(value))
    weights, losses = fit(tmp_path, spoils, guard, gradient_clip_val=clip)
    assert guard.count == 2
    # A batch norm that has not seen the batch either: the reference sees it in the gradients' case.
    expected, _ = fit(tmp_path, Spoils(), LeavesOut(1, 4), gradient_clip_val=clip)
    statistics = {name for name in weights if ".norm.running" in name or "num_batches" in name}
    assert len(statistics) == 3
    assert_same(
        {name: weight for name, weight in weights.items() if name not in statistics},
        {name: weight for name, weight in expected.items() if name not in statistics},
    )
    assert weights["model.norm.num_batches_tracked"] == STEPS - 2
    assert all(torch.isfinite(weights[name]).all() for name in statistics)
    assert len(losses) == STEPS, "the schedule and the count of steps go on"
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    named = "info_nce" if how == "loss" else "gradients"
    assert len(said) == 2
    assert said[0].startswith("left out: step 1 is not finite: ")
    assert named in said[0] or how == "loss"
    assert "with the samples 1-0, 1-1, 1-2" in said[0]


def test_the_whole_accumulated_update_is_left_out(tmp_path: Path) -> None:
    guard = NonFinite("skip")
    # Batches 2 and 3 are the second update.
    weights, _ = fit(tmp_path, Spoils(2), guard, steps=3, accumulate_grad_batches=2)
    expected, _ = fit(tmp_path, Spoils(), LeavesOut(1), steps=3, accumulate_grad_batches=2)
    assert guard.count == 1
    assert weights.pop("model.norm.num_batches_tracked") == 4
    for name in ("model.norm.running_mean", "model.norm.running_var", "model.norm.num_batches_tracked"):
        weights.pop(name, None)
        expected.pop(name, None)
    assert_same(weights, expected)


def test_too_many_steps_that_are_left_out_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError, match=r"more than --non_finite\.limit 1 steps .* step 3 is not finite"
    ):
        fit(tmp_path, Spoils(1, 3), NonFinite("skip", limit=1))


def test_the_number_of_steps_left_out_is_kept_by_a_checkpoint() -> None:
    guard, other = NonFinite("skip"), NonFinite("skip")
    guard.count = 3
    other.load_state_dict(guard.state_dict())
    assert other.count == 3


@pytest.mark.parametrize("how", ["loss", "gradients"])
def test_a_run_stops_and_leaves_only_finite_checkpoints(tmp_path: Path, how: str) -> None:
    keep = ModelCheckpoint(
        tmp_path / "kept", every_n_train_steps=2, save_top_k=-1, save_last=True, save_on_exception=True
    )
    with pytest.raises(NonFiniteError, match=r"step 3 is not finite: .* with the samples 3-0, 3-1") as raised:
        fit(tmp_path, Spoils(3, how=how), NonFinite(), keep, enable_checkpointing=True)
    assert "non_finite.policy skip" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2
    saved = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert {torch.load(path, weights_only=True)["global_step"] for path in saved} == {2}
    for path in saved:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_numbers_are_looked_at_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is not waited for in each step."""
    monkeypatch.setattr(non_finite, "SECONDS", 1000.0)
    looked: list[int] = []
    real = NonFinite._bad

    def counted(self: NonFinite) -> Any:
        looked.append(len({seen.step for seen in self._seen}))
        return real(self)

    monkeypatch.setattr(NonFinite, "_bad", counted)
    fit(tmp_path, Spoils(), NonFinite(), steps=70, log_every_n_steps=50)
    assert looked == [1, 32, 17, 20], "the first, after 32, at the one that is logged, at the end"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Breaks(Callback):
        """As a callback that averages weights might."""

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == 4:
                with torch.no_grad():
                    next(pl_module.parameters()).fill_(float("inf"))

    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(NonFiniteError, match="weights are not finite, the checkpoint is not saved"):
        fit(tmp_path, Spoils(), NonFinite(), Breaks(), keep, enable_checkpointing=True)
    assert [path.name for path in (tmp_path / "kept").glob("*")] == ["epoch=0-step=2.ckpt"]


def test_a_limit_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"non_finite\.limit is 0: it must be at least 1"):
        NonFinite(limit=0)


def test_what_was_counted_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs", version="")
    fit(tmp_path, Spoils(1), NonFinite("skip"), logger=logger, log_every_n_steps=2)
    lines = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/skipped_steps")
    values = [line.split(",")[column] for line in lines[1:]]
    assert [float(value) for value in values if value] == [1.0, 1.0, 1.0]
    assert "train/non_finite_steps" in lines[0].split(",")
