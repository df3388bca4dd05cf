"""Conversations about pictures, in the JSON format of LLaVA."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.held_out import at_most_a_tenth
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released

_MARKER = "<image>"
_USERS = ("human", "user")
_ASSISTANTS = ("gpt", "assistant")


class Conversations(Released):
    """Conversations about pictures, in the JSON format of LLaVA (Liu et al. 2023).

    Read is a list of objects with `id`, `image` (a name, several, or none) and `conversations` (`from`: human
    or gpt, `value`: text, in which `<image>` stands where a picture does). A sample has the pictures (`jpg`,
    or `0.jpg`, `1.jpg`, ...) and `json` with `turns`: `user`, `assistant`, `images` (number of pictures that
    the user shows in this turn); `system` where there is such a message; `conversation_id`; `group`. Val is
    conversations held out, those about the same pictures together; there is no test.
    """

    name = "conversations"
    release = (
        "The release is a JSON file as LLaVA's (llava_instruct_150k.json, llava_v1_5_mix665k.json, ...), in "
        "one folder with the pictures that it names."
    )
    licence = "that of the release"

    def __init__(
        self,
        *,
        file: str | None = None,
        val: int = 500,
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            file: Name of the JSON file; None: the only one in the folder.
            val: Number of conversations that are held out, at most a tenth of them.
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.
        """
        self.file = file
        self.val = val
        super().__init__(settings={"file": file, "val": val}, max_side=max_side, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The JSON file."""
        if self.file is not None:
            return self.require(files, {"conversations": self.file})
        found = [name for name in files.names if name.endswith(".json")]
        if not found:
            raise self.refusal(files, "a JSON file")
        if len(found) > 1:
            raise ValueError(
                f"{files.path} has {len(found)} JSON files, {', '.join(found[:5])}: say which one "
                "(--file NAME, in a config data.source.init_args.file)."
            )
        return {"conversations": found[0]}

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Conversations that do not alternate, or whose markers do not match the pictures, are left out."""
        left_out: Counter[str] = Counter()
        items = files.parse(annotations["conversations"], partial(_items, left_out))
        splits = at_most_a_tenth(
            items, self.val, label=lambda item: "/".join(item.media) or item.key, of="conversations"
        )
        return Contents(splits, left_out)


def _items(left_out: Counter[str], content: Any) -> list[Item]:
    items = []
    for number, row in enumerate(content):
        about = _conversation(row["conversations"])
        image = row.get("image") or ()
        media = (image,) if isinstance(image, str) else tuple(image)
        if isinstance(about, str):
            left_out[about] += 1
        elif sum(turn["images"] for turn in about["turns"]) != len(media):
            left_out["conversations whose markers do not match their pictures"] += 1
        else:
            # Identifiers repeat in some releases; the place in the file does not.
            about |= {"conversation_id": row["id"], "group": str(row["id"])}
            items.append(Item(key=f"{number}-{row['id']}", about=about, media=media))
    return items


def _conversation(messages: list[Mapping[str, str]]) -> dict[str, Any] | str:
    """Turns, and the system message if there is one; or why there are none."""
    about: dict[str, Any] = {"turns": []}
    if messages and messages[0]["from"] == "system":
        about["system"] = messages[0]["value"].strip()
        messages = messages[1:]
    users, assistants = messages[::2], messages[1::2]
    alternate = all(message["from"] in _USERS for message in users) and all(
        message["from"] in _ASSISTANTS for message in assistants
    )
    if not messages or len(messages) % 2 == 1 or not alternate:
        return "conversations whose speakers do not alternate"
    for user, assistant in zip(users, assistants, strict=True):
        if _MARKER in assistant["value"] or not assistant["value"].strip():
            return "conversations with an empty answer, or a picture in one"
        said = user["value"]
        text = re.sub(rf"{_MARKER}\s?", "", said).strip()
        about["turns"].append(
            {"user": text, "assistant": assistant["value"].strip(), "images": said.count(_MARKER)}
        )
    return about
