"""Multi30k: photographs with captions and their translations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmlab.sources.coco import coco_picture
from mmlab.sources.files import ReleasedFiles
from mmlab.sources.items import Item
from mmlab.sources.released import Contents, Released


class Multi30k(Released):
    """Photographs with a caption in English and its translations (Multi30k, Elliott et al. 2016).

    A sample is a photograph (`jpg`): `json` has `captions` (for each language a list of one) and `image_id`
    (the file name without its ending). The splits are those of task 1: 29,000 for train, 1,014 for val, 1,000
    for test.
    """

    name = "multi30k"
    release = (
        "The release is the repository multi30k/dataset on GitHub, folder data/task1 (raw/ and image_splits/)"
        ", with Flickr30k's photographs unpacked into the same folder; for other test sets than that of 2016 "
        "also theirs (test_2017-flickr-images.gz, test_2018-flickr-images.gz) or COCO's of val2014."
    )
    licence = "CC BY-NC-SA 4.0; photographs under the terms of their Flickr pages"

    def __init__(
        self,
        *,
        languages: Sequence[str] = ("en", "de"),
        test: str = "test_2016_flickr",
        max_side: int | None = 512,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            languages: Of the captions, as file names end: en, de, fr, cs.
            test: The released test set, as its files are called: test_2016_flickr, test_2017_flickr,
                test_2017_mscoco, test_2018_flickr.
            max_side: Larger photographs are reduced to this length in pixels; None: none are.
            from_file: Folder of the release.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: No language is named.
        """
        if not languages:
            raise ValueError("languages is empty: name at least one of en, de, fr, cs.")
        self.languages = tuple(languages)
        self.parts = {"train": "train", "val": "val", "test": test}
        super().__init__(
            settings={"languages": self.languages, "test": test},
            max_side=max_side,
            from_file=from_file,
            out=out,
        )

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """A list of photographs for each split, and a file of captions for each of its languages."""
        wanted: dict[str, Sequence[str]] = {}
        for split, part in self.parts.items():
            wanted[split] = (f"image_splits/{part}.txt", f"{part}_images.txt", f"{part}.txt")
            for language in self.languages:
                stem = f"{part}.{language}"
                wanted[f"{split} {language}"] = (f"raw/{stem}.gz", f"raw/{stem}", f"{stem}.gz", stem)
        return self.require(files, wanted)

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Line n of each file of captions is about line n of the list of photographs."""
        left_out: Counter[str] = Counter()
        splits: dict[str, list[Item]] = {part: [] for part in self.parts}
        for split in self.parts:
            names = [line.partition("#")[0].strip() for line in files.lines(annotations[split])]
            captions = {
                language: files.lines(annotations[f"{split} {language}"]) for language in self.languages
            }
            for language, lines in captions.items():
                with files.naming(annotations[f"{split} {language}"]):
                    if len(lines) != len(names):
                        raise ValueError(f"{len(lines)} captions for the {len(names)} photographs of {split}")
            for number, name in enumerate(names):
                said = {language: [lines[number].strip()] for language, lines in captions.items()}
                if all(caption for (caption,) in said.values()):
                    splits[split].append(_item(files, name, said))
                else:
                    left_out["photographs with an empty caption"] += 1
        return Contents(splits, left_out)


def _item(files: ReleasedFiles, name: str, captions: Mapping[str, Sequence[str]]) -> Item:
    stem = name.removesuffix(".jpg")
    about = {"captions": dict(captions), "image_id": stem}
    return Item(key=stem, about=about, media=(coco_picture(files, f"{stem}.jpg"),))
