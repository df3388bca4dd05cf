from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import BertModel

from mmlab.models.pretrained import load_text, load_vision, load_whisper_encoder

pytest_plugins = "tiny_parts"


@pytest.mark.parametrize("load", [load_text, load_vision, load_whisper_encoder])
@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_missing_name_says_what_can_be_had_without_a_hub(load: Callable[..., object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*local folder.*minilm-l6") as caught:
        load(name, pretrained=True)
    assert "\n" not in str(caught.value)


def test_a_mistyped_timm_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no vision model 'resnt18'.*resnet18"):
        load_vision("resnt18", pretrained=True)


def test_an_option_that_a_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="'test_resnet' does not take img_size"):
        load_vision("test_resnet", pretrained=False, image_size=64)


def test_text_weights_come_from_the_folder_quietly(
    tiny_bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_text(str(tiny_bert), pretrained=True)
    assert capfd.readouterr() == ("", "")
    expected = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).state_dict()
    torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_half_precision_weights_are_loaded_in_full(tiny_llama: Path) -> None:
    for pretrained in (True, False):
        model = load_text(str(tiny_llama), pretrained=pretrained)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_random_weights_have_the_same_names_and_shapes(kind: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(f"tiny_{kind}"))
    trained = load_text(folder, pretrained=True).state_dict()
    random = load_text(folder, pretrained=False).state_dict()
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in random.items()}
    matrices = [name for name, tensor in trained.items() if tensor.ndim == 2]
    assert not any(torch.equal(trained[name], random[name]) for name in matrices)


def test_whisper_keeps_the_encoder_only(tiny_whisper: Path) -> None:
    trained = load_whisper_encoder(str(tiny_whisper), pretrained=True)
    random = load_whisper_encoder(str(tiny_whisper), pretrained=False)
    assert len(trained.layers) == 3
    assert not any("decoder" in name for name, _ in trained.named_parameters())
    assert trained.config._attn_implementation == random.config._attn_implementation == "sdpa"
    assert not torch.equal(trained.conv1.weight, random.conv1.weight)
    # Positions are a formula, not weights.
    torch.testing.assert_close(trained.embed_positions.weight, random.embed_positions.weight)


def test_whisper_from_a_text_model_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="is of type bert: name a Whisper model"):
        load_whisper_encoder(str(tiny_bert), pretrained=True)


def test_weights_that_do_not_fill_the_model_stop(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fill BertModel: 16 tensors are missing \(encoder.layer.2"):
        load_text(str(folder), pretrained=True)
    assert len(load_text(str(folder), pretrained=False).encoder.layer) == 3


def test_vision_from_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = timm.create_model("test_efficientnet", pretrained=False)
    save_for_hf(saved, tmp_path, safe_serialization=True)
    loaded = load_vision(str(tmp_path), pretrained=True)
    torch.testing.assert_close(
        loaded.state_dict()["conv_stem.weight"], saved.state_dict()["conv_stem.weight"]
    )
    random = load_vision(str(tmp_path), pretrained=False)
    assert not torch.equal(random.state_dict()["conv_stem.weight"], saved.state_dict()["conv_stem.weight"])
    assert loaded.training


@pytest.mark.slow
def test_real_parts_have_their_size(asset: Callable[[str], str]) -> None:
    def count(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(load_vision(asset("efficientnet-lite0"), pretrained=True)) == 3_371_008
    assert count(load_text(asset("minilm-l6"), pretrained=True)) == 22_565_376
    assert count(load_whisper_encoder(asset("whisper-tiny-en"), pretrained=True)) == 8_208_384
    assert count(load_text(asset("smollm2-135m-instruct"), pretrained=True)) == 134_515_008
