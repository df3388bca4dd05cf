"""The pretraining task: any weighted set of objectives, run in parts, measured, refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from pretraining_parts import ALL, make_batch, make_model, tiny_text
from torch.utils.data import DataLoader

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Modality
from mmlab.objectives.contrastive import InfoNCE
from mmlab.objectives.masked import MaskedTokens
from mmlab.objectives.matching import Matching
from mmlab.objectives.sequence import TokenCrossEntropy
from mmlab.optim import Optimization
from mmlab.parallel.execution import Execution
from mmlab.tasks.pretraining import PretrainingTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is already saved during checkpointing",  # of a task that no config describes
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode",
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
)
EVERY = ("contrastive", *ALL)
OBJECTIVES: dict[str, Any] = {
    "contrastive": InfoNCE,
    "masked": MaskedTokens,
    "matching": Matching,
    "captioning": TokenCrossEntropy,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text(tmp_path_factory.mktemp("text"))


def make_task(text: Path, names: tuple[str, ...] = EVERY, **settings: Any) -> PretrainingTask:
    parts = [name for name in names if name != "contrastive"]
    return PretrainingTask(
        make_model(text, parts),
        optimization=Optimization(partial(torch.optim.AdamW, lr=0.01)),
        adaptation=Policy(settings.pop("towers", "full")),
        **{name: OBJECTIVES[name]() for name in names},
        **settings,
    )


def random_batch(seed: int = 0) -> Batch:
    """Ten samples of which some lack this or that."""
    return make_batch(10, lacks_text=3 + seed, lacks_signal=5)


def gradients(task: PretrainingTask, batch: Batch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    task.zero_grad()
    losses = task.losses(batch)
    sum(loss.value for loss in losses.values()).backward()  # type: ignore[union-attr]
    grads = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    return {name: loss.value.item() for name, loss in losses.items()}, grads


class TestLosses:
    @pytest.mark.parametrize(
        "names",
        [EVERY, ("contrastive",), ("masked",), ("matching",), ("captioning",), ("captioning", "matching")],
        ids="+".join,
    )
    def test_any_set_and_no_parameter_without_a_gradient(self, text: Path, names: tuple[str, ...]) -> None:
        task = make_task(text, names).train()
        losses, grads = gradients(task, random_batch())
        assert set(losses) == set(names)
        trained = {name for name, p in task.named_parameters() if p.requires_grad}
        assert set(grads) == trained
        assert any(name.startswith("model.text.projection") for name in trained) == ("contrastive" in names)
        assert all(value > 0 for value in losses.values())

    @pytest.mark.parametrize("name", ["masked", "captioning"])
    def test_features_of_text_have_no_words(self, text: Path, name: str) -> None:
        batch = random_batch()
        assert batch.text is not None
        features = replace(batch.text, data=torch.randn(*batch.text.data.shape, 32), encoded=True)
        task = make_task(text, (name,), towers={"text.encoder": "frozen"})
        with pytest.raises(ValueError, match=r"data\.loading\.features brings what the text encoder gave"):
            task.losses(replace(batch, text=features))

    def test_weights_multiply_losses_and_shares(self, text: Path) -> None:
        batch = random_batch()
        plain = make_task(text).losses(batch)
        weighted = make_task(text, weights={"masked": 0.5, "captioning": 3.0}).losses(batch)
        for name, factor in {"contrastive": 1.0, "masked": 0.5, "matching": 1.0, "captioning": 3.0}.items():
            torch.testing.assert_close(weighted[name].value, factor * plain[name].value)
            for one, other in zip(weighted[name].shares, plain[name].shares, strict=True):
                torch.testing.assert_close(one.loss, factor * other.loss)
                assert torch.equal(one.weight, other.weight)

    def test_in_parts_it_is_the_loss_of_the_whole_batch(self, text: Path) -> None:
        """Masks are those of the samples, and pairs are drawn from the whole batch."""
        task, batch = make_task(text).train(), random_batch()
        whole, expected = gradients(task, batch)
        task.execution = Execution(micro_batch=3)
        losses, grads = gradients(task, batch)
        assert losses == pytest.approx(whole, rel=1e-5)
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)

    def test_seeds_and_places_hide_other_words(self, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task, batch = make_task(text, ("masked",)), random_batch()
        first = task.losses(batch)["masked"].value
        assert torch.equal(task.losses(batch)["masked"].value, first)
        monkeypatch.setenv("PL_GLOBAL_SEED", "7")
        assert not torch.equal(task.losses(batch)["masked"].value, first)


def test_a_fit_learns_and_logs_each_loss(text: Path, trainer: Any) -> None:
    seen: list[dict[str, float]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    batches: Any = DataLoader([random_batch()] * 40, batch_size=None)  # type: ignore[arg-type]
    task = make_task(text, weights={"matching": 2.0})
    trainer(Look(), max_epochs=1, log_every_n_steps=1).fit(task, batches, batches)
    names = {f"train/loss/{name}" for name in EVERY}
    assert names < set(seen[0])
    assert seen[0]["train/loss"] == pytest.approx(sum(seen[0][name] for name in names), rel=1e-5)
    for name in names:
        assert seen[-1][name] < 0.7 * seen[0][name], name


class TestMeasures:
    def test_retrieval_probe_and_words(self, text: Path, trainer: Any) -> None:
        task = make_task(text)
        batch = labelled(random_batch())
        loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
        (found,) = trainer().validate(task, loader, verbose=False)
        assert {"val/mean_recall", "val/text_to_signal/r1", "val/signal_to_text/mrr"} <= set(found)
        assert {"val/probe/text/accuracy", "val/probe/signal/chance_accuracy"} <= set(found)
        assert {"val/masked/accuracy", "val/masked/loss", "val/captioning/loss"} <= set(found)
        assert found["val/text_to_signal/queries"] == 9  # eight samples with text, of which one has two
        (again,) = trainer().validate(task, loader, verbose=False)
        assert again == found

    def test_without_contrastive_vectors_are_not_ranked(self, text: Path, trainer: Any) -> None:
        loader: Any = DataLoader([random_batch()], batch_size=None)  # type: ignore[arg-type]
        (found,) = trainer().validate(make_task(text, ("masked",)), loader, verbose=False)
        assert set(found) == {"val/masked/accuracy", "val/masked/loss"}

    def test_words_of_evaluation_do_not_depend_on_the_batches(self, text: Path) -> None:
        task, batch = make_task(text, ("masked", "captioning")).eval(), labelled(random_batch())
        whole, parts = task.make_metrics(), task.make_metrics()
        with torch.no_grad():
            task.update_metrics(whole, batch)
            for chosen in (torch.tensor([5, 6, 7]), torch.tensor([0, 1]), torch.tensor([2, 3, 4, 8, 9])):
                task.update_metrics(parts, batch.select(chosen))
        assert parts.compute() == pytest.approx(whole.compute(), rel=1e-5)

    def test_predicts_vectors(self, text: Path) -> None:
        with torch.no_grad():
            found = make_task(text).eval().predict(random_batch())
        assert found.get(Modality.TEXT).vector.shape == (11, 8)
        assert found.image is None


def labelled(batch: Batch) -> Batch:
    return replace(batch, references=tuple(("a",) if n % 4 < 2 else ("b",) for n in range(len(batch))))


class TestRefusals:
    def test_no_objective(self, text: Path) -> None:
        with pytest.raises(
            ValueError, match="no objective: give one or more of contrastive, masked, matching"
        ):
            make_task(text, ())

    @pytest.mark.parametrize("name", ALL)
    def test_objectives_without_a_part_and_parts_without_an_objective(self, text: Path, name: str) -> None:
        optimization = Optimization(partial(torch.optim.AdamW, lr=0.01))
        objective = {name: OBJECTIVES[name]()}
        with pytest.raises(ValueError, match=f"{name} needs a part of the model: give the model"):
            PretrainingTask(
                make_model(text, ()), optimization=optimization, adaptation=Policy("full"), **objective
            )
        with pytest.raises(ValueError, match=f"which nothing trains: give {name}, or leave it out"):
            PretrainingTask(
                make_model(text, (name,)),
                optimization=optimization,
                adaptation=Policy("full"),
                contrastive=InfoNCE(),
            )

    def test_weights_of_what_is_not_in_use_or_not_positive(self, text: Path) -> None:
        with pytest.raises(
            ValueError, match="weights has 'masked', which is not in use: there are contrastive"
        ):
            make_task(text, ("contrastive",), weights={"masked": 1.0})
        for weight in (0.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"weights: masked={weight}: a number above 0"):
                make_task(text, ("masked",), weights={"masked": weight})
