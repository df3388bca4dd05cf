"""A copy of a checkpoint shares nothing with it; free memory is what control groups leave."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from mmlab.parallel.snapshot import available_memory, size_of, snapshot


def test_a_copy_has_the_same_values_and_its_own_memory() -> None:
    base = torch.arange(12.0)
    checkpoint = {
        "state": OrderedDict(a=base, b=base.view(3, 4).T, c=base[4:8], d=torch.nn.Parameter(torch.ones(2))),
        "rest": [{"n": 1, "many": (torch.tensor(3), "x")}],
        "sparse": torch.eye(3).to_sparse(),
    }
    copy = snapshot(checkpoint)
    for name, value in checkpoint["state"].items():  # type: ignore[attr-defined]
        assert torch.equal(copy["state"][name], value)
        assert copy["state"][name].stride() == value.stride()
        assert copy["state"][name].untyped_storage().data_ptr() != value.untyped_storage().data_ptr()
    assert len({copy["state"][name].untyped_storage().data_ptr() for name in "abc"}) == 1
    assert isinstance(copy["state"], OrderedDict)
    assert copy["rest"] is not checkpoint["rest"]
    assert copy["rest"] == [{"n": 1, "many": (torch.tensor(3), "x")}]
    assert torch.equal(copy["sparse"].to_dense(), torch.eye(3))
    base.zero_()
    assert torch.equal(copy["state"]["a"], torch.arange(12.0))


def test_what_shares_memory_counts_once() -> None:
    base = torch.zeros(10)
    assert size_of({"a": base, "b": [base[:2], {"c": torch.zeros(3, dtype=torch.int64)}], "d": "text"}) == 64


GB = 2**30


def make_system(root: Path, groups: dict[str, str], *, version: int) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {20 * GB // 1024} kB\nMemAvailable: {8 * GB // 1024} kB\n")
    line = "0::/job/step" if version == 2 else "5:cpu,memory:/job/step"
    (root / "proc/self/cgroup").write_text(f"9:freezer:/x\n{line}\n" if version == 1 else f"{line}\n")
    top = root / "sys/fs/cgroup" if version == 2 else root / "sys/fs/cgroup/memory"
    limit, usage = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    for group, most in groups.items():
        folder = top / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text(f"{3 * GB}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {GB}\n")


@pytest.mark.parametrize(
    ("groups", "version", "wanted"),
    [
        ({}, 2, 8),
        ({"job/step": "max", "job": "max"}, 2, 8),
        ({"job/step": "max", "job": str(4 * GB)}, 2, 2),  # 4 - 3 + 1 that files take
        ({"job/step": str(4 * GB), "job": str(90 * GB)}, 1, 2),
        ({"job/step": str(GB)}, 2, 0),
    ],
)
def test_free_memory_is_what_the_narrowest_group_leaves(
    tmp_path: Path, groups: dict[str, str], version: int, wanted: int
) -> None:
    make_system(tmp_path, groups, version=version)
    assert available_memory(tmp_path) == wanted * GB


def test_a_system_that_does_not_say_has_none(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == 0


def test_this_system_says() -> None:
    if Path("/proc/meminfo").exists():
        assert 0 < available_memory() < 2**50
