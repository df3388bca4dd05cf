"""Lightning's command line with mmlab's run directory: what a config and its verb come to."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table

from mmlab.callbacks.checkpoints import Checkpoints, files_of
from mmlab.callbacks.non_finite import NonFinite
from mmlab.callbacks.preemption import Preemption
from mmlab.callbacks.progress import ProgressLines
from mmlab.callbacks.run_record import RunRecord
from mmlab.callbacks.skipped import SkippedSamples
from mmlab.callbacks.spared import spared
from mmlab.callbacks.standing import Standing
from mmlab.callbacks.throughput import Throughput
from mmlab.callbacks.unfreezing import Unfreezing
from mmlab.callbacks.watchdog import Watchdog
from mmlab.callbacks.whereabouts import Whereabouts
from mmlab.commands import automatic, rolled_back
from mmlab.commands.check_features import check_features
from mmlab.commands.init_from import add_init_from, begin
from mmlab.commands.resume import (
    Resume,
    Start,
    continue_logs,
    default_resume,
    find_run,
    find_start,
    read_start,
)
from mmlab.data.module import ShardData
from mmlab.data.plan import keep_lanes
from mmlab.launch.notice import Notice
from mmlab.launch.own_job import OwnJob
from mmlab.parallel.checkpoint_files import CheckpointFiles
from mmlab.parallel.execution import Execution
from mmlab.parallel.srun import launcher, tasks
from mmlab.parallel.stored import open_checkpoint
from mmlab.parallel.strategies import DistributedDataParallel
from mmlab.runs.checkpoint import load_weights, read_weights
from mmlab.runs.directory import write_json
from mmlab.runs.failure import RunFailedError
from mmlab.runs.status import read_status
from mmlab.runs.table import results_table, trained_table
from mmlab.tasks.base import BaseTask

Results = dict[str, float]


TERMINATED = 143
"""Exit status after SIGTERM, as a shell gives it: the run has not finished."""


class CommandLine(LightningCLI):
    """Builds task, data and trainer from the config, inside one run directory."""

    model: BaseTask
    datamodule: ShardData
    notice: Notice | None = None
    """Of signals, where the program has listened since it began."""
    _unwritten: str | None = None
    """Why the results could not be kept."""
    measured = "trained"
    """What the table of results calls the model."""

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
        parser.add_argument(
            "--resume",
            type=Resume | None,
            default=None,
            help="auto: go on from the newest good checkpoint of this run, if it has one: under Slurm of the "
            "same job, else of the newest of this name that has not come to its end. never: begin anew. "
            "Default: auto under Slurm where the run has an id (mmlab submit, slurm/train.sbatch, srun with "
            "several tasks), else never.",
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
        self.resume: Resume = default_resume() if config.resume is None else config.resume
        if self.resume == "auto" and config.checkpoint.save_weights_only:
            raise ValueError(
                "checkpoint.save_weights_only=true: a run cannot go on from weights alone: set it to false, "
                "or --resume never"
            )
        self.directory = find_run(Path(config.runs), config.name, self.resume)
        if (spread := tasks()) is not None and (config.trainer.num_nodes, config.trainer.devices) == (
            1,
            "auto",
        ):
            config.trainer.num_nodes, config.trainer.devices = spread
        config.trainer.default_root_dir = str(self.directory)
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(self.directory / "checkpoints")
        if config.trainer.logger is None:
            config.trainer.logger = [
                Namespace(
                    class_path="mmlab.callbacks.run_logger.RunLogger",
                    init_args=Namespace(
                        save_dir=str(self.directory), name=config.name, live=self.resume == "never"
                    ),
                ),
                Namespace(
                    class_path="mmlab.callbacks.history.History",
                    init_args=Namespace(save_dir=str(self.directory / "logs")),
                ),
            ]

    def instantiate_classes(self) -> None:
        """Build all, the model with the weights of another run where it is to begin with them."""
        try:
            self.beginning = begin(self.parser, self.config[self.subcommand])
        except ValueError:
            # The run that it began with may be gone; one that has a checkpoint goes on without.
            if self.resume == "never" or find_start(self.directory) is None:
                raise
            self.beginning = None
        super().instantiate_classes()
        if self.beginning is not None:
            self.beginning.fill_beside(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that measures its speed, and whose progress can be read in a log file too."""
        config = self.config_init[self.subcommand]
        self.model.execution = config.execution
        given = config.trainer.callbacks or []
        callbacks = [*(given if isinstance(given, list) else [given]), *self._callbacks()]
        if (environment := launcher()) is not None:
            kwargs["plugins"] = [*(config.trainer.plugins or []), environment]
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
        job = OwnJob.find()
        self.preemption, self.standing = Preemption(self.notice), Standing(self.directory, job)
        found: list[Callback] = [record, Whereabouts(self.directory), Throughput(self.directory)]
        found += [Unfreezing(), self.preemption, self.standing]
        if not sys.stderr.isatty() and self.config[self.subcommand].trainer.enable_progress_bar is not False:
            found.append(ProgressLines())
        return found

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would let a checkpoint's settings replace it silently."""

    def before_fit(self) -> None:
        """Check what training needs, then measure the model as it is before."""
        config = self.config[self.subcommand]
        self._go_on()
        check_features(self.datamodule, self.model, config.ckpt_path)
        self._start_from_weights()
        path = self.config_init[self.subcommand].ckpt_path
        if path is not None and Path(path).exists():
            state = open_checkpoint(Path(path)).rest.get(type(self.datamodule).__qualname__, {})
            self.datamodule.loading = keep_lanes(self.datamodule.loading, state)
        self._show(f"run directory: {self.directory}")
        if self.beginning is not None:
            self._show(self.beginning.table())
        self._show(trained_table(self.model.adaptation.describe(self.model.model)))
        self.datamodule.trainer = self.trainer
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        measured = self.directory / "untrained.json"
        self.untrained: Results = {}
        if config.ckpt_path is not None and measured.exists():
            self.untrained = json.loads(measured.read_text(encoding="utf-8"))
        elif config.test_untrained and config.ckpt_path is None and self.datamodule.has("test"):
            self.trainer.test(self.model, self.datamodule, verbose=False)
            self.untrained = self.model.results
            if self.trainer.is_global_zero:
                with spared(measured):
                    write_json(measured, self.untrained)

    def _go_on(self) -> None:
        """Where this run has been begun before, go on from its newest good checkpoint."""
        config = self.config[self.subcommand]
        if self.resume == "never":
            return
        if read_status(self.directory).state == "finished":
            self._show(f"{self.directory} has come to its end before: nothing is left to do")
            raise SystemExit(0)
        start = find_start(self.directory)
        if start is None:
            if self.trainer.is_global_zero:
                continue_logs(self.trainer.loggers, Start(0))  # of an attempt that saved nothing
            return
        # Also where a checkpoint is named: that was the beginning.
        config.ckpt_path = self.config_init[self.subcommand].ckpt_path = str(start)
        stand = read_start(start)
        self._show(f"goes on from {start}, step {stand.step}")
        if self.trainer.is_global_zero:
            continue_logs(self.trainer.loggers, stand)

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
        check_features(self.datamodule, self.model, self.config[self.subcommand].ckpt_path)

    def before_test(self) -> None:
        """Check what the data bring."""
        check_features(self.datamodule, self.model, self.config[self.subcommand].ckpt_path)

    def before_predict(self) -> None:
        """Check what the data bring."""
        check_features(self.datamodule, self.model, self.config[self.subcommand].ckpt_path)

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        rolled_back.fit(self.trainer, kwargs | {"weights_only": True})

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a verb; one that is told to stop says how to go on, and has its job begun again."""
        try:
            super()._run_subcommand(subcommand)
            if self.trainer.is_global_zero:
                self._end(subcommand)
        except SIGTERMException:
            told = self.preemption.stopped
            assert told is not None
            self._show(f"stopped by {told.name}: {self._how_to_go_on()}")
            if not self.trainer.is_global_zero:
                # A rank that another process started is not the run: only the first gives its status.
                raise SystemExit(0) from None
            job = OwnJob.find()
            if job is not None and self.resume == "auto":
                self._show(self.standing.give_up() or job.requeue(f"after {told.name}"))
            raise SystemExit(TERMINATED) from None
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt(self._how_to_go_on()) from None

    def _end(self, subcommand: str) -> None:
        """Say that all is done.

        Raises:
            RunFailedError: The disk had no room for the last weights or the results.
        """
        files = files_of(self.trainer)
        unsaved = None if files is None else files.unsaved()
        missing = "; ".join(one for one in (unsaved, self._unwritten) if one is not None)
        if missing:
            if subcommand == "fit":
                self.standing.finish("failed", missing)
                missing += f"; make room, and {self._how_to_go_on()}"
            raise RunFailedError(missing)
        if subcommand == "fit":
            self.standing.finish("finished")

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
            self.measured = "no checkpoint"
        return {"verbose": False, "weights_only": True}

    def _report(self, results: Results) -> None:
        """Keep the results in the run directory and print them."""
        untrained = getattr(self, "untrained", {})
        if self.trainer.is_global_zero:
            before = {f"untrained/{name}": value for name, value in untrained.items()}
            path = self.directory / "metrics.json"
            try:
                write_json(path, results | before)
            except OSError as error:
                self._unwritten = f"{path} was not written: {error.strerror}; the results stand above"
        self._show(results_table(results, untrained, measured=self.measured))
        if self._unwritten is None:
            self._show(f"results: {self.directory / 'metrics.json'}")
        segments = sorted(map(str, self.directory.glob("wandb/offline-run-*")))
        if segments:
            self._show(f"to Weights & Biases: wandb sync {' '.join(segments)}")

    def _show(self, what: Table | str) -> None:
        if self.trainer.is_global_zero:
            console = Console()
            console.print(what, soft_wrap=isinstance(what, str), highlight=False)
