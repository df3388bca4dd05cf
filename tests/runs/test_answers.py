"""Answers read back: one for each key, and what is no file of answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmlab.runs.answers import read_answers

RECORDS = [
    {"key": "b", "answer": "a cat"},
    {"key": "a", "answer": "two\u2028lines"},
    {"key": "c", "answer": " "},
    {"key": "d", "answer": None},
    {"key": "b", "answer": "a dog"},
    {"key": "c", "answer": "too late"},
]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.json"])
def test_the_first_answer_of_a_key_counts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    text = "\n".join([*lines, ""]) if name.endswith("l") else f"[{','.join(lines)}]"
    path.write_text(text, encoding="utf-8")
    found = read_answers(path)
    assert list(found.said.items()) == [("b", "a cat"), ("a", "two\u2028lines")]
    assert (found.repeated, found.blank, found.records) == (2, 2, 6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"key": "a"}', "record 1 has no `key` and `answer`"),
        ('{"key": "a", "answer": "x"}\n[1]', "record 2 has no `key` and `answer`"),
        ('{"key": 3, "answer": "x"}', "key and answer of record 1 must be texts"),
        ('{"key": "a", "answer": ["x"]}', "key and answer of record 1 must be texts"),
        ('{"key": "a", "answer": ""}', "none of its 1 records has an answer with text"),
        ("", "none of its 0 records has an answer with text"),
        ("key,answer", "neither lines of JSON nor, as .json, an array of records"),
        ("[" * 100_000, "neither lines of JSON nor, as .json, an array of records"),
    ],
)
def test_what_is_no_file_of_answers_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_answers(path)
