"""For which tasks a score against what is missing says something, and which are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_language import tiny_language

from mmlab.adaptation.policy import Policy
from mmlab.callbacks.robustness import RobustnessCurve
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.signal import FeatureEncoder
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.models.recommender import Items, Recommender, Users
from mmlab.models.relation_classifier import RelationClassifier
from mmlab.models.word_tagger import WordTagger
from mmlab.objectives.contrastive import InfoNCE
from mmlab.objectives.ranking import SampledSoftmax
from mmlab.optim import Optimization
from mmlab.tasks.answer_list import AnswerListTask
from mmlab.tasks.base import BaseTask
from mmlab.tasks.extraction import ExtractionTask
from mmlab.tasks.key_fields import KeyFieldTask
from mmlab.tasks.question_answering import QuestionAnsweringTask
from mmlab.tasks.recommendation import RecommendationTask
from mmlab.tasks.relations import RelationTask
from mmlab.tasks.retrieval import RetrievalTask

pytestmark = pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing")
TRAINED: dict[str, Any] = {
    "optimization": Optimization(partial(torch.optim.AdamW, lr=1e-2)),
    "adaptation": Policy("full"),
}


def features(modality: str) -> FeatureEncoder:
    return FeatureEncoder(2, dim=16, modality=modality)


def classifying() -> BaseTask:
    model = FusionClassifier(
        text=FusionTower(features("text")),
        fusion=ConcatenationFusion({"text": 16}, dim=8),
        head=ClassificationHead(8, classes=2),
    )
    return AnswerListTask(model, answers=["yes", "no"], **TRAINED)


def tagging(kind: type[ExtractionTask | KeyFieldTask]) -> BaseTask:
    return kind(WordTagger(features("text"), tags=2), tags=["O", "B-A"], **TRAINED)


def relating() -> BaseTask:
    return RelationTask(
        RelationClassifier(features("text"), relations=2), relations=["None", "of"], **TRAINED
    )


def recommending() -> BaseTask:
    return RecommendationTask(
        Recommender(Users(8, users=3), Items(8, items=3)), objective=SampledSoftmax(), **TRAINED
    )


def set_up(task: BaseTask, folder: Path) -> None:
    RobustnessCurve().setup(L.Trainer(accelerator="cpu", logger=False, default_root_dir=folder), task, "fit")


@pytest.mark.parametrize(
    "make",
    [classifying, relating, recommending, partial(tagging, ExtractionTask), partial(tagging, KeyFieldTask)],
)
def test_where_samples_can_lack_modalities_there_is_a_curve(make: Any, tmp_path: Path) -> None:
    set_up(make(), tmp_path)


def test_what_finds_media_by_their_places_is_refused(tmp_path: Path) -> None:
    tiny_language(tmp_path)
    tower = MediaTower(features("audio"), dim=32)
    task = QuestionAnsweringTask(MultimodalLM(LanguageModel(str(tmp_path)), audio=tower), **TRAINED)
    with pytest.raises(ValueError, match=r"not for QuestionAnsweringTask: .*: leave the callback out"):
        set_up(task, tmp_path)


def test_what_loses_candidates_is_refused(tmp_path: Path) -> None:
    model = DualEncoder(text=Tower(features("text"), dim=8), audio=Tower(features("audio"), dim=8))
    task = RetrievalTask(model, objective=InfoNCE(), **TRAINED)
    with pytest.raises(
        ValueError, match=r"not for RetrievalTask: .* FusionClassifier, WordTagger, .*: leave"
    ):
        set_up(task, tmp_path)
