"""MELD: small tables in its format, with what goes wrong in copies of it, and the released ones."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from releases import about, note, read_shards, write_release

from mmlab.sources.catalog import source_class
from mmlab.sources.meld import Meld

COLUMNS = [
    "Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season",
    "Episode", "StartTime", "EndTime",
]  # fmt: skip
Row = tuple[str, str, str, str, Any, Any]
"""Utterance, speaker, emotion, sentiment, dialogue, place in it."""
TALK: list[Row] = [
    ("Hi,  you!", "Ann", "joy", "positive", 0, 0),
    ("Who, “me”?", "Bob", "surprise", "negative", 0, 1),
    ("Yes.", "Ann", "Neutral", "neutral", 0, 3),
    ("No!", "Bob", "anger", "negative", 0, 4),
    ("Where am I?", "Cy", "fear", "negative", 7, 0),
]


def table(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """As released: eleven columns, quoted where needed, lines end as in Windows."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    for number, row in enumerate(rows, start=1):
        cells = dict(zip(COLUMNS[1:7], row, strict=True))
        times = {"StartTime": "00:16:16,059", "EndTime": "00:16:21,731"}
        writer.writerow({"Sr No.": number, **cells, "Season": 8, "Episode": 21, **times})
    return file.getvalue()


def release(train: Any = TALK, **changes: Any) -> dict[str, Any]:
    tables = {"train": train, "dev": TALK[:2], "test": TALK[3:]}
    files = {f"data/MELD/{part}_sent_emo.csv": table(rows) for part, rows in tables.items()}
    return {**files, **changes}


