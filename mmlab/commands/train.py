"""`mmlab fit | validate | test | predict`: Lightning's command line with mmlab's run directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI

from mmlab.commands.command_line import CommandLine
from mmlab.commands.diagnosis import diagnose
from mmlab.commands.init_from import plainly
from mmlab.commands.named_checkpoint import with_whole_checkpoint
from mmlab.commands.parser import ConfigError, Parser
from mmlab.commands.quiet import quiet
from mmlab.data.module import ShardData
from mmlab.launch.notice import Notice
from mmlab.tasks.base import BaseTask


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


def run(arguments: Sequence[str], notice: Notice | None = None) -> int:
    """Run a trainer verb; returns the exit status.

    Args:
        arguments: The verb and what follows it.
        notice: Of signals that came since the program began.

    Raises:
        ValueError: If the command line, the config or the checkpoint does not fit, in a line or two.
        KeyboardInterrupt: If it was interrupted; says how to go on.
    """
    arguments = with_whole_checkpoint(arguments)
    CommandLine.notice = notice
    build(CommandLine, arguments)
    return 0


def build(kind: type[_Built], arguments: Sequence[str]) -> _Built:
    """Build what a trainer verb and its config say; a :class:`CommandLine` runs the verb, too.

    Raises:
        ValueError: If the command line or the config does not fit.
    """
    quiet()
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
    except MisconfigurationException as error:
        said = " ".join(str(error).split())
        remedy = ": set trainer.accelerator to cpu, or auto" if "backend found" in said else ""
        raise ValueError(said.rstrip("!") + remedy) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(f"the checkpoint is of another model than the config builds: {error}") from error
    except ValueError as error:
        raise _unwrapped(error) from None


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
