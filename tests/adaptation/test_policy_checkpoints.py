"""What a checkpoint keeps, what names the rest, and stages: the policy alone, without a trainer."""

from __future__ import annotations

import torch
from test_policy import Model, Small, trained, within

from mmlab.adaptation.plain import Full
from mmlab.adaptation.policy import Policy
from mmlab.batch import Modality


class Late(Full):
    """Full, but layer 0 of an encoder waits for stage 1 and its norm for stage 2."""

    def stage(self, name: str) -> int:
        return 1 if "layers.0" in name else 2 if ".norm" in name else 0


def test_a_frozen_encoder_is_left_to_its_digest() -> None:
    model = Model()
    policy = Policy({"image": "frozen", "text": "full"})
    policy.apply(model)
    assert set(policy.bases) == {"image.encoder"}
    kept = policy.kept(model)
    assert not any(name.startswith("image.encoder.") for name in kept)
    assert {name for name in model.state_dict() if not name.startswith("image.encoder.")} == kept


def test_what_is_random_and_fixed_is_kept() -> None:
    """A probe fixes projections that no pretrained weights could bring back."""
    model = Model(hidden=3)
    policy = Policy("probe")
    policy.apply(model)
    assert "image.projection.0.weight" in policy.kept(model)
    assert not policy.trainable("image.projection.0.weight")


def test_statistics_of_a_network_that_is_trained_in_part_are_kept() -> None:
    model = Model()
    policy = Policy({"image.encoder.layers.1": "full", "image.encoder.layers.0": "frozen", "text": "frozen"})
    policy.apply(model)
    kept = policy.kept(model)
    assert "image.encoder.norm.running_mean" in kept
    assert "image.encoder.layers.1.weight" in kept
    assert "image.encoder.layers.0.weight" not in kept
    assert "text.encoder.norm.running_mean" not in kept


def test_a_full_checkpoint_keeps_everything() -> None:
    model = Model()
    policy = Policy("frozen", checkpoint="full")
    policy.apply(model)
    assert policy.kept(model) == set(model.state_dict())


def test_the_digest_is_of_the_weights_alone() -> None:
    torch.manual_seed(0)
    model = Model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    digests = []
    for towers in ("frozen", {"image.encoder.layers.0": "frozen", "text": "frozen"}):
        again = Model()
        again.load_state_dict(state)
        policy = Policy(towers)
        policy.apply(again)
        digests.append(policy.bases)
    assert digests[0]["image.encoder"] == digests[1]["image.encoder"]
    other = Model()
    policy = Policy("frozen")
    policy.apply(other)
    assert policy.bases["image.encoder"] != digests[0]["image.encoder"]


def test_a_part_without_encoders_is_named_too() -> None:
    model = torch.nn.ModuleDict({"language": torch.nn.Linear(2, 2), "tower": Small(Modality.IMAGE)})
    policy = Policy({"language": "frozen", "tower": "full"})
    policy.apply(model)
    assert set(policy.bases) == {"language"}
    assert {name.partition(".")[0] for name in policy.kept(model)} == {"tower"}


def test_stages_open_one_after_the_other() -> None:
    model = Model()
    policy = Policy({"image": Late(), "text": "frozen"})
    policy.apply(model)
    assert policy.last_stage == 2
    everything = within(model, "image", "text.projection", "temperature")
    early = {name for name in everything if "layers.0" not in name and ".norm" not in name}
    assert trained(model) == early
    policy.open(model, 1)
    assert trained(model) == early | within(model, "image.encoder.layers.0")
    policy.open(model, 2)
    assert trained(model) == everything
    assert all(policy.trainable(name) for name in everything)
    policy.open(model, 0)
    assert trained(model) == early
    assert "image.encoder.layers.0.weight" in policy.kept(model)


def test_fixed_weights_are_held_in_low_precision() -> None:
    model = Model()
    policy = Policy({"image": "frozen", "text": "full"}, frozen_dtype="bfloat16")
    digest = Policy({"image": "frozen", "text": "full"})
    state = {name: value.clone() for name, value in model.state_dict().items()}
    policy.apply(model)
    assert model.image is not None
    assert model.text is not None
    assert model.image.encoder.get_parameter("layers.0.weight").dtype == torch.bfloat16
    assert model.image.projection[0].weight.dtype == torch.float32
    assert model.text.encoder.get_parameter("layers.0.weight").dtype == torch.float32
    again = Model()
    again.load_state_dict(state)
    digest.apply(again)
    assert policy.bases == digest.bases, "the digest is of the weights as they came"


def test_a_tower_in_full_precision_keeps_its_weights() -> None:
    """It reads float32 in mixed precision too."""
    model = Model()
    assert model.image is not None
    model.image.full_precision = True  # as `MediaTower` has it
    Policy({"image": "frozen", "text": "frozen"}, frozen_dtype="bfloat16").apply(model)
    assert model.text is not None
    assert model.image.encoder.get_parameter("layers.0.weight").dtype == torch.float32
    assert model.text.encoder.get_parameter("layers.0.weight").dtype == torch.bfloat16
