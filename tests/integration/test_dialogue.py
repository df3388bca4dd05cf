"""experiments/generation/dialogue.yaml on the real command line, on small copies of its two data sets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from command_processes import Shell
from PIL import Image
from tiny_language import tiny_language

CONFIG = Path(__file__).parents[2] / "experiments" / "generation" / "dialogue.yaml"
MODEL = "--model.init_args.model.init_args"
PARTS = "--data.source.init_args.parts"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A tiny model, a few steps."""
    language = str(tiny_language(tmp_path_factory.mktemp("language"), max_length=1024))
    return (
        "--config", str(CONFIG), f"{MODEL}.language.init_args.name", language,
        "--data.text.init_args.tokenizer", language, f"{MODEL}.image.init_args.dim", "32",
        f"{MODEL}.image.init_args.encoder.init_args.name", "test_resnet",
        f"{MODEL}.image.init_args.encoder.init_args.pretrained", "false",
        "--model.init_args.decoding.max_new_tokens", "4", "--data.batch_size", "4",
        "--data.loading.num_workers", "0", "--data.image.init_args.size", "64", "--trainer.max_steps", "4",
        "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """easy-VQA with twenty training pictures of three questions, and two test pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for part, number in (("train", 20), ("test", 2)):
        (folder / part / "images").mkdir(parents=True)
        for place in range(number):
            with io.BytesIO() as file:
                Image.new("RGB", (8, 8), (place, 0, 90)).save(file, "PNG")
                (folder / part / "images" / f"{place}.png").write_bytes(file.getvalue())
        asked = [[f"is it {n}?", "yes", place] for place in range(number) for n in range(3)]
        (folder / part / "questions.json").write_text(json.dumps(asked))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MELD with dialogues of four utterances."""
    folder = tmp_path_factory.mktemp("scenes")
    for part, number in (("train", 8), ("dev", 2), ("test", 3)):
        rows = [f"Line {n}.,Ann,joy,positive,{dialogue},{n}" for dialogue in range(number) for n in range(4)]
        head = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"
        (folder / f"{part}_sent_emo.csv").write_text("\n".join([head, *rows]))
    return folder


@pytest.mark.slow
def test_pictures_and_scenes_are_trained_together(
    shell: Shell, short: tuple[str, ...], pictures: Path, scenes: Path
) -> None:
    words = (
        *short, f"{PARTS}.pictures.source.init_args.from_file", str(pictures),
        f"{PARTS}.pictures.source.init_args.val", "2",
        f"{PARTS}.scenes.source.init_args.from_file", str(scenes),
    )  # fmt: skip
    answer = shell("fit", *words)
    assert answer.status == 0, answer.err
    assert "Warning" not in answer.err
    (run,) = shell.runs()
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["test/token_f1"] <= 1
    assert metrics["test/perplexity"] > 1
    page = (run / "answers-test.html").read_text(encoding="utf-8")
    assert page.count("class=row") == 12
    assert "Speak as Ann, feeling joy." in page
    assert "is it 0?" in page
    answer = shell("predict", *words, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert answer.status == 0, answer.err
    (predicted,) = shell.runs() - {run}
    lines = (predicted / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    said = {record["key"]: record for record in map(json.loads, lines)}
    assert len(said) == 12, "scenes only"
    assert said["dia2_utt3"]["history"] == "Ann: Line 0.\nAnn: Line 1.\nAnn: Line 2."
    assert said["dia2_utt0"]["emotion"] == "joy"


@pytest.mark.slow
def test_without_meld_it_is_said_what_to_do(shell: Shell, short: tuple[str, ...]) -> None:
    answer = shell("fit", *short, f"{PARTS}.scenes.source.init_args.history", "1")
    assert answer.status == 2
    assert "meld is not prepared yet" in answer.err
    assert "declare-lab/MELD" in answer.err
    assert "Traceback" not in answer.err
