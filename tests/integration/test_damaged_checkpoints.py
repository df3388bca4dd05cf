"""`--ckpt_path` of a file that is cut off or has a wrong bit: tests refuse it, training takes another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_processes import Shell

SMOKE = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"
SMALL = (
    "--config", str(SMOKE), "--data.source.init_args.train", "64", "--data.source.init_args.val", "20",
    "--data.source.init_args.test", "20", "--data.batch_size", "32", "--trainer.accelerator", "cpu",
    "--trainer.logger", "false",
)  # fmt: skip
FIT = ("--test_untrained", "false", "--test_best", "false", "--checkpoint.monitor", "null",
       "--checkpoint.save_top_k", "-1")  # fmt: skip


@pytest.fixture
def folder(shell: Shell) -> Path:
    """The checkpoints of a run of two epochs of two steps."""
    before = shell.runs()
    answer = shell("fit", *SMALL, *FIT, "--trainer.max_epochs", "2", "--checkpoint.minutes", "5")
    assert answer.status == 0, answer.err
    (run,) = shell.runs() - before
    return run / "checkpoints"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_named_and_replaced(shell: Shell, folder: Path) -> None:
    names = {"epoch0-step2.ckpt", "epoch1-step4.ckpt", "last.ckpt"}
    assert {path.name for path in folder.iterdir()} == names | {f"{name}.sha256" for name in names}
    last = folder / "last.ckpt"
    flip(last)
    refused = shell("test", *SMALL, "--ckpt_path", str(last))
    assert refused.status == 2
    assert "Traceback" not in refused.err
    (line,) = (line for line in refused.err.splitlines() if "SHA-256" in line)
    assert str(last) in line
    assert line.endswith("the newest good one beside it is " + str(folder / "epoch1-step4.ckpt"))
    assert last.exists()

    flip(folder / "epoch1-step4.ckpt")
    went_on = shell(
        "fit", *SMALL, *FIT, "--trainer.max_epochs", "3", f"--ckpt_path={last}",
        "--checkpoint.dirpath", str(folder),
    )  # fmt: skip
    assert went_on.status == 0, went_on.err
    assert "epoch0-step2.ckpt is used instead" in went_on.err
    assert (folder / "last.ckpt.damaged").exists()
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert (folder / "epoch1-step4.ckpt").exists(), "it was written again"
    assert not list(folder.glob("*-v1*"))
    assert shell("test", *SMALL, "--ckpt_path", str(folder / "epoch1-step4.ckpt")).status == 0
