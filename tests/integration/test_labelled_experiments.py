"""Experiments that tell classes and relations: from a small release to predictions, on the command line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import yaml
from command_processes import Shell
from PIL import Image
from tiny_encoders import tiny_bert, tiny_whisper_folder
from tiny_language import wordpiece

from mmlab.sources.mnre import RELATIONS

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MODEL = "--model.init_args.model.init_args"
SOURCE = "--data.source.init_args"
TEXTUAL = (
    f"{MODEL}.text.init_args.encoder.init_args.name",
    "TEXT",
    "--data.text.init_args.tokenizer",
    "TEXT",
)
RELATED = (
    f"{MODEL}.text.init_args.name", "TEXT", "--data.text.init_args.tokenizer", "TEXT",
    "--data.text.init_args.markers", "['@', '@', '#', '#']",
)  # fmt: skip
FUSED = (f"{MODEL}.fusion.init_args.dims",)
SOUNDS = (
    "Dog bark", "Rain", "Sea waves", "Baby cry", "Clock tick", "Person sneeze", "Helicopter", "Chainsaw",
    "Rooster", "Fire crackling",
)  # fmt: skip
Release = Iterator[tuple[str, bytes]]


def sarcasm() -> Release:
    """Twelve utterances of one show and four of another."""
    rows = {
        f"{show[0]}_{n}": {
            "utterance": ("great", "fine")[n % 2], "speaker": "ANN", "context": [f"see {show[0]} {n}"],
            "context_speakers": ["BOB"], "show": show, "sarcasm": n % 2 == 0,
        }
        for show, count in (("BBT", 12), ("FRIENDS", 4))
        for n in range(count)
    }  # fmt: skip
    yield "data/sarcasm_data.json", json.dumps(rows).encode()


def feelings() -> Release:
    """Dialogues of two utterances, as MELD has them."""
    columns = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
    for part, count in (("train", 16), ("dev", 4), ("test", 4)):
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(columns)
        for n in range(count):
            kind = ("neutral", "joy", "anger")[n % 3]
            sentiment = ("neutral", "positive", "negative")[n % 3]
            writer.writerow((f"say {kind}", "Ann", kind, sentiment, n // 2, n % 2))
        yield f"data/MELD/{part}_sent_emo.csv", table.getvalue().encode()


def noises() -> Release:
    """Of each class two recordings in each of two folds."""
    yield "README.txt", b""
    rng = np.random.default_rng(0)
    for number, name in enumerate(SOUNDS, start=1):
        for fold in (1, 2):
            for recording in (1, 2):
                with io.BytesIO() as file:
                    soundfile.write(file, rng.normal(size=4000) * 0.1, 16_000, format="OGG")
                    content = file.getvalue()
                yield f"{number:03} - {name}/{fold}-{number}{fold}{recording}-A.ogg", content


def pairs() -> Release:
    """Posts with two pairs each, some without their picture."""
    for part, count in (("train", 16), ("val", 4), ("test", 4)):
        lines = []
        for n in range(count):
            places = ([1, 2], [3, 4])
            fields = {
                "token": ["see", "ann", "in", "ulm", "today"], "h": {"name": "x", "pos": places[n % 2]},
                "t": {"name": "y", "pos": places[1 - n % 2]}, "img_id": f"{part}_{n // 2}.jpg",
                "relation": ("/per/loc/place_of_residence", "None")[n % 2],
            }  # fmt: skip
            lines.append(repr(fields))
            if n % 4 == 0:
                with io.BytesIO() as file:
                    Image.new("RGB", (70, 70), (10 * n, 90, 90)).save(file, "JPEG")
                    yield f"img_org/{part}/{part}_{n // 2}.jpg", file.getvalue()
        yield f"txt/ours_{part}.txt", "\n".join(lines).encode()


class Case(NamedTuple):
    name: str
    config: str
    release: Callable[[], Release]
    score: str
    """On the test split, with an interval."""
    told: str
    """Field of the result file that holds what is told."""
    classes: frozenset[str]
    words: tuple[str, ...]
    """Smaller parts; `TEXT` and `AUDIO` stand for folders."""


CASES = [
    Case("mustard", "sentiment/mustard", sarcasm, "uar", "label", frozenset({"sarcastic", "sincere"}),
         (*TEXTUAL, *FUSED, '{"text": 32}', f"{SOURCE}.val", "4")),
    Case("meld", "sentiment/mustard", feelings, "uar", "label",
         frozenset({"negative", "neutral", "positive"}),
         (*TEXTUAL, *FUSED, '{"text": 32}', "--data.source.class_path", "mmlab.sources.meld.Meld",
          "--data.loading.references", "[json.sentiment]", "--model.init_args.outcome.init_args.labels",
          "[negative, neutral, positive]", f"{MODEL}.head.init_args.classes", "3")),
    Case("esc10", "sentiment/esc10", noises, "accuracy", "label", frozenset(map(str.lower, SOUNDS)),
         (*FUSED, '{"audio": 32}', f"{MODEL}.audio.init_args.encoder.init_args.name", "AUDIO",
          f"{MODEL}.audio.init_args.layers.init_args.layers", "2")),
    Case("mnre", "extraction/mnre", pairs, "f1", "relation", RELATIONS,
         (*RELATED, f"{MODEL}.image.init_args.encoder.init_args.name", "test_resnet",
          f"{MODEL}.image.init_args.encoder.init_args.pretrained", "false",
          "--data.image.init_args.size", "64")),
    Case("mnre_words", "extraction/mnre", pairs, "f1", "relation", RELATIONS,
         (*RELATED, "--data.image", "null", "--model.init_args",
          "{model: {init_args: {image: null}}, adaptation: {init_args: {towers: full}}}")),
]  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models, as folders."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("TEXT", "AUDIO")}
    tiny_bert(folders["TEXT"], vocabulary=100)
    wordpiece().save_pretrained(folders["TEXT"])
    tiny_whisper_folder(folders["AUDIO"])
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_release_is_learned_from_and_told(
    shell: Shell, encoders: dict[str, str], case: Case, tmp_path: Path
) -> None:
    for name, content in case.release():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    given = [
        "--config", str(EXPERIMENTS / f"{case.config}.yaml"), "--trainer.accelerator", "cpu",
        "--trainer.logger", "false", "--trainer.max_epochs", "1", "--data.loading.num_workers", "0",
        "--data.batch_size", "8", *(encoders.get(word, word) for word in case.words),
        f"{SOURCE}.from_file", str(tmp_path),
    ]  # fmt: skip
    before = shell.runs()
    answer = shell("fit", *given)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics[f"test/{case.score}_low"] <= metrics[f"test/{case.score}_high"]
    assert (run / "confusion-test.svg").stat().st_size > 0

    before = shell.runs()
    answer = shell("predict", *given, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert answer.status == 0, answer.err
    (predicted,) = shell.runs() - before
    lines = (predicted / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == {"esc10": 20}.get(case.name, 4)
    assert {json.loads(line)[case.told] for line in lines} <= case.classes


def test_the_experiment_knows_the_relations_of_the_release() -> None:
    config = yaml.safe_load((EXPERIMENTS / "extraction" / "mnre.yaml").read_text(encoding="utf-8"))
    settings = config["model"]["init_args"]
    assert set(settings["relations"]) == RELATIONS
    assert len(settings["relations"]) == settings["model"]["init_args"]["relations"] == len(RELATIONS)
