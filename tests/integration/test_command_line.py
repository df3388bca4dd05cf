"""`mmlab` as a user runs it: what it prints, what it leaves, what it refuses, how it goes on."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from command_processes import LIGHT, Answer, Shell
from safetensors.torch import load_file

from mmlab.data.shards import write_shards

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "retrieval" / "smoke.yaml"
OVERLAYS = sorted((ROOT / "experiments" / "_base").glob("*.yaml"))
EXPERIMENTS = sorted(set((ROOT / "experiments").rglob("*.yaml")) - set(OVERLAYS))
SMALL = (
    "--config", str(SMOKE), "--data.source.init_args.train", "128", "--data.source.init_args.val", "60",
    "--data.source.init_args.test", "60", "--data.batch_size", "32", "--trainer.max_epochs", "1",
    "--trainer.accelerator", "cpu",
)  # fmt: skip
OFFLINE = ("--trainer.logger", "false")


class Fit(NamedTuple):
    answer: Answer
    directory: Path

    @property
    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = json.loads((self.directory / "metrics.json").read_text())
        return metrics


@pytest.fixture(scope="module")
def fit(shell: Shell) -> Fit:
    """A small `mmlab fit`, as a user starts it."""
    answer = shell.python("-m", "mmlab", "fit", *SMALL)
    assert answer.status == 0, answer.err
    (directory,) = shell.runs()
    return Fit(answer, directory)


def measured(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


def same_weights(*checkpoints: Path) -> bool:
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in checkpoints)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(directory: Path) -> dict[int, float]:
    """Training loss of each logged step."""
    with (directory / "logs" / "metrics.csv").open() as file:
        return {int(r["step"]): float(r["train/loss"]) for r in csv.DictReader(file) if r.get("train/loss")}


def test_light_commands_answer_without_torch(shell: Shell) -> None:
    write_shards([{"__key__": "a", "txt": b"one"}, {"__key__": "b", "txt": b"two"}], shell.folder, "light")
    (tar,) = shell.folder.glob("light*.tar")
    asked = [
        ["--help"], ["--version"], ["assets", "--help"], ["assets", "list"], ["data", "--help"],
        ["data", "list"], ["shards", "--help"], ["shards", "info", str(tar)],
    ]  # fmt: skip
    answer = shell.python("-c", LIGHT, json.dumps(asked))
    assert answer.status == 0, answer.err
    answers, heavy = json.loads(answer.out)
    assert heavy == []
    assert [status for status, _ in answers] == [0] * len(asked)
    texts = [text for _, text in answers]
    assert all(
        verb in texts[0] for verb in ("fit", "validate", "test", "predict", "assets", "data", "shards")
    )
    assert "usage: mmlab assets" in texts[2]
    assert {"efficientnet-lite0", "minilm-l6", "whisper-tiny-en"} <= {
        t.split()[0] for t in texts[3].splitlines()
    }
    assert {"generated", "stamps"} <= {text.split()[0] for text in texts[5].splitlines()}
    assert "2 samples" in texts[7]
    assert "txt (text): 2 samples" in texts[7]


class TestFit:
    def test_leaves_what_is_needed_to_run_it_again(self, fit: Fit) -> None:
        config = yaml.safe_load((fit.directory / "config.yaml").read_text())
        record = json.loads((fit.directory / "run.json").read_text())
        assert fit.directory.parent.name == config["name"] == "smoke"
        assert config["data"]["source"]["init_args"]["train"] == 128
        assert record["command"][1:] == ["fit", *SMALL]
        assert {"train", "val", "test"} <= set(record["data"])
        assert {"torch", "lightning", "mmlab"} <= set(record["packages"])
        assert (fit.directory / "checkpoints" / "last.ckpt").is_file()
        assert (fit.directory / "retrieval.html").is_file()

    def test_metrics_have_flat_names_and_stand_beside_the_untrained_ones(self, fit: Fit) -> None:
        names = {
            f"test/{d}/{m}" for d in ("image_to_signal", "signal_to_image") for m in ("r1", "r10", "mrr")
        }
        assert names <= set(fit.metrics)
        assert {f"untrained/{name}" for name in names} <= set(fit.metrics)
        assert measured(fit.metrics) != {
            name.removeprefix("untrained/"): value
            for name, value in fit.metrics.items()
            if "untrained" in name
        }
        assert fit.metrics["test/image_to_signal/chance_r1"] == pytest.approx(1 / 60)

    def test_prints_a_table_and_where_things_are(self, fit: Fit) -> None:
        lines = fit.answer.out.splitlines()
        for label in ("trained", "untrained", "chance"):
            assert sum(re.search(rf"│ {label} ", line) is not None for line in lines) == 2, label
        value = f"{100 * fit.metrics['test/image_to_signal/r10']:.1f} %"
        assert any("image to signal" in line and value in line for line in lines)
        assert f"runs/smoke/{fit.directory.name}/metrics.json" in fit.answer.out

    def test_logs_what_a_plot_needs(self, fit: Fit) -> None:
        with (fit.directory / "logs" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert any(row["val/mean_recall"] for row in rows)
        assert list(fit.directory.glob("wandb/offline-run-*"))

        assert "Warning" not in fit.answer.err


class TestCheckpoint:
    def test_tests_as_the_fit_did(self, shell: Shell, fit: Fit) -> None:
        before = shell.runs()
        answer = shell(
            "test", *SMALL, *OFFLINE, "--ckpt_path", str(fit.directory / "checkpoints" / "last.ckpt")
        )
        assert answer.status == 0, answer.err
        (directory,) = shell.runs() - before
        assert Fit(answer, directory).metrics == measured(fit.metrics)

    @pytest.mark.slow
    def test_predicts_and_says_where(self, shell: Shell, fit: Fit) -> None:
        before = shell.runs()
        answer = shell(
            "predict", *SMALL, *OFFLINE, "--ckpt_path", str(fit.directory / "checkpoints" / "last.ckpt")
        )
        assert answer.status == 0, answer.err
        (directory,) = shell.runs() - before
        assert f"runs/smoke/{directory.name}/predictions" in answer.out
        arrays = load_file(directory / "predictions" / "embeddings-0.safetensors")
        keys = json.loads((directory / "predictions" / "keys-0.json").read_text())
        assert keys == {str(place): f"test-{place:06d}" for place in range(60)}
        for modality in ("image", "signal"):
            assert arrays[f"{modality}.place"].tolist() == list(range(60))
            torch.testing.assert_close(arrays[f"{modality}.vector"].norm(dim=1), torch.ones(60))

    @pytest.mark.slow
    def test_the_written_config_runs_again(self, shell: Shell, fit: Fit) -> None:
        before = shell.runs()
        answer = shell("fit", "--config", str(fit.directory / "config.yaml"))
        assert answer.status == 0, answer.err
        (directory,) = shell.runs() - before
        assert (directory / "config.yaml").read_text() == (fit.directory / "config.yaml").read_text()
        assert Fit(answer, directory).metrics == fit.metrics
        assert same_weights(*(d / "checkpoints" / "last.ckpt" for d in (directory, fit.directory)))


LONG = ("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1", "--test_untrained", "false",
        "--test_best", "false", "--trainer.logger", "lightning.pytorch.loggers.CSVLogger",
        "--trainer.logger.init_args.name", "logs", "--trainer.logger.init_args.version", "")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("step", "workers"), [(4, 2), (6, 0)], ids=["epoch-end", "mid-epoch"])
def test_a_resumed_fit_ends_like_an_uninterrupted_one(
    shell: Shell, tmp_path: Path, step: int, workers: int
) -> None:
    def go(name: str, *more: str) -> Path:
        logger = ("--trainer.logger.init_args.save_dir", str(tmp_path / name))
        saving = ("--checkpoint.dirpath", str(tmp_path / name), "--checkpoint.monitor", "null")
        answer = shell("fit", *SMALL, *LONG, *logger, *saving, "--name", name, *more)
        assert answer.status == 0, answer.err
        return tmp_path / name

    whole = go("whole", "--checkpoint.every_n_train_steps", "2", "--checkpoint.save_top_k", "-1")
    (saved,) = whole.glob(f"*-step{step}.ckpt")
    resumed = go("resumed", "--ckpt_path", str(saved), "--data.loading.num_workers", str(workers))
    assert list(losses(whole)) == list(range(12))
    assert losses(resumed) == {s: loss for s, loss in losses(whole).items() if s >= step}
    assert same_weights(whole / "last.ckpt", resumed / "last.ckpt")


class TestRefusals:
    """Exit status 2, at most three lines that name the value and the remedy, no traceback."""

    def refusal(self, shell: Shell, *words: str) -> str:
        answer = shell(*words)
        assert answer.status == 2, answer.err
        assert "Traceback" not in answer.err
        assert answer.complaint[0].startswith("mmlab: ")
        assert len(answer.complaint) <= 3
        return " ".join(answer.complaint)

    def test_a_missing_config_file(self, shell: Shell) -> None:
        assert "nowhere.yaml" in self.refusal(shell, "fit", "--config", "nowhere.yaml")

    def test_an_unknown_key_of_the_command_line(self, shell: Shell) -> None:
        said = self.refusal(shell, "fit", *SMALL, "--data.batch_sise", "8")
        assert "batch_sise" in said
        assert "'batch_size'" in said

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--model.init_args.pears", "null"), ("pears", "'pairs'")),
            (("--data.source.init_args.tain", "99"), ("tain", "'train'")),
            (("--model", "mmlab.tasks.retrieval.RetreivalTask"), ("RetreivalTask", "RetrievalTask")),
            (("--data.batch_size", "eight"), ("data.batch_size", "eight")),
            (("--trainer.max_epoch", "3"), ("trainer.max_epoch", "'max_epochs'")),
        ],
    )
    def test_a_mistyped_word(self, shell: Shell, words: tuple[str, ...], expected: tuple[str, str]) -> None:
        said = self.refusal(shell, "fit", *SMALL, *words)
        assert all(part in said for part in expected), said

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"data": {"batch_sise": 8}}, ("batch_sise", "batch_size")),
            ({"trainer": {"max_epoch": 8}}, ("max_epoch", "max_epochs")),
            ({"model": {"class_path": "mmlab.tasks.retrieval.RetreivalTask"}},
             ("'RetreivalTask'", "'RetrievalTask'")),
        ],
        ids=["data", "trainer", "class_path"],
    )  # fmt: skip
    def test_a_mistyped_word_of_a_file(
        self, shell: Shell, tmp_path: Path, change: dict[str, Any], expected: tuple[str, str]
    ) -> None:
        (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(change))
        said = self.refusal(shell, "fit", *SMALL, "--config", str(tmp_path / "overlay.yaml"))
        assert all(part in said for part in expected), said

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--data.batch_size", "50", "--data.loading.lanes", "{ranks: 4, groups: 1}"),
             ("batch_size = 50", "2 and 5")),
            (("--data.loading.num_workers", "3"), ("3 workers", "lanes.groups")),
            (("--data.audio", "AudioReader", "--data.audio.init_args.members", "[ogg]"),
             ("no audio", "wav (128)", "data.audio")),
            (("--data.batch_size", "500"), ("128 training samples", "at most 128")),
            (("--data.signal.init_args.channels", "99"), ("signal have 99 channels", "for 3", "data.signal")),
            (("--trainer.max_epochs", "-1"), ("learning rate needs an end", "trainer.max_steps")),
        ],
        ids=["batch size", "workers", "modality", "samples", "width", "end"],
    )  # fmt: skip
    def test_what_does_not_fit_the_data(
        self, shell: Shell, words: tuple[str, ...], expected: tuple[str, ...]
    ) -> None:
        said = self.refusal(shell, "fit", *SMALL, *OFFLINE, "--test_untrained", "false", *words)
        assert all(part in said for part in expected), said

    @pytest.mark.slow
    def test_before_the_untrained_model_is_tested(self, shell: Shell) -> None:
        before = shell.runs()
        self.refusal(shell, "fit", *SMALL, *OFFLINE, "--data.loading.num_workers", "3")
        assert not [path for run in shell.runs() - before for path in run.glob("retrieval.html")]

    @pytest.mark.slow
    def test_a_missing_checkpoint(self, shell: Shell) -> None:
        assert "nowhere.ckpt" in self.refusal(shell, "test", *SMALL, *OFFLINE, "--ckpt_path", "nowhere.ckpt")

    def test_debug_shows_the_traceback(self, shell: Shell) -> None:
        answer = shell("fit", "--config", "nowhere.yaml", "--debug")
        assert answer.status != 0
        assert "Traceback (most recent call last)" in answer.err


class TestConfigs:
    @pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
    def test_every_experiment_parses(self, shell: Shell, path: Path) -> None:
        answer = shell("fit", "--config", str(path), "--print_config")
        assert answer.status == 0, answer.err
        printed, written = yaml.safe_load(answer.out), yaml.safe_load(path.read_text())
        assert printed["name"] == written["name"]
        assert printed["model"]["class_path"] == written["model"]["class_path"]

    def test_a_number_of_batches_stays_one(self, shell: Shell) -> None:
        """Not 1.0, which is all of them."""
        limits = [f"limit_{split}_batches" for split in ("train", "val", "test", "predict")]
        words = [word for limit in limits for word in (f"--trainer.{limit}", "1")]
        answer = shell(
            "fit", "--config", str(SMOKE), *words, "--trainer.limit_val_batches", "0.5", "--print_config"
        )
        assert answer.status == 0, answer.err
        printed = yaml.safe_load(answer.out)["trainer"]
        assert [repr(printed[limit]) for limit in limits] == ["1", "0.5", "1", "1"]

    def test_a_tower_can_be_left_out(self, shell: Shell) -> None:
        """With the words that the experiment's first lines give."""
        path = ROOT / "experiments" / "question_answering" / "easy_vqa_classifier.yaml"
        lines = [line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        said = " ".join(lines)
        words = shlex.split(said[said.index("--name") :])
        answer = shell("fit", "--config", str(path), *words, "--print_config")
        assert answer.status == 0, answer.err
        printed = yaml.safe_load(answer.out)
        model = printed["model"]["init_args"]["model"]["init_args"]
        assert (printed["data"]["image"], model["image"]) == (None, None)
        assert model["fusion"]["init_args"]["dims"] == {"text": 384}

    def test_later_files_overlay_earlier_ones(self, shell: Shell, tmp_path: Path) -> None:
        (tmp_path / "overlay.yaml").write_text("data: {batch_size: 8}\ntrainer: {max_epochs: 7}\n")
        answer = shell(
            "fit", "--config", str(SMOKE), "--config", str(tmp_path / "overlay.yaml"), "--trainer.max_epochs",
            "9", "--print_config",
        )  # fmt: skip
        printed = yaml.safe_load(answer.out)
        assert (printed["data"]["batch_size"], printed["trainer"]["max_epochs"]) == (8, 9)
        assert printed["data"]["image"]["init_args"]["size"] == 64
