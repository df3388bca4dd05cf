"""The page of queries: read as a browser reads it, and compared with the embeddings it was made from."""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import NonCallableMock

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Embeddings, Modality
from mmlab.callbacks.retrieval_page import RetrievalPage
from mmlab.data.audio import AudioReader
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.shards import write_shards
from mmlab.data.text import TextReader
from mmlab.metrics.retrieval import RetrievalMetrics
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask

SAMPLES = 15
EVIL = "<script>alert('a \"b\" & c')</script>"
CAPTIONS = [EVIL, *(f"thing {n}" for n in range(1, SAMPLES))]
CAPTIONS[10] = CAPTIONS[4]
GROUPS = [CAPTIONS.index(caption) for caption in CAPTIONS]
SILENT = 7
"""A sample without sound."""
RATE = 8000


class Measured(BaseTask):
    """A task of which only the metrics are looked at."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def make_metrics(self) -> Metric:
        return self.metrics

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        return


class Card(NamedTuple):
    kind: str
    sample: int
    """That it shows, as told by its picture, sound or text."""


class Reading(HTMLParser):
    """The rows of cards of each section, as raw text and sources."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.sections: dict[str, list[list[dict[str, Any]]]] = {}
        self.heading = False
        self.card = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        classes = (given.get("class") or "").split()
        self.tags.add(tag)
        self.heading = tag == "h2"
        if tag == "div" and "row" in classes:
            list(self.sections.values())[-1].append([])
        if tag == "div":
            self.card += self.card > 0
        if "card" in classes:
            kind = " ".join(name for name in classes if name != "card")
            self.cards().append({"kind": kind, "text": "", "alt": None, "src": None})
            self.card = 1
        if tag in ("img", "audio"):
            self.cards()[-1].update(src=given["src"], alt=given.get("alt"))

    def handle_endtag(self, tag: str) -> None:
        self.heading = False
        self.card -= tag == "div" and self.card > 0

    def handle_data(self, data: str) -> None:
        if self.heading:
            self.sections[data] = []
        elif self.card:
            self.cards()[-1]["text"] += data

    def cards(self) -> list[dict[str, Any]]:
        return list(self.sections.values())[-1][-1]


def decode(source: str, kind: str) -> io.BytesIO:
    head, _, content = source.partition(";base64,")
    assert head == f"data:{kind}"
    return io.BytesIO(base64.b64decode(content, validate=True))


def shown(card: dict[str, Any]) -> Card:
    """Which sample a card shows."""
    if card["src"] is None:
        return Card(card["kind"], CAPTIONS.index(card["text"]))
    if card["src"].startswith("data:image"):
        with Image.open(decode(card["src"], "image/png")) as picture:
            picture.load()
            assert max(picture.size) <= 144
            sample = round(picture.convert("RGB").getpixel((5, 5))[0] / 16)  # type: ignore[index]
        assert card["alt"] == CAPTIONS[sample]
    else:
        sound, rate = soundfile.read(decode(card["src"], "audio/wav"))
        assert rate == RATE
        sample = len(sound) // 100 - 1
    assert CAPTIONS[sample] in card["text"]
    return Card(card["kind"], sample)


def sample(number: int) -> dict[str, Any]:
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (300, 200), (16 * number, 90, 40)).save(picture, "PNG")
    soundfile.write(sound, np.zeros(100 * (number + 1)), RATE, format="wav")
    members = {"png": picture.getvalue(), "json": json.dumps({"caption": CAPTIONS[number]}).encode()}
    return {"__key__": f"{number:03d}", **members, **({} if number == SILENT else {"wav": sound.getvalue()})}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardData:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(map(sample, range(SAMPLES)), folder, "test")
    data = ShardData(
        batch_size=4,
        splits=Splits(test=str(folder / "test-*.tar")),
        image=ImageReader(32),
        text=TextReader("never built", fields=("json.caption",)),
        audio=AudioReader(RATE),
    )
    data.setup("test")
    return data


class Page(NamedTuple):
    text: str
    sections: dict[str, list[list[Card]]]
    tags: set[str]


