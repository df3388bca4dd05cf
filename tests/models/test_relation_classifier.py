"""Relations from the states of two markers: which is which, pictures, whatever a batch lacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from mmlab.batch import Batch, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.relation_classifier import RelationClassifier, pair_states
from mmlab.parallel.micro_batch import split

HEAD, TAIL = 7, 5
"""Token ids of the start markers: the head's is the larger."""


class Letters(Encoder):
    """A table of pieces, and what stands on the left and on the right."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.over = torch.nn.GRU(8, 4, batch_first=True, bidirectional=True)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.over(self.table(inputs.data))[0], inputs.mask)


class Colour(Encoder):
    """One token: the mean colour."""

    modality = Modality.IMAGE
    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def encode(self, inputs: Input) -> Encoded:
        tokens = (inputs.data.float().mean(dim=(2, 3)) / 255 * self.scale)[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def batch(*, textless: tuple[int, ...] = (), blind: tuple[int, ...] = ()) -> Batch:
    """Three pairs: the head first, the tail first, the head first."""
    data = torch.tensor([[1, HEAD, 9, 8, TAIL, 3], [1, TAIL, 9, HEAD, 8, 0], [HEAD, 4, TAIL, 6, 0, 0]])
    text = Input(
        data,
        torch.arange(3),
        torch.ones(3, dtype=torch.bool),
        torch.tensor([6, 5, 4]),
        target=(data == HEAD) | (data == TAIL),
    )
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    image = Input(pictures, torch.arange(3), torch.ones(3, dtype=torch.bool))
    gone = [torch.tensor([n in lacking for n in range(3)]) for lacking in (textless, blind)]
    return Batch(
        keys=("a", "b", "c"),
        place=torch.arange(3),
        valid=torch.ones(3, dtype=torch.bool),
        group=torch.arange(3),
        text=text.without(gone[0]),
        image=image.without(gone[1]),
        references=(("x",), ("y",), ("x",)),
    )


def classifier(*, sees: bool = False) -> RelationClassifier:
    torch.manual_seed(0)
    image = FusionTower(Colour(), keep_tokens=True) if sees else None
    return RelationClassifier(Letters(), relations=4, image=image, num_heads=4).eval()


def test_the_head_comes_first_wherever_it_stands() -> None:
    text = batch().text
    assert text is not None
    tokens = torch.arange(3 * 6 * 2, dtype=torch.float32).reshape(3, 6, 2)
    found = pair_states(tokens, text)
    for row, (tail, head) in enumerate(((4, 1), (1, 3), (2, 0))):
        wanted = torch.cat([tokens[row, tail], tokens[row, head]])  # by token id, the tail's is the smaller
        assert torch.equal(found[row], wanted)
    less = pair_states(tokens, text.without(torch.tensor([False, True, False])))
    assert torch.equal(less[1], torch.zeros(4))
    assert torch.equal(less[[0, 2]], found[[0, 2]])


def test_logits_are_those_of_the_formula() -> None:
    model, given = classifier(), batch()
    assert given.text is not None
    said = model(given)
    states = pair_states(model.text(given.text).tokens, given.text).double()
    norm, _, linear = model.head
    mean, variance = states.mean(dim=1, keepdim=True), states.var(dim=1, unbiased=False, keepdim=True)
    wanted = (states - mean) / (variance + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()
    wanted = wanted @ linear.weight.double().T + linear.bias.double()
    torch.testing.assert_close(said.logits.double(), wanted, rtol=1e-5, atol=1e-5)
    parts = torch.cat([model(part).logits for part in split(given, 2)])
    torch.testing.assert_close(parts, said.logits)


def test_a_picture_is_looked_at_through_a_gate() -> None:
    model, plain = classifier(sees=True), classifier()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(batch()).logits, plain(batch()).logits)  # closed at the start
    torch.nn.init.ones_(model.look.gate)
    seen, unseen = model(batch()).logits, plain(batch()).logits
    assert not torch.isclose(seen, unseen).all(dim=1).any()
    half = model(batch(blind=(1,))).logits
    torch.testing.assert_close(half[1], unseen[1])
    torch.testing.assert_close(half[[0, 2]], seen[[0, 2]])


@pytest.mark.parametrize("lacking", [{"textless": (0, 1, 2)}, {"blind": (0, 1, 2)}, {"textless": (1,)}])
def test_every_parameter_has_a_gradient_whatever_a_batch_lacks(lacking: dict[str, tuple[int, ...]]) -> None:
    model = classifier(sees=True)
    model(batch(**lacking)).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def step_of(_: Any = None) -> dict[str, torch.Tensor]:
    """Gradients of a step in which one rank has no pictures and the other lacks a text."""
    lacking: dict[str, tuple[int, ...]] = [{"blind": (0, 1, 2)}, {"textless": (2,)}][
        torch.distributed.get_rank()
    ]
    model = classifier(sees=True)
    torch.nn.init.ones_(model.look.gate)
    wrapped = DistributedDataParallel(model)
    wrapped(batch(**lacking)).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_ranks_that_lack_different_modalities_step_together(ranks: Any) -> None:
    one, other = ranks(step_of)
    model = classifier(sees=True)
    torch.nn.init.ones_(model.look.gate)
    halves = [model(batch(blind=(0, 1, 2))), model(batch(textless=(2,)))]
    (sum(half.logits.square().sum() for half in halves) / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(one[name], other[name])
        torch.testing.assert_close(one[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_parts_and_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="text has Colour, an encoder of image: give one of text"):
        RelationClassifier(Colour(), relations=4)
    with pytest.raises(ValueError, match="image has Letters, an encoder of text: give one of image"):
        RelationClassifier(Letters(), relations=4, image=FusionTower(Letters()))
    given = batch()
    assert given.text is not None
    assert given.text.target is not None
    with pytest.raises(ValueError, match=r"the model tells relations: read two entities by data\.text"):
        classifier()(replace(given, text=replace(given.text, target=None)))
    with pytest.raises(
        ValueError, match="the model has a tower for image, but the data module reads no image"
    ):
        classifier(sees=True)(replace(given, image=None))
    one = given.text.target.clone()
    one[1] &= one[1].cumsum(dim=0) == 1
    with pytest.raises(ValueError, match="more or fewer than two tokens that are told of"):
        classifier()(replace(given, text=replace(given.text, target=one)))
