"""Splits of a data set such that what belongs together never lies in two of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping

TRAIN = "train"


def split(
    labels: Mapping[str, str],
    *,
    marks: Mapping[str, Collection[Hashable]],
    held_out: Mapping[str, int],
    seed: int,
) -> dict[str, str]:
    """Give every item its split.

    Items of one label, or with a mark in common, stay together, and so do those that they are joined to in
    turn. Such clusters are sorted by a hash of their labels and the seed, and each split takes from the
    front what it lacks: adding items moves few others.

    Args:
        labels: Label of each item.
        marks: What else may not be seen in two splits, of each item.
        held_out: Number of labels in each split but :data:`TRAIN`, which gets the rest. A cluster that would
            overshoot is passed over, so the numbers are met exactly, unless the items do not suffice.
        seed: Another seed, another split.

    Returns:
        Split of each item.
    """
    clusters = sorted(_clusters(labels, marks), key=lambda cluster: _hash(cluster, labels, seed))
    found = dict.fromkeys(labels, TRAIN)
    for name, wanted in held_out.items():
        left = []
        for cluster in clusters:
            size = len({labels[item] for item in cluster})
            if size <= wanted:
                wanted -= size
                found.update(dict.fromkeys(cluster, name))
            else:
                left.append(cluster)
        clusters = left
    return found


def _clusters(labels: Mapping[str, str], marks: Mapping[str, Collection[Hashable]]) -> list[list[str]]:
    """Items joined by equal labels and marks (disjoint sets, each tree hanging from its first item)."""
    parent = {item: item for item in labels}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    seen: dict[Hashable, str] = {}
    for item, label in labels.items():
        for mark in (("label", label), *(("mark", mark) for mark in marks[item])):
            parent[root(item)] = root(seen.setdefault(mark, item))
    clusters = defaultdict(list)
    for item in labels:
        clusters[root(item)].append(item)
    return list(clusters.values())


def _hash(cluster: list[str], labels: Mapping[str, str], seed: int) -> str:
    return hashlib.sha256(f"{seed}:{min(labels[item] for item in cluster)}".encode()).hexdigest()
