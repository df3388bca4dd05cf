"""Index files beside a tar that are no index, or lie: nobody reads elsewhere, and nobody believes them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tars import write_tar

from mmlab.data.decode import BrokenMember
from mmlab.data.index import build_index, line_ends, open_index, read_line
from mmlab.data.shards import ShardSet

BYTES = 10_240
"""Of the tar."""
LIES_SAID = r"^index does not fit its shard$"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"one"), ("b.txt", b"two")])
    assert path.stat().st_size == BYTES
    return path


def lie(tar: Path, lines: list[Any] | bytes, **head: Any) -> None:
    """Put an index beside a tar, with the digest that its lines have."""
    info = json.loads(build_index(tar).path.read_text().splitlines()[0])
    body = (
        lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    )
    info |= {"samples": body.count(b"\n"), "digest": hashlib.sha256(body).hexdigest()} | head
    tar.with_name("x.tar.idx").write_bytes(json.dumps(info).encode() + b"\n" + body)


GOOD = ["b", ["txt", 1536, 3]]
LIES: dict[str, Any] = {
    "beyond the end": ["a", ["txt", BYTES - 2, 3]],
    "far beyond the end": ["a", ["txt", 2**70, 3]],
    "before the beginning": ["a", ["txt", -1, 3]],
    "a negative size": ["a", ["txt", 512, -1]],
    "a huge size": ["a", ["txt", 0, 2**62]],
    "a fraction": ["a", ["txt", 512.5, 3]],
    "infinity": ["a", ["txt", 512, float("inf")]],
    "a word": ["a", ["txt", "512", 3]],
    "a boolean": ["a", ["txt", True, 3]],
    "no extension": ["a", [None, 512, 3]],
    "too few values": ["a", ["txt", 512]],
    "too many values": ["a", ["txt", 512, 3, 4]],
    "no member": ["a"],
    "nothing": [],
    "an object": {"a": 1},
    "null": None,
    "a key that is a number": [1, ["txt", 512, 3]],
    "a path": ["a", "../../etc/passwd"],
}


@pytest.mark.parametrize("name", LIES)
def test_a_line_that_lies_breaks_its_sample_only(tar: Path, name: str) -> None:
    lie(tar, [LIES[name], GOOD])
    shards = ShardSet([tar])
    with pytest.raises(BrokenMember, match=LIES_SAID):
        shards.read(0, 0)
    assert shards.read(0, 1).members == {"txt": b"two"}


@pytest.mark.parametrize("line", [b"[" * 50_000, b'["a",["txt",512,3]', b"\xff\xfe", b"", b"9" * 10_000])
def test_a_line_that_is_no_json(tar: Path, line: bytes) -> None:
    lie(tar, line + b"\n" + json.dumps(GOOD).encode() + b"\n")
    with pytest.raises(BrokenMember, match=LIES_SAID):
        ShardSet([tar]).read(0, 0)


def test_a_line_that_is_too_long_is_not_read(tar: Path) -> None:
    handle = os.open(tar, os.O_RDONLY)
    try:
        with pytest.raises(BrokenMember, match=LIES_SAID):
            read_line(handle, 0, 2**40, size=BYTES)
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    "head",
    [
        {"samples": -1}, {"samples": 2**60}, {"samples": 2.0}, {"samples": True}, {"samples": "2"},
        {"samples": BYTES // 512 + 1}, {"bytes": str(BYTES)}, {"duplicates": 3}, {"duplicates": None},
        {"extensions": []}, {"extensions": {"txt": -1}}, {"extensions": {"txt": 3}},
        {"extensions": {"txt": "2"}}, {"digest": 1}, {"damage": []}, {"version": 2}, {"version": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_first_line_that_cannot_be_true_is_not_believed(tar: Path, head: dict[str, Any]) -> None:
    lie(tar, [["stolen", ["txt", 512, 3]], GOOD], **head)
    assert ShardSet([tar]).key(0, 0) == "a"
    assert open_index(tar).info.extensions == {"txt": 2}


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 10**6, b"\0" * 10**6, b"{}" + b" " * 10**7])
def test_a_first_line_of_rubbish_is_not_believed(tar: Path, content: bytes) -> None:
    tar.with_name("x.tar.idx").write_bytes(content)
    assert ShardSet([tar]).key(0, 0) == "a"


def test_an_index_far_larger_than_its_tar_is_not_believed(tar: Path) -> None:
    lie(tar, [["stolen", ["txt", 512, 3]], GOOD])
    # Sparse, so it takes no room on the disk; reading it would take 100 GB of memory.
    os.truncate(tar.with_name("x.tar.idx"), 10**11)
    assert ShardSet([tar]).key(0, 0) == "a"


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_file_is_not_opened(
    tar: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    path = tar.with_name("x.tar.idx")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for ever
    else:
        path.symlink_to("/dev/zero")
    assert ShardSet([tar]).key(0, 0) == "a"


@pytest.mark.parametrize("change", ["swapped", "a line more", "a line less", "a flipped bit"])
def test_lines_that_are_not_what_the_first_line_says_are_refused(tar: Path, change: str) -> None:
    path = build_index(tar).path
    head, first, second = path.read_text().splitlines(keepends=True)
    lines = {
        "swapped": second + first,
        "a line more": first + second + '["c",["txt",512,3]]\n',
        "a line less": first,
        "a flipped bit": first.replace("512", "513") + second,
    }
    path.write_text(head + lines[change])
    index = open_index(tar)
    assert index.path == path
    with pytest.raises(ValueError, match=r"x\.tar\.idx does not fit its shard: delete it"):
        line_ends(index)


def test_members_do_not_lie_over_each_other(tar: Path) -> None:
    # A thousand times the same 256 MiB, under a thousand names, would be 256 GB in memory.
    lie(tar, [["a", *[[f"{n}.txt", 0, BYTES] for n in range(50)]], GOOD])
    with pytest.raises(BrokenMember, match=LIES_SAID):
        ShardSet([tar]).read(0, 0)
