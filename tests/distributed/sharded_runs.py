"""Real fits of small tasks under any strategy: in this process alone, or in both ranks of the pool."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmlab import collectives
from mmlab.adaptation.method import Method
from mmlab.adaptation.policy import MethodName, Policy
from mmlab.balance.balance import Balance
from mmlab.batch import Batch
from mmlab.callbacks.gradient_norms import GradientNorms
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.signal import SignalReader
from mmlab.data.text import TextReader
from mmlab.models.caption_decoder import CaptionDecoder
from mmlab.models.decoding import Decoding
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.product import ProductFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.models.pretraining_model import PretrainingModel
from mmlab.objectives.contrastive import InfoNCE
from mmlab.objectives.masked import MaskedTokens
from mmlab.objectives.matching import Matching
from mmlab.objectives.sequence import TokenCrossEntropy
from mmlab.optim import Optimization
from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.parallel.execution import Execution
from mmlab.parallel.strategies import DistributedDataParallel, FullySharded
from mmlab.sources.generated import Generated
from mmlab.tasks.answer_list import AnswerListTask
from mmlab.tasks.base import BaseTask
from mmlab.tasks.pretraining import PretrainingTask
from mmlab.tasks.question_answering import QuestionAnsweringTask
from mmlab.tasks.retrieval import RetrievalTask

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ddp": DistributedDataParallel,
    "fsdp2": FullySharded,
    "hsdp": partial(FullySharded, replicas=2),
    "three replicas": partial(FullySharded, replicas=3),
    "fsdp2 one file": partial(FullySharded, save_distributed_checkpoint=False),
}
SGD = Optimization(partial(torch.optim.SGD, lr=0.02, momentum=0.5))
PLAIN = Execution()
ADAMW = Optimization(partial(torch.optim.AdamW, lr=1e-3))


def retrieval(
    towers: MethodName | dict[str, MethodName | Method] = "full",
    *,
    optimization: Optimization = SGD,
    seed: int = 0,
    dim: int = 16,
) -> RetrievalTask:
    """Pictures and movements; both towers have blocks.

    Both are smooth: rounding may push an input of a ReLU over its kink, and from there runs drift apart.
    """
    torch.manual_seed(seed)
    return RetrievalTask(
        DualEncoder(
            image=Tower(ImageEncoder("test_vit", pretrained=False, image_size=32), dim=dim),
            signal=Tower(SignalEncoder(3, dim=16, num_layers=2), dim=dim),
        ),
        objective=InfoNCE(0.3),
        optimization=optimization,
        adaptation=Policy(towers),
    )


def classifying(
    towers: MethodName | dict[str, MethodName | Method] = "full", *, balance: Balance | None = None
) -> AnswerListTask:
    """What shape do pictures and movements show? Stars are not in the list."""
    torch.manual_seed(0)
    return AnswerListTask(
        FusionClassifier(
            image=FusionTower(ImageEncoder("test_vit", pretrained=False, image_size=32)),
            signal=FusionTower(SignalEncoder(3, dim=16, num_layers=2)),
            fusion=ProductFusion({"image": 64, "signal": 16}, dim=24),
            head=ClassificationHead(24, classes=4, hidden=16),
        ),
        answers=["triangle", "square", "pentagon", "circle"],
        optimization=SGD,
        adaptation=Policy(towers),
        balance=balance,
    )


def make_data(batch_size: int) -> ShardData:
    """Samples that lack pictures and movements here and there."""
    return ShardData(
        batch_size=batch_size,
        source=Generated(train=256, val=50, test=24, missing={"image": 0.7, "signal": 0.3}),
        image=ImageReader(32, crop_scale=(0.5, 1.0), flip=0.5),
        signal=SignalReader(channels=3),
        loading=Loading(group_by="json.caption", eval_batch_size=8, references=("json.shape",)),
    )


def answering(towers: dict[str, MethodName | Method] | None = None) -> QuestionAnsweringTask:
    """A language model that names what is on pictures; its folder lies in the cache."""
    torch.manual_seed(0)
    return QuestionAnsweringTask(
        MultimodalLM(
            LanguageModel(str(Path(os.environ["MMLAB_CACHE"]) / "language")),
            image=MediaTower(ImageEncoder("test_vit", pretrained=False, image_size=32), dim=32),
        ),
        optimization=SGD,
        adaptation=Policy({"*": "full"} if towers is None else towers),
        decoding=Decoding(max_new_tokens=4),
    )


def pictures(batch_size: int) -> ShardData:
    """Questions about pictures; where the picture is missing, so is the sample."""
    prompts = [Prompt("<image>What is it?", "{json.caption}")]
    language = str(Path(os.environ["MMLAB_CACHE"]) / "language")
    return ShardData(
        batch_size=batch_size,
        source=Generated(train=256, val=50, test=24, missing={"image": 0.3, "signal": 0.3}),
        image=ImageReader(32, crop_scale=(0.5, 1.0)),
        text=PromptReader(language, prompts=prompts),
        loading=Loading(group_by="key", eval_batch_size=8, references=("json.caption",)),
    )


def pretraining(*, matching: bool = False) -> PretrainingTask:
    """Pictures and their captions; the text encoder lies in the cache."""
    torch.manual_seed(0)
    text = TextEncoder(str(Path(os.environ["MMLAB_CACHE"]) / "text"), dropout=0.0)
    return PretrainingTask(
        PretrainingModel(
            Tower(text, dim=16),
            image=Tower(ImageEncoder("test_vit", pretrained=False, image_size=32), dim=16),
            fusion=TransformerFusion({"image": 64, "text": 32}, dim=16, num_heads=2),
            masked=True,
            matching=matching,
            decoder=CaptionDecoder(16, words=32, sees=64, num_heads=2),
        ),
        contrastive=InfoNCE(0.3),
        masked=MaskedTokens(0.3),
        matching=Matching() if matching else None,
        captioning=TokenCrossEntropy(),
        optimization=SGD,
        adaptation=Policy("full"),
    )


def captions(batch_size: int) -> ShardData:
    """Captions, of which some have no picture."""
    return ShardData(
        batch_size=batch_size,
        source=Generated(train=256, val=50, test=24, missing={"image": 0.3, "signal": 0.3}),
        image=ImageReader(32, crop_scale=(0.5, 1.0)),
        text=TextReader(str(Path(os.environ["MMLAB_CACHE"]) / "text"), fields=["json.caption"]),
        loading=Loading(group_by="json.caption", eval_batch_size=8, references=("json.shape",)),
    )


class Fit(NamedTuple):
    """One training run."""

    task: Callable[[], BaseTask] = retrieval
    strategy: str = "single"
    steps: int = 50
    batch: int = 16
    accumulate: int = 1
    clip: float | None = 1.0
    execution: Execution = PLAIN
    precision: Any = "32-true"
    stage: str = "fit"
    save: Path | None = None
    """Where to save a checkpoint after `save_at` steps."""
    save_at: int = 0
    load: Path | None = None
    data: Callable[[int], ShardData] = make_data
    validate_every: int | None = None
    """Batches between validations; None: there is one at the end."""


class Record(NamedTuple):
    """What a rank has seen."""

    losses: list[float]
    weights: dict[str, Tensor]
    """At the end, whole."""
    results: dict[str, float]
    sharded: int
    """Trained parameters of which this rank holds a shard only, in the last step, or after a test."""
    norms: list[float]
    """Of all gradients, before clipping, by step."""
    static_graph: bool
    """Whether DDP takes the graph as the same in each step."""
    batches: list[Batch]
    """What it was trained on; kept in one process only."""
    logged: dict[str, float]
    """What was logged last."""


class Recorder(Callback):
    """Keeps losses and norms, and saves where it is to."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.static_graph = False
        self.sharded = 0
        self.batches: list[Batch] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        self.static_graph = getattr(trainer.strategy.model, "static_graph", False)
        self.sharded = sharded(pl_module)
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        self.norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        if trainer.world_size == 1:
            self.batches.append(batch)
        if self.fit.save is not None and trainer.global_step == self.fit.save_at:
            trainer.save_checkpoint(self.fit.save)


