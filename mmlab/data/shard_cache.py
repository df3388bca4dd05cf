"""Remote shards on this node: indexed once, fetched when they are read, checked, kept while there is room."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmlab.assets.cache import cache_dir
from mmlab.assets.fetch import FetchError, RefusedError, WrongFileError, complete, sha256_of
from mmlab.data.index import Index, build_index, line_ends, read_index
from mmlab.data.remote import RemoteShards, beside, origin, size_of
from mmlab.data.room import Room
from mmlab.data.tar import DamagedTar

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds between tries that bring nothing new: a training run outlives a short trouble of the network."""
_SHORT_WAITS = (1.0, 2.0)
"""The same for what can be done without."""
_SILENCE = 60.0
"""Seconds without a byte after which a connection counts as cut."""
_INDEX_BYTES = 2**30
"""Larger indices are not taken from a server."""
_TRIES = 4
"""Downloads of a shard that is damaged differently each time."""


class ShardCache:
    """A folder of fetched shards, which any number of processes share.

    The index of a shard stays for ever, `index/NAME.tar.idx`, with the SHA-256 of the shard's bytes once
    these were seen; the shard itself goes when others need its room.
    """

    def __init__(self, settings: RemoteShards) -> None:
        """Make the folder where it is missing.

        Raises:
            ValueError: The folder cannot be made.
        """
        folder = cache_dir() / "shards" if settings.cache is None else Path(settings.cache).expanduser()
        try:
            self.room = Room(folder.absolute(), settings.cache_bytes)
            self._indices = self.room.folder / "index"
            self._indices.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"no place for remote shards at {folder} ({error.strerror}): set remote.cache to a folder "
                "that may be written"
            ) from error

    def known(self, address: str) -> Index | None:
        """The index of a shard, if it is here; asks no network."""
        return read_index(self._index_path(address))

    def index(self, address: str) -> Index:
        """The index of a shard: the one here, or the one beside the shard if it fits, or one made from it.

        Raises:
            FetchError: The shard cannot be fetched, or is no tar.
        """
        found = self.known(address)
        if found is not None:
            return found
        with self._writing(address), self.room.lock(_name(address)):
            found = self.known(address) or self._index_beside(address)
            if found is None:
                found, file = self._fetch(address, None, insist=True)
                os.close(file)
            return found

    def open(self, address: str, index: Index, *, insist: bool = True) -> int:
        """Open a shard, fetched if it is not here. It is in use until the file is closed.

        Args:
            address: Of the shard.
            index: Of the shard; what is fetched must fit it.
            insist: Whether to wait for room and to take it from shards in use, and to outlive long troubles.

        Raises:
            FetchError: The shard cannot be fetched, has changed, or there is no room on the disk.
            NoRoomError: There is no room, and none was to be taken.
        """
        path = self.room.file(_name(address))
        with self._writing(address):
            file = self.room.open(path, index.info.bytes)
            if file is None:
                with self.room.lock(_name(address)):
                    file = self.room.open(path, index.info.bytes)  # another process was faster
                    if file is None:
                        file = self._fetch(address, index, insist=insist)[1]
        return file

    def _index_path(self, address: str) -> Path:
        return self._indices / f"{_name(address)}.tar.idx"

    def _sha_path(self, address: str) -> Path:
        return self._indices / f"{_name(address)}.sha256"

    @contextmanager
    def _writing(self, address: str) -> Iterator[None]:
        try:
            yield
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(
                f"cannot keep {address} in {self.room.folder}: {error.strerror or error}.",
                "Make room there, or set remote.cache to another folder.",
            ) from error

    def _index_beside(self, address: str) -> Index | None:
        """Fetch the index that lies beside a shard, if there is one that fits."""
        place = beside(address)
        if place is None:
            return None

        def limit(size: int, total: int | None) -> None:
            if max(size, total or 0) > _INDEX_BYTES:
                raise RefusedError("too large for an index")

        part = self._indices / f"{_name(address)}.part"
        part.unlink(missing_ok=True)
        try:
            source = origin(place, size=None, remedy="", silence=_SILENCE)
            complete(part, source, waits=_SHORT_WAITS, grow=limit, make_room=self.room.evict)
        except (RefusedError, FetchError):  # then the shard says what is wrong, or has no index
            part.unlink(missing_ok=True)
            return None
        found = read_index(part)
        if found is None or not self._fits(found, address):
            part.unlink()
            return None
        self._sha_path(address).unlink(missing_ok=True)
        self.room.file(_name(address)).unlink(missing_ok=True)  # it may be older than this index
        return self._keep(found, address)

    def _fits(self, index: Index, address: str) -> bool:
        """Whether an index from a server is whole, and its shard as large as it says."""
        try:
            line_ends(index)
        except ValueError:
            return False
        return size_of(address, silence=_SILENCE) in (None, index.info.bytes)

    def _keep(self, index: Index, address: str) -> Index:
        path = self._index_path(address)
        os.replace(index.path, path)
        return Index(index.info, path, index.body)

    def _fetch(self, address: str, index: Index | None, *, insist: bool) -> tuple[Index, int]:
        """Fetch a shard whose lock is held; returns its index and the open file."""
        name = _name(address)
        part = self.room.file(name, "part")
        with self.room.space(name, insist=insist) as grow:
            if index is None:
                index, sha256 = self._first(address, grow)
            else:
                grow(0, index.info.bytes)  # before the server is asked, which there may be no room for
                self._download(address, index, grow, _WAITS if insist else _SHORT_WAITS)
                sha256 = sha256_of(part)
                self._check(address, index, sha256)
            self._sha_path(address).write_text(sha256)
            file = self.room.open(part, index.info.bytes)
            assert file is not None, part
            os.fsync(file)
            os.replace(part, self.room.file(name))
        return index, file

    def _first(self, address: str, grow: Callable[[int, int | None], None]) -> tuple[Index, str]:
        """Fetch a shard of which nothing is known, and index it; returns the SHA-256 of its bytes too."""
        part = self.room.file(_name(address), "part")
        new = self._indices / f"{_name(address)}.new"
        seen: str | None = None
        for _ in range(_TRIES):
            self._download(address, None, grow, _WAITS)
            sha256 = sha256_of(part)
            built = _try_index(part, new)
            if built is not None and built.info.damage is None:
                return self._keep(built, address), sha256
            # Without a size from the server, a cut looks like an end: what comes twice is the shard.
            if sha256 == seen:
                if built is not None:
                    return self._keep(built, address), sha256
                with part.open("rb") as file:
                    beginning = file.read(16)
                raise WrongFileError(
                    f"{address} is no plain tar: it begins with {beginning!r}.",
                    "Look at the address: a page of text may stand there, or a compressed tar.",
                )
            seen = sha256
            part.unlink()
        new.unlink(missing_ok=True)
        raise WrongFileError(
            f"{address} comes damaged, and differently each time.", "Try again where the network is better."
        )

    def _download(
        self,
        address: str,
        index: Index | None,
        grow: Callable[[int, int | None], None],
        waits: tuple[float, ...],
    ) -> None:
        part = self.room.file(_name(address), "part")
        size = None if index is None else index.info.bytes
        remedy = "Check that the address is right, and that this machine reaches it."
        if index is not None:
            remedy += f" If the shard was replaced, delete {index.path} to index it anew."
        source = origin(address, size=size, remedy=remedy, silence=_SILENCE)
        try:
            complete(
                part,
                source,
                waits=waits,
                grow=lambda now, total: grow(now, total if size is None else size),
                make_room=self.room.evict,
            )
        except RefusedError as error:
            raise FetchError(f"cannot fetch {address}: {error}.", remedy) from error
        if size is not None and part.stat().st_size != size:
            raise WrongFileError(f"{address} has more than the {size} bytes that were indexed.", remedy)

    def _check(self, address: str, index: Index, sha256: str) -> None:
        """Raise WrongFileError where the part is not the shard that was indexed."""
        recorded = self._sha_path(address)
        if recorded.exists() and len(known := recorded.read_text()) == len(sha256):
            same = known == sha256
        else:
            new = self._indices / f"{_name(address)}.new"
            found = _try_index(self.room.file(_name(address), "part"), new)
            same = found is not None and found.info.digest == index.info.digest
            new.unlink(missing_ok=True)
        if not same:
            raise WrongFileError(
                f"{address} has changed since it was indexed.",
                f"If that is meant, renew {beside(address)} if there is one, and delete {index.path}; "
                "runs that read the old shard cannot go on exactly.",
            )


def _name(address: str) -> str:
    """What a shard is called in the cache: readable, and different for each address."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", address.partition("?")[0].rpartition("/")[2].removesuffix(".tar"))
    return f"{stem[-40:]}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def _try_index(tar: Path, place: Path) -> Index | None:
    """Index a file, or None where it is no tar."""
    try:
        return build_index(tar, place)
    except ValueError as error:
        if not isinstance(error.__cause__, DamagedTar):  # no place for the index
            raise
        return None
