"""Debian packages made here, whole and broken."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from debs import CONTROL, PACKERS, make_deb
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.assets.debian import deb_control, read_deb

FILES = {"usr/share/a.txt": b"first", "usr/share/b.bin": bytes(range(256)) * 30, "usr/empty": b""}


@pytest.mark.parametrize("ending", PACKERS)
def test_reads_every_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "p.deb"
    path.write_bytes(make_deb(FILES, ending=ending))
    shown: list[int] = []
    assert dict(read_deb(path, show=shown.append)) == FILES
    assert shown == sorted(shown)
    assert 0 < shown[-1] <= path.stat().st_size
    assert deb_control(path) == {"Package": "p", "Version": "1.2-3", "Description": "short"}


def test_stops_early(tmp_path: Path) -> None:
    path = tmp_path / "p.deb"
    path.write_bytes(make_deb(FILES))
    files = read_deb(path)
    assert next(iter(files)) == ("usr/share/a.txt", b"first")
    del files


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this system")
def test_packages_as_ubuntu_packs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for name, content in {**FILES, "DEBIAN/control": CONTROL}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    control = (
        b"Package: p\nVersion: 1.2-3\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n"
    )
    (root / "DEBIAN" / "control").write_bytes(control)
    path = tmp_path / "p.deb"
    built = subprocess.run(["dpkg-deb", "-Zzstd", "--build", root, path], capture_output=True, check=False)
    if built.returncode != 0:
        assert b"compression" in built.stderr, built.stderr
        pytest.skip("this dpkg-deb knows no zstd")
    assert dict(read_deb(path)) == FILES
    assert deb_control(path)["Version"] == "1.2-3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short or broken"):
        list(read_deb(path))


@pytest.mark.parametrize("ending", PACKERS)
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_what_is_cut_short_is_never_taken_for_whole(
    tmp_path_factory: pytest.TempPathFactory, ending: str, share: float
) -> None:
    deb = make_deb(FILES, ending=ending)
    path = tmp_path_factory.getbasetemp() / f"cut{ending}.deb"
    path.write_bytes(deb[: int(share * (len(deb) - 1))])
    with pytest.raises(ValueError, match=r"cut short|no Debian package") as caught:
        list(read_deb(path))
    assert "\n" not in str(caught.value)


def test_flipped_bytes_are_noticed(tmp_path: Path) -> None:
    deb = bytearray(make_deb(FILES))
    deb[-60] ^= 255
    (tmp_path / "p.deb").write_bytes(deb)
    with pytest.raises(ValueError, match="cut short or broken"):
        list(read_deb(tmp_path / "p.deb"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>not found</html>"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.deb").write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.deb is no Debian package"):
        list(read_deb(tmp_path / "p.deb"))


@pytest.mark.parametrize("name", ["../up", "a/../../up"])
def test_names_outside_the_package_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.deb").write_bytes(make_deb({name: b"x"}))
    with pytest.raises(ValueError, match="outside itself"):
        list(read_deb(tmp_path / "p.deb"))
