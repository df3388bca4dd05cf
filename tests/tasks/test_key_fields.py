"""Key fields from shards to strings: places that decide, pages that words look at, ranks, wrong notes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from tiny_encoders import tiny_bert
from tiny_language import wordpiece
from torch import nn

from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.shards import write_shards
from mmlab.data.words import WordReader
from mmlab.metrics.fields import as_text
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.layout import Layout
from mmlab.models.word_tagger import WordTagger
from mmlab.optim import Optimization
from mmlab.parallel.micro_batch import split
from mmlab.tasks.key_fields import KeyFieldTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
TAGS = ["O", "B-date", "I-date", "B-total"]
LETTERS = "abcdefghijklmnop"


class Pixels(Encoder):
    """A token for each pixel: its colour."""

    modality = Modality.IMAGE
    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def encode(self, inputs: Input) -> Encoded:
        tokens = (inputs.data.float() / 255 * self.scale[:, None, None]).flatten(2).transpose(1, 2)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


class Table(Encoder):
    """A vector for each token."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(120, 8)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.table(inputs.data), inputs.mask)


def document(number: int) -> dict[str, Any]:
    """Four words; the total stands below, the date on the right, in two words without a space between."""
    rng = Random(number)
    words = rng.choices(LETTERS, k=4)
    parts = [
        [("O", [0.1, 0.1, 0.2, 0.2])],
        [("B-date", [0.8, 0.1, 0.85, 0.2]), ("I-date", [0.85, 0.1, 0.9, 0.2])],
        [("B-total", [0.1, 0.8, 0.2, 0.9])],
    ]
    rng.shuffle(parts)
    tags, boxes = zip(*(one for part in parts for one in part), strict=True)
    date, total = tags.index("B-date"), tags.index("B-total")
    return {
        "words": words, "boxes": boxes, "tags": tags, "glued": [date + 1],
        "fields": {"date": words[date] + words[date + 1], "total": words[total]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    tiny_bert(folder / "text", vocabulary=120)
    wordpiece().save_pretrained(folder / "text")
    for name, count in (("train", 64), ("val", 8), ("test", 16)):
        samples = ({"__key__": f"k{n}", "json": json.dumps(document(n)).encode()} for n in range(count))
        write_shards(samples, folder, name)
    return folder


def make_data(folder: Path, *, note: str | None = "json", boxes: str | None = "json.boxes") -> ShardData:
    return ShardData(
        batch_size=16,
        splits=Splits(**{s: str(folder / f"{s}-*.tar") for s in ("train", "val", "test")}),
        text=WordReader(str(folder / "text"), max_length=16, boxes=boxes),
        loading=Loading(eval_batch_size=8, references=("json.tags",), group_by="key", note=note),
    )


def make_task(model: WordTagger, **settings: Any) -> KeyFieldTask:
    return KeyFieldTask(
        model,
        tags=TAGS,
        optimization=Optimization(partial(torch.optim.AdamW, lr=1e-2)),
        adaptation=Policy("full"),
        **settings,
    )


def read_by_bert(folder: Path, layout: Layout | None) -> WordTagger:
    torch.manual_seed(0)
    return WordTagger(TextEncoder(str(folder / "text"), layout=layout, dropout=0.0), tags=4, dropout=0.0)


def test_fields_that_only_their_place_tells_are_learned(
    folder: Path, trainer: Callable[..., L.Trainer]
) -> None:
    found = {}
    for name, layout in (("words", None), ("places", Layout(32))):
        task, data = make_task(read_by_bert(folder, layout)), make_data(folder)
        fit = trainer(max_epochs=12, check_val_every_n_epoch=12)
        fit.fit(task, data)
        found[name] = fit.test(task, data, verbose=False)[0]
    assert found["places"]["test/f1"] == 1.0
    assert found["words"]["test/f1"] < 0.7
    assert {"test/f1/date", "test/f1/total", "test/precision", "test/recall", "test/f1_low"} <= set(
        found["places"]
    )


def pages(lacking: tuple[int, ...] = (), *, side: int = 4) -> Batch:
    """Two documents of two words with a page each; some without its picture."""
    generator = torch.Generator().manual_seed(0)
    text = Input(
        torch.randint(4, 60, (2, 5), generator=generator),
        torch.arange(2),
        torch.ones(2, dtype=torch.bool),
        torch.tensor([5, 4]),
        target=torch.tensor([[False, True, False, True, False], [False, True, True, False, False]]),
        box=torch.tensor([[0, 0, 0, 0], *[[0, 0, 0.2, 0.2]] * 2, [0.8, 0.8, 1, 1], [0, 0, 0, 0]]).repeat(
            2, 1, 1
        ),
    )
    gone = torch.tensor([n in lacking for n in range(2)])
    image = Input(
        torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8),
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
        references=(("O", "B-date"), ("B-total", "O")),
        notes=tuple(json.dumps({"words": ["x", "y"], "fields": {"total": "x"}}) for _ in range(2)),
    )


def looking() -> WordTagger:
    torch.manual_seed(0)
    return WordTagger(
        Table(), tags=4, image=FusionTower(Pixels(), keep_tokens=True), grid=(4, 4), dropout=0.0
    )


def test_words_look_at_their_own_part_of_the_page() -> None:
    model = looking()
    plain = WordTagger(Table(), tags=4).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    batch = pages()
    assert torch.equal(model(batch), plain(batch))  # the gate is closed at the start
    nn.init.ones_(model.look.gate)
    seen = model(batch)
    assert not torch.allclose(seen, plain(batch))
    assert batch.image is not None
    corner = batch.image.data.clone()
    corner[:, :, 3, 3] = 255 - corner[:, :, 3, 3]
    changed = model(replace(batch, image=replace(batch.image, data=corner)))
    moved = (changed - seen).abs().sum(dim=1) > 1e-6
    # The second word of the first document stands in that corner; the second document's is a token before.
    assert moved.tolist() == [False, True, False, False]
    # Without a picture a document is read as it is, and the other as before.
    half = model(pages(lacking=(0,)))
    torch.testing.assert_close(half[:2], plain(batch)[:2])
    torch.testing.assert_close(half[2:], seen[2:])
    torch.testing.assert_close(model(pages(lacking=(0, 1))), plain(batch))
    parts = torch.cat([model(part) for part in split(batch, 1)])
    torch.testing.assert_close(parts, seen)


@pytest.mark.parametrize("lacking", [(), (0,), (0, 1)])
def test_every_parameter_has_a_gradient_whatever_a_batch_lacks(lacking: tuple[int, ...]) -> None:
    task = make_task(looking())
    (loss,) = task.losses(pages(lacking)).values()
    loss.value.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def ddp_step(_: Any = None) -> list[Any]:
    """Gradients of a rank whose documents have their pages, and of one whose have none."""
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = looking()
    nn.init.ones_(model.look.gate)
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(pages(lacking=(0, 1) if rank == 1 else ())).square().sum().backward()
    return [parameter.grad.numpy() for parameter in model.parameters() if parameter.grad is not None]


def test_ranks_with_and_without_pages_step_together(ranks: Any) -> None:
    first, second = ranks(ddp_step)
    assert len(first) == len(second) == len(list(looking().parameters()))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=0, atol=0)


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"grid=\(4, 4\) says how the tokens of a picture lie: give image"):
        WordTagger(Table(), tags=4, grid=(4, 4))
    batch = pages()
    assert batch.text is not None
    with pytest.raises(ValueError, match=r"the data read no boxes: set data\.text\.boxes"):
        looking()(replace(batch, text=replace(batch.text, box=None)))
    with pytest.raises(
        ValueError, match=r"grid=\[4, 4\] is 16 tokens, but a sample has 25: set it to the size"
    ):
        looking()(pages(side=5))


