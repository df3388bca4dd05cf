"""Users of four tastes and items for each, told by a number, a history and content; a model of all that."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.data.interactions import InteractionReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.signal import SignalReader
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fusion.projection import ProjectionFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.recommender import Items, Recommender, Users
from mmlab.objectives.ranking import RankingObjective, SampledSoftmax
from mmlab.optim import Optimization
from mmlab.tasks.recommendation import RecommendationTask

ITEMS, USERS, TASTES = 24, 40, 4
"""Item i is of taste i % 4, and so is user u; the last four items are new."""


class Features(Encoder):
    """What it reads, through a layer; counts how many rows it is asked for."""

    modality = Modality.TEXT
    dim = TASTES

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(TASTES, TASTES)
        nn.init.eye_(self.layer.weight)
        self.rows = 0

    def encode(self, inputs: Input) -> Encoded:
        self.rows += len(inputs.owner)
        assert inputs.mask is not None
        return Encoded(self.layer(inputs.data), inputs.mask)


def npy(item: int) -> bytes:
    with io.BytesIO() as file:
        np.save(file, np.eye(TASTES, dtype=np.float32)[[item % TASTES]])
        return file.getvalue()


def samples(split: str) -> Iterator[dict[str, Any]]:
    def sample(key: str, **about: Any) -> dict[str, Any]:
        own = {"npy": npy(about["item"])} if "item" in about else {}
        return {"__key__": key, "json": json.dumps(about).encode(), **own}

    old = ITEMS - TASTES
    for user in range(USERS):
        liked = [item for item in range(old) if item % TASTES == user % TASTES]
        Random(user).shuffle(liked)
        held = liked.pop()  # others have it in training
        if split == "train":
            for turn, item in enumerate(liked):
                yield sample(f"t-{user}-{turn}", user=user, item=item, history=liked[:turn], wanted=[])
        else:
            new = next(item for item in range(old, ITEMS) if item % TASTES == user % TASTES)
            yield sample(f"u-{user}", user=user, history=liked, wanted=[held, new])
    if split != "train":
        for item in range(ITEMS):
            yield sample(
                f"i-{item}",
                item=item,
                kind="cold" if item >= old else "warm",
                wanted=[],
                name=f"thing <{item}>",
            )


def data(folder: Path) -> ShardData:
    return ShardData(
        batch_size=32,
        splits=Splits(train=f"{folder}/train-*.tar", val=f"{folder}/val-*.tar", test=f"{folder}/val-*.tar"),
        signal=InteractionReader(),
        text=SignalReader(channels=TASTES, modality="text"),  # type: ignore[arg-type]
        loading=Loading(num_workers=0, references=("json.wanted",), kind_by="json.kind"),
    )


def model(*, content: bool = True, numbered: bool = True, **users: Any) -> Recommender:
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    if content:
        parts = {"text": FusionTower(Features()), "fusion": ProjectionFusion({"text": TASTES}, dim=8)}
    items = Items(8, items=ITEMS, number_dropout=0.3 if numbered else None, remember=True, **parts)
    return Recommender(Users(8, **{"items": ITEMS, "dropout": 0.0, **users}), items)


def task(built: Recommender, objective: RankingObjective | None = None) -> RecommendationTask:
    return RecommendationTask(
        built,
        objective=SampledSoftmax() if objective is None else objective,
        optimization=Optimization(partial(torch.optim.Adam, lr=0.02)),
        adaptation=Policy({"items.text": "frozen"} if built.items.text is not None else "full"),
    )
