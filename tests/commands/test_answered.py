"""Which samples keys mean, and the vectors of these and of what was said of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_language import tiny_tokenizer
from torch import Tensor, nn

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.commands.answered import Found, Judge, collect, find_split, look_up
from mmlab.data.audio import AudioReader
from mmlab.data.image import ImageReader
from mmlab.data.module import ShardData
from mmlab.data.parts import Splits
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.shards import ShardSet, write_shards
from mmlab.data.text import TextReader
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.objectives.contrastive import InfoNCE
from mmlab.optim import Optimization
from mmlab.sources.generated import Generated
from mmlab.tasks.retrieval import RetrievalTask

# Lightning 2.6 warns of a task that no config describes.
pytestmark = pytest.mark.filterwarnings("ignore:.*is already saved during checkpointing")

DIM = 4


class Words(Encoder):
    """A table of letters, which dropout spoils in training."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, self.dim)
        self.dropout = nn.Dropout(0.5)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.dropout(self.table(inputs.data)), inputs.mask)


class Means(Encoder):
    """The mean colour of a picture, or the mean loudness of a sound."""

    dim = 8

    def __init__(self, modality: Modality, values: int) -> None:
        super().__init__()
        self.modality = modality
        self.linear = nn.Linear(values, self.dim)

    def encode(self, inputs: Input) -> Encoded:
        if self.modality is Modality.IMAGE:
            values = inputs.data.float().mean((2, 3)) / 255
        else:
            assert inputs.mask is not None
            values = (inputs.data.abs().sum(1) / inputs.mask.sum(1))[:, None]
        return Encoded(self.linear(values)[:, None], torch.ones(len(values), 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answered")
    tiny_tokenizer().save_pretrained(folder / "letters")
    return folder


def make_judge(folder: Path, *, pairs: list[tuple[str, str]] | None = None, **readers: Any) -> Judge:
    torch.manual_seed(0)
    model = DualEncoder(
        image=Tower(Means(Modality.IMAGE, 3), dim=DIM),
        text=Tower(Words(), dim=DIM),
        audio=Tower(Means(Modality.AUDIO, 1), dim=DIM),
    )
    task = RetrievalTask(
        model,
        objective=InfoNCE(),
        optimization=Optimization(partial(torch.optim.AdamW, lr=0.01)),
        adaptation=Policy("full"),
        pairs=pairs,
    )
    given: dict[str, Any] = {
        "image": ImageReader(16), "audio": AudioReader(members=["*.wav", "wav"], every=True),
        "text": TextReader(str(folder / "letters"), fields=["json.caption"]),
    }  # fmt: skip
    data = ShardData(batch_size=64, loading=Loading(eval_batch_size=3), **given | readers)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return Judge(task.train(), data, trainer)


def make_samples(number: int) -> list[dict[str, Any]]:
    """Keys 0, 1, ...; sample n has n mod 3 references, one of them blank."""
    samples = list(Generated(train=number).samples("train"))
    for n, sample in enumerate(samples):
        about = json.loads(sample["json"])
        about["said"] = [about["colour"], "\t", about["shape"]][: n % 3 + 1] if n % 3 else []
        sample |= {"__key__": str(n), "json": json.dumps(about).encode()}
    return samples


def write(folder: Path, name: str, samples: Iterable[Mapping[str, Any]]) -> ShardSet:
    return ShardSet(write_shards(samples, folder, name, max_samples=4))


def alone(judge: Judge, modality: Modality, row: Tensor) -> Tensor:
    """The vector of a row by itself."""
    length = None if modality is Modality.IMAGE else torch.tensor([len(row)])
    one = torch.zeros(1, dtype=torch.int64)
    return judge.embed(modality, Input(row[None], one, one == 0, length))[0]


def test_vectors_are_those_of_each_row_alone(folder: Path) -> None:
    judge = make_judge(folder)
    shards = write(folder, "all", make_samples(11))
    # Not in the order of the shards, not all, and of several batches.
    said = {str(n): f"answer {n}" * (n + 1) for n in (7, 2, 10, 0, 1, 5)}
    found = look_up("all", shards, said.keys())
    rows, left_out = collect(judge, found, said, ["json.said"])
    assert rows is not None
    assert not left_out
    wanted = sorted(map(int, said))
    assert [int(key) for key in sorted(found.places, key=int)] == wanted
    owner = []
    for place, n in enumerate(wanted):
        raw = shards.read(n // 4, n % 4)
        image = alone(judge, Modality.IMAGE, judge.media.read(raw.members, None)[0])
        torch.testing.assert_close(rows.media[place], image, rtol=0, atol=1e-6)
        answer = alone(judge, Modality.TEXT, judge.text.encode(said[str(n)]))
        torch.testing.assert_close(rows.answers[place], answer, rtol=0, atol=1e-6)
        for text in json.loads(raw.members["json"])["said"]:
            if text.strip():
                reference = alone(judge, Modality.TEXT, judge.text.encode(text))
                torch.testing.assert_close(rows.references[len(owner)], reference, rtol=0, atol=1e-6)
                owner.append(place)
    assert rows.owner.tolist() == owner
    assert len(owner) == 7
    assert len(rows.group.unique()) == len(wanted)


def test_samples_of_one_caption_are_one_group(folder: Path) -> None:
    samples = make_samples(4)
    samples[2]["json"] = samples[0]["json"]
    shards = write(folder, "grouped", samples)
    said = {str(n): "a" for n in range(4)}
    rows, _ = collect(make_judge(folder), look_up("", shards, said.keys()), said, ["json.said"])
    assert rows is not None
    group = rows.group.tolist()
    assert group[0] == group[2]
    assert len(set(group)) == 3


def test_what_cannot_be_judged_is_counted_by_its_reason(folder: Path) -> None:
    samples = make_samples(9)
    samples[1]["jpg"] = b"\xff\xd8 no picture"
    del samples[2]["jpg"]
    samples[4]["json"] = b"{"
    samples[7]["__key__"] = "6"
    shards = write(folder, "broken", samples)
    said = {str(n): "a cat" for n in (0, 1, 2, 4, 6, 7, 8, 99)}
    found = look_up("broken", shards, said.keys())
    assert (sorted(found.places), found.unclear, found.hits) == (["0", "1", "2", "4", "8"], 1, 6)
    rows, left_out = collect(make_judge(folder), found, said, ["json.said"])
    assert rows is not None
    assert len(rows.group) == 2
    assert left_out == {"image: cannot decode": 1, "no image in the sample": 1, "text: invalid JSON": 1}
    nothing, left_out = collect(make_judge(folder), look_up("", shards, {"2"}), said, ["json.said"])
    assert nothing is None
    assert left_out == {"no image in the sample": 1}


def test_sounds_are_judged_where_no_pictures_were_aligned_with_text(folder: Path) -> None:
    judge = make_judge(folder, pairs=[("image", "audio"), ("audio", "text")])
    assert judge.medium is Modality.AUDIO
    samples = make_samples(5)
    for n, sample in enumerate(samples):
        sample["more.wav"] = samples[(n + 1) % 5]["wav"]
    del samples[3]["wav"], samples[3]["more.wav"]
    said = {str(n): "a tone" for n in range(5)}
    found = look_up("", write(folder, "sounds", samples), said.keys())
    rows, left_out = collect(judge, found, said, ["json.said"])
    assert rows is not None
    assert left_out == {"no audio in the sample": 1}
    for place, n in enumerate((0, 1, 2, 4)):
        first = judge.media.read({"more.wav": samples[n]["more.wav"]}, None)[0]
        torch.testing.assert_close(rows.media[place], alone(judge, Modality.AUDIO, first), rtol=0, atol=1e-6)


def test_runs_that_cannot_judge_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="aligns image with audio: answers are judged by one of image or au"):
        make_judge(folder, pairs=[("image", "audio")])
    prompts = PromptReader(str(folder / "letters"), prompts=[Prompt("{txt}", "{json.caption}")])
    with pytest.raises(ValueError, match="reads text by PromptReader: judging needs a TextReader"):
        make_judge(folder, text=prompts)


@pytest.fixture(scope="module")
def splits(folder: Path) -> Path:
    ranges = {"train": range(0, 6), "val": range(6, 9), "test": range(9, 12)}
    ranges |= {"copy": range(6, 9), "more": range(6, 12)}
    samples = make_samples(12)
    for name, numbers in ranges.items():
        # A member of its own, so that the shards of two splits differ even where keys are the same.
        write(folder / "splits", name, [samples[n] | {name: b"x"} for n in numbers])
    return folder / "splits"


def find(folder: Path, keys: Iterable[int], **names: str) -> Found:
    patterns: dict[str, Any] = {split: f"{folder}/{name}-*.tar" for split, name in names.items()}
    data = ShardData(batch_size=4, image=ImageReader(16), splits=Splits(**patterns))
    return find_split(data, dict.fromkeys(map(str, keys), ""))


def test_the_split_with_most_keys_is_meant(splits: Path) -> None:
    names = {"train": "train", "val": "val", "test": "test", "predict": "test"}
    for keys, where, hits in [((9, 11), "test", 2), ((6, 7, 10), "val", 2), ((0, 3), "train", 2),
                              ((0, 1, 2, 6), "train", 3)]:  # fmt: skip
        found = find(splits, keys, **names)
        assert (found.where, found.hits) == (where, hits)
    with pytest.raises(ValueError, match=r"no key of the answers \(77, ...\) is in .*\(test, val, train\)"):
        find(splits, (77, 78), **names)
    with pytest.raises(ValueError, match=r"\(it has none\)"):
        find(splits, (1,))


def test_it_is_not_guessed_which_of_two_is_meant(splits: Path) -> None:
    with pytest.raises(ValueError, match="3 keys of the answers are in test and as many in val: name the"):
        find(splits, (6, 7, 8), val="copy", test="val")
    assert find(splits, (6, 7, 8, 9), val="val", predict="more").where == "predict"
