"""Steps with times of their own, on a clock that several modalities share."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.data.clock import Clock
from mmlab.data.decode import BrokenMember
from mmlab.data.signal import SignalReader
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.alignment import resample

CLOCK = Clock("times.npy", ticks=4, seconds="json.seconds")


def npy(values: object) -> bytes:
    with io.BytesIO() as file:
        np.save(file, np.asarray(values))
        return file.getvalue()


def members(array: object, times: object, seconds: object = 8.0) -> dict[str, bytes]:
    return {"npy": npy(array), "times.npy": npy(times), "json": json.dumps({"seconds": seconds}).encode()}


def read(given: dict[str, bytes], channels: int = 1) -> list[list[float]]:
    (found,) = SignalReader(channels=channels, clock=CLOCK).read(given, None)
    assert found.dtype == torch.float32
    return found.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 12), st.floats(0.1, 100.0))
def test_it_is_linear_between_steps_or_their_mean(
    data: st.DataObject, steps: int, ticks: int, seconds: float
) -> None:
    gaps = data.draw(st.lists(st.floats(0.01, 20.0), min_size=steps, max_size=steps))
    times = np.cumsum(gaps) - gaps[0] * data.draw(st.floats(0, 2))
    array = np.random.default_rng(steps).normal(size=(steps, 3)).astype(np.float32)
    found = Clock("t", ticks=ticks, seconds="s").resample(array, times[:, None], seconds)
    moments = (np.arange(ticks) + 0.5) / ticks * seconds
    expected = np.stack([np.interp(moments, times, array[:, c].astype(np.float64)) for c in range(3)], axis=1)
    for tick in range(ticks if steps > ticks else 0):
        first, last = tick == 0, tick == ticks - 1
        within = [
            array[step].astype(np.float64)
            for step, time in enumerate(times)
            if (first or time / seconds * ticks >= tick) and (last or time / seconds * ticks < tick + 1)
        ]
        if within:
            expected[tick] = np.mean(within, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_long_signal_is_all_there() -> None:
    """A burst changes the moment that it falls in, wherever it stands; where nothing happens nothing does."""
    times = np.array([0.1, 0.2, 0.9, 1.9, 2.0, 3.9, 6.5, 6.6, 8.0])
    rest = np.full((9, 1), 0.1, dtype=np.float32)
    quiet = CLOCK.resample(rest, times[:, None], 8.0)
    np.testing.assert_array_equal(quiet, np.full((4, 1), 0.1, dtype=np.float32))
    for step, tick in enumerate((0, 0, 0, 0, 1, 1, 3, 3, 3)):
        burst = rest.copy()
        burst[step] = 5.0
        found = CLOCK.resample(burst, times[:, None], 8.0)
        assert found[tick, 0] > 1
        # No step falls in the third moment: it stands between 3.9 and 6.5 seconds.
        assert [n for n in range(4) if n != 2 and found[n, 0] != quiet[n, 0]] == [tick]


def test_two_modalities_stand_at_the_same_moments() -> None:
    """Words at 0.5 s and 7.5 s, a voice that rises with time: each tick has what was there."""
    words = read(members([[0.0], [1.0]], [[0.0, 1.0], [7.0, 8.0]]))
    times = np.arange(16) / 2 + 0.25
    voice = read(members(times[:, None], times))
    assert words == pytest.approx(np.array([[0.5], [2.5], [4.5], [6.5]]) / 7)
    assert voice == pytest.approx(np.array([[1.0], [3.0], [5.0], [7.0]]))
    # So many tokens as ticks: the fusion leaves them where they are.
    tokens = torch.tensor([words])
    torch.testing.assert_close(resample(Encoded(tokens, torch.ones(1, 4, dtype=torch.bool)), 4), tokens)


def test_one_step_stands_everywhere() -> None:
    assert read(members([[3.0]], [2.0])) == [[3.0]] * 4


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        (members([[1.0], [2.0]], [1.0]), "times of other steps"),
        (members([[1.0], [2.0]], [2.0, 1.0]), "times do not ascend"),
        (members([[1.0], [2.0]], [1.0, np.nan]), "times not finite"),
        (members([[1.0]], [[1.0, 2.0, 3.0]]), r"shape is not \[steps, 1 or 2\]"),
        (members([[1.0]], [1.0], 0), "no length in seconds"),
        (members([[1.0]], [1.0], "long"), "no length in seconds"),
        (members([[1.0]], [1.0], None), "no length in seconds"),
        ({"npy": npy([[1.0]]), "json": b'{"seconds": 1}'}, "cannot decode"),
    ],
)
def test_times_that_do_not_fit(given_: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BrokenMember, match=reason):
        read(given_)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="a clock has one at least"):
        Clock("times.npy", ticks=0, seconds="json.seconds")
    with pytest.raises(ValueError, match="max_steps=5 and a clock of 4 ticks: leave one out"):
        SignalReader(channels=1, max_steps=5, clock=CLOCK)
