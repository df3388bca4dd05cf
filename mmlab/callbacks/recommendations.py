"""What is recommended to whom: a file with every user's list, and a page of a few."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mmlab.batch import NOBODY
from mmlab.callbacks.cards import STYLE
from mmlab.callbacks.spared import spare_text
from mmlab.metrics.recommendation import Catalogue, Told, rank_catalogue

_BEFORE = 8
"""Items of a history that the page shows, the latest."""


class RecommendationLists(Callback):
    """After a test, `recommendations.jsonl` and `recommendations.html` in the run directory.

    A line of the file is a user: `user` (the key), `recommended` and `wanted` (items, by what they are
    called), `recommended_items` and `wanted_items` (by their numbers, since two may be called alike). The
    page shows users that are spread evenly over the split, beside what they liked before.

    Args:
        field: What an item is called by.
        length: Items recommended to each user.
        users: How many the page shows.
    """

    def __init__(self, field: str = "json.title", *, length: int = 20, users: int = 12) -> None:
        if length < 1 or users < 1:
            raise ValueError(f"length={length}, users={users}: at least 1 each")
        self.field = field
        self.length = length
        self.users = users

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write both."""
        metrics: Any = pl_module.metrics
        users, offered = metrics.everything()
        if not trainer.is_global_zero or not users or len(offered.number) == 0:
            return
        best = rank_catalogue(users, offered, depth=self.length).best.tolist()
        lists = [[number for number in row if number != NOBODY] for row in best]
        names = self._names(trainer, offered)
        folder = Path(trainer.default_root_dir)
        records = (
            {
                "user": one.key,
                "recommended": [names[number] for number in listed],
                "wanted": [names.get(number, str(number)) for number in one.wanted],
                "recommended_items": listed,
                "wanted_items": list(one.wanted),
            }
            for one, listed in zip(users, lists, strict=True)
        )
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        spare_text(folder / "recommendations.jsonl", "".join(lines))
        wanted, count = min(self.users, len(users)), len(offered.number)
        chosen = [number * len(users) // wanted for number in range(wanted)]
        spare_text(
            folder / "recommendations.html",
            f"<!doctype html><meta charset=utf-8><title>Recommendations</title><style>{STYLE}</style>"
            f"<h1>What is recommended to {wanted} of {len(users)} users</h1><p>Users are spread evenly over "
            "the test split, not chosen. Left: what a user liked before, the latest first. Right: the first "
            f"{min(self.length, count)} of {count}; green is what the user liked afterwards.</p>"
            + "".join(_section(users[n], lists[n], names) for n in chosen),
        )

    def _names(self, trainer: L.Trainer, offered: Catalogue) -> dict[int, str]:
        """What every item is called by; its number where the field is missing."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = {}
        for number, place in zip(offered.number.tolist(), offered.place, strict=True):
            found: Sequence[Any] = data.field("test", place, self.field)
            names[number] = str(found[0]) if found else str(number)
        return names


def _section(user: Told, listed: Sequence[int], names: dict[int, str]) -> str:
    before = [names.get(number, str(number)) for number in user.history.tolist()[::-1][:_BEFORE]]
    cards = [
        f"<span class={'right' if number in user.wanted else 'note'}>{html.escape(names[number])}</span>"
        for number in listed
    ]
    found = sum(number in user.wanted for number in listed)
    return (
        f"<div class=row><div class='card query wide'>{'<br>'.join(map(html.escape, before))}"
        f"<div class=note>{html.escape(user.key)}, {len(user.history)} in all</div></div>"
        f"<span class=arrow>&rarr;</span><div class='card wide'>{'<br>'.join(cards)}"
        f"<div class=note>{found} of {len(user.wanted)}</div></div></div>"
    )
