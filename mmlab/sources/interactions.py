"""Who liked what and when, and its way into samples: what is trained on, what there is, whom to tell."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped

from mmlab.sources.items import Item
from mmlab.sources.released import Contents
from mmlab.sources.split import TRAIN

Division = Literal["time", "last", "random"]
"""How interactions become splits: see :func:`divide`."""


class Interaction(NamedTuple):
    """Somebody chose something."""

    user: str
    item: str
    time: float


class Offered(NamedTuple):
    """Something that can be chosen."""

    about: Mapping[str, Any]
    """What is known of it."""
    arrays: Mapping[str, Sequence[float] | Shaped[np.ndarray, " dim"]] = {}
    """See :attr:`mmlab.sources.items.Item.arrays`."""
    media: tuple[str, ...] = ()
    """See :attr:`mmlab.sources.items.Item.media`."""


def divide(
    interactions: Sequence[Interaction], how: Division, *, shares: tuple[float, float]
) -> dict[str, list[Interaction]]:
    """Interactions of train, val and test, each in the order of time.

    `time`: one moment for all users parts train from val, a later one val from test, such that val and test
    have their shares: nothing of the future is learned from. `last`: of each user with three or more, the
    last one is for the test, the one before for validation; what others did later is learned from. `random`:
    each user's in their shares, rounded, in no order of time: of up to five choices a tenth is none.

    Args:
        interactions: In any order; equal ones count once, the first.
        how: See above.
        shares: Of val and of test.

    Raises:
        ValueError: There is no interaction.
    """
    first: dict[tuple[str, str], Interaction] = {}
    for one in sorted(interactions, key=lambda one: (one.time, one.user, one.item)):
        first.setdefault((one.user, one.item), one)
    ordered = list(first.values())
    if not ordered:
        raise ValueError("there is no interaction: nothing to learn from")
    val, test = shares
    if how == "time":
        places = [len(ordered) * (1 - val - test), len(ordered) * (1 - test)]
        moments = [ordered[min(int(place), len(ordered) - 1)].time for place in places]
        turns = [bisect_right(moments, one.time) for one in ordered]
    else:
        turns = [0] * len(ordered)
        mine = defaultdict(list)
        for number, one in enumerate(ordered):
            mine[one.user].append(number)
        for user, numbers in mine.items():
            if how == "random":
                rng = Random(user)
                drawn = sorted(numbers, key=lambda _: rng.random())
                counts = round(len(drawn) * val), round(len(drawn) * test)
            else:
                drawn, counts = numbers[::-1], (1, 1) if len(numbers) >= 3 else (0, 0)
            for turn, chosen in ((2, drawn[: counts[1]]), (1, drawn[counts[1] : sum(counts)])):
                for number in chosen:
                    turns[number] = turn
    names = (TRAIN, "val", "test")
    return {
        name: [one for one, turn in zip(ordered, turns, strict=True) if turn == place]
        for place, name in enumerate(names)
    }


def interaction_items(
    parts: Mapping[str, Sequence[Interaction]],
    offered: Mapping[str, Offered],
    *,
    history: int,
    new_users: bool,
    remedy: str,
) -> Contents:
    """Samples of train, val and test.

    A sample of train is an interaction: `user`, `item`, `history` (what the user chose before, the latest
    last) and all that is known of the item. Val and test have a sample for everything that is offered
    (`item`, `kind` is cold where train never has it, else warm), and one for each user to be told
    (`user`, `history`: all that the user chose in the splits before, `wanted`: what in this one).
    Users and items are numbers from 0, users in the order of their first interaction, items as offered.

    Args:
        parts: Interactions by split, in the order of time.
        offered: All there is, by its identifier.
        history: Of a training sample, at most.
        new_users: Whether to keep users of whom no split before says anything.
        remedy: What to do where the splits are of no use, in words, for messages.

    Raises:
        ValueError: A split has nothing to learn from, or nobody to tell anything.
    """
    if not parts[TRAIN]:
        whole = sum(map(len, parts.values()))
        raise ValueError(f"none of {whole} interactions is left to learn from: {remedy}")
    item_number = {item: number for number, item in enumerate(offered)}
    users = dict.fromkeys(one.user for part in parts.values() for one in part)
    user_number = {user: number for number, user in enumerate(users)}
    warm = {one.item for one in parts[TRAIN]}
    splits: dict[str, list[Item]] = {TRAIN: []}
    left_out: Counter[str] = Counter()
    chosen: dict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(parts[TRAIN]):
        before = chosen[one.user]
        about = {"user": user_number[one.user], "history": before[max(0, len(before) - history) :]}
        splits[TRAIN].append(_sample(f"train-{number:08d}", offered[one.item], item_number[one.item], about))
        chosen[one.user].append(item_number[one.item])
    for split in ("val", "test"):
        wanted: dict[str, list[int]] = defaultdict(list)
        for one in parts[split]:
            wanted[one.user].append(item_number[one.item])
        splits[split] = [
            _sample(f"item-{number:08d}", offered[item], number, {"kind": kind, "wanted": []})
            for item, number in item_number.items()
            for kind in ("warm" if item in warm else "cold",)
        ]
        for user, items in wanted.items():
            if not chosen[user] and not new_users:
                left_out[f"users of {split} without a history"] += 1
                continue
            about = {"user": user_number[user], "history": list(chosen[user]), "wanted": items}
            splits[split].append(Item(f"user-{user_number[user]:08d}", {**about, "group": f"user-{user}"}))
        if len(splits[split]) == len(offered):
            raise ValueError(
                f"{split} has no user to tell anything: of its {len(wanted)} users none has a history. "
                f"Keep new users (`new_users: true`), or {remedy}"
            )
        for user, items in wanted.items():
            chosen[user] += items
    return Contents(splits, left_out, {"users": len(users), "items": len(offered)})


def _sample(key: str, offered: Offered, number: int, about: Mapping[str, Any]) -> Item:
    known = {**offered.about, **about, "item": number, "group": f"item-{number}"}
    return Item(key, known, offered.media, offered.arrays)
