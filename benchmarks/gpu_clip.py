"""CLIP of open_clip's sizes, trained by mmlab; benchmarks/gpu.py runs this file.

    python gpu_clip.py SIZE DEVICE BATCH STEPS WORKERS

Once on pixels that lie ready, once from JPEGs in tars by mmlab's loader. Each prints one line of JSON.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_training import Repeated, measure, optimization, quiet, tell
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, PreTrainedTokenizerFast

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Input
from mmlab.data.image import ImageReader
from mmlab.data.lanes import Lanes
from mmlab.data.loader import Loader
from mmlab.data.order import TrainingOrder
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.stream import Stream
from mmlab.data.text import TextReader
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.pooling import FirstTokenPooling, LastTokenPooling
from mmlab.objectives.contrastive import InfoNCE
from mmlab.parallel.execution import Execution
from mmlab.tasks.retrieval import RetrievalTask

TOKENS, VOCABULARY = 77, 49_408
PICTURES = 512
"""Different ones; the shards repeat them."""


class Size(NamedTuple):
    """Of both towers."""

    image: str
    """By timm's name."""
    side: int
    """Pixels."""
    dim: int
    """Of the shared space."""
    width: int
    """Of the text tower."""
    layers: int
    heads: int


SIZES = {
    "ViT-B-32": Size("vit_base_patch32_clip_224", 224, 512, 512, 12, 8),
    "ViT-L-14": Size("vit_large_patch14_clip_224", 224, 768, 768, 12, 12),
    "tiny": Size("test_vit", 160, 32, 64, 2, 2),
}


def build(size: Size, folder: Path) -> RetrievalTask:
    CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=size.width, intermediate_size=4 * size.width,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, max_position_embeddings=TOKENS,
        projection_dim=size.dim,
    ).save_pretrained(folder)  # fmt: skip
    image = Tower(ImageEncoder(size.image, pretrained=False), dim=size.dim, pooling=FirstTokenPooling())
    text = Tower(TextEncoder(str(folder), pretrained=False), dim=size.dim, pooling=LastTokenPooling())
    task = RetrievalTask(
        DualEncoder(image=image, text=text),
        objective=InfoNCE(),
        optimization=optimization(),
        adaptation=Policy("full"),
    )
    task.execution = Execution(compile=True)
    return task


def synthetic(size: Size, rows: int) -> Batch:
    owner, present = torch.arange(rows), torch.ones(rows, dtype=torch.bool)
    pixels = torch.randint(0, 256, (rows, 3, size.side, size.side), dtype=torch.uint8)
    ids = torch.randint(0, VOCABULARY, (rows, TOKENS))
    return Batch(
        keys=("k",) * rows,
        place=owner,
        valid=present,
        group=owner,
        image=Input(pixels, owner, present),
        text=Input(ids, owner, present, torch.full((rows,), TOKENS)),
    )


def pictures() -> list[bytes]:
    """JPEGs of clouds, 320 x 240."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PICTURES):
        clouds = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        file = io.BytesIO()
        clouds.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def samples(count: int) -> Iterator[dict[str, Any]]:
    """Pictures, each sample with a caption of its own that fills all tokens."""
    jpegs = pictures()
    for number in range(count):
        words = " ".join(f"w{(number * 7919 + place * 104_729) % 1000}" for place in range(2 * TOKENS))
        yield {
            "__key__": f"{number:06d}",
            "jpg": jpegs[number % PICTURES],
            "txt": f"w{number % 1000} {words}",
        }


def tokenizer(folder: Path) -> str:
    """A folder with a tokenizer of a thousand words: none has to be fetched."""
    words = Tokenizer(models.WordLevel({"?": 0} | {f"w{n}": n + 1 for n in range(1000)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?").save_pretrained(folder)
    return str(folder)


def loader(size: Size, rows: int, *, steps: int, workers: int, folder: Path, pin: bool) -> Loader:
    tars = write_shards(samples(max(2 * rows, 64)), folder / "shards", "train", max_samples=1024)
    shards = ShardSet(tars)
    order = TrainingOrder(shards.counts, batch_size=rows, seed=0, lanes=Lanes(1, max(1, workers)))
    readers = [
        ImageReader(size.side, crop_scale=(0.9, 1.0)),
        TextReader(tokenizer(folder / "words"), max_length=TOKENS),
    ]
    return Loader(Stream(shards, order, readers, seed=0), steps=steps, num_workers=workers, pin_memory=pin)


def main() -> None:
    quiet()
    name, device, *numbers = sys.argv[1:]
    rows, steps, workers = map(int, numbers)
    size = SIZES[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        task = build(size, folder / "text")
        ready = Repeated(synthetic(size, rows), steps)
        tell(measure(f"{name}, mmlab", task, ready, device=device, unit="samples/s"))
        read = loader(size, rows, steps=steps, workers=workers, folder=folder, pin=device == "cuda")
        title = f"{name}, mmlab from JPEGs, {workers} workers"
        tell(measure(title, task, read, device=device, unit="samples/s"))
        read.close()


if __name__ == "__main__":
    main()
