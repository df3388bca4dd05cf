"""The experiments with a language model, or with a list of answers, on the real command line: tiny models and
samples with the fields that each source gives."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import yaml
from command_processes import Shell
from PIL import Image
from tiny_encoders import tiny_bert, tiny_whisper_folder
from tiny_language import tiny_language, tiny_tokenizer

from mmlab.data.shards import write_shards

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MODEL = "--model.init_args.model.init_args"
COUNTS = {"train": 24, "val": 6, "test": 6}


class Case(NamedTuple):
    config: str
    score: str
    """On the test split."""
    about: Mapping[str, Any]
    """Fields of every sample."""
    kind: str = "image"
    words: tuple[str, ...] = ()
    written: tuple[str, ...] = ("key",)
    """What a record of the answers holds beside the answer; the first tells samples apart."""


ASKED = {
    "question": "What colour?", "answers": ["red"], "answer": "red", "question_id": 7, "group": "a",
    "answer_type": "color",
}  # fmt: skip
CASES = [
    Case(
        "question_answering/easy_vqa",
        "exact_match",
        ASKED,
        words=("--data.batch_size", "8", "--trainer.val_check_interval", "2", "--trainer.max_steps", "4"),
        written=("question_id",),
    ),
    Case(
        "question_answering/easy_vqa_classifier",
        "exact_match",
        ASKED,
        words=("--data.batch_size", "8"),
        written=("question_id",),
    ),
    Case(
        "reasoning/nlvr",
        "consistency",
        {"statement": "There is a dot.", "answer": "true", "group": "a", "identifier": "1-0-0"},
        words=("--trainer.max_epochs", "2"),
        written=("identifier",),
    ),
    Case(
        "generation/stamps",
        "cider",
        {"captions": {"en": "a cat", "fr": "un chat", "es": "un gato", "de": "eine Katze"}, "group": "a"},
        words=("--trainer.max_epochs", "4"),
        written=("key", "caption"),
    ),
    Case(
        "generation/sounds",
        "cider",
        {"captions": ["a dog barks", "a dog barking"], "label": "dog bark", "recording": "1"},
        kind="audio",
        words=(
            "--trainer.max_epochs", "5", f"{MODEL}.audio.init_args.resampler.init_args.dim", "32",
        ),
        written=("key", "label"),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models, as folders."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("language", "text", "audio")}
    tiny_language(folders["language"])
    tiny_bert(folders["text"], vocabulary=300)
    tiny_tokenizer().save_pretrained(folders["text"])
    tiny_whisper_folder(folders["audio"])
    return {name: str(folder) for name, folder in folders.items()}


def write(folder: Path, case: Case) -> tuple[str, ...]:
    """Shards of a case, and the words that name them."""
    with io.BytesIO() as file:
        if case.kind == "image":
            Image.new("RGB", (40, 10), (200, 0, 0)).save(file, "PNG")
        else:
            soundfile.write(file, np.zeros(8000, dtype=np.float32), 16_000, format="OGG")
        medium = {"png" if case.kind == "image" else "ogg": file.getvalue()}
    for split, count in COUNTS.items():
        keys = [f"k{number}" for number in range(count)]
        about = [json.dumps({**case.about, case.written[0]: key}).encode() for key in keys]
        samples = ({"__key__": key, "json": one, **medium} for key, one in zip(keys, about, strict=True))
        write_shards(samples, folder, split)
    splits = {split: f"{folder}/{split}-*.tar" for split in COUNTS}
    return (
        "--data.source", "null",
        "--data.splits", json.dumps(splits | {"predict": splits["test"]}),
    )  # fmt: skip


def tiny(case: Case, parts: dict[str, str]) -> tuple[str, ...]:
    """Words that put tiny models into an experiment."""
    config = yaml.safe_load((EXPERIMENTS / f"{case.config}.yaml").read_text(encoding="utf-8"))
    built = config["model"]["init_args"]["model"]["init_args"]
    words = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.loading.num_workers", "0"]
    if "language" in built:
        words += [f"{MODEL}.language.init_args.name", parts["language"]]
        words += ["--data.text.init_args.tokenizer", parts["language"]]
        words += [f"{MODEL}.{case.kind}.init_args.dim", "32"]
    else:
        words += [f"{MODEL}.text.init_args.encoder.init_args.name", parts["text"]]
        words += ["--data.text.init_args.tokenizer", parts["text"]]
        words += [f"{MODEL}.fusion.init_args.dims", '{"image": 96, "text": 32}']
    encoder = f"{MODEL}.{case.kind}.init_args.encoder.init_args"
    if case.kind == "image":
        words += [f"{encoder}.name", "test_resnet", f"{encoder}.pretrained", "false"]
    else:
        words += [f"{encoder}.name", parts["audio"]]
    return (*words, *case.words)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config.rpartition("/")[2])
def test_it_trains_and_answers(shell: Shell, parts: dict[str, str], case: Case, tmp_path: Path) -> None:
    config = EXPERIMENTS / f"{case.config}.yaml"
    words = ("--config", str(config), *write(tmp_path, case), *tiny(case, parts))
    before = shell.runs()
    answer = shell("fit", *words)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics[f"test/{case.score}"] >= 0
    assert metrics[f"test/{case.score}_low"] <= metrics[f"test/{case.score}_high"]
    assert (run / "answers-test.html").read_text(encoding="utf-8").count("class=row") == COUNTS["test"]

    before = shell.runs()
    answer = shell("predict", *words, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert answer.status == 0, answer.err
    (predicted,) = shell.runs() - before
    lines = (predicted / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record[case.written[0]] for record in records] == [f"k{n}" for n in range(COUNTS["test"])]
    assert sorted(records[0]) == sorted(("answer", *case.written))
    page = (predicted / "answers-predict.html").read_text(encoding="utf-8")
    assert page.count("class=row") == COUNTS["test"]
