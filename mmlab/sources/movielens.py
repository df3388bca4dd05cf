"""MovieLens: who rated which film how, and when."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmlab.sources.files import ReleasedFiles
from mmlab.sources.interactions import Division, Interaction, Offered, divide, interaction_items
from mmlab.sources.released import Contents, Released

_RATINGS = ("ratings.csv", "ratings.dat")
_RATING = ("userId", "movieId", "rating", "timestamp")
_FILM = ("movieId", "title", "genres")
"""Headings of the tables in CSV, and the order of their cells; `.dat` has no heading."""
_FILMS = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat"}


class MovieLens(Released):
    """Films that users liked (MovieLens, Harper and Konstan 2015): releases with ratings.csv or ratings.dat.

    A rating of `least` or more is an interaction. A sample of train is one: `json` with `user`, `item`,
    `history` (films that the user liked before), `title`, `genres`, `text` (both) and `group` (the film). Val
    and test have a sample for every film (`item`, `text`, `kind`: cold where train never has it, else warm)
    and one for every user who liked something in that split (`user`, `history`, `wanted`). Users and films
    are numbers from 0; `dataset.json` says how many there are. Preparing takes about 1.5 KB of memory for
    each interaction: 20 GB for ml-25m.
    """

    name = "movielens"
    release = "The releases are at grouplens.org/datasets/movielens: ml-latest-small, ml-1m, ml-25m, ..."
    licence = "research use, no redistribution"

    def __init__(
        self,
        *,
        division: Division = "time",
        least: float = 4.0,
        val: float = 0.1,
        test: float = 0.1,
        history: int = 50,
        new_users: bool = False,
        from_file: Path | None = None,
        out: Path | None = None,
    ) -> None:
        """Settings.

        Args:
            division: `time`: val and test are what all users did after two moments; `last`: the last two
                interactions of each user; `random`: shares of each user's.
            least: Ratings from here up are interactions, others are not.
            val: Share of the interactions in val, for `time` and `random`.
            test: Share in test.
            history: How many films before an interaction a training sample has at most.
            new_users: Whether val and test keep users of whom nothing is known from before.
            from_file: Folder of the release, a zip or a tar.
            out: Folder to write; None: one in the cache directory.

        Raises:
            ValueError: Shares that leave nothing to train on, or a negative length.
        """
        check_division(val, test, history)
        self.division: Division = division
        self.least = least
        self.shares = (val, test)
        self.history = history
        self.new_users = new_users
        settings = {
            "division": division, "least": least, "shares": [val, test], "history": history,
            "new_users": new_users,
        }  # fmt: skip
        super().__init__(settings=settings, max_side=None, from_file=from_file, out=out)

    def annotations(self, files: ReleasedFiles) -> dict[str, str]:
        """Ratings, and films in the same form."""
        found = self.require(files, {"ratings": _RATINGS})
        return found | self.require(files, {"films": _FILMS[found["ratings"].rpartition("/")[2]]})

    def read(self, files: ReleasedFiles, annotations: Mapping[str, str]) -> Contents:
        """Ratings are `user, film, rating, seconds since 1970`, films `number, title, genres`."""
        films = {}
        for place, (film, title, genres) in _rows(files, annotations["films"], _FILM):
            with files.naming(annotations["films"], place):
                if film in films:
                    raise ValueError(f"film {film} is there twice")
            kinds = [] if genres.startswith("(no genres") else genres.split("|")
            text = f"{title}. {', '.join(kinds)}" if kinds else title
            films[film] = Offered({"title": title, "genres": kinds, "text": text})
        liked = []
        for place, (user, film, rating, time) in _rows(files, annotations["ratings"], _RATING):
            with files.naming(annotations["ratings"], place):
                if film not in films:
                    raise ValueError(f"film {film} is not in {annotations['films']}")
                if not 0.5 <= float(rating) <= 5:
                    raise ValueError(f"the rating {rating} is none from 0.5 to 5")
                if float(rating) >= self.least:
                    # One string for each user and film: a release has millions of rows.
                    liked.append(Interaction(sys.intern(user), sys.intern(film), float(int(time))))
        if not liked:
            raise ValueError(
                f"no rating in {annotations['ratings']} is {self.least:g} or more: lower `least`."
            )
        return interaction_items(
            divide(liked, self.division, shares=self.shares),
            films,
            history=self.history,
            new_users=self.new_users,
            remedy="divide otherwise (`division`, other shares)",
        )


def check_division(val: float, test: float, history: int) -> None:
    """Raise ValueError for shares that leave nothing to train on, or a negative length."""
    if not (val > 0 and test > 0 and val + test < 1):
        raise ValueError(f"val={val} and test={test}: shares above 0 that leave something to train on")
    if history < 0:
        raise ValueError(f"history={history}: a number of films, 0 or more")


def _rows(files: ReleasedFiles, name: str, heading: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with the number of their line: CSV with its heading, or cells parted by `::`."""
    empty = True
    for place, row in _cells(files, name, heading):
        empty = False
        with files.naming(name, place):
            if len(row) != len(heading):
                raise ValueError(f"{len(row)} columns instead of {len(heading)}")
        yield place, row
    if empty:
        raise ValueError(f"{name} in {files.path} has no rows: fetch it again.")


def _cells(files: ReleasedFiles, name: str, heading: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, without the heading, which must be the one that is given; none is blank."""
    if name.endswith(".dat"):
        content = files.read(name)
        try:
            text = content.decode("utf-8-sig")  # of ml-10m
        except UnicodeDecodeError:
            text = content.decode("latin-1")  # of ml-1m
        for place, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield place, line.rstrip("\r").split("::")
        return
    table = csv.reader(io.StringIO(files.text(name), newline=""), strict=True)
    try:
        first = next(table, None)
        with files.naming(name, 1):
            if first is not None and first != list(heading):
                raise ValueError(f"{','.join(first)[:60]!r} instead of the heading {','.join(heading)}")
        for row in table:
            if row:
                yield table.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{name}, line {table.line_num}, in {files.path} is not as released: {error}."
        ) from error
