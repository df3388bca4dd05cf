"""MUStARD: utterances of television series, sarcastic or sincere, with what was said before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlab.sources.dialogue import in_context
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN, split

_LABELS = {True: "sarcastic", False: "sincere"}
_FIELDS = ("utterance", "speaker", "context", "context_speakers", "show", "sarcasm")
_SOUNDS = ("wav", "flac", "ogg", "mp3")


class Mustard(Released):
    """Utterances of television series, sarcastic or sincere, in their context (MUStARD, Castro et al. 2019).

    A sample is one utterance: `json` has `label` (sarcastic, sincere), `utterance`, `speaker`, `history`
    (what was said before, a line `SPEAKER: utterance` for each), `in_context` (the utterance, and behind it
    the history, the latest first), `show`, `utterance_id` and `group` (itself). Where the folder has a sound
    of that name (1_60.wav), it is a member too; videos are not read.

    As in the paper's speaker-independent setting one show is the test, so no speaker of the test is known
    from training. Val is utterances of the others; those that share a line of context stay together.
    """

    name = "mustard"
    release = (
        "The release is the repository soujanyaporia/MUStARD on GitHub: data/sarcasm_data.json. Sounds are "
        "its clips, converted (`ffmpeg -i 1_60.mp4 -ac 1 -ar 16000 1_60.wav`), in the same folder."
    )
    licence = "MIT; the text is dialogue of television series"

    def __init__(
        self,
        *,
        test_show: str = "FRIENDS",
        val: int = 30,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            test_show: The show to test on: FRIENDS as in the paper, BBT, GOLDENGIRLS or SARCASMOHOLICS.
            val: Number of utterances of the other shows that are held out for validation.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.test_show = test_show
        self.val = val
        super().__init__(
            settings={"test_show": test_show, "val": val}, max_side=None, from_file=from_file, out=out
        )

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The utterances."""
        return self.require(files, {"utterances": "sarcasm_data.json"})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """An object of utterances by their identifiers.

        Raises:
            ValueError: There is no such show, or nothing is left to train on.
        """
        said = files.parse(annotations["utterances"], _utterances)
        shows = sorted({str(about["show"]) for about in said.values()})
        rest = [key for key, about in said.items() if about["show"] != self.test_show]
        if self.test_show not in shows or not 0 <= self.val < len(rest):
            raise ValueError(
                f"cannot test on the show {self.test_show} and hold {self.val} others out: there are "
                f"{', '.join(shows)}, and {len(rest)} utterances of other shows; training needs some of them."
            )
        homes = split(
            {key: key for key in rest},
            marks={key: said[key]["history"].splitlines() for key in rest},
            held_out={"val": self.val},
            seed=0,
        )
        parts: dict[str, list[Item]] = {TRAIN: [], "val": [], "test": []}
        for key, about in said.items():
            parts[homes.get(key, "test")].append(Item(key=key, about=about, media=_sound(files, key)))
        return Contents(parts)


def _utterances(content: Any) -> dict[str, dict[str, Any]]:
    """What becomes of each utterance's fields."""
    return {key: _about(key, fields) for key, fields in content.items()}


def _about(key: str, fields: Any) -> dict[str, Any]:
    missing = [name for name in _FIELDS if not isinstance(fields, dict) or name not in fields]
    if missing:
        raise ValueError(f"{key} has no field {', '.join(missing)}; it is an object of {', '.join(_FIELDS)}")
    lines, speakers = fields["context"], fields["context_speakers"]
    if not isinstance(lines, list) or not isinstance(speakers, list):
        raise ValueError(f"{key} has no lists as context and context_speakers; they may be empty")
    texts = [fields["utterance"], fields["speaker"], fields["show"], *lines, *speakers]
    if not all(isinstance(text, str) for text in texts) or len(lines) != len(speakers):
        raise ValueError(f"{key} has lines that are no text, or lines without their speakers")
    if not isinstance(fields["sarcasm"], bool):
        raise ValueError(f"{key} has a label that is not true or false")
    history = [f"{speaker}: {_line(line)}" for speaker, line in zip(speakers, lines, strict=True)]
    utterance = _line(fields["utterance"])
    if not utterance:
        raise ValueError(f"{key} has an empty utterance")
    return {
        "label": _LABELS[fields["sarcasm"]], "utterance": utterance, "speaker": fields["speaker"],
        "history": "\n".join(history), "in_context": in_context(utterance, history), "show": fields["show"],
        "utterance_id": key, "group": key,
    }  # fmt: skip


def _line(text: str) -> str:
    """A text without breaks: in a history they would pass for the next speaker's line."""
    return " ".join(text.split())


def _sound(files: ReleasedFiles, key: str) -> tuple[str, ...]:
    """The utterance's sound, if the folder has one."""
    found = (files.find(f"{key}.{extension}") for extension in _SOUNDS)
    return tuple([name for name in found if name is not None][:1])
