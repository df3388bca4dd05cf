"""What the command line leaves out of what Lightning and others say."""

from __future__ import annotations

import logging
import os
import warnings

_NOISE = (
    (".*will create .* worker processes.*", "a loader on a small machine may"),
    (".*dirpath has changed.*", "each command has a run directory of its own"),
    (".*infer the batch indices.*", "batches carry the places of their samples"),
    (".*does not have many workers.*", "on a small machine one or none is right"),
    (".*smaller than the logging interval.*", "steps are counted over all epochs, so they are logged"),
    (r"Found \d+ module\(s\) in eval mode.*", "frozen parts are, on purpose"),
    (r"(?s).*Grad strides do not match bucket view.*", "of 1 x 1 convolutions: a copy of little"),
    ("The `srun` command is available.*", "a run by hand beside Slurm is no mistake"),
    (".*LeafSpec.* is deprecated.*", "Lightning's own use of torch"),
    (r".*self\.log\('\w+/skipped'.*sync_dist=True.*", "it is the sum over ranks already"),
)
"""Warnings that tell the user nothing that could be acted on, and why."""
_CHATTER = ("💡 Tip", "GPU available", "TPU available", "HPU available", "Loading `train_dataloader`")


def quiet() -> None:
    """Leave out what tells the user nothing that could be acted on."""
    os.environ.setdefault("WANDB_SILENT", "true")  # the results say how to sync
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    # A log file on a full disk would show a traceback for each line that it misses.
    logging.raiseExceptions = False
    for message, _reason in _NOISE:
        warnings.filterwarnings("ignore", message=message)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_CHATTER)
