"""`mmlab tune batch`: the largest part of a batch that fits, found by training with it.

As heavy as training: `commands/tune.py` imports it when the command runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from mmlab import __version__
from mmlab.assets.cache import cache_dir
from mmlab.commands.train import build
from mmlab.commands.trial import Unbuilt, try_apart, try_on_gpu
from mmlab.commands.worst_batches import Bucket, worst_batches
from mmlab.parallel.tuning import Trial, best, search

_GPU_SHARE, _CPU_SHARE = 0.92, 0.8
"""Of the memory that is free, where no limit is given: allocators need room to move."""
_DECIDING = ("precision", "gradient_clip_val", "deterministic")
"""Settings of the trainer that memory and time depend on."""

Record = dict[str, Any]
"""What is kept: `micro_batch`, and the `trials` of each bucket."""


def run(arguments: argparse.Namespace) -> int:
    """Find the part size, or look it up; returns the exit status.

    Raises:
        ValueError: The config does not fit, or not even one sample does.
    """
    words = [word for file in arguments.config for word in ("--config", file)] + arguments.words
    parts = build(Unbuilt, ["fit", *words])
    device = _device(parts)
    identity = _identity(parts, device, arguments.memory)
    folder = cache_dir() / "tuning"
    known = folder / f"{identity}.json"
    if known.exists() and not arguments.fresh:
        record: Record = json.loads(known.read_text(encoding="utf-8"))
        print(f"measured before on this device ({known}); --fresh measures anew")
    else:
        record = _measure(parts, words, device, arguments.memory)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = known.with_name(f".{known.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, known)
    Console().print(_table(record))
    overlay = yaml.safe_dump({"execution": {"micro_batch": _micro_batch(record)}}, sort_keys=False)
    out: Path = arguments.out or known.with_suffix(".yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        "# Overlay: parts of a batch that fit, by `mmlab tune batch`.\n" + overlay, encoding="utf-8"
    )
    print(f"{overlay}use it: mmlab fit {' '.join(words)} --config {out}")
    return 0


def _device(parts: Unbuilt) -> torch.device:
    cuda = parts.settings.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def _identity(parts: Unbuilt, device: torch.device, memory: int | None) -> str:
    """Digest of all that the result depends on, but for who else uses the machine."""
    config = yaml.safe_load(parts.parser.dump(parts.config, skip_none=False))[parts.subcommand]
    config["execution"].pop("micro_batch", None)
    deciding = {
        **{part: config[part] for part in ("model", "data", "execution")},
        "trainer": {name: config["trainer"].get(name) for name in _DECIDING},
        "ranks": parts.ranks,
        "memory": memory,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": [torch.__version__, __version__],
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]


def _measure(parts: Unbuilt, words: list[str], device: torch.device, memory: int | None) -> Record:
    """Search for each bucket.

    Raises:
        ValueError: Not even one sample fits.
    """
    limit = _limit(device) if memory is None else memory
    parts.instantiate()
    kept: Record = {"limit": limit, "buckets": []}
    for bucket in worst_batches(parts.datamodule, ranks=parts.ranks):

        def attempt(samples: int, bucket: Bucket = bucket) -> Trial | None:
            if device.type == "cuda":
                trial = try_on_gpu(parts, bucket.batch, samples, limit=limit)
            else:
                trial = try_apart(words, bucket.batch, samples, limit=limit)
            _report(bucket, samples, trial)
            return trial

        tried = search(len(bucket.batch), attempt)
        chosen = best(tried)
        if chosen is None:
            raise ValueError(
                f"not even one sample fits in {limit / 1e9:.3g} GB: set execution.checkpointing to 1, "
                "trainer.precision to bf16-mixed, adapt with lora, or share the model out (fsdp2)"
            )
        kept["buckets"].append(
            {
                "length": bucket.length,
                "samples": len(bucket.batch),
                "chosen": chosen.samples,
                "trials": [[samples, trial] for samples, trial in sorted(tried.items())],
            }
        )
    return kept


def _limit(device: torch.device) -> int:
    """Bytes that training may take where the user does not say."""
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(_CPU_SHARE * free)


def _report(bucket: Bucket, samples: int, trial: Trial | None) -> None:
    of = f"{samples} of {len(bucket.batch)} samples at once"
    rows = "" if bucket.length is None else f", rows of {bucket.length}"
    found = "does not fit" if trial is None else f"{trial.memory / 1e9:.2f} GB, {trial.speed:.0f} samples/s"
    print(f"{of}{rows}: {found}", file=sys.stderr, flush=True)


def _table(record: Record) -> Table:
    table = Table(title=f"parts that fit in {record['limit'] / 1e9:.3g} GB", title_justify="left")
    for column in ("longest row", "batch", "at once", "memory", "samples/s", ""):
        table.add_column(column, justify="right")
    for bucket in record["buckets"]:
        for samples, trial in bucket["trials"]:
            numbers = (
                ("does not fit", "") if trial is None else (f"{trial[1] / 1e9:.2f} GB", f"{trial[2]:.0f}")
            )
            length = "" if bucket["length"] is None else str(bucket["length"])
            chosen = "chosen" if samples == bucket["chosen"] else ""
            table.add_row(length, str(bucket["samples"]), str(samples), *numbers, chosen)
    return table


def _micro_batch(record: Record) -> int | dict[int, int] | None:
    """As :attr:`mmlab.parallel.execution.Execution.micro_batch`; None where every batch fits whole."""
    buckets = record["buckets"]
    if all(bucket["chosen"] >= bucket["samples"] for bucket in buckets):
        return None
    if len(buckets) == 1:
        return int(buckets[0]["chosen"])
    found: dict[int, int] = {}
    for bucket in buckets:  # buckets may share the length of another modality
        found[bucket["length"]] = min(bucket["chosen"], found.get(bucket["length"], bucket["chosen"]))
    return dict(sorted(found.items()))
