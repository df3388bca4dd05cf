"""The script in docs/fusion.md turns a pickle file of MMSA into shards, and a reader takes them."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mmlab.data.shards import ShardSet
from mmlab.data.signal import SignalReader
from mmlab.tasks.outcome import Scale

ROOT = Path(__file__).parents[2]
WIDTHS = {"text": 4, "audio": 3, "vision": 2}


def mmsa() -> dict[str, dict[str, Any]]:
    """A small file as MMSA's: padded arrays, and lengths of all but the text, which BERT's mask has."""
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 3), ("valid", 1), ("test", 2)):
        rows: dict[str, Any] = {name: rng.normal(size=(count, 6, width)) for name, width in WIDTHS.items()}
        rows |= {f"{name}_lengths": [n % 5 for n in range(count)] for name in ("audio", "vision")}
        rows["text_bert"] = np.zeros((count, 3, 6))
        for number in range(count):
            rows["text_bert"][number, 1, : number + 2] = 1
        rows["id"] = [f"v.{n}$_${n}" for n in range(count)]
        rows["raw_text"] = np.array([f"{part} {n}" for n in range(count)])
        rows["regression_labels"] = np.linspace(-3, 2.4, count, dtype=np.float32)
        content[part] = rows
    return content


def test_it_becomes_shards(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "fusion.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(import pickle\n.*?)```", text, flags=re.DOTALL)
    (tmp_path / "convert.py").write_text(script)
    (tmp_path / "unaligned_50.pkl").write_bytes(pickle.dumps(mmsa()))
    words = [sys.executable, "convert.py", "unaligned_50.pkl", "out"]
    done = subprocess.run(
        words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        wanted = mmsa()[part]
        shards = ShardSet.find(f"{split}-*.tar", folder=tmp_path / "out")
        assert shards.counts == (len(wanted["id"]),)
        for number in range(len(wanted["id"])):
            sample = shards.read(0, number)
            assert sample.key == f"v_{number}$_${number}"
            about = json.loads(sample.members["json"])
            assert about["group"] == f"v.{number}"
            assert about["text"] == f"{part} {number}"
            right = float(wanted["regression_labels"][number])
            assert abs(Scale(-3.0, 3.0).read(about["label"]) - right) < 1e-5
            for name, member in (("text", "text"), ("audio", "audio"), ("vision", "video")):
                reader = SignalReader(f"{member}.npy", channels=WIDTHS[name])
                (row,) = reader.read(sample.members, None)
                steps = number + 2 if name == "text" else max(1, number % 5)
                np.testing.assert_allclose(row.numpy(), wanted[name][number, :steps], rtol=1e-6)
