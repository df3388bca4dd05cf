"""Tokens of all modalities as the nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.batch import Modality
from mmlab.models.encoders.encoder import Encoded
from mmlab.models.fusion.fusion import Fusion, check_choice, check_heads, check_layers
from mmlab.models.fusion.shared_space import SharedSpace, never_empty, put_together

Edges = Literal["all", "within", "between"]
Score = Literal["additive", "product"]


@dataclass(frozen=True)
class Near:
    """Which nodes are near each other: see :func:`near`."""

    reach: float = 0.25
    """How far apart they may be, as a share of the picture's side or the length of a sequence."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens of a picture, row by row; None: they are steps of a sequence, as those
    of other modalities. The pictures of a sample come as one row of tokens, and nothing says where one
    ends: a grid whose cells divide the tokens of a picture is taken for that of several smaller ones."""

    def __post_init__(self) -> None:
        if not self.reach > 0:
            raise ValueError(f"near.reach={self.reach}: it must be above 0; leave near out to keep all edges")
        if self.grid is not None and min(self.grid) < 1:
            raise ValueError(f"near.grid={self.grid}: a map of tokens has one row and one column at least")


class GraphFusion(Fusion):
    """Graph attention over the tokens of all modalities: words, regions, objects, moments.

    Nodes are projected tokens (:class:`SharedSpace`). Edges lead between all nodes, `within` a modality,
    `between` modalities; of these, where `near` is set, only those between nodes near each other. Every node
    has one to itself. With `keep` a node listens to that many of its edges only, those of the highest score:
    they are learned.
    Memory grows with nodes^2, for additive scores times `dim`: pool long sequences before.
    """

    def __init__(
        self,
        dims: dict[str, int],
        *,
        dim: int,
        edges: Edges = "all",
        near: Near | None = None,
        keep: int | None = None,
        score: Score = "additive",
        num_layers: int = 2,
        num_heads: int = 4,
    ) -> None:
        """Make the layers.

        Args:
            dims: Size of the tokens of each modality, by its name.
            dim: Size of the result.
            edges: Which nodes may listen to which.
            near: Leave out edges between nodes that are farther apart.
            keep: Edges of each node that are used, the best ones; None: all.
            score: How edges are scored: see :class:`GraphLayer`. Products learn far faster how far apart two
                nodes are, which sums of layers have to approximate.
            num_layers: Layers, each of graph attention and a feed-forward network.
            num_heads: Attention heads; they divide `dim`.

        Raises:
            ValueError: `num_heads` does not divide `dim`, `keep` is below 1, there is no layer, or edges or
                scores are of no kind that there is.
        """
        super().__init__(dims, dim=dim)
        check_heads(dim, num_heads)
        check_layers(num_layers)
        check_choice("edges", edges, get_args(Edges))
        check_choice("score", score, get_args(Score))
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: every node listens to one other at least")
        self.edges: Edges = edges
        self.near = near
        self.space = SharedSpace(self.dims, dim=dim)
        self.layers = nn.ModuleList(
            GraphLayer(dim, num_heads=num_heads, relations=len(self.dims) ** 2, keep=keep, score=score)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, encoded: Mapping[Modality, Encoded]) -> Encoded:
        """Fuse the modalities of every sample; a node for each token."""
        parts = self.space(encoded)
        tokens, mask = never_empty(put_together(parts))
        kind = torch.cat(
            [mask.new_full((part.mask.shape[1],), n).long() for n, part in enumerate(parts.values())]
        )
        edge = self._edges(parts, kind) & mask[:, None, :]
        edge = edge | torch.eye(len(kind), dtype=torch.bool, device=mask.device)
        relation = kind[:, None] * len(self.dims) + kind[None, :]
        for layer in self.layers:
            tokens = layer(tokens, edge, relation)
        return Encoded(self.norm(tokens).masked_fill(~mask[:, :, None], 0), mask)

    def _edges(
        self, parts: Mapping[Modality, Encoded], kind: Int64[Tensor, " nodes"]
    ) -> Bool[Tensor, "#samples nodes nodes"]:
        same = (kind[:, None] == kind[None, :])[None]
        edge = {"all": torch.ones_like(same), "within": same, "between": ~same}[self.edges]
        if self.near is None:
            return edge
        grids = [self.near.grid if modality is Modality.IMAGE else None for modality in parts]
        places = [place_of(part.mask, grid) for part, grid in zip(parts.values(), grids, strict=True)]
        return edge & near(places, self.near.reach)


class GraphLayer(nn.Module):
    """Graph attention, then a feed-forward network; both stand behind a norm and are added.

    h_i + W_o sum_j softmax_j(e_ij) W_v h_j, where the score of an edge is, with a vector r for each pair of
    kinds of nodes, `additive`: e_ij = a . leaky_relu(W_q h_i + W_k h_j + r_ij) (GATv2: Brody et al. 2022,
    arXiv:2105.14491, eq. 7), or `product`: e_ij = W_q h_i . (W_k h_j + r_ij) / sqrt(d), d the size of a head
    (Shi et al. 2021, arXiv:2009.03509, eq. 3).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        relations: int,
        keep: int | None = None,
        score: Score = "additive",
    ) -> None:
        """Make the layers.

        Args:
            dim: Size of a node.
            num_heads: Attention heads; they divide `dim`.
            relations: Kinds of edges.
            keep: See :class:`GraphFusion`.
            score: How edges are scored.
        """
        super().__init__()
        self.num_heads = num_heads
        self.keep = keep
        self.attention_norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.relation = nn.Embedding(relations, dim)
        self.score = None
        if score == "additive":
            self.score = nn.Parameter(torch.randn(num_heads, dim // num_heads) / math.sqrt(dim // num_heads))
        self.feedforward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        nn.init.zeros_(self.relation.weight)

    def forward(
        self,
        nodes: Float[Tensor, "samples nodes dim"],
        edge: Bool[Tensor, "samples nodes nodes"],
        relation: Int64[Tensor, "nodes nodes"],
    ) -> Float[Tensor, "samples nodes dim"]:
        """Run the layer.

        Args:
            nodes: Of all samples.
            edge: True where a node (second dim) listens to another (third); each to one at least.
            relation: Kind of each edge.
        """
        read = self.attention_norm(nodes)
        query, key, value = (layer(read) for layer in (self.query, self.key, self.value))
        score = self._score(query, key, self.relation(relation)).masked_fill(~edge[:, None], -torch.inf)
        if self.keep is not None and self.keep < score.shape[-1]:
            best = torch.zeros_like(score, dtype=torch.bool)
            best = best.scatter(-1, score.topk(self.keep, dim=-1).indices, True)
            score = score.masked_fill(~best, -torch.inf)
        heard = torch.einsum(
            "bhij,bjhd->bihd", score.softmax(dim=-1), value.unflatten(2, (self.num_heads, -1))
        )
        nodes = nodes + self.out(heard.flatten(2))
        return nodes + torch.as_tensor(self.narrow(F.gelu(self.widen(self.feedforward_norm(nodes)))))

    def _score(
        self,
        query: Float[Tensor, "samples nodes dim"],
        key: Float[Tensor, "samples nodes dim"],
        relation: Float[Tensor, "nodes nodes dim"],
    ) -> Float[Tensor, "samples heads nodes nodes"]:
        if self.score is not None:
            pair = F.leaky_relu(query[:, :, None] + key[:, None] + relation, 0.2)
            return torch.einsum("bijhd,hd->bhij", self._by_head(pair), self.score)
        query, key, relation = (self._by_head(part) for part in (query, key, relation))
        score = torch.einsum("bihd,bjhd->bhij", query, key)
        score = score + torch.einsum("bihd,ijhd->bhij", query, relation)
        return score / math.sqrt(query.shape[3])

    def _by_head(self, nodes: Float[Tensor, "... dim"]) -> Float[Tensor, "... heads head_dim"]:
        return nodes.reshape(*nodes.shape[:-1], self.num_heads, -1)


def place_of(
    mask: Bool[Tensor, "samples tokens"], grid: tuple[int, int] | None
) -> Float[Tensor, "samples tokens axes"]:
    """Where tokens stand, in [0, 1]: row and column in a grid, the place in the order otherwise.

    Several pictures of a sample lie over each other; steps are spread evenly over the sample.

    Raises:
        ValueError: The tokens of a sample are not those of whole grids: see :attr:`Near.grid`.
    """
    order = mask.long().cumsum(dim=1) - 1
    if grid is None:
        return ((order + 0.5) / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, :, None]
    rows, columns = grid
    # Where nobody has a picture, one blank token stands for those of all.
    if mask.any() and mask.shape[1] % (rows * columns) != 0:
        raise ValueError(
            f"a grid of {rows} x {columns} has {rows * columns} cells, and the pictures of a sample have "
            f"{mask.shape[1]} tokens: give near.grid the rows and columns of the encoder's map"
        )
    cell = order.clamp(min=0) % (rows * columns)
    return torch.stack([(cell // columns + 0.5) / rows, (cell % columns + 0.5) / columns], dim=2)


def near(places: list[Float[Tensor, "samples _ _"]], reach: float) -> Bool[Tensor, "samples nodes nodes"]:
    """Which nodes of a list of modalities are near each other: at most `reach` apart on every axis.

    Between a modality with one axis and one with two, which have none in common, every two nodes are.
    """
    rows = []
    for one in places:
        row = []
        for other in places:
            if one.shape[2] == other.shape[2]:
                apart = (one[:, :, None] - other[:, None]).abs().amax(dim=3)
                row.append(apart <= reach)
            else:
                row.append(torch.ones(*one.shape[:2], other.shape[1], dtype=torch.bool, device=one.device))
        rows.append(torch.cat(row, dim=2))
    return torch.cat(rows, dim=1)
