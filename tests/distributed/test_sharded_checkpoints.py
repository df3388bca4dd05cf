"""Checkpoints of sharded runs: they go on exactly, hold what is trained, change form, refuse another base."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sharded_runs import ADAMW, Fit, Record, retrieval, run
from torch import Tensor

from mmlab.parallel.consolidate import consolidate
from mmlab.parallel.stored import open_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]

task = partial(retrieval, {"image": "frozen", "signal": "full"}, optimization=ADAMW)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Saved(NamedTuple):
    """A sharded run of four steps, and its checkpoint after two."""

    path: Path
    record: Record


@pytest.fixture(scope="module")
def saved(ranks: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("sharded")
    path = root / "step2.ckpt"
    first, _ = ranks(run, cache, root, Fit(task, "fsdp2", steps=4, save=path, save_at=2))
    return Saved(path, first)


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor], *, tolerance: float = 0) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_resumed_run_equals_an_uninterrupted_one(
    ranks: Any, cache: Path, tmp_path: Path, saved: Saved
) -> None:
    first, second = ranks(run, cache, tmp_path, Fit(task, "fsdp2", steps=4, load=saved.path))
    assert first.sharded > 20
    assert first.losses == saved.record.losses[2:]
    assert_equal(first.weights, saved.record.weights)
    assert_equal(second.weights, saved.record.weights)
    assert first.results == saved.record.results


def test_it_goes_on_as_ddp_and_in_one_process(ranks: Any, cache: Path, tmp_path: Path, saved: Saved) -> None:
    alone = run(cache, tmp_path, Fit(task, steps=4, load=saved.path))
    first, _ = ranks(run, cache, tmp_path, Fit(task, "ddp", steps=4, load=saved.path))
    # AdamW makes steps of full size of gradients that are nothing but rounding.
    assert_equal(alone.weights, saved.record.weights, tolerance=2e-3)
    assert_equal(first.weights, saved.record.weights, tolerance=2e-3)
    assert len(alone.losses) == len(first.losses) == 2


@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp", "fsdp2 one file"])
def test_a_run_of_one_process_goes_on_sharded(ranks: Any, cache: Path, tmp_path: Path, strategy: str) -> None:
    path = tmp_path / "one.ckpt"
    alone = run(cache, tmp_path, Fit(task, steps=3, save=path, save_at=2))
    first, _ = ranks(run, cache, tmp_path, Fit(task, strategy, steps=3, load=path))
    assert_equal(first.weights, alone.weights, tolerance=2e-3)
    assert len(first.losses) == 1


def test_only_what_is_trained_is_saved(saved: Saved) -> None:
    stored = open_checkpoint(saved.path)
    assert not any(name.startswith("model.image.encoder.") for name in stored.weights)
    assert {"model.image.projection.2.weight", "objective.log_scale"} <= stored.weights
    assert any(name.startswith("model.signal.encoder.") for name in stored.weights)
    kept = sum(saved.record.weights[name].nbytes for name in stored.weights)
    everything = sum(value.nbytes for value in saved.record.weights.values())
    size = sum(file.stat().st_size for file in saved.path.rglob("*") if file.is_file())
    # Weights and the two moments of AdamW; torch writes some names and types with each tensor and rank.
    assert 3 * kept < size < 3 * kept + 6_000 * len(stored.shapes)
    assert kept < everything / 2


def test_another_base_is_refused(ranks: Any, cache: Path, tmp_path: Path, saved: Saved) -> None:
    other = partial(task, seed=1)
    with pytest.raises(AssertionError, match=r"ValueError: .*trained beside other weights of image.encoder"):
        ranks(run, cache, tmp_path, Fit(other, "fsdp2", steps=4, load=saved.path))


def test_another_model_is_refused_before_anything_is_read(ranks: Any, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.ckpt"
    ranks(run, cache, tmp_path, Fit(partial(task, dim=24), "fsdp2", steps=1, save=path, save_at=1))
    with pytest.raises(AssertionError, match=r"projection.*has size \(24.*\) there, \(16.*\) here"):
        ranks(run, cache, tmp_path, Fit(task, "fsdp2", steps=4, load=path))


def test_one_file_is_what_copies_would_save(ranks: Any, cache: Path, tmp_path: Path) -> None:
    loaded = {}
    for strategy in ("ddp", "fsdp2 one file"):
        path = tmp_path / f"{strategy}.ckpt"
        ranks(run, cache, tmp_path, Fit(task, strategy, steps=2, save=path, save_at=2))
        loaded[strategy] = torch.load(path, weights_only=True)
    copies, shards = loaded.values()
    assert copies.keys() == shards.keys()
    assert_equal(shards["state_dict"], copies["state_dict"], tolerance=2e-3)
    (wanted,), (got,) = copies["optimizer_states"], shards["optimizer_states"]
    assert got["param_groups"] == wanted["param_groups"]
    for place, state in wanted["state"].items():
        assert_equal(got["state"][place], state, tolerance=2e-3)


def test_it_measures_the_same_in_one_process_once_consolidated(
    ranks: Any, cache: Path, tmp_path: Path, saved: Saved
) -> None:
    file = tmp_path / "weights.safetensors"
    assert consolidate(saved.path, file).step == 2
    shards, _ = ranks(run, cache, tmp_path, Fit(task, "fsdp2", stage="test", load=saved.path))
    for load in (file, saved.path):
        alone = run(cache, tmp_path, Fit(task, stage="test", load=load))
        assert_equal(alone.weights, shards.weights)
        assert alone.results == pytest.approx(shards.results, abs=1e-6, nan_ok=True)
    with pytest.raises(ValueError, match=r"trained beside other weights of image.encoder"):
        run(cache, tmp_path, Fit(partial(task, seed=1), stage="test", load=file))
