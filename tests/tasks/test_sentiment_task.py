"""Sentiment from words and voice: learning classes, ranks and numbers, missing modalities, bad labels."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy.special import expit

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch
from mmlab.callbacks.answers import AnswerPage
from mmlab.callbacks.chart import Point, curve
from mmlab.callbacks.confusion import ConfusionFigure
from mmlab.callbacks.robustness import RobustnessCurve, draw, without
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.signal import SignalReader
from mmlab.models.encoders.signal import FeatureEncoder
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.objectives.scale import number_errors, rank_errors
from mmlab.optim import Optimization
from mmlab.tasks.outcome import Classes, Outcome, Ranks, Scale, Wanted
from mmlab.tasks.sentiment import SentimentTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
WORDS = ["negative", "neutral", "positive"]


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words tell the sign of a number, the voice how far from 0 it is; every fifth has no voice."""
    folder = tmp_path_factory.mktemp("sentiment")
    rng = np.random.default_rng(0)

    def sample(number: int) -> dict[str, Any]:
        value = [-2.0, -1.0, 0.0, 1.0, 2.0][number % 5]
        words = np.array([np.sign(value), 1.0]) + rng.normal(0, 0.05, 2)
        voice = np.array([[abs(value) / 2, 0.5, 0.1]]) + rng.normal(0, 0.05, (2, 3))
        about = {"value": value, "word": WORDS[int(np.sign(value)) + 1]}
        if number % 50 == 7:
            about["word"] = "torn"  # no label of the list
        found = {"__key__": f"k{number}", "text.npy": array(words), "json": json.dumps(about).encode()}
        return found if number % 7 == 3 else found | {"audio.npy": array(voice)}

    for split, count in (("train", 150), ("val", 30), ("test", 33)):
        write_shards(map(sample, range(count)), folder, split)
    return folder


def make_data(folder: Path, label: str = "json.value", **loading: Any) -> ShardData:
    settings = {"eval_batch_size": 10, "references": (label,), "group_by": "key"}
    return ShardData(
        batch_size=30,
        splits=Splits(**{s: str(folder / f"{s}-*.tar") for s in ("train", "val", "test")}),
        text=SignalReader("text.npy", channels=2, modality="text"),
        audio=SignalReader("audio.npy", channels=3, modality="audio"),
        loading=Loading(**(settings | loading)),
    )


def make_task(outcome: Outcome, **model: Any) -> SentimentTask:
    torch.manual_seed(0)
    return SentimentTask(
        FusionClassifier(
            text=FusionTower(FeatureEncoder(2, dim=16, modality="text")),
            audio=FusionTower(FeatureEncoder(3, dim=16, modality="audio")),
            fusion=ConcatenationFusion({"text": 16, "audio": 16}, dim=32),
            head=ClassificationHead(32, classes=outcome.size),
            **model,
        ),
        outcome=outcome,
        optimization=Optimization(partial(torch.optim.AdamW, lr=1e-2)),
        adaptation=Policy("full"),
    )


