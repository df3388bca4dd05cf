"""One rank and two ranks with the same global batch: the same samples, losses, weights and metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from mmlab import collectives
from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.plan import Loading
from mmlab.data.signal import SignalReader
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import ContrastiveObjective, InfoNCE, SigmoidLoss
from mmlab.optim import Optimization
from mmlab.sources.generated import Generated
from mmlab.tasks.retrieval import RetrievalTask

STEPS = 20
BATCH = 16
SETTINGS: dict[str, tuple[type[ContrastiveObjective], Optimization]] = {
    "sgd": (InfoNCE, Optimization(partial(torch.optim.SGD, lr=0.05, momentum=0.9))),
    "adamw": (SigmoidLoss, Optimization(partial(torch.optim.AdamW, lr=1e-3))),
}


class Record(NamedTuple):
    """What one rank saw."""

    keys: list[tuple[str, ...]]
    losses: list[float]
    logged: list[float]
    present: list[dict[str, int]]
    """Samples of each modality, by step."""
    weights: dict[str, torch.Tensor]
    results: dict[str, float]


class Recorder(Callback):
    def __init__(self) -> None:
        self.keys: list[tuple[str, ...]] = []
        self.losses: list[float] = []
        self.logged: list[float] = []
        self.present: list[dict[str, int]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.keys.append(batch.keys)
        self.losses.append(outputs["loss"].item())
        self.logged.append(trainer.callback_metrics["train/loss"].item())
        self.present.append({modality: int(i.present.sum()) for modality, i in batch.inputs()})


def make_task(setting: str) -> RetrievalTask:
    torch.manual_seed(0)
    objective, optimization = SETTINGS[setting]
    return RetrievalTask(
        DualEncoder(
            image=Tower(ImageEncoder("test_resnet", pretrained=False), dim=16),
            signal=Tower(SignalEncoder(3, dim=16, num_layers=1), dim=16),
        ),
        objective=objective(),
        optimization=optimization,
        adaptation=Policy("full"),
    )


def fit(cache: Path, setting: str, root: Path, devices: int) -> Record:
    """Train twenty steps on generated data that lack pictures and movements here and there."""
    rank = collectives.rank()
    before = dict(os.environ)
    os.environ["MMLAB_CACHE"] = str(cache)
    strategy: Any = "auto"
    if devices > 1:
        # This process is one of those ranks already: Lightning must start none.
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(devices)}
        strategy = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    recorder = Recorder()
    try:
        torch.use_deterministic_algorithms(True)
        data = ShardData(
            batch_size=BATCH,
            source=Generated(train=120, val=50, test=1, missing={"image": 0.7, "signal": 0.3}),
            image=ImageReader(32, crop_scale=(0.5, 1.0), flip=0.5),
            signal=SignalReader(channels=3),
            loading=Loading(group_by="json.caption", eval_batch_size=8),
        )
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy=strategy, max_steps=STEPS, logger=False,
            check_val_every_n_epoch=None, val_check_interval=STEPS, enable_checkpointing=False,
            num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=root, callbacks=[recorder], log_every_n_steps=1,
        )  # fmt: skip
        task = make_task(setting)
        trainer.fit(task, data)
        weights = {name: value.clone() for name, value in task.state_dict().items()}
        return Record(
            recorder.keys, recorder.losses, recorder.logged, recorder.present, weights, task.results
        )
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.clear()
        os.environ.update(before)


class Runs(NamedTuple):
    setting: str
    alone: Record
    first: Record
    second: Record


@pytest.fixture(scope="module", params=["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest, ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    cache, root = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("root")
    alone = fit(cache, request.param, root, 1)
    return Runs(request.param, alone, *ranks(fit, cache, request.param, root, 2))


pytestmark = [
    # Lightning 2.6 asks torch 2.15 for a class that torch has deprecated.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]


def test_ranks_share_each_global_batch(runs: Runs) -> None:
    assert len(runs.alone.keys) == STEPS
    assert [a + b for a, b in zip(runs.first.keys, runs.second.keys, strict=True)] == runs.alone.keys


def test_losses_are_the_same(runs: Runs) -> None:
    mean = [(a + b) / 2 for a, b in zip(runs.first.losses, runs.second.losses, strict=True)]
    assert mean == pytest.approx(runs.alone.losses, abs=1e-5, rel=0)
    assert len({round(loss, 4) for loss in mean}) == STEPS, "the model does not learn"


def test_weights_are_the_same(runs: Runs) -> None:
    # AdamW makes steps of full size of gradients that are nothing but rounding: 2e-3 was seen.
    tolerance = 2e-5 if runs.setting == "sgd" else 5e-3
    for name, value in runs.alone.weights.items():
        torch.testing.assert_close(runs.first.weights[name], value, rtol=0, atol=tolerance)
        assert torch.equal(runs.first.weights[name], runs.second.weights[name]), name


def test_validation_metrics_are_the_same(runs: Runs) -> None:
    assert runs.first.results == runs.second.results
    assert runs.alone.results["val/image_to_signal/queries"] < 50
    assert runs.first.results == pytest.approx(runs.alone.results, rel=1e-6, abs=1e-6, nan_ok=True)


def test_a_rank_without_any_sample_of_a_modality_went_along(runs: Runs) -> None:
    shares = list(zip(runs.first.present, runs.second.present, strict=True))
    assert any(0 in (a["image"], b["image"]) and a["image"] != b["image"] for a, b in shares)
    assert all(0 < present["image"] < BATCH for present in runs.alone.present)


def test_the_logged_loss_is_that_of_the_global_batch(runs: Runs) -> None:
    assert runs.first.logged == pytest.approx(runs.alone.logged, abs=1e-5, rel=0)


@pytest.mark.slow
@pytest.mark.slow
def test_a_run_goes_on_with_the_lanes_that_it_began_with(tmp_path: Path) -> None:
    """So few samples would make one lane, which two ranks cannot share; one rank then goes on with two."""
    smoke = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
    words = [
        sys.executable, "-m", "mmlab", "fit", "--config", str(smoke), "--data.source.init_args.train", "40",
        "--data.batch_size", "8", "--trainer.accelerator", "cpu", "--trainer.logger", "false",
        "--test_untrained", "false", "--resume", "auto", "--data.loading.num_workers", "0",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "MMLAB_RUN_ID"}
    environment |= {"MMLAB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for devices, epochs in (("2", "1"), ("1", "2")):
        done = subprocess.run(
            [*words, "--trainer.devices", devices, "--trainer.max_epochs", epochs], cwd=tmp_path,
            env=environment, timeout=240, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (run,) = (tmp_path / "runs" / "smoke").iterdir()
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["ShardData"]
        assert (state["step"], state["order"]["lanes"]) == (5 * int(epochs), "2 x 1")
        status = run / "status.json"
        # Its end is not the end: more epochs are wanted.
        status.write_text(status.read_text().replace('"finished"', '"preempted"'))


def test_two_devices_of_the_command_line_make_one_run(tmp_path: Path) -> None:
    smoke = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
    encoder = "--model.init_args.model.init_args.image.init_args.encoder.init_args"
    words = [
        sys.executable, "-m", "mmlab", "fit", "--config", str(smoke), "--data.source.init_args.train", "128",
        "--data.batch_size", "32", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.logger", "false", f"{encoder}.freeze_batch_norm", "true",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "MMLAB_RUN_ID"}
    environment |= {"MMLAB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    metrics = []
    for name, strategy in (("alone", "auto"), ("two", "ddp")):
        devices = ["--name", name, "--trainer.devices", "1" if name == "alone" else "2"]
        done = subprocess.run(
            [*words, *devices, "--trainer.strategy", strategy], cwd=tmp_path, env=environment, timeout=240,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run directory:") == done.stdout.count("results:") == 1
        (run,) = (tmp_path / "runs" / name).iterdir()
        page = (run / "retrieval.html").read_text(encoding="utf-8")
        assert "Nothing to show of image, signal: this page shows text to image" in page
        metrics.append(json.loads((run / "metrics.json").read_text()))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6, abs=1e-6)
