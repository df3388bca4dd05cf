"""MMRec's data sets: purchases of Baby, Sports, Elec, ... with features of pictures and texts."""

from __future__ import annotations

import io
import math
import tokenize
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.interactions import Interaction, Offered, interaction_items
from mmlab.sources.released import Contents, Released
from mmlab.sources.split import TRAIN

_SPLITS = {"0": TRAIN, "1": "val", "2": "test"}
_COLUMNS = ("userID", "itemID", "x_label")
_FEATURES = {"text": "text_feat.npy", "image": "image_feat.npy"}
_ITEMS_PER_LINE, _LEAST_ITEMS = 10, 1000
"""Without features, item numbers stay below 10 for each line of the table and 1,000: each becomes samples."""


class MmRec(Released):
    """Interactions and features in the layout of MMRec (Zhou 2023, arXiv:2302.03497): `.inter` and `.npy`.

    The splits are the released ones (`x_label` 0, 1, 2). In the test, what a user has from train and from val
    is not offered again; MMRec itself leaves out what is from train only, so its numbers are somewhat lower.
    Samples are as those of
    :class:`~mmlab.sources.movielens.MovieLens`, but that items have no words: the features of each, where the
    release has them, are `text.npy` and `image.npy`. They are in every sample of train too, since a shard is
    read from front to end: Baby, with 4,096 numbers for a picture, takes about 2.5 GB.
    """

    name = "mmrec"
    release = (
        "The release is a folder of MMRec's data sets (github.com/enoche/MMRec), such as `baby`: baby.inter, "
        "text_feat.npy, image_feat.npy."
    )
    licence = "as the data set: Amazon's are for research"

    def __init__(
        self,
        *,
        history: int = 50,
        new_users: bool = False,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            history: How many items before an interaction a training sample has at most.
            new_users: Whether val and test keep users of whom nothing is known from before.
            from_file: Folder of one data set, a zip or a tar.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: A negative length.
        """
        if history < 0:
            raise ValueError(f"history={history}: a number of items, 0 or more")
        self.history = history
        self.new_users = new_users
        settings = {"history": history, "new_users": new_users}
        super().__init__(settings=settings, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """The one table of interactions, and what features there are.

        Raises:
            ValueError: No table, or several.
        """
        tables = [name for name in files.names if name.endswith(".inter")]
        if len(tables) != 1:
            raise self.refusal(files, "its one file .inter" if not tables else "only one file .inter")
        features = {kind: files.find(name) for kind, name in _FEATURES.items()}
        return {"interactions": tables[0], **{kind: name for kind, name in features.items() if name}}

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Columns by name, parted by tabs; row i of the features is of item i."""
        name = annotations["interactions"]
        tables = {kind: _features(files, annotations[kind]) for kind in _FEATURES if kind in annotations}
        parts, again = _once(_interactions(files, name, bounded=not tables))
        known = max((int(one.item) for part in parts.values() for one in part), default=-1) + 1
        for kind, table in tables.items():
            if len(table) < known:
                raise ValueError(
                    f"{annotations[kind]} in {files.path} has {len(table)} rows, but {name} has item "
                    f"{known - 1}: fetch both again."
                )
        items = max([known, *map(len, tables.values())])
        offered = {
            str(number): Offered(
                {}, {f"{kind}.npy": table[number] for kind, table in tables.items() if number < len(table)}
            )
            for number in range(items)
        }
        contents = interaction_items(
            parts,
            offered,
            history=self.history,
            new_users=self.new_users,
            remedy=f"correct the column x_label of {name} (0 is train, 1 val, 2 test)",
        )
        left_out = {"interactions that were there before": again} if again else {}
        return contents._replace(left_out={**left_out, **contents.left_out})


def _interactions(files: ReleasedFiles, name: str, *, bounded: bool) -> dict[str, list[Interaction]]:
    """By split, in the order of time where the table has it, else as they stand there.

    Where no features say how many items there are, the largest number does; `bounded` then refuses one that
    is far above the number of lines, since val and test have a sample for every item up to it.
    """
    lines = files.lines(name)
    limit = _LEAST_ITEMS + _ITEMS_PER_LINE * len(lines)
    heading = [cell.partition(":")[0] for cell in lines[0].split("\t")] if lines else []
    with files.naming(name, 1):
        missing = [column for column in _COLUMNS if column not in heading]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(heading)}")
    places = [heading.index(column) for column in _COLUMNS]
    when = heading.index("timestamp") if "timestamp" in heading else None
    found: dict[str, list[Interaction]] = defaultdict(list)
    for place, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        with files.naming(name, place):
            if len(cells) != len(heading):
                raise ValueError(f"{len(cells)} columns instead of {len(heading)}")
            user, item, part = (cells[at] for at in places)
            if part not in _SPLITS:
                raise ValueError(f"x_label is {part!r}: 0 (train), 1 (val) or 2 (test)")
            if int(user) < 0 or int(item) < 0:
                raise ValueError("users and items are numbers from 0")
            if bounded and int(item) >= limit:
                raise ValueError(
                    f"item {item}, but items are numbered from 0 without gaps: {limit} or more in a table "
                    f"of {len(lines)} lines is none"
                )
            time = float(place) if when is None else float(cells[when])
            if not math.isfinite(time):
                raise ValueError(f"the timestamp {cells[when or 0]} is not finite")
            found[_SPLITS[part]].append(Interaction(str(int(user)), str(int(item)), time))
    return {split: sorted(found[split], key=lambda one: one.time) for split in _SPLITS.values()}


def _once(parts: Mapping[str, list[Interaction]]) -> tuple[dict[str, list[Interaction]], int]:
    """Of equal interactions the first one, in the first split that has it, and how many others there were.

    What a user has is not offered again, so what is wanted twice could not be found.
    """
    seen: set[tuple[str, str]] = set()
    found: dict[str, list[Interaction]] = {}
    for split, part in parts.items():
        found[split] = []
        for one in part:
            if (one.user, one.item) not in seen:
                seen.add((one.user, one.item))
                found[split].append(one)
    return found, sum(map(len, parts.values())) - len(seen)


def _features(files: ReleasedFiles, name: str) -> Shaped[np.ndarray, "items dim"]:
    """A table of numbers, as float32."""
    content = files.read(name)
    with files.naming(name):
        file = io.BytesIO(content)
        shape, dtype = _header(file)
        if len(shape) != 2 or min(shape) < 1 or dtype.kind not in "iuf":
            raise ValueError(f"an array of {dtype} and shape {shape} instead of [items, features]")
        # Before memory is asked for: a damaged header may announce any size.
        wanted, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
        if wanted != there:
            raise ValueError(f"{there} bytes instead of the {wanted} of {dtype} and shape {shape}")
        loaded: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        with np.errstate(over="ignore", invalid="ignore"):  # found below
            table: np.ndarray = loaded.astype(np.float32, copy=False)
        bad = ~np.isfinite(table).all(axis=1)
        if bad.any():
            raise ValueError(f"row {int(bad.argmax())} has a number that is not finite in float32")
    return table


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a file of numpy's format; the file then stands at its numbers."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"numpy's format in version {version}: save it again by numpy.save")
    old = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (SyntaxError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"no header of numpy's format ({error})") from error
    return shape, dtype
