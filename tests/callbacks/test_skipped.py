"""What is skipped is counted over ranks, shown, and above a limit stops the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_batches, make_task, make_trainer
from torch.utils.data import DataLoader

from mmlab.batch import Batch, Skip
from mmlab.callbacks import skipped
from mmlab.callbacks.skipped import SHORT_RUN, SkippedSamples, Tally

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]


def _batch(size: int, broken: int = 0) -> Batch:
    return Batch(
        keys=tuple(f"k{i}" for i in range(size)),
        place=torch.arange(size),
        valid=torch.arange(size) >= broken,
        group=torch.arange(size),
        skips=tuple(Skip(f"k{i}", "image: cannot decode") for i in range(broken)),
    )


def test_a_share_below_the_limit_goes_on_and_one_above_stops_with_the_list() -> None:
    tally = Tally("train", limit=0.01)
    tally.pass_samples = 200
    tally.add(_batch(200, broken=2))
    assert tally.check() == 2
    tally.add(_batch(100, broken=2))
    with pytest.raises(ValueError, match=r"(?s)4 of 300 samples.*4 x image: cannot decode.*k1: image"):
        tally.check()


def test_one_broken_sample_at_the_start_of_a_long_pass_does_not_stop_it() -> None:
    tally = Tally("train", limit=0.01)
    tally.pass_samples = float("inf")
    tally.add(_batch(4, broken=1))
    assert tally.check() == 1
    for _ in range(SHORT_RUN // 100):
        tally.add(_batch(1, broken=1))
    with pytest.raises(ValueError, match="could not be read"):
        tally.check()


def test_padding_is_not_seen() -> None:
    tally = Tally("test", limit=0.0)
    batch = _batch(2)
    tally.add(Batch(keys=("a", ""), place=batch.place, valid=batch.valid, group=batch.group))
    assert tally.seen == 1


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_a_limit_that_is_no_share_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        SkippedSamples(limit=limit)


def _both_stop() -> Any:
    rank = torch.distributed.get_rank()
    tally = Tally("train", limit=0.1)
    tally.pass_samples = 20
    tally.add(_batch(10, broken=3 if rank == 0 else 0))
    try:
        tally.check()
    except ValueError as error:
        return str(error)
    return None


def test_when_one_rank_has_too_many_all_stop(ranks: Any) -> None:
    first, second = ranks(_both_stop)
    assert "3 of 20 samples" in first
    assert first == second, "both name what only the first has seen"
    assert "k2: image: cannot decode" in second


def test_what_prediction_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(skipped, "rank_zero_info", said.append)
    whole = make_batches(1)[0]
    broken = replace(whole, skips=(Skip("0-3", "text: no json.question"),))
    trainer = make_trainer(tmp_path, SkippedSamples(limit=0.2), steps=1)
    trainer.predict(make_task("full"), DataLoader([broken], batch_size=None))  # type: ignore[arg-type]
    (listing,) = said
    assert "predict: 1 samples could not be read and were left out" in listing
    assert "0-3: text: no json.question" in listing
    stopped = make_trainer(tmp_path, SkippedSamples(limit=0.1), steps=1)
    with pytest.raises(ValueError, match="predict: 1 of 8 samples could not be read"):
        stopped.predict(make_task("full"), DataLoader([broken], batch_size=None))  # type: ignore[arg-type]
