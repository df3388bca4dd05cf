"""The experiments of reasoning and recommendation on the real command line: few scenes, few ratings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_processes import Shell
from tiny_encoders import tiny_bert
from tiny_language import wordpiece

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.loading.num_workers", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sort_of_clevr", "sort_of_clevr_pixels"])
def test_questions_about_scenes(shell: Shell, name: str) -> None:
    few = [f"--data.source.init_args.{split}" for split in ("train", "val", "test")]
    given = [
        "--config", str(EXPERIMENTS / "reasoning" / f"{name}.yaml"), *QUIET, "--data.batch_size", "16",
        "--trainer.max_epochs", "1", few[0], "8", few[1], "2", few[2], "2",
    ]  # fmt: skip
    before = shell.runs()
    answer = shell("fit", *given)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["test/exact_match@relational"] <= 1
    assert 0 <= metrics["test/exact_match@non_relational"] <= 1
    before = shell.runs()
    answer = shell("predict", *given, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert answer.status == 0, answer.err
    (predicted,) = shell.runs() - before
    lines = (predicted / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["question_id"] for line in lines}) == 40


def ratings(folder: Path) -> Path:
    """Twelve users who like every third film, and one film that is new at the end."""
    folder.mkdir()
    films = "".join(f"{n},Film {n},Drama|War\n" for n in range(1, 14))
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{films}")
    rows = [
        f"{user},{film},5.0,{100 * turn + user}\n"
        for user in range(12)
        for turn, film in enumerate([f for f in range(1, 13) if f % 3 == user % 3] + [13])
    ]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(rows))
    return folder


@pytest.mark.slow
def test_what_users_like(shell: Shell, tmp_path: Path) -> None:
    encoder = tmp_path / "text"
    encoder.mkdir()
    tiny_bert(encoder, vocabulary=100)
    wordpiece().save_pretrained(encoder)
    items = "--model.init_args.model.init_args.items.init_args"
    given = [
        "--config", str(EXPERIMENTS / "recommendation" / "movielens.yaml"), *QUIET,
        "--data.source.init_args.from_file", str(ratings(tmp_path / "in")),
        "--data.source.init_args.val", "0.2", "--data.source.init_args.test", "0.2",
        "--data.batch_size", "8", "--trainer.max_epochs", "2",
        f"{items}.text.init_args.encoder.init_args.name", str(encoder),
        f"{items}.fusion.init_args.dims", '{"text": 32}',
        "--data.text.init_args.tokenizer", str(encoder),
    ]  # fmt: skip
    before = shell.runs()
    answer = shell("fit", *given)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs() - before
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/users"] == 12
    assert metrics["test/recall20"] == 1, "thirteen films are fewer than twenty"
    assert metrics["test/users@cold"] == 12
    told = (run / "recommendations.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(told) == 12
    assert "Film 13" in json.loads(told[0])["wanted"]
    before = shell.runs()
    answer = shell("predict", *given, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert answer.status == 0, answer.err
    (predicted,) = shell.runs() - before
    assert (predicted / "predictions" / "embeddings-0.safetensors").stat().st_size > 0
    few = shell("fit", *given, f"{items}.items", "5")
    assert few.status == 2
    assert "items=5, but the data have number" in few.err
