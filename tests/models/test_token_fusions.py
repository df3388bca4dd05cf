"""Fusions that keep tokens: clocks, alignments and who meets whom, against slow, plain versions."""

from __future__ import annotations

from itertools import product
from typing import Any

import jaxtyping
import pytest
import torch
from fused import encoded, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.encoders.transformer_layer import TransformerLayer
from mmlab.models.fusion.alignment import AlignmentFusion, ClockFusion, monotonic, resample
from mmlab.models.fusion.bottleneck import BottleneckFusion
from mmlab.models.fusion.crossmodal import CrossmodalFusion
from mmlab.models.fusion.graph import GraphFusion, Near, place_of
from mmlab.models.fusion.missing import Substitution
from mmlab.models.fusion.tensor import LowRankTensorFusion, TensorFusion
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.fusion.weighted_sum import WeightedSumFusion

IMAGE, TEXT, SIGNAL = Modality.IMAGE, Modality.TEXT, Modality.SIGNAL


def test_a_layer_with_its_own_tokens_as_context_is_self_attention() -> None:
    torch.manual_seed(0)
    layer, tokens = TransformerLayer(8, num_heads=2, hidden=16), torch.randn(2, 3, 8)
    mask = torch.ones(2, 1, 1, 3, dtype=torch.bool)
    torch.testing.assert_close(layer(tokens, mask, context=tokens), layer(tokens, mask))


def test_a_context_is_what_pytorch_attends_to() -> None:
    torch.manual_seed(0)
    layer, tokens, seen = (
        TransformerLayer(8, num_heads=2, hidden=16),
        torch.randn(2, 3, 8),
        torch.randn(2, 5, 8),
    )
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    peer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        parts = (layer.query, layer.key, layer.value)
        peer.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        peer.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        peer.out_proj.load_state_dict(layer.out.state_dict())
    queries, keys = layer.attention_norm(tokens), layer.attention_norm(seen)
    wanted = tokens + peer(queries, keys, keys, key_padding_mask=~mask, need_weights=False)[0]
    wanted = wanted + layer.narrow(torch.nn.functional.gelu(layer.widen(layer.feedforward_norm(wanted))))
    torch.testing.assert_close(layer(tokens, mask[:, None, None], context=seen), wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4), ticks=st.integers(1, 9))
