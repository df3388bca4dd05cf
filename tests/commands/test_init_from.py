"""Beginning with the weights of another run: which parts fit, what is refused, what is then kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining_parts import make_model, tiny_text
from tiny_language import tiny_language
from torch import nn

from mmlab.adaptation.lora import LoRA
from mmlab.adaptation.policy import Policy
from mmlab.commands.init_from import Beginning
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.projection import ProjectionFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.models.language_model import LanguageModel
from mmlab.models.layout import Layout
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.models.pooling import AttentivePooling
from mmlab.models.recommender import Items, Recommender, Users
from mmlab.models.word_tagger import WordTagger
from mmlab.objectives.contrastive import InfoNCE
from mmlab.objectives.masked import MaskedTokens
from mmlab.objectives.ranking import SampledSoftmax
from mmlab.optim import Optimization
from mmlab.runs.checkpoint import Weights, load_weights, read_weights, write_weights
from mmlab.tasks.base import BaseTask
from mmlab.tasks.extraction import ExtractionTask
from mmlab.tasks.outcome import Classes
from mmlab.tasks.pretraining import PretrainingTask
from mmlab.tasks.question_answering import QuestionAnsweringTask
from mmlab.tasks.recommendation import RecommendationTask
from mmlab.tasks.retrieval import RetrievalTask
from mmlab.tasks.sentiment import SentimentTask

pytestmark = pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing")
OPTIMIZATION = Optimization(partial(torch.optim.AdamW, lr=0.01))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("language"))


def policy(towers: Any = "full", beginning: Beginning | None = None) -> Policy:
    made = Policy(towers)
    made.beginning = beginning
    return made


def retrieval(
    text: Path, towers: Any = "full", *, seed: int = 0, beginning: Beginning | None = None, dim: int = 8
) -> RetrievalTask:
    torch.manual_seed(seed)
    model = DualEncoder(
        text=Tower(TextEncoder(str(text)), dim=dim), signal=Tower(SignalEncoder(3, dim=16), dim=dim)
    )
    return RetrievalTask(
        model, objective=InfoNCE(), optimization=OPTIMIZATION, adaptation=policy(towers, beginning)
    )


def classifier(
    text: Path, towers: Any = "full", *, beginning: Beginning | None = None, layers: int = 2
) -> SentimentTask:
    torch.manual_seed(9)
    model = FusionClassifier(
        text=FusionTower(TextEncoder(str(text))),
        signal=FusionTower(SignalEncoder(3, dim=16)),
        fusion=TransformerFusion({"text": 32, "signal": 16}, dim=12, num_heads=2, num_layers=layers),
        head=ClassificationHead(12, classes=2),
    )
    return SentimentTask(
        model, outcome=Classes(["a", "b"]), optimization=OPTIMIZATION, adaptation=policy(towers, beginning)
    )


def pretraining(text: Path, *, seed: int = 3) -> PretrainingTask:
    return PretrainingTask(
        make_model(text, ("masked",), seed=seed),
        optimization=OPTIMIZATION,
        adaptation=policy(),
        contrastive=InfoNCE(),
        masked=MaskedTokens(),
    )


def trained(task: BaseTask, path: Path) -> Path:
    """A checkpoint of what a task keeps, as if it had been trained: all that it trains has moved."""
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter += 0.5
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    write_weights(path, Weights(checkpoint["state_dict"], checkpoint["adaptation"]["bases"]))
    return path


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None
    assert b is not None
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def taken(beginning: Beginning) -> dict[str, int]:
    return {part.path: part.tensors for part in beginning.parts if part.tensors}


def reasons(beginning: Beginning) -> dict[str, str]:
    return {part.path: part.reason for part in beginning.parts if not part.tensors}


class TestParts:
    def test_of_retrieval_a_classifier_takes_the_encoders(self, text: Path, tmp_path: Path) -> None:
        run = retrieval(text, seed=1)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        task = classifier(text, beginning=beginning)
        assert set(taken(beginning)) == {"text.encoder", "signal.encoder"}
        for name in ("text", "signal"):
            assert same(getattr(task.model, name).encoder, getattr(run.model, name).encoder)
        assert set(reasons(beginning)) == {"fusion", "head"}
        assert "the run has no such part" in reasons(beginning)["fusion"]
        assert same(task.model.fusion, classifier(text).model.fusion)

    def test_of_pretraining_retrieval_takes_the_projections_too(self, text: Path, tmp_path: Path) -> None:
        run = pretraining(text)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        task = retrieval(text, beginning=beginning)
        assert set(taken(beginning)) == {
            f"{name}.{part}" for name in ("text", "signal") for part in ("encoder", "projection")
        }
        assert same(task.model.text, run.model.text)
        assert same(task.model.signal, run.model.signal)

    def test_of_pretraining_a_classifier_takes_the_fusion_where_it_is_the_same(
        self, text: Path, tmp_path: Path
    ) -> None:
        run = pretraining(text)
        path = trained(run, tmp_path / "run.safetensors")
        beginning = Beginning(path)
        task = classifier(text, beginning=beginning)
        assert same(task.model.fusion, run.model.fusion)
        another = Beginning(path)
        other = classifier(text, beginning=another, layers=3)
        assert "another fusion there" in reasons(another)["fusion"]
        assert same(other.model.fusion, classifier(text, layers=3).model.fusion), "taken in part"

    def test_projections_of_another_size_stay(self, text: Path, tmp_path: Path) -> None:
        beginning = Beginning(trained(retrieval(text), tmp_path / "run.safetensors"))
        retrieval(text, beginning=beginning, dim=6)
        assert set(taken(beginning)) == {"text.encoder", "signal.encoder"}
        assert reasons(beginning)["text.projection"].endswith("is (8, 32), here (6, 32))")

    def test_encoders_are_found_wherever_they_stand(self, text: Path, tmp_path: Path) -> None:
        """`text.encoder` of a tower is `text` of a tagger."""
        run = retrieval(text, seed=1)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        tagger = WordTagger(TextEncoder(str(text)), tags=3)
        beginning(tagger)
        assert [(part.path, part.reason) for part in beginning.parts if part.tensors] == [
            ("text", "from text.encoder")
        ]
        assert run.model.text is not None
        assert same(tagger.text, run.model.text.encoder)

    @pytest.mark.parametrize("towers", ["full", {"text": "frozen", "signal": "full"}])
    def test_a_layout_is_added_to_what_is_taken(self, text: Path, tmp_path: Path, towers: Any) -> None:
        run = retrieval(text, towers, seed=1)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        tagger = WordTagger(TextEncoder(str(text), layout=Layout(32)), tags=3)
        if towers == "full":
            beginning(tagger)
            assert run.model.text is not None
            assert same(tagger.text.backbone, run.model.text.encoder.backbone)
        else:
            with pytest.raises(ValueError, match="no part of that run fits this model"):
                beginning(tagger)
            assert reasons(beginning)["text"] == "stays: the same pretrained weights in both"

    def test_what_stands_beside_a_frozen_encoder_is_taken(self, text: Path, tmp_path: Path) -> None:
        """Of a tower inside another part too, as those of items are."""

        def recommending(beginning: Beginning | None = None) -> RecommendationTask:
            torch.manual_seed(0)
            tower = FusionTower(TextEncoder(str(text)), pooling=AttentivePooling(32))
            fusion = ProjectionFusion({"text": 32}, dim=8)
            return RecommendationTask(
                Recommender(Users(8, items=6), Items(8, items=6, text=tower, fusion=fusion)),
                objective=SampledSoftmax(),
                optimization=OPTIMIZATION,
                adaptation=policy({"items.text.encoder": "frozen"}, beginning),
            )

        run = recommending()
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        task = recommending(beginning)
        assert reasons(beginning) == {"items.text.encoder": "stays: the same pretrained weights in both"}
        assert taken(beginning)["items.text.pooling"] == 1
        assert same(task.model, run.model)

    def test_an_encoder_of_another_network_stays(self, text: Path, tmp_path: Path) -> None:
        beginning = Beginning(trained(retrieval(text), tmp_path / "run.safetensors"))
        model = DualEncoder(
            text=Tower(TextEncoder(str(text)), dim=8), signal=Tower(SignalEncoder(3, dim=8), dim=8)
        )
        beginning(model)
        assert reasons(beginning)["signal.encoder"].startswith("stays: another signal.encoder there")
        assert beginning.table().row_count == len(beginning.parts)


class TestPretrainedWeights:
    """What a run left to pretrained weights, it does not bring."""

    def test_that_are_the_same_are_left(self, text: Path, tmp_path: Path) -> None:
        run = retrieval(text, {"text": "frozen", "signal": "full"}, seed=1)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        task = retrieval(text, beginning=beginning)
        assert reasons(beginning)["text.encoder"] == "stays: the same pretrained weights in both"
        assert same(task.model.text, run.model.text)

    def test_of_which_some_were_trained(self, text: Path, tmp_path: Path) -> None:
        run = retrieval(text, {"text": "bitfit", "signal": "full"}, seed=1)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        task = retrieval(text, beginning=beginning)
        assert 0 < taken(beginning)["text.encoder"] < len(list(run.model.text.encoder.parameters()))  # type: ignore[union-attr]
        assert same(task.model.text, run.model.text)

    def test_that_differ_are_refused(self, text: Path, tmp_path: Path) -> None:
        run = retrieval(text, {"text": "frozen", "signal": "frozen"}, seed=1)
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        with pytest.raises(
            ValueError, match=r"its signal\.encoder was trained beside other pretrained weights"
        ):
            retrieval(text, beginning=beginning, seed=2)

    def test_a_run_that_began_with_another_is_merged_too(self, text: Path, tmp_path: Path) -> None:
        """Its checkpoint holds all weights, so those that it was trained beside are not asked for."""
        first = Beginning(trained(retrieval(text, seed=1), tmp_path / "first.safetensors"))
        run = retrieval(text, {"text": LoRA(rank=2), "signal": "full"}, beginning=first)
        path = trained(run, tmp_path / "run.safetensors")
        with pytest.raises(ValueError, match="mmlab adapt merge"):
            retrieval(text, beginning=Beginning(path))

    @pytest.mark.parametrize("checkpoint", ["trained", "full"])
    def test_to_which_something_was_added_are_refused_until_merged(
        self, text: Path, tmp_path: Path, checkpoint: Any
    ) -> None:
        run = retrieval(text, {"text": LoRA(rank=2), "signal": "full"}, seed=1)
        run.adaptation.checkpoint = checkpoint
        path = trained(run, tmp_path / "run.safetensors")
        with pytest.raises(ValueError, match=r"its text\.encoder holds what .* does not .*mmlab adapt merge"):
            retrieval(text, beginning=Beginning(path))
        run.adaptation.merge(run.model)
        write_weights(tmp_path / "merged.safetensors", Weights(run.state_dict(), {}))
        task = retrieval(text, beginning=Beginning(tmp_path / "merged.safetensors"))
        assert same(task.model.text, run.model.text)


def test_what_a_task_has_beside_its_model(text: Path, tmp_path: Path) -> None:
    def tagging(*, crf: bool = True) -> ExtractionTask:
        torch.manual_seed(0)
        return ExtractionTask(
            WordTagger(TextEncoder(str(text)), tags=3), tags=["O", "B-a", "I-a"], crf=crf,
            optimization=OPTIMIZATION, adaptation=policy(),
        )  # fmt: skip

    run = tagging()
    path = trained(run, tmp_path / "run.safetensors")
    task, beginning = tagging(), Beginning(path)
    beginning(task.model)
    beginning.fill_beside(task)
    assert same(task, run)
    assert taken(beginning)["field"] == 3
    beginning = Beginning(trained(tagging(crf=False), tmp_path / "plain.safetensors"))
    beginning(task.model)
    beginning.fill_beside(task)
    assert reasons(beginning) == {"field": "stays: the run has no such part"}
    assert taken(beginning).keys() == {"text", "head"}


class TestLanguageModels:
    """What a language model was left to or was given is told as of encoders."""

    def answering(
        self, language: Path, towers: Any, *, beginning: Beginning | None = None
    ) -> QuestionAnsweringTask:
        torch.manual_seed(0)
        tower = MediaTower(SignalEncoder(3, dim=16, modality="audio"), dim=32)
        model = MultimodalLM(LanguageModel(str(language)), audio=tower)
        return QuestionAnsweringTask(model, optimization=OPTIMIZATION, adaptation=policy(towers, beginning))

    def test_of_which_some_was_trained(self, language: Path, tmp_path: Path) -> None:
        run = self.answering(language, {"language": "layernorm"})
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        task = self.answering(language, "full", beginning=beginning)
        assert 0 < taken(beginning)["language"] < len(run.model.language.state_dict())
        assert same(task.model, run.model)

    def test_another_one_is_refused(self, language: Path, tmp_path: Path) -> None:
        run = self.answering(language, {"language": "frozen"})
        path = trained(run, tmp_path / "run.safetensors")
        trained(self.answering(language, "full"), tmp_path / "moved.safetensors")
        moved = self.answering(language, "full")
        load_weights(moved, read_weights(tmp_path / "moved.safetensors"))
        with pytest.raises(ValueError, match="its language was trained beside other pretrained weights"):
            Beginning(path)(moved.model)

    def test_lora_must_be_merged(self, language: Path, tmp_path: Path) -> None:
        run = self.answering(language, {"language": LoRA(rank=2)})
        path = trained(run, tmp_path / "run.safetensors")
        with pytest.raises(ValueError, match=r"its language holds what .*mmlab adapt merge"):
            self.answering(language, "full", beginning=Beginning(path))


class TestAfterwards:
    @pytest.mark.parametrize("towers", ["full", "frozen", {"*": LoRA(rank=2, kind="pissa")}])
    def test_a_checkpoint_goes_on_without_the_run(self, text: Path, tmp_path: Path, towers: Any) -> None:
        """It holds all weights: no config builds again what the run brought."""
        path = trained(pretraining(text), tmp_path / "run.safetensors")
        begun = retrieval(text, towers, beginning=Beginning(path))
        saved = trained(begun, tmp_path / "begun.safetensors")
        again = retrieval(text, towers)
        load_weights(again, read_weights(saved))
        assert same(again, begun)
        rewritten = trained(again, tmp_path / "again.safetensors")
        assert read_weights(rewritten).state.keys() == read_weights(saved).state.keys()

    def test_methods_start_from_what_the_run_brought(self, text: Path, tmp_path: Path) -> None:
        """PiSSA takes its matrices out of the weights: the function is that of the run, not of the asset."""
        run = pretraining(text)
        path = trained(run, tmp_path / "run.safetensors")
        begun = retrieval(text, {"*": LoRA(rank=2, kind="pissa")}, beginning=Beginning(path))
        begun.adaptation.merge(begun.model)
        assert run.model.text is not None
        for one, other in zip(
            begun.model.text.state_dict().values(), run.model.text.state_dict().values(), strict=True  # type: ignore[union-attr]
        ):  # fmt: skip
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class TestRefusals:
    def test_nothing_that_fits(self, text: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        other = DualEncoder(
            signal=Tower(SignalEncoder(5, dim=8), dim=4),
            audio=Tower(SignalEncoder(2, dim=8, modality="audio"), dim=4),
        )
        run = RetrievalTask(other, objective=InfoNCE(), optimization=OPTIMIZATION, adaptation=policy())
        beginning = Beginning(trained(run, tmp_path / "run.safetensors"))
        with pytest.raises(
            ValueError, match=r"no part of that run fits this model .*name a run with the same"
        ):
            retrieval(text, beginning=beginning)

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"neither a run directory .* nor a checkpoint"):
            Beginning(tmp_path)
