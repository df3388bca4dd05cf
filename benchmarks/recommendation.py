"""Is a user's next film told better than by popularity and by matrix factorisation? MovieLens, three seeds.

    python benchmarks/recommendation.py --movielens DIR              by time, and the last film of each user
    python benchmarks/recommendation.py --movielens DIR --quick      one seed, one epoch: all of it runs
    python benchmarks/recommendation.py --movielens DIR --runs DIR   keep the runs; stopped, it goes on

Beside the experiment stand it without content and without numbers of films, the films that most users liked
in training, and alternating least squares by the package `implicit` (`pip install implicit`; Hu et al. 2008),
whose factors, regularisation and weight are those of 18 that are best on the validation split. All rank the
whole catalogue but for what a user has, by mmlab's own scores. Prints a Markdown table for each split, and
the ratio of the experiment's nDCG@20 to the best of both for users' last films.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import implicit.als
import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from variants import heading, metrics, options, spread, train

from mmlab.data.shards import ShardSet
from mmlab.metrics.recommendation import Catalogue, Told, recommendation_scores
from mmlab.sources.movielens import MovieLens

CONFIG = Path(__file__).parents[1] / "experiments" / "recommendation" / "movielens.yaml"
QUICK = ["--trainer.max_epochs", "1"]
SHOWN = ("recall20", "ndcg20", "map20", "hit20", "coverage20", "recall20@cold")
VARIANTS: dict[str, dict[str, Any]] = {
    "words_and_numbers": {},
    "words_alone": {"number_dropout": None},
    "numbers_alone": {"text": None, "fusion": None},
}
WHOLE = "words_and_numbers"


class Evaluation(NamedTuple):
    """Users to be told, and how the items are called."""

    users: list[tuple[str, Mapping[str, Any]]]
    kinds: tuple[str, ...]


def stored(folder: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and `json` of the samples of a split."""
    shards = ShardSet.find(f"{split}-*.tar", folder=folder)
    for shard, count in enumerate(shards.counts):
        for number in range(int(count)):
            sample = shards.read(shard, number)
            yield sample.key, json.loads(sample.members["json"])


def evaluation(folder: Path, split: str) -> Evaluation:
    users, kinds = [], {}
    for key, about in stored(folder, split):
        if "user" in about:
            users.append((key, about))
        else:
            kinds[about["item"]] = about["kind"]
    return Evaluation(users, tuple(kinds[number] for number in sorted(kinds)))


def scores(told: Evaluation, user: Tensor, item: Tensor) -> dict[str, float]:
    """mmlab's scores of others' vectors."""
    users = [
        Told(
            place, key, user[place], torch.tensor(about["history"], dtype=torch.int64), tuple(about["wanted"])
        )
        for place, (key, about) in enumerate(told.users)
    ]
    numbers = torch.arange(len(told.kinds))
    every = recommendation_scores(users, Catalogue(item, numbers, told.kinds, tuple(numbers.tolist())))
    cold = numbers[torch.tensor([kind == "cold" for kind in told.kinds])]
    there = set(cold.tolist())
    wanting = [one._replace(wanted=tuple(n for n in one.wanted if n in there)) for one in users]
    part = Catalogue(item[cold], cold, ("cold",) * len(cold), tuple(cold.tolist()))
    new = recommendation_scores([one for one in wanting if one.wanted], part)
    return every | {f"{name}@cold": value for name, value in new.items()}


def popularity(folder: Path) -> dict[str, float]:
    told = evaluation(folder, "test")
    counts = Counter(about["item"] for _, about in stored(folder, "train"))
    item = torch.tensor([[float(counts[number])] for number in range(len(told.kinds))])
    return scores(told, torch.ones(len(told.users), 1), item)


def factorisation(folder: Path) -> dict[str, float]:
    """Least squares, the settings chosen on the validation split."""
    liked = [(about["user"], about["item"]) for _, about in stored(folder, "train")]
    found = {split: evaluation(folder, split) for split in ("val", "test")}
    items = len(found["test"].kinds)
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(liked)), tuple(zip(*liked, strict=True))), shape=(max(u for u, _ in liked) + 1, items)
    )
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for factors, regularization, alpha in itertools.product((16, 32, 64), (0.05, 1.0), (1.0, 5.0, 20.0)):
        model = implicit.als.AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, random_state=0, num_threads=1
        )
        model.fit(matrix, show_progress=False)
        reached = {
            split: scores(told, folded_in(model, told, items), item_factors(model))
            for split, told in found.items()
        }
        best = max(best, (reached["val"]["ndcg20"], reached["test"]), key=lambda one: one[0])
    return best[1]


def folded_in(model: Any, told: Evaluation, items: int) -> Tensor:
    """Users by all that they liked before the split."""
    rows = [row for row, (_, about) in enumerate(told.users) for _ in about["history"]]
    columns = [item for _, about in told.users for item in about["history"]]
    before = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(told.users), items))
    return torch.from_numpy(np.asarray(model.recalculate_user(np.arange(len(told.users)), before)))


def item_factors(model: Any) -> Tensor:
    return torch.from_numpy(np.asarray(model.item_factors))


def overlay(division: str, items: Mapping[str, Any]) -> dict[str, Any]:
    """What is other than in the experiment."""
    model: dict[str, Any] = {"model": {"init_args": {"items": {"init_args": dict(items)}}}}
    data: dict[str, Any] = {"source": {"init_args": {"division": division}}}
    if "text" in items:
        model["adaptation"] = {"init_args": {"towers": "full"}}
        data["text"] = None
    return {"model": {"init_args": model}, "data": data}


def line(title: str, found: list[Mapping[str, float]]) -> str:
    cells = [spread([one.get(name, float("nan")) for one in found]) for name in SHOWN]
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--movielens", type=Path, help="its release; default: what was prepared before")
    arguments = options(parser, quick="one seed, one epoch of each")
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    words = [*(QUICK if arguments.quick else []), *arguments.words]
    ratio = 0.0
    print(heading(seeds, arguments.words))
    with tempfile.TemporaryDirectory() as scratch:
        for division in ("time", "last"):
            folder = MovieLens(division=division, from_file=arguments.movielens).prepare()
            overlays = {f"{division}_{name}": overlay(division, items) for name, items in VARIANTS.items()}
            runs = train(CONFIG, overlays, seeds, words, arguments.runs or Path(scratch))
            found = {
                name.removeprefix(f"{division}_").replace("_", " "): [
                    {key.removeprefix("test/"): value for key, value in metrics(run).items()}
                    for run in directories
                ]
                for name, directories in runs.items()
            }
            found |= {"most liked": [popularity(folder)], "implicit, ALS": [factorisation(folder)]}
            ours = found[WHOLE.replace("_", " ")]
            print(f"\n| {division}: {ours[0]['users']:.0f} users, % | {' | '.join(SHOWN)} |")
            print("|---" * (1 + len(SHOWN)) + "|")
            for title, reached in found.items():
                print(line(title, reached))
            low, high = (100 * ours[0][f"ndcg20_{end}"] for end in ("low", "high"))
            print(f"\n95 % of ndcg20 over users, first seed: {low:.1f} to {high:.1f}")
            peers = max(found[name][0]["ndcg20"] for name in ("most liked", "implicit, ALS"))
            ratio = sum(one["ndcg20"] for one in ours) / len(ours) / peers
    print(f"recommendation ratio={ratio:.2f} bar=1.0 {'ok' if ratio >= 1 else 'short'}")


if __name__ == "__main__":
    main()
