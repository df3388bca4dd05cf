"""`mmlab data features`: what frozen encoders give, computed once and kept as shards that training reads.

As heavy as training: `commands/data.py` imports it when the command runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from mmlab.assets.cache import cache_dir
from mmlab.batch import Input, Modality
from mmlab.commands.train import Parts, build
from mmlab.data.feature_writer import FeatureWriter
from mmlab.data.features import Manifest, Tower, describe_reader
from mmlab.data.module import ShardData
from mmlab.data.parts import Split
from mmlab.data.raw_rows import RawPart, RawRows, parts
from mmlab.data.samples import SampleSet
from mmlab.data.tokens import Precision, Row, pack
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.fingerprint import fingerprint, fixed_encoders
from mmlab.tasks.base import BaseTask

SPLITS: tuple[Split, ...] = ("train", "val", "test")
_EVERY = 10.0
"""Seconds between lines of progress where standard error is no terminal."""


class Work(NamedTuple):
    """What there is to encode, with what."""

    data: ShardData
    encoders: Mapping[Modality, Encoder]
    device: torch.device
    sets: Mapping[str, SampleSet]
    """The raw samples of each split."""


def run(arguments: argparse.Namespace) -> int:
    """Make the features, or what is missing of them; returns the exit status.

    Raises:
        ValueError: If the config does not fit, or nothing in it is frozen.
    """
    words = [word for file in arguments.config for word in ("--config", file)] + arguments.words
    built = build(Parts, ["fit", *words])
    if built.beginning is not None:
        raise ValueError("features are of the encoders that the config names: leave --model.init_from out")
    work = find_work(built.model, built.datamodule, built.trainer.strategy.root_device, arguments.splits)
    used = built.datamodule.loading.features
    folder: Path = arguments.out or Path(used or cache_dir() / "features" / built.run_name)
    wanted = plan(work, precision=arguments.precision, variants=arguments.variants)
    with FeatureWriter.open(folder, wanted) as writer:
        encoded = sum(write_split(work, writer, split) for split in work.sets)
        features = writer.finish()
    sizes = ", ".join(f"{int(samples.counts.sum())} {split}" for split, samples in work.sets.items())
    size = sum(path.stat().st_size for path in folder.glob("*.tar")) / 1e6
    print(f"features of {', '.join(features.modalities)} for {sizes} samples, {size:.1f} MB: {folder}")
    print(f"encoded now: {encoded} samples" if encoded > 0 else "nothing to do: they were complete")
    option = [] if used is not None and Path(used) == folder else ["--data.loading.features", str(folder)]
    print("use them: mmlab fit " + " ".join([*words, *option]))
    return 0


def find_work(
    task: BaseTask, data: ShardData, device: torch.device, splits: Sequence[Split] | None = None
) -> Work:
    """The encoders that nothing trains, and the shards to run them over.

    Args:
        task: With the adaptation applied.
        data: Whose readers and splits are taken.
        device: Where encoders run.
        splits: None: those of :data:`SPLITS` that exist.

    Raises:
        ValueError: There is no such encoder or split.
    """
    read = {reader.modality for reader in data.readers if not reader.has_targets}
    fixed = fixed_encoders(task.model, task.adaptation.trainable)
    encoders = {m: encoder for m, encoder in fixed.items() if encoder is not None and m in read}
    if not encoders:
        raise ValueError(
            "no encoder of this config is frozen, so what they give changes with every step: freeze one "
            "(model.init_args.adaptation), or train without features; those of words that are tagged and of "
            "prompts are not kept"
        )
    data.prepare_data()
    sets: dict[str, SampleSet] = {}
    for split in SPLITS if splits is None else splits:
        samples = data.find(split)
        if samples is not None:
            sets[split] = samples
        elif splits is not None:
            raise ValueError(f"no {split} shards: leave {split} out of --splits, or set data.splits.{split}")
    if not sets:
        raise ValueError("no shards: set data.splits, or a source that has them")
    return Work(data, encoders, device, sets)


def plan(work: Work, *, precision: Precision = "float16", variants: int = 0) -> Manifest:
    """What the features will depend on.

    Args:
        work: What there is to encode.
        precision: Of the tokens that are kept.
        variants: Augmented variants of each training sample; 0: one, as in evaluation.

    Raises:
        ValueError: `variants` is negative.
    """
    if variants < 0:
        raise ValueError(f"--variants {variants}: must be 0, as in evaluation, or a number of augmented ones")
    readers = {reader.modality: reader for reader in work.data.readers}
    towers = {
        modality: Tower(fingerprint(encoder), describe_reader(readers[modality]), encoder.dim)
        for modality, encoder in work.encoders.items()
    }
    return Manifest(precision, variants, work.data.loading.seed, towers, splits={})


def write_split(work: Work, writer: FeatureWriter, split: str) -> int:
    """Make the shards of a split that are not there; returns how many samples were encoded."""
    raw, size, workers = work.sets[split], work.data.batch_size, work.data.loading.num_workers
    dataset = RawRows(
        raw,
        [reader for reader in work.data.readers if reader.modality in work.encoders],
        rows=size,
        variants=writer.wanted.variants if split == "train" else 0,
        seed=writer.wanted.seed,
    )
    counts = {number: int(raw.counts[number]) for number in writer.pending(split, raw)}
    if not counts:
        return 0
    loader: DataLoader[RawPart] = DataLoader(
        dataset,
        batch_size=None,
        sampler=[part for number, count in counts.items() for part in parts(number, count, size)],
        num_workers=workers,
        multiprocessing_context="forkserver" if workers > 0 else None,
    )
    for encoder in work.encoders.values():
        encoder.eval().to(work.device)
    broken: Counter[str] = Counter()
    with _progress(split, total=sum(counts.values())) as advance:
        read = iter(loader)
        for number, count in counts.items():
            mine = islice(read, -(-count // size))
            samples = _samples(mine, work, writer.wanted.precision, broken)
            writer.write(split, number, _counted(samples, advance), count=count)
    for reason, count in broken.most_common():
        print(f"{split}: {count} rows cannot be read, {reason}", file=sys.stderr)
    return sum(counts.values())


def _samples(
    read: Iterable[RawPart], work: Work, precision: Precision, broken: Counter[str]
) -> Iterator[dict[str, object]]:
    """Encode parts of a shard and give their samples as they are written."""
    for part in read:
        encoded = {m: _encode(work.encoders[m], pieces, work, precision) for m, pieces in part.inputs.items()}
        lengths = {modality: iter(counts) for modality, (counts, _) in encoded.items()}
        used = dict.fromkeys(encoded, 0)
        for key, variants in zip(part.keys, part.variants, strict=True):
            tokens: dict[Modality, np.ndarray] = {}
            filled: dict[Modality, list[list[Row]]] = {}
            for modality, rows in variants.items():
                filled[modality] = [_fill(variant, lengths[modality]) for variant in rows]
                count = sum(r for v in filled[modality] for r in v if not isinstance(r, str))
                start = used[modality]
                used[modality] += count
                tokens[modality] = encoded[modality][1][start : start + count]
                broken.update(f"{modality}: {r}" for v in rows for r in v if isinstance(r, str))
            yield {"__key__": key, **pack(filled, tokens)}


def _fill(rows: Iterable[Row], lengths: Iterator[int]) -> list[Row]:
    """Put the number of its tokens in the place of each row that was encoded."""
    return [row if isinstance(row, str) else next(lengths) for row in rows]


def _encode(
    encoder: Encoder, pieces: Sequence[Input], work: Work, precision: Precision
) -> tuple[list[int], Shaped[np.ndarray, "tokens dim"]]:
    """Tokens of rows, one after the other without padding, and how many each row has.

    Raises:
        ValueError: They are not finite, or too large for the precision.
    """
    lengths: list[int] = []
    found = [np.empty((0, encoder.dim), dtype=precision)]
    for piece in pieces:
        with torch.inference_mode():
            tokens, mask = encoder(piece.to(work.device))
            kept = tokens[mask].to(getattr(torch, precision))
            if not kept.isfinite().all():
                raise ValueError(
                    f"{type(encoder).__name__} gives values up to {tokens[mask].abs().max().item():g}, which "
                    f"{precision} does not hold: --precision float32"
                )
            lengths += mask.sum(dim=1).tolist()
            found.append(kept.cpu().numpy())
    return lengths, np.concatenate(found)


def _counted(
    samples: Iterable[dict[str, object]], advance: Callable[[], None]
) -> Iterator[dict[str, object]]:
    for sample in samples:
        yield sample
        advance()


@contextmanager
def _progress(split: str, *, total: int) -> Iterator[Callable[[], None]]:
    """Show how many samples are encoded, and how fast; yields what to call after each."""
    started, shown, done = time.monotonic(), time.monotonic(), 0
    speed = TextColumn("{task.fields[speed]:.0f} samples/s")
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not terminal) as bar:
        task = bar.add_task(split, total=total, speed=0.0)

        def advance() -> None:
            nonlocal shown, done
            done += 1
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            bar.update(task, completed=done, speed=rate)
            if not terminal and (now - shown > _EVERY or done == total):
                shown = now
                line = f"{split}: {done} of {total} samples, {rate:.0f} samples/s"
                print(line, file=sys.stderr, flush=True)

        yield advance
