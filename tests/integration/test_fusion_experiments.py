"""The experiments of fusion and extraction on the real command line: tiny encoders, samples as sources do."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from command_processes import Shell
from PIL import Image
from tiny_encoders import tiny_bert, tiny_whisper_folder
from tiny_language import wordpiece

from mmlab.data.shards import write_shards

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MODEL = "--model.init_args.model.init_args"
COUNTS = {"train": 24, "val": 8, "test": 8}


class Case(NamedTuple):
    config: str
    score: str
    """On the test split, with an interval."""
    files: tuple[str, ...]
    """In the run directory, after the test."""
    identifier: str
    """Field of the result file that tells samples apart."""
    words: tuple[str, ...] = ()


CASES = [
    Case(
        "sentiment/emodb",
        "uar",
        ("confusion-test.svg", "answers-test.html"),
        "utterance_id",
        (
            "--trainer.max_epochs", "2", f"{MODEL}.audio.init_args.layers.init_args.layers", "2",
            f"{MODEL}.audio.init_args.layers.init_args.start", "1",
            f"{MODEL}.fusion.init_args.dims", '{"audio": 32, "text": 32}',
        ),
    ),
    Case(
        "sentiment/mosi",
        "accuracy",
        ("robustness.svg", "robustness.json", "confusion-test.svg"),
        "utterance_id",
        ("--trainer.max_epochs", "2"),
    ),
    *(
        Case(
            "sentiment/mosi",
            "accuracy",
            ("robustness.json",),
            "utterance_id",
            ("--config", str(EXPERIMENTS / "_base" / f"{overlay}.yaml"), "--trainer.max_epochs", "3"),
        )
        for overlay in ("ogm_ge", "gradient_blend")
    ),
    Case("extraction/wnut17", "f1", ("report-test.txt",), "key", ("--trainer.max_epochs", "1")),
    # As its first lines say.
    Case(
        "extraction/wnut17", "f1", ("report-test.txt",), "key",
        (
            "--trainer.max_epochs", "1", "--model.init_args.crf", "true",
            "--model.init_args.optimization.rates", "{head: 5.0, field: 50.0}",
        ),
    ),
    Case(
        "extraction/sroie",
        "f1",
        ("answers-test.html",),
        "receipt_id",
        (
            "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1",
            "--data.image.init_args.size", "[64, 96]", f"{MODEL}.grid", "[2, 3]",
            f"{MODEL}.text.init_args.layout.init_args.dim", "32",
            f"{MODEL}.image.init_args.encoder.init_args.name", "test_resnet",
            f"{MODEL}.image.init_args.encoder.init_args.pretrained", "false",
        ),
    ),
    # As its first lines say.
    Case(
        "extraction/sroie",
        "f1",
        ("answers-test.html",),
        "receipt_id",
        (
            "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.image", "null",
            "--data.text.init_args.boxes", "null", "--model.init_args",
            "{model: {init_args: {image: null, grid: null, text: {init_args: {layout: null}}}}, "
            "adaptation: {init_args: {towers: full}}}",
        ),
    ),
    Case(
        "extraction/twitter_entities",
        "f1",
        ("report-test.txt",),
        "key",
        (
            "--trainer.max_epochs", "1", "--data.image.init_args.size", "64",
            f"{MODEL}.image.init_args.encoder.init_args.name", "test_resnet",
            f"{MODEL}.image.init_args.encoder.init_args.pretrained", "false",
        ),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models, as folders."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("text", "audio")}
    tiny_bert(folders["text"], vocabulary=100)
    wordpiece("[unused1]", "[unused2]").save_pretrained(folders["text"])
    tiny_whisper_folder(folders["audio"])
    return {name: str(folder) for name, folder in folders.items()}


def array(size: int, rng: np.random.Generator) -> bytes:
    with io.BytesIO() as file:
        np.save(file, rng.normal(size=(1, size)).astype(np.float32))
        return file.getvalue()


def page(number: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("L", (40, 90), 40 * (number % 6)).save(file, "JPEG")
        return file.getvalue()


def samples(case: Case, count: int) -> Iterator[Mapping[str, Any]]:
    rng = np.random.default_rng(count)
    with io.BytesIO() as file:
        soundfile.write(file, np.zeros(4000, dtype=np.float32), 16_000, format="WAV")
        sound = file.getvalue()
    for number in range(count):
        about: dict[str, Any] = {"utterance_id": f"k{number}", "group": f"g{number // 2}"}
        members: dict[str, bytes] = {}
        if case.config == "sentiment/emodb":
            about |= {"emotion": ("anger", "fear", "sadness")[number % 3], "text": "Das will sie."}
            members = {"wav": sound}
        elif case.config == "sentiment/mosi":
            about["label"] = ("negative", "positive")[number % 2]
            members = {"text.npy": array(100, rng), "audio.npy": array(73, rng)}
            if number % 4 != 0:
                members["video.npy"] = array(100, rng)
        elif case.config == "extraction/sroie":
            about |= {
                "words": ["acme", ",", "co", "9.50"], "glued": [1], "receipt_id": f"k{number}",
                "boxes": [[0.1, 0.1, 0.3, 0.2], [0.3, 0.1, 0.4, 0.2], [0.4, 0.1, 0.6, 0.2], [0.5, 0.8, 1, 1]],
                "tags": ["B-company", "I-company", "I-company", "B-total"],
                "fields": {"company": "acme, co", "total": "9.50"},
            }  # fmt: skip
            if number % 4 != 0:
                members = {"jpg": page(number)}
        elif case.config == "extraction/twitter_entities":
            about |= {"words": ["see", "Rome", "today"], "tags": ["O", "B-LOC", "O"]}
            members = {"jpg": page(number)}
        else:
            about |= {"words": ["see", "Rome", "today"], "tags": ["O", "B-location", "O"]}
        yield {"__key__": f"k{number}", "json": json.dumps(about).encode(), **members}


def words(case: Case, encoders: dict[str, str], folder: Path) -> list[str]:
    for split, count in COUNTS.items():
        write_shards(samples(case, count), folder, split)
    splits = {split: f"{folder}/{split}-*.tar" for split in COUNTS}
    found = [
        "--config", str(EXPERIMENTS / f"{case.config}.yaml"), "--trainer.accelerator", "cpu",
        "--trainer.logger", "false", "--data.loading.num_workers", "0", "--data.source", "null",
        "--data.splits", json.dumps(splits | {"predict": splits["test"]}), "--data.batch_size", "8",
    ]  # fmt: skip
    encoder = "text" if case.config.startswith("extraction/") else "text.init_args.encoder"
    if case.config != "sentiment/mosi":
        found += [f"{MODEL}.{encoder}.init_args.name", encoders["text"]]
        found += ["--data.text.init_args.tokenizer", encoders["text"]]
    if case.config == "sentiment/emodb":
        found += [f"{MODEL}.audio.init_args.encoder.init_args.name", encoders["audio"]]
    return [*found, *case.words]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config.rpartition("/")[2])
def test_it_trains_and_tells(shell: Shell, encoders: dict[str, str], case: Case, tmp_path: Path) -> None:
    given = words(case, encoders, tmp_path)
    before = shell.runs()
    answer = shell("fit", *given)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics[f"test/{case.score}_low"] <= metrics[f"test/{case.score}_high"]
    for name in case.files:
        assert (run / name).stat().st_size > 0, name
    if case.config == "sentiment/mosi":
        assert {"test/accuracy@text+audio", "test/accuracy@image+text+audio"} <= set(metrics)

    before = shell.runs()
    answer = shell("predict", *given, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert answer.status == 0, answer.err
    (predicted,) = shell.runs() - before
    lines = (predicted / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)[case.identifier] for line in lines] == [f"k{n}" for n in range(COUNTS["test"])]
