"""WordNet's nouns: a few made here, counted in the plainest way; the real ones, beside NLTK's numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from fetching import fetched
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_wordnet import Noun, write_wordnet

from mmlab.assets import catalog
from mmlab.metrics.wordnet import WordNet

# wup_similarity of NLTK 3.10.4 for two senses of WordNet 3.0. Nothing differed on 40,000 random pairs, on the
# names and depths of all 82,115 senses, and on the senses of 40,000 words, most of them plurals or misspelt.
NLTK = [
    ("dog.n.01", "cat.n.01", 0.8571428571428571),
    ("dog.n.01", "dog.n.01", 0.9285714285714286),  # the longer of two ways up counts above, the shorter below
    ("dog.n.01", "dog.n.03", 0.631578947368421),
    ("dog.n.01", "entity.n.01", 0.2),
    ("entity.n.01", "entity.n.01", 1.0),
    ("chair.n.01", "sofa.n.01", 0.9),
    ("chair.n.01", "table.n.02", 0.8421052631578947),
    ("chair.n.01", "table.n.01", 0.125),
    ("chair.n.01", "professorship.n.01", 0.10526315789473684),
    ("bed.n.01", "mattress.n.01", 0.5555555555555556),
    ("bed.n.01", "bed.n.02", 0.3157894736842105),
    ("lamp.n.01", "lamp.n.02", 0.6666666666666666),
    ("lamp.n.01", "candle.n.01", 0.9473684210526315),
    ("desk.n.01", "counter.n.01", 0.9),
    ("cabinet.n.01", "wardrobe.n.01", 0.8888888888888888),
    ("wall.n.01", "floor.n.01", 0.625),
    ("window.n.01", "door.n.01", 0.631578947368421),
    ("book.n.01", "magazine.n.02", 0.7777777777777778),
    ("red.n.01", "blue.n.01", 0.875),
    ("red.n.01", "chair.n.01", 0.1111111111111111),
    ("two.n.01", "three.n.01", 0.875),
    ("person.n.01", "man.n.01", 0.75),
    ("chef.n.01", "fireman.n.01", 0.11764705882352941),  # the known oddity of people
    ("person.n.01", "dog.n.01", 0.75),
    ("person.n.01", "causal_agent.n.01", 0.8571428571428571),
    ("physical_entity.n.01", "abstraction.n.06", 0.5),
    ("berlin.n.01", "paris.n.01", 0.9090909090909091),  # instances
    ("einstein.n.01", "newton.n.01", 0.6),
    ("computer.n.01", "calculator.n.01", 0.4444444444444444),
    ("water.n.01", "ice.n.01", 0.5),
    ("happiness.n.01", "idea.n.01", 0.2857142857142857),
    ("substance.n.01", "alcohol.n.01", 0.7142857142857143),  # the order matters
    ("alcohol.n.01", "substance.n.01", 0.5714285714285714),
    ("morris.n.03", "nationalist_leader.n.01", 0.8181818181818182),
    ("nationalist_leader.n.01", "morris.n.03", 0.9090909090909091),
    ("copper.n.01", "substance.n.01", 0.6153846153846154),
]


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet(fetched(lambda: catalog.fetch("wordnet")))


@pytest.mark.parametrize(("one", "other", "similarity"), NLTK)
def test_similarity_is_that_of_nltk(wordnet: WordNet, one: str, other: str, similarity: float) -> None:
    senses = []
    for name in (one, other):
        word, _, number = name.split(".")
        senses.append(wordnet.senses(word)[int(number) - 1])
    assert [wordnet.name(sense) for sense in senses] == [one, other]
    assert wordnet.similarity(*senses) == similarity


@pytest.mark.parametrize(
    ("word", "count", "first"),
    [
        ("dogs", 7, "dog.n.01"), ("Knives", 3, "knife.n.01"), ("men", 12, "work_force.n.01"),
        ("axes", 7, "ax.n.01"), ("glasses", 8, "spectacles.n.01"), ("bookshelves", 1, "bookshelf.n.01"),
        ("coffee_table", 1, "coffee_table.n.01"), ("3", 1, "three.n.01"),
    ],
)  # fmt: skip
def test_words_in_the_singular_and_in_the_plural(wordnet: WordNet, word: str, count: int, first: str) -> None:
    """Numbers of senses are NLTK's too."""
    senses = wordnet.senses(word)
    assert len(senses) == count
    assert wordnet.name(senses[0]) == first


