"""Question answering over a list, from shards to answers: learning, missing pictures, refused lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image

from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Input, Modality
from mmlab.callbacks.answers import AnswerPage, AnswerWriter
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.text import TextReader
from mmlab.metrics.perplexity import Perplexity
from mmlab.metrics.text import AnswerScores, TextScore
from mmlab.metrics.vqa import VqaScores
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fusion.product import ProductFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.optim import Optimization
from mmlab.tasks.answer_list import AnswerList, AnswerListTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0), "white": (255, 255, 255)}
ANSWERS = ["yes", "no", *list(COLOURS)[:3]]
"""White is not in the list."""
TELLS = "The one without a picture is red."


class Letters(TextReader):
    """Text as the numbers of its letters: no tokenizer to build."""

    pad_id = 0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__("unused", fields=("json.question",))

    def prepare(self) -> None:
        """Nothing to fetch."""

    def encode(self, text: str) -> torch.Tensor:
        return torch.tensor([ord(letter) for letter in text])


class Words(Encoder):
    """A table of letters."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(128, self.dim)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.table(inputs.data), inputs.mask)


class MeanColour(Encoder):
    """One token: the mean colour of a picture."""

    modality = Modality.IMAGE
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, self.dim)

    def encode(self, inputs: Input) -> Encoded:
        tokens = self.layer(inputs.data.float().mean(dim=(2, 3)) / 255)[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def asked(number: int) -> tuple[str, str, list[str]]:
    """Colour, question and answers of a sample; every sixth has no picture."""
    colour = list(COLOURS)[number % 4]
    if number % 6 == 5:
        return colour, TELLS, ["red"] * 9 + ["pink"]
    if number % 3 == 0:
        return colour, "Red?", ["yes" if colour == "red" else "no"]
    return colour, "Colour?", [colour.title()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of plain pictures with a question, some without the picture, which the question then tells."""
    folder = tmp_path_factory.mktemp("questions")

    def sample(number: int) -> dict[str, Any]:
        colour, question, answers = asked(number)
        path = folder / "one.png"
        Image.new("RGB", (16, 16), COLOURS[colour]).save(path)
        about = {"question": question, "answers": answers, "question_id": number}
        found: dict[str, Any] = {"__key__": f"k{number}", "json": json.dumps(about).encode()}
        return found if question == TELLS else found | {"png": path.read_bytes()}

    for split, count in (("train", 96), ("val", 24), ("test", 22)):
        write_shards(map(sample, range(count)), folder / "shards", split)
    return folder


def make_data(folder: Path, **loading: Any) -> ShardData:
    shards = folder / "shards"
    settings = {"eval_batch_size": 4, "references": ("json.answers",), "group_by": "key"}
    return ShardData(
        batch_size=16,
        splits=Splits(**{s: str(shards / f"{s}-*.tar") for s in ("train", "val", "test")},
                      predict=str(shards / "test-*.tar")),
        image=ImageReader(16, crop_scale=(1.0, 1.0)),
        text=Letters(),  # type: ignore[arg-type]
        loading=Loading(**(settings | loading)),
    )  # fmt: skip


def make_task(
    answers: Any = ANSWERS, *, classes: int = 5, scores: list[TextScore] | None = None
) -> AnswerListTask:
    torch.manual_seed(0)
    model = FusionClassifier(
        image=FusionTower(MeanColour()),
        text=FusionTower(Words()),
        fusion=ProductFusion({"image": 8, "text": 8}, dim=32),
        head=ClassificationHead(32, classes=classes, hidden=32),
    )
    return AnswerListTask(
        model,
        answers=answers,
        optimization=Optimization(partial(torch.optim.AdamW, lr=1e-2)),
        adaptation=Policy("full"),
        scores=scores,
    )


def evaluated(data: ShardData) -> list[Batch]:
    data.prepare_data()
    data.setup("test")
    return list(data.test_dataloader())


def test_it_learns_what_is_in_the_list(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task, data = make_task(), make_data(folder)
    fit = trainer(AnswerPage(3), max_epochs=25, check_val_every_n_epoch=25)
    fit.fit(task, data)
    results = fit.test(task, data, verbose=False)[0]
    outside = sum(not {a.lower() for a in asked(n)[2]} & set(ANSWERS) for n in range(22)) / 22
    assert outside > 0
    assert results["test/in_list"] == pytest.approx(1 - outside)
    assert results["test/exact_match"] == pytest.approx(1 - outside)
    assert results["test/exact_match_low"] <= results["test/exact_match"] <= results["test/exact_match_high"]
    page = (tmp_path / "answers-test.html").read_text(encoding="utf-8")
    assert page.count("class=row") == 3
    assert "Colour?" in page


def test_a_page_shows_the_field_that_says_what_was_asked(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    trainer(AnswerPage(3, question="json.question_id")).test(make_task(), make_data(folder), verbose=False)
    page = (tmp_path / "answers-test.html").read_text(encoding="utf-8")
    assert "Colour?" not in page
    for number in (0, 7, 14):
        assert f"<div class='card wide'>{number}</div><span class=arrow>" in page


def test_a_field_that_no_sample_has_is_named(
    folder: Path, trainer: Callable[..., L.Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        trainer(AnswerPage(question="json.wanted")).test(make_task(), make_data(folder), verbose=False)
    assert "answers-test.html: no sample on it has the field json.wanted" in caplog.text


def test_answers_are_written_in_the_form_that_a_benchmark_takes(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    writer = AnswerWriter({"question_id": "json.question_id", "said": "answer"})
    trainer(writer).predict(make_task(), make_data(folder), return_predictions=False)
    lines = (tmp_path / "predictions" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["question_id"] for record in records] == list(range(22))
    assert {record["said"] for record in records} <= set(ANSWERS)


def test_an_answer_is_the_class_of_the_largest_logit(folder: Path) -> None:
    task, batch = make_task().eval(), evaluated(make_data(folder))[0]
    logits = task.model(batch).logits
    said = task.predict(batch)
    assert [answer.text for answer in said] == [ANSWERS[row.tolist().index(row.max())] for row in logits]
    assert [(answer.sample, answer.key, answer.place) for answer in said] == [
        (number, f"k{number}", number) for number in range(4)
    ]


def test_a_sample_learns_from_its_answers_in_the_list(folder: Path) -> None:
    """A white one changes nothing; one with nine of ten answers in the list weighs nine tenths."""
    task, data = make_task().eval(), make_data(folder)
    data.prepare_data()
    data.setup("fit")
    weights = set()
    for batch in data.train_dataloader():
        (share,) = task.losses(batch)["answer"].shares
        for key, weight, loss in zip(batch.keys, share.weight.tolist(), share.loss.tolist(), strict=True):
            _, question, answers = asked(int(key[1:]))
            wanted = 0.9 if question == TELLS else float(answers[0].lower() in ANSWERS)
            assert weight == pytest.approx(wanted)
            assert (loss > 0) == (weight > 0)
            weights.add(round(weight, 3))
    assert weights == {0.0, 0.9, 1.0}


def test_only_what_is_valid_counts(folder: Path) -> None:
    """Padding of the last evaluation batch, two of four samples, is neither answered nor learnt."""
    last = evaluated(make_data(folder))[-1]
    assert last.valid.tolist() == [True, True, False, False]
    assert [answer.key for answer in make_task().predict(last)] == ["k20", "k21"]
    (share,) = make_task().losses(last)["answer"].shares
    assert share.weight[2:].tolist() == [0, 0]


def test_training_without_references_is_refused(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(ValueError, match=r"no answers to learn from: set data\.loading\.references"):
        trainer(max_steps=1).fit(make_task(), make_data(folder, references=()))


class TestList:
    def test_targets_are_shares_of_the_references(self) -> None:
        listed = AnswerList(["yes", "Light Blue", "2"])
        references = [("yes",), ("The light blue!", "light blue", "navy", "2"), ("navy",), ()]
        target = listed.targets(references, device=torch.device("cpu"))
        assert target.tolist() == [[1, 0, 0], [0, 0.5, 0.25], [0, 0, 0], [0, 0, 0]]
        assert listed.targets([(), ()], device=torch.device("cpu")).tolist() == [[0, 0, 0]] * 2

    def test_the_first_score_says_which_texts_are_one_answer(self) -> None:
        scores: list[TextScore] = [VqaScores(), AnswerScores()]
        for ordered, number in ((scores, 1), (scores[::-1], None)):
            listed = make_task(["red", "2"], classes=2, scores=ordered).answers
            assert [listed.find(said) for said in ("a red", "Red", "two")] == [0, 0, number]

    def test_a_score_of_likelihoods_is_refused(self) -> None:
        with pytest.raises(ValueError, match="scores: Perplexity asks how likely a text is"):
            make_task(scores=[Perplexity()])

    def test_a_file_has_an_answer_on_each_line(self, tmp_path: Path) -> None:
        (tmp_path / "answers.txt").write_text("yes\nno\n\nlight blue \n", encoding="utf-8")
        task = make_task(str(tmp_path / "answers.txt"), classes=3)
        assert task.answers.answers == ("yes", "no", "light blue")

    @pytest.mark.parametrize(
        ("answers", "said"),
        [
            ([], "answers: there is none"),
            (["yes", " "], "answers: number 2 is blank"),
            (["red", "no", "The red."], r"'red' and 'The red\.' \(numbers 1 and 3\) are one answer but for"),
            ("nowhere.txt", r"answers=nowhere\.txt: FileNotFoundError: give a text file"),
            (["yes", "no"], "the head has 5 classes for 2 answers: set classes to 2"),
        ],
    )
    def test_lists_that_make_no_sense(self, answers: Any, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            make_task(answers)

    def test_weights_of_another_list_are_refused(
        self, folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path
    ) -> None:
        path = tmp_path / "one.ckpt"
        one = trainer(max_steps=1, limit_val_batches=0)
        one.fit(make_task(), make_data(folder))
        one.save_checkpoint(path)
        data = make_data(folder)
        trainer().test(make_task(), data, ckpt_path=path, verbose=False, weights_only=True)
        other = ["yes", "no", "blue", "red", "lime"]
        with pytest.raises(ValueError, match=r"other answers: number 3 is 'red' there, 'blue' here"):
            trainer().test(make_task(other), data, ckpt_path=path, verbose=False, weights_only=True)
