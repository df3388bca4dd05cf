"""Words on a page: lines taken apart, boxes, and values found among words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.sources.pages import (
    Box,
    Placed,
    Stretch,
    Word,
    about_words,
    occurrences,
    place,
    split_line,
    tagged,
)

WHOLE = Box(0.0, 0.0, 1.0, 0.1)


def words(*lines: str) -> list[Word]:
    return [word for line in lines for word in split_line(line, WHOLE)]


def printed(found: list[Word]) -> str:
    return "".join(("" if word.glued else " ") + word.text for word in found).strip()


def test_a_line_is_taken_apart_where_fields_begin_and_end() -> None:
    found = words("DATE:19/10/2018 20:49:59", "TOTAL RM60.30", "27,JALAN D.I.Y. é12-A")
    assert [word.text for word in found] == [
        "DATE", ":", "19/10/2018", "20:49:59", "TOTAL", "RM", "60.30", "27", ",", "JALAN",
        "D", ".", "I", ".", "Y", ".", "é", "12", "-", "A",
    ]  # fmt: skip
    assert printed(found) == "DATE:19/10/2018 20:49:59 TOTAL RM60.30 27,JALAN D.I.Y. é12-A"


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text("aB1.,:/- $é²🙂", max_size=30))
def test_no_character_is_lost_and_words_stand_in_order(text: str) -> None:
    box = Box(0.2, 0.3, 0.8, 0.4)
    found = list(split_line(text, box))
    assert "".join(word.text for word in found) == "".join(text.split())
    assert printed(found) == " ".join(text.split())
    edges = [side for word in found for side in (word.box.left, word.box.right)]
    assert edges == sorted(edges)
    assert all(box.left <= edge <= box.right for edge in edges)
    assert all((word.box.top, word.box.bottom) == (0.3, 0.4) for word in found)


def test_a_word_has_its_characters_share_of_the_line() -> None:
    first, second = split_line("ab cdefg h"[:8], Box(0.0, 0.5, 0.8, 0.6))
    assert first.box == pytest.approx((0.0, 0.5, 0.2, 0.6))
    assert second.box == pytest.approx((0.3, 0.5, 0.8, 0.6))


def test_what_reaches_over_the_edge_is_cut() -> None:
    assert place((10, 20, 30, 40), size=(100, 200)) == Placed(Box(0.1, 0.1, 0.3, 0.2), True)
    assert place((-10, 20, 130, 40), size=(100, 200)) == Placed(Box(0.0, 0.1, 1.0, 0.2), False)
    assert place((110, 300, 130, 340), size=(100, 200)) == Placed(Box(1.0, 1.0, 1.0, 1.0), False)


def test_what_a_sample_says_of_its_words() -> None:
    found = about_words([Word("a", Box(1 / 3, 0.0, 0.5, 1.0)), Word("b", WHOLE, glued=True)])
    assert found == {
        "words": ["a", "b"], "boxes": [[0.33333, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 0.1]], "glued": [1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("60.30", [(3, 4), (5, 6)]),
        ("RM60.30", [(2, 4)]),
        ("RM 60.30", [(2, 4)]),  # nowhere as it is, but for the space
        ("total : rm 60.30", [(0, 4)]),
        ("0.30", []),
        ("TOT", []),
        ("60.30 (60.30)", [(3, 7)]),
        ("(60.30)", [(4, 7)]),
        ("[60.30]", [(3, 4), (5, 6)]),
        ("-", []),
        ("", []),
        ("60.30 60.30", [(3, 6)]),
    ],
)
def test_a_value_is_found_in_whole_words(value: str, expected: list[tuple[int, int]]) -> None:
    page = words("TOTAL: RM60.30", "(60.30)")
    assert [word.text for word in page] == ["TOTAL", ":", "RM", "60.30", "(", "60.30", ")"]
    assert occurrences(page, value) == [Stretch(*one) for one in expected]


def test_an_address_goes_over_lines() -> None:
    page = words("ACME SDN BHD", "27,JALAN DEDAP 13,", "81100 JOHOR.", "TEL 1")
    (found,) = occurrences(page, "27, JALAN DEDAP 13, 81100 JOHOR.")
    assert printed(page[found.start : found.stop]) == "27,JALAN DEDAP 13, 81100 JOHOR."
    (found,) = occurrences(page, "27 JALAN DEDAP 13 81100 JOHOR")
    assert printed(page[found.start : found.stop]) == "27,JALAN DEDAP 13, 81100 JOHOR"


@settings(max_examples=100, deadline=None)
@given(text=st.text("aAb1. ,", min_size=1, max_size=20), data=st.data())
def test_every_stretch_of_words_is_found_by_what_it_says(text: str, data: st.DataObject) -> None:
    page = words(text)
    if not page:
        return
    start = data.draw(st.integers(0, len(page) - 1))
    stop = data.draw(st.integers(start + 1, len(page)))
    assert Stretch(start, stop) in occurrences(page, printed(page[start:stop]))


def test_of_stretches_that_overlap_the_later_win() -> None:
    stretches = {"company": Stretch(0, 3), "date": Stretch(4, 5), "total": Stretch(2, 4)}
    assert tagged(5, stretches) == ["O", "O", "B-total", "I-total", "B-date"]
    assert tagged(2, {}) == ["O", "O"]
