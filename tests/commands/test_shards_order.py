"""`mmlab shards order`: the same batches for every number of ranks and workers, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlab.cli import main
from mmlab.data.shards import write_shards

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
PLAIN = """
data:
  splits: {{train: "{folder}/train-{{000000..000002}}.tar"}}
  batch_size: 8
  loading: {{num_workers: 2, seed: 4, lanes: {{ranks: 4, groups: 2}}}}
  signal: {{class_path: mmlab.data.signal.SignalReader, init_args: {{channels: 2}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    array = io.BytesIO()
    np.save(array, np.zeros((4, 2), np.float32))
    samples = [{"__key__": f"k{n:03d}", "npy": array.getvalue()} for n in range(75)]
    write_shards(samples, folder, "train", max_samples=25)
    (folder / "plain.yaml").write_text(PLAIN.format(folder=folder))
    return folder


@pytest.fixture(autouse=True)
def _cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(folder / "cache"))
    monkeypatch.setattr("sys.argv", ["mmlab"])


SMALL = ("--config", str(SMOKE), "--data.source.init_args.train=128", "--data.source.init_args.val", "60",
         "--data.source.init_args.test", "60", "--data.batch_size", "32",
         "--data.loading.lanes", "{ranks: 4, groups: 2}")  # fmt: skip


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    status = main(["shards", "order", *words, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


def flat(lines: list[dict[str, Any]]) -> list[tuple[int, list[str]]]:
    return [(line["step"], [key for keys in line["ranks"] for key in keys]) for line in lines]


@pytest.mark.parametrize("config", ["smoke", "plain"])
def test_batches_do_not_depend_on_ranks_and_workers(
    config: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        (*SMALL, "--steps", "2:7")
        if config == "smoke"
        else ("--config", str(folder / "plain.yaml"), "--steps", "2:7")
    )
    alone = flat(ask(capsys, *words, "--ranks", "1", "--workers", "0"))
    assert [step for step, _ in alone] == [2, 3, 4, 5, 6]
    assert all(len(set(keys)) == (32 if config == "smoke" else 8) for _, keys in alone)
    for ranks, workers in ((2, 1), (4, 2)):
        lines = ask(capsys, *words, "--ranks", str(ranks), "--workers", str(workers))
        assert [len(line["ranks"]) for line in lines] == [ranks] * 5
        assert flat(lines) == alone


def test_it_is_what_training_sees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmlab.data.lanes import Lanes
    from mmlab.data.module import Loading, ShardData, Splits
    from mmlab.data.signal import SignalReader
    from mmlab.data.stream import Stream

    data = ShardData(
        batch_size=8,
        splits=Splits(train=str(folder / "train-*.tar")),
        signal=SignalReader(channels=2),
        loading=Loading(num_workers=2, seed=4, lanes=Lanes(4, 2)),
    )
    samples, order = data.plan("train")
    stream = Stream(samples, order, data.readers, seed=4)
    lines = ask(capsys, "--config", str(folder / "plain.yaml"), "--steps", "3:6", "--ranks", "2")
    assert flat(lines) == [(step, list(stream.batch(step).keys)) for step in (3, 4, 5)]


def test_for_people_a_block_a_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["shards", "order", "--steps", "3", "--config", str(folder / "plain.yaml"), "--ranks", "2"]) == 0
    )
    first, *ranks = capsys.readouterr().out.splitlines()
    assert first == "step 3, built by worker 1"
    assert [line.split(":")[0] for line in ranks] == ["  rank 0", "  rank 1"]
    assert all(len(line.split()) == 2 + 4 for line in ranks)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ("--ranks", "3"),
            "batch size 8: must be divisible by the 3 ranks; the nearest valid values are 6 a",
        ),
        (("--workers", "3"), "nearest valid value is 2"),
        (("--ranks", "0"), "at least 1 rank"),
        (("--steps", "7:5"), "A below B"),
        (("--steps", "x"), "give A:B"),
        (("--data.batch_sise", "4"), "unknown key 'data.batch_sise': did you mean 'batch_size'?"),
        (("--data.signal.init_args.chanels", "2"), "did you mean 'channels'"),
        (("--trainer.max_epocs", "2"), "did you mean 'max_epochs'"),
        (("--data.batch_size", "100"), "75 training samples are fewer than one global batch"),
        (("--data.splits.train", "nowhere-*.tar"), "nothing matches"),
    ],
)
def test_refused_in_a_line_or_two(
    words: tuple[str, ...], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "order", "--config", str(folder / "plain.yaml"), "--steps", "0:2", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert len(err.strip().splitlines()) <= 3


def test_no_model_is_built(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that cannot be built does not matter, one that is mistyped does."""
    path = "--model.init_args.model.init_args.image.init_args.encoder.init_args.name"
    assert len(ask(capsys, *SMALL, "--steps", "0:1", path, "no_such_model")) == 1
    config = tmp_path / "wrong.yaml"
    config.write_text(SMOKE.read_text().replace("pretrained: false", "pretraned: false"))
    assert main(["shards", "order", "--config", str(config), "--steps", "0:1"]) == 2
    assert "did you mean 'pretrained'" in capsys.readouterr().err
    assert not (folder / "runs").exists()
