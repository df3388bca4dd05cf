"""What is not finite on one rank is left out, or rolled back, or stops the run, on all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded_runs import Guarded, Seen, finite, run

from mmlab.parallel.stored import open_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
]
STRATEGIES = ["single", "ddp", "fsdp2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def go(ranks: Any, cache: Path, tmp_path: Path) -> Any:
    """`go(name, guarded)`: what each rank saw of a run in a folder of its own."""

    def start(name: str, guarded: Guarded) -> list[Seen]:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        if guarded.strategy == "single":
            return [run(cache, root, guarded)]
        found: list[Seen] = ranks(run, cache, root, guarded)
        return found

    return start


def assert_same(found: list[Seen], expected: list[Seen]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.weights.keys() == other.weights.keys()
        for name, value in one.weights.items():
            assert torch.equal(value, other.weights[name]), name
        assert finite(one.weights)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_is_left_out_on_all_ranks(go: Any, strategy: str) -> None:
    rank = 0 if strategy == "single" else 1
    found = go("spoiled", Guarded("skip", bad=(2, 5), rank=rank, strategy=strategy))
    expected = go("left out", Guarded(leaves_out=(2, 5), strategy=strategy))
    assert_same(found, expected)
    for one in found:
        assert (one.count, one.step, one.error) == (2, 8, "")
        assert [(step, at) for step, at, _ in one.batches] == [(step, step) for step in range(8)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_goes_back_and_leaves_the_samples_out(go: Any, tmp_path: Path, strategy: str) -> None:
    rank = 0 if strategy == "single" else 1
    found = go("spoiled", Guarded("roll_back", bad=(4, 9), rank=rank, strategy=strategy, steps=9))
    # Step 4 sends back to 3; from there batches 5, 6, 7 are steps 3, 4, 5, and step 7, batch 9, sends to 6.
    windows = [(3, 2), (6, 2)]
    expected = go("without", Guarded(skips=tuple(windows), strategy=strategy, steps=9))
    assert_same(found, expected)
    taken = [0, 1, 2, 5, 6, 7, 10, 11, 12]
    for one, other in zip(found, expected, strict=True):
        assert one.skips == windows
        assert (one.step, one.error) == (9, "")
        last = {step: (at, keys) for step, at, keys in one.batches}
        assert [last[step][0] for step in range(9)] == taken
        assert [at for _, at, _ in other.batches] == taken
        assert [last[step][1] for step in range(9)] == [keys for _, _, keys in other.batches]
    kept = json.loads((tmp_path / "spoiled" / "skipped_windows.json").read_text())
    assert kept["windows"] == [[3, 2], [6, 2]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_ranks_stop_and_name_whose_samples_they_were(go: Any, tmp_path: Path, strategy: str) -> None:
    rank = 0 if strategy == "single" else 1
    found = go("spoiled", Guarded(bad=(4,), rank=rank, strategy=strategy))
    keys = next(keys for step, _, keys in found[rank].batches if step == 4)
    for one in found:
        assert one.error.startswith("step 4 is not finite: ")
        assert ", ".join(keys) in one.error
        assert strategy == "single" or "on rank 1" in one.error
        assert one.error == found[0].error
    saved = sorted((tmp_path / "spoiled" / "kept").glob("*.ckpt"))
    assert [path.name for path in saved] == ["epoch=0-step=3.ckpt"]
    stored = open_checkpoint(saved[0])
    assert finite({name: stored.new(f"state_dict.{name}") for name in stored.weights})


def test_a_restart_knows_what_was_left_out(go: Any, tmp_path: Path) -> None:
    """By the run's directory if the checkpoint is older, by the checkpoint in another directory."""
    settings = Guarded("roll_back", bad=(4,), steps=9)
    (whole,) = go("spoiled", settings)
    kept = tmp_path / "spoiled" / "kept"
    (again,) = go("spoiled", settings._replace(resume=kept / "epoch=0-step=3.ckpt", policy="stop", bad=()))
    assert_same([again], [whole])
    (elsewhere,) = go("other", settings._replace(resume=kept / "epoch=0-step=6.ckpt", policy="stop", bad=()))
    assert_same([elsewhere], [whole])
    assert again.skips == elsewhere.skips == [(3, 2)]


def test_without_a_checkpoint_there_is_no_way_back(go: Any) -> None:
    (found,) = go("spoiled", Guarded("roll_back", bad=(1,)))
    assert "there is no checkpoint to roll back to: set checkpoint.every_n_train_steps" in found.error


def test_there_is_an_end_of_rolling_back(go: Any) -> None:
    (found,) = go("spoiled", Guarded("roll_back", bad=(4, 6, 8), limit=2))
    assert "--non_finite.limit allows 2 roll-backs" in found.error
    assert len(found.skips) == 2
