"""Question answering from the config to the answers: training, evaluation, result file and page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from colour_questions import COLOURS, QUIET, make_data, make_task, make_trainer, write
from tiny_language import tiny_tokenizer
from transformers import AutoModelForCausalLM

from mmlab.adaptation.policy import Policy
from mmlab.callbacks.answers import AnswerPage, AnswerWriter
from mmlab.data.module import ShardData
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.metrics.perplexity import Perplexity
from mmlab.metrics.text import AnswerScores
from mmlab.models.decoding import Decoding
from mmlab.models.language_model import LanguageModel

pytestmark = [pytest.mark.filterwarnings(one) for one in QUIET]
BRIEF = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("questions"))


def test_it_learns_to_name_colours(folder: Path, tmp_path: Path) -> None:
    task, data = make_task(folder, decoding=BRIEF), make_data(folder)
    fit = make_trainer(
        tmp_path, AnswerPage(3), max_epochs=30, check_val_every_n_epoch=30, num_sanity_val_steps=0
    )
    fit.fit(task, data)
    results = fit.test(task, data, verbose=False)[0]
    assert results["test/exact_match"] > 0.9
    assert results["test/exact_match_low"] <= results["test/exact_match"] <= results["test/exact_match_high"]
    for split in ("val", "test"):
        page = (tmp_path / f"answers-{split}.html").read_text(encoding="utf-8")
        assert page.count("class=row") == 3
        assert page.count("data:image/png") == 3
        assert "Colour?" in page


def test_answers_are_written_in_the_form_that_a_benchmark_takes(folder: Path, tmp_path: Path) -> None:
    fields = {"question_id": "json.question_id", "answer": "answer"}
    writers = AnswerWriter(fields), AnswerWriter({"id": "key", "said": "answer"}, file="vqa.json")
    task = make_task(folder, decoding=BRIEF)
    make_trainer(tmp_path, *writers).predict(task, make_data(folder), return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["question_id"] for record in records] == list(range(9))
    assert all(isinstance(record["answer"], str) for record in records)
    array = json.loads((tmp_path / "predictions" / "vqa.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in array] == [f"k{number}" for number in range(9)]
    assert [record["said"] for record in array] == [record["answer"] for record in records]


RATIONALE = Prompt("<image>{json.question}", "It is {json.answer}. So: {json.answer}")


def test_what_stands_behind_the_last_mark_is_the_answer(folder: Path, tmp_path: Path) -> None:
    decoding = Decoding(max_new_tokens=26)
    task, data = make_task(folder, decoding=decoding, answer_after="So:"), make_data(folder, RATIONALE)
    page, writer = AnswerPage(9), AnswerWriter({"answer": "answer"})
    fit = make_trainer(tmp_path, page, writer, max_epochs=30, limit_val_batches=0)
    fit.fit(task, data)
    results = fit.test(task, data, verbose=False)[0]
    assert results["test/exact_match"] > 0.8
    shown = (tmp_path / "answers-test.html").read_text(encoding="utf-8")
    assert shown.count("wide right") == round(9 * results["test/exact_match"])
    assert shown.count("So: ") == 9
    fit.predict(task, data, return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["answer"] for line in lines} <= set(COLOURS)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Red or so. The answer is blue", "blue"),
        ("The answer is red? The answer is  blue .", "blue ."),
        ("the answer is blue", "the answer is blue"),
        ("I do not know. The answer is", ""),
    ],
)
def test_the_answer_is_looked_for_from_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, answer: str
) -> None:
    task = make_task(folder, decoding=BRIEF, answer_after="The answer is").eval()
    monkeypatch.setattr(task.model.language, "decode", lambda _: said)
    data = make_data(folder)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert {(one.text, one.whole) for one in task.predict(batch)} == {(answer, said)}
    metrics = task.make_metrics()
    task.update_metrics(metrics, batch)
    assert {(one.prediction, one.whole) for one in metrics.answered()} == {(answer, said)}


def test_perplexity_is_that_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Of nine samples in batches of four, one answer in pieces of other lengths than another."""
    asked = Prompt("{json.question} {json.question_id}", "{json.answers}, {json.answer}")
    scores = [AnswerScores(), Perplexity()]
    task = make_task(folder, decoding=Decoding(max_new_tokens=1), scores=scores)
    task.model.image = None  # the prompt names no picture
    results = make_trainer(tmp_path).test(task, make_data(folder, asked), verbose=False)[0]
    assert "test/exact_match" in results
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder / "language").eval(), tiny_tokenizer()
    loss, count = 0.0, 0
    for number in range(9):
        said = list(COLOURS)[number % 4]
        turn = [{"role": "user", "content": f"Colour? {number}"}]
        answered = [*turn, {"role": "assistant", "content": f"{said}, {said}"}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False).removesuffix("\n")
        begins, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(whole)["input_ids"]
        labels = torch.tensor([[-100] * begins + ids[begins:]])
        with torch.no_grad():
            loss += float(plain(torch.tensor([ids]), labels=labels).loss) * (len(ids) - begins)
        count += len(ids) - begins
    assert results["test/perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)


def test_the_model_runs_once_more_only_where_a_score_asks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmlab.tasks.generative.likelihood", lambda *_: pytest.fail("it runs"))
    make_trainer(tmp_path).test(make_task(folder, decoding=BRIEF), make_data(folder), verbose=False)


def test_result_files_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="one must be `answer`"):
        AnswerWriter({"question_id": "json.question_id"})
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.json"):
        AnswerWriter({"a": "answer"}, file="results.csv")


