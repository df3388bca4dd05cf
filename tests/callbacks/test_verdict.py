"""The sentence about speed names the worst phase and a remedy that is not on yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab.callbacks.verdict import Setting, verdict

PHASES = ("data", "copy", "forward", "backward", "optimizer", "communication", "other")
PLAIN = Setting(
    device="cuda", workers=2, valid_workers=(1, 2, 4, 8), caches=False, low_precision=False, compiled=False,
    fused=False, accumulates=False, checkpointing=False, memory=0.9,
)  # fmt: skip
ALL_ON = PLAIN._replace(low_precision=True, compiled=True, fused=True, accumulates=True)


def shares(**known: float) -> dict[str, float]:
    """The rest of the time is the backward pass."""
    return {"backward": 1 - sum(known.values()), **dict.fromkeys(set(PHASES) - {"backward"}, 0.0)} | known


@pytest.mark.parametrize(
    ("known", "setting", "sentence"),
    [
        (
            {"data": 0.41},
            PLAIN,
            "waiting for data 41 % of the time: 2 more workers (data.loading.num_workers 4)",
        ),
        (
            {"data": 0.41},
            PLAIN._replace(caches=True),
            "waiting for data 41 % of the time: 2 more workers (data.loading.num_workers 4) or a feature "
            "cache (mmlab data features)",
        ),
        (
            {"data": 0.3},
            PLAIN._replace(workers=0),
            "waiting for data 30 % of the time: 1 more worker (data.loading.num_workers 1)",
        ),
        (
            {"data": 0.9},
            PLAIN._replace(valid_workers=(1, 2)),
            "waiting for data 90 % of the time: no processor is left for more workers; inputs stored smaller "
            "are read faster",
        ),
        (
            {"communication": 0.3, "data": 0.2},
            PLAIN,
            "exchange between ranks 30 % of the time: trainer.accumulate_grad_batches 2 or a larger batch",
        ),
        ({"communication": 0.3}, ALL_ON, "exchange between ranks 30 % of the time: a larger batch"),
        (
            {"optimizer": 0.3},
            PLAIN,
            "the optimizer's step 30 % of the time: fused: true for the optimizer or a larger batch",
        ),
        (
            {"copy": 0.3},
            PLAIN._replace(workers=0),
            "copying batches to the device 30 % of the time: data.loading.num_workers 1 or more lays batches "
            "ready for the device",
        ),
        (
            {"forward": 0.3, "data": 0.05},
            PLAIN,
            "bound by the model (backward 65 %, 20 % of the device's peak): trainer.precision bf16-mixed or "
            "execution.compile true would help",
        ),
        (
            {"forward": 0.6},
            ALL_ON._replace(checkpointing=True, memory=0.3),
            "bound by the model (forward 60 %, 20 % of the device's peak): less checkpointing would help",
        ),
        (
            {"forward": 0.3},
            ALL_ON,
            "bound by the model (backward 70 %, 20 % of the device's peak): what could speed it up is on",
        ),
    ],
)
def test_the_sentence(known: dict[str, float], setting: Setting, sentence: str) -> None:
    assert verdict(shares(**known), setting, 0.2) == sentence


@given(
    parts=st.lists(st.floats(0, 1), min_size=7, max_size=7).filter(lambda p: sum(p) > 0),
    workers=st.integers(0, 9),
    switches=st.lists(st.booleans(), min_size=6, max_size=6),
    mfu=st.none() | st.floats(0, 1),
)
def test_there_is_always_one_line(
    parts: list[float], workers: int, switches: list[bool], mfu: float | None
) -> None:
    setting = Setting("cpu", workers, (1, 2, 4), *switches, memory=None)
    said = verdict({p: s / sum(parts) for p, s in zip(PHASES, parts, strict=True)}, setting, mfu)
    assert said.splitlines() == [said]
    assert said.count("%") >= 1
