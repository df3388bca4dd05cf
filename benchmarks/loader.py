"""Photographs and captions from tars to training batches: samples a second of one worker.

mmlab stands beside open_clip 3.3.0's training pipeline on the same tars, and beside decoding alone:
simplejpeg, at a fraction of the stored size where that is enough, and a bicubic, antialiased resize of such
crops to 224 x 224, from bytes in memory. Each runs in a process that lives through all repetitions, which
take turns; each repetition starts a worker anew and leaves its first batches out. open_clip reads a thousand
samples before its first batch, which is thus left out too. Ratios are those of the medians in wall time; on
a busy machine look at the worker's processor time instead.

Pixels are compared with Pillow's: convert, crop, resize (bicubic), for the boxes that mmlab draws.

open_clip needs an older webdataset than mmlab. Without --peer its environment is made in mmlab's cache
folder, on top of this one. By hand:

    python -m venv PEER
    PEER/bin/pip install open-clip-torch==3.3.0 webdataset==0.2.86 pandas
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

from mmlab.assets.cache import cache_dir
from mmlab.data.decode import decode_image, read_image_header
from mmlab.data.image import ImageReader, random_box
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.reader import Reader
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.stream import Stream
from mmlab.data.text import TextReader

SIZE, SCALE = 224, (0.9, 1.0)
SAMPLES, SHARD, BATCH, WARM = 2000, 250, 64, 2
PACKAGES = ("open-clip-torch==3.3.0", "webdataset==0.2.86", "pandas")
BARS = {"open_clip": 2.5, "decoding": 0.9}


def samples_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The training photographs of a folder in COCO's layout, repeated, with one of their captions in turn."""
    pictures = sorted((folder / "train2017").glob("*.jpg"))
    captions: dict[int, list[str]] = {}
    for path in (folder / "annotations").glob("captions_train*.json"):
        for note in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
            captions.setdefault(note["image_id"], []).append(note["caption"])
    if not pictures or not captions:
        sys.exit(f"{folder}: needs train2017/*.jpg and annotations/captions_train2017.json")
    for number in range(SAMPLES):
        turn, which = divmod(number, len(pictures))
        texts = captions[int(pictures[which].stem)]
        text = texts[turn % len(texts)]
        yield {"__key__": f"{number:06d}", "jpg": pictures[which].read_bytes(), "txt": text}


def reader() -> ImageReader:
    return ImageReader(SIZE, crop_scale=SCALE)


class Seconds(NamedTuple):
    """What some batches took."""

    wall: float
    cpu: float
    """Of the worker."""


