"""What becomes of a hostile tar, watched: what is opened, written and unpickled, how long it takes.

As a program it runs thousands, without the checks of types at run time that tests have, in bounded memory:
`hostile_runs.py FOLDER fuzz SEED COUNT` and `hostile_runs.py FOLDER large`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from hostile import good, mutations
from hostile_members import large

from mmlab.batch import Batch
from mmlab.data.audio import AudioReader
from mmlab.data.check import check_shards
from mmlab.data.image import ImageReader
from mmlab.data.order import EvaluationOrder
from mmlab.data.reader import Reader
from mmlab.data.shards import ShardSet
from mmlab.data.signal import SignalReader
from mmlab.data.stream import Stream
from mmlab.data.text import TextReader

MEMORY = 2**30
"""Above what the program takes itself, for one sample of large members."""
SECONDS = 5.0
"""For one tar, on a slow machine; most take milliseconds."""
REASON = re.compile(r"(shard|image|text|audio|signal|group): [a-zA-Z0-9 \[\],-]+")
"""Reasons are counted, so they hold nothing that differs from sample to sample."""


class Watch:
    """Knows of every file that is opened, and of everything that is unpickled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.active = False
        self.complaints: list[str] = []
        for name in ("shards", "cache", "elsewhere"):
            (root / name).mkdir()
        (root / "secret").write_text("nobody reads this")
        sys.addaudithook(self._hear)  # for ever: Python takes none away

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in _EVENTS:
            return
        if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            self.complaints.append(f"{event} {arguments}")
            return
        path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes) else ""
        writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        inside = path.startswith((f"{self.root}/shards", f"{self.root}/cache"))
        if path and ((writes and not inside) or "secret" in path or path == "/etc/passwd"):
            self.complaints.append(f"{event} {path}")


_EVENTS = {
    "open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate",
    "shutil.copyfile", "shutil.move", "shutil.rmtree", "pickle.find_class", "os.system", "subprocess.Popen",
    "os.exec", "os.posix_spawn",
}  # fmt: skip


def make_readers(folder: Path) -> tuple[Reader, ...]:
    """One for each modality, with a real tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(("[PAD]", "[UNK]", "a", "dog"))}, "[UNK]")
    )
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    text = TextReader(str(folder), fields=("txt", "json.caption", "json.captions"), max_length=8)
    text.prepare()
    return (
        ImageReader(16, flip=0.5, colour_jitter=0.4),
        text,
        AudioReader(max_seconds=0.2),
        SignalReader(channels=3),
    )


class TooSlow(BaseException):
    """Not an Exception: nothing may catch it on the way."""


def _late(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"still busy in {frame}")


def read_all(shards: ShardSet, readers: tuple[Reader, ...], seed: int | None) -> Batch | None:
    """All samples of a set, as one batch; checks what must hold of every batch."""
    count = int(shards.counts.sum())
    if count == 0:
        return None
    order = EvaluationOrder(shards.counts, batch_size=count)
    batch = Stream(shards, order, readers, seed=seed, group_by="json.captions").batch(0)
    assert len(batch) == count
    assert [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if not valid] == [
        skip.key for skip in batch.skips
    ]
    assert all(REASON.fullmatch(skip.reason) for skip in batch.skips), batch.skips
    for modality, inputs in batch.inputs():
        assert torch.isfinite(inputs.data.float()).all(), modality
        assert not inputs.present[~batch.valid].any()
    assert batch.audio is not None
    assert batch.audio.data.abs().max() <= 1
    return batch


def through(
    watch: Watch,
    tar: bytes,
    readers: tuple[Reader, ...],
    *,
    seed: int | None = None,
    seconds: float = SECONDS,
) -> Batch | str | None:
    """What becomes of a tar: its samples, none, or what is said when it is opened."""
    path = watch.root / "shards" / "x.tar"
    path.with_name("x.tar.idx").unlink(missing_ok=True)
    path.write_bytes(tar)
    previous = signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    began = time.process_time()
    watch.active = True
    try:
        (found,) = check_shards([path], fresh=True)
        assert found.samples >= 0
        try:
            shards = ShardSet([path])
        except ValueError as error:
            assert "x.tar" in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            return str(error)
        return read_all(shards, readers, seed)
    finally:
        watch.active = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        # Where the time is spent outside Python, the alarm comes too late.
        assert time.process_time() - began < seconds


def refuse(*arguments: Any, **named: Any) -> None:
    """Stands in for everything that unpickles."""
    raise AssertionError("a pickle is read")


def fuzz(watch: Watch, readers: tuple[Reader, ...], seed: int, count: int) -> dict[str, int]:
    """How often each outcome was had by random mutations."""
    outcomes: Counter[str] = Counter()
    for number, mutation in enumerate(mutations(seed, count)):
        try:
            result = through(watch, mutation.tar, readers, seed=number if number % 2 else None)
        except BaseException as error:
            error.add_note(f"mutation: {mutation.name}")
            raise
        if isinstance(result, Batch):
            outcomes.update(skip.reason for skip in result.skips)
            outcomes["read"] += int(result.valid.sum())
        else:
            outcomes["refused" if isinstance(result, str) else "empty"] += 1
    return dict(outcomes)


def run_large(watch: Watch, readers: tuple[Reader, ...]) -> dict[str, list[str]]:
    """What is said of each large member, where that is not what should be."""
    wrong: dict[str, list[str]] = {}
    members = large()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    for name, (member, data, reason) in members.items():
        try:
            batch = through(watch, good(member.encode(), data), readers, seconds=60.0)
        except BaseException as error:
            error.add_note(f"member: {name}")
            raise
        said = [skip.reason for skip in batch.skips] if isinstance(batch, Batch) else [str(batch)]
        if said != ([reason] if reason else []):
            wrong[name] = said
    return wrong


def main() -> None:
    folder, task, *numbers = sys.argv[1:]
    watch = Watch(Path(folder).resolve())
    readers = make_readers(Path(folder) / "tokenizer")
    os.environ["MMLAB_CACHE"] = str(watch.root / "cache")
    os.chdir(watch.root / "elsewhere")
    pickle.load = pickle.loads = pickle.Unpickler = np.load = refuse  # type: ignore[assignment,misc]
    result = run_large(watch, readers) if task == "large" else fuzz(watch, readers, *map(int, numbers))
    print(json.dumps([result, watch.complaints]))


if __name__ == "__main__":
    main()
