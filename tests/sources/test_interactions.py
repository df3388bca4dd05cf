"""Who liked what: splits without a look at the future, samples, tables as they are released."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from releases import about, note, read_shards, write_release

from mmlab.sources.interactions import Interaction, Offered, divide, interaction_items
from mmlab.sources.mmrec import MmRec
from mmlab.sources.movielens import MovieLens

FILMS = 'movieId,title,genres\n1,Heat (1995),Action|Crime\n2,"Alien, 3",(no genres listed)\n5,Big,Comedy\n'
RATINGS = """userId,movieId,rating,timestamp
7,1,4.0,100
7,2,2.0,101
7,5,5.0,102
8,1,4.5,103
8,5,4.0,900
8,2,5.0,960
7,2,4.0,950
9,5,4.0,980
"""
EVENTS = st.lists(
    st.builds(
        Interaction,
        user=st.sampled_from("abcd"),
        item=st.sampled_from("uvwxyz"),
        time=st.integers(0, 20).map(float),
    ),
    min_size=1,
    max_size=60,
)


def movielens(tmp_path: Path, **settings: Any) -> Path:
    release = write_release(tmp_path / "in", {"ratings.csv": RATINGS, "movies.csv": FILMS})
    return MovieLens(from_file=release, out=tmp_path / "out", **settings).prepare()


@given(EVENTS)
def test_nothing_of_the_future_is_learned_from(events: list[Interaction]) -> None:
    parts = divide(events, "time", shares=(0.2, 0.2))
    times = {name: [one.time for one in part] for name, part in parts.items()}
    for before, after in (("train", "val"), ("train", "test"), ("val", "test")):
        assert max(times[before], default=-1) < min(times[after], default=99)
    pairs = [(one.user, one.item) for part in parts.values() for one in part]
    assert sorted(pairs) == sorted({(one.user, one.item) for one in events}), "each pair once"


@given(EVENTS)
def test_the_last_of_each_user_is_told(events: list[Interaction]) -> None:
    parts = divide(events, "last", shares=(0.1, 0.1))
    for user in {one.user for one in events}:
        mine = {name: [one.time for one in part if one.user == user] for name, part in parts.items()}
        if sum(map(len, mine.values())) < 3:
            assert mine["val"] == mine["test"] == []
        else:
            assert [len(mine["val"]), len(mine["test"])] == [1, 1]
            assert max(mine["train"]) <= mine["val"][0] <= mine["test"][0]


@given(EVENTS)
def test_random_shares_are_of_each_user(events: list[Interaction]) -> None:
    parts = divide(events, "random", shares=(0.25, 0.25))
    for user in {one.user for one in events}:
        mine = {name: sum(one.user == user for one in part) for name, part in parts.items()}
        share = round(sum(mine.values()) * 0.25)
        assert (mine["val"], mine["test"]) == (share, share)
    assert divide(events[::-1], "random", shares=(0.25, 0.25)).keys() == parts.keys()


@given(EVENTS)
def test_histories_are_what_came_before(events: list[Interaction]) -> None:
    parts = divide(events, "time", shares=(0.2, 0.2))
    offered = {item: Offered({"title": item}) for item in "uvwxyz"}
    if not all(parts.values()):
        with pytest.raises(ValueError, match=r"is left to learn from|has no user to tell"):
            interaction_items(parts, offered, history=3, new_users=True, remedy="divide")
        return
    splits = interaction_items(parts, offered, history=3, new_users=True, remedy="divide").splits
    chosen: dict[int, list[int]] = defaultdict(list)
    for item in splits["train"]:
        assert item.about["history"] == chosen[item.about["user"]][-3:]
        chosen[item.about["user"]].append(item.about["item"])
    warm = {item for items in chosen.values() for item in items}
    for split in ("val", "test"):
        there = [one.about for one in splits[split] if "item" in one.about]
        assert [one["item"] for one in there] == list(range(6))
        assert {one["item"] for one in there if one["kind"] == "warm"} == warm
        told = [one.about for one in splits[split] if "user" in one.about]
        for one in told:
            assert one["history"] == chosen[one["user"]]
            assert not set(one["wanted"]) & set(one["history"])
        for one in told:
            chosen[one["user"]] += one["wanted"]


def test_movielens_as_released(tmp_path: Path) -> None:
    folder = movielens(tmp_path, val=0.2, test=0.3)
    train = {key: about(members) for key, members in read_shards(folder, "train").items()}
    assert train["train-00000002"] == {
        "title": "Heat (1995)", "genres": ["Action", "Crime"], "text": "Heat (1995). Action, Crime",
        "user": 1, "item": 0, "history": [], "group": "item-0",
    }  # fmt: skip
    assert train["train-00000001"]["history"] == [0], "a rating of 2 is no interaction"
    test = {key: about(members) for key, members in read_shards(folder, "test").items()}
    assert test["item-00000001"] == {
        "title": "Alien, 3", "genres": [], "text": "Alien, 3", "kind": "cold", "wanted": [], "item": 1,
        "group": "item-1",
    }  # fmt: skip
    assert test["user-00000001"]["wanted"] == [1]
    assert test["user-00000001"]["history"] == [0, 2]
    found = note(folder)
    assert (found["users"], found["items"]) == (3, 3)
    assert found["left_out"] == {"users of test without a history": 1}


def test_the_releases_with_colons(tmp_path: Path) -> None:
    release = write_release(
        tmp_path / "in",
        {
            "ratings.dat": "".join(
                f"{user}::{film}::5::{10 * user + film}\n" for user in (1, 2) for film in (3, 4, 5)
            ),
            "movies.dat": "3::Léon::Crime\n4::Big::Comedy\n5::Heat::Crime\n".encode("latin-1"),
        },
    )
    folder = MovieLens(
        from_file=release, out=tmp_path / "out", division="random", val=0.3, test=0.3
    ).prepare()
    titles = {about(members).get("title") for members in read_shards(folder, "val").values()}
    assert "Léon" in titles


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,1,6.0,5\n", r"ratings\.csv, line 2, .*the rating 6\.0 is none from 0\.5 to 5"),
        ("1,1,nan,5\n", "the rating nan is none"),
        ("1,77,4.0,5\n", r"film 77 is not in movies\.csv"),
        ("1,1,4.0\n", "3 columns instead of 4"),
        ("1,1,4.0,noon\n", "line 2"),
    ],
)
def test_broken_ratings(rows: str, message: str, tmp_path: Path) -> None:
    release = write_release(
        tmp_path / "in", {"ratings.csv": RATINGS.splitlines(True)[0] + rows, "movies.csv": FILMS}
    )
    with pytest.raises(ValueError, match=message):
        MovieLens(from_file=release, out=tmp_path / "out").prepare()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ratings.csv": RATINGS.partition("\n")[2]},
         r"ratings\.csv, line 1, .*'7,1,4\.0,100' instead of the heading userId,movieId,rating,timestamp"),
        ({"movies.csv": FILMS.partition("\n")[2]},
         r"movies\.csv, line 1, .* instead of the heading movieId,title,genres"),
        ({"ratings.csv": ""}, r"ratings\.csv in .* has no rows"),
        ({"ratings.csv": RATINGS.partition("\n")[0]}, r"ratings\.csv in .* has no rows"),
        ({"movies.csv": ""}, r"movies\.csv in .* has no rows"),
    ],
    ids=["no heading", "no heading of films", "empty", "only a heading", "no films"],
)  # fmt: skip
def test_headings_and_empty_tables(files: dict[str, str], message: str, tmp_path: Path) -> None:
    release = write_release(tmp_path / "in", {"ratings.csv": RATINGS, "movies.csv": FILMS, **files})
    with pytest.raises(ValueError, match=message):
        MovieLens(from_file=release, out=tmp_path / "out").prepare()


def test_blank_lines_at_the_end_and_a_byte_order_mark(tmp_path: Path) -> None:
    plain = movielens(tmp_path / "plain", val=0.2, test=0.3)
    more = {"ratings.csv": "\ufeff" + RATINGS + "\n\n", "movies.csv": FILMS + "\n"}
    release = write_release(tmp_path / "in", more)
    folder = MovieLens(from_file=release, out=tmp_path / "out", val=0.2, test=0.3).prepare()
    assert read_shards(folder, "test") == read_shards(plain, "test")
    rows = "".join(f"{user}::{film}::5::{10 * user + film}\n" for user in (1, 2) for film in (3, 4, 5))
    films = "\ufeff3::A::B\n4::C::D\n5::E::F\n\n"
    release = write_release(tmp_path / "dat", {"ratings.dat": "\ufeff" + rows + "\n", "movies.dat": films})
    folder = MovieLens(from_file=release, out=tmp_path / "dat-out", division="last").prepare()
    assert (note(folder)["users"], note(folder)["items"]) == (2, 3)
    empty = write_release(tmp_path / "no", {"ratings.dat": "\n", "movies.dat": films})
    with pytest.raises(ValueError, match=r"ratings\.dat in .* has no rows"):
        MovieLens(from_file=empty, out=tmp_path / "no-out").prepare()


def test_no_history_at_all(tmp_path: Path) -> None:
    folder = movielens(tmp_path, val=0.2, test=0.3, history=0)
    assert all(about(members)["history"] == [] for members in read_shards(folder, "train").values())


def test_no_rating_is_high_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no rating in ratings\.csv is 5\.5 or more: lower `least`"):
        movielens(tmp_path, least=5.5)


def test_a_quote_that_never_ends(tmp_path: Path) -> None:
    films = FILMS + '7,"Endless' + "x" * 200_000
    release = write_release(tmp_path / "in", {"ratings.csv": RATINGS, "movies.csv": films})
    with pytest.raises(ValueError, match=r"movies\.csv, line 5, .* is not as released"):
        MovieLens(from_file=release, out=tmp_path / "out").prepare()


def test_shares_that_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r"val=0\.5 and test=0\.5"):
        MovieLens(val=0.5, test=0.5)


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


INTER = "userID\titemID\trating\ttimestamp\tx_label\n" + "".join(
    f"{user}\t{item}\t5.0\t{time}\t{part}\n"
    for user, item, time, part in [(0, 0, 3, 0), (0, 1, 1, 0), (0, 2, 7, 2), (1, 1, 2, 0), (1, 0, 4, 1)]
)


def test_mmrec_as_released(tmp_path: Path) -> None:
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    release = write_release(tmp_path / "in", {"baby/baby.inter": INTER, "baby/image_feat.npy": npy(features)})
    folder = MmRec(from_file=release, out=tmp_path / "out").prepare()
    train = read_shards(folder, "train")
    assert [about(train[f"train-{n:08d}"])["item"] for n in range(3)] == [1, 1, 0], "in the order of time"
    stored = np.load(io.BytesIO(train["train-00000002"]["image.npy"]))
    np.testing.assert_array_equal(stored, features[:1])
    assert about(read_shards(folder, "test")["user-00000000"])["wanted"] == [2]
    assert about(read_shards(folder, "val")["user-00000001"])["history"] == [1]


def test_of_purchases_that_stand_there_twice_the_first_counts(tmp_path: Path) -> None:
    again = "0\t0\t5.0\t2\t0\n0\t1\t5.0\t8\t2\n"
    release = write_release(tmp_path / "in", {"a.inter": INTER + again})
    folder = MmRec(from_file=release, out=tmp_path / "out").prepare()
    train = [about(members) for _, members in sorted(read_shards(folder, "train").items())]
    assert [(one["user"], one["item"]) for one in train] == [(0, 1), (1, 1), (0, 0)]
    assert train[-1]["history"] == [1]
    assert about(read_shards(folder, "test")["user-00000000"])["wanted"] == [2]
    assert note(folder)["left_out"] == {"interactions that were there before": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"division": "random"}, "val has no user to tell anything: of its 0 users none has a history"),
        ({"division": "last"}, "val has no user to tell anything: of its 0 users"),
        ({"division": "time", "val": 0.45, "test": 0.45}, "none of 4 interactions is left to learn from"),
    ],
)  # fmt: skip
def test_divisions_that_leave_nothing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    ratings = "userId,movieId,rating,timestamp\n" + "".join(
        f"{u},{f},4.0,5\n" for u in (1, 2) for f in (1, 2)
    )
    release = write_release(tmp_path / "in", {"ratings.csv": ratings, "movies.csv": FILMS})
    with pytest.raises(ValueError, match=message):
        MovieLens(from_file=release, out=tmp_path / "out", **settings).prepare()


HUGE = npy(np.zeros((3, 3))).replace(b"(3, 3), }            ", b"(3, 3333333333333333), }")
"""Its header announces more than there is."""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.inter": "userID\titemID\n0\t0\n"}, "no column x_label; there are userID, itemID"),
        ({"a.inter": INTER.replace("\t2\n", "\t9\n")}, "x_label is '9'"),
        ({"a.inter": INTER.replace("0\t2\t", "0\t-2\t")}, "users and items are numbers from 0"),
        ({"a.inter": INTER, "b.inter": INTER}, r"lacks only one file \.inter"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.zeros((2, 3)))}, "has 2 rows, but a.inter has item 2"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.full((3, 3), np.nan))}, "row 0 has a number that is not"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.full((3, 3), 1e39))}, "row 0 has .* finite in float32"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.zeros((3, 3), complex))}, "an array of complex128"),
        ({"a.inter": INTER, "text_feat.npy": b"PK\x03\x04" + bytes(99)}, r"text_feat\.npy in .* magic"),
        ({"a.inter": INTER, "text_feat.npy": b""}, r"text_feat\.npy in .* is not as released"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.zeros((3, 3)))[:-1]}, "71 bytes instead of the 72 of"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.zeros((3, 0)))}, r"shape \(3, 0\) instead of \[items,"),
        ({"a.inter": INTER, "text_feat.npy": HUGE}, r"\d\d bytes instead of the 79999999999999992 of"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.zeros((3, 3))).replace(b"}", b"(")}, "[Hh]eader"),
        ({"a.inter": INTER.replace("0\t2\t", "0\t99999999999\t")}, "line 4, .*99999999999, .* 1060 or more"),
        ({"a.inter": INTER.replace("\t7\t", "\tnan\t")}, r"line 4, .* the timestamp nan is not finite"),
        ({"a.inter": INTER.replace("\t7\t", "\tinf\t")}, r"line 4, .* the timestamp inf is not finite"),
        ({"a.inter": INTER.replace("\t0\n", "\t1\n")}, r"from: correct the column x_label of a\.inter"),
        ({"a.inter": INTER, "text_feat.npy": npy(np.zeros(3))}, r"shape \(3,\) instead of \[items,"),
    ],
)  # fmt: skip
def test_broken_mmrec(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        MmRec(from_file=write_release(tmp_path / "in", files), out=tmp_path / "out").prepare()


def test_arrays_of_objects_are_not_loaded(tmp_path: Path) -> None:
    hostile = npy(np.array([{"a": 1}], dtype=object))
    release = write_release(tmp_path / "in", {"a.inter": INTER, "text_feat.npy": hostile})
    with pytest.raises(ValueError, match=r"text_feat\.npy"):
        MmRec(from_file=release, out=tmp_path / "out").prepare()


def test_the_released_movielens(public_data: Path, tmp_path: Path) -> None:
    folder = MovieLens(from_file=public_data / "movielens-small", out=tmp_path / "out").prepare()
    found = note(folder)
    assert found["items"] == 9742
    assert found["splits"]["train"]["samples"] == 30260
    test = [about(members) for members in read_shards(folder, "test").values()]
    assert sum("user" in one for one in test) == 22
