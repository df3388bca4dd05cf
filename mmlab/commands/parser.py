"""The parser of configs and of the words behind a trainer verb: raises where others print usage and exit."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser


class ConfigError(ValueError):
    """A command line or config file that the parser refuses."""

    def __init__(self, message: str, options: list[str]) -> None:
        super().__init__(message)
        self.options = options
        """Dotted keys that the refusing parser knows."""


class Parser(LightningArgumentParser):
    """Raises what is wrong instead of printing pages of usage."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        _keep_whole_numbers()
        # A shortened key would be taken for the one that it begins.
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Hand the complaint to :func:`run`, which words it."""
        raise ConfigError(message, sorted(_options(self))) from ex


def _keep_whole_numbers() -> None:
    """Let a limit of 1 batch be 1.

    Python gives out `Union[float, int]` for Lightning's `Union[int, float]` where it has made the one before,
    and 1 is then read as 1.0, which is all batches. This form keeps its order.
    """
    for split in ("train", "val", "test", "predict"):
        Trainer.__init__.__annotations__[f"limit_{split}_batches"] = int | float | None


def _options(parser: ArgumentParser) -> set[str]:
    """Dotted keys of a parser and of its subcommands."""
    found: set[str] = set()
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                found |= _options(subparser)
        else:
            found.add(action.dest)
    return found - {"help", "print_config", "print_shtab", "subcommand"}
