from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.dual_encoder import DualEncoder, Tower
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.pooling import AttentivePooling, SegmentPooling


class Words(Encoder):
    """A table of words that counts how often it is asked."""

    modality = Modality.TEXT

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Embedding(10, dim)
        self.calls = 0

    def encode(self, inputs: Input) -> Encoded:
        self.calls += 1
        assert inputs.mask is not None
        return Encoded(self.table(inputs.data), inputs.mask)


def make_batch(rank: int = 0) -> Batch:
    """Samples 0 to 2: two texts, none, one (not valid); the second and third have a signal."""
    generator = torch.Generator().manual_seed(rank)
    text = Input(
        torch.randint(0, 10, (4, 5), generator=generator),
        owner=torch.tensor([0, 0, NOBODY, 2]),
        present=torch.tensor([True, False, True]),
        length=torch.tensor([5, 2, 1, 3]),
    )
    signal = Input(
        torch.randn(2, 4, 3, generator=generator),
        owner=torch.tensor([1, 2]),
        present=torch.tensor([False, True, True]),
        length=torch.tensor([4, 3]),
    )
    return Batch(
        keys=("a", "b", ""),
        place=torch.tensor([10, 11, 12]) + 3 * rank,
        valid=torch.tensor([True, True, False]),
        group=torch.tensor([7, 8, NOBODY]),
        text=text,
        signal=signal,
    )


def make_model(**changes: Any) -> DualEncoder:
    torch.manual_seed(0)
    parts = {
        "text": Tower(Words(), dim=4),
        "signal": Tower(SignalEncoder(3, dim=16), dim=4, hidden=5, pooling=AttentivePooling(16)),
    }
    return DualEncoder(**parts | changes)


def test_rows_carry_what_they_may_be_compared_to() -> None:
    output = make_model()(make_batch())
    assert output.image is None
    assert output.audio is None
    assert output.get(Modality.TEXT) is output.text
    assert output.text.group.tolist() == [7, 7, NOBODY, NOBODY]
    assert output.text.place.tolist() == [10, 10, NOBODY, 12]
    assert output.signal.group.tolist() == [8, NOBODY]
    assert output.signal.place.tolist() == [11, 12]


def test_vectors_are_unit_length_and_float32_under_autocast() -> None:
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(make_batch())
    for vectors in (output.text.vector, output.signal.vector):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_a_tower_is_encoder_mean_norm_and_linear_layer() -> None:
    tower = make_model().text.eval()
    inputs = make_batch().text
    tokens, _ = tower.encoder(inputs)
    mean = tokens[1, :2].double().mean(dim=0)
    normal = (mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt()
    linear = tower.projection[-1]
    vector = linear.weight.double() @ normal + linear.bias.double()
    torch.testing.assert_close(tower(inputs)[1].double(), vector / vector.norm(), rtol=1e-5, atol=1e-6)


def test_a_pooling_of_several_parts_widens_the_projection() -> None:
    tower = Tower(Words(), dim=4, pooling=SegmentPooling(3))
    assert tower.projection[-1].in_features == 3 * 8
    assert tower(make_batch().text).shape == (4, 4)


def test_every_tower_runs_once_even_where_nobody_owns_a_row() -> None:
    model = make_model()
    batch = make_batch()
    nobody = Input(
        batch.text.data, torch.full((4,), NOBODY), torch.zeros(3, dtype=torch.bool), batch.text.length
    )
    output = model(Batch(batch.keys, batch.place, batch.valid, batch.group, text=nobody, signal=batch.signal))
    assert model.text.encoder.calls == 1
    assert output.text.group.tolist() == [NOBODY] * 4
    (output.text.vector * 0).sum().backward()
    assert model.text.encoder.table.weight.grad is not None


def test_a_modality_that_the_data_lack_is_named() -> None:
    batch = make_batch()
    lacking = Batch(batch.keys, batch.place, batch.valid, batch.group, text=batch.text)
    with pytest.raises(ValueError, match="tower for signal, but the data module reads no signal"):
        make_model()(lacking)


def test_parts_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match=r"their dim differs: .*'text': 4, 'signal': 6"):
        make_model(signal=Tower(SignalEncoder(3), dim=6))
    with pytest.raises(ValueError, match="image tower has Words, an encoder of text"):
        make_model(image=Tower(Words(), dim=4))
    with pytest.raises(ValueError, match="no tower: give at least one of image, text, audio, signal"):
        DualEncoder()
    with pytest.raises(ValueError, match=r"AttentivePooling is made for tokens of size 9.*set its dim to 8"):
        Tower(Words(), dim=4, pooling=AttentivePooling(9))


def test_names_of_weights_read_well() -> None:
    names = set(make_model().state_dict())
    assert {"text.encoder.table.weight", "text.projection.0.weight", "signal.pooling.query"} <= names


def gradients(rank: int) -> list[torch.Tensor]:
    """One step under DDP, where only rank 0 owns texts."""
    batch = make_batch(rank)
    if rank == 1:
        owner = torch.full((4,), NOBODY)
        text = Input(batch.text.data, owner, torch.zeros(3, dtype=torch.bool), batch.text.length)
        batch = Batch(batch.keys, batch.place, batch.valid, batch.group, text=text, signal=batch.signal)
    model = nn.parallel.DistributedDataParallel(make_model())
    output = model(batch)
    loss = sum((e.vector[:, 0] * (e.group != NOBODY)).sum() for e in (output.text, output.signal))
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def ddp_step() -> list[Any]:
    return [gradient.numpy() for gradient in gradients(torch.distributed.get_rank())]


def test_ranks_that_see_different_modalities_step_together(ranks) -> None:
    first, second = ranks(ddp_step)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=0, atol=0)
