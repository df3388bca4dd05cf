"""The data module under Lightning: exact resumption, every stage, and what is refused before it runs."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from mmlab.batch import Batch
from mmlab.data.image import ImageReader
from mmlab.data.lanes import Lanes
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.source import Source

# Lightning 2.6 asks torch 2.15 for a class that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

CHANNELS, STEPS = 3, 20


def signal_sample(number: int) -> dict[str, Any]:
    data = io.BytesIO()
    np.save(data, np.random.default_rng(number).standard_normal((STEPS, CHANNELS)).astype(np.float32))
    return {"__key__": f"{number:05d}", "npy": data.getvalue(), "json": {"group": f"g{number // 2}"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 training samples in 4 shards, 21 to validate, 10 to test."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards((signal_sample(n) for n in range(101)), folder, "train", max_samples=30)
    write_shards((signal_sample(n) for n in range(1000, 1021)), folder, "val")
    write_shards((signal_sample(n) for n in range(2000, 2010)), folder, "test")
    return folder


def make_data(folder: Path, *, batch_size: int = 8, **loading: Any) -> ShardData:
    splits = Splits(**{split: str(folder / f"{split}-*.tar") for split in ("train", "val", "test")})
    settings = {"lanes": Lanes(4, 2), "seed": 5, "group_by": "json.group"} | loading
    return ShardData(
        batch_size=batch_size,
        splits=splits,
        signal=SignalReader(channels=CHANNELS, max_steps=8),  # cut at random in training
        loading=Loading(**settings),
    )


class Recorder(pl.LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(CHANNELS))
        self.train_batches: list[tuple[Any, ...]] = []
        self.eval_batches: list[Batch] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert batch.signal is not None
        self.train_batches.append((batch.keys, batch.place.tolist(), batch.signal.data.double().sum().item()))
        return (batch.signal.data.mean((0, 1)) * self.weight).sum()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.eval_batches.append(batch)

    def test_step(self, batch: Batch, index: int) -> None:
        self.eval_batches.append(batch)

    def predict_step(self, batch: Batch, index: int) -> torch.Tensor:
        return batch.place

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_trainer(root: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": root,
        "enable_checkpointing": False,
    }  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **(defaults | settings))


class Saver(pl.Callback):
    """Saves after every training step, validation and epoch, and where a step fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}-{trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.save(trainer, "step")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self.save(trainer, "exception")


def resume(
    model: pl.LightningModule, data: ShardData, checkpoint: Path, *callbacks: pl.Callback, **settings: Any
) -> None:
    trainer = make_trainer(checkpoint.parent, *callbacks, **settings)
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)


@pytest.fixture(scope="module")
def whole_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[Any, ...]], Path]:
    """What an uninterrupted run of three epochs sees, and the folder of its checkpoints."""
    root = tmp_path_factory.mktemp("run")
    model = Recorder()
    make_trainer(root, Saver(root), val_check_interval=5).fit(model, make_data(folder))
    assert len(model.train_batches) == 3 * 13  # 101 / 8 is 12.6
    return model.train_batches, root


