"""The batch script: its text, word for word, and what a shell makes of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import job_specs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.launch.job import JobSpec, batch_script
from mmlab.launch.profile import Profile

GOLDEN = Path(__file__).parent / "scripts"
WORDS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)


@pytest.mark.parametrize("name", job_specs.ALL)
def test_the_script_is_word_for_word_as_kept(name: str) -> None:
    """Set MMLAB_WRITE_GOLDEN to keep new texts, and read the difference."""
    text, kept = batch_script(job_specs.ALL[name]), GOLDEN / f"{name}.sbatch"
    if "MMLAB_WRITE_GOLDEN" in os.environ:
        kept.write_text(text)
    assert text == kept.read_text()


@pytest.mark.parametrize("name", job_specs.ALL)
def test_bash_can_read_the_script(name: str) -> None:
    subprocess.run(["bash", "-n"], input=batch_script(job_specs.ALL[name]), text=True, check=True)


class Node:
    """Runs a script as a batch shell would, with commands that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.command("srun", 'printf "%s\\0" "$@" > "$NOTED"; exit "${SRUN_STATUS:-0}"')
        # Plays the Python of the job: names a port, and hears how the run has ended.
        self.command("python", 'case $1 in -c) echo 4567;; *) printf "%s\\0" "$@" > "$NOTED.ended";; esac')

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(self, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}", "NOTED": str(self.folder / "noted"),
            "SLURMD_NODENAME": "node1", "SLURM_ARRAY_TASK_ID": "4", "SLURM_NNODES": "2",
            "SLURM_NTASKS_PER_NODE": "2",
        }  # fmt: skip
        return subprocess.run(
            ["bash"], input=text, env=environment | variables, capture_output=True, text=True, check=False
        )

    def noted(self, what: str = "") -> list[str]:
        return (self.folder / f"noted{what}").read_bytes().decode().split("\0")[:-1]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("node"))


def plain(node: Node, **changes: object) -> JobSpec:
    return replace(job_specs.CPU, python="python", run=node.folder / "runs" / "smoke" / "id", **changes)


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS, max_size=6))
def test_words_reach_the_trainer_as_they_were_given(node: Node, words: list[str]) -> None:
    node.run(batch_script(plain(node, words=("--config", "x.yaml", *words))))
    said = node.noted()
    place = said.index("x.yaml") + 1
    assert said[place : place + len(words)] == words
    assert said[place + len(words)] == "--name"


@settings(max_examples=25, deadline=None)
@given(before=WORDS, after=WORDS)
def test_the_number_of_the_task_is_put_in(node: Node, before: str, after: str) -> None:
    before, after = before.replace("%a", ""), after.replace("%a", "")
    spec = plain(node, words=("--config", "x.yaml", f"{before}%a{after}"), array="0-5")
    done = node.run(batch_script(spec))
    assert done.returncode == 0, done.stderr
    said = node.noted()
    # What remains of a removed mark may form another.
    expected = f"{before}%a{after}".replace("%a", "4")
    assert said[said.index("x.yaml") + 1] == expected
    assert node.noted(".ended")[-2] == f"{spec.run}-4"


@pytest.mark.parametrize("status", [0, 75, 137])
def test_the_job_ends_as_the_ranks_did_and_is_looked_at(node: Node, status: int) -> None:
    spec = plain(node)
    done = node.run(batch_script(spec), SRUN_STATUS=str(status))
    assert done.returncode == status
    assert node.noted(".ended") == ["-m", "mmlab", "jobs", "ended", str(spec.run), str(status)]


def test_a_failing_line_of_the_site_ends_the_job_before_training(node: Node) -> None:
    (node.folder / "noted").unlink(missing_ok=True)
    done = node.run(batch_script(plain(node, profile=Profile(setup=("false",)))))
    assert done.returncode == 1
    assert not (node.folder / "noted").exists()


def test_signals_do_not_end_the_shell_before_the_ranks(node: Node) -> None:
    node.command("slow", "")
    spec = batch_script(plain(node)).replace("setsid --wait srun", "kill -TERM $$; kill -USR1 $$; srun")
    assert node.run(spec, SRUN_STATUS="143").returncode == 143


def test_variables_of_the_ranks(node: Node) -> None:
    node.command("srun", "env -0 > $NOTED")
    spec = plain(node, profile=Profile(environment={"A": "b 'c' $d"}), code=(Path("/x y"),))
    node.run(batch_script(spec), SLURM_CPUS_PER_TASK="8", PYTHONPATH="/mine", SLURM_EXPORT_ENV="NONE")
    found = dict(line.split("=", 1) for line in node.noted() if "=" in line)
    node.command("srun", 'printf "%s\\0" "$@" > "$NOTED"; exit "${SRUN_STATUS:-0}"')
    assert found["A"] == "b 'c' $d"
    assert found["SLURM_EXPORT_ENV"] == "ALL"
    assert found["PYTHONPATH"] == "/x y:/mine"
    assert found["MMLAB_RUN_ID"] == "id"
    assert (found["OMP_NUM_THREADS"], found["MASTER_ADDR"], found["MASTER_PORT"]) == ("8", "node1", "4567")


@pytest.mark.parametrize("name", ["bash", "interactive", "a b", "", "-x", "../x"])
def test_names_that_no_job_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="--name"):
        replace(job_specs.CPU, name=name)


def test_the_script_that_needs_no_submission_does_the_same() -> None:
    """slurm/train.sbatch and the generated script have the same lines from the choice of a port on."""
    by_hand = (Path(__file__).parents[2] / "slurm" / "train.sbatch").read_text()
    text = batch_script(job_specs.CPU)
    shared = text[text.index("# A job that was submitted") : text.index("setsid --wait")]
    shared += "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}\nexport PYTHONUNBUFFERED=1"
    shared = shared.replace(shlex.quote(job_specs.CPU.python), '"$python"')
    for line in shared.splitlines():
        assert line in by_hand, line
    for option in ("--requeue", "--open-mode=append", "--signal=USR1@120"):
        assert re.search(rf"^#SBATCH .*{option}", by_hand, re.MULTILINE), option
    assert "setsid --wait srun --kill-on-bad-exit=1 --label" in by_hand
    assert by_hand.rstrip().endswith('exit "$status"')
