"""A task trained and measured on a mixture: what is logged for each source, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Input, Modality
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization
from mmlab.tasks import base
from mmlab.tasks.base import BaseTask
from mmlab.tasks.retrieval import RetrievalTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
SAMPLES = 4
NAMES = ("photos", "films")


class Colours(Encoder):
    """The mean colour of a picture."""

    modality = Modality.IMAGE
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, self.dim)
        self.calls = 0

    def encode(self, inputs: Input) -> Encoded:
        self.calls += 1
        tokens = self.linear(inputs.data.float().mean((2, 3)) / 255)[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def make_batch(step: int, source: list[int] | None) -> Batch:
    generator = torch.Generator().manual_seed(step)
    owner, valid = torch.arange(SAMPLES), torch.ones(SAMPLES, dtype=torch.bool)
    image = torch.randint(0, 256, (SAMPLES, 3, 4, 4), dtype=torch.uint8, generator=generator)
    signal = torch.randn(SAMPLES, 5, 2, generator=generator)
    return Batch(
        keys=tuple("abcd"),
        place=step * SAMPLES + owner,
        valid=valid,
        group=step * SAMPLES + owner,
        image=Input(image, owner, valid),
        signal=Input(signal, owner, valid, torch.full((SAMPLES,), 5)),
        source=None if source is None else torch.tensor(source),
        sources=() if source is None else NAMES,
    )


def make_loader(sources: list[list[int] | None]) -> DataLoader[Batch]:
    batches = [make_batch(step, source) for step, source in enumerate(sources)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def make_task(kind: type[BaseTask] = RetrievalTask, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = DualEncoder(
        image=Tower(Colours(), dim=4), signal=Tower(SignalEncoder(2, dim=8, num_layers=1), dim=4)
    )
    optimization = Optimization(partial(torch.optim.SGD, lr=0.1))
    return kind(model, optimization=optimization, adaptation=Policy("full"), **settings)


class Scalar(BaseTask):
    """A leaf that knows nothing of samples."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(batch)
        return {"spread": output.image.vector.var(), "size": output.signal.vector.abs().mean()}

    def make_metrics(self) -> Metric:
        raise AssertionError("it is not evaluated")

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        raise AssertionError("it is not evaluated")


class Log(CSVLogger):
    """Keeps what was logged at each step."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        assert step is not None
        self.steps.setdefault(step, {}).update(metrics)


def fit(
    task: BaseTask, root: Path, sources: list[list[int] | None], **settings: Any
) -> dict[int, dict[str, float]]:
    log = Log(root)
    L.Trainer(
        accelerator="cpu", devices=1, logger=log, enable_checkpointing=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **settings,
    ).fit(task, make_loader(sources), make_loader(sources))  # fmt: skip
    return log.steps


MIXTURE: list[list[int] | None] = [[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]


def of_sources(logged: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in logged.items() if "@" in name}


def test_the_loss_of_each_source_is_logged_at_steps_that_have_it(tmp_path: Path) -> None:
    steps = fit(make_task(objective=InfoNCE()), tmp_path, MIXTURE, log_every_n_steps=1)
    found = {step: of_sources(logged) for step, logged in steps.items()}
    assert [set(found[step]) for step in range(4)] == [
        {"train/loss@photos"}, {"train/loss@photos", "train/loss@films"}, {"train/loss@films"},
        {"train/loss@photos"},
    ]  # fmt: skip
    for step in (0, 2, 3):
        assert list(found[step].values()) == pytest.approx([steps[step]["train/loss"]], rel=1e-5)
    # Two anchors of each source: the loss is the mean of the sources' losses.
    assert sum(found[1].values()) / 2 == pytest.approx(steps[1]["train/loss"], rel=1e-5)


def test_steps_that_are_not_logged_cost_no_collective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    measure = base.losses_by_source
    monkeypatch.setattr(base, "losses_by_source", lambda *given: calls.append(1) or measure(*given))
    steps = fit(make_task(objective=InfoNCE()), tmp_path, MIXTURE, log_every_n_steps=3)
    assert len(calls) == 1
    assert [step for step, logged in steps.items() if of_sources(logged)] == [2]


def test_accumulated_batches_are_logged_once(tmp_path: Path) -> None:
    steps = fit(
        make_task(objective=InfoNCE()), tmp_path, MIXTURE, log_every_n_steps=1, accumulate_grad_batches=2
    )
    assert [set(of_sources(steps[step])) for step in (0, 1)] == [
        {"train/loss@photos", "train/loss@films"}, {"train/loss@photos"},
    ]  # fmt: skip


def test_scalars_are_told_apart_in_batches_of_one_source(tmp_path: Path) -> None:
    steps = fit(make_task(Scalar), tmp_path, MIXTURE, log_every_n_steps=1)
    assert of_sources(steps[1]) == {}
    parts = ("train/loss", "train/loss/spread", "train/loss/size")
    assert of_sources(steps[2]) == {f"{name}@films": pytest.approx(steps[2][name]) for name in parts}


def test_a_run_of_one_source_logs_as_before_and_learns_the_same(tmp_path: Path) -> None:
    plain, mixed = make_task(objective=InfoNCE()), make_task(objective=InfoNCE())
    steps = fit(plain, tmp_path, [None] * 4, log_every_n_steps=1)
    others = fit(mixed, tmp_path, MIXTURE, log_every_n_steps=1)
    assert not any(of_sources(logged) for logged in steps.values())
    assert [steps[n]["train/loss"] for n in range(4)] == [others[n]["train/loss"] for n in range(4)]
    for ours, theirs in zip(plain.parameters(), mixed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_metrics_of_each_source_from_one_pass(tmp_path: Path) -> None:
    task = make_task(objective=InfoNCE())
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    (values,) = trainer.validate(task, make_loader(MIXTURE), verbose=False)
    assert task.model.image.encoder.calls == len(MIXTURE)
    assert values["val/image_to_signal/queries@photos"] == 10
    assert values["val/image_to_signal/queries@films"] == 6
    assert values["val/image_to_signal/queries"] == 16
    assert 0 <= values["val/mean_recall@films"] <= 1
    assert task.results.keys() == values.keys()