class TestResume:
    @pytest.mark.parametrize(
        ("saved", "workers"),
        [("step-1", 0), ("step-4", 2), ("step-12", 0), ("step-13", 0), ("step-14", 0), ("step-17", 1),
         ("step-25", 0), ("step-26", 2), ("step-38", 0), ("validation-5", 0), ("validation-10", 1),
         ("validation-18", 0), ("epoch-13", 0), ("epoch-26", 2)],
    )  # fmt: skip
    def test_goes_on_as_if_never_stopped(
        self, folder: Path, whole_run: tuple[list[Any], Path], saved: str, workers: int
    ) -> None:
        whole, checkpoints = whole_run
        model = Recorder()
        data = make_data(folder, num_workers=workers)
        resume(model, data, checkpoints / f"{saved}.ckpt", val_check_interval=5)
        assert model.train_batches == whole[int(saved.partition("-")[2]) :]

    def test_again_and_again(self, folder: Path, tmp_path: Path, whole_run: tuple[list[Any], Path]) -> None:
        whole, checkpoints = whole_run
        saved = checkpoints / "step-3.ckpt"
        for start, stop in ((3, 6), (6, 9), (9, 14), (14, 27)):
            model = Recorder()
            resume(model, make_data(folder), saved, Saver(tmp_path), max_epochs=-1, max_steps=stop)
            assert model.train_batches == whole[start:stop]
            saved = tmp_path / f"step-{stop}.ckpt"

    def test_after_an_error_in_a_step(
        self, folder: Path, tmp_path: Path, whole_run: tuple[list[Any], Path]
    ) -> None:
        class Failing(Recorder):
            def training_step(self, batch: Batch, index: int) -> torch.Tensor:
                if len(self.train_batches) == 15:
                    raise RuntimeError("out of luck")
                return super().training_step(batch, index)

        with pytest.raises(RuntimeError, match="out of luck"):
            make_trainer(tmp_path, Saver(tmp_path)).fit(Failing(), make_data(folder, num_workers=2))
        model = Recorder()
        resume(model, make_data(folder), tmp_path / "exception-15.ckpt")
        assert model.train_batches == whole_run[0][15:]

    def test_fit_that_goes_on_in_the_same_process(
        self, folder: Path, tmp_path: Path, whole_run: tuple[list[Any], Path]
    ) -> None:
        model, data = Recorder(), make_data(folder)
        trainer = make_trainer(tmp_path, max_epochs=1)
        trainer.fit(model, data)
        trainer.fit_loop.max_epochs = 3
        trainer.fit(model, data)
        assert model.train_batches == whole_run[0]
        model.train_batches.clear()
        make_trainer(tmp_path, max_epochs=1).fit(model, data)
        assert model.train_batches == whole_run[0][:13]

    @pytest.mark.parametrize(
        ("changes", "named"),
        [({"batch_size": 4}, "batch_size 8 -> 4"), ({"seed": 6}, "seed 5 -> 6"),
         ({"lanes": Lanes(2, 2)}, "lanes 4 x 2 -> 2 x 2"), ({"unit": "shard"}, "unit sample -> shard")],
        ids=lambda value: None,
    )  # fmt: skip
    def test_with_another_order_is_refused(
        self,
        folder: Path,
        tmp_path: Path,
        whole_run: tuple[list[Any], Path],
        changes: dict[str, Any],
        named: str,
    ) -> None:
        data = make_data(folder, **changes)
        with pytest.raises(ValueError, match="another order of samples") as raised:
            resume(Recorder(), data, whole_run[1] / "step-4.ckpt")
        assert named in str(raised.value)

    @pytest.mark.parametrize("changes", [{"seed": 6}, {"batch_size": 4}, {"unit": "shard"}])
    def test_with_another_order_goes_on_where_that_is_wanted(
        self,
        folder: Path,
        tmp_path: Path,
        whole_run: tuple[list[Any], Path],
        changes: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        fresh, resumed = Recorder(), Recorder()
        make_trainer(tmp_path, max_epochs=1).fit(fresh, make_data(folder, **changes))
        data = make_data(folder, exact=False, **changes)
        resume(resumed, data, whole_run[1] / "step-4.ckpt", max_epochs=1)
        assert resumed.train_batches == fresh.train_batches[4:]
        assert "the order of samples changes at this step" in caplog.text

    def test_with_other_shards_is_refused(self, tmp_path: Path, whole_run: tuple[list[Any], Path]) -> None:
        write_shards((signal_sample(n) for n in range(100, 201)), tmp_path, "train")
        data = make_data(tmp_path)
        data.splits = Splits(train=str(tmp_path / "train-*.tar"))
        with pytest.raises(ValueError, match=r"shards \w+ -> \w+"):
            resume(Recorder(), data, whole_run[1] / "step-4.ckpt")

    def test_evaluation_accepts_another_order(
        self, folder: Path, tmp_path: Path, whole_run: tuple[list[Any], Path]
    ) -> None:
        model = Recorder()
        data = make_data(folder, seed=99)
        saved = whole_run[1] / "step-4.ckpt"
        make_trainer(tmp_path).test(model, data, ckpt_path=saved, weights_only=True, verbose=False)
        assert sum(len(batch) for batch in model.eval_batches) == 16


class TestStages:
    def test_epochs_of_training_are_one_stream(self, whole_run: tuple[list[Any], Path]) -> None:
        places = [place for _, places, _ in whole_run[0] for place in places]
        assert places == list(range(39 * 8))

    def test_limited_epochs_go_on_where_the_last_one_stopped(
        self, folder: Path, tmp_path: Path, whole_run: tuple[list[Any], Path]
    ) -> None:
        model = Recorder()
        make_trainer(tmp_path, limit_train_batches=5).fit(model, make_data(folder, num_workers=2))
        assert model.train_batches == whole_run[0][:15]

    def test_overfitting_repeats_the_same_batches(self, folder: Path, tmp_path: Path) -> None:
        model = Recorder()
        make_trainer(tmp_path, overfit_batches=2).fit(model, make_data(folder))
        assert model.train_batches == 3 * model.train_batches[:2]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_validation_covers_every_sample_once_each_time(
        self, folder: Path, tmp_path: Path, workers: int
    ) -> None:
        model = Recorder()
        trainer = make_trainer(tmp_path, max_epochs=2, limit_train_batches=1)
        trainer.fit(model, make_data(folder, num_workers=workers, eval_batch_size=4))
        once = [f"{n:05d}" for n in range(1000, 1021)] + [""] * 3
        assert [key for batch in model.eval_batches for key in batch.keys] == 2 * once
        assert sum(int(batch.valid.sum()) for batch in model.eval_batches) == 2 * 21

    def test_prediction(self, folder: Path, tmp_path: Path) -> None:
        data = make_data(folder)
        data.splits = Splits(predict=str(folder / "test-*.tar"))
        places = make_trainer(tmp_path).predict(Recorder(), data)
        assert places is not None
        assert torch.cat(places).tolist() == list(range(16))  # type: ignore[arg-type]

    def test_training_without_validation_shards(self, folder: Path, tmp_path: Path) -> None:
        data = make_data(folder)
        data.splits = Splits(train=data.splits.train)
        model = Recorder()
        make_trainer(tmp_path, max_epochs=1).fit(model, data)
        assert len(model.train_batches) == 13

    def test_without_a_trainer(self, folder: Path, whole_run: tuple[list[Any], Path]) -> None:
        data = make_data(folder)
        data.setup("fit")
        loader = data.train_dataloader()
        assert len(loader) == 13
        keys = [batch.keys for _ in range(2) for batch in loader]
        assert keys == [record[0] for record in whole_run[0][:26]]

    def test_pages_can_look_samples_up(self, folder: Path) -> None:
        data = make_data(folder)
        data.setup("fit")
        data.setup("test")
        batch = next(iter(data.train_dataloader()))
        for key, place in zip(batch.keys, batch.place.tolist(), strict=True):
            assert data.read_raw("train", place).key == key
        assert data.read_raw("test", 3).key == "02003"
        assert data.digest("test") == make_data(folder).plan("test")[0].digest


class TestRefusals:
    def fit_error(self, data: ShardData) -> str:
        with pytest.raises(ValueError) as raised:  # noqa: PT011  (the callers look at the text)
            data.setup("fit")
        return str(raised.value)

    def test_a_batch_larger_than_the_set(self, folder: Path) -> None:
        said = self.fit_error(make_data(folder, batch_size=128, lanes=None))
        assert "101 training samples are fewer" in said
        assert "at most 101" in said

    def test_more_lanes_than_samples(self, folder: Path) -> None:
        assert "cannot fill 8 x 20 lanes" in self.fit_error(make_data(folder, lanes=Lanes(8, 20)))

    def test_workers_that_do_not_divide_the_groups(self, folder: Path) -> None:
        assert "nearest valid values are 2 and 4" in self.fit_error(
            make_data(folder, lanes=Lanes(4, 4), num_workers=3)
        )

    def test_more_ranks_than_lanes(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = make_data(folder)
        monkeypatch.setattr(data, "_ranks", lambda: (8, 0))
        assert "8 ranks: must divide lanes.ranks = 4; the nearest valid value is 4" in self.fit_error(data)

    def test_an_evaluation_batch_that_ranks_cannot_share(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = make_data(folder, eval_batch_size=7)
        monkeypatch.setattr(data, "_ranks", lambda: (2, 0))
        assert "nearest valid values are 6 and 8" in self.fit_error(data)

    def test_a_modality_that_the_data_lack(self, folder: Path) -> None:
        data = make_data(folder)
        data.readers += (ImageReader(32),)
        said = self.fit_error(data)
        assert "no image in the training shards, by jpg, jpeg, png, webp" in said
        assert "json (101), npy (101)" in said

    def test_a_rare_modality_is_found(self, tmp_path: Path) -> None:
        write_shards((signal_sample(n) for n in range(100)), tmp_path, "train")
        rare = [
            {"__key__": "x", "jpg": b""} if n == 150 else {"__key__": f"{n}", "txt": ""} for n in range(200)
        ]
        write_shards(rare, tmp_path, "train")
        data = ShardData(batch_size=4, splits=Splits(train=str(tmp_path / "*.tar")), image=ImageReader(32))
        data.setup("fit")

    def test_no_modality(self) -> None:
        with pytest.raises(ValueError, match="no modality: set at least one"):
            ShardData(batch_size=4)

    def test_missing_splits(self, folder: Path, tmp_path: Path) -> None:
        data = make_data(folder)
        data.splits = Splits()
        assert "no train shards: set data.splits.train" in self.fit_error(data)
        data.splits = Splits(train=str(tmp_path / "none-*.tar"))
        assert "nothing matches" in self.fit_error(data)

    def test_damaged_shards_are_named_in_the_log(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cut.tar").write_bytes((folder / "train-000000.tar").read_bytes()[:30_000])
        data = make_data(folder)
        data.splits = Splits(train=[str(folder / "train-*.tar"), str(tmp_path / "cut.tar")])
        with caplog.at_level(logging.WARNING):
            data.setup("fit")
        assert "1 of 5 train shards are cut off or damaged" in caplog.text


class Numbers(Source):
    """A source that counts how often it wrote."""

    name = "numbers"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0

    def prepare(self) -> Path:
        if not self.folder.exists():
            self.written += 1
            for split, first in (("train", 0), ("val", 1000)):
                write_shards((signal_sample(first + n) for n in range(40)), self.folder, split)
        return self.folder


def test_a_source_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    source = Numbers(tmp_path / "numbers")
    reader = SignalReader(channels=CHANNELS)
    model, data = Recorder(), ShardData(batch_size=8, source=source, signal=reader)
    make_trainer(tmp_path, max_epochs=1).fit(model, data)
    assert source.written == 1
    assert len(model.train_batches) == 5
    assert len(model.eval_batches) == 5
    with pytest.raises(ValueError, match="no test shards"):
        make_trainer(tmp_path).test(
            model, ShardData(batch_size=8, source=source, signal=reader), verbose=False
        )
