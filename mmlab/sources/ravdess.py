"""RAVDESS: two English sentences, spoken and sung in eight emotions by actors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.speakers import by_speaker

_EMOTIONS = {
    "01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful",
    "07": "disgust", "08": "surprised",
}  # fmt: skip
_CHANNELS = {"01": "speech", "02": "song"}
_SENTENCES = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
_NAME = re.compile(r"(?:.*/)?(03-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d))\.wav")
"""Utterance, channel, emotion, intensity, sentence, repetition and actor; 03 is sound without a picture."""


class Ravdess(Released):
    """Two sentences spoken and sung in eight emotions by 24 actors (RAVDESS, Livingstone and Russo 2018).

    A sample is a recording (`wav`): `json` has `emotion` (neutral, calm, happy, sad, angry, fearful, disgust,
    surprised), `intensity` (normal, strong), `channel` (speech, song), `text` (the sentence), `speaker` (the
    actor), `gender`, `utterance_id` and `group` (the sentence as said by one actor). The test split is one
    actor, others can be held out for validation.
    """

    name = "ravdess"
    release = (
        "The release is Audio_Speech_Actors_01-24.zip of zenodo.org/records/1188976, and with "
        "Audio_Song_Actors_01-24.zip the songs: files named like 03-01-06-01-02-01-12.wav."
    )
    licence = "CC BY-NC-SA 4.0"

    def __init__(
        self,
        *,
        test_speaker: str | None = None,
        val: int = 2,
        song: bool = False,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            test_speaker: The actor to test on, such as "01"; None: the last that is there.
            val: Number of other actors held out for validation.
            song: Take songs too.
            from_file: Folder or zip of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.test_speaker = test_speaker
        self.val = val
        self.song = song
        settings = {"test_speaker": test_speaker, "val": val, "song": song}
        super().__init__(settings=settings, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """None: what a recording is, is in its name."""
        if not any(_NAME.fullmatch(name) for name in files.names):
            raise self.refusal(files, "recordings named like 03-01-06-01-02-01-12.wav")
        return {}

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A name is seven numbers."""
        matches = [(name, _NAME.fullmatch(name)) for name in files.names]
        items = {
            match[1]: _item(name, match)
            for name, match in matches
            if match is not None and (self.song or _CHANNELS[match[2]] == "speech")
        }
        if not items:
            raise ValueError(f"{files.path} has songs only: take them too (--song true).")
        others = sum(match is None and name.lower().endswith(".wav") for name, match in matches)
        left_out = {"recordings with another name": others} if others else {}
        parts = by_speaker(list(items.values()), test=self.test_speaker, val=self.val)
        return Contents(parts, left_out)


def _item(name: str, match: re.Match[str]) -> Item:
    utterance, channel, emotion, intensity, sentence, _, actor = match.groups()
    about = {
        "emotion": _EMOTIONS[emotion], "intensity": "normal" if intensity == "01" else "strong",
        "channel": _CHANNELS[channel], "text": _SENTENCES[sentence], "speaker": actor,
        "gender": "male" if int(actor) % 2 else "female", "utterance_id": utterance,
        "group": f"{actor}-{sentence}",
    }  # fmt: skip
    return Item(key=utterance, about=about, media=(name,))
