"""`mmlab doctor`: what it finds of data, space, walltime and nodes."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmlab.cli import main
from mmlab.commands.doctor_checks import checkpoint_bytes
from mmlab.commands.train import Parts, build
from mmlab.launch import checks
from mmlab.launch.checks import Check, check_request, check_scratch, check_settings, check_space
from mmlab.launch.job import JobSpec, Resources
from mmlab.launch.nodes import compare_nodes
from mmlab.launch.profile import Profile
from mmlab.runs.status import Status

SMOKE = str(Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml")
DATA = ["--data.source.init_args.train", "64", "--data.source.init_args.val", "16", "--data.batch_size", "16"]
Usage = namedtuple("Usage", ["total", "used", "free"])
SPEC = JobSpec(
    name="a", run=Path("/runs/a/id"), directory=Path("/"), words=(), profile=Profile(), python="python",
    resources=Resources(nodes=2, tasks_per_node=4, gpus_per_node=4, time="12:00:00"),
)  # fmt: skip


def verdicts(found: Sequence[Check]) -> dict[str, str]:
    return {check.what: check.verdict for check in found}


@pytest.fixture
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_site")
def test_a_run_that_fits_and_one_whose_batch_cannot_be_dealt(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--config", SMOKE, *DATA, "--gpus-per-node", "0", "--time", "2:00:00"]
    assert main([*words, "--nodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "64 samples in 1 shard, " in said
    assert "not on this machine: partitions, limits and nodes were not checked" in said
    assert main([*words, "--nodes", "3"]) == 2
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "batch size 16: must be divisible by the 3 ranks" in said
    assert "1 of 7 would keep this run from working" in said


@pytest.mark.usefixtures("_site")
def test_the_size_of_a_checkpoint_is_that_of_one_written(tmp_path: Path) -> None:
    parts = build(Parts, ["fit", "--config", SMOKE, *DATA, "--trainer.accelerator", "cpu"])
    task = parts.model
    kept = task.adaptation.kept(task.model)
    optimizer = torch.optim.AdamW(p for p in task.model.parameters() if p.requires_grad)
    for parameter in task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {name: value for name, value in task.model.state_dict().items() if name in kept}
    torch.save({"state_dict": state, "optimizer_states": [optimizer.state_dict()]}, tmp_path / "one.ckpt")
    written = (tmp_path / "one.ckpt").stat().st_size
    assert checkpoint_bytes(parts) == pytest.approx(written, rel=0.05)


def test_a_request_by_itself() -> None:
    assert set(verdicts(check_request(SPEC, Status())).values()) == {"ok"}
    few = replace(SPEC, resources=replace(SPEC.resources, tasks_per_node=2, time="20"))
    assert verdicts(check_request(few, Status())) == {"devices": "warn", "walltime": "warn"}
    slow = check_request(SPEC, Status(save_seconds=300.0))
    assert verdicts(slow) == {"devices": "ok", "walltime": "warn"}
    assert "--signal-seconds 600" in str(slow)
    [bad] = check_request(SPEC, Status(save_seconds=50_000.0))
    assert bad.verdict == "bad"
    assert "the last save took 13 h 53 min" in bad.found


@pytest.mark.parametrize(
    ("settings", "save", "expected"),
    [
        ({"KillWait": "30 sec"}, 10.0, {"KillWait": "ok", "requeue": "ok"}),
        ({"KillWait": "30 sec"}, 28.0, {"KillWait": "warn", "requeue": "ok"}),
        ({"JobRequeue": "0"}, None, {"requeue": "warn"}),
        ({"ProctrackType": "proctrack/linuxproc"}, None, {"requeue": "ok", "signals": "warn"}),
    ],
)
def test_what_the_cluster_does_to_jobs(
    settings: dict[str, str], save: float | None, expected: dict[str, str]
) -> None:
    assert verdicts(check_settings(settings, Status(save_seconds=save))) == expected


@pytest.mark.parametrize(("needed", "verdict"), [(100, "ok"), (600, "warn"), (1100, "bad")])
def test_room_for_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, verdict: str
) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: Usage(2000, 1000, 1000))
    assert check_space(tmp_path / "not" / "yet", needed, "checkpoints").verdict == verdict


def test_the_folder_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: Usage(2**40, 0, 2**40))
    assert check_scratch(tmp_path).verdict == "ok"
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: Usage(2**40, 0, 1000))
    assert check_scratch(tmp_path).verdict == "bad"  # the runs would be stopped by it too
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert check_scratch(tmp_path).verdict == "bad"


def answer(node: str, **changes: Any) -> dict[str, Any]:
    return {
        "node": node, "time": 100.5, "python": "3.12", "torch": "2.14", "mmlab": "0.1", "folder": "/runs",
        "writable": True, "scratch": True, "gpus": 4,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("change", "what", "verdict"),
    [
        ({}, "clocks", "ok"),
        ({"python": "3.11"}, "python on nodes", "bad"),
        ({"torch": None}, "torch on nodes", "bad"),
        ({"mmlab": None}, "mmlab on nodes", "bad"),
        ({"writable": False}, "runs on nodes", "bad"),
        ({"folder": "/"}, "runs on nodes", "bad"),
        ({"scratch": False}, "$TMPDIR on nodes", "bad"),
        ({"gpus": 3}, "GPUs on nodes", "bad"),
        ({"time": 160.0}, "clocks", "warn"),
        ({"time": 50.0}, "clocks", "warn"),
    ],
)
def test_nodes_are_held_against_each_other(change: dict[str, Any], what: str, verdict: str) -> None:
    found = compare_nodes(SPEC, [answer("n1"), answer("n2", **change)], began=100.0, ended=101.0)
    assert verdicts(found)[what] == verdict
    others = [check for check in found if check.what != what]
    assert {check.verdict for check in others} <= {"ok"}


def test_nodes_that_have_not_answered() -> None:
    [found] = compare_nodes(SPEC, [answer("n1")], began=100.0, ended=101.0)
    assert (found.verdict, found.found) == ("bad", "1 of 2 nodes have answered")
