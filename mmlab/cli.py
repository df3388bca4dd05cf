"""The command line: which verb was asked for. Light, so that help and completion answer at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mmlab import __version__
from mmlab.commands import adapt, assets, data, doctor, jobs, runs, shards, submit, tune
from mmlab.commands.action import ActionParser
from mmlab.launch.beginning import failures_noted
from mmlab.launch.notice import Notice
from mmlab.runs.failure import RunFailedError

TRAINER_VERBS = {
    "fit": "train a model, then test its best checkpoint",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write what a checkpoint makes of each sample",
}
FAILED = 1
"""Exit status of a run that went wrong by itself."""
BAD_INPUT = 2
"""Exit status when the user can mend what is wrong."""
_BY_USER = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
"""What the system says of a path that is wrong."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell gives it."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything but the verbs that Lightning's command line takes over."""
    parser = argparse.ArgumentParser(
        prog="mmlab",
        description="Train multimodal models from one config file.",
        epilog="`mmlab VERB --help` explains a verb. --debug, anywhere: show the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"mmlab {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=ActionParser)
    for verb, purpose in TRAINER_VERBS.items():
        # Their arguments depend on the classes that the config names: commands/train.py parses them.
        verbs.add_parser(verb, help=purpose, add_help=False)
    for module in (assets, data, shards, adapt, tune, runs, submit, jobs, doctor):
        module.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if words and words[0] in TRAINER_VERBS:
            # Importing Lightning takes seconds: only who trains pays.
            with Notice().listening() as notice, failures_noted(_is_users):
                from mmlab.commands import train

                return train.run(words, notice)
        parsed = build_parser().parse_args(words)
        status: int = parsed.run(parsed)
        return status
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; python must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"mmlab: {error}", file=sys.stderr)
        print("(--debug shows where)", file=sys.stderr)
        return BAD_INPUT if _is_users(error) or words[0] not in TRAINER_VERBS else FAILED
    except RunFailedError as failure:
        if debug:
            raise
        print(f"mmlab: {failure}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as interrupt:
        print(f"mmlab: interrupted {interrupt}".rstrip(), file=sys.stderr)
        return INTERRUPTED


def _is_users(error: Exception) -> bool:
    """Whether the user can mend it; not a disk or a mount that fails: on another node the run may begin."""
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, _BY_USER)
    return isinstance(error, ValueError)