def test_a_clock_is_linear_interpolation_or_means(counts: list[int], ticks: int) -> None:
    mask = torch.arange(max(1, *counts)) < torch.tensor(counts)[:, None]
    generator = torch.Generator().manual_seed(len(counts))
    tokens = torch.randn(*mask.shape, 3, generator=generator)
    found = resample(Encoded(tokens.masked_fill(~mask[:, :, None], torch.nan), mask), ticks)
    for sample, count in enumerate(counts):
        wanted = torch.zeros(ticks, 3)
        if count > 0:
            wanted = torch.nn.functional.interpolate(
                tokens[sample, :count].T[None], size=ticks, mode="linear", align_corners=False
            )[0].T
        if count > ticks:
            stretches = [(tick * count // ticks, -(-(tick + 1) * count // ticks)) for tick in range(ticks)]
            wanted = torch.stack([tokens[sample, a:b].mean(dim=0) for a, b in stretches])
        torch.testing.assert_close(found[sample], wanted, rtol=1e-4, atol=1e-5)


def test_a_clock_passes_over_gaps() -> None:
    """Tokens of two rows of a sample can have padding between them."""
    tokens = torch.tensor([[[1.0], [9.0], [3.0]]])
    mask = torch.tensor([[True, False, True]])
    assert resample(Encoded(tokens, mask), 2)[0, :, 0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("ticks", [1, 3, 4])
def test_a_clock_leaves_no_token_of_a_long_signal_out(ticks: int) -> None:
    """Of 21 tokens, lines between two of them at each tick would show 8 at most."""
    mask = (torch.arange(24) < torch.tensor([[22], [3], [0]])) & (torch.arange(24) != 5)
    tokens = torch.full((3, 24, 1), torch.nan).masked_fill(mask[:, :, None], 3.0).requires_grad_()
    found = resample(Encoded(tokens, mask), ticks)
    torch.testing.assert_close(found, torch.tensor([3.0, 3.0, 0.0])[:, None, None].expand(-1, ticks, -1))
    resample(Encoded(tokens, mask), ticks)[0].sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert torch.equal(tokens.grad[0, :, 0] > 0, mask[0])
    assert (tokens.grad[1:] == 0).all()


def all_assignments(score: Tensor, anchors: list[int], steps: list[int]) -> Tensor:
    """Every assignment that never goes back, listed."""
    total, found = 0.0, torch.zeros_like(score)
    for path in product(anchors, repeat=len(steps)):
        if list(path) == sorted(path):
            weight = float(torch.stack([score[a, j] for a, j in zip(path, steps, strict=True)]).sum().exp())
            total += weight
            for anchor, step in zip(path, steps, strict=True):
                found[anchor, step] += weight
    return found / total


@settings(max_examples=40, deadline=None)
@given(
    anchors=st.lists(st.booleans(), min_size=1, max_size=4).filter(any),
    steps=st.lists(st.booleans(), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 9),
)
def test_monotonic_attention_is_the_sum_over_all_assignments(
    anchors: list[bool], steps: list[bool], seed: int
) -> None:
    score = torch.randn(len(anchors), len(steps), generator=torch.Generator().manual_seed(seed)) * 2
    found = monotonic(score[None], torch.tensor([anchors]), torch.tensor([steps]))[0]
    there = [[n for n, one in enumerate(many) if one] for many in (anchors, steps)]
    torch.testing.assert_close(found, all_assignments(score, *there), rtol=1e-4, atol=1e-5)


def test_a_sample_without_steps_aligns_nothing_and_has_a_gradient() -> None:
    score = torch.randn(2, 3, 4, requires_grad=True)
    anchors = torch.ones(2, 3, dtype=torch.bool)
    steps = torch.tensor([[False] * 4, [True] * 4])
    weight = monotonic(score, anchors, steps)
    assert (weight[0] == 0).all()
    (weight * torch.randn(2, 3, 4)).sum().backward()
    assert score.grad is not None
    assert score.grad.isfinite().all()
    assert (score.grad[0] == 0).all()


def test_training_finds_which_steps_belong_to_which_word() -> None:
    """Each word is to tell what its stretch of the signal holds; the steps say which word they are of."""
    generator = torch.Generator().manual_seed(0)
    count, steps, words, kinds = 256, 9, 3, 4
    first = torch.randint(1, 5, (count, 1), generator=generator)
    second = first + torch.randint(1, 4, (count, 1), generator=generator)
    step = torch.arange(steps)
    word = (step >= first).long() + (step >= second)
    content = torch.randint(0, kinds, (count, words), generator=generator)
    signal = torch.cat([torch.eye(words)[word], torch.eye(kinds)[content.gather(1, word)]], dim=2)
    given = {
        TEXT: Encoded(torch.eye(words).expand(count, -1, -1), torch.ones(count, words, dtype=torch.bool)),
        SIGNAL: Encoded(signal, torch.ones(count, steps, dtype=torch.bool)),
    }
    torch.manual_seed(0)
    fusion, head = (
        AlignmentFusion({"text": words, "signal": words + kinds}, dim=32),
        torch.nn.Linear(32, kinds),
    )
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=0.01)
    for _ in range(120):
        loss = torch.nn.functional.cross_entropy(head(fusion(given).tokens).flatten(0, 1), content.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    parts = fusion.space(given)
    query, key = fusion.queries["signal"](parts[TEXT].tokens), fusion.keys["signal"](parts[SIGNAL].tokens)
    weight = monotonic(query @ key.transpose(1, 2) / 32**0.5, parts[TEXT].mask, parts[SIGNAL].mask)
    assert float(loss.detach()) < 0.1  # guessing is 1.39
    assert (weight.argmax(dim=1) == word).float().mean() > 0.95


def test_modalities_meet_in_the_bottleneck_only() -> None:
    fusion = make("bottleneck")
    assert isinstance(fusion, BottleneckFusion)
    base, other = encoded(), encoded(1)
    changed = base | {IMAGE: other[IMAGE]}
    assert not torch.allclose(fusion(base).tokens[0], fusion(changed).tokens[0])
    assert fusion(base).tokens.shape == (4, 2, 6)
    # A sample with one modality: the mean over one is that modality's own run.
    alone = {m: Encoded(e.tokens[2:3], e.mask[2:3] & (m is IMAGE)) for m, e in base.items()}
    part = fusion.space({m: Encoded(e.tokens.nan_to_num(), e.mask) for m, e in alone.items()})[IMAGE]
    tokens, bottleneck = part.tokens, fusion.bottleneck
    mask = torch.ones(1, 1, 1, tokens.shape[1] + 2, dtype=torch.bool)
    for layer in fusion.layers["image"]:  # type: ignore[union-attr]
        both = layer(torch.cat([tokens, bottleneck], dim=1), mask)
        tokens, bottleneck = both[:, :-2], both[:, -2:]
    torch.testing.assert_close(fusion(alone).tokens, fusion.norm(bottleneck))


@pytest.mark.parametrize("there", [(IMAGE, TEXT, SIGNAL), (IMAGE, TEXT), (TEXT, SIGNAL), (TEXT,)])
def test_a_target_takes_the_mean_of_what_its_sources_say(there: tuple[Modality, ...]) -> None:
    """Of those that the sample has; where it has none, the target stays as it is."""
    fusion, given = make("crossmodal"), encoded()
    assert isinstance(fusion, CrossmodalFusion)
    sample = {
        m: Encoded(e.tokens[:1, : int(e.mask[0].sum())], e.mask[:1, : int(e.mask[0].sum())] & (m in there))
        for m, e in given.items()
    }
    parts = fusion.space(sample)
    wanted = []
    for target in there:
        looked = []
        for source in there:
            if source is not target:
                tokens = parts[target].tokens
                for layer in fusion.cross[f"{target}_from_{source}"]:  # type: ignore[union-attr]
                    tokens = layer(tokens, parts[source].mask[:, None, None], context=parts[source].tokens)
                looked.append(tokens)
        mean = torch.stack(looked).mean(dim=0) if looked else parts[target].tokens
        wanted.append(fusion.own[target.value](mean, parts[target].mask[:, None, None]))
    found = fusion(sample)
    torch.testing.assert_close(found.tokens[:, found.mask[0]], fusion.norm(torch.cat(wanted, dim=1)))


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="num_heads=4 must divide dim=6"):
        TransformerFusion({"text": 4}, dim=6)
    for heads in (0, -2):
        with pytest.raises(ValueError, match=f"num_heads={heads} must divide dim=8, and be at least 1"):
            TransformerFusion({"text": 4}, dim=8, num_heads=heads)
    with pytest.raises(ValueError, match="rank=0, factor=32: each must be at least 1"):
        LowRankTensorFusion({"text": 4}, dim=8, rank=0)
    for weights in ({"text": 1.0}, {"text": 1.0, "image": 0.0}):
        with pytest.raises(ValueError, match="give one above 0 for each of text, image"):
            WeightedSumFusion({"text": 4, "image": 4}, dim=8, weights=weights)
    with pytest.raises(
        ValueError, match="a grid of 5 x 5 has 25 cells, and the pictures of a sample have 49"
    ):
        place_of(torch.ones(1, 49, dtype=torch.bool), (5, 5))
    with pytest.raises(ValueError, match="one modality has no other to look at"):
        CrossmodalFusion({"text": 4}, dim=8)
    with pytest.raises(ValueError, match="keep=0: every node listens to one"):
        GraphFusion({"text": 4}, dim=8, keep=0)
    with pytest.raises(ValueError, match="anchor=text: it must be one of the modalities to fuse, signal"):
        AlignmentFusion({"signal": 4}, dim=8)
    with pytest.raises(
        ValueError, match=r"factor=300 makes a product of 27,270,901 entries for 3 modalities"
    ):
        TensorFusion({"text": 4, "image": 4, "signal": 4}, dim=8, factor=300)
    with pytest.raises(ValueError, match="ticks=0: a clock has one at least"):
        ClockFusion({"text": 4}, dim=8, ticks=0)
    with pytest.raises(ValueError, match="num_layers=0, bottlenecks=4: each must be 1 at least"):
        BottleneckFusion({"text": 4}, dim=8, num_layers=0)
    assert ClockFusion({"text": 4}, dim=8, ticks=5)({TEXT: encoded()[TEXT]}).tokens.shape == (4, 5, 8)


def test_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # types are checked in the tests only
    dims: dict[str, int] = {"text": 4, "image": 4}
    for kind in (CrossmodalFusion, TransformerFusion, GraphFusion):
        with pytest.raises(ValueError, match="num_layers=0: it must be 1 at least"):
            kind(dims, dim=8, num_layers=0)
    with pytest.raises(ValueError, match="factor=0: it must be at least 1"):
        TensorFusion(dims, dim=8, factor=0)
    wrong: Any = "gate"
    with pytest.raises(ValueError, match="weights='gate': set it to one of equal, learned, gated"):
        WeightedSumFusion(dims, dim=8, weights=wrong)
    with pytest.raises(ValueError, match="score='gate': set it to one of additive, product"):
        GraphFusion(dims, dim=8, score=wrong)
    with pytest.raises(ValueError, match="edges='gate': set it to one of all, within, between"):
        GraphFusion(dims, dim=8, edges=wrong)
    with pytest.raises(ValueError, match="kind='gate': set it to one of learned, zero, mean"):
        Substitution(dims, kind=wrong)
    for reach in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"near.reach={reach}: it must be above 0; leave near out"):
            Near(reach)
    with pytest.raises(ValueError, match=r"near.grid=\(3, 0\): a map of tokens has one row and one column"):
        Near(grid=(3, 0))