@pytest.mark.parametrize("crf", [False, True])
def test_what_is_told_is_json_beside_the_right_fields(crf: bool) -> None:
    task, batch = make_task(looking(), crf=crf).eval(), pages()
    nn.init.zeros_(task.model.head.weight)
    with torch.no_grad():
        task.model.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 5.0]))
    assert [answer.text for answer in task.predict(batch)] == [as_text({"total": "x"})] * 2
    with torch.no_grad():  # no field is marked, one is likelier than the least
        task.model.head.bias.copy_(torch.tensor([5.0, 0.0, 0.0, 4.0]))
    assert [answer.text for answer in task.predict(batch)] == [as_text({"total": "x"})] * 2
    task.least = 0.5
    assert [answer.text for answer in task.predict(batch)] == [as_text({})] * 2
    with torch.no_grad():
        task.model.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 5.0]))
    metrics = task.make_metrics()
    known = json.dumps({"words": ["x", "y"], "fields": {"total": "y", "date": "x"}, "glued": [1]})
    task.update_metrics(metrics, replace(batch, notes=(batch.notes[0], known)))
    assert [one.references for one in metrics.answered()] == [
        (as_text({"total": "x"}),),
        (as_text({"date": "x", "total": "y"}),),
    ]
    assert metrics.compute()["f1"] == pytest.approx(2 * 1 / (2 + 3))
    task.update_metrics(metrics, replace(batch, notes=('{"words": ["x", "y"]}',) * 2))
    assert [one.references for one in metrics.answered()] == [(), ()]
    # A page of answers shows the fields too, not the tags; null is no value.
    blank = json.dumps({"words": ["x", "y"], "fields": {"total": None, "date": "x"}})
    assert task.references_of(replace(batch, notes=(blank, known)), 0) == (as_text({"date": "x"}),)


