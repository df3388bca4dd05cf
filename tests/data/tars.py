"""Tars by hand, and their samples as mmlab and as webdataset read them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from mmlab.data.shards import ShardSet


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of named members, in the order given."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(shards: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    return [
        tuple(shards.read(shard, sample))
        for shard, count in enumerate(shards.counts)
        for sample in range(count)
    ]


def with_webdataset(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """The samples of a tar as webdataset reads them."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    with path.open("rb") as stream:
        # webdataset 1.0 ends a shard with a record without a name, which its own grouping reads as {}.
        files = [f | {"__url__": ""} if "fname" in f else {} for f in tar_file_iterator(stream)]
    return [
        (s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in group_by_keys(files)
    ]
