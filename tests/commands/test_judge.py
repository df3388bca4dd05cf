"""`mmlab runs judge` as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_language import tiny_tokenizer
from transformers import BertConfig, BertModel

from mmlab.cli import main
from mmlab.data.shards import ShardSet

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
TOWER = "mmlab.models.dual_encoder.Tower"
SMALL = (
    "--data.source.init_args.train", "64", "--data.source.init_args.val", "30",
    "--data.source.init_args.test", "40", "--data.batch_size", "16", "--trainer.accelerator", "cpu",
    "--trainer.max_epochs", "1", "--model.init_args.optimization.optimizer.init_args.lr", "0.01",
    "--trainer.logger", "false", "--trainer.enable_progress_bar", "false",
    "--test_untrained", "false",
)  # fmt: skip


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge")


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(*words)` runs `mmlab` in this process: importing it takes seconds."""
    monkeypatch.setattr(sys, "argv", ["mmlab"])
    monkeypatch.setenv("MMLAB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(folder)

    def run(*words: str) -> Answer:
        # Each command is a run of its own.
        monkeypatch.delenv("MMLAB_RUN_ID", raising=False)
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(words)
        return Answer(status, *capfd.readouterr())

    return run


def overlay(folder: Path) -> Path:
    """The smoke experiment with captions in the place of movements."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    encoder = {"class_path": "mmlab.models.encoders.text.TextEncoder", "init_args": {"name": "bert"}}
    text = {"class_path": TOWER, "init_args": {"encoder": encoder, "dim": 64}}
    reader = {"tokenizer": "bert", "fields": ["json.caption"], "max_length": 32}
    values = {
        "model": {"init_args": {"model": {"init_args": {"text": text, "signal": None}}}},
        "data": {"text": {"class_path": "mmlab.data.text.TextReader", "init_args": reader}, "signal": None},
        "trainer": {"callbacks": [{"class_path": "mmlab.callbacks.predictions.EmbeddingWriter"}]},
    }
    (folder / "text.yaml").write_text(yaml.safe_dump(values))
    return folder / "text.yaml"


@pytest.fixture
def retrieval(command: Command, folder: Path) -> Path:
    """The directory of a retrieval run of pictures and captions, trained once for all tests."""
    if not Path("runs", "pairs").is_dir():
        words = ("fit", "--config", str(SMOKE), "--config", str(overlay(folder)), *SMALL, "--name", "pairs")
        answer = command(*words)
        assert answer.status == 0, answer.err
    (run,) = Path("runs", "pairs").iterdir()
    return run


def shards() -> ShardSet:
    return ShardSet.find([str(path) for path in Path("cache").glob("data/*/test-*.tar")])


def captions() -> dict[str, str]:
    """What is to be said of each test sample, by key."""
    raw = [shards().read(0, sample) for sample in range(40)]
    return {one.key: json.loads(one.members["json"])["caption"] for one in raw}


def write(name: str, said: dict[str, str]) -> str:
    """A file as `mmlab predict` writes it."""
    records = [{"more": 1, "key": key, "answer": text} for key, text in said.items()]
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def test_captions_as_answers_score_as_the_vectors_that_predict_writes(
    command: Command, retrieval: Path
) -> None:
    (checkpoint,) = retrieval.glob("checkpoints/epoch*.ckpt")
    config = str(retrieval / "config.yaml")
    predicted = command("predict", "--config", config, "--ckpt_path", str(checkpoint), "--name", "vectors")
    assert predicted.status == 0, predicted.err
    (file,) = Path("runs", "vectors").glob("*/predictions/embeddings-0.safetensors")
    vectors = load_file(file)
    assert torch.equal(vectors["image.place"], vectors["text.place"])
    cosine = (vectors["image.vector"].double() * vectors["text.vector"].double()).sum(dim=1)
    score = 2.5 * cosine.clamp(min=0)
    assert score.mean() > 0.05  # else nothing below would tell anything

    # In another order: which batch a sample is in must not matter.
    said = dict(sorted(captions().items(), key=lambda item: item[1]))
    answer = command("runs", "judge", str(retrieval), write("same.jsonl", said), "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert found["answers/clip_score"] == pytest.approx(float(score.mean()), abs=1e-5)
    assert found["references/clip_score"] == pytest.approx(float(score.mean()), abs=1e-5)
    # The closest reference is the answer itself.
    both = (2 * score / (score + 1)).mean()
    assert found["answers/ref_clip_score"] == pytest.approx(float(both), abs=1e-5)
    assert found["checkpoint"] == str(checkpoint)
    assert (found["samples"], found["medium"], found["answers"], found["judged"]) == ("test", "image", 40, 40)
    assert (found["groups"], found["with_references"], found["left_out"], found["cut"]) == (40, 40, {}, 0)


def test_other_shards_and_references_and_what_is_left_out(command: Command, retrieval: Path) -> None:
    said = captions()
    keys = list(said)
    said |= {keys[3]: " \n", keys[5]: said[keys[5]] * 9, "stranger": "a cat"}
    file = write("some.jsonl", said)
    with Path(file).open("a") as lines:
        lines.write(json.dumps({"key": keys[0], "answer": "again"}) + "\n")
    shutil.copytree(shards().paths[0].parent, "moved")
    words = (file, "--data", "moved/test-*.tar", "--references", "json.nothing")
    answer = command("runs", "judge", str(retrieval), *words)
    assert answer.status == 0, answer.err
    out = answer.out.splitlines()
    assert (
        "39 of 42 answers, by the image of samples of moved/test-*.tar (39 groups, 0 with references)" in out
    )
    assert "left out: 1 key of an earlier answer, 1 no text, 1 key of no sample" in out
    assert "of 1 answer only the first 32 tokens are read" in out
    # Without references there is neither their line nor a second column.
    assert out[-3].split() == ["CLIPScore"]
    assert re.fullmatch(r"answers +0\.\d{3} \(0\.\d{3}-0\.\d{3}\)", out[-2])
    assert re.fullmatch(r"answers of others +0\.\d{3} \(0\.\d{3}-0\.\d{3}\)", out[-1])


def test_answers_to_other_samples_are_refused(command: Command, retrieval: Path) -> None:
    file = write("strange.jsonl", {"x": "a cat", "y": "a dog"})
    answer = command("runs", "judge", str(retrieval), file)
    assert (answer.status, answer.out) == (2, "")
    assert "no key of the answers (x, ...) is in the shards of the run (test, val, train)" in answer.err
    tar = str(shards().paths[0])
    answer = command("runs", "judge", str(retrieval), file, "--data", tar)
    assert (answer.status, answer.out) == (2, "")
    assert f"none of 2 answers can be judged by {tar}: 2 key of no sample; --data names" in answer.err


def test_runs_of_another_kind_are_refused(command: Command, retrieval: Path) -> None:
    file = write("any.jsonl", {"a": "a cat"})
    other = Path(shutil.copytree(retrieval, "other"))
    config = yaml.safe_load((other / "config.yaml").read_text())
    for path in ("mmlab.tasks.question_answering.QuestionAnsweringTask", "no.such.Task"):
        config["model"]["class_path"] = path
        (other / "config.yaml").write_text(yaml.safe_dump(config))
        answer = command("runs", "judge", str(other), file)
        assert (answer.status, answer.out) == (2, "")
        assert f"other is a run of {path}: answers are judged by a run of a RetrievalTask" in answer.err

    shutil.copy(SMOKE, other / "config.yaml")
    answer = command("runs", "judge", str(other), file)
    assert answer.status == 2
    assert "the run aligns image with signal: answers are judged by one of image or audio" in answer.err

    answer = command("runs", "judge", ".", file)
    assert (answer.status, "no run directory of `mmlab fit`" in answer.err) == (2, True)
    shutil.copy(retrieval / "config.yaml", other / "config.yaml")
    shutil.rmtree(other / "checkpoints")
    answer = command("runs", "judge", str(other), file)
    assert (answer.status, "it has no checkpoints/" in answer.err) == (2, True)
