"""The base task and retrieval: losses, metrics, modes, optimizer, and checkpoints that rebuild the task."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from mmlab import cli
from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization
from mmlab.tasks.retrieval import RetrievalTask

# Lightning 2.6 asks torch 2.15 for a class that torch has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode",
    "ignore:.*is already saved during checkpointing",  # of a task that no config describes
)

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
SAMPLES = 6


class Words(Encoder):
    """A table of words with dropout."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, self.dim)
        self.dropout = nn.Dropout(0.5)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.dropout(self.table(inputs.data)), inputs.mask)


class Colours(Encoder):
    """The mean colour of a picture."""

    modality = Modality.IMAGE
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, self.dim)
        self.norm = nn.BatchNorm1d(self.dim)

    def encode(self, inputs: Input) -> Encoded:
        tokens = self.norm(self.linear(inputs.data.float().mean((2, 3)) / 255))[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def make_batch() -> Batch:
    """Six samples of four groups; the last one is padding; sample 4 has no text."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(SAMPLES)
    present = owner < SAMPLES - 1

    def rows(data: torch.Tensor, lacking: int | None = None) -> Input:
        has = present & (owner != lacking) if lacking is not None else present
        length = None if data.ndim == 4 else torch.full((SAMPLES,), data.shape[1])
        return Input(data, torch.where(has, owner, NOBODY), has, length)

    return Batch(
        keys=("a", "b", "c", "d", "e", ""),
        place=owner,
        valid=present,
        group=torch.tensor([0, 0, 1, 2, 3, NOBODY]),
        image=rows(torch.randint(0, 256, (SAMPLES, 3, 4, 4), dtype=torch.uint8, generator=generator)),
        text=rows(torch.randint(0, 10, (SAMPLES, 3), generator=generator), lacking=4),
        signal=rows(torch.randn(SAMPLES, 5, 2, generator=generator)),
    )


def make_loader(steps: int = 1) -> DataLoader[Batch]:
    return DataLoader([make_batch()] * steps, batch_size=None)  # type: ignore[arg-type]


def make_task(towers: Any = "full", *, seed: int = 0, **settings: Any) -> RetrievalTask:
    torch.manual_seed(seed)
    return RetrievalTask(
        DualEncoder(
            image=Tower(Colours(), dim=4),
            text=Tower(Words(), dim=4, dropout=0.5),
            signal=Tower(SignalEncoder(2, dim=8, num_layers=1, dropout=0.5), dim=4),
        ),
        objective=InfoNCE(),
        optimization=Optimization(partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3)),
        adaptation=Policy(towers),
        **settings,
    )


def make_trainer(root: Path, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": root,
        "log_every_n_steps": 1,
    }  # fmt: skip
    return L.Trainer(**(defaults | settings))


class TestLosses:
    def test_one_for_each_pair_of_towers(self) -> None:
        task = make_task().eval()
        assert set(task.losses(make_batch())) == {"image_text", "image_signal", "text_signal"}

    def test_only_the_pairs_asked_for(self) -> None:
        task = make_task(pairs=[(Modality.SIGNAL, Modality.TEXT)]).eval()
        losses = task.losses(make_batch())
        everything = make_task().eval().losses(make_batch())
        assert set(losses) == {"signal_text"}
        torch.testing.assert_close(losses["signal_text"].value, everything["text_signal"].value)

    def test_value_of_one_pair(self) -> None:
        """Samples 0 to 3 have both; 4 has an image only, a negative; 0 and 1 are positives of each other."""
        task = make_task().eval()
        batch = make_batch()
        output = task.model(batch)
        image, text = (
            output.get(Modality.IMAGE).vector[:5].double(),
            output.get(Modality.TEXT).vector[:4].double(),
        )
        scores = image @ text.T / 0.07
        target = torch.eye(4, dtype=torch.float64)
        target[:2, :2] = 0.5
        to_text = -(target * F.log_softmax(scores[:4], dim=1)).sum() / 4
        to_image = -(target * F.log_softmax(scores, dim=0)[:4]).sum() / 4
        loss = task.losses(batch)["image_text"].value
        torch.testing.assert_close(loss.double(), (to_text + to_image) / 2, rtol=1e-5, atol=1e-6)

    def test_the_step_adds_them_up_and_reaches_every_tower(self, tmp_path: Path) -> None:
        task = make_task()
        seen: dict[str, Any] = {}

        class Look(L.Callback):
            def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                seen["without"] = [n for n, p in pl_module.named_parameters() if p.grad is None]

            def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
                seen.update({k: v.item() for k, v in trainer.callback_metrics.items()})

        make_trainer(tmp_path, callbacks=[Look()]).fit(task, make_loader(), make_loader())
        assert seen.pop("without") == []
        parts = [seen[f"train/loss/{pair}"] for pair in ("image_text", "image_signal", "text_signal")]
        assert seen["train/loss"] == pytest.approx(sum(parts), rel=1e-6)

    @pytest.mark.parametrize("name", ["pairs", "evaluate_pairs"])
    @pytest.mark.parametrize(
        "pair", [(Modality.IMAGE, Modality.AUDIO), (Modality.TEXT, Modality.TEXT)], ids=["no tower", "twice"]
    )
    def test_a_pair_without_two_towers_is_refused(self, name: str, pair: tuple[Modality, Modality]) -> None:
        with pytest.raises(ValueError, match=f"the pair {pair[0]}, {pair[1]} .*image, text, signal"):
            make_task(**{name: [pair]})


class TestMetrics:
    def test_of_a_batch(self) -> None:
        task = make_task(evaluate_pairs=[(Modality.IMAGE, Modality.SIGNAL)]).eval()
        batch = make_batch()
        metrics = task.make_metrics()
        task.update_metrics(metrics, batch)
        values = metrics.compute()
        assert {name.rpartition("/")[0] for name in values} == {"image_to_signal", "signal_to_image", ""}
        output = task.model(batch)
        image, signal = (output.get(m).vector[:5].detach() for m in (Modality.IMAGE, Modality.SIGNAL))
        group = batch.group[:5]
        best_right = (image @ signal.T).masked_fill(group[:, None] != group, -2).max(dim=1).values
        rank = 1 + ((image @ signal.T) > best_right[:, None]).sum(dim=1)
        assert values["image_to_signal/queries"] == 5
        assert values["image_to_signal/r1"] == pytest.approx((rank == 1).float().mean().item())
        assert values["image_to_signal/mrr"] == pytest.approx((1 / rank).mean().item())

    def test_a_sample_that_lacks_a_modality_is_no_query_of_it(self) -> None:
        task = make_task().eval()
        metrics = task.make_metrics()
        task.update_metrics(metrics, make_batch())
        values = metrics.compute()
        assert (values["text_to_image/queries"], values["text_to_image/candidates"]) == (4, 5)
        assert values["image_to_text/left_out"] == 1

    def test_are_logged_by_stage_and_begin_anew(self, tmp_path: Path) -> None:
        task = make_task()
        trainer = make_trainer(tmp_path)
        (first,) = trainer.validate(task, make_loader(), verbose=False)
        (again,) = trainer.validate(task, make_loader(), verbose=False)
        assert first == again
        assert task.results.keys() == first.keys()
        (tested,) = trainer.test(task, make_loader(), verbose=False)
        assert {name.replace("val/", "test/"): value for name, value in first.items()} == tested
        for name, value in task.results.items():
            assert value == pytest.approx(tested[name], rel=1e-6)


class TestModes:
    def test_frozen_towers_stay_in_evaluation(self) -> None:
        task = make_task({"image.encoder": "frozen", "text": "frozen"})
        task.train()
        encoders = {name: getattr(task.model, name).encoder for name in ("image", "text", "signal")}
        training = {name: {m.training for m in encoder.modules()} for name, encoder in encoders.items()}
        assert training == {"image": {False}, "text": {False}, "signal": {True}}
        assert task.model.text is not None
        assert all(module.training for module in task.model.text.projection)
        task.eval()
        assert not any(module.training for module in task.modules())

    def test_a_fit_trains_with_dropout_what_came_in_evaluation_mode(self, tmp_path: Path) -> None:
        """As pretrained models do."""
        seen: list[dict[str, bool]] = []

        class Look(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
                seen.append({name: module.training for name, module in pl_module.named_modules()})

        task = make_task({"text": "frozen"}).eval()
        trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[Look()])
        trainer.fit(task, make_loader(), make_loader())
        assert len(seen) == 2
        for modes in seen:
            assert modes["model.signal.encoder.layers.0.dropout"]
            assert modes["model.text.projection.1"]
            assert not modes["model.text.encoder.dropout"]

    def test_a_fit_leaves_frozen_parts_as_they_were(self, tmp_path: Path) -> None:
        task = make_task({"image.encoder": "frozen", "text.encoder": "frozen"})
        before = {name: value.clone() for name, value in task.state_dict().items()}
        make_trainer(tmp_path, max_epochs=2).fit(task, make_loader(), make_loader())
        changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
        assert not any(name.startswith(("model.image.encoder", "model.text.encoder")) for name in changed)
        assert any(name.startswith("model.signal.encoder") for name in changed)
        assert {"model.image.projection.2.weight", "objective.log_scale"} <= changed


class TestOptimizer:
    def test_only_matrices_of_what_is_trained_decay(self, tmp_path: Path) -> None:
        task = make_task({"text": "frozen"})
        make_trainer(tmp_path).fit(task, make_loader(), make_loader())
        optimizer = task.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.AdamW)
        names = {id(parameter): name for name, parameter in task.named_parameters()}
        decay = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
        groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
        assert decay == {"decay": 0.3, "no_decay": 0.0}
        assert set.union(*groups.values()) == {n for n, p in task.named_parameters() if p.requires_grad}
        assert not any("text.encoder" in name for name in set.union(*groups.values()))
        assert {"model.image.encoder.linear.weight", "model.text.projection.2.weight"} <= groups["decay"]
        assert {
            "model.image.encoder.norm.weight",
            "model.image.encoder.linear.bias",
            "objective.log_scale",
        } <= (groups["no_decay"])

    def test_the_rate_ends_where_the_fit_ends(self, tmp_path: Path) -> None:
        rates: list[float] = []

        class Rates(L.Callback):
            def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        task = make_task()
        trainer = make_trainer(tmp_path, callbacks=[Rates()], max_epochs=5)
        trainer.fit(task, make_loader(4), make_loader())
        assert len(rates) == 20
        assert max(rates) == 0.01
        assert rates[1:] == sorted(rates[1:], reverse=True)  # one step in twenty warms up
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)

    def test_a_fit_without_an_end_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"needs an end: set trainer\.max_epochs or trainer\.max_steps"):
            make_trainer(tmp_path, max_epochs=-1).fit(make_task(), make_loader(), make_loader())


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder in which a command may be run in this process."""
    monkeypatch.setenv("MMLAB_RUN_ID", "here")
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mmlab"])
    state = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(state)


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.filterwarnings("default")  # those of the command line are looked at in tests/integration
def test_a_checkpoint_of_the_command_line_rebuilds_the_task(command_line: Path) -> None:
    words = [
        "fit", "--config", str(SMOKE), "--data.source.init_args.train", "32",
        "--data.batch_size", "16", "--trainer.max_steps", "2", "--trainer.logger", "false",
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--test_untrained", "false",
        "--test_best", "false", "--model.init_args.pairs", "[[signal, image]]",
    ]  # fmt: skip
    assert cli.main(words) == 0
    path = command_line / "runs" / "smoke" / "here" / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    task = RetrievalTask.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    assert task.pairs == [(Modality.SIGNAL, Modality.IMAGE)]
    weights = task.state_dict()
    assert weights.keys() == stored["state_dict"].keys()
    assert all(torch.equal(weights[name], stored["state_dict"][name]) for name in weights)

    batch = make_batch()
    assert batch.image is not None
    pictures = Input(
        torch.randint(0, 256, (SAMPLES, 3, 64, 64), dtype=torch.uint8), batch.image.owner, batch.valid
    )
    movements = Input(
        torch.randn(SAMPLES, 5, 3), batch.image.owner, batch.valid, length=torch.full((SAMPLES,), 5)
    )
    batch = Batch(batch.keys, batch.place, batch.valid, batch.group, image=pictures, signal=movements)
    again = RetrievalTask.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    with torch.no_grad():
        first, second = task.eval().model(batch), again.eval().model(batch)
    for modality in (Modality.IMAGE, Modality.SIGNAL):
        assert torch.equal(first.get(modality).vector, second.get(modality).vector)