def chatter(number: int) -> list[Row]:
    """Utterances with which nothing is wrong, in dialogues of their own."""
    return [(f"Line {n}.", "Ann", "neutral", "neutral", 100 + n // 10, n % 10) for n in range(number)]


def prepared(tmp_path: Path, files: dict[str, Any], **settings: Any) -> Path:
    return Meld(**settings, from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()


def test_samples(tmp_path: Path) -> None:
    folder = prepared(tmp_path, release(), history=2)
    train, val, test = (read_shards(folder, split) for split in ("train", "val", "test"))
    assert sorted(train) == ["dia0_utt0", "dia0_utt1", "dia0_utt3", "dia0_utt4", "dia7_utt0"]
    assert about(train["dia0_utt4"]) == {
        "history": "Bob: Who, “me”?\nAnn: Yes.", "speaker": "Bob", "utterance": "No!", "emotion": "anger",
        "sentiment": "negative", "dialogue_id": 0, "utterance_id": 4, "group": "train-0",
        "in_context": "No!\nAnn: Yes.\nBob: Who, “me”?",
    }  # fmt: skip
    assert about(train["dia0_utt1"])["history"] == "Ann: Hi, you!"
    assert about(train["dia7_utt0"])["history"] == "", "another dialogue"
    assert about(train["dia0_utt3"])["emotion"] == "neutral"
    assert set(train["dia0_utt0"]) == {"json"}
    assert sorted(val) == ["dia0_utt0", "dia0_utt1"]
    assert about(test["dia0_utt4"])["history"] == "", "what was said before is in another split"
    assert about(test["dia0_utt4"])["group"] == "test-0"
    assert note(folder)["left_out"] == {}


def test_no_history(tmp_path: Path) -> None:
    train = read_shards(prepared(tmp_path, release(), history=0), "train")
    assert {about(members)["history"] for members in train.values()} == {""}
    with pytest.raises(ValueError, match="history is -1: it is a number of utterances, 0 or more"):
        Meld(history=-1)


def test_dialogues_are_in_order_whatever_the_order_of_rows(tmp_path: Path) -> None:
    files = release([TALK[2], TALK[4], TALK[0], TALK[1]])
    assert about(read_shards(prepared(tmp_path, files), "train")["dia0_utt3"])["history"] == (
        "Ann: Hi, you!\nBob: Who, “me”?"
    )


@pytest.mark.parametrize(
    ("said", "coding"),
    [
        ("It\u2019s \u2013 caf\u00e9\u2026", "utf-8"),
        ("It\u2019s \u2013 caf\u00e9\u2026", "utf-8-sig"),
        ("It\u2019s \u2013 caf\u00e9\u2026", "cp1252"),
        ("It\x92s \x96 caf\u00e9\x85", "utf-8"),
    ],
    ids=["as released", "mark", "windows", "controls"],
)
def test_copies_with_other_codings_say_the_same(tmp_path: Path, said: str, coding: str) -> None:
    rows: list[Row] = [(said, "Ann", "joy", "positive", 0, 0), ("Oh.", "Bob", "joy", "positive", 0, 1)]
    files = release(**{"data/MELD/train_sent_emo.csv": table(rows).encode(coding)})
    train = read_shards(prepared(tmp_path, files), "train")
    assert about(train["dia0_utt0"])["utterance"] == "It\u2019s \u2013 caf\u00e9\u2026"
    assert about(train["dia0_utt1"])["history"] == "Ann: It\u2019s \u2013 caf\u00e9\u2026"


def test_faulty_rows_are_counted(tmp_path: Path) -> None:
    odd: list[Row] = [
        (" \r\n", "Ann", "joy", "positive", 0, 0),
        ("Hm.", "", "joy", "positive", 0, 1),
        ("Hm.", "Ann", "joy", "positive", "", 2),
        ("Hm.", "Ann", "joy", "positive", 0, "x"),
        ("Now what?", "Ann", "boredom", "neutral", 0, 4),
        ("Well.\nAnn: I lie.", "Bob", "joy", "positive", 0, 5),
        ("Again.", "Bob", "joy", "positive", 0, 5),
    ]
    folder = prepared(tmp_path, release([*odd, *chatter(700)]))
    train = read_shards(folder, "train")
    assert len(train) == 701
    assert about(train["dia0_utt5"])["history"] == "Ann: Now what?", "it was said, whatever its label"
    assert about(train["dia0_utt5"])["utterance"] == "Well. Ann: I lie.", "one line"
    assert note(folder)["left_out"] == {
        "lack the utterance or its speaker": 2,
        "lack their place in a dialogue": 2,
        "repeat the place of another": 1,
        "have a label that MELD does not have": 1,
    }


def test_other_labels_throughout_are_another_data_set(tmp_path: Path) -> None:
    rows = chatter(103)
    rows[-3:] = [(*row[:2], "happy", *row[3:]) for row in rows[-3:]]
    with pytest.raises(ValueError, match=r"is not as released: of 107 rows, 3 have a label that") as caught:
        prepared(tmp_path, release(rows))
    assert "declare-lab/MELD" in str(caught.value)
    first = "(the first such label is 'happy': data/MELD/train_sent_emo.csv, line 102)"
    assert first in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(TALK, [c for c in COLUMNS if c not in ("Emotion", "Speaker")]), "no column Speaker, Emotion"),
        ("", "no column Utterance, Speaker"),
        (table(TALK) + '6,"Yes.', "line 7: unexpected end of data"),
        (table(TALK) + "x" * 200_000, r"line 7: field larger than field limit"),
    ],
    ids=["columns", "empty", "quote", "cell"],
)
def test_a_broken_table_is_named(tmp_path: Path, content: str, message: str) -> None:
    files = release(**{"data/MELD/train_sent_emo.csv": content})
    with pytest.raises(ValueError, match=rf"train_sent_emo\.csv in .* is not as released: {message}"):
        prepared(tmp_path, files)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    files = release()
    del files["data/MELD/dev_sent_emo.csv"]
    with pytest.raises(ValueError, match=r"is not the release of meld: it lacks dev_sent_emo\.csv; it holds"):
        prepared(tmp_path, files)
    packed = dict.fromkeys(("train.tar.gz", "dev.tar.gz", "test.tar.gz"), "")
    with pytest.raises(ValueError, match="unpack the archives in it"):
        Meld(from_file=write_release(tmp_path / "raw", packed), out=tmp_path / "no").prepare()
    with pytest.raises(ValueError, match="has no sample"):
        prepared(tmp_path / "bare", {name: table([]) for name in release()})


def test_it_is_known_by_name() -> None:
    assert source_class("meld") is Meld


def test_the_release(public_data: Path, tmp_path: Path) -> None:
    path = public_data / "meld-text"
    if not path.is_dir():
        pytest.skip(f"no MELD in {public_data}")
    folder = Meld(from_file=path, out=tmp_path / "out").prepare()
    train = read_shards(folder, "train")
    labels = [about(members) for members in train.values()]
    assert Counter(label["emotion"] for label in labels) == {
        "neutral": 4710, "joy": 1743, "surprise": 1205, "anger": 1109, "sadness": 683, "disgust": 271,
        "fear": 268,
    }  # fmt: skip
    assert len({label["group"] for label in labels}) == 1038
    assert about(train["dia0_utt4"])["history"].splitlines()[2:] == [
        "Chandler: That I did. That I did.",
        "The Interviewer: So let\u2019s talk a little bit about your duties.",
    ]
    assert about(train["dia0_utt9"])["history"].count("\n") == 4
    assert len(read_shards(folder, "val")) == 1109
    assert note(folder)["left_out"] == {}
