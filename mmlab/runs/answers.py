"""What `mmlab predict` has written down of a language model's answers, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

_REMEDY = "have callbacks.answers.AnswerWriter write {key: key, answer: answer, ...} in its fields"


class Answers(NamedTuple):
    """One answer for each key, the first; blank ones are left out."""

    said: dict[str, str]
    """Text by key of the sample, in the file's order."""
    repeated: int
    """Records whose key an earlier one has."""
    blank: int
    """Answers without text."""

    @property
    def records(self) -> int:
        """Of the file."""
        return len(self.said) + self.repeated + self.blank


def read_answers(path: Path) -> Answers:
    """Read a file of records with `key` and `answer`: `.json` is an array, else each line is one.

    Raises:
        ValueError: It holds something else, or no answer with text.
    """
    said: dict[str, str] = {}
    repeated = 0
    records = _records(path)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not {"key", "answer"} <= record.keys():
            raise ValueError(f"{path}: record {number} has no `key` and `answer`: {_REMEDY}")
        key, text = record["key"], "" if record["answer"] is None else record["answer"]
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(f"{path}: key and answer of record {number} must be texts: {_REMEDY}")
        if key in said:
            repeated += 1
        else:
            said[key] = text
    spoken = {key: text for key, text in said.items() if text.strip()}
    if not spoken:
        raise ValueError(f"{path}: none of its {len(records)} records has an answer with text")
    return Answers(spoken, repeated, len(said) - len(spoken))


def _records(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: neither lines of JSON nor, as .json, an array of records: {error}"
        ) from None
    return records if isinstance(records, list) else [records]
