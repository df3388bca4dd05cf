"""`mmlab fit | validate | test | predict`: Lightning's command line with mmlab's run directory."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table

from mmlab.callbacks.agreement import Agreement
from mmlab.callbacks.checkpoints import Checkpoints
from mmlab.callbacks.non_finite import NonFinite
from mmlab.callbacks.progress import ProgressLines
from mmlab.callbacks.run_record import RunRecord
from mmlab.callbacks.skipped import SkippedSamples
from mmlab.callbacks.throughput import Throughput
from mmlab.callbacks.unfreezing import Unfreezing
from mmlab.callbacks.watchdog import Watchdog
from mmlab.callbacks.whereabouts import Whereabouts
from mmlab.commands import automatic, rolled_back
from mmlab.commands.diagnosis import diagnose
from mmlab.commands.init_from import add_init_from, begin, plainly
from mmlab.commands.parser import ConfigError, Parser
from mmlab.data.module import ShardData
from mmlab.models.fingerprint import fingerprint, fixed_encoders
from mmlab.parallel.execution import Execution
from mmlab.parallel.stored import open_checkpoint
from mmlab.parallel.strategies import CheckpointFiles, DistributedDataParallel
from mmlab.runs.checkpoint import load_weights, read_weights
from mmlab.runs.directory import run_directory, write_json
from mmlab.runs.table import results_table, trained_table
from mmlab.tasks.base import BaseTask

Results = dict[str, float]


TERMINATED = 143
"""Exit status after SIGTERM, as a shell gives it: the run has not finished."""
_NOISE = (
    (".*will create .* worker processes.*", "a loader on a small machine may"),
    (".*dirpath has changed.*", "each command has a run directory of its own"),
    (".*infer the batch indices.*", "batches carry the places of their samples"),
    (".*does not have many workers.*", "on a small machine one or none is right"),
    (".*smaller than the logging interval.*", "steps are counted over all epochs, so they are logged"),
    (r"Found \d+ module\(s\) in eval mode.*", "frozen parts are, on purpose"),
    (r"(?s).*Grad strides do not match bucket view.*", "of 1 x 1 convolutions: a copy of little"),
    (".*LeafSpec.* is deprecated.*", "Lightning's own use of torch"),
    (r".*self\.log\('\w+/skipped'.*sync_dist=True.*", "it is the sum over ranks already"),
)
"""Warnings that tell the user nothing that could be acted on, and why."""
_CHATTER = ("💡 Tip", "GPU available", "TPU available", "HPU available", "Loading `train_dataloader`")


class CommandLine(LightningCLI):
    """Builds task, data and trainer from the config, inside one run directory."""

    model: BaseTask
    datamodule: ShardData

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What every run has beside task, data and trainer."""
        parser.add_argument("--name", default="run", help="Name of the run; runs of one name share a folder.")
        parser.add_argument("--runs", default="runs", help="Folder of all run directories.")
        parser.add_argument(
            "--test_untrained",
            type=bool,
            default=True,
            help="Before `fit`, measure the untrained model on the test split, to compare with.",
        )
        parser.add_argument(
            "--test_best",
            type=bool,
            default=True,
            help="After `fit`, measure the best checkpoint on the test split.",
        )
        add_init_from(parser)
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(SkippedSamples, "skipped")
        parser.add_lightning_class_args(Watchdog, "watchdog")
        parser.add_lightning_class_args(NonFinite, "non_finite")
        parser.add_class_arguments(Execution, "execution")
        parser.set_defaults(
            {
                "checkpoint.save_last": True,
                "checkpoint.filename": "epoch{epoch}-step{step}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Point checkpoints, logs and W&B at this run's directory."""
        config = self.config[self.subcommand]
        self.config_text = self._parser(self.subcommand).dump(config, skip_unset=False)
        self.directory = run_directory(Path(config.runs), config.name)
        config.trainer.default_root_dir = str(self.directory)
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(self.directory / "checkpoints")
        if config.trainer.logger is None:
            config.trainer.logger = [
                Namespace(
                    class_path="mmlab.callbacks.run_logger.RunLogger",
                    init_args=Namespace(save_dir=str(self.directory), name=config.name),
                ),
                Namespace(
                    class_path="lightning.pytorch.loggers.CSVLogger",
                    init_args=Namespace(save_dir=str(self.directory), name="logs", version=""),
                ),
            ]

    def instantiate_classes(self) -> None:
        """Build all, the model with the weights of another run where it is to begin with them."""
        self.beginning = begin(self.parser, self.config[self.subcommand])
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that measures its speed, and whose progress can be read in a log file too."""
        config = self.config_init[self.subcommand]
        self.model.execution = config.execution
        given = config.trainer.callbacks or []
        callbacks = [*(given if isinstance(given, list) else [given]), *self._callbacks()]
        trainer = super().instantiate_trainer(callbacks=[*callbacks], **kwargs)
        if config.trainer.strategy == "auto" and trainer.world_size > 1:
            strategy: Strategy = DistributedDataParallel()
            if self.subcommand == "fit":
                choice = automatic.choose(trainer, self.model, self.datamodule)
                strategy = automatic.apply(choice, self.model)
                rank_zero_info(f"strategy: {choice.reason}")
            trainer = super().instantiate_trainer(callbacks=[*callbacks], strategy=strategy, **kwargs)
        if not isinstance(trainer.strategy, ModelParallelStrategy):
            # Checkpoints of sharded runs and files of weights alone are read, too.
            trainer.strategy.checkpoint_io = CheckpointFiles()
        if trainer.world_size == 1 and isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            # Several ranks may not all have been stopped, and saving would wait for the others.
            trainer.checkpoint_callback.save_on_exception = True
        return trainer

    def _callbacks(self) -> list[Callback]:
        """What every run has; those that have nothing to do cost nothing."""
        record = RunRecord(self.directory, self.config_text)
        found: list[Callback] = [record, Whereabouts(self.directory), Throughput(self.directory)]
        found += [Unfreezing(), Agreement()]
        if not sys.stderr.isatty() and self.config[self.subcommand].trainer.enable_progress_bar is not False:
            found.append(ProgressLines())
        return found

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would let a checkpoint's settings replace it silently."""

    def before_fit(self) -> None:
        """Check what training needs, then measure the model as it is before."""
        config = self.config[self.subcommand]
        self._check_features()
        self._start_from_weights()
        self._show(f"run directory: {self.directory}")
        if self.beginning is not None:
            self._show(self.beginning.table())
        self._show(trained_table(self.model.adaptation.describe(self.model.model)))
        self.datamodule.trainer = self.trainer
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.untrained: Results = {}
        if config.test_untrained and config.ckpt_path is None and self.datamodule.has("test"):
            self.trainer.test(self.model, self.datamodule, verbose=False)
            self.untrained = self.model.results

    def _start_from_weights(self) -> None:
        """Where `--ckpt_path` holds weights alone, begin with them instead of going on."""
        config, path = self.config_init[self.subcommand], self.config[self.subcommand].ckpt_path
        if path is None or not Path(path).exists():
            return
        if "optimizer_states" not in open_checkpoint(Path(path)).rest:
            load_weights(self.model, read_weights(Path(path)))
            self._show(f"--ckpt_path {path} holds weights alone: training begins with them, at step 0")
            config.ckpt_path = None

    def before_validate(self) -> None:
        """Check what the data bring."""
        self._check_features()

    def before_test(self) -> None:
        """Check what the data bring."""
        self._check_features()

    def before_predict(self) -> None:
        """Check what the data bring."""
        self._check_features()

    def _check_features(self) -> None:
        """Raise ValueError where the data bring features of other encoders than this run has."""
        features = self.datamodule.features
        if features is None:
            return
        encoders = fixed_encoders(self.model.model, self.model.adaptation.trainable)
        features.check_encoders(
            {m: None if encoder is None else fingerprint(encoder) for m, encoder in encoders.items()}
        )
        path = self.config[self.subcommand].ckpt_path
        if path is None or not Path(path).exists():
            return
        # What the checkpoint holds replaces what was just checked.
        weights = read_weights(Path(path)).state
        for name, module in self.model.named_modules():
            used = any(module is encoders.get(modality) for modality in features.modalities)
            if used and not _holds(weights, f"{name}.", module):
                raise ValueError(
                    f"--ckpt_path {path}: its {name} is not the encoder that gave the features in "
                    f"{features.folder}: leave data.loading.features out"
                )

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        try:
            rolled_back.fit(self.trainer, kwargs | {"weights_only": True})
        except SystemExit as stop:
            if not self.trainer.interrupted:
                raise
            if isinstance(stop, SIGTERMException):
                self._show(f"stopped by SIGTERM: {self._how_to_go_on()}")
                # A rank that another process started is not the run: only the first gives its status.
                raise SystemExit(TERMINATED if self.trainer.is_global_zero else 0) from None
            raise KeyboardInterrupt(self._how_to_go_on()) from None

    def _how_to_go_on(self) -> str:
        last = Path(self.config[self.subcommand].checkpoint.dirpath) / "last.ckpt"
        return f"go on with --ckpt_path {last}" if last.exists() else "nothing was saved yet"

    def after_fit(self) -> None:
        """Measure the best checkpoint, or the last weights where no validation chose one."""
        if self.config[self.subcommand].test_best and self.datamodule.has("test"):
            callback = self.trainer.checkpoint_callback
            best = getattr(callback, "best_model_path", "")
            if best == "":
                self._show("no validation chose a best checkpoint: testing the last weights")
            self.trainer.test(
                self.model, self.datamodule, ckpt_path=best or None, verbose=False, weights_only=True
            )
            self._report(self.model.results)

    def validate(self, **kwargs: Any) -> None:
        """Measure on the validation split."""
        self.trainer.validate(**(kwargs | self._evaluation(kwargs)))
        self._report(self.model.results)

    def test(self, **kwargs: Any) -> None:
        """Measure on the test split."""
        self.trainer.test(**(kwargs | self._evaluation(kwargs)))
        self._report(self.model.results)

    def predict(self, **kwargs: Any) -> None:
        """Write what the model makes of the samples; the writer keeps them, not the trainer."""
        settings = self._evaluation(kwargs) | {"return_predictions": False}
        settings.pop("verbose")
        self.trainer.predict(**(kwargs | settings))
        self._show(f"predictions: {self.directory / 'predictions'}")

    def _evaluation(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("ckpt_path") is None:
            self._show("no --ckpt_path: this is the model as the config builds it, untrained by mmlab")
        return {"verbose": False, "weights_only": True}

    def _report(self, results: Results) -> None:
        """Keep the results in the run directory and print them."""
        untrained = getattr(self, "untrained", {})
        if self.trainer.is_global_zero:
            before = {f"untrained/{name}": value for name, value in untrained.items()}
            write_json(self.directory / "metrics.json", results | before)
        self._show(results_table(results, untrained))
        self._show(f"results: {self.directory / 'metrics.json'}")
        for offline in sorted(self.directory.glob("wandb/offline-run-*")):
            self._show(f"to Weights & Biases: wandb sync {offline}")

    def _show(self, what: Table | str) -> None:
        if self.trainer.is_global_zero:
            console = Console()
            console.print(what, soft_wrap=isinstance(what, str), highlight=False)


class Parts(CommandLine):
    """Task, data and trainer as the config builds them, for what needs no run: nothing is written."""

    run_name: str

    def before_instantiate_classes(self) -> None:
        """Leave out what would log, or need other processes."""
        config = self.config[self.subcommand]
        self.run_name = config.name
        trainer = config.trainer
        trainer.callbacks, trainer.logger = None, False
        trainer.devices, trainer.num_nodes, trainer.strategy = 1, 1, "auto"

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that knows the device."""
        self.model.execution = self.config_init[self.subcommand].execution
        return LightningCLI.instantiate_trainer(self, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


_Built = TypeVar("_Built", bound=CommandLine)


def _holds(weights: Mapping[str, torch.Tensor], prefix: str, module: torch.nn.Module) -> bool:
    """Whether a state dict holds a module's own weights, or leaves them to the pretrained ones."""
    return all(
        (kept := weights.get(prefix + name)) is None or torch.equal(kept, value.cpu().to(kept.dtype))
        for name, value in module.state_dict().items()
    )


def run(arguments: Sequence[str]) -> int:
    """Run a trainer verb; returns the exit status.

    Raises:
        ValueError: If the command line, the config or the checkpoint does not fit, in a line or two.
        KeyboardInterrupt: If it was interrupted; says how to go on.
    """
    _check_checkpoint(arguments)
    return TERMINATED if build(CommandLine, arguments).trainer.received_sigterm else 0


def build(kind: type[_Built], arguments: Sequence[str]) -> _Built:
    """Build what a trainer verb and its config say; a :class:`CommandLine` runs the verb, too.

    Raises:
        ValueError: If the command line or the config does not fit.
    """
    _quiet()
    sys.argv[1:] = arguments  # Lightning starts the other ranks with these words
    try:
        return kind(
            BaseTask,
            ShardData,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=1,
            trainer_defaults={
                "num_sanity_val_steps": 0,  # the untrained model is tested before, which shows as much
                "log_every_n_steps": 10,
                "enable_model_summary": False,  # the table of what is trained says more
            },
            parser_class=Parser,
        )
    except ConfigError as error:
        raise ValueError(diagnose(plainly(arguments[1:]), error.options, str(error))) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(f"the checkpoint is of another model than the config builds: {error}") from error
    except ValueError as error:
        raise _unwrapped(error) from None


def _check_checkpoint(arguments: Sequence[str]) -> None:
    """Raise ValueError where `--ckpt_path` names what is no checkpoint."""
    words = [part for word in arguments for part in word.split("=", 1)]
    for option, value in pairwise(words):
        if option == "--ckpt_path" and Path(value).exists():
            open_checkpoint(Path(value))


def _unwrapped(error: BaseException) -> BaseException:
    """What a constructor said, out of the parser's account of all that it tried."""
    while error.__cause__ is not None and _raised_in_parser(error):
        error = error.__cause__
    return error


def _raised_in_parser(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("jsonargparse")


def _quiet() -> None:
    """Leave out what tells the user nothing that could be acted on."""
    os.environ.setdefault("WANDB_SILENT", "true")  # the results say how to sync
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    for message, _reason in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CHATTER)