def test_the_adapted_language_model_leaves_its_own_weights_out_of_checkpoints(folder: Path) -> None:
    task = make_task(folder)
    adapted = Policy({"language": "lora", "image": "frozen"})
    model = adapted.apply(task.model)
    kept = adapted.kept(model)
    assert not any("embed_tokens" in name or "base_layer" in name for name in kept)
    assert any(name.startswith("language.") and "lora" in name for name in kept)
    assert any(name.startswith("image.projection") for name in kept)
    assert set(adapted.bases) == {"language", "image.encoder"}


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_answers_stop_at_the_end_that_the_prompts_train(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """As with a base model in a chat format whose end its generation config does not name."""
    task = make_task(folder, decoding=BRIEF)
    config = task.model.language.backbone.generation_config
    assert config is not None
    config.eos_token_id = config.pad_token_id = tiny_tokenizer().bos_token_id
    # All tokens are as likely: it says the first.
    torch.nn.init.zeros_(task.model.language.backbone.model.norm.weight)
    said: list[list[int]] = []
    monkeypatch.setattr(LanguageModel, "decode", lambda _, ids: said.append(ids.tolist()) or "red")
    getattr(make_trainer(tmp_path), stage)(task, make_data(folder))
    assert said
    assert all(ids == [tiny_tokenizer().eos_token_id] for ids in said)


def test_a_tokenizer_of_another_language_model_is_refused_and_a_copy_is_not(
    folder: Path, tmp_path: Path
) -> None:
    other, copy = tmp_path / "other", tmp_path / "copy"
    tiny_tokenizer().save_pretrained(copy)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(other)

    def run(tokenizer: Path) -> None:
        data = make_data(folder)
        (reader,) = (one for one in data.readers if isinstance(one, PromptReader))
        reader.tokenizer = str(tokenizer)
        make_trainer(tmp_path, limit_test_batches=1).test(make_task(folder, decoding=BRIEF), data)

    run(copy)
    with pytest.raises(ValueError, match=r"data\.text\.tokenizer='.*other' has other token ids .*language'"):
        run(other)


def test_a_picture_that_no_prompt_names_is_refused(folder: Path, tmp_path: Path) -> None:
    data = make_data(folder, Prompt("{json.question}", "{json.answer}"))
    with pytest.raises(ValueError, match=r"a tower for image, but no prompt names <image>: add it"):
        make_trainer(tmp_path, max_epochs=1).fit(make_task(folder, decoding=BRIEF), data)


def test_what_files_cannot_hold_loses_no_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a surrogate pair in a field, which JSON can escape."""
    monkeypatch.setattr(ShardData, "field", lambda self, split, place, field: ["\ud83d"])
    task = make_task(folder, decoding=BRIEF)
    monkeypatch.setattr(LanguageModel, "decode", lambda self, ids: "half \ud83d")
    callbacks = AnswerWriter({"key": "key", "about": "json.about", "answer": "answer"}), AnswerPage(3)
    make_trainer(tmp_path, *callbacks).predict(task, make_data(folder), return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 9
    assert json.loads(lines[0]) == {"key": "k0", "about": "?", "answer": "half ?"}
    assert (tmp_path / "answers-predict.html").read_text(encoding="utf-8").count("half ?") == 3
