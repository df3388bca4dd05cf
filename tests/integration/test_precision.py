"""Mixed precision through the whole path: what is computed in low precision, what is not, what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, WhisperConfig, WhisperForConditionalGeneration

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Input
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.audio import WhisperEncoder
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.log_mel import LogMel
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization
from mmlab.parallel.execution import Execution
from mmlab.tasks.retrieval import RetrievalTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*in eval mode",
    "ignore:.*number of training batches",
    "ignore:.*is already saved during checkpointing",  # of a task that no config describes
)
SAMPLES, STEPS = 8, 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Tiny text and sound models."""
    text, sound = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
        )
    ).save_pretrained(text)
    config = WhisperConfig(
        vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(sound)
    return str(text), str(sound)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_batch(seed: int) -> Batch:
    """All four modalities, made of what the samples have in common."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randperm(SAMPLES, generator=generator)
    every = {"owner": torch.arange(SAMPLES), "present": torch.ones(SAMPLES, dtype=torch.bool)}
    seconds = torch.arange(4000) / 16_000
    sound = torch.sin(6.28 * 200 * (1 + kind[:, None]) * seconds)
    motion = torch.randn(SAMPLES, 20, 3, generator=generator) + kind[:, None, None]
    picture = (32 * kind[:, None, None, None]).expand(SAMPLES, 3, 32, 32).to(torch.uint8)
    return Batch(
        keys=tuple(map(str, range(SAMPLES))),
        place=torch.arange(SAMPLES),
        valid=every["present"],
        group=torch.arange(SAMPLES),
        image=Input(picture, **every),
        text=Input(5 + kind[:, None].expand(-1, 6), length=torch.full((SAMPLES,), 6), **every),
        audio=Input(sound, length=torch.full((SAMPLES,), 4000), **every),
        signal=Input(motion, length=torch.full((SAMPLES,), 20), **every),
    )


class Types(Callback):
    """The types that some modules return, and the losses."""

    def __init__(self) -> None:
        self.found: dict[str, set[torch.dtype]] = {}
        self.losses: list[float] = []

    def note(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        self.found.setdefault(name, set()).add(first.dtype)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for module in pl_module.model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | LogMel | Tower):
                module.register_forward_hook(partial(self.note, type(module).__name__))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert outputs["loss"].dtype is torch.float32
        self.losses.append(outputs["loss"].item())


class Run(NamedTuple):
    types: dict[str, set[torch.dtype]]
    losses: list[float]
    results: dict[str, float]
    task: RetrievalTask
    trainer: L.Trainer


def fit(folders: tuple[str, str], execution: Execution | None = None, **settings: Any) -> Run:
    torch.manual_seed(0)
    task = RetrievalTask(
        DualEncoder(
            image=Tower(ImageEncoder("test_resnet", pretrained=False), dim=16),
            text=Tower(TextEncoder(folders[0], dropout=0.0), dim=16),
            audio=Tower(WhisperEncoder(folders[1]), dim=16),
            signal=Tower(SignalEncoder(3, dim=16, num_layers=1), dim=16),
        ),
        objective=InfoNCE(),
        optimization=Optimization(partial(torch.optim.AdamW, lr=3e-3)),
        adaptation=Policy("full"),
    )
    if execution is not None:
        task.execution = execution
    types = Types()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False, callbacks=[types],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=None, val_check_interval=STEPS, **settings,
    )  # fmt: skip
    batches = DataLoader([make_batch(seed) for seed in range(STEPS)], batch_size=None)
    held_out = DataLoader([make_batch(100)], batch_size=None)
    trainer.fit(task, batches, held_out)
    return Run(types.found, types.losses, task.results, task, trainer)


@pytest.fixture(scope="module")
def single(folders: tuple[str, str]) -> Run:
    return fit(folders)


def check_types(run: Run, low: torch.dtype) -> None:
    """Products in low precision; spectrogram, vectors, weights and what comes of them in float32."""
    assert run.types["Linear"] == run.types["Conv1d"] == {low}
    assert run.types["LogMel"] == run.types["Tower"] == {torch.float32}
    assert {parameter.dtype for parameter in run.task.parameters()} == {torch.float32}


def check_numbers(run: Run, single: Run) -> None:
    """Six pairs of modalities, each with a loss of about log 8 at first."""
    assert single.losses[-1] < 0.8 * single.losses[0]
    assert run.losses == pytest.approx(single.losses, rel=0.05)
    assert run.losses[0] == pytest.approx(single.losses[0], rel=0.01)
    recall, expected = run.results["val/mean_recall"], single.results["val/mean_recall"]
    assert recall == pytest.approx(expected, abs=0.1)


def test_bfloat16(folders: tuple[str, str], single: Run) -> None:
    run = fit(folders, precision="bf16-mixed")
    check_types(run, torch.bfloat16)
    check_numbers(run, single)


def test_bfloat16_in_parts_and_recomputed(folders: tuple[str, str], single: Run) -> None:
    run = fit(folders, Execution(micro_batch=3, checkpointing=1.0), precision="bf16-mixed")
    check_types(run, torch.bfloat16)
    check_numbers(run, single)


def test_float16_with_a_scaler(folders: tuple[str, str], single: Run) -> None:
    # Asked by name, Lightning takes bfloat16 on a CPU; this is what it builds for a GPU.
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    run = fit(folders, plugins=[plugin], gradient_clip_val=1e4)
    assert plugin.state_dict()["_growth_tracker"] == STEPS, "a step was left out"
    check_types(run, torch.float16)
    check_numbers(run, single)


def test_float32_stays_float32(single: Run) -> None:
    assert set().union(*single.types.values()) == {torch.float32}