def test_numbers_are_learned_from_words_and_voice(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    task, data = make_task(Scale(-3.0, 3.0), modality_dropout=0.2), make_data(folder)
    fit = trainer(max_epochs=30, check_val_every_n_epoch=30)
    fit.fit(task, data)
    found = fit.test(task, data, verbose=False)[0]
    assert found["test/mae@text+audio"] < 0.35
    assert found["test/acc_2_non0"] > 0.95
    assert found["test/corr"] > 0.9
    assert found["test/labelled"] == 1
    # Without the voice only the sign is known.
    assert found["test/mae@text"] > found["test/mae@text+audio"]


@pytest.mark.parametrize("kind", [Classes, Ranks])
def test_classes_and_ranks_are_learned(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path, kind: Any
) -> None:
    task, data = make_task(kind(WORDS, others="leave_out")), make_data(folder, "json.word")
    curve = RobustnessCurve("uar", shares=(0.0, 0.5, 1.0))
    fit = trainer(ConfusionFigure(WORDS), curve, AnswerPage(3), max_epochs=20, check_val_every_n_epoch=20)
    fit.fit(task, data)
    found = fit.test(task, data, verbose=False)[0]
    assert found["test/uar"] > 0.95
    assert found["test/labelled"] == pytest.approx(32 / 33)
    assert ("test/rank_error" in found) == (kind is Ranks)
    assert "torn" not in (tmp_path / "confusion-test.svg").read_text(encoding="utf-8")
    records = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))
    assert [record["missing"] for record in records] == [0.0, 0.5, 1.0]
    assert records[0]["uar"] == pytest.approx(found["test/uar"], abs=1e-6)
    assert records[0]["uar"] > records[1]["uar"] > records[2]["uar"]
    # Of what has nothing, one thing is said.
    assert records[2]["uar"] == pytest.approx(1 / 3)
    assert "polyline" in (tmp_path / "robustness.svg").read_text(encoding="utf-8")


def test_a_label_that_is_none_is_refused_by_name(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(ValueError, match=r"sample 'k\d*7': the label 'torn' is none of negative, neutral"):
        trainer(max_epochs=1).fit(make_task(Classes(WORDS)), make_data(folder, "json.word"))
    with pytest.raises(ValueError, match=r"the label '-?2\.0' is no number from -1 to 1: correct it; or set"):
        trainer(max_epochs=1).fit(make_task(Scale(-1.0, 1.0)), make_data(folder))
    with pytest.raises(ValueError, match="is no number from -3 to 3"):
        trainer(max_epochs=1).fit(make_task(Scale()), make_data(folder, "json.word"))
    with pytest.raises(ValueError, match=r"no labels to learn from: set data\.loading\.references"):
        trainer(max_epochs=1).fit(make_task(Scale()), make_data(folder, references=()))


def test_a_curve_of_no_score_is_refused(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no score 'f2': set score to one of mae, mae_low"):
        trainer(RobustnessCurve("f2")).test(make_task(Scale()), make_data(folder), verbose=False)
    assert "corr" in (tmp_path / "robustness.json").read_text(encoding="utf-8")  # the numbers are kept
    with pytest.raises(ValueError, match=r"shares=\[0\.5, 0\.1\]: they rise"):
        RobustnessCurve(shares=[0.5, 0.1])


def test_a_curve_leaves_out_what_is_no_number_and_goes_below_zero() -> None:
    points = [
        Point(0.0, 0.9, 0.8, 1.0),
        Point(0.5, math.nan, math.nan, math.nan),
        Point(1.0, -0.5, -0.7, 0.0),
    ]
    drawn = curve(points, title="corr", across="missing", up="corr")
    assert "nan" not in drawn
    assert drawn.count("<circle") == 2
    assert "-0.7" in drawn
    assert "<circle" not in curve([points[1]], title="", across="", up="")


def test_the_curve_is_measured_in_the_precision_of_the_test(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    test = trainer(RobustnessCurve("mae", shares=(0.0, 0.5)), precision="bf16-mixed")
    found = test.test(make_task(Scale()), make_data(folder), verbose=False)[0]
    records = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))
    assert records[0]["mae"] == pytest.approx(found["test/mae"], abs=1e-6)


def test_more_is_missing_at_a_higher_share_whatever_the_batch(folder: Path) -> None:
    data = make_data(folder)
    data.prepare_data()
    data.setup("test")
    batches = list(data.test_dataloader())
    for batch in batches:
        before = torch.stack([inputs.present for _, inputs in batch.inputs()])
        for share in (0.0, 0.3, 0.6, 1.0):
            now = torch.stack(
                [inputs.present for _, inputs in without(batch, share, draw(batch, seed=1)).inputs()]
            )
            assert not (now & ~before).any()
            assert share > 0 or torch.equal(now, before)
            before = now
        assert not before.any()
    whole = without(batches[0], 0.5, draw(batches[0], seed=1))
    alone = batches[0].select(torch.tensor([4]))
    one = without(alone, 0.5, draw(alone, seed=1))
    for (_, all_of_them), (_, single) in zip(whole.inputs(), one.inputs(), strict=True):
        assert bool(single.present[0]) == bool(all_of_them.present[4])


def some_batch(references: list[tuple[str, ...]]) -> Batch:
    count = len(references)
    return Batch(
        keys=tuple(f"k{n}" for n in range(count)),
        place=torch.arange(count),
        valid=torch.tensor([n != 2 for n in range(count)]),
        group=torch.arange(count),
        references=tuple(references),
    )


def test_what_is_not_valid_or_not_labelled_is_not_known() -> None:
    batch = some_batch([("positive", "neutral"), (), ("nonsense",), ("negative",)])
    value, known = Classes(WORDS).wanted(batch)
    assert known.tolist() == [True, False, False, True]
    assert value[known].tolist() == [2, 0]


def test_losses_are_their_formulas() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.5], [-3.0, 1.0]])
    found = rank_errors(logits, torch.tensor([1, 0, 2]))
    signs = np.array([[1, -1], [-1, -1], [1, 1]])
    np.testing.assert_allclose(found.numpy(), -np.log(expit(signs * logits.numpy())).sum(axis=1), rtol=1e-5)
    said, wanted = torch.tensor([0.0, 3.0]), torch.tensor([0.5, 0.0])
    assert number_errors(said, wanted, error="absolute").tolist() == [0.5, 3.0]
    assert number_errors(said, wanted, error="squared").tolist() == [0.25, 9.0]
    assert number_errors(said, wanted, error="huber").tolist() == [0.125, 2.5]


