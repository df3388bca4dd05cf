"""`mmlab tune batch`: what is tried, what is kept, what is refused."""

from __future__ import annotations

import argparse
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from mmlab.batch import Batch
from mmlab.commands import trial, tune, tune_batch
from mmlab.commands.train import build
from mmlab.commands.trial import Unbuilt
from mmlab.commands.tune import memory_size
from mmlab.commands.worst_batches import worst_batches
from mmlab.data.shards import write_shards
from mmlab.parallel.tuning import Trial

GB = 10**9
CONFIG = """
name: tiny
seed_everything: 1
model:
  class_path: mmlab.tasks.retrieval.RetrievalTask
  init_args:
    model:
      class_path: mmlab.models.dual_encoder.DualEncoder
      init_args:
        signal: &tower
          class_path: mmlab.models.dual_encoder.Tower
          init_args:
            encoder:
              class_path: mmlab.models.encoders.signal.SignalEncoder
              init_args: {{channels: 2, dim: 16, num_layers: 1}}
            dim: 8
        image:
          class_path: mmlab.models.dual_encoder.Tower
          init_args:
            encoder:
              class_path: mmlab.models.encoders.image.ImageEncoder
              init_args: {{name: test_resnet, pretrained: false}}
            dim: 8
    objective: {{class_path: mmlab.objectives.contrastive.InfoNCE}}
    adaptation: {{class_path: mmlab.adaptation.policy.Policy, init_args: {{towers: full}}}}
    optimization:
      optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
data:
  splits: {{train: "{folder}/train-*.tar"}}
  batch_size: 12
  image: {{class_path: mmlab.data.image.ImageReader, init_args: {{size: 32}}}}
  signal: {{class_path: mmlab.data.signal.SignalReader, init_args: {{channels: 2, max_steps: 32}}}}
trainer: {{accelerator: cpu, max_epochs: 1}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Signals of 4 to 40 steps beside pictures, in a config."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("tune")
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "JPEG")

    def sample(number: int) -> dict[str, Any]:
        array = io.BytesIO()
        np.save(array, np.ones((4 + number, 2), np.float32))
        return {"__key__": f"k{number:02d}", "npy": array.getvalue(), "jpg": picture.getvalue()}

    write_shards([sample(number) for number in range(36)], folder, "train", max_samples=36)
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(folder=folder))
    return str(path)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mmlab"])


def tune_it(*words: str) -> int:
    parser = argparse.ArgumentParser()
    tune.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["tune", "batch", *words])
    status: int = arguments.run(arguments)
    return status


class Pretended:
    """Trials on a machine that holds so many steps of signals at once."""

    def __init__(self, holds: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds = holds
        self.tried: list[tuple[int, int, int]] = []
        monkeypatch.setattr(tune_batch, "try_apart", self)

    def __call__(self, words: list[str], batch: Batch, samples: int, *, limit: int) -> Trial | None:
        assert batch.signal is not None
        length = batch.signal.data.shape[1]
        self.tried.append((length, len(batch), samples))
        fits = samples * length <= self.holds
        return Trial(samples, samples * 1000, float(samples)) if fits else None


def test_an_overlay_is_written_and_what_was_measured_is_kept(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Pretended(150, monkeypatch)
    out = tmp_path / "deep" / "part.yaml"
    assert tune_it("--config", config, "--memory", "2GB", "--out", str(out)) == 0
    assert yaml.safe_load(out.read_text()) == {"execution": {"micro_batch": 4}}
    assert machine.tried == [(32, 12, 12), (32, 12, 6), (32, 12, 3), (32, 12, 4), (32, 12, 2)]
    assert f"use it: mmlab fit --config {config} --config {out}" in capsys.readouterr().out
    for words, again in (((), 0), (("--fresh",), 5), (("--trainer.precision", "bf16-mixed"), 5)):
        machine.tried.clear()
        assert tune_it("--config", config, "--memory", "2GB", *words) == 0
        assert len(machine.tried) == again, words
    # The part size itself does not matter, nor what a run is called.
    machine.tried.clear()
    tune_it("--config", config, "--memory", "2GB", "--execution.micro_batch", "7", "--name", "other")
    assert machine.tried == []


def test_the_overlay_is_one_of_fit(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Pretended(150, monkeypatch)
    tune_it("--config", config, "--out", "part.yaml")
    parts = build(Unbuilt, ["fit", "--config", config, "--config", "part.yaml"])
    parts.instantiate()
    assert parts.model.execution.micro_batch == 4


def test_each_length_bucket_is_tried_at_its_longest(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Pretended(150, monkeypatch)
    bucketing = "{by: signal, buckets: 3, budget: 400}"
    assert tune_it("--config", config, "--data.loading.bucketing", bucketing, "--out", "part.yaml") == 0
    # A third of the samples each, the longest cut to 32 steps; the budget would allow more than 12 samples.
    assert {(length, size) for length, size, _ in machine.tried} == {(32, 12), (28, 12), (16, 12)}
    found = yaml.safe_load(Path("part.yaml").read_text())["execution"]["micro_batch"]
    assert list(found) == [16, 28, 32]
    assert all(length * samples <= 150 for length, samples in found.items())
    assert found[16] > found[32]


def test_ranks_share_the_batch(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Pretended(10**6, monkeypatch)
    tune_it("--config", config, "--trainer.devices", "2", "--trainer.num_nodes", "2", "--out", "part.yaml")
    assert machine.tried == [(32, 3, 3)]
    assert yaml.safe_load(Path("part.yaml").read_text()) == {"execution": {"micro_batch": None}}


def test_the_worst_batch_is_full_of_the_longest_rows(config: str) -> None:
    parts = build(Unbuilt, ["fit", "--config", config, "--data.batch_size", "30"])
    parts.instantiate()
    (bucket,) = worst_batches(parts.datamodule, ranks=1)
    assert len(bucket.batch) == 30
    assert bucket.length == 32
    assert bucket.batch.signal is not None
    assert bucket.batch.image is not None
    assert bucket.batch.signal.length is not None
    assert bucket.batch.signal.length.tolist() == [32] * 30
    assert bucket.batch.signal.data.isfinite().all()
    assert bucket.batch.image.data.shape == (30, 3, 32, 32)


def test_a_trial_trains_in_parts(config: str) -> None:
    parts = build(Unbuilt, ["fit", "--config", config])
    parts.instantiate()
    (bucket,) = worst_batches(parts.datamodule, ranks=1)
    before = [p.detach().clone() for p in parts.model.parameters()]
    seen: list[int] = []
    parts.model.model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    for samples, sizes in ((5, {5, 2}), (40, {12})):
        seen.clear()
        found = trial.train(parts, bucket.batch, samples)
        assert found.samples == samples
        assert found.memory > 10**7
        assert 0 < found.speed < float("inf")
        assert set(seen) == sizes
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.model.parameters(), strict=True))
    assert not any(isinstance(m, nn.parallel.DistributedDataParallel) for m in parts.model.modules())
    for name in ("fabric.utilities.seed", "pytorch.utilities.rank_zero"):
        assert logging.getLogger(f"lightning.{name}").level < logging.WARNING, "later ones speak again"


def test_not_even_one_sample(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Pretended(0, monkeypatch)
    with pytest.raises(ValueError, match="not even one sample fits in 2 GB: set execution") as error:
        tune_it("--config", config, "--memory", "2GB")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * GB),
        ("512 MiB", 512 * 2**20),
        ("1.5g", 1_500_000_000),
        ("100000", 10**5),
        ("2TB", 2000 * GB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "1.2.3GB", "0"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        memory_size(text)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_limit_is_kept_in_another_process(config: str) -> None:
    words = ["--config", config]
    parts = build(Unbuilt, ["fit", *words])
    parts.instantiate()
    (bucket,) = worst_batches(parts.datamodule, ranks=1)
    batch = bucket.batch.select(torch.arange(2400) % len(bucket.batch))
    whole = trial.try_apart(words, batch, 2400, limit=100 * GB)
    assert whole is not None
    part = trial.try_apart(words, batch, 600, limit=100 * GB)
    assert part is not None
    limit = (whole.memory + part.memory) // 2
    assert trial.try_apart(words, batch, 2400, limit=limit) is None
    assert trial.try_apart(words, batch, 600, limit=limit) is not None
    with pytest.raises(ValueError, match="a training step failed"):
        trial.try_apart([*words, "--trainer.precision", "16-true"], batch, 600, limit=100 * GB)
