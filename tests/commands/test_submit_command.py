"""`mmlab submit`, `jobs` and `doctor` without a cluster: what they ask for, refuse and import."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlab.cli import build_parser, main
from mmlab.commands.asked import job_asked
from mmlab.launch.job import JobSpec

SMOKE = str(Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml")
HEAVY = {"torch", "lightning", "transformers", "timm", "wandb", "torchvision", "torchmetrics", "peft"}
WORD = st.text(st.characters(whitelist_categories=["Ll"]), min_size=3, max_size=6)
PAIR = st.tuples(WORD.map(lambda w: f"--model.{w}"), st.sampled_from(["1", "-1", "x y", "[]", "a=b", "{}"]))


@pytest.fixture(autouse=True)
def _no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to submit from, and a path on which there is git but no Slurm."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def asked(*words: str) -> JobSpec:
    parsed: argparse.Namespace = build_parser().parse_args(["submit", "--config", SMOKE, *words])
    return job_asked(parsed, parsed.words)


def test_words_of_the_trainer_keep_their_order() -> None:
    @given(st.lists(PAIR, max_size=5), st.integers(0, 5))
    def check(pairs: list[tuple[str, str]], place: int) -> None:
        given_words = [word for pair in pairs for word in pair]
        place = min(place, len(pairs)) * 2
        own = ["--time", "30", "--nodes", "2"]
        spec = asked(*given_words[:place], *own, *given_words[place:])
        assert list(spec.words) == ["--config", SMOKE, *given_words]
        assert spec.resources.nodes == 2

    check()


def test_the_command_line_overrides_the_profile(tmp_path: Path) -> None:
    text = "{partition: gpu, qos: long, nodes: 4, gpus_per_node: 8, cpus_per_task: 6, time: 1-0, requeues: 1}"
    (tmp_path / "site.yaml").write_text(text)
    spec = asked("--profile", "site.yaml", "--qos", "short", "--nodes", "2")
    assert (spec.profile.partition, spec.profile.qos, spec.requeues) == ("gpu", "short", 1)
    resources = spec.resources
    assert (resources.nodes, resources.gpus_per_node, resources.tasks_per_node) == (2, 8, 8)
    assert (resources.cpus_per_task, resources.time, spec.signal_seconds) == (6, "1-0", 120)
    assert asked("--profile", "site.yaml", "--gpus-per-node", "0").resources.tasks_per_node == 1


def test_the_run_is_named_by_the_last_config_or_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("name: other\n")
    assert asked("--time", "30").run.parent == tmp_path / "runs" / "smoke"
    assert asked("--time", "30", "--config", "over.yaml").name == "other"
    spec = asked("--time", "30", "--config=over.yaml", "--name", "mine", "--runs", "/elsewhere")
    assert spec.run.parent == Path("/elsewhere/mine")


def test_words_of_fit_that_look_like_options_go_to_it() -> None:
    words = ("--seed_everything", "3", "--resume", "auto", "--test_untrained", "false")
    assert asked("--time", "30", *words).words[-6:] == words


def test_the_environment_says_what_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "long")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    (tmp_path / "site.yaml").write_text("account: ours\n")
    site = asked("--time", "30", "--profile", str(tmp_path / "site.yaml"), "--qos", "high").profile
    assert (site.partition, site.account, site.qos) == ("long", "ours", "high")
    assert asked("--time", "30", "--partition", "short").profile.partition == "short"


def test_the_environment_of_weights_and_biases_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert asked("--time", "30").environment == (("WANDB_MODE", "offline"),)
    monkeypatch.setenv("WANDB_MODE", "online")
    assert asked("--time", "30").environment == (("WANDB_MODE", "online"),)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--config", SMOKE, "--time", "30"], "there is no Slurm (sbatch) on this machine"),
        (["--time", "30"], "no config: name one with --config FILE"),
        (["--config", SMOKE], "no walltime: say --time"),
        (["--config", "none.yaml", "--time", "30"], "No such file or directory: 'none.yaml'"),
        (["--config", SMOKE, "--time", "30", "--name", "bash"], "a job named 'bash' is taken for a person's"),
        (
            ["--config", SMOKE, "--time", "30", "--name", "interactive", "--dry-run"],
            "a job named 'interactive'",
        ),
        (["--config", SMOKE, "--time", "2", "--dry-run"], "--time 2 leaves nothing for training"),
        (["--config", SMOKE, "--time", "soon", "--dry-run"], "'soon' is no walltime"),
        (["--config", SMOKE, "--time", "30", "--node", "2"], "--node: no such option; did you mean --nodes"),
        (
            ["--config", SMOKE, "--time", "30", "--dryrun"],
            "--dryrun: no such option; did you mean --dry-run?",
        ),
        (
            ["--config", SMOKE, "--time", "30", "--gpus_per_node=4"],
            "--gpus_per_node: no such option; did you mean --gpus-per-node?",
        ),
        (
            ["--config", SMOKE, "--time", "30", "--resume", "never", "--dry-run"],
            "--resume never: a job that is queued again would begin anew",
        ),
        (["--config", SMOKE, "--time", "30", "--array", "5-1", "--dry-run"], "--array 5-1: 5-1 has no tasks"),
        (["--config", SMOKE, "--time", "30", "--nodes", "-2", "--dry-run"], "-2: a count is not below zero"),
        (
            ["--config", SMOKE, "--profile", "site.yaml"],
            "partitoin is no key of a profile: did you mean 'part",
        ),
        (
            ["--config", SMOKE, "--time", "30", "--tasks-per-node", "4", "--dry-run"],
            "4 tasks on each node are more than its 1 GPUs",
        ),
    ],
)
def test_what_cannot_work_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    (tmp_path / "site.yaml").write_text("partitoin: gpu\n")
    assert main(["submit", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert complaint in lines[0]
    assert len(lines) == 2  # and how to see the traceback
    assert not (tmp_path / "runs").exists()


def test_jobs_without_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 2
    assert "there is no squeue on this machine: use a login node" in capsys.readouterr().err


def test_the_end_of_a_run_outside_a_job_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert main(["jobs", "ended", str(tmp_path), "0"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "--config", SMOKE, "--time", "30", "--gpus-per-node", "0", "--dry-run"],
        ["jobs"],
        ["doctor", "-h"],
    ],
    ids=lambda words: words[0],
)
def test_nothing_heavy_is_imported(tmp_path: Path, words: list[str]) -> None:
    code = (
        "import json, sys\nfrom mmlab.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(SMOKE).parents[2])},
    )  # fmt: skip
    imported = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "mmlab" in imported
    assert not imported & HEAVY
