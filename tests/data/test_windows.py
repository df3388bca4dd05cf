"""Windows that training leaves out of the stream: the same batches without them, whoever builds them."""

from __future__ import annotations

import io

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mmlab.data.lanes import Lanes
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream
from mmlab.data.windows import Skips, Window, stream_step

windows = st.lists(st.builds(Window, st.integers(0, 30), st.integers(1, 9)), max_size=5)


@given(windows)
def test_a_window_is_cut_out_of_the_stream(found: list[Window]) -> None:
    """Against a list of what is left, from which each window is cut as it comes."""
    left = list(range(200))
    for window in sorted(found, key=lambda window: window.step):
        del left[window.step : window.step + window.length]
    # The first to be cut must be the first in training: each counts steps of training, not of the stream.
    assert [stream_step(step, found) for step in range(100)] == left[:100]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=6))
def test_training_never_sees_again_what_it_left_out(rolls: list[tuple[int, int]]) -> None:
    """Roll-backs from anywhere to anywhere, against the stream as a list; sorted, none is cut twice."""
    skips, left = Skips(), list(range(300))
    for start, length in rolls:
        skips.leave_out(start, start + length)
        del left[start : start + length]
        assert [stream_step(step, skips) for step in range(100)] == left[:100]
        assert [window.step for window in skips] == sorted(window.step for window in skips)


@given(windows, windows)
def test_a_run_that_goes_on_knows_all_windows(saved: list[Window], since: list[Window]) -> None:
    skips = Skips(sorted(saved) + [Window(window.step + 30, window.length) for window in sorted(since)])
    before = list(skips)
    skips.go_on([[*window] for window in sorted(saved)], 30)
    assert skips == before
    fresh = Skips()
    fresh.go_on([[*window] for window in saved], 31)
    assert fresh == saved
    other = Skips([Window(9, 1), *since])
    other.go_on([[8, 1]], 9)
    assert other == [Window(8, 1)]
    known = Skips()
    known.know([[1, 2]])
    assert known == [Window(1, 2)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    def moves() -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((4, 2), dtype=np.float32))
        return buffer.getvalue()

    samples = [{"__key__": f"{number:03d}", "npy": moves()} for number in range(40)]
    shards = ShardSet(write_shards(samples, tmp_path_factory.mktemp("shards"), "x", max_samples=15))
    order = TrainingOrder(shards.counts, batch_size=8, seed=5, lanes=Lanes(2, 2))
    return Stream(shards, order, (SignalReader(channels=2),), seed=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_leaves_windows_out(stream: Stream, workers: int) -> None:
    skips = [Window(2, 3), Window(2, 1), Window(4, 2)]
    wanted = [0, 1, 6, 7, 10, 11, 12, 13]
    loader = Loader(stream, steps=4, num_workers=workers, skips=skips)
    batches = [batch for _ in range(2) for batch in loader]
    loader.close()
    assert [batch.keys for batch in batches] == [stream.batch(step).keys for step in wanted]
    # Where a sample stands in the stream it has always stood: its augmentation is the same.
    assert [batch.place.tolist()[0] // 8 for batch in batches] == wanted


def test_a_window_that_is_added_counts_for_workers_that_start(stream: Stream) -> None:
    skips: list[Window] = []
    positions = iter([0, 2])
    loader = Loader(stream, steps=4, position=lambda: next(positions), skips=skips)
    before = list(loader)
    skips.append(Window(2, 2))
    after = list(loader)
    assert [batch.keys for batch in before] == [stream.batch(step).keys for step in range(4)]
    assert [batch.keys for batch in after] == [stream.batch(step).keys for step in range(4, 8)]
