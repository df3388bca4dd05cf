"""A page of unseen queries, each with what the model finds: pictures to see, sounds to play."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from mmlab.batch import Embeddings, Modality
from mmlab.callbacks.cards import STYLE, sound_tag, thumbnail
from mmlab.callbacks.spared import spare_text
from mmlab.tasks.base import BaseTask

DIRECTIONS = (
    (Modality.TEXT, Modality.IMAGE),
    (Modality.AUDIO, Modality.IMAGE),
    (Modality.IMAGE, Modality.TEXT),
)
"""What is shown; a signal is only numbers to a person."""
_SHOWN = "this page shows " + ", ".join(f"{query} to {candidate}" for query, candidate in DIRECTIONS)


class Row(NamedTuple):
    """One embedded row and where its content lies."""

    place: int
    """Number of the sample."""
    nth: int
    """Which of the sample's rows of this modality."""
    group: int


class RetrievalPage(Callback):
    """Writes `retrieval.html` into the run directory at the end of a test.

    The queries are spread evenly over the test split, whatever the model makes of them.

    Args:
        queries: Queries of each direction.
        found: Candidates shown for each query.
    """

    def __init__(self, queries: int = 4, found: int = 5) -> None:
        self.queries = queries
        self.found = found

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the page; all ranks gather, rank zero writes."""
        assert isinstance(pl_module, BaseTask)
        metrics: Any = pl_module.metrics
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows = {modality: metrics.embeddings(modality) for modality in metrics.modalities}
        untrained = trainer.ckpt_path is None and trainer.global_step == 0
        if untrained or not trainer.is_global_zero:
            return
        sections = [
            self._section(query, candidate, rows[query], rows[candidate], data)
            for query, candidate in DIRECTIONS
            if query in rows and candidate in rows and len(rows[query].group) and len(rows[candidate].group)
        ]
        spare_text(
            Path(trainer.default_root_dir) / "retrieval.html",
            f"<!doctype html><meta charset=utf-8><title>Retrieval</title><style>{STYLE}</style>"
            "<h1>What the model finds for unseen queries</h1><p>Grey: the query. Then the best five, "
            "green where right. Queries are spread evenly over the test split, not chosen.</p>"
            + ("".join(sections) or f"<p>Nothing to show of {', '.join(rows)}: {_SHOWN}.</p>"),
        )

    def _section(
        self, query: Modality, candidate: Modality, queries: Embeddings, candidates: Embeddings, data: Any
    ) -> str:
        asked, offered = _rows(queries), _rows(candidates)
        chosen = torch.linspace(0, len(asked) - 1, min(self.queries, len(asked))).round().long().tolist()
        scores = queries.vector[chosen] @ candidates.vector.T
        lines = [
            self._line(_card(query, asked[i], data, "query"), asked[i], candidate, offered, order, data)
            for i, order in zip(chosen, scores.argsort(dim=1, descending=True, stable=True), strict=True)
        ]
        different = len({row.group for row in offered})
        return (
            f"<h2>{query} &rarr; {candidate}</h2><p>{len(offered)} candidates of {different} "
            f"different captions.</p>{''.join(lines)}"
        )

    def _line(
        self,
        first: str,
        asked: Row,
        candidate: Modality,
        offered: Sequence[Row],
        order: torch.Tensor,
        data: Any,
    ) -> str:
        cards: list[str] = []
        rank = next((n + 1 for n, i in enumerate(order.tolist()) if offered[i].group == asked.group), None)
        seen: set[int] = set()
        for i in order.tolist():
            # Pictures of one caption are different answers, its text said twice is not.
            if candidate is Modality.TEXT and offered[i].group in seen:
                continue
            seen.add(offered[i].group)
            cards.append(
                _card(candidate, offered[i], data, "right" if offered[i].group == asked.group else "")
            )
            if len(cards) == self.found:
                break
        note = "" if rank is None else f"<div class=note>first right answer at rank {rank}</div>"
        return f"{note}<div class=row>{first}<span class=arrow>&rarr;</span>{''.join(cards)}</div>"


def _rows(embeddings: Embeddings) -> list[Row]:
    """Number the rows of each sample; rows come sorted by place."""
    rows: list[Row] = []
    for place, group in zip(embeddings.place.tolist(), embeddings.group.tolist(), strict=True):
        nth = rows[-1].nth + 1 if rows and rows[-1].place == place else 0
        rows.append(Row(place, nth, group))
    return rows


def _card(modality: Modality, row: Row, data: Any, kind: str) -> str:
    """One row as a person takes it in; a sound with its caption in small print."""
    shown = data.exhibit("test", row.place)
    caption = html.escape(shown.texts[0]) if shown.texts else html.escape(shown.key)
    if modality is Modality.IMAGE and shown.images:
        body = (
            f"<img alt='{caption}' src='{thumbnail(shown.images[row.nth])}'><div class=note>{caption}</div>"
        )
    elif modality is Modality.AUDIO and shown.sounds:
        sound = shown.sounds[row.nth]
        note = f"{html.escape(sound.extension)}: {caption}"
        body = f"{sound_tag(sound.extension, sound.content)}<div class=note>{note}</div>"
    elif modality is Modality.TEXT and shown.texts:
        body = html.escape(shown.texts[row.nth])
    else:
        body = html.escape(shown.key)
    return f"<div class='card {kind}'>{body}</div>"
