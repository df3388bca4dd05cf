"""`mmlab shards check` and `info` as a user runs them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmlab.cli import main
from mmlab.data.lengths import bins, drawn, percentile
from mmlab.data.shards import write_shards

EVIL = "<script>alert(1)</script> & \x1b[31m[red]"


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def sound(seconds: float = 0.2) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(int(8000 * seconds)) / 3), 8000, format="WAV")
    return file.getvalue()


def samples(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"__key__": f"{n:04d}", "png": picture(n), "txt": f"a caption of number {n}", "cls": str(n % 3)}
        for n in range(first, first + count)
    ]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clean shards of two splits: 5 samples to train, in two shards, and 2 to validate."""
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    write_shards(samples(0, 5), tmp_path / "shards", "train", max_samples=3)
    write_shards(samples(100, 2), tmp_path / "shards", "val")
    return tmp_path / "shards"


def check(folder: Path, *words: str) -> int:
    return main(["shards", "check", str(folder / "*.tar"), "--jobs", "1", *words])


def test_clean_shards_are_fine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "fine"
    assert re.search(r"^train +2 +0 +5 .* 5 +0 +5$", out, re.MULTILINE)
    assert "caption lengths in words: median 5" in out


def test_what_is_wrong_is_said_with_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = samples(200, 1)[0] | {"png": b"nothing"}
    write_shards([*samples(0, 1), broken], folder, "test")
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-12_000])
    assert check(folder) == 1
    out = capsys.readouterr().out
    assert "1 x png: cannot decode (0200)" in out
    assert re.search(r"train-000000\.tar: (cut off inside|no end of archive)", out)
    assert (
        "leak: 1 sample of test with the picture of a sample of train (test-000000:0000 = train-000000:0000)"
        in out
    )
    assert out.splitlines()[-1] == "NOT FINE"


def test_json_is_one_line_a_shard_and_one_for_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(samples(0, 2), folder, "val")
    assert check(folder, "--json") == 1
    *shards, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [Path(line["path"]).name for line in shards] == [
        path.name for path in sorted(folder.glob("*.tar"))
    ]
    assert [(line["split"], line["fine"], line["samples"]) for line in shards] == [
        ("train", True, 3), ("train", True, 2), ("val", True, 2),
    ]  # fmt: skip
    assert shards[0]["words"] == {
        "captions": 3, "p5": 5, "p50": 5, "p95": 5, "p100": 5, "bins": [[5, 5, 3]],
    }  # fmt: skip
    whole = last["all"]
    assert (whole["fine"], whole["samples"], whole["words"]["captions"]) == (False, 7, 7)
    (leak,) = whole["leakage"]
    assert (leak["kind"], leak["splits"], leak["samples"]) == ("images", ["val", "train"], [2, 2])
    first, second, same = leak["examples"][0]
    assert (Path(first[0]).name, first[1], Path(second[0]).name, second[1], same) == (
        "val-000000.tar", "0000", "train-000000.tar", "0000", True,
    )  # fmt: skip
    assert {shared["kind"] for shared in whole["shared"]} == {"texts", "keys"}


def test_splits_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(samples(0, 2), folder, "val")
    assert check(folder, "--split", "all=*.tar") == 1  # its keys repeat
    assert "4 samples with a key that another shard of the split has too" in capsys.readouterr().out
    for wrong in ("val", "val=", "=x", "val=none-*"):
        assert check(folder, "--split", wrong) == 2
        assert "--split" in capsys.readouterr().err


def test_what_a_shard_says_cannot_command_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards([{"__key__": EVIL, "png": b"x", "txt": EVIL}], folder, "evil")
    assert check(folder) == 1
    assert main(["shards", "info", str(folder / "evil-*.tar"), "--label", "txt"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]" in out


def info(folder: Path, *words: str) -> int:
    return main(["shards", "info", str(folder / "*.tar"), *words])


def test_info_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info(folder) == 0
    out = capsys.readouterr().out
    assert "3 shards, 7 samples" in out
    assert "png (image): 7 samples" in out
    assert "picture width: 80 to 80 pixels" in out
    assert "3 labels in cls: 1 (3), 0 (2), 2 (2)" in out
    assert info(folder, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["samples"], values["modalities"]) == (7, {"image": 7, "text": 7})
    assert values["labels"] == {"1": 3, "0": 2, "2": 2}
    assert values["height"]["median"] == 60


def test_info_refuses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason in (
        (("--label", "json.kind"), "none of the 7 samples"),
        (("--sheet", str(tmp_path / "a.pdf")), "name it .html"),
        (("--samples", "0"), "at least 1"),
    ):
        assert info(folder, *words) == 2
        assert reason in capsys.readouterr().err


def test_page_shows_samples_and_runs_nothing_of_theirs(folder: Path, tmp_path: Path) -> None:
    extra = {"__key__": "evil", "png": b"no picture", "wav": sound(), "txt": EVIL, "bin": b"123"}
    write_shards([extra], folder, "extra")
    page = tmp_path / "sheet.html"
    assert info(folder, "--sheet", str(page), "--samples", "8") == 0
    text = page.read_text()
    assert text.count('class="card"') == 8
    assert text.count('src="data:image/jpeg;base64,') == 7
    assert text.count('<audio controls preload="none" src="data:audio/wav;base64,') == 1
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "png: cannot decode" in text
    assert "bin 3 B" in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # needs no other file


def test_a_page_is_bounded(folder: Path) -> None:
    from mmlab.data.card import make_card
    from mmlab.data.samples import RawSample
    from mmlab.data.sheet import sheet_page

    card = make_card(RawSample("k", {"png": picture(0), "wav": sound(20.0)}), label=None)
    page = sheet_page([card] * 5, title="t", facts=(), limit=500_000)
    assert len(page) < 600_000
    assert page.count("<audio") == 1
    assert page.count("not playable here: the page is full") == 4


def test_picture_of_samples(folder: Path, tmp_path: Path) -> None:
    for name, words in (("a", ()), ("b", ()), ("c", ("--seed", "1"))):
        assert info(folder, "--sheet", str(tmp_path / f"{name}.png"), "--samples", "4", *words) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 2 * (240 + 16) + 16
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 500
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_empty_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tarfile

    tarfile.open(tmp_path / "empty.tar", "w").close()
    path = str(tmp_path / "empty.tar")
    assert main(["shards", "check", path, "--jobs", "1"]) == 0
    assert main(["shards", "check", path, "--json"]) == 0
    assert main(["shards", "info", path, "--sheet", str(tmp_path / "a.png")]) == 0
    assert main(["shards", "info", path, "--sheet", str(tmp_path / "a.html")]) == 0


def test_lengths() -> None:
    spread = {3: 10, 7: 5, 12: 84, 500: 1}
    assert [percentile(spread, percent) for percent in (0, 10, 15, 50, 99, 100)] == [3, 3, 7, 12, 12, 500]
    assert [tuple(part) for part in bins(spread, most=4)] == [(0, 4, 10), (5, 9, 5), (10, 500, 85)]
    assert sum(part.captions for part in bins(spread)) == 100
    assert drawn({}) == []
    assert drawn({1: 2})[0].endswith(" 2")


def test_help_imports_no_torch() -> None:
    script = (
        "import sys\nfrom mmlab.cli import build_parser\n"
        "for action in ('check', 'info', 'order', 'index'):\n"
        "    try: build_parser().parse_args(['shards', action, '--help'])\n"
        "    except SystemExit as leave: assert leave.code == 0\n"
        "print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--steps A:B" in done.stdout
