"""BLEU and chrF of sacrebleu: any number of references, tokenizers, signatures."""

from __future__ import annotations

import pytest
import sacrebleu

from mmlab.metrics.bleu import corpus_bleu
from mmlab.metrics.sacre_bleu import SacreBleu, reference_streams
from mmlab.metrics.text import Answered

SAID = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
RIGHT = [
    ("The dog bit the man.", "The dog had bit the man."),
    ("It was not unexpected.", "No one was surprised."),
    ("The man bit him first.", "The man had bitten the dog."),
]
"""The example of sacrebleu's documentation."""


def score(metric: SacreBleu, said: list[str], right: list[tuple[str, ...]]) -> dict[str, float]:
    pairs = enumerate(zip(said, right, strict=True))
    return metric([Answered(n, one, known, str(n)) for n, (one, known) in pairs])


def test_the_example_of_the_documentation() -> None:
    found = score(SacreBleu(), SAID, RIGHT)
    assert found["sacre_bleu"] == pytest.approx(48.530827, abs=5e-7)
    streams = [list(stream) for stream in zip(*RIGHT, strict=True)]
    assert found["sacre_bleu"] == sacrebleu.corpus_bleu(SAID, streams).score
    assert found["chrf"] == sacrebleu.corpus_chrf(SAID, streams).score


def test_samples_may_have_any_number_of_references() -> None:
    assert reference_streams(["a", "bcd", "ef"]) == [["a", "b", "e"], [None, "c", "f"], [None, "d", None]]
    uneven = [RIGHT[0], RIGHT[1][:1], RIGHT[2] + RIGHT[2][:1]]
    # A reference that stands there twice changes nothing.
    even = [RIGHT[0], RIGHT[1][:1] * 2, RIGHT[2]]
    assert score(SacreBleu(), SAID, uneven) == score(SacreBleu(), SAID, even)
    assert score(SacreBleu(), SAID, uneven) != score(SacreBleu(), SAID, RIGHT)


def test_it_is_the_bleu_of_coco_caption_where_words_are_parted() -> None:
    said = ["a man rides a wave on a board", "two dogs run on the long beach"]
    right = [("a man rides a wave on a surfboard", "a surfer"), ("two dogs run on a beach",)]
    ours = corpus_bleu([one.split() for one in said], [[one.split() for one in own] for own in right])
    assert score(SacreBleu("none"), said, right)["sacre_bleu"] == pytest.approx(100 * ours[3], abs=1e-5)


def test_chinese_needs_its_own_tokenizer() -> None:
    said, right = (
        ["一只狗在海滩上奔跑", "两个人坐在长椅上"],
        [("一只狗在沙滩上奔跑",), ("两个人坐在公园的长椅上",)],
    )
    assert score(SacreBleu(), said, right)["sacre_bleu"] == 0
    assert 30 < score(SacreBleu("zh"), said, right)["sacre_bleu"] < 90
    assert score(SacreBleu("zh"), said, right) == score(SacreBleu("char"), said, right)


def test_signatures_say_how_it_was_computed() -> None:
    metric = SacreBleu("zh", lowercase=True)
    assert metric.signatures == {}
    score(metric, SAID, [RIGHT[0], RIGHT[1], RIGHT[2][:1]])
    assert metric.signatures["sacre_bleu"].startswith("nrefs:var|case:lc|eff:no|tok:zh|smooth:exp|version:2")
    assert metric.signatures["chrf"].startswith("nrefs:var|case:lc|eff:yes|nc:6|nw:0|space:no|version:2")
    score(metric, SAID, RIGHT)
    assert metric.signatures["chrf"].startswith("nrefs:2|")


def test_nothing_said_is_worth_nothing() -> None:
    assert score(SacreBleu(), ["", ""], RIGHT[:2]) == {"sacre_bleu": 0, "chrf": 0}


def test_a_tokenizer_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="'13b' is none of 13a, intl, zh, char, none"):
        SacreBleu("13b")
