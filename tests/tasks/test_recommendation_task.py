"""Users and items: what is learned, that new items are told by their words, that nothing runs twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from gloo_ranks import Ranks
from tastes import ITEMS, TASTES, USERS, Features, data, model, samples, task
from torch import nn

from mmlab.batch import NOBODY, Batch, Input
from mmlab.callbacks import robustness
from mmlab.callbacks.recommendations import RecommendationLists
from mmlab.data.shards import write_shards
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.popularity import Popularity
from mmlab.models.recommender import Items, Recommender, Users
from mmlab.objectives.ranking import BayesianRanking, SampledSoftmax
from mmlab.parallel.execution import Execution
from mmlab.parallel.micro_batch import run_in_parts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tastes")
    for split in ("train", "val"):
        write_shards(samples(split), folder, split)
    return folder


@pytest.mark.parametrize(
    ("by", "objective"),
    [
        ("history", SampledSoftmax),
        ("number", SampledSoftmax),
        ("both", SampledSoftmax),
        ("mean", SampledSoftmax),
        ("history", BayesianRanking),
    ],
)
def test_it_learns_what_users_like(
    by: str, objective: Any, trainer: Callable[..., L.Trainer], folder: Path, tmp_path: Path
) -> None:
    users: dict[str, Any] = {
        "history": {},
        "number": {"users": USERS, "items": None},
        "both": {"users": USERS},
        "mean": {"num_layers": 0},
    }[by]
    built = task(model(**users), objective())
    run = trainer(RecommendationLists("json.name", length=6, users=3), max_epochs=20)
    run.fit(built, data(folder))
    (found,) = run.test(built, data(folder), verbose=False)
    assert found["test/users"] == USERS
    assert found["test/recall5"] > 0.85
    assert found["test/hit5@cold"] > 0.85, "new items by their words"
    assert found["test/recall20_low"] <= found["test/recall20"] <= found["test/recall20_high"]
    lines = (tmp_path / "recommendations.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    assert len(listed) == USERS
    hits = [len(set(one["recommended"][:5]) & set(one["wanted"])) / len(one["wanted"]) for one in listed]
    assert sum(hits) / USERS == pytest.approx(found["test/recall5"], abs=0.001)
    assert set(listed[0]["wanted"]) <= {f"thing <{n}>" for n in range(ITEMS)}
    page = (tmp_path / "recommendations.html").read_text(encoding="utf-8")
    assert page.count("class=row") == 3
    assert "<span class=right>thing &lt;" in page


def test_numbers_say_nothing_of_new_items(trainer: Callable[..., L.Trainer], folder: Path) -> None:
    built = task(model(content=False))
    run = trainer(max_epochs=20)
    run.fit(built, data(folder))
    (found,) = run.test(built, data(folder), verbose=False)
    assert found["test/recall5@warm"] > 0.85
    assert found["test/map5@cold"] < 0.75


def batch(rank: int = 0) -> Batch:
    """A pair, a pair of a user without a history, an item alone, a user alone, nothing."""
    rows = [[1, 2, 5, 6], [0, 3, NOBODY, NOBODY], [NOBODY, 4 + rank, NOBODY, NOBODY], [2, NOBODY, 7, NOBODY]]
    there = torch.tensor([True, True, True, False, False])
    return Batch(
        keys=("a", "b", "c", "d", ""),
        place=torch.arange(5) + 5 * rank,
        valid=torch.tensor([True, True, True, True, False]),
        group=torch.tensor([0, 1, 2, 3, NOBODY]),
        signal=Input(
            torch.tensor([*rows, [NOBODY] * 4]),
            owner=torch.tensor([0, 1, 2, 3, NOBODY]),
            present=torch.tensor([True, True, True, True, False]),
            length=torch.tensor([4, 2, 2, 3, 1]),
        ),
        text=Input(
            torch.eye(TASTES)[[2, 3, 0, 0, 0]][:, None],
            owner=torch.tensor([0, 1, 2, NOBODY, NOBODY]),
            present=there,
            length=torch.ones(5, dtype=torch.int64),
        ),
    )


def test_what_a_batch_gives() -> None:
    found = model(users=9).eval()(batch())
    assert found.user.group.tolist() == [2, 3, NOBODY, NOBODY, NOBODY]
    assert found.item.group.tolist() == [2, 3, 4, NOBODY, NOBODY]
    torch.testing.assert_close(found.user.vector.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(found.item.vector.norm(dim=1), torch.ones(5))


def test_a_frozen_tower_runs_once_for_each_item() -> None:
    built = task(model()).model.eval()
    assert built.items.text is not None
    encoder = built.items.text.encoder
    assert isinstance(encoder, Features)
    first = built(batch())
    assert encoder.rows == 3
    second = built(batch(rank=1))
    assert encoder.rows == 4, "item 5 alone is new"
    torch.testing.assert_close(second.item.vector[:2], first.item.vector[:2])
    fresh = model().eval()
    torch.testing.assert_close(fresh(batch()).item.vector, first.item.vector)
    assert not any("known" in name for name in built.state_dict())


def test_histories_end_where_they_end() -> None:
    built = model(max_history=2).eval()
    built.users.seen.count += 1
    nn.init.normal_(built.users.ago.weight)
    rows = torch.tensor([[1, NOBODY, 5, 6, 7, NOBODY], [1, NOBODY, 6, 7, NOBODY, NOBODY]])
    vectors = built.users(rows[:, 0], rows[:, 2:])
    torch.testing.assert_close(vectors[0], vectors[1], msg="the latest two")
    other = built.users(rows[:1, 0], torch.tensor([[7, 6]]))
    assert not torch.allclose(vectors[0], other[0]), "in their order"


@pytest.mark.parametrize("layers", [0, 1])
def test_places_that_training_never_reached_say_nothing(
    trainer: Callable[..., L.Trainer], folder: Path, layers: int
) -> None:
    """Histories of evaluation may be longer than those that training had."""
    built = task(model(content=False, num_layers=layers, max_history=9))
    trainer(max_epochs=1).fit(built, data(folder))
    moved = built.model.users.ago.weight.abs().sum(dim=1) > 0
    assert moved.tolist() == [True] * 3 + [False] * 6, "training samples have at most three"


def test_who_has_no_number_is_told_by_the_history(trainer: Callable[..., L.Trainer], tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_shards(map(unnumbered, samples(split)), tmp_path, split)
    built = task(model(content=False))
    run = trainer(max_epochs=20)
    run.fit(built, data(tmp_path))
    (found,) = run.test(built, data(tmp_path), verbose=False)
    assert found["test/recall5@warm"] > 0.85


def unnumbered(sample: dict[str, Any]) -> dict[str, Any]:
    about = json.loads(sample["json"])
    about.pop("user", None)
    return sample | {"json": json.dumps(about).encode()}


def test_samples_that_name_nobody_are_told_of(
    trainer: Callable[..., L.Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def alone(sample: dict[str, Any]) -> dict[str, Any]:
        about = json.loads(unnumbered(sample)["json"])
        return sample | {"json": json.dumps({**about, "history": []}).encode()}

    for split in ("train", "val"):
        write_shards(map(alone, samples(split)), tmp_path, split)
    trainer(max_epochs=1, limit_val_batches=0).fit(task(model(content=False)), data(tmp_path))
    (warned,) = [record for record in caplog.records if "teaches nothing" in record.getMessage()]
    assert "a batch of 32 samples teaches nothing" in warned.getMessage()


@pytest.mark.parametrize("layers", [0, 1])
def test_what_training_never_had_is_not_read_in_a_history(layers: int) -> None:
    """Its vector is as it was drawn."""
    built = model(num_layers=layers).eval()
    built.users.seen.count[[2, 5]] += 1
    nn.init.normal_(built.users.ago.weight)
    vectors = built(batch()).user.vector  # of the histories [5, 6], none, none, [7]
    read = built.users(torch.full((3,), NOBODY), torch.tensor([[5], [NOBODY], [NOBODY]]))
    torch.testing.assert_close(vectors[[0, 1, 3]], nn.functional.normalize(read, dim=1))
    assert not torch.allclose(vectors[0], vectors[1])
    assert not torch.allclose(built.train()(batch()).user.vector[3], vectors[3]), "training has it soon"


def test_of_an_item_without_content_nothing_is_remembered() -> None:
    built = model(numbered=False).eval()
    whole = batch()
    assert whole.text is not None
    bare = replace(whole, text=whole.text.without(torch.ones(5, dtype=torch.bool)))
    right, without = (model(numbered=False).eval()(one).item.vector for one in (whole, bare))
    assert not torch.allclose(right[0], without[0])
    for given, expected in ((bare, without), (whole, right), (bare, without)):
        torch.testing.assert_close(built(given).item.vector, expected)


def test_robustness_takes_content_from_items_and_no_one_from_the_test() -> None:
    whole = batch()
    less = robustness.without(whole, 1.0, robustness.draw(whole, seed=0))
    assert less.text is not None
    assert not less.text.present.any()
    assert less.signal is whole.signal


@pytest.mark.parametrize("users", [{"users": 9}, {"users": 9, "num_layers": 0}, {"users": 9, "items": None}])
def test_parts_of_a_batch_make_the_whole(users: dict[str, Any]) -> None:
    built = model(**users).eval()
    if built.users.items is not None:
        built.users.seen.count += 1
    whole, parts = built(batch()), run_in_parts(built, batch(), 2)
    torch.testing.assert_close(parts.user.vector, whole.user.vector)
    torch.testing.assert_close(parts.item.vector, whole.item.vector)


def ddp_on_rank() -> dict[str, list[float]]:
    """Both ranks have other items, the second one no history; every parameter has the same gradient."""
    rank = torch.distributed.get_rank()
    built = model(users=9)
    objective = SampledSoftmax()
    network = nn.parallel.DistributedDataParallel(built)
    found = network(batch(rank))
    history = found.history if rank == 0 else torch.full_like(found.history, NOBODY)
    more = {"chooser": found.chooser, "log_share": found.log_share}
    loss = objective(found.user, found.item, history=history, **more)
    loss.value.backward()
    built.items.popularity.see(found.user.group)
    built.items.popularity.after_step()
    grads = {name: p.grad.flatten().tolist() for name, p in built.named_parameters() if p.grad is not None}
    assert set(grads) == {name for name, _ in built.named_parameters()}
    return {**grads, "count": built.items.popularity.count.tolist()}


def test_two_ranks_agree(ranks: Ranks) -> None:
    first, second = ranks(ddp_on_rank)
    assert first == second
    assert first["count"][:5] == [1, 1, 3, 3, 1], "pairs of both ranks, each item once before"


def test_counts_are_of_steps() -> None:
    counter = Popularity(3)
    counter.see(torch.tensor([0, 0, NOBODY, 2]))
    torch.testing.assert_close(counter(torch.tensor([0, 1, NOBODY])), torch.full((3,), 1 / 3).log())
    counter.see(torch.tensor([2]))
    counter.after_step()
    assert counter.count.tolist() == [3, 1, 3]
    counter.after_step()
    assert counter.count.tolist() == [3, 1, 3]


def test_training_counts_each_pair_once(trainer: Callable[..., L.Trainer], folder: Path) -> None:
    built = task(model())
    built.execution = Execution(micro_batch=8)
    trainer(max_steps=5).fit(built, data(folder))
    assert built.model.items.popularity.count.sum() == ITEMS + 5 * 32


def test_what_an_evaluation_remembers_grows_in_training() -> None:
    built = task(model()).model
    with torch.inference_mode():
        before = built.train()(batch()).item.vector
    found = built(batch(rank=1)).item.vector
    found.sum().backward()
    torch.testing.assert_close(found[:2], built(batch()).item.vector[:2])
    assert len(before) == 5


def test_training_and_evaluation_read_an_item_each_in_its_way() -> None:
    built = task(model()).model
    assert built.items.text is not None
    encoder = built.items.text.encoder
    assert isinstance(encoder, Features)
    built.items.train()
    built.items(batch(), batch().signal.data[:, 1])  # type: ignore[union-attr]
    assert encoder.rows == 3
    built.items.eval()
    built.items(batch(), batch().signal.data[:, 1])  # type: ignore[union-attr]
    assert encoder.rows == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Users(8), "users by what"),
        (lambda: Users(9, users=3), "num_heads=2 must divide dim=9"),
        (lambda: Users(8, items=3, max_history=0), "max_history=0, num_layers=1: at least 1 item, and 0"),
        (lambda: Users(8, items=3, num_layers=-1), "max_history=50, num_layers=-1: at least 1 item"),
        (lambda: Items(8, items=3, number_dropout=1.5), "number_dropout=1.5: a share from 0 to below 1"),
        (lambda: Items(8, items=3, number_dropout=None), "items by what"),
        (lambda: Items(8, items=3, text=FusionTower(Features())), "made for dims={}"),
        (lambda: Items(8, items=3, image=FusionTower(Features())), "image tower has Features"),
        (lambda: Recommender(Users(8, users=3), Items(4, items=3)), "users have dim=8, items dim=4"),
    ],
)
def test_parts_that_do_not_fit(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_beyond_the_table() -> None:
    built = Recommender(Users(8, items=9), Items(8, items=3))
    with pytest.raises(ValueError, match="items=3, but the data have number 4: set items to 5 or more"):
        built(batch())
