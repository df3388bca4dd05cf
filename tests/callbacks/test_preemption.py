"""Training that is stopped anywhere, and goes on, is training that was never stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from mmlab.callbacks.checkpoints import Checkpoints
from mmlab.callbacks.history import History
from mmlab.callbacks.preemption import Preemption
from mmlab.commands.resume import Start, continue_logs, read_start
from mmlab.launch.notice import Notice
from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.runs.checkpoint import newest_good

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*Checkpoint directory .* exists and is not empty",
    "ignore:.*logging interval",
    "ignore:.*no `val_dataloader`",
)
BATCHES = 6
EVENTS = 40
"""More than a run of any case has."""


class Case(NamedTuple):
    """How training is set up."""

    settings: dict[str, Any]
    validates: bool = True
    saves: dict[str, Any] = {}  # noqa: RUF012  it is not changed


CASES = {
    "epochs": Case({"max_epochs": 3}),
    "steps": Case({"max_steps": 15, "max_epochs": -1}),
    "within epochs": Case({"max_epochs": 2, "val_check_interval": 3}),
    "by steps": Case({"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}),
    "no validation": Case({"max_epochs": 3}, validates=False),
    "accumulating": Case({"max_epochs": 3, "accumulate_grad_batches": 2}),
    "accumulating oddly": Case({"max_epochs": 3, "accumulate_grad_batches": 4}),
    "saving often": Case({"max_epochs": 2}, saves={"every_n_train_steps": 2}),
    "steps, no validation": Case({"max_steps": 15}, validates=False, saves={"every_n_train_steps": 5}),
    "steps, validating last": Case(
        {"max_steps": 15, "val_check_interval": 3}, saves={"every_n_train_steps": 3}
    ),
    "saving at errors": Case({"max_epochs": 2, "val_check_interval": 3}, saves={"save_on_exception": True}),
    "saving at errors, accumulating": Case(
        {"max_epochs": 2, "accumulate_grad_batches": 2}, saves={"save_on_exception": True}
    ),
    "steps, accumulating": Case(
        {"max_steps": 9, "accumulate_grad_batches": 2}, saves={"every_n_train_steps": 2}
    ),
}


class Batches:
    """As many numbers as an epoch has batches, going on where training stands."""

    def __init__(self, trainer: L.Trainer, *, training: bool) -> None:
        self.trainer = trainer
        self.training = training

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Tensor]:
        first = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.training else 0
        for number in range(first, first + BATCHES):
            yield torch.tensor([[float(number % 7) - 3]])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.layer(batch) - batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", (self.layer(batch) - batch).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KilledError(Exception):
    """Stands for the end of a process."""


class Watch(Callback):
    """Writes down what happens, and is told to stop, or killed, at one of the moments."""

    def __init__(self, events: list[Any], notice: Notice, stop: int | None) -> None:
        self.events = events
        self.notice = notice
        self.left = None if stop is None else abs(stop)
        self.kill = stop is not None and stop < 0

    def moment(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0 and self.kill:
                raise KilledError
            if self.left == 0:
                self.notice.note(signal.SIGTERM, None)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, number: int
    ) -> None:
        self.moment()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Tensor, number: int
    ) -> None:
        self.events.append(("train", trainer.global_step, trainer.current_epoch, float(batch)))

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seen = 0
        self.moment()

    def on_validation_batch_end(self, *arguments: Any) -> None:
        self.seen += 1
        self.moment()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics["val/loss"])
        self.events.append(("val", trainer.global_step, trainer.current_epoch, self.seen, score))
        self.moment()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.events.append(("epoch", trainer.current_epoch))
        self.moment()


class Outcome(NamedTuple):
    """What a run did and left behind."""

    events: list[Any]
    weight: list[float]
    rate: float
    rows: list[dict[str, Any]]
    best: dict[str, float]
    files: list[str]


def train(folder: Path, case: Case, stops: list[int]) -> Outcome:
    """Train to the end, stopped after so many moments of each attempt, and going on each time.

    Args:
        folder: Of the run.
        case: How it is set up.
        stops: Moments of each attempt but the last; below 0 it is killed.
    """
    events: list[Any] = []
    for stop in [*stops, None]:
        notice = Notice()
        checkpoints = Checkpoints(
            folder / "checkpoints", save_last=True, minutes=None, mode="min",
            save_top_k=2 if case.validates else 1,
            monitor="val/loss" if case.validates else None, **case.saves,
        )  # fmt: skip
        history = History(str(folder / "logs"))
        trainer = L.Trainer(
            accelerator="cpu", devices=1, logger=[history], num_sanity_val_steps=0, log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[Watch(events, notice, stop), Preemption(notice), checkpoints], **case.settings,
        )  # fmt: skip
        trainer.strategy.checkpoint_io = CheckpointFiles()
        model, start = Line(), newest_good(folder / "checkpoints")
        continue_logs([history], Start(0) if start is None else read_start(start))
        batches = Batches(trainer, training=True)
        validation = Batches(trainer, training=False) if case.validates else None
        try:
            trainer.fit(model, batches, validation, ckpt_path=None if start is None else str(start))
        except SIGTERMException:
            assert newest_good(folder / "checkpoints") is not None
            continue
        except KilledError:
            continue
        weight = [float(value) for parameter in model.parameters() for value in parameter.detach().flatten()]
        best = {Path(path).name: float(score) for path, score in checkpoints.best_k_models.items()}
        files = sorted(path.name for path in (folder / "checkpoints").iterdir())
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        return Outcome(events, weight, rate, history.rows_as_text(), best, files)
    raise AssertionError("the last attempt was stopped")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {name: train(tmp_path_factory.mktemp("whole"), case, []) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(stops=st.lists(st.integers(1, EVENTS), min_size=1, max_size=4))
def test_nothing_is_repeated_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: dict[str, Outcome], name: str, stops: list[int]
) -> None:
    found = train(tmp_path_factory.mktemp("stopped"), CASES[name], stops)
    assert found == undisturbed[name]


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(stops=st.lists(st.integers(-EVENTS, EVENTS).filter(bool), min_size=1, max_size=5))
def test_what_is_killed_in_between_is_repeated_alike(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: dict[str, Outcome], name: str, stops: list[int]
) -> None:
    found = train(tmp_path_factory.mktemp("killed"), CASES[name], stops)
    assert found._replace(events=[]) == undisturbed[name]._replace(events=[])


@pytest.mark.parametrize("moment", [2, 3, 4, 7, 14, 15])
def test_an_error_saves_what_stands_between_two_steps_or_nothing(
    tmp_path: Path, undisturbed: dict[str, Outcome], moment: int
) -> None:
    name = "saving at errors, accumulating"
    found = train(tmp_path, CASES[name], [-moment])
    assert found._replace(events=[]) == undisturbed[name]._replace(events=[])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_epochs": 2}, {"max_epochs": 3}),
        ({"max_steps": 9}, {"max_steps": 15}),
        ({"max_steps": 9}, {"max_epochs": 3}),
        ({"max_epochs": 2}, {"max_steps": 15}),
    ],
)
@pytest.mark.parametrize("validates", [True, False])
def test_a_run_that_has_ended_goes_on_with_more(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], validates: bool
) -> None:
    train(tmp_path / "run", Case(first, validates), [])
    found = train(tmp_path / "run", Case(then, validates), [])
    expected = train(tmp_path / "whole", Case(then, validates), [])
    # The first run looks at its score where it ends.
    assert found._replace(events=[], best={}, files=[]) == expected._replace(events=[], best={}, files=[])
