"""Plain pictures with a question about their colour, a tiny language model that sees, and a quiet trainer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from tiny_language import tiny_language

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.shards import write_shards
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.optim import Optimization
from mmlab.tasks.question_answering import QuestionAnsweringTask

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0), "white": (255, 255, 255)}
ASKED = Prompt("<image>{json.question}", "{json.answer}")
QUIET = (
    "ignore:.*in eval mode",
    "ignore:Attribute .* is an instance of",
    "ignore:.*infer the batch indices",
    "ignore:.*does not have many workers",
)
"""Warnings that say nothing here."""


class MeanColour(Encoder):
    """One token: the mean colour of a picture."""

    modality = Modality.IMAGE
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, self.dim)

    def encode(self, inputs: Input) -> Encoded:
        tokens = self.layer(inputs.data.float().mean(dim=(2, 3)) / 255)[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def write(folder: Path) -> Path:
    """Write the language model (`language`) and the shards (`shards`): 64, 10 and 9 samples."""
    tiny_language(folder / "language")

    def sample(number: int) -> dict[str, Any]:
        name = list(COLOURS)[number % 4]
        path = folder / "one.png"
        Image.new("RGB", (16, 16), COLOURS[name]).save(path)
        about = {"question": "Colour?", "answer": name, "answers": [name, name[0]], "question_id": number}
        return {"__key__": f"k{number}", "png": path.read_bytes(), "json": json.dumps(about).encode()}

    for split, count in (("train", 64), ("val", 10), ("test", 9)):
        write_shards(map(sample, range(count)), folder / "shards", split)
    return folder


def make_data(folder: Path, prompt: Prompt = ASKED, **prompts: Any) -> ShardData:
    shards = folder / "shards"
    return ShardData(
        batch_size=16,
        splits=Splits(**{s: str(shards / f"{s}-*.tar") for s in ("train", "val", "test")},
                      predict=str(shards / "test-*.tar")),
        image=ImageReader(16, crop_scale=(1.0, 1.0)),
        text=PromptReader(str(folder / "language"), prompts=[prompt], **prompts),
        loading=Loading(eval_batch_size=4, references=("json.answers",), group_by="key"),
    )  # fmt: skip


def make_task(folder: Path, **settings: Any) -> QuestionAnsweringTask:
    torch.manual_seed(0)
    return QuestionAnsweringTask(
        MultimodalLM(LanguageModel(str(folder / "language")), image=MediaTower(MeanColour(), dim=32)),
        optimization=Optimization(partial(torch.optim.AdamW, lr=1e-2)),
        adaptation=Policy("full"),
        **settings,
    )


def make_trainer(root: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, default_root_dir=root,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        **({"max_epochs": 1} | settings),
    )  # fmt: skip
