"""Named entities from shards to a report: learning, pictures, sentences in parts, wrong tags."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_language import wordpiece

from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.callbacks.entity_report import EntityReport
from mmlab.commands.features import find_work
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.words import WordReader
from mmlab.metrics.entities import EntityScores
from mmlab.metrics.text import AnswerScores
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.word_tagger import WordTagger, by_sample
from mmlab.optim import Optimization
from mmlab.parallel.micro_batch import split
from mmlab.tasks.extraction import ExtractionTask
from mmlab.tasks.key_fields import KeyFieldTask
from mmlab.tasks.tagging import tag_numbers

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*infer the batch indices"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing"),
]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
NAMES = {"ann": "PER", "bob": "PER", "rome": "LOC", "ulm": "LOC"}


class Letters(Encoder):
    """A table of pieces, and what stands on the left."""

    modality = Modality.TEXT
    dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(120, 32)
        self.over = torch.nn.GRU(32, 16, batch_first=True, bidirectional=True)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.over(self.table(inputs.data))[0], inputs.mask)


class Colour(Encoder):
    """One token: the mean colour."""

    modality = Modality.IMAGE
    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def encode(self, inputs: Input) -> Encoded:
        tokens = (inputs.data.float().mean(dim=(2, 3)) / 255 * self.scale)[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def sentence(number: int) -> tuple[list[str], list[str]]:
    """`a NAME b NAME c` with names of one or two words."""
    names = list(NAMES)
    one, other = names[number % 4], names[(number // 4) % 4]
    words, tags = ["see", one], ["O", f"B-{NAMES[one]}"]
    if NAMES[one] == "PER" and number % 3 == 0:
        words, tags = [*words, "jr"], [*tags, "I-PER"]
    return [*words, "in", other], [*tags, "O", f"B-{NAMES[other]}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extraction")
    wordpiece().save_pretrained(folder / "tokenizer")

    def sample(number: int) -> dict[str, Any]:
        words, tags = sentence(number)
        about = {"words": words, "tags": tags}
        if number == 17:
            about["odd"] = tags[:-1]
        return {"__key__": f"k{number}", "json": json.dumps(about | {"odd": about.get("odd", tags)}).encode()}

    for name, count in (("train", 96), ("val", 20), ("test", 22)):
        write_shards(map(sample, range(count)), folder, name)
    return folder


def make_data(folder: Path, *, field: str = "json.tags", max_length: int = 64) -> ShardData:
    return ShardData(
        batch_size=16,
        splits=Splits(**{s: str(folder / f"{s}-*.tar") for s in ("train", "val", "test")}),
        text=WordReader(str(folder / "tokenizer"), max_length=max_length),
        loading=Loading(eval_batch_size=8, references=(field,), group_by="key"),
    )


def make_task(
    *, tags: list[str] = TAGS, crf: bool = False, constrained: bool = True, **model: Any
) -> ExtractionTask:
    torch.manual_seed(0)
    return ExtractionTask(
        WordTagger(Letters(), tags=4, **model),
        tags=tags,
        crf=crf,
        constrained=constrained,
        optimization=Optimization(partial(torch.optim.AdamW, lr=2e-2)),
        adaptation=Policy("full"),
    )


@pytest.mark.parametrize("crf", [False, True])
def test_entities_are_learned_and_reported(
    folder: Path, trainer: Callable[..., L.Trainer], tmp_path: Path, capsys: Any, crf: bool
) -> None:
    # Sentences are longer than a row: a word and its special tokens.
    task, data = make_task(crf=crf), make_data(folder, max_length=6)
    fit = trainer(EntityReport(), max_epochs=8, check_val_every_n_epoch=8)
    fit.fit(task, data)
    found = fit.test(task, data, verbose=False)[0]
    assert found["test/f1"] > 0.95
    assert found["test/f1/PER"] > 0.9
    text = (tmp_path / "report-test.txt").read_text(encoding="utf-8")
    assert text.split()[:4] == ["precision", "recall", "f1-score", "support"]
    assert "micro avg" in text
    assert text in capsys.readouterr().out


def test_right_tags_that_are_never_told_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """I begins an entity by IOB1."""
    batch = replace(pictured(), references=(("O", "I-PER"), ("B-LOC", "O")))
    bound, free = make_task(), make_task(constrained=False)
    with caplog.at_level("INFO"):
        for task in (free, bound, bound):
            task.losses(batch)
    assert caplog.text.count("sample 'a' has I-PER behind O, which keeps to no scheme") == 1


@pytest.mark.parametrize("crf", [False, True])
@pytest.mark.parametrize(
    ("constrained", "expected"), [(False, ["I-PER", "I-PER"]), (True, ["B-PER", "I-PER"])]
)
def test_no_name_begins_in_its_middle(crf: bool, constrained: bool, expected: list[str]) -> None:
    """Without limits it may, and seqeval takes that for a beginning."""
    task = make_task(crf=crf, constrained=constrained).eval()
    torch.nn.init.zeros_(task.model.head.weight)
    with torch.no_grad():
        task.model.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.4]))
    assert [one.tags for one in task.tell(pictured())] == [expected, expected]


def test_a_report_of_entities_is_for_scores_of_entities(trainer: Callable[..., L.Trainer]) -> None:
    fit, report = trainer(max_epochs=1), EntityReport()
    report.setup(fit, make_task(), "fit")
    model = WordTagger(Letters(), tags=4)
    settings = {"optimization": Optimization(torch.optim.AdamW), "adaptation": Policy("full")}
    fields = KeyFieldTask(model, tags=TAGS, **settings)
    with pytest.raises(ValueError, match=r"EntityReport is not for KeyFieldTask, which has no scores of ent"):
        report.setup(fit, fields, "test")
    report.setup(fit, ExtractionTask(model, tags=TAGS, scores=[EntityScores()], **settings), "test")
    with pytest.raises(ValueError, match="leave the callback out"):
        report.setup(fit, ExtractionTask(model, tags=TAGS, scores=[AnswerScores()], **settings), "test")


def test_a_row_for_each_part_is_one_sentence(folder: Path) -> None:
    """However a text is cut into rows, its words come in order."""
    task = make_task().eval()
    emissions = []
    for max_length in (64, 6):
        data = make_data(folder, max_length=max_length)
        data.prepare_data()
        data.setup("test")
        batch = next(iter(data.test_dataloader()))
        emission, there = by_sample(task.model(batch), batch.text)
        assert there.sum(dim=1).tolist() == [len(sentence(n)[0]) for n in range(8)]
        assert [len(answer.text.split()) for answer in task.predict(batch)] == there.sum(dim=1).tolist()
        parts = torch.cat([task.model(part) for part in split(batch, 3)])
        torch.testing.assert_close(by_sample(parts, batch.text)[0], emission)
        emissions.append(emission)
    assert emissions[0].shape == emissions[1].shape


def test_the_loss_is_that_of_all_words(folder: Path) -> None:
    task, data = make_task(dropout=0.0), make_data(folder)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    flat = task.model(batch)
    right = torch.tensor([TAGS.index(tag) for known in batch.references for tag in known])
    value, (share,) = task.losses(batch)["tags"]
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(flat, right))
    assert share.weight.tolist() == [len(known) for known in batch.references]


def test_features_of_tagged_words_are_not_kept(folder: Path) -> None:
    """They would not say which tokens begin a word."""
    task = ExtractionTask(
        WordTagger(Letters(), tags=4),
        tags=TAGS,
        optimization=Optimization(torch.optim.AdamW),
        adaptation=Policy({"text": "frozen", "*": "full"}),
    )
    with pytest.raises(ValueError, match="those of words that are tagged and of prompts are not kept"):
        find_work(task, make_data(folder), torch.device("cpu"))


def test_tags_that_do_not_fit(folder: Path, trainer: Callable[..., L.Trainer]) -> None:
    with pytest.raises(
        ValueError, match=r"sample 'k17' has (\d) words and (\d) tags: name the fields of both"
    ):
        trainer(max_epochs=1).fit(make_task(), make_data(folder, field="json.odd"))
    few = ["O", "B-PER", "I-PER", "B-ORG"]
    with pytest.raises(ValueError, match=r"sample 'k\d+': the tag 'B-LOC' is none of O, B-PER, I-PER, B-ORG"):
        trainer(max_epochs=1).fit(make_task(tags=few), make_data(folder))
    with pytest.raises(ValueError, match="the tag 'PER' is not O, nor B-"):
        make_task(tags=["O", "PER", "B-A", "I-A"])
    with pytest.raises(ValueError, match="the model gives 4 tags, there are 3: set both alike"):
        make_task(tags=TAGS[:3])
    for wrong in (["O", "B-A", "B-A", "I-A"], ["O", "B-A b", "B-A", "I-A"]):
        with pytest.raises(ValueError, match="is there twice, or has a space"):
            make_task(tags=wrong)
    data = make_data(folder)
    data.loading = Loading(group_by="key")
    with pytest.raises(ValueError, match=r"no tags to learn from: set data\.loading\.references"):
        trainer(max_epochs=1).fit(make_task(), data)


def pictured(lacking: tuple[int, ...] = ()) -> Batch:
    """Two sentences of two words; some without a picture."""
    generator = torch.Generator().manual_seed(0)
    text = Input(
        torch.randint(4, 60, (2, 5), generator=generator),
        torch.arange(2),
        torch.ones(2, dtype=torch.bool),
        torch.tensor([5, 4]),
        target=torch.tensor([[False, True, False, True, False], [False, True, True, False, False]]),
    )
    gone = torch.tensor([n in lacking for n in range(2)])
    image = Input(
        torch.randint(0, 256, (2, 3, 4, 4), generator=generator, dtype=torch.uint8),
        torch.arange(2).masked_fill(gone, NOBODY),
        ~gone,
    )
    return Batch(
        keys=("a", "b"),
        place=torch.arange(2),
        valid=torch.ones(2, dtype=torch.bool),
        group=torch.arange(2),
        text=text,
        image=image,
        references=(("O", "B-PER"), ("B-LOC", "O")),
    )


def test_a_picture_is_looked_at_through_a_gate() -> None:
    torch.manual_seed(0)
    tower = FusionTower(Colour(), keep_tokens=True)
    model = WordTagger(Letters(), tags=4, image=tower, num_heads=4).eval()
    plain = WordTagger(Letters(), tags=4).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    batch = pictured()
    assert torch.equal(model(batch), plain(batch))  # the gate is closed at the start
    torch.nn.init.ones_(model.look.gate)
    seen = model(batch)
    assert not torch.allclose(seen[:2], plain(batch)[:2])
    # Without a picture a sentence is read as it is, and the other as before.
    half = model(pictured(lacking=(0,)))
    torch.testing.assert_close(half[:2], plain(batch)[:2])
    torch.testing.assert_close(half[2:], seen[2:])
    model(pictured(lacking=(0, 1))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="text has Colour, an encoder of image: give one of text"):
        WordTagger(Colour(), tags=4)
    batch = pictured()
    assert batch.text is not None
    with pytest.raises(ValueError, match=r"the model tags words: read them by data\.text"):
        WordTagger(Letters(), tags=4)(
            Batch(**{n: getattr(batch, n) for n in ("keys", "place", "valid", "group")})
        )
    _, there = by_sample(WordTagger(Letters(), tags=4)(batch), batch.text)
    right, known = tag_numbers(batch, there, {tag: n for n, tag in enumerate(TAGS)})
    assert right.tolist() == [[0, 1], [3, 0]]
    assert known.tolist() == [True, True]


@pytest.mark.parametrize("crf", [False, True])
def test_every_parameter_has_a_gradient_whatever_a_batch_holds(crf: bool) -> None:
    """Sentences of one word, no words at all, no sample with tags: ranks must still step together."""
    task, batch = make_task(crf=crf), pictured()
    assert batch.text is not None
    one = batch.text.target & (batch.text.target.cumsum(dim=1) == 1)
    for text, references in (
        (replace(batch.text, target=one), (("O",), ("B-LOC",))),
        (batch.text.without(torch.ones(2, dtype=torch.bool)), ((), ())),
        (batch.text, ((), ())),
    ):
        task.zero_grad()
        (loss,) = task.losses(replace(batch, text=text, references=references)).values()
        loss.value.backward()
        for name, parameter in task.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_a_sample_without_tags_is_told_of_but_not_scored() -> None:
    task, batch = make_task().eval(), pictured()
    metrics = task.make_metrics()
    task.update_metrics(metrics, replace(batch, references=(("O", "B-PER"), ())))
    assert [bool(one.references) for one in metrics.answered()] == [True, False]
    metrics = task.make_metrics()
    task.update_metrics(metrics, replace(batch, references=()))
    assert len(metrics.answered()) == 2
    with pytest.raises(ValueError, match="sample 'b' has 2 words and 1 tags"):
        task.update_metrics(metrics, replace(batch, references=((), ("O",))))


def test_tags_of_a_sample_without_words_are_refused_in_evaluation_too() -> None:
    task, batch = make_task().eval(), pictured()
    assert batch.text is not None
    gone = batch.text.without(torch.tensor([True, False]))
    target = gone.target.masked_fill((gone.owner == NOBODY)[:, None], False)  # as the reader leaves it
    never = replace(batch, text=replace(gone, target=target))
    for scored in (task.losses, partial(task.update_metrics, task.make_metrics())):
        with pytest.raises(ValueError, match="sample 'a' has 0 words and 2 tags"):
            scored(never)
    metrics = task.make_metrics()
    task.update_metrics(metrics, replace(never, references=((), ("B-LOC", "O"))))
    assert [one.references for one in metrics.answered()] == [(), ("B-LOC O",)]
    # Words that were taken away count as missed.
    metrics = task.make_metrics()
    task.update_metrics(metrics, replace(batch, text=gone))
    assert [one.references for one in metrics.answered()] == [("O B-PER",), ("B-LOC O",)]
    assert metrics.answered()[0].prediction == "O O"


def test_tags_without_words_come_so_from_shards(folder: Path, tmp_path: Path) -> None:
    about = [{"words": ["see", "ann"], "tags": ["O", "B-PER"]}, {"words": [], "tags": ["O"]}]
    samples = ({"__key__": f"k{n}", "json": json.dumps(one).encode()} for n, one in enumerate(about))
    write_shards(samples, tmp_path, "test")
    data = make_data(folder)
    data.splits = Splits(test=str(tmp_path / "test-*.tar"))
    data.prepare_data()
    data.setup("test")
    task = make_task().eval()
    with pytest.raises(ValueError, match="sample 'k1' has 0 words and 1 tags"):
        task.update_metrics(task.make_metrics(), next(iter(data.test_dataloader())))


def field_task() -> ExtractionTask:
    task = make_task(crf=True, dropout=0.0)
    assert task.field is not None
    for parameter in task.field.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return task


def ranks_loss(_: Any = None) -> float:
    """The mean over ranks of the loss of each rank's half, by a CRF."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    (loss,) = field_task().losses(pictured().select(torch.tensor([rank]))).values()
    total = loss.value.detach().clone()
    torch.distributed.all_reduce(total)
    return float(total) / world


def test_ranks_have_the_loss_of_the_whole_batch(ranks: Any) -> None:
    (whole,) = field_task().losses(pictured()).values()
    assert ranks(ranks_loss) == pytest.approx([float(whole.value.detach())] * 2, rel=1e-5)
