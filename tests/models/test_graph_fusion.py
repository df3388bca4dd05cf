"""Graphs of tokens against loops over nodes: attention, how a fusion wires its layers, what is near."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.graph import GraphFusion, GraphLayer, Near, near, place_of

IMAGE, TEXT, SIGNAL = Modality.IMAGE, Modality.TEXT, Modality.SIGNAL


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


WIRINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "product": {"score": "product"},
    "best": {"keep": 2},
    "within": {"edges": "within"},
    "between": {"edges": "between"},
    "near": {"near": Near(0.4)},
    "near in a grid": {"near": Near(0.4, grid=(2, 2))},
    "all at once": {"near": Near(0.4), "edges": "within", "keep": 2, "score": "product"},
}


def wired(wiring: dict[str, Any]) -> tuple[GraphFusion, dict[Modality, Encoded]]:
    """A graph of four places of a picture and three words, of which the second sample has two."""
    torch.manual_seed(0)
    fusion = GraphFusion({"image": 5, "text": 4}, dim=8, num_heads=2, **wiring)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    generator = torch.Generator().manual_seed(1)
    words = torch.tensor([[True, True, True], [True, True, False]])
    return fusion, {
        IMAGE: Encoded(torch.randn(2, 4, 5, generator=generator), torch.ones(2, 4, dtype=torch.bool)),
        TEXT: Encoded(torch.randn(2, 3, 4, generator=generator), words),
    }


def places_by_hand(words: int, grid: tuple[int, int] | None) -> list[tuple[float, ...]]:
    picture = [((n + 0.5) / 4,) for n in range(4)]
    if grid is not None:
        picture = [((n // 2 + 0.5) / 2, (n % 2 + 0.5) / 2) for n in range(4)]
    return [*picture, *(((n + 0.5) / words,) for n in range(words))]


@pytest.mark.parametrize("name", WIRINGS)
def test_a_graph_is_wired_as_it_is_told(name: str) -> None:
    """Each layer by hand, with its own settings and the edges and relations of the whole graph."""
    wiring = WIRINGS[name]
    fusion, given = wired(wiring)
    found, parts = fusion(given), fusion.space(given)
    apart: Near | None = wiring.get("near")
    layers = []
    for trained in fusion.layers:
        own = {"keep": wiring.get("keep"), "score": wiring.get("score", "additive")}
        layer = GraphLayer(8, num_heads=2, relations=4, **own)
        layer.load_state_dict(trained.state_dict())
        layers.append(layer)
    for sample, words in enumerate((3, 2)):
        nodes = torch.cat([parts[IMAGE].tokens[sample], parts[TEXT].tokens[sample, :words]])
        kind = [0] * 4 + [1] * words
        place = places_by_hand(words, None if apart is None else apart.grid)
        edge, relation = torch.eye(len(kind), dtype=torch.bool), torch.zeros(len(kind), len(kind)).long()
        for i, j in product(range(len(kind)), repeat=2):
            relation[i, j] = 2 * kind[i] + kind[j]
            fits = {"all": True, "within": kind[i] == kind[j], "between": kind[i] != kind[j]}
            far = apart is not None and len(place[i]) == len(place[j]) and any(
                abs(a - b) > apart.reach for a, b in zip(place[i], place[j], strict=True)
            )  # fmt: skip
            edge[i, j] |= fits[wiring.get("edges", "all")] and not far
        for layer in layers:
            nodes = by_loops(layer, nodes, edge, relation)
        own, wanted = found.tokens[sample][found.mask[sample]], fusion.norm(nodes)
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
    if wiring:
        assert not torch.allclose(found.tokens, wired({})[0](given).tokens)


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
