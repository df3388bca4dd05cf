"""A release of LLaVA's kind from its JSON to answers: turns that follow on each other, the last one asked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from colour_questions import COLOURS, QUIET, make_task, make_trainer
from PIL import Image
from tiny_language import tiny_language

from mmlab.callbacks.answers import AnswerPage, AnswerWriter
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.models.decoding import Decoding
from mmlab.sources.conversations import Conversations

pytestmark = [pytest.mark.filterwarnings(one) for one in QUIET]
PROMPTS = [
    Prompt("{each.user}", "{each.assistant}", opening="<image>"),
    Prompt("{each.user}", "{each.assistant}"),
]


def release(folder: Path) -> Path:
    """Conversations of two turns about a picture, and some without one."""
    rows: list[dict[str, Any]] = []
    for number in range(40):
        colour = list(COLOURS)[number % 4]
        seen = number % 5 > 0
        said = ["<image>\nHello?" if seen else "Hello?", "Yes.", f"Colour {number}?", colour]
        rows.append({
            "id": f"c{number}", **({"image": f"{number}.png"} if seen else {}),
            "conversations": [
                {"from": ("human", "gpt")[turn % 2], "value": text} for turn, text in enumerate(said)
            ],
        })  # fmt: skip
        with io.BytesIO() as file:
            Image.new("RGB", (8, 8), COLOURS[colour]).save(file, "PNG")
            (folder / f"{number}.png").write_bytes(file.getvalue())
    (folder / "llava.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_conversations_are_trained_and_their_last_turn_is_asked(tmp_path: Path) -> None:
    tiny_language(tmp_path / "language")
    (tmp_path / "release").mkdir()
    source = Conversations(val=4, from_file=release(tmp_path / "release"), out=tmp_path / "shards")
    data = ShardData(
        batch_size=8,
        source=source,
        splits=Splits(predict="val-*.tar"),
        image=ImageReader(8, crop_scale=(1.0, 1.0)),
        text=PromptReader(str(tmp_path / "language"), prompts=PROMPTS, each="json.turns", ordered=True),
        loading=Loading(references=("each.assistant",), group_by="json.group"),
    )
    task = make_task(tmp_path, decoding=Decoding(max_new_tokens=4))
    fields = {"id": "json.conversation_id", "asked": "each.user", "answer": "answer"}
    trainer = make_trainer(tmp_path, AnswerPage(4), AnswerWriter(fields), max_epochs=2)
    trainer.fit(task, data)
    assert 0 <= trainer.callback_metrics["val/exact_match"] <= 1
    trainer.predict(task, data, return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 4
    assert all(record["asked"] == f"Colour {record['id'][1:]}?" for record in records)
    page = (tmp_path / "answers-val.html").read_text(encoding="utf-8")
    assert page.count("class=row") == 4
    for record in records:
        colour = list(COLOURS)[int(record["id"][1:]) % 4]
        assert f"<div class=note>{colour}</div>" in page  # the right answer of the turn that is asked
        assert f"Hello?\nYes.\n{record['asked']}" in page