def embeddings() -> dict[Modality, Embeddings]:
    generator = torch.Generator().manual_seed(3)
    found = {}
    for modality in (Modality.IMAGE, Modality.TEXT, Modality.AUDIO):
        place = torch.tensor([n for n in range(SAMPLES) if modality != Modality.AUDIO or n != SILENT])
        vector = nn.functional.normalize(torch.randn(len(place), 6, generator=generator), dim=1)
        found[modality] = Embeddings(vector, torch.tensor(GROUPS)[place], place)
    return found


def write(data: ShardData, folder: Path, rows: dict[Modality, Embeddings], **settings: int) -> Page:
    task = Measured(
        nn.Linear(1, 1), optimization=Optimization(partial(torch.optim.SGD, lr=1.0)), adaptation=Policy({})
    )
    task.metrics = RetrievalMetrics([(a, b) for a in rows for b in rows if a != b])
    task.metrics.update(SimpleNamespace(get=rows.get))
    trainer = NonCallableMock(L.Trainer, is_global_zero=True, datamodule=data, default_root_dir=str(folder))
    RetrievalPage(**settings).on_test_end(trainer, task)
    text = (folder / "retrieval.html").read_text(encoding="utf-8")
    reading = Reading()
    reading.feed(text)
    sections = {
        heading: [[shown(card) for card in row] for row in found]
        for heading, found in reading.sections.items()
    }
    return Page(text, sections, reading.tags)


pytestmark = pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing")


@pytest.fixture(scope="module")
def page(data: ShardData, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(data, tmp_path_factory.mktemp("page"), embeddings())


def test_a_dozen_queries_of_three_kinds_with_five_answers_each(page: Page) -> None:
    assert list(page.sections) == ["text → image", "audio → image", "image → text"]
    assert [len(rows) for rows in page.sections.values()] == [4, 4, 4]
    for rows in page.sections.values():
        assert [card.kind for row in rows for card in row if card.kind == "query"] == ["query"] * 4
        assert {len(row) for row in rows} == {1 + 5}


def test_queries_are_spread_over_the_split(page: Page) -> None:
    for rows in page.sections.values():
        asked = [row[0].sample for row in rows]
        assert asked == sorted(set(asked))
        assert (asked[0], asked[-1]) == (0, SAMPLES - 1)


def test_answers_are_those_of_the_embeddings_and_right_ones_are_marked(page: Page) -> None:
    rows = embeddings()
    marked = 0
    for heading, lines in page.sections.items():
        query, candidate = (rows[Modality(name)] for name in heading.split(" → "))
        for line in lines:
            scores = candidate.vector.double() @ query.vector[query.place == line[0].sample][0].double()
            best = [int(candidate.place[i]) for i in scores.argsort(descending=True)]
            if heading.endswith("text"):  # one caption said twice is one answer
                best = list(dict.fromkeys(GROUPS[n] for n in best))
            assert [card.sample for card in line[1:]] == best[:5]
            right = [GROUPS[card.sample] == GROUPS[line[0].sample] for card in line[1:]]
            assert [card.kind == "right" for card in line[1:]] == right
            marked += sum(right)
    assert marked > 0


def test_captions_are_escaped(page: Page) -> None:
    assert "script" not in page.tags
    assert "<script" not in page.text
    assert any(card.sample == 0 for row in page.sections["image → text"] for card in row)


def test_numbers_of_queries_and_answers_are_settings(data: ShardData, tmp_path: Path) -> None:
    rows = embeddings()
    page = write(data, tmp_path, {m: rows[m] for m in (Modality.IMAGE, Modality.TEXT)}, queries=2, found=3)
    assert {heading: [len(row) for row in found] for heading, found in page.sections.items()} == {
        "text → image": [4, 4],
        "image → text": [4, 4],
    }


def test_the_first_right_answer_is_named(data: ShardData, tmp_path: Path) -> None:
    rows = embeddings()
    page = write(data, tmp_path, {m: rows[m] for m in (Modality.IMAGE, Modality.TEXT)}, queries=1)
    scores = rows[Modality.IMAGE].vector @ rows[Modality.TEXT].vector[0]
    rank = 1 + int((scores > scores[0]).sum())
    assert f"first right answer at rank {rank}<" in page.text
