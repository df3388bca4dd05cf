"""Users, items and histories as rows of numbers; what is none of them is a counted skip."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmlab.batch import NOBODY
from mmlab.data.decode import BrokenMember
from mmlab.data.interactions import InteractionReader

READER = InteractionReader()


def members(**about: Any) -> dict[str, bytes]:
    return {"json": json.dumps(about).encode()}


@pytest.mark.parametrize(
    ("about", "row"),
    [
        ({"user": 3, "item": 5, "history": [1, 2]}, [3, 5, 1, 2]),
        ({"item": 5}, [NOBODY, 5]),
        ({"user": 0, "history": []}, [0, NOBODY]),
    ],
)
def test_rows(about: dict[str, Any], row: list[int]) -> None:
    (found,) = READER.read(members(**about), None)
    assert found.tolist() == row
    assert READER.finds(members(**about))


def test_samples_without_either() -> None:
    assert READER.read(members(title="x"), None) == ()
    assert not READER.finds(members(title="x"))


def test_padding_is_no_item() -> None:
    rows = [READER.read(members(item=5), None)[0], READER.read(members(user=1, history=[0, 4]), None)[0]]
    data, length, *_ = READER.stack(rows)
    assert data.tolist() == [[NOBODY, 5, NOBODY, NOBODY], [1, NOBODY, 0, 4]]
    assert length is not None
    assert length.tolist() == [2, 4]


@pytest.mark.parametrize(
    "about",
    [{"user": "ann"}, {"item": -1}, {"item": 2.5}, {"user": True}, {"user": [1, 2]}, {"item": 2**31},
     {"user": 1, "history": [1, "x"]}],
)  # fmt: skip
def test_what_is_no_number(about: dict[str, Any]) -> None:
    with pytest.raises(BrokenMember, match="is no number"):
        READER.read(members(**about), None)
    assert READER.finds(members(**about))