def test_a_loss_is_the_mean_over_what_is_known() -> None:
    logits = torch.tensor([[2.0], [5.0], [-1.0]], requires_grad=True)
    wanted = Wanted(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([True, False, True]))
    value, (share,) = Scale().loss(logits, wanted, torch.arange(3))
    assert float(value.detach()) == 1.5
    assert share.weight.tolist() == [1, 0, 1]
    value.backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [0.5, 0, -0.5]


def test_a_class_weighs_what_it_is_given() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 2])
    weights = {"negative": 1.0, "neutral": 2.0, "positive": 0.5}
    outcome = Classes(WORDS, weights=weights)
    found = outcome.loss(logits, Wanted(target.float(), torch.ones(4, dtype=torch.bool)), torch.arange(4))
    wanted = torch.nn.functional.cross_entropy(logits, target, weight=torch.tensor(list(weights.values())))
    torch.testing.assert_close(found.value, wanted)
    with pytest.raises(ValueError, match="weights are of negative: give one to each of negative, neutral"):
        Classes(WORDS, weights={"negative": 1.0})
    with pytest.raises(ValueError, match="name two or more, each once"):
        Ranks(["low", "low"])
    with pytest.raises(ValueError, match=r"low=1\.0 must be below high=1\.0"):
        Scale(1.0, 1.0)
    with pytest.raises(ValueError, match="the head has 3 classes, the outcome needs 2: set classes to 2"):
        SentimentTask(
            make_task(Classes(WORDS)).model,
            outcome=Ranks(WORDS),
            optimization=Optimization(torch.optim.AdamW),
            adaptation=Policy("full"),
        )


def test_what_is_said_is_what_the_numbers_mean() -> None:
    logits = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, -1.0]])
    assert Ranks(WORDS).say(logits) == ["positive", "neutral", "negative"]
    assert Scale().say(torch.tensor([[1.25], [-0.1]])) == ["1.25", "-0.100000001"]


def test_a_reader_for_another_modality_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data\.text has a SignalReader for signal: set its modality to text"
    ):
        ShardData(batch_size=2, text=SignalReader(channels=3))
    with pytest.raises(ValueError, match="'smell' is not a valid Modality"):
        SignalReader(channels=3, modality="smell")
