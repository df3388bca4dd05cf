"""MELD: utterances of dialogues with what was said before, who speaks, and in which emotion."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmlab.sources.dialogue import in_context
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_PARTS = {TRAIN: "train", "val": "dev", "test": "test"}
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
"""Those that are read, of eleven."""
_EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
_SENTIMENTS = ("negative", "neutral", "positive")
_WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
"""Copies of the release have quotes and dashes as the control characters with their codes in Windows."""
_LIMIT = 0.01
"""Share of faulty rows above which a folder is not the release."""


class _Said(NamedTuple):
    dialogue_id: int
    utterance_id: int
    speaker: str
    utterance: str
    emotion: str
    sentiment: str


class Meld(Released):
    """Utterances from dialogues of a television series, with emotion and sentiment (MELD, Poria et al. 2019).

    A sample is one utterance, as text: `json` has `history` (what was said before in its dialogue, a line
    `Speaker: utterance` for each; empty for the first), `speaker`, `utterance`, `in_context` (the utterance,
    and behind it the history, the latest first), `emotion` (anger, disgust, fear, joy, neutral, sadness,
    surprise), `sentiment` (negative, neutral, positive), `dialogue_id`, `utterance_id` and `group` (the
    dialogue). Keys are the names of the release's clips (`dia0_utt3`). The splits are the released ones
    (9,989, 1,109 and 2,610 utterances; some dialogues lack utterances).
    """

    name = "meld"
    release = (
        "The release is the repository declare-lab/MELD on GitHub, folder data/MELD: train_sent_emo.csv, "
        "dev_sent_emo.csv and test_sent_emo.csv; or MELD.Raw.tar.gz, unpacked, with the train.tar.gz in it."
    )
    format = 2
    licence = "GPL-3.0; the text is dialogue of the television series Friends"

    def __init__(self, *, history: int = 5, from_file: Path | None = None, out: Path | None = None) -> None:
        """Settings.

        Args:
            history: Utterances before the one to be said that a sample has at most.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: `history` is below 0.
        """
        if history < 0:
            raise ValueError(f"history is {history}: it is a number of utterances, 0 or more.")
        self.history = history
        super().__init__(settings={"history": history}, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A table for each split."""
        return self.require(files, {split: f"{part}_sent_emo.csv" for split, part in _PARTS.items()})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A row of the tables is an utterance. Those with wrong labels stay in the history of others."""
        tables = {split: _table(files, name) for split, name in annotations.items()}
        left_out: Counter[str] = Counter()
        splits = {
            split: self._items(split, (row for _, row in rows), left_out) for split, rows in tables.items()
        }
        total = sum(map(len, tables.values()))
        if left_out.total() > _LIMIT * total:
            found = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            odd = _first_odd(tables, annotations)
            raise ValueError(
                f"{files.path} is not as released: of {total} rows, {found}{odd}.\n{self.release}"
            )
        return Contents(splits, left_out)

    def _items(self, split: str, rows: Iterable[Mapping[str, str]], left_out: Counter[str]) -> list[Item]:
        dialogues: dict[int, dict[int, _Said]] = defaultdict(dict)
        for row in rows:
            said = _said(row)
            if isinstance(said, str):
                left_out[said] += 1
            elif said.utterance_id in dialogues[said.dialogue_id]:
                left_out["repeat the place of another"] += 1
            else:
                dialogues[said.dialogue_id][said.utterance_id] = said
        items = []
        for dialogue in dialogues.values():
            before: deque[str] = deque(maxlen=self.history)
            for _, said in sorted(dialogue.items()):
                if _odd_label(said) is None:
                    items.append(_item(split, said, before))
                else:
                    left_out["have a label that MELD does not have"] += 1
                before.append(f"{said.speaker}: {said.utterance}")
        return items


_Table = list[tuple[int, dict[str, str]]]
"""Rows by column, with the numbers of their lines."""


def _table(files: ReleasedFiles, name: str) -> _Table:
    """The rows of a table.

    Raises:
        ValueError: It is no table, or lacks columns.
    """
    content = files.read(name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    return files.table(name, _COLUMNS, text.translate(_WINDOWS))


def _said(row: Mapping[str, str]) -> _Said | str:
    """What a row says, or what is wrong with it."""
    # Breaks of lines too become spaces: in a history they would pass for the next speaker's line.
    utterance, speaker, emotion, sentiment, *place = (
        " ".join((row[column] or "").split()) for column in _COLUMNS
    )
    if not utterance or not speaker:
        return "lack the utterance or its speaker"
    try:
        dialogue_id, utterance_id = map(int, place)
    except ValueError:
        return "lack their place in a dialogue"
    return _Said(dialogue_id, utterance_id, speaker, utterance, emotion.lower(), sentiment.lower())


def _odd_label(said: _Said) -> str | None:
    """The label that MELD does not have, if there is one."""
    if said.emotion not in _EMOTIONS:
        return said.emotion
    return None if said.sentiment in _SENTIMENTS else said.sentiment


def _first_odd(tables: Mapping[str, _Table], names: Mapping[str, str]) -> str:
    """Where the first label stands that MELD does not have, in brackets; empty if there is none."""
    for split, rows in tables.items():
        for line, row in rows:
            said = _said(row)
            if isinstance(said, _Said) and (label := _odd_label(said)) is not None:
                return f" (the first such label is {label!r}: {names[split]}, line {line})"
    return ""


def _item(split: str, said: _Said, before: Sequence[str]) -> Item:
    return Item(
        key=f"dia{said.dialogue_id}_utt{said.utterance_id}",
        about={
            "history": "\n".join(before), "speaker": said.speaker, "utterance": said.utterance,
            "in_context": in_context(said.utterance, before), "emotion": said.emotion,
            "sentiment": said.sentiment, "dialogue_id": said.dialogue_id, "utterance_id": said.utterance_id,
            "group": f"{split}-{said.dialogue_id}",
        },
    )  # fmt: skip