@pytest.mark.parametrize("name", ["TOTAL", "company"])
def test_a_field_that_no_tags_mark_is_refused(name: str) -> None:
    task, batch = make_task(looking()).eval(), pages()
    note = json.dumps({"words": ["x", "y"], "fields": {"total": "x", name: "y"}})
    said = rf"sample 'b' has the field '{name}', but the tags mark date, total: add tags of it, write it as"
    with pytest.raises(ValueError, match=said):
        task.update_metrics(task.make_metrics(), replace(batch, notes=(batch.notes[0], note)))
    # What has no value is not scored.
    blank = json.dumps({"words": ["x", "y"], "fields": {"total": "x", name: " ", "date": None}})
    task.update_metrics(task.make_metrics(), replace(batch, notes=(batch.notes[0], blank)))


def test_a_document_whose_text_is_taken_away_has_no_fields() -> None:
    task, batch = make_task(looking()).eval(), pages()
    assert batch.text is not None
    gone = replace(batch, text=batch.text.without(torch.tensor([True, False])))
    told = [answer.text for answer in task.predict(gone)]
    assert told[0] == as_text({})
    assert told[1] == task.predict(batch)[1].text


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ("", r"sample 'a': data\.loading\.note is no object with `words` and `fields` \(JSONDecodeError\)"),
        ("[]", r"is no object .* \(TypeError\)"),
        ('{"fields": {}}', r"is no object .* \(KeyError\)"),
        ('{"words": ["x"]}', r"sample 'a' has 2 words, its note 1: data\.text\.field and the words of"),
    ],
)
def test_notes_that_do_not_fit(note: str, said: str) -> None:
    task, batch = make_task(looking()).eval(), pages()
    with pytest.raises(ValueError, match=said):
        task.predict(replace(batch, notes=(note, note)))


def test_a_least_that_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"least=0\.0 is a probability: above 0, up to 1"):
        make_task(looking(), least=0.0)


def test_a_run_without_notes_is_told_which_setting(folder: Path) -> None:
    task, batch = make_task(looking()).eval(), pages()
    with pytest.raises(ValueError, match=r"set data\.loading\.note to what holds them \(`json`\)"):
        task.predict(replace(batch, notes=()))
    data = make_data(folder, note="json.nothing")
    data.prepare_data()
    with pytest.raises(ValueError, match=r"loading\.note"):
        data.setup("fit")


def test_pages_and_boxes_come_from_shards_together(folder: Path, tmp_path: Path) -> None:
    with io.BytesIO() as file:
        Image.new("RGB", (20, 60), (9, 9, 9)).save(file, "PNG")
        page = file.getvalue()
    samples = [
        {"__key__": f"k{n}", "json": json.dumps(document(n)).encode(), **({"png": page} if n % 2 else {})}
        for n in range(4)
    ]
    write_shards(samples, tmp_path, "test")
    data = ShardData(
        batch_size=4,
        splits=Splits(test=str(tmp_path / "test-*.tar")),
        text=WordReader(str(folder / "text"), max_length=8, boxes="json.boxes"),
        image=ImageReader(4, fit="stretch"),
        loading=Loading(references=("json.tags",), group_by="key", note="json"),
    )
    data.prepare_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    model = looking()
    nn.init.ones_(model.look.gate)
    task = make_task(model).eval()
    answers = task.predict(batch)
    assert [answer.key for answer in answers] == ["k0", "k1", "k2", "k3"]
    assert all(set(json.loads(answer.text)) <= {"date", "total"} for answer in answers)
