"""Downloads from a server on this machine that behaves badly on purpose."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmlab.assets.fetch import FetchError, Remote, WrongFileError, download

CONTENT = os.urandom(700_000)
NO_WAIT = (0.0, 0.0, 0.0)


@dataclass
class Behaviour:
    """How the server answers."""

    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which each of the first answers breaks off."""
    announced: int | None = None
    """Content-Length, where it is not the truth."""
    shift: int = 0
    """Answers ranges that begin this many bytes later than asked."""
    status: list[int] = field(default_factory=list)
    """Statuses of the first answers, instead of a file."""
    body: bytes = CONTENT
    asked: list[str | None] = field(default_factory=list)
    """The ranges that were asked for."""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, behaviour: Behaviour, *arguments: object) -> None:
        self.behaviour = behaviour
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        how = self.behaviour
        wanted = self.headers["Range"]
        how.asked.append(wanted)
        if how.status:
            self.send_error(how.status.pop(0))
            return
        start = 0
        if wanted and how.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) + how.shift  # type: ignore[index]
            if start >= len(how.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(how.body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(how.body) - 1}/{len(how.body)}")
        else:
            self.send_response(200)
        rest = how.body[start:]
        self.send_header("Content-Length", str(len(rest) if how.announced is None else how.announced))
        self.end_headers()
        with suppress(BrokenPipeError):  # a client that is refused something hangs up
            self.wfile.write(rest[: how.cut_after.pop(0)] if how.cut_after else rest)


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def remote(behaviour: Behaviour) -> Iterator[Remote]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, behaviour))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Remote(
        url=f"http://127.0.0.1:{server.server_port}/file",
        name="file.whl",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        remedy="By hand: fetch it.",
    )
    server.shutdown()
    thread.join()
    server.server_close()


def unsized(remote: Remote) -> Remote:
    return Remote(remote.url, remote.name, remote.sha256, None, remote.remedy)


def get(remote: Remote, folder: Path) -> Path:
    return download(remote, folder, waits=NO_WAIT)


def test_downloads_once(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    assert get(remote, tmp_path / "new" / "folder").read_bytes() == CONTENT
    get(remote, tmp_path / "new" / "folder")
    assert behaviour.asked == [None]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["file.whl"]


def test_replaces_a_file_of_another_content(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file.whl").write_bytes(b"old")
    assert get(remote, tmp_path).read_bytes() == CONTENT


def test_file_address(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(CONTENT)
    local = Remote((tmp_path / "here").as_uri(), remote.name, remote.sha256, remote.size, "")
    assert get(local, tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize("sized", [True, False])
def test_cut_connections_are_resumed(
    remote: Remote, behaviour: Behaviour, tmp_path: Path, sized: bool
) -> None:
    behaviour.cut_after = [300_000, 1, 200_000]
    assert get(remote if sized else unsized(remote), tmp_path).read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=500001-"]


def test_the_next_call_goes_on(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.cut_after = [300_000, 0, 0, 0, 0]
    with pytest.raises(FetchError, match="300000 of 700000 bytes"):
        get(remote, tmp_path)
    assert not (tmp_path / "file.whl").exists()
    assert get(remote, tmp_path).read_bytes() == CONTENT
    assert behaviour.asked[-1] == "bytes=300000-"


def test_server_without_ranges(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.ranges = False
    behaviour.cut_after = [300_000]
    assert get(remote, tmp_path).read_bytes() == CONTENT


def test_server_that_sends_another_range(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.cut_after = [300_000]
    behaviour.shift = 7
    assert get(remote, tmp_path).read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=300000-", None]


def test_server_that_always_cuts_gives_up(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.ranges = False
    behaviour.cut_after = [1000] * 100
    with pytest.raises(FetchError, match=r"1000 of 700000 bytes.\nBy hand: fetch it."):
        get(remote, tmp_path)
    assert len(behaviour.asked) == 1 + len(NO_WAIT)


def test_whole_part_of_unknown_size(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    (tmp_path / f"file.whl.{remote.sha256[:8]}.part").write_bytes(CONTENT)
    assert get(unsized(remote), tmp_path).read_bytes() == CONTENT
    assert behaviour.asked == ["bytes=700000-"]


def test_part_that_is_too_long(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / f"file.whl.{remote.sha256[:8]}.part").write_bytes(CONTENT + b"more")
    assert get(remote, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("announced", [5_000, 800_000])
def test_lying_content_length(remote: Remote, behaviour: Behaviour, tmp_path: Path, announced: int) -> None:
    behaviour.announced = announced
    with pytest.raises(FetchError, match=f"announces {announced} bytes, not 700000"):
        get(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_lying_content_length_where_the_size_is_unknown(
    remote: Remote, behaviour: Behaviour, tmp_path: Path
) -> None:
    behaviour.announced = 800_000  # the range asked for then shows that nothing is missing
    assert get(unsized(remote), tmp_path).read_bytes() == CONTENT


def test_wrong_checksum_is_deleted(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.body = bytes(len(CONTENT))
    with pytest.raises(WrongFileError, match=r"is not the file expected: its SHA-256 is .*\nBy hand"):
        get(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 403, 410])
def test_refusals_are_final(remote: Remote, behaviour: Behaviour, tmp_path: Path, status: int) -> None:
    behaviour.status = [status]
    with pytest.raises(FetchError, match=f"answered {status}") as caught:
        get(remote, tmp_path)
    assert len(behaviour.asked) == 1
    assert str(caught.value).count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_troubles_pass(remote: Remote, behaviour: Behaviour, tmp_path: Path) -> None:
    behaviour.status = [503, 429, 500]
    assert get(remote, tmp_path).read_bytes() == CONTENT


def test_no_server(tmp_path: Path) -> None:
    nowhere = Remote("http://127.0.0.1:9/file", "file", "0" * 64, None, "By hand: fetch it.")
    with pytest.raises(FetchError, match=r"cannot fetch http://127.0.0.1:9/file: .*refused.*\nBy hand"):
        get(nowhere, tmp_path)


def test_full_disk(remote: Remote) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(FetchError, match="MMLAB_CACHE"):
        get(remote, full / "folder")


def test_disk_that_fills_up(remote: Remote, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / f"file.whl.{remote.sha256[:8]}.part").symlink_to("/dev/full")
    with pytest.raises(FetchError, match=r"No space left on device.*\n.*needs 1 MB.*MMLAB_CACHE"):
        get(remote, tmp_path)
    assert not (tmp_path / "file.whl").exists()


def test_quiet_where_nobody_watches(
    remote: Remote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get(remote, tmp_path)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "fetching file.whl (1 MB)\n")