def run(cache: Path, root: Path, fit: Fit) -> Record:
    """Train, as one of the ranks that there are."""
    before = dict(os.environ)
    os.environ["MMLAB_CACHE"] = str(cache)
    settings: dict[str, Any] = {"strategy": "auto", "plugins": [CheckpointFiles()]}
    ranks = collectives.world_size()
    if ranks > 1:
        # This process is one of those ranks already: Lightning must start none.
        os.environ |= {"LOCAL_RANK": str(collectives.rank()), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
        settings = {"strategy": STRATEGIES[fit.strategy](), "plugins": [LightningEnvironment()]}
    recorder = Recorder(fit)
    try:
        trainer = L.Trainer(
            accelerator="cpu", devices=ranks, max_steps=fit.steps, accumulate_grad_batches=fit.accumulate,
            gradient_clip_val=fit.clip, precision=fit.precision, logger=False, check_val_every_n_epoch=None,
            val_check_interval=fit.validate_every or fit.steps * fit.accumulate, enable_checkpointing=False,
            num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=root, log_every_n_steps=fit.steps, callbacks=[recorder, GradientNorms()],
            **settings,
        )  # fmt: skip
        task = fit.task()
        task.execution = fit.execution
        data = fit.data(fit.batch)
        if fit.stage == "test":
            trainer.test(task, data, ckpt_path=fit.load, verbose=False, weights_only=True)
        else:
            trainer.fit(task, data, ckpt_path=fit.load, weights_only=True)
        return Record(
            recorder.losses, whole_weights(task), task.results,
            sharded(task) if fit.stage == "test" else recorder.sharded, recorder.norms,
            recorder.static_graph, recorder.batches,
            {name: float(value) for name, value in trainer.callback_metrics.items()},
        )  # fmt: skip
    finally:
        os.environ.clear()
        os.environ.update(before)


def sharded(task: L.LightningModule) -> int:
    """Trained parameters of which this rank holds a shard only, as they are now."""
    return sum(isinstance(p, DTensor) for p in task.parameters() if p.requires_grad)


def whole_weights(task: BaseTask) -> dict[str, Tensor]:
    """The state of a task, gathered; every rank must call this."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        for name, value in task.state_dict().items()
    }
