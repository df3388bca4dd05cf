"""Two sets of samples with the same keys read as one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import write_tar

import mmlab.data.joined as joined_module
from mmlab.data.chained import ChainedSet
from mmlab.data.decode import BrokenMember
from mmlab.data.joined import JoinedSet
from mmlab.data.shards import ShardSet, write_shards


def shards(folder: Path, prefix: str, samples: list[dict[str, bytes]], size: int = 3) -> ShardSet:
    return ShardSet(write_shards(samples, folder, prefix, max_samples=size))


def test_members_meet_by_key_whatever_the_shards_and_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    first = shards(tmp_path, "a", [{"__key__": f"k{n}", "txt": b"text %d" % n} for n in range(10)])
    turned = [{"__key__": f"k{n}", "npy": b"array %d" % n} for n in (9, 4, 7, 0, 2, 88)]
    both = JoinedSet(first, shards(tmp_path, "b", turned, size=2))
    assert both.counts.tolist() == [3, 3, 3, 1]
    again = pickle.loads(pickle.dumps(both))
    for shard, sample in ((0, 0), (0, 1), (3, 0)):
        number = 3 * shard + sample
        members = {"txt": b"text %d" % number}
        if number in (0, 2, 4, 7, 9):
            members["npy"] = b"array %d" % number
        assert both.read(shard, sample) == again.read(shard, sample) == (f"k{number}", members)
    assert both.extensions == {"npy": 6, "txt": 10}
    assert both.matching == 0.5


def test_first_set_holds_where_both_have_a_member_and_all_partners_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    first = shards(tmp_path, "a", [{"__key__": "k", "txt": b"mine"}])
    write_tar(tmp_path / "b-0.tar", [("k.txt", b"theirs"), ("k.npy", b"one")])
    write_tar(tmp_path / "b-1.tar", [("k.npy", b"two"), ("k.wav", b"three")])
    both = JoinedSet(first, ShardSet.find("b-*.tar", folder=tmp_path))
    assert both.read(0, 0).members == {"txt": b"mine", "npy": b"one", "wav": b"three"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=12, unique=True), st.data())
def test_every_partner_is_found_even_among_equal_hashes(keys: list[str], data: st.DataObject) -> None:
    """With three hashes in all, most keys share theirs with another."""
    import tempfile

    theirs = data.draw(st.permutations(keys))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("MMLAB_CACHE", str(folder / "cache"))
        patch.setattr(joined_module, "_hash", lambda key: len(key) * 2**40)
        first = shards(folder, "a", [{"__key__": key, "txt": b"t"} for key in keys])
        other = shards(folder, "b", [{"__key__": key, "npy": key.encode()} for key in theirs], size=2)
        both = JoinedSet(first, other)
        for number, key in enumerate(keys):
            assert both.read(*divmod(number, 3)).members["npy"] == key.encode()


def test_sets_without_a_common_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    first = shards(tmp_path, "a", [{"__key__": "x", "txt": b"t"}])
    with pytest.raises(ValueError, match=r"nothing to join: of 1 keys looked up \(such as 'x'"):
        JoinedSet(first, shards(tmp_path, "b", [{"__key__": "y", "npy": b"n"}]))


def test_empty_set_joins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    empty = ShardSet([write_tar(tmp_path / "empty.tar", [])])
    both = JoinedSet(empty, shards(tmp_path, "b", [{"__key__": "y", "npy": b"n"}]))
    assert both.counts.tolist() == [0]


def test_changed_partner_changes_the_digest_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    first = shards(tmp_path, "a", [{"__key__": key, "txt": b"t"} for key in ("k", "l")])
    before = JoinedSet(first, shards(tmp_path, "b", [{"__key__": "k", "npy": b"n"}]))
    after = JoinedSet(first, shards(tmp_path, "b", [{"__key__": key, "npy": b"n"} for key in ("l", "k")]))
    assert before.digest != after.digest
    assert after.read(0, 1).members == {"txt": b"t", "npy": b"n"}


def test_spoilt_table_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    first = shards(tmp_path, "a", [{"__key__": "k", "txt": b"t"}])
    other = shards(tmp_path, "b", [{"__key__": "k", "npy": b"n"}])
    JoinedSet(first, other)
    (table,) = (tmp_path / "cache" / "joins").iterdir()
    table.write_bytes(b"\x93NUMPY\x01\x00 nonsense")
    assert JoinedSet(first, other).read(0, 0).members == {"txt": b"t", "npy": b"n"}


def test_broken_partner_breaks_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    first = shards(tmp_path, "a", [{"__key__": "k", "txt": b"t"}])
    other = shards(tmp_path, "b", [{"__key__": "k", "npy": b"n" * 2000}])
    both = JoinedSet(first, other)
    with other.paths[0].open("r+b") as file:
        file.truncate(600)
    with pytest.raises(BrokenMember, match="shorter than its index"):
        both.read(0, 0)


def test_chained_sets_are_numbered_as_one(tmp_path: Path) -> None:
    parts = {
        name: shards(tmp_path, name, [{"__key__": f"{name}{n}", "txt": b"t"} for n in range(count)])
        for name, count in (("a", 4), ("c", 2))
    }
    chained = ChainedSet(parts, sources=("a", "b", "c"))
    assert chained.counts.tolist() == [3, 1, 2]
    assert [chained.source(shard) for shard in range(3)] == [0, 0, 2]
    assert [chained.key(shard, 0) for shard in range(3)] == ["a0", "a3", "c0"]
    assert chained.read(2, 1).key == "c1"
    assert chained.digest != ChainedSet(dict(reversed(parts.items())), sources=("a", "b", "c")).digest
    assert np.concatenate([part.counts for part in chained.parts.values()]).tolist() == [3, 1, 2]


def test_chained_sets_hand_announcements_to_their_parts(tmp_path: Path) -> None:
    parts = {
        name: shards(tmp_path, name, [{"__key__": f"{name}{n}", "txt": b"t"} for n in range(6)], size=2)
        for name in ("a", "b")
    }
    said: dict[str, object] = {}
    for name, part in parts.items():
        part.announce = lambda numbers, name=name: said.update({name: numbers})  # type: ignore[method-assign]
    ChainedSet(parts, sources=("a", "b")).announce([4, 0, 3, 2])
    assert said == {"a": [0, 2], "b": [1, 0]}
