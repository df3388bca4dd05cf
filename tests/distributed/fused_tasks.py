"""Small tasks of the fusion family and of recommendation, with their data: for any strategy, in any rank."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmlab.adaptation.policy import Policy
from mmlab.data.entity_pair import EntityPairReader
from mmlab.data.image import ImageReader
from mmlab.data.interactions import InteractionReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader
from mmlab.data.words import WordReader
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import FeatureEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.projection import ProjectionFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.models.layout import Layout
from mmlab.models.recommender import Items, Recommender, Users
from mmlab.models.relation_classifier import RelationClassifier
from mmlab.models.word_tagger import WordTagger
from mmlab.objectives.ranking import SampledSoftmax
from mmlab.optim import Optimization
from mmlab.tasks.extraction import ExtractionTask
from mmlab.tasks.key_fields import KeyFieldTask
from mmlab.tasks.outcome import Ranks
from mmlab.tasks.recommendation import RecommendationTask
from mmlab.tasks.relations import RelationTask
from mmlab.tasks.sentiment import SentimentTask

MOODS = ["bad", "so so", "good"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = ["see", "ann", "jr", "in", "rome"]
PLACES = {"O": [0.1, 0.1, 0.3, 0.2], "B-PER": [0.5, 0.1, 0.7, 0.2], "B-LOC": [0.5, 0.8, 0.9, 0.9]}
USERS, ITEMS = 12, 20
COUNTS = {"train": 128, "val": 16, "test": 16}
SGD = Optimization(partial(torch.optim.SGD, lr=0.1, momentum=0.5))


def write_data(cache: Path) -> None:
    """Posts with a mood, entities, a relation, places, a picture and a voice, and what users chose."""
    for split, count in COUNTS.items():
        write_shards((_post(Random(n), n) for n in range(count)), cache / "posts", split)
        write_shards(_choices(split, count), cache / "choices", split)


def _post(rng: Random, number: int) -> dict[str, Any]:
    """Every third has no picture, every fourth no voice."""
    words = WORDS[: rng.randint(3, 5)]
    tags = ["O", "B-PER", "I-PER", "O", "B-LOC"][: len(words)]
    about = {
        "words": words, "tags": tags, "boxes": [PLACES.get(tag, PLACES["O"]) for tag in tags],
        "mood": MOODS[number % 3], "head": [1, 2], "tail": [0, 1],
        "relation": ["None", "before"][number % 2], "fields": {"PER": "ann jr"},
    }  # fmt: skip
    found = {"__key__": f"p{number}", "json": json.dumps(about).encode()}
    if number % 3:
        picture = Image.new("RGB", (40, 40), (80 * (number % 3), rng.randint(0, 255), 40))
        found["png"] = _bytes(lambda file: picture.save(file, "PNG"))
    if number % 4:
        voice = np.random.default_rng(number).normal(number % 3, 1, (rng.randint(2, 6), 3))
        found["npy"] = _bytes(lambda file: np.save(file, voice.astype(np.float32)))
    return found


def _choices(split: str, count: int) -> Iterator[dict[str, Any]]:
    rng = Random(split)
    taste = [
        _bytes(lambda file, n=n: np.save(file, np.eye(4, dtype=np.float32)[[n % 4]])) for n in range(ITEMS)
    ]
    for number in range(count):
        user, history = rng.randrange(USERS), rng.sample(range(ITEMS), rng.randint(0, 4))
        about = {"user": user, "history": history, "wanted": [rng.randrange(ITEMS)]}
        if split == "train":
            about |= {"item": rng.randrange(ITEMS), "wanted": []}
            yield {"__key__": f"c{number}", "json": json.dumps(about).encode(), "npy": taste[about["item"]]}
        else:
            yield {"__key__": f"u{number}", "json": json.dumps(about).encode()}
    for item in range(ITEMS if split != "train" else 0):
        about = {"item": item, "wanted": []}
        yield {"__key__": f"i{item}", "json": json.dumps(about).encode(), "npy": taste[item]}


def _bytes(write: Any) -> bytes:
    with io.BytesIO() as file:
        write(file)
        return file.getvalue()


def _cache() -> Path:
    return Path(os.environ["MMLAB_CACHE"])


def _data(folder: str, batch_size: int, references: tuple[str, ...], **given: Any) -> ShardData:
    loading = {"eval_batch_size": 8, "references": references, **given.pop("loading", {})}
    splits = Splits(**{split: f"{_cache()}/{folder}/{split}-*.tar" for split in COUNTS})
    return ShardData(batch_size=batch_size, splits=splits, loading=Loading(**loading), **given)


def _looks() -> FusionTower:
    return FusionTower(ImageEncoder("test_vit", pretrained=False, image_size=32), keep_tokens=True)


def _reads(layout: Layout | None = None) -> TextEncoder:
    return TextEncoder(str(_cache() / "text"), dropout=0.0, layout=layout)


def sentiment() -> SentimentTask:
    """A mood in order, from voice and picture."""
    torch.manual_seed(0)
    return SentimentTask(
        FusionClassifier(
            image=_looks(),
            signal=FusionTower(FeatureEncoder(3, dim=16), keep_tokens=True),
            fusion=TransformerFusion({"image": 64, "signal": 16}, dim=16, num_heads=2),
            head=ClassificationHead(16, classes=2),
        ),
        outcome=Ranks(MOODS),
        optimization=SGD,
        adaptation=Policy("full"),
    )


def moods(batch_size: int) -> ShardData:
    """For :func:`sentiment`."""
    image, signal = ImageReader(32), SignalReader("npy", channels=3)
    return _data("posts", batch_size, ("json.mood",), image=image, signal=signal)


def entities() -> ExtractionTask:
    """Names by a CRF, from words and pictures."""
    torch.manual_seed(0)
    model = WordTagger(_reads(), tags=4, dropout=0.0, image=_looks(), num_heads=2)
    return ExtractionTask(model, tags=TAGS, crf=True, optimization=SGD, adaptation=Policy("full"))


def tagged(batch_size: int) -> ShardData:
    """For :func:`entities`."""
    text = WordReader(str(_cache() / "text"), max_length=16)
    return _data("posts", batch_size, ("json.tags",), image=ImageReader(32), text=text)


def relations() -> RelationTask:
    """What there is between two entities, from words and pictures."""
    torch.manual_seed(0)
    model = RelationClassifier(_reads(), relations=2, dropout=0.0, image=_looks(), num_heads=2)
    return RelationTask(model, relations=["None", "before"], optimization=SGD, adaptation=Policy("full"))


def related(batch_size: int) -> ShardData:
    """For :func:`relations`."""
    text = EntityPairReader(str(_cache() / "text"), max_length=32)
    return _data("posts", batch_size, ("json.relation",), image=ImageReader(32), text=text)


def key_fields() -> KeyFieldTask:
    """Fields by their words, their places, and the page, of which some have none."""
    torch.manual_seed(0)
    page = ImageEncoder("test_resnet", pretrained=False)
    model = WordTagger(
        _reads(Layout(32)), tags=4, dropout=0.0, image=FusionTower(page, keep_tokens=True),
        num_heads=2, grid=(2, 2),
    )  # fmt: skip
    return KeyFieldTask(model, tags=TAGS, optimization=SGD, adaptation=Policy("full"))


def documents(batch_size: int) -> ShardData:
    """For :func:`key_fields`."""
    text = WordReader(str(_cache() / "text"), max_length=16, boxes="json.boxes")
    page, loading = ImageReader(64, fit="stretch"), {"note": "json"}
    return _data("posts", batch_size, ("json.tags",), image=page, text=text, loading=loading)


def recommendation() -> RecommendationTask:
    """Users by number and history, items by number and content."""
    torch.manual_seed(0)
    items = Items(
        8, items=ITEMS, number_dropout=0.0, remember=True,
        text=FusionTower(FeatureEncoder(4, dim=8, modality="text")),
        fusion=ProjectionFusion({"text": 8}, dim=8),
    )  # fmt: skip
    users = Users(8, users=USERS, items=ITEMS, dropout=0.0)
    return RecommendationTask(
        Recommender(users, items), objective=SampledSoftmax(), optimization=SGD, adaptation=Policy("full")
    )


def choices(batch_size: int) -> ShardData:
    """For :func:`recommendation`."""
    text = SignalReader("npy", channels=4, modality="text")
    return _data("choices", batch_size, ("json.wanted",), signal=InteractionReader(), text=text)
