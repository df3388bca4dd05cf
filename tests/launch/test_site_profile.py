"""Site profiles: what they may say, and what is said of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmlab.launch.profile import Container, Profile

PROFILES = Path(__file__).parents[2] / "slurm" / "profiles"


def write(folder: Path, text: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(text)
    return path


def test_what_a_profile_says_is_taken_as_it_stands(tmp_path: Path) -> None:
    text = """
    partition: gpu
    time: 12:00:00
    nodes: 2
    modules: [cuda/12.8]
    container: {image: a.sif, options: [--bind=/scratch]}
    environment: {NCCL_DEBUG: WARN, DEBUG: 0, ON: yes}
    setup: |
      ulimit -n 65536
      echo ready
    """
    assert Profile.read(write(tmp_path, text)) == Profile(
        partition="gpu",
        time="12:00:00",
        nodes=2,
        modules=("cuda/12.8",),
        container=Container("a.sif", "apptainer", ("--bind=/scratch",)),
        environment={"NCCL_DEBUG": "WARN", "DEBUG": "0", "ON": "yes"},
        setup=("ulimit -n 65536", "echo ready"),
    )


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_profiles_of_the_project_can_be_read(path: Path) -> None:
    assert Profile.read(path) != Profile()


def test_what_the_example_leaves_out_is_right_too(tmp_path: Path) -> None:
    """Keys that stand there as comments, `# key: value`."""
    lines = (PROFILES / "example.yaml").read_text().splitlines()
    commented = [line[2:] for line in lines if re.match(r"# [a-z_]+: \S", line)]
    assert any(line.startswith("container:") for line in commented)
    for line in commented:
        Profile.read(write(tmp_path, line))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("partitoin: gpu", "partitoin is no key of a profile: did you mean 'partition'?"),
        ("zzz: 1", "zzz is no key of a profile: it takes account, "),
        ("nodes: two", "nodes takes a whole number, not 'two'"),
        ("nodes: [1]", "nodes takes one value"),
        ("container: a.sif", "container takes an image"),
        ("container: {image: a, runtim: pyxis}", "container.runtim is no key of a container: did you mean"),
        ("container: {image: a, runtime: docker}", "container.runtime is 'docker': it takes apptainer or"),
        ("environment: {A B: c}", "environment: 'A B' is no name of a variable"),
        ("modules: {a: b}", "modules takes a list of strings"),
        ("just words", "holds no keys: see slurm/profiles/example.yaml"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"site\.yaml") as caught:
        Profile.read(write(tmp_path, text))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: No such file"):
        Profile.read(tmp_path / "none.yaml")
