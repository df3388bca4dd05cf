"""Debian packages made in tests."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable

CONTROL = b"Package: p\nVersion: 1.2-3\nDescription: short\n and long\n"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


def tar(files: dict[str, bytes]) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            folder = tarfile.TarInfo("./usr")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            link = tarfile.TarInfo("./usr/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


def make_deb(files: dict[str, bytes], *, ending: str = ".xz", control: bytes = CONTROL) -> bytes:
    members = {
        "debian-binary": b"2.0\n",
        f"control.tar{ending}": PACKERS[ending](tar({"./control": control})),
        f"data.tar{ending}": PACKERS[ending](tar({f"./{name}": content for name, content in files.items()})),
    }
    deb = b"!<arch>\n"
    for name, content in members.items():
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        deb += content + b"\n" * (len(content) % 2)
    return deb
