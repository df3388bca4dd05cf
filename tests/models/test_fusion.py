"""Fusions against their formulas in float64, and what absent modalities leave alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from fused import DIMS, FUSIONS, TOKENS, encoded, fixed_weights, make
from torch import Tensor

from mmlab.batch import NOBODY, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.fusion.concatenation import ConcatenationFusion
from mmlab.models.fusion.fusion import Fusion, mean_token
from mmlab.models.fusion.product import ProductFusion
from mmlab.models.fusion.tensor import LowRankTensorFusion, TensorFusion
from mmlab.models.fusion.tower import FusionTower
from mmlab.models.fusion.weighted_sum import WeightedSumFusion
from mmlab.models.pooling import AttentivePooling, SegmentPooling


def normal(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    scaled = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    return scaled * norm.weight.double() + norm.bias.double()


def by_hand(fusion: Fusion, given: Mapping[Modality, Encoded], sample: int) -> Tensor:
    """The formula in the docstring of each."""
    means = {m: e.tokens[sample, e.mask[sample]].double().mean(dim=0) for m, e in given.items()}
    has = {m: bool(e.mask[sample].any()) for m, e in given.items()}
    if isinstance(fusion, ProductFusion):
        product = torch.ones(fusion.dim, dtype=torch.float64)
        for modality in given:
            norm, layer, _ = fusion.factors[modality.value]
            if has[modality]:
                product *= (layer.weight.double() @ normal(means[modality], norm) + layer.bias).tanh()
        return product
    if isinstance(fusion, WeightedSumFusion):
        return weighted(fusion, means, has)
    if isinstance(fusion, TensorFusion | LowRankTensorFusion):
        return outer(fusion, means, has)
    assert isinstance(fusion, ConcatenationFusion)
    parts = [
        normal(means[m], fusion.norms[m.value]) if has[m] else fusion.missing[m.value].double()
        for m in (Modality.IMAGE, Modality.TEXT, Modality.SIGNAL)
    ]
    layer = fusion.layer[0]
    return torch.nn.functional.gelu(layer.weight.double() @ torch.cat(parts) + layer.bias.double())


def weighted(
    fusion: WeightedSumFusion, means: Mapping[Modality, Tensor], has: Mapping[Modality, bool]
) -> Tensor:
    parts = {
        m: normal(means[m], fusion.norms[m.value]) if has[m] else torch.zeros(n)
        for m, n in fusion.dims.items()
    }
    scores = torch.zeros(len(parts), dtype=torch.float64)
    if fusion.fixed is not None:
        weights = fixed_weights(modality.value for modality in parts)
        scores = torch.tensor(list(weights.values()), dtype=torch.float64).log()
    if fusion.importance is not None:
        scores = fusion.importance.double()
    if fusion.gate is not None:
        side_by_side = torch.cat([part.double() for part in parts.values()])
        scores = fusion.gate.weight.double() @ side_by_side + fusion.gate.bias.double()
    total, sum_of_weights = torch.zeros(fusion.dim, dtype=torch.float64), 0.0
    for score, (modality, part) in zip(scores, parts.items(), strict=True):
        if has[modality]:
            layer = fusion.layers[modality.value]
            total += score.exp() * (layer.weight.double() @ part.double() + layer.bias.double()).tanh()
            sum_of_weights += float(score.detach().exp())
    return total / max(sum_of_weights, 1e-300)


def outer(
    fusion: TensorFusion | LowRankTensorFusion, means: Mapping[Modality, Tensor], has: Mapping[Modality, bool]
) -> Tensor:
    """The product of all factors, made in full, and the weight as a whole tensor."""
    factors = []
    for modality in fusion.dims:
        norm, layer, _ = fusion.factors.layers[modality.value]
        said = torch.zeros(layer.out_features, dtype=torch.float64)
        if has[modality]:
            said = (layer.weight.double() @ normal(means[modality], norm) + layer.bias.double()).relu()
        factors.append(torch.cat([torch.ones(1, dtype=torch.float64), said]))
    product = torch.einsum("i,j,k->ijk", *factors)
    if isinstance(fusion, TensorFusion):
        return fusion.layer.weight.double() @ product.flatten() + fusion.layer.bias.double()
    maps = [fusion.maps[modality.value].double() for modality in fusion.dims]
    weight = torch.einsum("r,rid,rjd,rkd->ijkd", fusion.weight.double(), *maps)
    return torch.einsum("ijkd,ijk->d", weight, product) + fusion.bias.double()


@pytest.mark.parametrize(
    "kind", ["product", "concatenation", "equal", "learned", "fixed", "gated", "tensor", "low_rank"]
)
def test_against_the_formula_in_float64(kind: str) -> None:
    fusion = make(kind)
    given = encoded()
    fused = fusion(given)
    assert fused.tokens.shape == (4, 1, 6)
    assert fused.mask.all()
    for sample in range(4):
        expected = by_hand(fusion, given, sample)
        torch.testing.assert_close(fused.tokens[sample, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_without_anything_is_the_empty_product() -> None:
    assert torch.equal(make("product")(encoded()).tokens[3, 0], torch.ones(6))


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_modality_that_no_sample_has_still_reaches_its_tower(kind: str) -> None:
    """With zeros: ranks that have it and ranks that do not reduce the same gradients."""
    fusion, given = make(kind), encoded()
    none = torch.zeros_like(given[Modality.TEXT].mask)
    given[Modality.TEXT] = given[Modality.TEXT]._replace(mask=none)
    fusion(given).tokens.square().sum().backward()
    gradient = given[Modality.TEXT].tokens.grad
    assert gradient is not None
    assert (gradient == 0).all()
    assert given[Modality.IMAGE].tokens.grad.abs().sum() > 0
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("name", DIMS)
def test_one_blank_token_stands_for_a_modality_that_no_sample_has(kind: str, name: str) -> None:
    """As :func:`side_by_side` gives it, however many tokens others have where somebody has it."""
    fusion, given, modality = make(kind), encoded(), Modality(name)
    wide = given[modality]._replace(mask=torch.zeros_like(given[modality].mask))
    blank = Encoded(torch.zeros(4, 1, DIMS[name]), torch.zeros(4, 1, dtype=torch.bool))
    one, other = (mean_token(fusion(given | {modality: empty})) for empty in (blank, wide))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", FUSIONS)
def test_gradients_reach_what_is_there_and_only_that(kind: str) -> None:
    fusion, given = make(kind), encoded()
    fusion(given).tokens.square().sum().backward()
    for name, counts in TOKENS.items():
        gradient = given[Modality(name)].tokens.grad
        assert ((gradient.abs().sum(dim=2) > 0).sum(dim=1) == torch.tensor(counts)).all()


@pytest.mark.parametrize("kind", FUSIONS)
def test_samples_do_not_see_each_other(kind: str) -> None:
    fusion, given = make(kind), encoded()
    alone = {m: Encoded(e.tokens[1:2], e.mask[1:2]) for m, e in given.items()}
    (together, mask), (single, own) = fusion(given), fusion(alone)
    torch.testing.assert_close(single[own], together[1][mask[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FUSIONS)
def test_every_sample_has_a_token_and_poison_stays_behind_the_mask(kind: str) -> None:
    tokens, mask = make(kind)(encoded())
    assert mask.any(dim=1).all()
    assert tokens.isfinite().all()


@pytest.mark.parametrize("kind", FUSIONS)
def test_the_order_in_which_modalities_come_does_not_matter(kind: str) -> None:
    fusion, given = make(kind), encoded()
    turned = {modality: given[modality] for modality in reversed(given)}
    assert torch.equal(fusion(turned).tokens, fusion(given).tokens)


def test_dropout_is_on_the_result() -> None:
    torch.manual_seed(0)
    fused = ProductFusion(DIMS, dim=500, dropout=0.5)(encoded()).tokens[0]
    assert 0.3 < (fused == 0).float().mean() < 0.7


@pytest.mark.parametrize("dims", [{}, {"picture": 3}])
def test_modalities_go_by_their_names(dims: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"ProductFusion: dims=.* by name: image, text, audio, signal"):
        ProductFusion(dims, dim=4)


class Steps(Encoder):
    """Gives what it reads."""

    modality = Modality.SIGNAL
    dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(inputs.data * self.scale, inputs.mask)


def rows() -> Input:
    """Sample 0 owns two rows, of one and two steps; sample 1 none; sample 2 one."""
    data = torch.tensor([[[1.0, 2], [9, 9]], [[3, 4], [5, 6]], [[9, 9], [9, 9]], [[7, 8], [1, 0]]])
    return Input(
        data,
        owner=torch.tensor([0, 0, NOBODY, 2]),
        present=torch.tensor([True, False, True]),
        length=torch.tensor([1, 2, 2, 2]),
    )


def test_a_tower_takes_the_mean_over_the_rows_of_a_sample() -> None:
    tokens, mask = FusionTower(Steps())(rows())
    assert mask.tolist() == [[True], [False], [True]]
    assert tokens[:, 0].tolist() == [[2.5, 3.5], [0.0, 0.0], [4.0, 4.0]]  # (1, 2) and (4, 5); (7, 8), (1, 0)


def test_rows_of_nobody_give_a_gradient_of_zero() -> None:
    tower, inputs = FusionTower(Steps()), rows()
    nobody = Input(
        inputs.data, torch.full((4,), NOBODY), torch.zeros(3, dtype=torch.bool), length=inputs.length
    )
    tower(nobody).tokens.sum().backward()
    assert tower.encoder.scale.grad == 0


def test_a_pooling_of_several_parts_widens_the_token() -> None:
    tower = FusionTower(Steps(), pooling=SegmentPooling(2))
    assert tower.dim == 4
    assert tower(rows()).tokens[2, 0].tolist() == [7.0, 8.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"AttentivePooling is made for tokens of size 9.*set its dim to 2"):
        FusionTower(Steps(), pooling=AttentivePooling(9))