def worker_seconds() -> float:
    """Processor time of the worker."""
    (worker,) = multiprocessing.active_children()
    fields = Path(f"/proc/{worker.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(shards: ShardSet, readers: list[Reader], batches: int) -> Seconds:
    """Time batches of mmlab's loader with one worker."""
    order = TrainingOrder(shards.counts, batch_size=BATCH, seed=0)
    loader = Loader(Stream(shards, order, readers, seed=0), steps=order.steps + WARM, num_workers=1)
    batch = iter(loader)
    for _ in range(WARM):
        next(batch)
    start, began = time.perf_counter(), worker_seconds()
    for _ in range(batches):
        images = next(batch).image
    assert images is not None
    assert images.data.shape == (BATCH, 3, SIZE, SIZE)
    found = Seconds(time.perf_counter() - start, worker_seconds() - began)
    loader.close()
    return found


def least_factor(high: int, wide: int) -> float:
    """As mmlab: decoding half is enough where the crop has all but 5 % of the pixels that it needs."""
    wanted = max(SIZE / high, SIZE / wide)
    return 0.5 if 0.5 < wanted <= 0.5 / 0.95 else min(1.0, wanted)


def decode(pictures: list[bytes], count: int) -> Seconds:
    """Time decoding and resizing random crops, drawn before, and nothing else."""
    headers = [simplejpeg.decode_jpeg_header(data) for data in pictures]
    boxes = [random_box(h[0], h[1], SCALE, random.Random(seed)) for seed, h in enumerate(headers)]
    start, began = time.perf_counter(), time.process_time()
    for number in range(count):
        which = number % len(pictures)
        (top, left, high, wide), (height, width, *_) = boxes[which], headers[which]
        least = least_factor(high, wide)
        pixels = simplejpeg.decode_jpeg(
            pictures[which],
            min_height=math.ceil(height * least),
            min_width=math.ceil(width * least),
            min_factor=2,
        )
        part = len(pixels) / height
        rows = slice(round(top * part), round((top + high) * part))
        columns = slice(round(left * part), round((left + wide) * part))
        # The layout that torch resizes fastest.
        image = torch.from_numpy(np.ascontiguousarray(pixels[rows, columns]))[None].permute(0, 3, 1, 2)
        F.interpolate(image, (SIZE, SIZE), mode="bicubic", antialias=True)
    return Seconds(time.perf_counter() - start, time.process_time() - began)


def serve(name: str, tars: list[Path]) -> None:
    """Answer each line `WARM BATCHES` with a line of JSON, as open_clip_pipeline.py does."""
    torch.set_num_threads(1)
    shards = ShardSet(tars)
    readers: list[Reader] = [reader(), TextReader("minilm-l6", max_length=77)]
    pictures: list[bytes] = []
    if name == "mmlab":
        readers[1].prepare()
    else:
        pictures = [shards.read(0, number).members["jpg"] for number in range(int(shards.counts[0]))]
    print(json.dumps({"version": ""}), flush=True)
    for line in sys.stdin:
        batches = int(line.split()[1])
        found = load(shards, readers, batches) if name == "mmlab" else decode(pictures, batches * BATCH)
        print(json.dumps(found._asdict()), flush=True)


class Contender:
    """A process that answers how long batches take."""

    def __init__(self, command: list[str]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        sys.exit(f"{' '.join(self.process.args[:2])} ended: its error stands above")  # type: ignore[index]

    def measure(self, batches: int) -> Seconds:
        """One repetition."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{WARM} {batches}\n")
        self.process.stdin.flush()
        return Seconds(**self.answer())

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def make_peer() -> Path:
    """A Python with open_clip and its webdataset, made once; the rest comes from this environment."""
    folder = cache_dir() / "benchmarks" / "open-clip-3.3.0"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making an environment for open_clip in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        # Behind the folder's own packages: the older webdataset is found first. system_site_packages would
        # add those of the interpreter that this environment was made from instead.
        (packages / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"no peer: pip cannot install {', '.join(PACKAGES)}\n{done.stderr}")
        (folder / "complete").touch()
    return python


def pixel_difference(pictures: list[bytes], *, snap: bool) -> float:
    """Mean absolute difference to Pillow, in units of 1/255.

    With `snap`, Pillow gets the box that mmlab cuts: that which was drawn, moved to whole pixels of what was
    decoded (by half a pixel of the original on average, where the JPEG is decoded at half its size).
    """
    total = 0.0
    for seed, data in enumerate(pictures):
        ours = reader().transform(data, random.Random(seed)).permute(1, 2, 0).numpy().astype(np.int64)
        with Image.open(io.BytesIO(data)) as image:
            whole = image.convert("RGB")
        top, left, high, wide = random_box(whole.height, whole.width, SCALE, random.Random(seed))
        edges = np.array([left, top, left + wide, top + high])
        if snap:
            header = read_image_header(data)
            least = least_factor(high, wide)
            factor = decode_image(data, header, least=least)[1]
            edges = np.round(edges * factor) / factor
        part = whole.crop(tuple(edges.astype(int).tolist()))
        theirs = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int64)
        total += float(np.abs(ours - theirs).mean())
    return total / len(pictures)


def compare(tars: list[Path], peer: Path, *, repetitions: int, batches: int) -> dict[str, float]:
    """Print the table; returns the median wall seconds of each."""
    here = Path(__file__)
    names = [str(path) for path in tars]
    pipeline = here.with_name("open_clip_pipeline.py")
    contenders = {
        "mmlab": Contender([sys.executable, str(here), "--serve", "mmlab", *names]),
        "open_clip": Contender([str(peer), str(pipeline), str(BATCH), str(SAMPLES), *names]),
        "decoding": Contender([sys.executable, str(here), "--serve", "decoding", *names]),
    }
    found: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender.answer()
    for _ in range(repetitions):
        for name, contender in contenders.items():
            found[name].append(contender.measure(batches))
    print(f"{'samples/s of one worker':24}{'median':>10}{'lowest':>10}{'highest':>10}{'by CPU':>10}")
    count = batches * BATCH
    medians = {}
    for name, runs in found.items():
        contenders[name].close()
        medians[name] = median(run.wall for run in runs)
        low, high = max(run.wall for run in runs), min(run.wall for run in runs)
        by_cpu = median(run.cpu for run in runs)
        rates = "".join(f"{count / seconds:10.0f}" for seconds in (medians[name], low, high, by_cpu))
        print(f"{name:24}{rates}")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train2017/*.jpg and annotations/")
    parser.add_argument("--peer", type=Path, help="Python of an environment with open_clip 3.3.0")
    parser.add_argument("--quick", action="store_true", help="fewer samples, two repetitions")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve[0], list(map(Path, arguments.serve[1:])))
        return
    if arguments.data is None:
        parser.error("--data: a folder with photographs and captions in COCO's released layout")
    torch.set_num_threads(1)
    peer = make_peer() if arguments.peer is None else arguments.peer
    repetitions, batches = (2, 6) if arguments.quick else (7, SAMPLES // BATCH - WARM)
    with tempfile.TemporaryDirectory() as folder:
        tars = write_shards(samples_of(arguments.data), Path(folder), "photographs", max_samples=SHARD)
        shards = ShardSet(tars)
        pictures = {shards.read(0, number).members["jpg"] for number in range(SHARD)}
        drawn, difference = (pixel_difference(sorted(pictures), snap=snap) for snap in (False, True))
        medians = compare(tars, peer, repetitions=repetitions, batches=batches)
    verdict = "ok" if difference < 2 else "short"
    print(
        f"loader_pixels ratio={difference:.2f} bar=2 {verdict} (of 255: mean absolute difference to Pillow, "
        f"on the box that was cut; {drawn:.2f} on the one drawn, before it was moved to whole decoded pixels)"
    )
    for name in ("decoding", "open_clip"):
        ratio = medians[name] / medians["mmlab"]
        verdict = "ok" if ratio >= BARS[name] else "short"
        title = "loader" if name == "open_clip" else f"loader_{name}"
        print(f"{title} ratio={ratio:.2f} bar={BARS[name]} {verdict}")


if __name__ == "__main__":
    main()
