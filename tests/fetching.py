"""Real parts in tests: fetched once a machine; without a network their tests are skipped, but never in CI."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import pytest

from mmlab.assets.fetch import FetchError, WrongFileError

_Part = TypeVar("_Part")


def fetched(fetch: Callable[[], _Part]) -> _Part:
    """What a call fetches. With `MMLAB_TEST_PARTS=required`, what cannot be fetched fails the test."""
    try:
        return fetch()
    except WrongFileError:
        raise
    except FetchError as error:
        if os.environ.get("MMLAB_TEST_PARTS") == "required":
            raise
        pytest.skip(str(error))
