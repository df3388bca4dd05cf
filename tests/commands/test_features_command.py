"""`mmlab data features` and training with what it makes, as a user runs them."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mmlab.cli import main

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
MISSING = '{"image": 0.2, "signal": 0.2}'
# Nothing is augmented: pictures are square, and all of each is seen.
SMALL = (
    "--config", str(SMOKE), "--data.source.init_args.missing", MISSING, "--data.batch_size", "16",
    "--data.source.init_args.train", "48", "--data.source.init_args.val", "20",
    "--data.source.init_args.test", "20", "--data.image.init_args.fit", "pad",
    "--data.image.init_args.crop_scale", "[1, 1]",
    "--model.init_args.adaptation.init_args.towers", "frozen", "--trainer.accelerator", "cpu",
)  # fmt: skip
RUN = (
    "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1", "--trainer.callbacks", "[]",
    "--trainer.enable_progress_bar", "false", "--test_untrained", "false",
)  # fmt: skip


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(*words)` runs `mmlab` in this process: importing it takes seconds."""
    monkeypatch.setattr(sys, "argv", ["mmlab"])
    monkeypatch.setenv("MMLAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(folder)

    def run(*words: str) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(words)
        return Answer(status, *capfd.readouterr())

    return run


def losses(name: str) -> list[float]:
    (path,) = Path("runs", name).glob("*/logs/metrics.csv")
    with path.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def test_the_command_says_what_it_made_and_how_to_use_it(command: Command) -> None:
    made = command("data", "features", *SMALL, "--out", "made")
    assert made.status == 0, made.err
    assert "features of image, signal for 48 train, 20 val, 20 test samples" in made.out
    assert made.out.splitlines()[-1].endswith("--data.loading.features made")
    assert "train: 48 of 48 samples" in made.err


@pytest.mark.slow
def test_training_with_features_is_training_without(command: Command) -> None:
    plain = command("fit", *SMALL, *RUN, "--name", "plain")
    assert plain.status == 0, plain.err
    fit = command("fit", *SMALL, *RUN, "--name", "fast", "--data.loading.features", "made")
    assert fit.status == 0, fit.err
    assert len(losses("plain")) == 6
    assert losses("fast") == pytest.approx(losses("plain"), abs=2e-3)
    assert losses("fast") != losses("plain")  # float16 is not float32, so features were read

    metrics = [
        json.loads(next(Path("runs", n).glob("*/metrics.json")).read_text()) for n in ("plain", "fast")
    ]
    assert metrics[1]["test/mean_recall"] == pytest.approx(metrics[0]["test/mean_recall"], abs=0.06)


def test_nothing_is_made_twice(command: Command) -> None:
    again = command("data", "features", *SMALL, "--data.loading.features", "made")
    assert again.status == 0, again.err
    assert "nothing to do" in again.out
    assert again.out.splitlines()[-1].endswith("--data.loading.features made")


def test_prediction_reads_the_features_of_the_same_shards(command: Command) -> None:
    answer = command("predict", *SMALL, *RUN[2:], "--data.loading.features", "made", "--name", "predict")
    assert answer.status == 0, answer.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--seed_everything", "2"), "encoder of image changed; encoder of signal changed"),
        (("--model.init_args.adaptation.init_args.towers", "full"), "encoder of image is trained"),
        (("--data.image.init_args.size", "32"), "reader of image: height 64 -> 32"),
        (("--data.source.init_args.val", "21"), "shards of val changed"),
        (("--data.loading.features", "nowhere"), "no complete features in nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    command: Command, words: tuple[str, ...], wanted: str
) -> None:
    answer = command("fit", *SMALL, *RUN[2:-2], "--data.loading.features", "made", *words)
    assert answer.status == 2
    complaint = answer.err[answer.err.index("mmlab: ") :].splitlines()
    assert wanted in complaint[0]
    assert "mmlab data features --config FILE --out" in complaint[0]
    assert len(complaint) == 2


@pytest.mark.slow
def test_a_checkpoint_of_another_encoder_is_refused(command: Command) -> None:
    (own,) = Path("runs/fast").glob("*/checkpoints/last.ckpt")
    features = ("--data.loading.features", "made")
    answer = command("test", *SMALL, *RUN[2:-2], *features, "--ckpt_path", str(own))
    assert answer.status == 0, answer.err

    trained = (*RUN, "--trainer.max_epochs", "1", "--model.init_args.adaptation.init_args.towers", "full")
    answer = command("fit", *SMALL, *trained, "--name", "trained")
    assert answer.status == 0, answer.err
    (other,) = Path("runs/trained").glob("*/checkpoints/last.ckpt")
    answer = command("test", *SMALL, *RUN[2:-2], *features, "--ckpt_path", str(other))
    assert answer.status == 2
    assert "its model.image.encoder is not the encoder that gave the features in made" in answer.err


@pytest.mark.slow
def test_one_frozen_tower_beside_one_that_is_trained(command: Command) -> None:
    towers = ("--model.init_args.adaptation.init_args.towers", '{"image.encoder": "frozen"}')
    made = command("data", "features", *SMALL, *towers, "--out", "image", "--variants", "2")
    assert made.status == 0, made.err
    assert "features of image for" in made.out
    fit = command("fit", *SMALL, *towers, *RUN, "--name", "half", "--data.loading.features", "image")
    assert fit.status == 0, fit.err


def test_commands_that_cannot_work_say_why(command: Command) -> None:
    for words, wanted in [
        (("--model.init_args.adaptation.init_args.towers", "full"), "no encoder of this config is frozen"),
        (("--splits", "predict", "--data.splits.predict", "null"), "no predict shards"),
        (("--variants", "-1"), "--variants -1: must be 0"),
        (("--data.image.init_args.sise", "3"), "sise"),
    ]:
        answer = command("data", "features", *SMALL, "--out", "none", *words)
        assert answer.status == 2, words
        assert wanted in answer.err
    assert not Path("none").exists()


def test_damaged_features_are_refused(command: Command) -> None:
    shutil.copytree("made", "damaged")
    for name in ("000000.tar", "000000.tar.idx"):
        shutil.copy(f"damaged/val-{name}", f"damaged/test-{name}")
    answer = command("test", *SMALL, *RUN[2:-2], "--data.loading.features", "damaged")
    assert answer.status == 2
    assert "features of test are damaged" in answer.err
