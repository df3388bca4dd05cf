"""Pretraining without labels on the real command line, and other runs that begin with what came out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command_processes import Answer, Shell
from PIL import Image
from pretraining_parts import tiny_text

from mmlab.data.shards import write_shards
from mmlab.runs.checkpoint import find_checkpoint, read_weights

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MODEL = "--model.init_args.model.init_args"
COUNTS = {"train": 24, "val": 12, "test": 8}
COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def samples(count: int) -> Iterator[Mapping[str, Any]]:
    names = list(COLOURS)
    for number in range(count):
        colour, category = names[number % 3], ("animals", "food")[number % 2]
        with io.BytesIO() as file:
            Image.new("RGB", (40, 20 + number), COLOURS[colour]).save(file, "PNG")
            png = file.getvalue()
        caption = f"a {colour} {category} photo {'abcdefghijklmnopqrstuvwxyz'[number % 26]}"
        about = {"captions": {"en": caption}, "group": caption, "category": category}
        yield {"__key__": f"k{number}", "png": png, "json": json.dumps(about).encode()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for split, count in COUNTS.items():
        write_shards(samples(count), folder, split)
    return folder


def words(config: str, encoder: Path, shards: Path) -> list[str]:
    splits = {split: f"{shards}/{split}-*.tar" for split in COUNTS}
    image = f"{MODEL}.image.init_args.encoder.init_args"
    return [
        "--config", str(EXPERIMENTS / f"{config}.yaml"), "--trainer.accelerator", "cpu", "--trainer.logger",
        "false", "--data.loading.num_workers", "0", "--data.source", "null", "--data.splits",
        json.dumps(splits | {"predict": splits["test"]}), "--data.batch_size", "8",
        "--test_untrained", "false", f"{image}.name", "test_resnet", f"{image}.pretrained", "false",
        f"{MODEL}.text.init_args.encoder.init_args.name", str(encoder),
        "--data.text.init_args.tokenizer", str(encoder), "--data.image.init_args.size", "64",
    ]  # fmt: skip


def pretraining(encoder: Path, shards: Path) -> list[str]:
    return [
        *words("pretraining/stamps", encoder, shards), "--trainer.max_epochs", "2",
        "--trainer.check_val_every_n_epoch", "1",
        f"{MODEL}.fusion.init_args.dims", '{"image": 96, "text": 32}',
    ]  # fmt: skip


def retrieval(encoder: Path, shards: Path) -> list[str]:
    return [
        *words("retrieval/transfer", encoder, shards), "--trainer.max_epochs", "2",
        "--trainer.check_val_every_n_epoch", "1",
    ]  # fmt: skip


def finished(shell: Shell, *given: str) -> tuple[Path, Answer]:
    """The run directory of a command that succeeds."""
    before = shell.runs()
    answer = shell(*given)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    return run, answer


@pytest.fixture(scope="module")
def pretrained(shell: Shell, encoder: Path, shards: Path) -> Path:
    run, _ = finished(shell, "fit", *pretraining(encoder, shards))
    return run


@pytest.mark.slow
class TestPretraining:
    def test_it_trains_and_measures_without_labels(self, pretrained: Path) -> None:
        metrics = json.loads((pretrained / "metrics.json").read_text())
        assert metrics["test/mean_recall_low"] <= metrics["test/mean_recall"]
        for name in ("probe/image/accuracy", "probe/text/accuracy", "masked/accuracy"):
            assert 0 <= metrics[f"test/{name}"] <= 1
        assert metrics["test/masked/loss"] > 0
        assert (pretrained / "retrieval.html").stat().st_size > 0

    def test_vectors_are_written(self, shell: Shell, encoder: Path, shards: Path, pretrained: Path) -> None:
        checkpoint = str(find_checkpoint(pretrained))
        run, _ = finished(shell, "predict", *pretraining(encoder, shards), "--ckpt_path", checkpoint)
        keys = json.loads((run / "predictions" / "keys-0.json").read_text())
        assert sorted(keys.values()) == [f"k{number}" for number in range(COUNTS["test"])]


@pytest.mark.slow
class TestBeginning:
    def test_a_run_begins_with_another_and_goes_on_with_its_own(
        self, shell: Shell, encoder: Path, shards: Path, pretrained: Path
    ) -> None:
        given = [*retrieval(encoder, shards), "--model.init_from", str(pretrained)]
        run, answer = finished(shell, "fit", *given)
        assert "image.projection" in answer.out
        theirs = read_weights(find_checkpoint(pretrained)).state
        own = read_weights(run / "checkpoints" / "last.ckpt").state
        frozen = [name for name in own if ".encoder." in name]
        assert len(frozen) > 50
        assert all(torch.equal(own[name], theirs[name]) for name in frozen)
        assert not torch.equal(
            own["model.text.projection.2.weight"], theirs["model.text.projection.2.weight"]
        )

        last = str(run / "checkpoints" / "last.ckpt")
        further, answer = finished(
            shell, "fit", *given, "--ckpt_path", last, "--trainer.max_epochs", "3", "--name", "further"
        )
        assert "tensors taken" not in answer.out
        state = read_weights(further / "checkpoints" / "last.ckpt").state
        assert all(torch.equal(state[name], theirs[name]) for name in frozen)

        tested, _ = finished(shell, "test", "--config", str(run / "config.yaml"), "--ckpt_path",
                             str(find_checkpoint(run)), "--name", "tested")  # fmt: skip
        found, wanted = (json.loads((one / "metrics.json").read_text()) for one in (tested, run))
        assert found["test/mean_recall"] == wanted["test/mean_recall"]

    def test_a_run_of_another_kind_is_refused_in_a_line(
        self, shell: Shell, encoder: Path, shards: Path, pretrained: Path, tmp_path: Path
    ) -> None:
        before = shell.runs()
        answer = shell("fit", "--config", str(EXPERIMENTS / "sentiment" / "mosi.yaml"), "--data.splits",
                       f'{{"train": "{shards}/train-*.tar"}}', "--data.source", "null",
                       f"--model.init_from={pretrained}")  # fmt: skip
        assert answer.status == 2
        assert "no part of that run fits this model" in answer.complaint[0]
        answer = shell("fit", *retrieval(encoder, shards), "--init_from", str(tmp_path / "none"))
        assert answer.status == 2
        assert "neither a run directory" in answer.complaint[0]
        answer = shell(
            "fit", *retrieval(encoder, shards), f"--model.init_from={pretrained}", "--trainer.max_epoch", "1"
        )
        assert "max_epoch" in answer.complaint[0]
        assert shell.runs() == before

    def test_a_run_that_is_queued_again_does_not_need_it(
        self, shell: Shell, encoder: Path, shards: Path, pretrained: Path, tmp_path: Path
    ) -> None:
        """It may be a checkpoint that was rotated away."""
        source = shutil.copytree(pretrained, tmp_path / "source")
        given = [*retrieval(encoder, shards), "--model.init_from", str(source), "--name", "again"]
        again = [*given, "--resume", "auto", "--trainer.max_epochs"]
        run, answer = finished(shell, "fit", *again, "1")
        assert "tensors taken" in answer.out
        status = run / "status.json"
        status.write_text(status.read_text().replace("finished", "preempted"))
        shutil.rmtree(source)
        answer = shell("fit", *again, "2")
        assert answer.status == 0, answer.err
        assert f"goes on from runs/again/{run.name}" in answer.out
        shutil.rmtree(run / "checkpoints")
        status.write_text(status.read_text().replace("finished", "preempted"))
        assert shell("fit", *again, "2").status == 2, "it would begin with other weights"

    def test_a_share_of_the_samples(self, shell: Shell, encoder: Path, shards: Path) -> None:
        given = [*retrieval(encoder, shards), "--data.splits.train_share"]
        run, _ = finished(shell, "fit", *given, "0.5", "--name", "half")
        assert "train_share: 0.5" in (run / "config.yaml").read_text()
        answer = shell("fit", *given, "5")
        assert answer.status == 2
        assert "train_share=5" in " ".join(answer.complaint)
