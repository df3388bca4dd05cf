"""EmoDB: ten German sentences, each said in seven emotions by actors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.speakers import by_speaker

_EMOTIONS = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness",
    "N": "neutral",
}  # fmt: skip
"""By the letter of the German word."""
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
"""As the documentation of EmoDB lists them."""
_MEN = ("03", "10", "11", "12", "15")
_NAME = re.compile(r"(?:.*/)?((\d\d)([ab]\d\d)([WLEAFTN])([a-z]))\.wav")
"""Utterance, speaker, sentence, emotion and version."""


class EmoDb(Released):
    """Ten sentences said in seven emotions by ten actors (EmoDB, Burkhardt et al. 2005), in German.

    A sample is a recording (`wav`): `json` has `emotion` (anger, boredom, disgust, fear, happiness, sadness,
    neutral), `text` (the sentence), `sentence` (its code), `speaker`, `gender`, `utterance_id` and `group`
    (the sentence as said by one speaker). The test split is one speaker, others can be held out for
    validation. What is said is the same in every emotion: words tell nothing here.
    """

    name = "emodb"
    release = (
        "The release is the folder `wav` of download.zip from emodb.bilderbar.info: 535 files named like "
        "03a01Fa.wav; a part of them will do."
    )
    licence = "free for research, with citation; no licence text"

    def __init__(
        self,
        *,
        test_speaker: str | None = None,
        val: int = 0,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            test_speaker: The speaker to test on, such as "03"; None: the last that is there.
            val: Number of other speakers held out for validation.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.test_speaker = test_speaker
        self.val = val
        super().__init__(
            settings={"test_speaker": test_speaker, "val": val}, max_side=None, from_file=from_file, out=out
        )

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """None: what a recording is, is in its name."""
        if not any(_NAME.fullmatch(name) for name in files.names):
            raise self.refusal(files, "recordings named like 03a01Fa.wav")
        return {}

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """A name is SPEAKER, sentence, EMOTION, version."""
        items, others = [], 0
        for name in files.names:
            match = _NAME.fullmatch(name)
            if match is not None and match[3] in _SENTENCES:
                items.append(_item(name, match))
            elif name.lower().endswith(".wav"):
                others += 1
        left_out = {"recordings with another name": others} if others else {}
        return Contents(by_speaker(items, test=self.test_speaker, val=self.val), left_out)


def _item(name: str, match: re.Match[str]) -> Item:
    utterance, speaker, sentence, emotion, _ = match.groups()
    about = {
        "emotion": _EMOTIONS[emotion], "text": _SENTENCES[sentence], "sentence": sentence, "speaker": speaker,
        "gender": "male" if speaker in _MEN else "female", "utterance_id": utterance,
        "group": f"{speaker}{sentence}",
    }  # fmt: skip
    return Item(key=utterance, about=about, media=(name,))
