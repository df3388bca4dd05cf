"""What users want, ranked among everything that is offered: recall, nDCG, MAP, hit rate, coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

from mmlab import collectives
from mmlab.batch import HISTORY, ITEM, NOBODY, USER, Batch, Embeddings
from mmlab.metrics.ranking import FEW, TILE, Scores, bootstrap_interval

DEPTHS = (5, 10, 20, 50)
_WITH_INTERVAL = ("recall20", "ndcg20")
NEVER = 2**31
"""Rank of what is not offered to a user."""


@runtime_checkable
class VectorOutput(Protocol):
    """What a model of users and items gives."""

    @property
    def user(self) -> Embeddings:
        """A row for each sample."""

    @property
    def item(self) -> Embeddings:
        """A row for each sample."""


class Told(NamedTuple):
    """A user, and what there is to tell."""

    place: int
    key: str
    vector: Float[Tensor, " dim"]
    history: Int64[Tensor, " chosen"]
    """Items that the user has chosen before: these are not offered again."""
    wanted: tuple[int, ...]
    """Items that the user chose afterwards."""


class Catalogue(NamedTuple):
    """Everything that is offered, in the order of its numbers."""

    vector: Float[Tensor, "items dim"]
    number: Int64[Tensor, " items"]
    kind: tuple[str, ...]
    """Of each; "" where nothing is said."""
    place: tuple[int, ...]
    """Of its sample."""


class _Offered(NamedTuple):
    """An item of the catalogue."""

    vector: Float[Tensor, " dim"]
    kind: str
    place: int


class Lists(NamedTuple):
    """What became of users in a ranking."""

    ranks: list[Int64[Tensor, " wanted"]]
    """Of what each user wanted, ascending, from 1; :data:`NEVER` for what is not offered."""
    best: Int64[Tensor, "users depth"]
    """Numbers of the best items for each user; NOBODY where fewer are offered."""


@torch.no_grad()
def rank_catalogue(users: Sequence[Told], offered: Catalogue, *, depth: int = DEPTHS[-1]) -> Lists:
    """Rank everything that is offered for every user by dot product, but for the user's history.

    rank of the j-th best wanted item = j + number of other items whose score is not below its score: ties
    count against the model. Memory beside the vectors is that of a tile of scores, or of one user's.

    Args:
        users: With vectors of the size of the items'.
        offered: Its numbers ascend.
        depth: Length of the lists of best items.
    """
    ranks: list[Tensor] = []
    best: list[Tensor] = []
    items = len(offered.number)
    height = max(1, TILE // max(1, items))
    depth = min(depth, items)
    for top in range(0, len(users), height):
        tile = users[top : top + height]
        scores = torch.stack([one.vector for one in tile]).float() @ offered.vector.float().T
        # What a model that diverged says nothing of comes last; NaN would compare as below anything.
        scores = scores.masked_fill(~scores.isfinite(), torch.finfo(scores.dtype).min)
        for row, one in zip(scores, tile, strict=True):
            row[_columns(one.history, offered.number)] = -torch.inf
        ranks += [_ranks(row, offered, one.wanted) for row, one in zip(scores, tile, strict=True)]
        listed = scores.topk(depth, dim=1)
        best.append(torch.where(listed.values > -torch.inf, offered.number[listed.indices], NOBODY))
    return Lists(ranks, torch.cat(best) if best else torch.empty(0, depth, dtype=torch.int64))


def _ranks(
    row: Float[Tensor, " items"], offered: Catalogue, wanted: Sequence[int]
) -> Int64[Tensor, " wanted"]:
    """Ranks of what a user wants, ascending, by the scores of everything; -inf is not offered."""
    column = _columns(torch.tensor(wanted, dtype=torch.int64), offered.number)
    score = row[column]
    score = score[score > -torch.inf].sort(descending=True).values
    # Matrix products of identical vectors differ by some units of rounding.
    threshold = score - 8 * torch.finfo(row.dtype).eps
    if len(score) <= FEW:
        not_below = (row >= threshold[:, None]).sum(dim=1)
    else:
        not_below = len(row) - torch.searchsorted(row.sort().values, threshold)
    tied = (score >= threshold[:, None]).sum(dim=1)
    reached = torch.arange(1, len(score) + 1) + (not_below - tied)
    return torch.cat([reached, reached.new_full((len(wanted) - len(score),), NEVER)])


def score_user(rank: Int64[Tensor, " wanted"]) -> dict[str, float]:
    """Recall, nDCG, MAP and hit rate of one user at all depths.

    With hits at ranks r_1 < r_2 < ... up to k and n wanted items: recall = hits / n; nDCG = sum 1 / log2(1 +
    r_j) over its largest value, that of min(n, k) hits at the top; MAP = sum j / r_j over min(n, k); hit is 1
    where there is any. These are the definitions of MMRec (Zhou 2023, arXiv:2302.03497).

    Args:
        rank: Of what the user wanted, at least one, ascending.
    """
    found: dict[str, float] = {}
    number = torch.arange(1, len(rank) + 1, dtype=torch.float64)
    gain = 1 / (1 + rank.double()).log2()
    for k in DEPTHS:
        hit = rank <= k
        most = min(len(rank), k)
        ideal = (1 / (1 + number[:most]).log2()).sum()
        found[f"recall{k}"] = hit.double().mean().item()
        found[f"ndcg{k}"] = (gain[hit].sum() / ideal).item()
        found[f"map{k}"] = ((number / rank)[hit].sum() / most).item()
        found[f"hit{k}"] = float(hit.any())
    return found


class RecommendationMetrics(Metric):
    """Full ranking over a whole evaluation and all ranks, and for each kind of item apart.

    An evaluation sample is an item that is offered, or a user with a history and what is wanted
    (references), or both: a user who wants that item. `compute` gathers the samples of all ranks and sorts
    them by place, so its numbers are the same on any number of ranks.
    """

    full_state_update = False

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(sync_on_compute=False)
        self._users: list[Told] = []
        self._items: dict[int, _Offered] = {}

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._users, self._items = [], {}

    def update(self, output: VectorOutput, batch: Batch) -> None:
        """Keep the users and items of a batch.

        Args:
            output: What the model made of it.
            batch: Its references are the numbers of what users want, its kinds those of items.

        Raises:
            ValueError: A reference is no number.
        """
        assert batch.signal is not None
        valid = batch.valid.tolist()
        rows = batch.signal.data.masked_fill(batch.signal.owner[:, None] == NOBODY, NOBODY).cpu()
        user, item = (rows_of.vector.detach().float().cpu() for rows_of in (output.user, output.item))
        for sample, key in enumerate(batch.keys):
            if not valid[sample]:
                continue
            number = int(rows[sample, ITEM])
            if number != NOBODY:
                place = int(batch.place[sample])
                # Cloned: a view would be sent to other ranks with the whole batch behind it.
                self._items[number] = _Offered(item[sample].clone(), batch.kind_of(sample), place)
            wanted = _numbers(key, batch.references[sample]) if batch.references else ()
            if not wanted and number != NOBODY and int(rows[sample, USER]) != NOBODY:
                wanted = (number,)
            if wanted:
                history = rows[sample, HISTORY:]
                place = int(batch.place[sample])
                self._users.append(Told(place, key, user[sample].clone(), history[history != NOBODY], wanted))

    def everything(self) -> tuple[list[Told], Catalogue]:
        """Users in the order of their places, and what is offered; every rank must call it."""
        users = {one.place: one for part in collectives.gather_objects(self._users) for one in part}
        items: dict[int, _Offered] = {}
        for part in collectives.gather_objects(self._items):
            items |= part
        numbers = sorted(items)
        vectors = [items[number].vector for number in numbers]
        return [users[place] for place in sorted(users)], Catalogue(
            torch.stack(vectors) if vectors else torch.empty(0, 0),
            torch.tensor(numbers, dtype=torch.int64),
            tuple(items[number].kind for number in numbers),
            tuple(items[number].place for number in numbers),
        )

    def compute(self) -> dict[str, float]:
        """`recall20`, `ndcg20`, `map20`, `hit20`, ... as means over users, and `coverage20`, ...

        Coverage is the share of what is offered that stands in any user's list. `recall20@cold` and so on
        rank only items of that kind, for users who wanted one: how well new things are told among new
        things. `users` is how many were told. Every rank must call it.
        """
        users, offered = self.everything()
        found = recommendation_scores(users, offered)
        for kind in sorted(set(offered.kind) - {""}) if len(set(offered.kind)) > 1 else ():
            own = torch.tensor([one == kind for one in offered.kind])
            part = _only(offered, own)
            there = set(part.number.tolist())
            wanting = [one._replace(wanted=tuple(n for n in one.wanted if n in there)) for one in users]
            scores = recommendation_scores([one for one in wanting if one.wanted], part)
            found |= {f"{name}@{kind}": value for name, value in scores.items()}
        return found


def recommendation_scores(users: Sequence[Told], offered: Catalogue) -> dict[str, float]:
    """All scores of some users and some items; see :meth:`RecommendationMetrics.compute`.

    Args:
        users: Each wants at least one item.
        offered: Its numbers ascend.
    """
    if not users or len(offered.number) == 0:
        return {"users": float(len(users))}
    lists = rank_catalogue(users, offered)
    scores = [score_user(rank) for rank in lists.ranks]
    columns: dict[str, Float64[Tensor, " users"]] = {
        name: torch.tensor([one[name] for one in scores], dtype=torch.float64) for name in scores[0]
    }
    found = {name: values.mean().item() for name, values in columns.items()}
    for name in _WITH_INTERVAL:
        interval = bootstrap_interval([Scores(columns[name], torch.arange(len(users)))], seed=0)
        found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    for k in DEPTHS:
        listed = set(lists.best[:, :k].flatten().tolist()) - {NOBODY}
        found[f"coverage{k}"] = len(listed) / len(offered.number)
    return found | {"users": float(len(users))}


def _only(offered: Catalogue, own: Bool[Tensor, " items"]) -> Catalogue:
    rows = own.nonzero().flatten().tolist()
    kind, place = (tuple(part[row] for row in rows) for part in (offered.kind, offered.place))
    return Catalogue(offered.vector[own], offered.number[own], kind, place)


def _columns(numbers: Int64[Tensor, " some"], offered: Int64[Tensor, " items"]) -> Int64[Tensor, " found"]:
    """Where numbers stand among those offered, without those that do not."""
    place = torch.searchsorted(offered, numbers).clamp(max=max(len(offered) - 1, 0))
    return place[offered[place] == numbers] if len(offered) else place[:0]


def _numbers(key: str, references: Sequence[str]) -> tuple[int, ...]:
    found: Mapping[int, None] = {}
    try:
        found = dict.fromkeys(int(one) for one in references)
    except ValueError:
        raise ValueError(
            f"sample {key!r}: what is wanted is {', '.join(references)}: name the numbers of items "
            "(data.loading.references: [json.wanted])"
        ) from None
    return tuple(found)
