"""Which of several prompts a sample gets, by its media; and how long its conversation may become."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from tiny_language import tiny_language

from mmlab.batch import MARKERS, Modality
from mmlab.data.audio import AudioReader
from mmlab.data.image import ImageReader
from mmlab.data.prompt import Prompt, PromptReader

SEEN = Prompt("<image>{json.question}", "{json.answer}")
TOLD = Prompt("{json.question}", "{json.answer}")
PAIR = Prompt("<image><image>{json.question}", "{json.answer}")
MEDIA = (ImageReader(4, every=True), AudioReader())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_language(tmp_path_factory.mktemp("prompts")))


@pytest.fixture(scope="module")
def make(folder: str) -> Callable[..., PromptReader]:
    def build(*prompts: Prompt, **settings: Any) -> PromptReader:
        reader = PromptReader(folder, prompts=list(prompts), **settings)
        beside = reader.beside([reader, *MEDIA])
        assert isinstance(beside, PromptReader)
        return beside

    return build


def sample(*names: str, **fields: Any) -> dict[str, bytes]:
    about = {"question": "Which?", "answer": "red"} | fields
    return {"json": json.dumps(about).encode(), **dict.fromkeys(names, b"")}


def markers(rows: tuple[torch.Tensor, ...], modality: Modality = Modality.IMAGE) -> int:
    return int((rows[0][:, 0] == MARKERS[modality]).sum())


def test_only_prompts_that_name_the_media_of_a_sample_are_offered(make: Callable[..., PromptReader]) -> None:
    reader = make(SEEN, TOLD, PAIR)
    for names, wanted in (((), 0), (("jpg",), 1), (("0.jpg", "1.png"), 2)):
        assert {markers(reader.read(sample(*names), Random(seed))) for seed in range(12)} == {wanted}
        assert markers(reader.read(sample(*names), None)) == wanted


def test_each_modality_counts(make: Callable[..., PromptReader]) -> None:
    heard = Prompt("<audio>{json.question}", "{json.answer}")
    reader = make(SEEN, heard, Prompt("<audio><image>{json.question}", "{json.answer}"))
    assert markers(reader.read(sample("jpg"), None)) == 1
    assert markers(reader.read(sample("wav"), None)) == 0
    both = reader.read(sample("jpg", "wav"), None)
    assert (markers(both), markers(both, Modality.AUDIO)) == (1, 1)


def test_of_the_prompts_that_fit_training_draws_and_evaluation_takes_the_first(
    make: Callable[..., PromptReader],
) -> None:
    reader = make(TOLD, Prompt("<image>Say: {json.question}", "{json.answer}"), SEEN)
    rows = [reader.read(sample("jpg"), Random(seed))[0] for seed in range(12)]
    assert len({len(row) for row in rows}) == 2
    assert len(reader.read(sample("jpg"), None)[0]) == max(len(row) for row in rows)
    assert reader.questions(sample("jpg")) == ["Say: Which?"]
    assert reader.questions(sample()) == ["Which?"]


def test_where_none_fits_all_are_offered_and_one_may_leave_the_picture_out(
    make: Callable[..., PromptReader],
) -> None:
    assert markers(make(TOLD).read(sample("jpg"), None)) == 0
    other = Prompt("Say: {json.question}", "{json.answer}")
    rows = [make(TOLD, other).read(sample("jpg"), Random(seed))[0] for seed in range(12)]
    assert len({len(row) for row in rows}) == 2
    assert markers(make(SEEN).read(sample(), None)) == 1  # which `check` refuses


def test_a_conversation_without_a_picture_gets_the_opening_without_one(
    make: Callable[..., PromptReader],
) -> None:
    turns = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]
    opened = Prompt("{each.question}", "{each.answer}", opening="<image>")
    reader = make(opened, Prompt("{each.question}", "{each.answer}"), each="json.turns")
    for names, wanted in ((("jpg",), 1), ((), 0)):
        for rng in (None, Random(0), Random(1)):
            assert markers(reader.read(sample(*names, turns=turns), rng)) == wanted


def test_evaluation_asks_what_has_an_answer(make: Callable[..., PromptReader]) -> None:
    """The first prompt asks of any sample, but not every sample answers it."""
    described = Prompt("<image>Describe it.", "{json.caption}")
    reader = make(described, SEEN)
    assert reader.questions(sample("jpg")) == ["Which?"]
    (row,) = reader.read(sample("jpg"), None)
    assert bool(row[:, 1].any())  # and the answer is there
    assert reader.questions(sample("jpg", caption="a cat")) == ["Describe it."]
    unanswered = {"jpg": b"", "json": b'{"question": "Which?"}'}
    assert reader.questions(unanswered) == ["Describe it."]
    # What has no picture cannot be asked about one, answered or not.
    assert make(TOLD, described).questions(sample("jpg", answer=None)) == ["Describe it."]


def test_a_reader_that_knows_of_no_others_offers_all(folder: str) -> None:
    reader = PromptReader(folder, prompts=[SEEN, TOLD])
    assert {markers(reader.read(sample(), Random(seed))) for seed in range(12)} == {0, 1}


class TestSteps:
    def test_no_draw_is_longer(self, make: Callable[..., PromptReader]) -> None:
        turns = [{"q": "word " * (n % 7 + 1), "a": ["yes", f"no {n}" * 3]} for n in range(9)]
        prompts = [Prompt("{each.q}", "{each.a}", opening="<image>"), Prompt("Say: {each.q}", "{each.a}")]
        for settings in ({"max_turns": 4}, {"max_turns": 9}, {"max_turns": 4, "ordered": True}):
            reader = make(*prompts, each="json.turns", **settings)
            lengths = {len(reader.read(sample(turns=turns), Random(seed))[0]) for seed in range(40)}
            assert max(lengths) <= reader.steps(sample(turns=turns))
        # All turns are read: what differs is which value stands for an answer, and which prompt is drawn.
        reader = make(prompts[1], each="json.turns")
        turns = [turn | {"a": turn["a"][1]} for turn in turns]
        (row,) = reader.read(sample(turns=turns), Random(0))
        assert reader.steps(sample(turns=turns)) == len(row)
        assert reader.steps(sample(turns=turns)) > len(reader.read(sample(turns=turns), None)[0])

    def test_at_most_what_is_read(self, make: Callable[..., PromptReader]) -> None:
        reader = make(Prompt("{each.q}", "{each.a}"), each="json.turns", max_length=50)
        assert reader.steps(sample(turns=[{"q": "word", "a": "yes"}] * 20)) == 50

    def test_a_turn_that_cannot_be_read_does_not_hide_the_others(
        self, make: Callable[..., PromptReader]
    ) -> None:
        turns = [{"q": "why", "a": " "}] + [{"q": "why", "a": "so " * n} for n in (1, 2, 3, 4)]
        reader = make(Prompt("{each.q}", "{each.a}"), each="json.turns", max_turns=2)
        (row,) = make(Prompt("{each.q}", "{each.a}"), each="json.turns").read(
            sample(turns=turns[3:]), Random(0)
        )
        assert reader.steps(sample(turns=turns)) == len(row)

    def test_lengths_kept_by_an_older_way_of_counting_are_not_taken(self, folder: str) -> None:
        reader = PromptReader(folder, prompts=[TOLD])
        assert reader.identity != super(PromptReader, reader).identity
        assert reader.identity == reader.beside(MEDIA).identity


@pytest.mark.parametrize("setting", ["max_turns", "max_length"])
def test_nothing_to_read_is_refused(folder: str, setting: str) -> None:
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"{setting} {value}: must be at least 1"):
            PromptReader(folder, prompts=[TOLD], **{setting: value})
    PromptReader(folder, prompts=[TOLD], **{setting: 1})
