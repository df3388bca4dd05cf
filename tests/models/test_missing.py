"""Modalities left out on purpose, what stands in their place, and encoders whose layers are weighed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fused import DIMS, FUSIONS, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from mmlab.batch import NOBODY, Batch, Input, Modality
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.encoders.signal import FeatureEncoder
from mmlab.models.fusion.missing import Standing, Substitution, drop_modalities, leave_out
from mmlab.models.fusion.tower import FusionTower, side_by_side
from mmlab.models.fusion_classifier import FusionClassifier
from mmlab.models.heads import ClassificationHead
from mmlab.models.layer_mix import LayerMix
from mmlab.models.pooling import AttentivePooling, FirstTokenPooling, StatisticsPooling
from mmlab.parallel.micro_batch import run_in_parts
from mmlab.parallel.sharding import shard

TEXT, SIGNAL = Modality.TEXT, Modality.SIGNAL


@settings(max_examples=50, deadline=None)
@given(
    present=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5),
    share=st.floats(0, 0.99),
)
def test_nothing_appears_and_something_stays(present: list[list[bool]], share: float) -> None:
    there = torch.tensor(present)
    kept = drop_modalities(there, share)
    assert not (kept & ~there).any()
    assert torch.equal(kept.any(dim=1), there.any(dim=1))


def test_each_is_left_out_as_often_as_asked() -> None:
    torch.manual_seed(0)
    kept = drop_modalities(torch.ones(40_000, 3, dtype=torch.bool), 0.4)
    # Where all three would go, one stays: 0.4 ^ 3 / 3 of each modality.
    wanted = 0.6 + 0.4**3 / 3
    assert kept.float().mean(dim=0).tolist() == pytest.approx([wanted] * 3, abs=0.01)


def test_what_is_left_out_is_as_if_it_were_not_there() -> None:
    torch.manual_seed(0)
    given = encoded()
    left = leave_out(given, 0.9)
    for modality, part in left.items():
        assert part.tokens is given[modality].tokens
        assert not (part.mask & ~given[modality].mask).any()
    assert sum(int(part.mask.any(dim=1).sum()) for part in left.values()) < 7


@pytest.mark.parametrize("kind", ["learned", "zero"])
def test_one_token_stands_where_a_modality_is_missing(kind: Standing) -> None:
    fill = Substitution(DIMS, kind=kind)
    if kind == "learned":
        for token in fill.tokens.values():
            torch.nn.init.ones_(token)
    given = encoded()
    for modality, (tokens, mask) in fill(given).items():
        before = given[modality].mask
        there = before.any(dim=1)
        assert torch.equal(mask[there], before[there])
        assert torch.equal(tokens[there][before[there]], given[modality].tokens[there][before[there]])
        assert mask[~there].sum(dim=1).eq(1).all()
        assert (tokens[~there, 0] == float(kind == "learned")).all()


def test_a_mean_is_that_of_what_the_steps_before_have_seen() -> None:
    fill = Substitution(DIMS, kind="mean")
    first, second = encoded(0), encoded(1)
    assert (fill.eval()(first)[TEXT].tokens[3, 0] == 0).all()  # nothing was seen
    fill.train()
    fill.count(first)
    fill.count(second)
    assert (fill(second)[TEXT].tokens[3, 0] == 0).all()  # within a step the mean stays
    fill.after_step()
    seen = torch.cat([e[TEXT].tokens[e[TEXT].mask] for e in (first, second)]).detach()
    torch.testing.assert_close(fill.eval()(first)[TEXT].tokens[3, 0], seen.mean(dim=0))
    fill.after_step()
    torch.testing.assert_close(fill(first)[TEXT].tokens[3, 0], seen.mean(dim=0))


def gathered_mean(_: Any = None) -> list[float]:
    rank = torch.distributed.get_rank()
    fill = Substitution(DIMS, kind="mean")
    fill.count(encoded(rank))
    fill.after_step()
    return fill.eval()(encoded())[SIGNAL].tokens[1, 0].tolist()


def test_ranks_take_one_mean(ranks: Any) -> None:
    first, second = ranks(gathered_mean)
    seen = torch.cat([encoded(n)[SIGNAL].tokens[encoded(n)[SIGNAL].mask] for n in (0, 1)]).detach()
    assert first == second == pytest.approx(seen.mean(dim=0).tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", ["mean", "learned"])
def test_parts_of_a_batch_count_once_and_give_the_same_gradients(kind: Standing) -> None:
    """With gradient caching the backward pass runs every part again."""
    batch = make_batch()
    found = []
    for micro_batch in (None, 2):
        torch.manual_seed(0)
        fill = Substitution({"text": 8, "signal": 8}, kind=kind)
        model = make_model("transformer", missing=fill)
        for step in range(2):
            model.zero_grad()
            said = model(batch) if micro_batch is None else run_in_parts(model, batch, micro_batch)
            said.logits.square().sum().backward()
            if step == 0:
                fill.after_step()
        counts = [buffer.clone() for name, buffer in fill.named_buffers() if name.endswith("_new")]
        found.append([*counts, *(parameter.grad for parameter in model.parameters())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def features(count: int = 4, *, lacking: tuple[int, ...] = (), seed: int = 0) -> Input:
    generator = torch.Generator().manual_seed(seed)
    gone = torch.tensor([n in lacking for n in range(count)])
    owner = torch.arange(count).masked_fill(gone, NOBODY)
    return Input(
        torch.randn(count, 3, 5, generator=generator), owner, ~gone, torch.tensor([3, 2, 1, 3])[:count]
    )


def make_model(kind: str = "concatenation", **changes: Any) -> FusionClassifier:
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "text": FusionTower(FeatureEncoder(5, dim=8, modality="text"), keep_tokens=True),
        "signal": FusionTower(FeatureEncoder(5, dim=8), keep_tokens=True),
        "fusion": FUSIONS[kind]({"text": 8, "signal": 8}, dim=6),
        "head": ClassificationHead(6, classes=3),
    }
    return FusionClassifier(**parts | changes)


def make_batch(rank: int = 0, **changes: Any) -> Batch:
    batch = Batch(
        keys=("a", "b", "c", "d"),
        place=torch.arange(4) + 4 * rank,
        valid=torch.ones(4, dtype=torch.bool),
        group=torch.arange(4),
        text=features(lacking=(1,), seed=rank),
        signal=features(lacking=(2,), seed=rank + 10),
    )
    return replace(batch, **changes)


def test_modality_dropout_is_for_training() -> None:
    model, batch = make_model(modality_dropout=0.5), make_batch()
    plain = make_model()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(batch).logits, plain.eval()(batch).logits)
    model.train()
    torch.manual_seed(1)
    one = model(batch).logits
    torch.manual_seed(1)
    assert torch.equal(model(batch).logits, one)
    torch.manual_seed(2)
    assert not torch.equal(model(batch).logits, one)


def test_a_substitution_reaches_the_fusion() -> None:
    fill = Substitution({"text": 8, "signal": 8})
    model = make_model("transformer", missing=fill)
    model(make_batch()).logits.square().sum().backward()
    assert all(token.grad is not None and token.grad.abs().sum() > 0 for token in fill.tokens.values())


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"modality_dropout=1.0: it must be at least 0 and below 1"):
        make_model(modality_dropout=1.0)
    with pytest.raises(ValueError, match=r"towers give .*but Substitution is made for dims=\{'text': 8\}"):
        make_model(missing=Substitution({"text": 8}))
    with pytest.raises(ValueError, match="keep_tokens with FirstTokenPooling: a pooling leaves one vector"):
        FusionTower(FeatureEncoder(5), pooling=FirstTokenPooling(), keep_tokens=True)


def without(batch: Any, modality: str) -> Any:
    given = getattr(batch, modality)
    return replace(batch, **{modality: given.without(torch.ones(4, dtype=torch.bool))})


def lacking(rank: int) -> Batch:
    """What a rank has: the first no text at all, the second no signal."""
    return without(make_batch(rank), "text" if rank == 0 else "signal")


def step_of_a_rank(kind: str, way: str) -> dict[str, Tensor]:
    """Gradients of one step, whole."""
    model, batch = make_model(kind), lacking(torch.distributed.get_rank())
    whole: torch.nn.Module = model
    if way == "ddp":
        whole = torch.nn.parallel.DistributedDataParallel(model)  # it lives as long as its reducer must
    else:
        shard(torch.nn.ModuleList([model]), init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)))
    whole(batch).logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", FUSIONS)
def test_ranks_that_see_different_modalities_step_together(ranks: Any, kind: str, way: str) -> None:
    model = make_model(kind)
    (sum(model(lacking(rank)).logits.square().sum() for rank in (0, 1)) / 2).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for found in ranks(step_of_a_rank, kind, way):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", FUSIONS)
def test_logits_do_not_depend_on_what_stands_where_nothing_is(kind: str) -> None:
    model, batch = make_model(kind).eval(), make_batch()
    text = batch.text
    data = text.data.clone()
    data[1] = 1e6  # nobody's row
    data[2, 1:] = 1e6  # behind the end of a row
    changed = replace(batch, text=replace(text, data=data))
    torch.testing.assert_close(model(changed).logits, model(batch).logits)


class Layers(Encoder):
    """Two layers of two numbers side by side."""

    modality = Modality.SIGNAL
    dim = 4
    layers_per_token = 2

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(inputs.data, inputs.mask)


def test_a_mix_may_start_from_one_layer() -> None:
    torch.testing.assert_close(LayerMix(3).weight.softmax(dim=0), torch.full((3,), 1 / 3))
    weights = LayerMix(5, start=3).weight.softmax(dim=0)
    torch.testing.assert_close(weights, torch.tensor([0.125, 0.125, 0.125, 0.5, 0.125]))
    with pytest.raises(ValueError, match="start=2: the layers are numbered from 0 to 1"):
        LayerMix(2, start=2)


def test_layers_are_weighed_each_at_its_own_scale() -> None:
    mix = LayerMix(2)
    torch.nn.init.constant_(mix.weight[0], torch.tensor(3.0).log().item())
    encoded = Encoded(torch.tensor([[[1.0, 3.0, 500.0, 100.0]]]), torch.ones(1, 1, dtype=torch.bool))
    # Of norm 1: (-1, 1) and (1, -1), weighed 3 to 1.
    torch.testing.assert_close(mix(encoded).tokens[0, 0], torch.tensor([-0.5, 0.5]), atol=1e-4, rtol=0)
    tower = FusionTower(Layers(), layers=mix, pooling=StatisticsPooling())
    assert tower.dim == 4
    with pytest.raises(ValueError, match="LayerMix is made for 4 layers, but Layers gives 2: set layers to"):
        FusionTower(Layers(), layers=LayerMix(4))
    with pytest.raises(ValueError, match="AttentivePooling is made for tokens of size 9, the head for 8"):
        ClassificationHead(8, classes=2, pooling=AttentivePooling(9))


def test_statistics_are_mean_and_deviation_of_what_is_valid() -> None:
    tokens = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    found = StatisticsPooling()(Encoded(tokens, mask))
    torch.testing.assert_close(found[0, :3], tokens[0, :3].mean(dim=0))
    torch.testing.assert_close(found[0, 3:], tokens[0, :3].std(dim=0, unbiased=False), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, :3], tokens[1, 0])
    assert (found[1, 3:] < 1e-3).all()


def test_tokens_of_all_rows_of_a_sample_stand_side_by_side() -> None:
    tokens = torch.arange(8.0).reshape(4, 2, 1).requires_grad_()
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
    inputs = Input(torch.zeros(4, 2), torch.tensor([0, 0, NOBODY, 2]), torch.tensor([True, False, True]))
    found = side_by_side(Encoded(tokens, mask), inputs)
    assert found.tokens[:, :, 0].tolist() == [[0, 2, 3], [0, 0, 0], [6, 7, 0]]
    assert found.mask.tolist() == [[True, True, True], [False, False, False], [True, True, False]]
    found.tokens.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[:, :, 0].tolist() == [[1, 0], [1, 1], [0, 0], [1, 1]]
    nobody = replace(inputs, owner=torch.full((4,), NOBODY), present=torch.zeros(3, dtype=torch.bool))
    empty = side_by_side(Encoded(tokens, mask), nobody)
    assert empty.tokens.shape == (3, 1, 1)
    assert not empty.mask.any()
    tokens.grad = None
    empty.tokens.sum().backward()
    assert (tokens.grad == 0).all()
