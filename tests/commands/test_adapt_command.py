"""`mmlab adapt` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmlab.cli import main
from mmlab.commands import adapt_compare
from mmlab.models.encoders.image import ImageEncoder

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "retrieval" / "smoke.yaml"
SMALL = (
    "--config", str(SMOKE), "--data.source.init_args.train", "64", "--data.source.init_args.val", "40",
    "--data.source.init_args.test", "40", "--data.batch_size", "16", "--trainer.accelerator", "cpu",
    "--trainer.max_epochs", "2", "--trainer.callbacks", "[]", "--trainer.logger", "false",
    "--trainer.enable_progress_bar", "false", "--test_untrained", "false",
)  # fmt: skip
TOWERS = "--model.init_args.adaptation.init_args.towers"


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapt")


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(*words)` runs `mmlab` in this process: importing it takes seconds."""
    monkeypatch.setattr(sys, "argv", ["mmlab"])
    monkeypatch.setenv("MMLAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(folder)

    def run(*words: str) -> Answer:
        # Each command is a run of its own.
        monkeypatch.delenv("MMLAB_RUN_ID", raising=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(words)
        return Answer(status, *capfd.readouterr())

    return run


def fit(command: Command, name: str, *words: str) -> Path:
    """The directory of a run, trained once for all tests."""
    if not Path("runs", name).is_dir():
        answer = command("fit", *SMALL, "--name", name, *words)
        assert answer.status == 0, answer.err
    (run,) = Path("runs", name).iterdir()
    return run


def recall(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def test_a_merged_run_scores_as_before_and_is_plain(command: Command) -> None:
    run = fit(command, "lora", TOWERS, '{"image": "lora", "signal": "full"}')
    merged = command("adapt", "merge", str(run), "--out", "merged")
    assert merged.status == 0, merged.err
    assert "largest difference of outputs on 16 samples:" in merged.out
    state = load_file("merged/model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in state)
    towers = yaml.safe_load(Path("merged/config.yaml").read_text())["model"]["init_args"]["adaptation"]
    assert towers["init_args"]["towers"] == {"image": "frozen", "signal": "full"}

    used = merged.out.splitlines()[-1].removeprefix("use it: mmlab ").split()
    tested = command(*used, "--name", "tested")
    assert tested.status == 0, tested.err
    (again,) = Path("runs", "tested").iterdir()
    assert recall(again) == pytest.approx(recall(run), abs=1e-6)

    encoder = ImageEncoder("merged/image")
    for name, value in encoder.state_dict().items():
        assert torch.equal(state[f"model.image.encoder.{name}"], value)


def test_nothing_is_written_over_or_where_outputs_would_change(command: Command) -> None:
    run = fit(command, "lora", TOWERS, '{"image": "lora", "signal": "full"}')
    Path("there").mkdir(exist_ok=True)
    answer = command("adapt", "merge", str(run), "--out", "there")
    assert (answer.status, "there exists" in answer.err) == (2, True)
    answer = command("adapt", "merge", str(run), "--out", "strict", "--tolerance", "0")
    assert answer.status == 2
    assert "more than --tolerance 0: nothing was written" in answer.err
    assert not Path("strict").exists()


def test_no_run_directory(command: Command) -> None:
    answer = command("adapt", "merge", ".", "--out", "x")
    assert answer.status == 2
    assert "no run directory" in answer.err


@pytest.mark.slow
def test_a_soup_of_two_runs(command: Command) -> None:
    towers = (TOWERS, '{"image": "lora", "signal": "full"}')
    first = fit(command, "lora", *towers)
    second = fit(command, "other", *towers, "--data.loading.seed", "7")
    soup = command("adapt", "soup", str(first), str(second), "--out", "soup")
    assert soup.status == 0, soup.err
    scores = [float(line.split()[1]) for line in soup.out.splitlines() if line.startswith("val/mean_recall")]
    assert len(scores) == 3
    states = [torch.load(next(run.glob("checkpoints/e*.ckpt")), weights_only=True) for run in (first, second)]
    mixed = load_file("soup/model.safetensors")
    for name, value in states[0]["state_dict"].items():
        mean = (value.double() + states[1]["state_dict"][name].double()) / 2
        if value.is_floating_point():
            torch.testing.assert_close(mixed[name].double(), mean, rtol=1e-6, atol=1e-7)
    used = soup.out.splitlines()[-1].removeprefix("use it: mmlab test").split()
    checked = command("validate", *used, "--name", "souped")
    assert checked.status == 0, checked.err
    (run,) = Path("runs", "souped").iterdir()
    assert recall(run)["val/mean_recall"] == pytest.approx(scores[2], abs=1e-4)


@pytest.mark.slow
def test_runs_that_cannot_be_averaged(command: Command) -> None:
    first = fit(command, "lora", TOWERS, '{"image": "lora", "signal": "full"}')
    second = fit(command, "frozen", TOWERS, "frozen")
    answer = command("adapt", "soup", str(first), str(second), "--out", "none")
    assert answer.status == 2
    assert "not of one adaptation" in answer.err
    assert "at least two runs" in command("adapt", "soup", str(first), "--out", "none").err
    assert "is named twice" in command("adapt", "soup", str(first), str(first), "--out", "none").err


class Children:
    """Stands in for `mmlab fit` in processes of their own."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.words: list[list[str]] = []

    def __call__(self, words: Sequence[str], *, stdout: Any, **_: Any) -> subprocess.CompletedProcess[bytes]:
        options = list(words[words.index("fit") + 1 :])
        self.words.append(options)
        runs, name = (options[options.index(key) + 1] for key in ("--runs", "--name"))
        if name == self.failing:
            stdout.write(b"...\nmmlab: no memory\n(--debug shows where)\n")
            return subprocess.CompletedProcess(words, 2)
        run = Path(runs, name, str(len(self.words)))
        run.mkdir(parents=True)
        config = {"checkpoint": {"monitor": "val/score", "mode": "max"}, "data": {"batch_size": 4}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "metrics.json").write_text(json.dumps({"test/score": 0.5 + len(self.words) / 100}))
        return subprocess.CompletedProcess(words, 0)


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    """A config with overlays beside its folder."""
    (tmp_path / "_base").mkdir()
    (tmp_path / "task").mkdir()
    for name in ("lora", "full", "own"):
        (tmp_path / "_base" / f"{name}.yaml").write_text("{}\n")
    (tmp_path / "task" / "x.yaml").write_text("{}\n")
    return tmp_path / "task" / "x.yaml"


def test_comparing_runs_each_method_and_seed_once(
    command: Command, methods: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("adapt", "compare", "--config", str(methods), "--seeds", "1,2", "--out", str(tmp_path / "out"))
    children = Children(failing="lora-2")
    monkeypatch.setattr(adapt_compare.subprocess, "run", children)
    first = command(*words, "--data.batch_size", "8")
    assert first.status == 1
    assert "lora, seed 2: failed with status 2: mmlab: no memory" in first.err
    assert "failed with seed 2" in first.out
    assert [run[run.index("--name") + 1] for run in children.words] == [
        "full-1",
        "full-2",
        "lora-1",
        "lora-2",
    ]
    assert all("--data.batch_size" in run for run in children.words)

    mended = Children()
    monkeypatch.setattr(adapt_compare.subprocess, "run", mended)
    second = command(*words, "--data.batch_size", "8")
    assert second.status == 0
    assert [run[run.index("--name") + 1] for run in mended.words] == ["lora-2"]
    assert second.err.count("kept") == 3

    changed = command(*words, "--data.batch_size", "4")
    assert changed.status == 0
    assert len(mended.words) == 5


def test_methods_are_overlays_by_name_or_file(methods: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("{}\n")
    found = adapt_compare.find_methods(methods, ["own", str(overlay)])
    assert {name: path.name for name, path in found.items()} == {"own": "own.yaml", "mine": "mine.yaml"}
    assert list(adapt_compare.find_methods(methods, None)) == ["full", "lora"]
    with pytest.raises(ValueError, match="no method 'lore': name a YAML file or one of full, lora, own"):
        adapt_compare.find_methods(methods, ["lore"])


def test_seeds_are_numbers(methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["adapt", "compare", "--config", str(methods), "--seeds", "1,b"])
    assert "'1,b': write whole numbers, such as 1,2,3" in capsys.readouterr().err


@pytest.mark.slow
def test_comparing_for_real(command: Command, tmp_path: Path) -> None:
    answer = command(
        "adapt", "compare", *SMALL[:-2], "--methods", "frozen,full", "--seeds", "1", "--out", str(tmp_path)
    )
    assert answer.status == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[2].startswith("| frozen |")
    assert lines[3].startswith("| full |")
    assert all(cell.strip() for cell in lines[3].strip("|").split("|"))
