"""Fusions that keep tokens: graphs, clocks, alignments and who meets whom, against slow, plain versions."""

from __future__ import annotations

from itertools import product
from typing import Any

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
from mmlab.models.fusion.graph import GraphFusion, GraphLayer, Near, near, place_of
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


def by_loops(layer: GraphLayer, nodes: Tensor, edge: Tensor, relation: Tensor) -> Tensor:
    """The formula for one sample, node by node and head by head."""
    read = layer.attention_norm(nodes)
    query, key, value = (part(read) for part in (layer.query, layer.key, layer.value))
    heads = layer.num_heads
    heard = torch.zeros_like(nodes).unflatten(1, (heads, -1))
    for i, head in product(range(len(nodes)), range(heads)):
        listened = [j for j in range(len(nodes)) if edge[i, j]]
        scores = []
        for j in listened:
            seen = key[j] + layer.relation.weight[relation[i, j]]
            if layer.score is None:
                asked, seen = (part.unflatten(0, (heads, -1))[head] for part in (query[i], seen))
                scores.append(asked @ seen / len(asked) ** 0.5)
            else:
                pair = (query[i] + seen).unflatten(0, (heads, -1))[head]
                scores.append(torch.nn.functional.leaky_relu(pair, 0.2) @ layer.score[head])
        if layer.keep is not None:
            best = sorted(range(len(scores)), key=lambda n: -float(scores[n].detach()))[: layer.keep]
            listened, scores = [listened[n] for n in best], [scores[n] for n in best]
        weights = torch.stack(scores).softmax(dim=0)
        heard[i, head] = sum(
            w * value[j].unflatten(0, (heads, -1))[head] for w, j in zip(weights, listened, strict=True)
        )
    nodes = nodes + layer.out(heard.flatten(1))
    return nodes + layer.narrow(torch.nn.functional.gelu(layer.widen(layer.feedforward_norm(nodes))))


@pytest.mark.parametrize("score", ["additive", "product"])
@pytest.mark.parametrize("keep", [None, 2])
def test_graph_attention_against_loops(keep: int | None, score: Any) -> None:
    torch.manual_seed(0)
    layer = GraphLayer(8, num_heads=2, relations=4, keep=keep, score=score).double()
    torch.nn.init.normal_(layer.relation.weight)
    nodes = torch.randn(2, 5, 8, dtype=torch.float64)
    edge = (torch.rand(2, 5, 5) < 0.5) | torch.eye(5, dtype=torch.bool)
    relation = torch.randint(0, 4, (5, 5))
    found = layer(nodes, edge, relation)
    for sample in range(2):
        torch.testing.assert_close(found[sample], by_loops(layer, nodes[sample], edge[sample], relation))


def test_a_node_hears_its_edges_only() -> None:
    """With edges within modalities, what another modality says changes nothing."""
    torch.manual_seed(0)
    given = {
        TEXT: Encoded(torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)),
        SIGNAL: Encoded(torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)),
    }
    other = given | {SIGNAL: Encoded(torch.randn(1, 2, 3), given[SIGNAL].mask)}
    for edges, same in (("within", True), ("all", False), ("between", False)):
        fusion = GraphFusion({"text": 4, "signal": 3}, dim=8, edges=edges)  # type: ignore[arg-type]
        assert torch.equal(fusion(given).tokens[:, :3], fusion(other).tokens[:, :3]) == same


def test_what_is_near_does_not_depend_on_the_batch() -> None:
    """Padding to a number that is a square makes no picture of a sequence."""
    torch.manual_seed(0)
    fusion = GraphFusion({"image": 3}, dim=8, near=Near(0.2))
    tokens = torch.randn(1, 9, 3)
    alone = fusion({IMAGE: Encoded(tokens, torch.ones(1, 9, dtype=torch.bool))}).tokens
    for width in (12, 16):
        padded = torch.cat([tokens, torch.zeros(1, width - 9, 3)], dim=1)
        found = fusion({IMAGE: Encoded(padded, torch.arange(width)[None] < 9)}).tokens
        torch.testing.assert_close(found[:, :9], alone)


