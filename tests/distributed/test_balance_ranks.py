"""What keeps modalities in balance is the same on two ranks as on one, and after resuming as without a break.

Norms of gradients by part of the model, too. Losses and weights differ by the rounding of float32 sums in
another order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from sharded_runs import Fit, Record, classifying, run

from mmlab import collectives
from mmlab.balance.balance import Balance
from mmlab.balance.blend import GradientBlend
from mmlab.balance.modulation import GradientModulation
from mmlab.batch import Modality
from mmlab.callbacks.preemption import _save_weights
from mmlab.models.fusion_classifier import Classified
from mmlab.models.unimodal import Alone
from mmlab.objectives.loss import mean_of
from mmlab.parallel.execution import Execution
from mmlab.runs.checkpoint import read_weights
from mmlab.tasks.answer_list import AnswerListTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
BALANCES: dict[str, Callable[[], Balance]] = {
    "modulation": partial(GradientModulation, 0.5),
    "blend": partial(GradientBlend, every=1),
}
PLAIN = Fit()
WAYS = {
    "ddp": Fit(strategy="ddp"),
    "fsdp2": Fit(strategy="fsdp2"),
    "fsdp2 in parts": Fit(strategy="fsdp2", execution=Execution(micro_batch=4)),
    "fsdp2 recomputed": Fit(strategy="fsdp2", execution=Execution(checkpointing=1.0)),
    "hsdp": Fit(strategy="hsdp"),
    "ddp, accumulated": Fit(strategy="ddp", batch=8, accumulate=2),
}
QUICK = {("modulation", "fsdp2"), ("blend", "ddp"), ("blend", "fsdp2")}
"""Run each time; the others with the slow tests."""
STEPS, EVERY = 12, 4
"""Weights are taken anew after step 8."""


def make(balance: str) -> AnswerListTask:
    return classifying(balance=BALANCES[balance]())


def fit_of(balance: str, way: Fit, **changes: Any) -> Fit:
    settings = {"task": partial(make, balance), "steps": STEPS, "validate_every": EVERY * way.accumulate}
    return way._replace(**settings | changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(cache: Path) -> Callable[..., Record]:
    """`alone(balance, like=way)` is the run in one process; made once."""
    made: dict[tuple[str, int], Record] = {}

    def of(balance: str, *, like: Fit = PLAIN) -> Record:
        key = (balance, like.accumulate)
        if key not in made:
            way = PLAIN._replace(batch=like.batch, accumulate=like.accumulate)
            made[key] = run(cache, cache, fit_of(balance, way))
        return made[key]

    return of


def cases() -> list[Any]:
    return [
        pytest.param(balance, way, marks=() if (balance, way) in QUICK else pytest.mark.slow)
        for balance in BALANCES
        for way in WAYS
    ]


@pytest.mark.parametrize(("balance", "way"), cases())
def test_two_ranks_keep_the_balance_of_one(
    ranks: Any, cache: Path, alone: Callable[..., Record], tmp_path: Path, balance: str, way: str
) -> None:
    single = alone(balance, like=WAYS[way])
    assert any(name.startswith("train/balance/") for name in single.logged)
    for record in ranks(run, cache, tmp_path, fit_of(balance, WAYS[way])):
        assert set(record.logged) == set(single.logged)
        for name, value in single.logged.items():
            if name.startswith(("train/balance/", "train/grad_norm/", "val/loss")):
                assert record.logged[name] == pytest.approx(value, rel=1e-3), name
        assert set(record.weights) == set(single.weights)
        for name, weight in single.weights.items():
            torch.testing.assert_close(record.weights[name], weight, rtol=2e-5, atol=2e-5, msg=name)


def test_norms_by_part_add_up(alone: Callable[..., Record]) -> None:
    single = alone("modulation")
    parts = {name: value for name, value in single.logged.items() if name.startswith("train/grad_norm/")}
    assert set(parts) == {f"train/grad_norm/{part}" for part in ("image", "signal", "fusion", "head")}
    # The recorder's norm is of all gradients at the same moment.
    assert sum(value**2 for value in parts.values()) ** 0.5 == pytest.approx(single.norms[-1], rel=1e-5)


@pytest.mark.parametrize("balance", BALANCES)
def test_a_resumed_run_is_the_uninterrupted_one(
    cache: Path, alone: Callable[..., Record], tmp_path: Path, balance: str
) -> None:
    whole, save = alone(balance), tmp_path / "saved.ckpt"
    run(cache, tmp_path, fit_of(balance, PLAIN, save=save, save_at=6))
    resumed = run(cache, tmp_path, fit_of(balance, PLAIN, load=save))
    assert resumed.losses == whole.losses[6:]
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


def test_a_run_of_two_ranks_goes_on_where_it_was(
    ranks: Any, cache: Path, alone: Callable[..., Record], tmp_path: Path
) -> None:
    whole, save = alone("blend"), tmp_path / "saved.ckpt"
    ranks(run, cache, tmp_path, fit_of("blend", WAYS["ddp"], save=save, save_at=6))
    for record in ranks(run, cache, tmp_path, fit_of("blend", WAYS["ddp"], load=save)):
        for branch in ("fused", "image", "signal"):
            name = f"train/balance/weight/{branch}"
            assert record.logged[name] == pytest.approx(whole.logged[name], rel=1e-3)


def saved_again(steps: int) -> list[list[float]]:
    """Sums of a rank that goes on from others', and saves after some steps."""
    blend = GradientBlend(every=1)
    blend.modalities = (Modality.TEXT, Modality.AUDIO)
    blend.start()
    sums = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    blend.load_state_dict({"weights": [0.2, 0.3, 0.5], "before": None, "validations": 1, "trained": sums})
    there = torch.ones(2, dtype=torch.bool)
    for _ in range(steps):
        alone = Alone(torch.full((2, 2, 1), 2.0), torch.ones(2, 2, dtype=torch.bool))
        said = Classified(torch.ones(2, 1), there, torch.arange(2), alone)
        blend.losses("x", said, lambda x, counts: mean_of(x[:, 0] * counts, counts.float(), torch.arange(2)))
    trained: list[list[float]] = blend.state_dict()["trained"]
    return trained


@pytest.mark.parametrize("steps", [0, 1])
def test_two_ranks_save_between_resuming_and_the_first_step(ranks: Any, steps: int) -> None:
    wanted = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    if steps:  # two samples of each rank, of losses 1, 2 and 2
        wanted = [[5.0, 6.0], [11.0, 8.0], [13.0, 10.0]]
    for found in ranks(saved_again, steps):
        assert found == wanted


def test_weights_are_saved_without_the_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank does it alone: anything that it asked of others would never come."""
    task = make("blend")
    trainer = Mock(spec=L.Trainer, lightning_module=task, strategy=None, is_global_zero=True, global_step=3)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)  # and no group of processes
    with pytest.raises(AssertionError):
        task.on_save_checkpoint({"state_dict": {}})
    _save_weights(trainer, tmp_path)
    assert read_weights(tmp_path / "stopped-step3.safetensors").state.keys() == task.state_dict().keys()
