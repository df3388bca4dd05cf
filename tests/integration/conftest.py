from __future__ import annotations

from collections.abc import Iterator

import pytest
from command_processes import Shell


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A folder to run commands in, one for the tests of a file."""
    shell = Shell(tmp_path_factory.mktemp("shell"))
    yield shell
    shell.close()
