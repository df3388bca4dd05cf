"""Multiple choice from the config to the answers: training, choosing, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from colour_questions import COLOURS, QUIET, make_data, make_task, make_trainer, write
from jsonargparse import ArgumentParser
from tiny_language import tiny_tokenizer
from transformers import AutoModelForCausalLM

from mmlab.callbacks.answers import AnswerWriter
from mmlab.data.prompt import Prompt
from mmlab.metrics.perplexity import Perplexity
from mmlab.models.decoding import Choosing, Decoding
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.tasks.base import BaseTask

pytestmark = [pytest.mark.filterwarnings(one) for one in QUIET]
CHOICES = list(COLOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("choices"))


def test_it_learns_to_choose_colours(folder: Path, tmp_path: Path) -> None:
    task, data = make_task(folder, decoding=Choosing()), make_data(folder, choices=CHOICES)
    writer = AnswerWriter({"id": "json.question_id", "answer": "answer"})
    fit = make_trainer(tmp_path, writer, max_epochs=30, limit_val_batches=0)
    before = fit.test(task, data, verbose=False)[0]["test/exact_match"]
    fit.fit(task, data)
    after = fit.test(task, data, verbose=False)[0]["test/exact_match"]
    assert before < 0.5
    assert after > 0.9
    fit.predict(task, data, return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line) for line in lines]
    right = [{"id": number, "answer": CHOICES[number % 4]} for number in range(9)]
    assert sum(one == wanted for one, wanted in zip(said, right, strict=True)) == round(9 * after)
    assert {one["answer"] for one in said} <= set(CHOICES)


def test_answers_are_the_likeliest_of_transformers(folder: Path) -> None:
    """From the members of a sample to the answer, without media."""
    task, tokenizer = make_task(folder, decoding=Choosing("none")).eval(), tiny_tokenizer()
    plain = AutoModelForCausalLM.from_pretrained(folder / "language").eval()
    prompt = Prompt("{json.question} {json.question_id}", "{json.answer}")
    data = make_data(folder, prompt, choices=CHOICES)
    data.setup("test")
    answers = [answer for batch in data.test_dataloader() for answer in task.predict(batch)]
    assert [answer.place for answer in answers] == list(range(9))
    for number, answer in enumerate(answers):
        losses = {}
        for choice in CHOICES:
            asked = [{"role": "user", "content": f"Colour? {number}"}]
            before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(before + choice + tokenizer.eos_token)["input_ids"]
            begins = len(tokenizer(before)["input_ids"])
            labels = torch.tensor([[-100] * begins + ids[begins:]])
            with torch.no_grad():
                losses[choice] = float(plain(torch.tensor([ids]), labels=labels).loss) * (len(ids) - begins)
        assert answer.text == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_what_does_not_go_together_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(MultimodalLM, "forward", lambda *_: pytest.fail("it runs"))
    run = getattr(make_trainer(tmp_path), stage)
    with pytest.raises(ValueError, match=r"nothing to choose among: set data\.text\.choices"):
        run(make_task(folder, decoding=Choosing()), make_data(folder))
    with pytest.raises(ValueError, match=r"set it to Choosing .*, or leave data\.text\.choices"):
        run(make_task(folder), make_data(folder, choices=CHOICES))


def test_data_that_say_nothing_of_choices_show_them_in_the_first_batch(folder: Path, tmp_path: Path) -> None:
    for decoding, choices in ((Choosing(), None), (Decoding(), CHOICES)):
        data = make_data(folder, choices=choices)
        data.setup("test")
        task = make_task(folder, decoding=decoding)
        with pytest.raises(ValueError, match=r"choose among|bring choices"):
            make_trainer(tmp_path).test(task, dataloaders=data.test_dataloader())


def test_settings_that_do_not_go_together_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"scores: Perplexity needs prompts with the right answer, but dec"):
        make_task(folder, decoding=Choosing(), scores=[Perplexity()])
    with pytest.raises(ValueError, match="answer_after is empty"):
        make_task(folder, answer_after="")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{max_new_tokens: 4}", Decoding(max_new_tokens=4)),
        ("{normalize: none}", Choosing("none")),
        ("{class_path: mmlab.models.decoding.Choosing}", Choosing("tokens")),
        ("null", Decoding()),
    ],
)
def test_a_config_says_how_answers_are_got_and_says_it_again(
    folder: Path,
    text: str,
    wanted: Decoding | Choosing,
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseTask, "model")
    config = f"""
    model:
      class_path: mmlab.tasks.reasoning.ReasoningTask
      init_args:
        model:
          class_path: mmlab.models.multimodal_lm.MultimodalLM
          init_args:
            language:
              class_path: mmlab.models.language_model.LanguageModel
              init_args: {{name: {folder / "language"}}}
        adaptation: {{class_path: mmlab.adaptation.policy.Policy, init_args: {{towers: full}}}}
        optimization: {{optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.1}}}}}}
        decoding: {text}
        answer_after: "Answer:"
    """
    parsed = parser.parse_object(yaml.safe_load(config))
    for again in (parsed, parser.parse_string(parser.dump(parsed))):
        task = parser.instantiate(again).model
        assert task.decoding == wanted
        assert task.answer_after == "Answer:"
