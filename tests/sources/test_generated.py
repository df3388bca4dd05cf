"""The generated data set: the same every time, and something to learn in every modality."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmlab.data.shards import ShardSet
from mmlab.sources.generated import THINGS, Generated


def test_the_same_every_time(tmp_path: Path) -> None:
    settings = {"train": 70, "val": 8, "test": 9, "missing": {"audio": 0.3}}
    first = Generated(**settings, out=tmp_path / "first").prepare()
    second = Generated(**settings, out=tmp_path / "second").prepare()
    for split in ("train", "val", "test"):
        name = f"{split}-000000.tar"
        assert (first / name).read_bytes() == (second / name).read_bytes()
    written = (first / "train-000000.tar").stat().st_mtime_ns
    assert Generated(**settings, out=first).prepare() == first
    assert (first / "train-000000.tar").stat().st_mtime_ns == written
    other = Generated(**settings, seed=1, out=tmp_path / "other").prepare()
    assert (other / "train-000000.tar").read_bytes() != (first / "train-000000.tar").read_bytes()


def test_samples(tmp_path: Path) -> None:
    shards = ShardSet.find(
        "train-*.tar", folder=Generated(train=60, val=1, test=1, out=tmp_path / "g").prepare()
    )
    assert shards.extensions == {"jpg": 60, "json": 60, "npy": 60, "wav": 60}
    captions = set()
    for i in range(60):
        members = shards.read(0, i).members
        about = json.loads(members["json"])
        captions.add(about["caption"])
        assert about["caption"] == about["group"] == f"a {about['size']} {about['colour']} {about['shape']}"
        with Image.open(io.BytesIO(members["jpg"])) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
        wave, rate = soundfile.read(io.BytesIO(members["wav"]))
        assert (wave.shape, rate) == ((9600,), 16_000)
        assert 0.05 < np.abs(wave).max() < 0.99, "neither silent nor clipped"
        assert np.load(io.BytesIO(members["npy"])).shape == (48, 3)
    assert captions == {thing.caption for thing in THINGS}, "60 samples show all 60 things"


def test_missing_modalities() -> None:
    samples = list(Generated(train=400, missing={"audio": 0.3, "image": 1.0}).samples("train"))
    assert not any("jpg" in sample for sample in samples)
    assert all("npy" in sample for sample in samples)
    lacking = sum("wav" not in sample for sample in samples) / len(samples)
    assert 0.23 < lacking < 0.37  # three standard errors
    complete = list(Generated(train=400).samples("train"))
    assert all(sample["npy"] == other["npy"] for sample, other in zip(samples, complete, strict=True))


def test_splits_do_not_share_samples() -> None:
    source = Generated(train=100, val=100, test=100)
    pictures = [sample["jpg"] for split in ("train", "val", "test") for sample in source.samples(split)]
    assert len(set(pictures)) == 300


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val": 0}, "val is 0"),
        ({"missing": {"text": 0.5}}, "missing has text"),
        ({"missing": {"audio": 1.5}}, "missing has audio: 1.5"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generated(**wrong)


def features(sample: dict[str, bytes], modality: str) -> np.ndarray:
    if modality == "image":
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])), dtype=float)
        centred = np.abs(pixels - np.median(pixels.reshape(-1, 3), axis=0))
        return np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1)), centred.sum((0, 1))])
    if modality == "audio":
        wave, _ = soundfile.read(io.BytesIO(sample["wav"]))
        spectrum = np.abs(np.fft.rfft(wave))[:1500].reshape(150, 10).sum(1)
        envelope = np.abs(wave).reshape(60, -1).mean(1)
        return np.concatenate([np.log(spectrum + 0.1), np.log(envelope + 1e-3)])
    signal = np.load(io.BytesIO(sample["npy"]))
    radius = np.hypot(signal[:, 0], signal[:, 1])
    return np.concatenate([[radius.mean(), signal[:, 2].mean()], np.abs(np.fft.rfft(radius))[1:8]])


@pytest.mark.parametrize(
    ("modality", "learnt"),
    [
        ("image", ["size", "colour"]),
        ("audio", ["size", "colour", "shape"]),
        ("signal", ["size", "colour", "shape"]),
    ],
)
def test_every_modality_tells_what_it_shows(modality: str, learnt: list[str]) -> None:
    source = Generated(train=600, test=120)
    rows = {split: list(source.samples(split)) for split in ("train", "test")}
    inputs = {split: np.stack([features(s, modality) for s in samples]) for split, samples in rows.items()}
    for attribute in learnt:
        labels = {
            split: [json.loads(sample["json"])[attribute] for sample in samples]
            for split, samples in rows.items()
        }
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        probe.fit(inputs["train"], labels["train"])
        assert probe.score(inputs["test"], labels["test"]) > 0.75, attribute
