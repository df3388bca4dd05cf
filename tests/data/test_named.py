"""Fields that a config names and no sample has: refused before training, whichever setting names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_language import tiny_language

from mmlab.data.fields import list_fields
from mmlab.data.module import ShardData
from mmlab.data.named import spread
from mmlab.data.parts import Mixture, Part, Splits, open_samples
from mmlab.data.plan import Loading
from mmlab.data.prompt import Prompt, PromptReader
from mmlab.data.remote import RemoteShards
from mmlab.data.shards import write_shards

ASKED = Prompt("{json.question}", "{json.answer}")
TURNS = Prompt("{each.question}", "{each.answer}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_language(tmp_path_factory.mktemp("language")))


def about(number: int, **fields: Any) -> dict[str, Any]:
    return {"__key__": f"{number:04d}", "json": {"question": f"q{number}", "answer": "a"} | fields}


def write(folder: Path, split: str, samples: list[dict[str, Any]]) -> None:
    write_shards(iter(samples), folder, split)


@pytest.fixture
def build(tmp_path: Path, tokenizer: str) -> Callable[..., ShardData]:
    """A run on shards in two folders, `one` (with turns) and `two` (with captions), each its own source."""
    write(
        tmp_path / "one",
        "train",
        [about(n, questions=[{"question": "q", "answer": "a"}]) for n in range(900)],
    )
    write(tmp_path / "two", "train", [about(n, captions={"en": "x"}) for n in range(9)])
    write(tmp_path / "one", "val", [about(n, group="g", choices=["a", "b"]) for n in range(4)])
    write(tmp_path / "two", "val", [about(n, captions={"en": "x"}) for n in range(4)])

    def make(*prompts: Prompt, val: bool = True, each: str | None = None, **settings: Any) -> ShardData:
        parts = {
            name: Part(
                splits=Splits(
                    train=str(tmp_path / name / "train-*.tar"),
                    val=str(tmp_path / name / "val-*.tar") if val else None,
                    test=str(tmp_path / name / "val-*.tar"),
                )
            )
            for name in ("one", "two")
        }
        choices = settings.pop("choices", None)
        loading: dict[str, Any] = {"group_by": "key"} | settings
        return ShardData(
            batch_size=2,
            source=Mixture(parts),
            text=PromptReader(tokenizer, prompts=list(prompts), each=each, choices=choices),
            loading=Loading(**loading),
        )

    return make


def refusal(data: ShardData, stage: str = "fit") -> str:
    with pytest.raises(ValueError, match="no sample looked at") as raised:
        data.setup(stage)
    return str(raised.value)


def test_each_prompt_by_itself(build: Callable[..., ShardData]) -> None:
    said = refusal(build(ASKED, Prompt("{json.question}", "{json.answr}")))
    assert said.startswith(
        "no sample looked at in the training and validation shards has json.answr, named in "
    )
    assert "data.text.prompts[1]; the first has json.question, json.answer, json.questions: correct" in said
    # Each source has one of the two, none both.
    said = refusal(build(ASKED, Prompt("{all json.questions}", "{json.captions.en}")))
    assert "has json.captions.en and json.questions together, named in data.text.prompts[1]" in said
    said = refusal(build(ASKED, Prompt("{each.qestion}", "{each.answer}"), each="json.questions"))
    assert "has each.qestion, named in data.text.prompts[1]" in said


def test_a_field_of_a_small_source_or_of_validation_is_found(build: Callable[..., ShardData]) -> None:
    data = build(TURNS, Prompt("Describe.", "{json.captions.en}"), each="json.questions")
    data.setup("fit")
    build(ASKED, Prompt("{json.group}", "{json.answer}")).setup("fit")


def test_references_are_looked_for_where_answers_are_compared(build: Callable[..., ShardData]) -> None:
    build(ASKED, references=("json.answer", "json.captions.en")).setup("fit")
    said = refusal(build(ASKED, references=("json.answer", "json.anwers")))
    assert "in the validation shards has json.anwers, named in data.loading.references" in said
    assert "json.questions" in refusal(build(ASKED, references=("json.questions",)), "validate")
    build(ASKED, val=False, references=("json.questions",)).setup("fit")
    assert "in the training shards has json.group" in refusal(
        build(ASKED, val=False, references=("json.group",))
    )


def test_kinds_are_looked_for_where_answers_are_compared(build: Callable[..., ShardData]) -> None:
    build(ASKED, kind_by="json.answer").setup("fit")
    assert "json.kind, named in data.loading.kind_by" in refusal(build(ASKED, kind_by="json.kind"))
    with pytest.raises(ValueError, match=r"kind_by: each\.answer needs turns"):
        build(ASKED, kind_by="each.answer")


def test_groups_and_choices(build: Callable[..., ShardData]) -> None:
    build(ASKED, group_by="json.group", choices="json.choices").setup("fit")
    assert "json.grp, named in data.loading.group_by" in refusal(build(ASKED, group_by="json.grp"))
    assert "json.choice, named in data.text.choices" in refusal(build(ASKED, choices="json.choice"))
    build(ASKED, val=False, choices="json.choice").setup("fit")  # nothing chooses
    build(ASKED, choices=["a", "b"]).setup("fit")


def test_what_is_tested_may_lack_answers(build: Callable[..., ShardData]) -> None:
    build(ASKED, references=("json.nothing",), group_by="json.nothing").setup("test")


def test_fields_of_turns_are_found_and_need_turns(build: Callable[..., ShardData]) -> None:
    turns = {"each": "json.questions", "references": ("each.answer",), "group_by": "each.question"}
    build(TURNS, **turns).setup("fit")
    assert "each.answr" in refusal(build(TURNS, **turns | {"references": ("each.answr",)}))
    for setting in ({"references": ("json.answer", "each.answer")}, {"group_by": "each.answer"}):
        with pytest.raises(ValueError, match=r"each\.answer needs turns: set data\.text\.each"):
            build(ASKED, **setting)


def test_the_turn_that_is_asked_can_be_looked_up(build: Callable[..., ShardData]) -> None:
    data = build(TURNS, each="json.questions", val=False)
    data.setup("fit")
    place = next(iter(data.train_dataloader())).place.tolist()[0]
    assert data.field("train", place, "each.answer") == ["a"]
    assert data.field("train", place, "json.answer") == ["a"]


def test_what_is_looked_at_takes_turns_between_sources(build: Callable[..., ShardData]) -> None:
    data = build(ASKED)
    samples = open_samples(data.source, data.splits, "train", remote=RemoteShards())
    assert samples is not None
    found = [json.loads(members["json"]) for members in spread(samples)]
    assert ["captions" in one for one in found[:4]] == [False, True, False, True]
    assert sum("captions" in one for one in found) == 9
    numbers = [int(one["question"][1:]) for one in found if "captions" not in one]
    assert (len(set(numbers)), numbers[0], numbers[-1]) == (512, 0, 899)


def test_fields_of_a_sample_are_listed() -> None:
    members = {"jpg": b"\xff", "json": b'{"a": {"b": {"c": 1}, "d": []}, "e": [{"f": 1}], "g": {}}'}
    assert list_fields(members) == "jpg, json.a.b, json.a.d, json.e, json.g"
    assert list_fields({"json": b"{", "x.json": b"null"}) == "json (unreadable), x.json"
    many = {"json": json.dumps({f"f{n}": n for n in range(30)}).encode()}
    assert list_fields(many).endswith("json.f19, ...")
