"""A server of shards on this machine that behaves badly on purpose."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Shop:
    """What a server has, how it answers, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, name and range of each request."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the first answers to GET breaks off."""
    status: list[int] = field(default_factory=list)
    """Statuses of the first answers to GET, instead of a file."""
    lie: int = 0
    """What is added to Content-Length."""
    sized: bool = True
    """Whether answers have a Content-Length at all."""
    ranges: bool = True
    heads: bool = True
    """Whether HEAD is answered."""
    pause: float = 0.0
    """Seconds between pieces."""
    piece: int = 1 << 30
    """Bytes of a piece."""
    redirects: bool = False
    """Whether each name first leads to another."""
    swap: dict[str, bytes] = field(default_factory=dict)
    """Files that replace those served, once an answer was cut."""
    closed: threading.Event = field(default_factory=threading.Event)

    def gets(self, suffix: str = ".tar") -> list[str]:
        """Names of the files that were asked for with GET."""
        return [name for method, name, _ in self.asked if method == "GET" and name.endswith(suffix)]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, shop: Shop, *arguments: object) -> None:
        self.shop = shop
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        shop, name = self.shop, self.path.removeprefix("/")
        if shop.redirects and not name.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", f"/moved/{name}")
            self.end_headers()
            return
        name = name.removeprefix("moved/")
        shop.asked.append((self.command, name, self.headers["Range"]))
        content = shop.files.get(name)
        if content is None:
            self.send_error(404)
        elif not body and not shop.heads:
            self.send_error(405)
        elif body and shop.status and name.endswith(".tar"):
            self.send_error(shop.status.pop(0))
        else:
            self._send(content, body)

    def _send(self, content: bytes, body: bool) -> None:
        shop, start = self.shop, 0
        if self.headers["Range"] and shop.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])  # type: ignore[index]
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hash(content)}"')
        if shop.sized:
            self.send_header("Content-Length", str(len(content) - start + shop.lie))
        self.end_headers()
        if body:
            rest = content[start:]
            if shop.cuts:
                rest = rest[: shop.cuts.pop(0)]
                shop.files.update(shop.swap)
            self._write(rest)

    def _write(self, content: bytes) -> None:
        for start in range(0, len(content), self.shop.piece):
            if self.shop.closed.wait(self.shop.pause if start else 0.0):
                return
            try:
                self.wfile.write(content[start : start + self.shop.piece])
            except OSError:  # whoever asked is gone
                return


@contextmanager
def serve() -> Iterator[Shop]:
    """A server without files; they may be added while it runs."""
    shop = Shop()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, shop))
    server.daemon_threads = False  # closing waits for all answers
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    shop.url = f"http://127.0.0.1:{server.server_port}"
    yield shop
    shop.closed.set()
    server.shutdown()
    thread.join()
    server.server_close()