def test_a_node_keeps_as_many_edges_as_it_may_where_scores_are_equal() -> None:
    torch.manual_seed(0)
    layer = GraphLayer(8, num_heads=2, relations=1, keep=2)
    same = torch.randn(1, 1, 8).expand(1, 5, 8).clone()
    edge, relation = torch.ones(1, 5, 5, dtype=torch.bool), torch.zeros(5, 5, dtype=torch.int64)
    heard = torch.autograd.functional.jacobian(lambda x: layer(x, edge, relation)[0, 0].sum(), same)[0]
    assert 1 <= (heard.abs().sum(dim=1) > 1e-6).sum() <= 4  # itself, and two for each head; of 5


def test_nodes_of_one_kind_can_change_places() -> None:
    """A graph has no order: objects that are listed otherwise give the same, listed so."""
    torch.manual_seed(0)
    fusion = GraphFusion({"signal": 3}, dim=8)
    objects, turn = torch.randn(2, 5, 3), torch.tensor([3, 0, 4, 1, 2])
    mask = torch.ones(2, 5, dtype=torch.bool)
    found, turned = (fusion({SIGNAL: Encoded(x, mask)}).tokens for x in (objects, objects[:, turn]))
    torch.testing.assert_close(turned, found[:, turn])


def test_near_is_beside_in_pictures_and_in_time() -> None:
    whole = torch.ones(1, 9, dtype=torch.bool)
    picture = place_of(whole, (3, 3))
    assert picture[0, 5].tolist() == pytest.approx([0.5, 5 / 6])
    assert torch.equal(place_of(torch.ones(1, 18, dtype=torch.bool), (3, 3))[:, 9:], picture)  # two pictures
    steps = place_of(torch.tensor([[True, True, True, False]]), None)
    assert steps[0, :3, 0].tolist() == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    edge = near([picture, steps[:, :3]], reach=0.34)[0]
    assert edge[4, :9].all()  # the middle of the picture
    assert edge[0, :9].nonzero().flatten().tolist() == [0, 1, 3, 4]
    assert edge[9, 9:].tolist() == [True, True, False]
    assert edge[0, 9:].all()
    assert torch.equal(edge, edge.T)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4), ticks=st.integers(1, 9))
def test_a_clock_is_linear_interpolation(counts: list[int], ticks: int) -> None:
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
        torch.testing.assert_close(found[sample], wanted, rtol=1e-4, atol=1e-5)


def test_a_clock_passes_over_gaps() -> None:
    """Tokens of two rows of a sample can have padding between them."""
    tokens = torch.tensor([[[1.0], [9.0], [3.0]]])
    mask = torch.tensor([[True, False, True]])
    assert resample(Encoded(tokens, mask), 2)[0, :, 0].tolist() == [1.0, 3.0]


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


def test_a_target_takes_the_mean_of_what_its_sources_say() -> None:
    fusion, given = make("crossmodal"), encoded()
    assert isinstance(fusion, CrossmodalFusion)
    sample = {
        m: Encoded(e.tokens[:1, : int(e.mask[0].sum())], e.mask[:1, : int(e.mask[0].sum())])
        for m, e in given.items()
    }
    parts = fusion.space(sample)
    wanted = []
    for target in (IMAGE, TEXT, SIGNAL):
        looked = []
        for source in (IMAGE, TEXT, SIGNAL):
            if source is not target:
                tokens = parts[target].tokens
                for layer in fusion.cross[f"{target}_from_{source}"]:  # type: ignore[union-attr]
                    tokens = layer(tokens, parts[source].mask[:, None, None], context=parts[source].tokens)
                looked.append(tokens)
        mean = torch.stack(looked).mean(dim=0)
        wanted.append(fusion.own[target.value](mean, parts[target].mask[:, None, None]))
    torch.testing.assert_close(fusion(sample).tokens, fusion.norm(torch.cat(wanted, dim=1)))


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
