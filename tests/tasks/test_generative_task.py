"""Question answering from the config to the answers: training, evaluation, result file and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from tiny_language import tiny_language

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.callbacks.answers import AnswerPage, AnswerWriter
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.shards import write_shards
from mmlab.models.decoding import Decoding
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.optim import Optimization
from mmlab.tasks.question_answering import QuestionAnsweringTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


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


COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0), "white": (255, 255, 255)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, and shards of plain pictures with a question about their colour."""
    folder = tmp_path_factory.mktemp("questions")
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


def make_data(folder: Path) -> ShardData:
    shards = folder / "shards"
    prompt = Prompt("<image>{json.question}", "{json.answer}")
    return ShardData(
        batch_size=16,
        splits=Splits(**{s: str(shards / f"{s}-*.tar") for s in ("train", "val", "test")},
                      predict=str(shards / "test-*.tar")),
        image=ImageReader(16, crop_scale=(1.0, 1.0)),
        text=PromptReader(str(folder / "language"), prompts=[prompt]),
        loading=Loading(eval_batch_size=4, references=("json.answers",), group_by="key"),
    )  # fmt: skip


def make_task(folder: Path) -> QuestionAnsweringTask:
    torch.manual_seed(0)
    model = MultimodalLM(
        LanguageModel(str(folder / "language")),
        image=MediaTower(MeanColour(), dim=32),
    )
    return QuestionAnsweringTask(
        model,
        optimization=Optimization(partial(torch.optim.AdamW, lr=1e-2)),
        adaptation=Policy("full"),
        decoding=Decoding(max_new_tokens=6),
    )


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    def make(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **settings,
        )  # fmt: skip

    return make


def test_it_learns_to_name_colours(folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path) -> None:
    task, data = make_task(folder), make_data(folder)
    fit = trainer(AnswerPage(3), max_epochs=30, check_val_every_n_epoch=30, num_sanity_val_steps=0)
    fit.fit(task, data)
    results = fit.test(task, data, verbose=False)[0]
    assert results["test/exact_match"] > 0.9
    assert results["test/exact_match_low"] <= results["test/exact_match"] <= results["test/exact_match_high"]
    for split in ("val", "test"):
        page = (tmp_path / f"answers-{split}.html").read_text(encoding="utf-8")
        assert page.count("class=row") == 3
        assert page.count("data:image/png") == 3
        assert "Colour?" in page


def test_answers_are_written_in_the_form_that_a_benchmark_takes(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    fields = {"question_id": "json.question_id", "answer": "answer"}
    writers = AnswerWriter(fields), AnswerWriter({"id": "key", "said": "answer"}, file="vqa.json")
    trainer(*writers).predict(make_task(folder), make_data(folder), return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["question_id"] for record in records] == list(range(9))
    assert all(isinstance(record["answer"], str) for record in records)
    array = json.loads((tmp_path / "predictions" / "vqa.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in array] == [f"k{number}" for number in range(9)]
    assert [record["said"] for record in array] == [record["answer"] for record in records]


def test_result_files_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="one must be `answer`"):
        AnswerWriter({"question_id": "json.question_id"})
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.json"):
        AnswerWriter({"a": "answer"}, file="results.csv")


def test_the_adapted_language_model_leaves_its_own_weights_out_of_checkpoints(folder: Path) -> None:
    task = make_task(folder)
    adapted = Policy({"language": "lora", "image": "frozen"})
    model = adapted.apply(task.model)
    kept = adapted.kept(model)
    assert not any("embed_tokens" in name or "base_layer" in name for name in kept)
    assert any(name.startswith("language.") and "lora" in name for name in kept)
    assert any(name.startswith("image.projection") for name in kept)
    assert set(adapted.bases) == {"language", "image.encoder"}
