"""What is chosen, and how likely the right answers are: the same on two ranks, sharded or not, as on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_runs import SGD, Fit, run
from tiny_language import tiny_language

from mmlab.adaptation.policy import Policy
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.metrics.perplexity import Perplexity
from mmlab.metrics.text import Answered, AnswerScores, TextScore
from mmlab.models.decoding import Choosing, Decoding
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.sources.generated import Generated
from mmlab.tasks.question_answering import QuestionAnsweringTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
SHAPES = ["triangle", "square", "pentagon", "star", "circle"]


class Said(TextScore):
    """What was said of each sample, by its place, as numbers."""

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        return {f"{one.place}": float(SHAPES.index(one.prediction)) for one in answers}


def language() -> str:
    return str(Path(os.environ["MMLAB_CACHE"]) / "language")


def choosing() -> QuestionAnsweringTask:
    return task(Choosing(), [AnswerScores(), Said()])


def saying() -> QuestionAnsweringTask:
    return task(Decoding(max_new_tokens=2), [AnswerScores(), Perplexity()])


def task(decoding: Decoding | Choosing, scores: list[TextScore]) -> QuestionAnsweringTask:
    """Blocks weigh heavily, so that answers differ between samples before anything is learned."""
    torch.manual_seed(0)
    tower = MediaTower(ImageEncoder("test_vit", pretrained=False, image_size=32), dim=32)
    model = MultimodalLM(LanguageModel(language()), image=tower)
    with torch.no_grad():
        for name, parameter in model.language.backbone.named_parameters():
            parameter.mul_(5 if "layers" in name and parameter.ndim > 1 else 1)
    return QuestionAnsweringTask(
        model, optimization=SGD, adaptation=Policy("full"), decoding=decoding, scores=scores
    )


def data(batch_size: int, choices: list[str] | None = None) -> ShardData:
    """A third of the samples lack the picture, and cannot be asked."""
    return ShardData(
        batch_size=batch_size,
        source=Generated(train=16, val=16, test=42, missing={"image": 0.3}),
        image=ImageReader(32),
        text=PromptReader(
            language(), prompts=[Prompt("<image>{json.colour}", "{json.shape}")], choices=choices
        ),
        loading=Loading(group_by="key", eval_batch_size=8, references=("json.shape",)),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    tiny_language(cache / "language")
    return cache


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("task", "of"), [(choosing, partial(data, choices=SHAPES)), (saying, data)], ids=["choosing", "saying"]
)
def test_two_ranks_give_the_numbers_of_one(
    ranks: Any, cache: Path, strategy: str, task: Callable[[], Any], of: Callable[[int], ShardData]
) -> None:
    fit = Fit(task, data=of, stage="test")
    alone = run(cache, cache, fit).results
    records = ranks(run, cache, cache, fit._replace(strategy=strategy))
    assert {record.sharded > 10 for record in records} == {strategy == "fsdp2"}
    first, second = (record.results for record in records)
    assert first == second
    assert first == pytest.approx(alone, rel=1e-5)
    if task is saying:
        assert alone["test/perplexity"] > 1
    else:
        said = {alone[name] for name in alone if name.removeprefix("test/").isdigit()}
        assert len(said) > 1, "the answers say nothing"
