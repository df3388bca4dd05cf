"""Fingerprints of encoders: what they notice, what they do not; tokens that an encoder gave before."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.fingerprint import fingerprint, fixed_encoders


def build(seed: int = 0, **settings: int) -> SignalEncoder:
    torch.manual_seed(seed)
    return SignalEncoder(2, **({"dim": 8, "num_heads": 2, "num_layers": 1} | settings))


def test_equal_encoders_have_equal_fingerprints() -> None:
    first, second = build(), build()
    second.eval()
    second.requires_grad_(False)
    second.name = "of another folder"  # type: ignore[assignment]
    assert fingerprint(first) == fingerprint(second)


def test_a_fingerprint_notices_what_changes_the_tokens() -> None:
    plain = fingerprint(build())
    assert fingerprint(build(seed=1)) != plain
    assert fingerprint(build(stride=2)) != plain
    assert fingerprint(build().half()) != plain
    changed = build()
    with torch.no_grad():
        changed.norm.bias[3] += 1e-7
    assert fingerprint(changed) != plain
    found = set()
    for activation in (nn.functional.relu, nn.functional.gelu):
        activated = build()
        activated.activation = activation  # type: ignore[assignment]
        found.add(fingerprint(activated))
    assert len(found) == 2


def test_a_fingerprint_notices_buffers_that_no_checkpoint_holds() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder("test_resnet", pretrained=False)
    before = fingerprint(encoder)
    assert "mean" not in encoder.state_dict()
    encoder.mean += 0.1
    assert fingerprint(encoder) != before


def test_a_large_encoder_takes_about_a_second() -> None:
    encoder = build()
    encoder.large = nn.Linear(4096, 8192)  # type: ignore[assignment]  # 134 MB
    start = time.process_time()
    fingerprint(encoder)
    assert time.process_time() - start < 3


def find(towers: object) -> dict[Modality, Encoder | None]:
    built = DualEncoder(
        image=Tower(ImageEncoder("test_resnet", pretrained=False), dim=4), signal=Tower(build(), dim=4)
    )
    policy = Policy(towers)  # type: ignore[arg-type]
    return fixed_encoders(policy.apply(built), policy.trainable)


@pytest.mark.parametrize(
    ("towers", "fixed"),
    [
        ("frozen", {Modality.IMAGE, Modality.SIGNAL}),
        ("probe", {Modality.IMAGE, Modality.SIGNAL}),
        ("full", set()),
        ("staged", set()),
        ("lora", set()),
        ({"image.encoder": "frozen"}, {Modality.IMAGE}),
        ({"image": "frozen", "signal.encoder.layers": "frozen"}, {Modality.IMAGE}),
    ],
)
def test_the_policy_says_which_encoders_are_fixed(towers: object, fixed: set[Modality]) -> None:
    found = find(towers)
    assert found.keys() == {Modality.IMAGE, Modality.SIGNAL}
    assert {modality for modality, encoder in found.items() if encoder is not None} == fixed


def test_two_encoders_of_one_modality_share_no_features() -> None:
    towers = nn.ModuleList([build().requires_grad_(False), build().requires_grad_(False)])
    assert fixed_encoders(towers, lambda _: False) == {Modality.SIGNAL: None}


class TestEncodedInputs:
    def inputs(self, dim: int = 8, length: torch.Tensor | None = None) -> Input:
        owner = torch.arange(2)
        data = torch.randn(2, 3, dim).half()
        return Input(data, owner=owner, present=owner >= 0, length=length, encoded=True)

    def test_tokens_pass_in_the_precision_of_the_weights(self) -> None:
        encoder = build().requires_grad_(False)
        inputs = self.inputs(length=torch.tensor([1, 3]))
        tokens, mask = encoder(inputs)
        assert torch.equal(tokens, inputs.data.float())
        assert mask.tolist() == [[True, False, False], [True] * 3]
        assert encoder.bfloat16()(inputs).tokens.dtype == torch.bfloat16

    def test_without_lengths_all_tokens_count(self) -> None:
        assert build().requires_grad_(False)(self.inputs()).mask.all()

    def test_an_encoder_that_is_trained_takes_none(self) -> None:
        encoder = build().requires_grad_(False)
        encoder.norm.requires_grad_(True)
        with pytest.raises(ValueError, match="SignalEncoder is trained, but the data bring features"):
            encoder(self.inputs())

    def test_tokens_of_another_size_are_refused(self) -> None:
        with pytest.raises(ValueError, match="features of signal have size 6, but SignalEncoder gives 8"):
            build().requires_grad_(False)(self.inputs(dim=6))

    def test_an_encoder_without_weights_gives_float32(self) -> None:
        class Plain(Encoder):
            modality = Modality.SIGNAL
            dim = 8

            def encode(self, inputs: Input) -> Encoded:
                raise AssertionError

        assert Plain()(self.inputs()).tokens.dtype == torch.float32
