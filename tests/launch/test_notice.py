"""Signals are noted, the first one counts, and handlers are given back."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mmlab.launch.notice import Notice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_is_noted_and_nothing_else_happens(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Notice().listening() as notice:
        assert notice.told is None
        for each in (signal.SIGCONT, number, signal.SIGTERM):
            os.kill(os.getpid(), each)
        assert notice.told is not None
        assert notice.told.signal == number
        assert abs(notice.told.at - time.time()) < 5
    assert signal.getsignal(number) == before
