"""What a submission freezes: the code as it stands in the working tree, and the configs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mmlab.launch import freeze
from mmlab.launch.freeze import checkout_of, config_files, copy_configs, freeze_code


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "package").mkdir(parents=True)
    (root / "package" / "a.py").write_text("old")
    (root / "package" / "gone.py").write_text("x")
    (root / "with blank ü.py").write_text("x")
    (root / "link.py").symlink_to("package/a.py")
    (root / ".gitignore").write_text("ignored.py\n.venv\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    return root


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_the_copy_is_the_working_tree(checkout: Path, tmp_path: Path) -> None:
    (checkout / "package" / "a.py").write_text("edited")
    (checkout / "package" / "gone.py").unlink()
    (checkout / "package" / "new.py").write_text("new")
    (checkout / "large.bin").write_bytes(b"x" * 1_000_001)
    (checkout / "ignored.py").write_text("x")
    run = checkout / "runs" / "name" / "next"
    out = run / "code"
    (run / "configs").mkdir(parents=True)
    (run / "configs" / "0-a.yaml").write_text("x")
    places, [found] = freeze_code([checkout, checkout / "package"], run)
    assert places == [out, out / "package"]
    assert files(out) == {"package/a.py", "package/new.py", "with blank ü.py", "link.py", ".gitignore"}
    assert (out / "package" / "a.py").read_text() == "edited"
    assert (out / "link.py").is_symlink()
    assert found.dirty
    assert found.commit is not None
    assert len(found.commit) == 40


@pytest.mark.parametrize("runs", ["", "..", "runs", "elsewhere/runs"])
def test_run_directories_are_left_out_and_nothing_else(checkout: Path, runs: str) -> None:
    """Also where they lie beside the code (`--runs .`), or the checkout lies among them."""
    folder = (checkout / runs).resolve() / "name"
    for number, markers in enumerate([["submission.json"], ["run.json", "config.yaml"]]):
        earlier = folder / f"id{number}"
        (earlier / "code" / "package").mkdir(parents=True)
        (earlier / "code" / "package" / "earlier.py").write_text("x")
        for marker in markers:
            (earlier / marker).write_text("{}")
    (checkout / "run.json").write_text("{}")  # what a user calls so is no run
    (checkout / "submission.json").write_text("{}")
    (checkout / "new.py").write_text("x")
    freeze_code([checkout], folder / "next")
    kept = {"package/a.py", "package/gone.py", "with blank ü.py", "link.py", ".gitignore"}
    assert files(folder / "next" / "code") == kept | {"run.json", "submission.json", "new.py"}


def test_two_checkouts_and_a_folder_in_none(checkout: Path, tmp_path: Path) -> None:
    other, plain = tmp_path / "other", tmp_path / "plain"
    other.mkdir()
    plain.mkdir()
    (other / "b.py").write_text("b")
    git(other, "init")
    run = tmp_path / "run"
    places, found = freeze_code([checkout, other, plain], run)
    assert places == [run / "code" / "0-project", run / "code" / "1-other", plain]
    assert (places[1] / "b.py").read_text() == "b"
    assert [one.commit is None for one in found] == [False, True]
    assert not found[0].dirty


def test_a_package_in_an_ignored_environment_is_not_the_project(checkout: Path) -> None:
    installed = checkout / ".venv" / "lib"
    installed.mkdir(parents=True)
    assert checkout_of(installed) is None
    assert checkout_of(checkout / "package") is not None


def test_git_that_refuses_is_heard(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)  # which may call every folder safe
    with pytest.raises(ValueError, match=r"cannot be frozen, git rev-parse says: fatal: detected dubious"):
        checkout_of(checkout / "package")


def test_an_index_that_cannot_be_read_freezes_nothing(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".git" / "index").write_text("nonsense")
    with pytest.raises(ValueError, match=r"cannot be frozen, git .*: fatal: "):
        freeze_code([checkout], tmp_path / "run")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (None, "there is no git on this machine"),
        ("exec sleep 60", r"git rev-parse has not answered within 0\.2 s"),
        ('[ "$3" != ls-files ] && exec "$GIT" "$@"; echo torn >&2; exit 128', "git ls-files says: torn"),
    ],
)
def test_git_that_is_missing_slow_or_torn(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None, complaint: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if body is not None:
        (tools / "git").write_text(f"#!/bin/bash\n{body}\n")
        (tools / "git").chmod(0o755)
        monkeypatch.setattr(freeze, "SECONDS", 0.2 if "sleep" in body else 60.0)
        monkeypatch.setenv("GIT", str(shutil.which("git")))
        tools = Path(f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PATH", str(tools))
    plain = tmp_path / "plain"
    plain.mkdir()
    assert checkout_of(plain) is None  # where there is nothing to ask git for, it is not needed
    with pytest.raises(ValueError, match=complaint):
        freeze_code([checkout], tmp_path / "run")


def test_configs_are_copied_in_order(tmp_path: Path) -> None:
    for name in ("one.yaml", "two words.yaml"):
        (tmp_path / name).write_text(name)
    words = [
        "--config",
        str(tmp_path / "one.yaml"),
        "--a",
        "--config",
        "-c",
        str(tmp_path / "two words.yaml"),
    ]
    words[3] = "b"
    words.append(f"--config={tmp_path / 'one.yaml'}")
    words += [
        "--data",
        str(tmp_path / "one.yaml"),
        f"--trainer={tmp_path / 'one.yaml'}",
        "--name",
        "one.yaml",
    ]
    assert [path.name for path in config_files(words)] == ["one.yaml", "two words.yaml", *["one.yaml"] * 3]
    out = tmp_path / "configs"
    said = copy_configs(words, out)
    assert said == [
        "--config", str(out / "0-one.yaml"), "--a", "b", "-c", str(out / "1-two_words.yaml"),
        f"--config={out / '2-one.yaml'}", "--data", str(out / "3-one.yaml"),
        f"--trainer={out / '4-one.yaml'}", "--name", "one.yaml",
    ]  # fmt: skip
    assert (out / "1-two_words.yaml").read_text() == "two words.yaml"


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        copy_configs(["--config", str(tmp_path / "none.yaml")], tmp_path / "configs")
