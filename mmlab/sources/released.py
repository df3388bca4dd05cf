"""A data set that is read from its release: what sources of files with annotations have in common."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mmlab.data.source import Source
from mmlab.sources.files import ReleasedFiles, open_release
from mmlab.sources.items import BROKEN, MISSING, Item, write_items
from mmlab.sources.prepared import Prepared

_LOST = 0.5
"""Share of a split's samples that may lack their media: some sets are partly gone from where they were."""


class Contents(NamedTuple):
    """What a source makes of a release."""

    splits: Mapping[str, Sequence[Item]]
    left_out: Mapping[str, int] = {}
    """How many of what, in words, became no sample, or lost a part of what it says."""
    facts: Mapping[str, Any] = {}
    """What else `dataset.json` is to say."""


class Released(Source):
    """A data set that is read from its release."""

    release: ClassVar[str]
    """Where the release is to be had, in words: a sentence."""
    licence: ClassVar[str]
    format: ClassVar[int] = 1
    """Raised when what is written changes: what older releases of mmlab prepared is made anew then."""

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        max_side: int | None,
        from_file: Path | None,
        out: Path | None,
    ) -> None:
        """Settings.

        Args:
            settings: All that changes what is written, beside `max_side`.
            max_side: Larger pictures are reduced to this length in pixels; None: none are.
            from_file: The release: a folder, a zip or a tar.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: `max_side` is below 1.
        """
        if max_side is not None and max_side < 1:
            raise ValueError(f"max_side is {max_side}: it is a length in pixels, or null to reduce nothing.")
        self.max_side = max_side
        self.from_file = from_file
        self._prepared = Prepared(
            self.name, {**settings, "max_side": max_side, "format": self.format}, out=out
        )

    @abstractmethod
    def annotations(self, files: ReleasedFiles) -> Mapping[str, str]:
        """The files of annotations that the release must have, by what they are for.

        Raises:
            ValueError: Some are missing; see :meth:`require`.
        """

    @abstractmethod
    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Read the annotations.

        Args:
            files: The release.
            annotations: As :meth:`annotations` returned them.

        Raises:
            ValueError: A file is not as released.
        """

    def fetch(self) -> Path:
        """Bring the release here, where nobody named one.

        Raises:
            ValueError: That is for people to do.
            FetchError: It cannot be fetched.
        """
        raise ValueError(
            f"{self.name} is not prepared yet, and mmlab does not fetch it. {self.release}\n"
            "Then name its folder once: --data.source.init_args.from_file FOLDER, or prepare it by "
            f"`mmlab data prepare {self.name} --from FOLDER` with the settings that the config has."
        )

    def require(self, files: ReleasedFiles, wanted: Mapping[str, str | Sequence[str]]) -> dict[str, str]:
        """Find files by the ends of their names.

        Args:
            files: The release.
            wanted: End of the name, or several of which one will do, by what the file is for.

        Raises:
            ValueError: Some are missing, or there more than once.
        """
        found, missing = {}, []
        for role, ends in wanted.items():
            choice = (ends,) if isinstance(ends, str) else ends
            names = next((names for end in choice if (names := files.find_all(end))), [])
            if len(names) > 1:
                raise ValueError(
                    f"{files.path} holds several releases or copies ({names[0]}, {names[1]}): name the "
                    "folder of one."
                )
            if names:
                found[role] = names[0]
            else:
                missing.append(" or ".join(choice))
        if missing:
            raise self.refusal(files, ", ".join(missing))
        return found

    def refusal(self, files: ReleasedFiles, missing: str) -> ValueError:
        """What to say of a release that lacks something."""
        return ValueError(
            f"{files.path} is not the release of {self.name}: it lacks {missing}; {files.describe()}.\n"
            f"{self.release}"
        )

    def prepare(self) -> Path:
        """Write the shards, unless they are there.

        Raises:
            FetchError: The release cannot be fetched, or the disk is full.
            ValueError: There is no release, it is another one or broken, or `out` holds something else.
        """
        # What has been prepared needs its release no longer.
        gone = self.from_file is None or not self.from_file.exists()
        if gone and (folder := self._prepared.find(None)):
            if self.from_file is not None:
                print(f"{self.from_file} is not there: taking {folder}, prepared before", file=sys.stderr)
            return folder
        with open_release(self.fetch() if self.from_file is None else self.from_file) as files:
            annotations = self.annotations(files)
            version = files.digest(annotations.values())
            if folder := self._prepared.find(version):
                return folder
            with self._prepared.lock():
                return self._prepared.find(version) or self._prepared.build(
                    version, lambda folder: self._write(files, annotations, folder)
                )

    def _write(self, files: ReleasedFiles, annotations: Mapping[str, str], folder: Path) -> dict[str, Any]:
        """Write all splits; returns what `dataset.json` says of them."""
        print(f"reading {self.name} from {files.path}", file=sys.stderr, flush=True)
        contents = self.read(files, annotations)
        for name, items in contents.splits.items():  # before hours of writing
            bare = [item for item in items if any(files.find(end) is None for end in item.media)]
            lost = sum(item.needs_media for item in bare)
            self._check_lost(files, name, items, lost)
            if len(bare) > lost:
                what = "lack a picture or sound that is named, and are samples without it"
                print(f"{len(bare) - lost} of {len(items)} of {name} {what}", file=sys.stderr)
        splits = {}
        for name, items in contents.splits.items():
            if items:
                written = write_items(items, files, folder, split=name, max_side=self.max_side)
                splits[name] = {**written.counts, "left_out": dict(written.left_out)}
                for reason, number in written.left_out.items():
                    print(f"left out of {name}: {number} of {len(items)}: {reason}", file=sys.stderr)
                if written.broken:
                    splits[name]["broken"] = written.broken
                    what = "pictures or sounds are broken, and their samples are without them"
                    print(f"{written.broken} {what} in {name}", file=sys.stderr)
                lost = written.left_out.get(MISSING, 0) + written.left_out.get(BROKEN, 0)
                self._check_lost(files, name, items, lost)
            elif name in annotations:
                raise ValueError(f"{annotations[name]} in {files.path} has no sample: fetch it again.")
            else:
                print(f"no sample is of {name}", file=sys.stderr)
        for reason, number in contents.left_out.items():
            print(f"left out: {number}: {reason}", file=sys.stderr)
        if not splits:
            raise ValueError(f"{files.path} has no sample; {files.describe()}.\n{self.release}")
        return {
            "release": [files.path.name, *annotations.values()], "licence": self.licence, "splits": splits,
            "left_out": dict(contents.left_out), **contents.facts,
        }  # fmt: skip

    def _check_lost(self, files: ReleasedFiles, split: str, items: Sequence[Item], lost: int) -> None:
        """Raise ValueError where so many media are missing or broken that it is another folder."""
        if lost > _LOST * len(items):
            wanted = next((end for item in items for end in item.media), "media")
            raise ValueError(
                f"{files.path}: {lost} of {len(items)} samples of {split} lack a file that can be read, such "
                f"as {wanted}; {files.describe()}.\n{self.release}"
            )