@pytest.mark.parametrize("word", ["", "xyzzy", " ", "coffee table", "chair.", "the", "night_stand"])
def test_what_is_no_noun(wordnet: WordNet, word: str) -> None:
    assert wordnet.senses(word) == []


TREE = {
    "entity": Noun(["entity"]),
    "object": Noun(["object", "thing"], ["entity"]),
    "seat": Noun(["seat"], ["object"]),
    "chair": Noun(["chair"], ["seat"]),
    "sofa": Noun(["sofa", "couch"], ["seat"]),
    "being": Noun(["Being"], ["entity"]),
    "chairman": Noun(["chairman", "chair"], ["being"]),
    "Ann": Noun(["Ann"], instance_of=["chairman"]),
}


def test_similarity_by_hand(tmp_path: Path) -> None:
    place = write_wordnet(tmp_path, TREE, exceptions="seeten seat\n")
    wordnet = WordNet(tmp_path)
    assert wordnet.similarity(place["chair"], place["sofa"]) == 2 * 3 / (4 + 4)
    assert wordnet.similarity(place["chair"], place["chairman"]) == 2 * 1 / (4 + 3)
    assert wordnet.similarity(place["Ann"], place["being"]) == 2 * 2 / (4 + 2)
    assert wordnet.senses("CHAIRS") == [place["chair"], place["chairman"]]
    assert wordnet.senses("chairmen") == [place["chairman"]]
    assert wordnet.senses("seeten") == [place["seat"]]
    assert wordnet.name(place["chairman"]) == "chairman.n.01"
    assert wordnet.name(place["being"]) == "being.n.01"
    copy = pickle.loads(pickle.dumps(wordnet))  # tasks go to other processes
    assert copy.similarity(place["chair"], place["sofa"]) == 3 / 4


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, list[int]]:
    """Parents of each node; 0 is the top."""
    size = draw(st.integers(2, 9))
    return {0: []} | {
        node: sorted(draw(st.sets(st.integers(0, node - 1), min_size=1, max_size=3)))
        for node in range(1, size)
    }


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_similarity_where_ways_up_differ(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[int, list[int]], data: Any
) -> None:
    """Every way from a node to the top is written down."""
    folder = tmp_path_factory.getbasetemp() / "graph"
    nouns = {str(n): Noun([chr(ord("z") - n)], [str(p) for p in parents]) for n, parents in graph.items()}
    place = write_wordnet(folder, nouns)
    one, other = (data.draw(st.sampled_from(sorted(graph))) for _ in range(2))

    def ways(node: int) -> list[list[int]]:
        return [[node, *way] for parent in graph[node] for way in ways(parent)] or [[node]]

    def steps(node: int) -> dict[int, int]:
        return {above: min(way.index(above) for way in ways(node) if above in way)
                for above in {above for way in ways(node) for above in way}}  # fmt: skip

    def between(node: int, another: int) -> int:
        shared = steps(node).keys() & steps(another).keys()
        return min(steps(node)[above] + steps(another)[above] for above in shared)

    shared = steps(one).keys() & steps(other).keys()
    deepest = max(min(map(len, ways(node))) for node in shared)
    lowest = [node for node in shared if min(map(len, ways(node))) == deepest]
    best = one if one in lowest else max(lowest)  # names run backwards
    depth = max(map(len, ways(best)))
    expected = 2 * depth / (between(one, best) + between(other, best) + 2 * depth)
    assert WordNet(folder).similarity(place[str(one)], place[str(other)]) == pytest.approx(expected)


def test_a_folder_without_wordnet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nouns of WordNet: index\.noun, .* missing\.\n.*assets fetch"):
        WordNet(tmp_path)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_wordnet(tmp_path, TREE)
    data = tmp_path / "data.noun"
    data.write_bytes(data.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(ValueError, match=r"data\.noun is not the one that index\.noun was made with"):
        WordNet(tmp_path)
