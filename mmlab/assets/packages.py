"""Where the user's own package managers, pip and apt, would take a package from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mmlab.assets.cache import cache_dir
from mmlab.assets.fetch import FetchError, Remote


def resolve_wheel(requirement: str, *, remedy: str) -> Remote:
    """Ask pip, with the user's own configuration, where a wheel lies. Nothing is installed.

    Args:
        requirement: `NAME==VERSION`.
        remedy: What a person does if pip or the later download fails.

    Raises:
        FetchError: There is no pip, no network, or no such wheel.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    command += ["--only-binary", ":all:", "--no-input", "--quiet", "--report", "-", requirement]
    print(f"asking pip for {requirement}", file=sys.stderr, flush=True)
    # A dry run installs nothing, so pip's wish for a virtual environment is no reason to refuse.
    environment = os.environ | {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "No module named pip" in answer.stderr:
        raise FetchError(
            f"this Python has no pip to ask for {requirement}.",
            f"Run `{sys.executable} -m ensurepip` first. {remedy}",
        )
    if answer.returncode != 0:
        raise FetchError(f"pip does not find {requirement}: {_reason(answer.stderr)}", remedy)
    download = json.loads(answer.stdout)["install"][0]["download_info"]
    return Remote(
        url=download["url"],
        name=PurePosixPath(unquote(urlsplit(download["url"]).path)).name,
        sha256=download["archive_info"]["hashes"]["sha256"],
        size=None,
        remedy=remedy,
    )


def resolve_deb(package: str, *, remedy: str) -> Remote:
    """Ask apt, with the machine's own sources, where a package lies. Needs no root, changes nothing.

    Args:
        package: Name of a Debian package.
        remedy: What a person does if apt or the later download fails.

    Raises:
        FetchError: There is no apt, no network, or no such package.
    """
    if shutil.which("apt-get") is None:
        raise FetchError(f"{package} is a Debian package, and this machine has no apt-get.", remedy)
    print(f"asking apt for {package}", file=sys.stderr, flush=True)
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="apt-", dir=cache) as folder:
        # Lists of its own: the machine's are only root's to renew, and missing in most containers.
        for name in ("lists/partial", "cache/archives/partial"):
            (Path(folder) / name).mkdir(parents=True)
        settings = {
            "Dir::State::Lists": f"{folder}/lists",
            "Dir::Cache": f"{folder}/cache",
            "APT::Sandbox::User": "root",  # as root, apt else works as a user who may not enter this folder
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "30",
            "Acquire::https::Timeout": "30",
        }
        apt = ["apt-get", "--quiet"]
        for key, value in settings.items():
            apt += ["-o", f"{key}={value}"]
        # One source of several out of reach fails the update, and need not be the one that has the package.
        update = _run([*apt, "update"])
        found = _run([*apt, "download", "--print-uris", package])
    line = re.search(r"^'(\S+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$", found.stdout, re.MULTILINE)
    if line is None:
        raise FetchError(f"apt-get does not find {package}: {_reason(update.stderr + found.stderr)}", remedy)
    return Remote(url=line[1], name=line[2], sha256=line[4], size=int(line[3]), remedy=remedy)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})


def _reason(errors: str) -> str:
    """What a package manager's error output says, in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(?:ERROR|E|Err\S*):|.*No module named", line)] or lines
    last = telling[-1] if telling else "no reason given"
    return f"no connection ({last})" if re.search(r"Retry\(|resolv|connect to", errors) else last
