"""Job arrays as Slurm writes them: `0-5`, `1,3,7`, `0-10:2`, each with `%2` for two at a time."""

from __future__ import annotations

import re

MOST = 100_000
"""Tasks of an array; more is a slip."""


def array_tasks(text: str) -> list[int]:
    """Numbers of an array's tasks, in order.

    Raises:
        ValueError: It is no array, or has no tasks, or more than :data:`MOST`.
    """
    body, percent, limit = text.partition("%")
    tasks: set[int] = set()
    if percent and (re.fullmatch(r"\d+", limit, re.ASCII) is None or int(limit) == 0):
        raise ValueError(f"--array {text}: after % comes how many tasks run at once, such as 0-5%2")
    for part in body.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part, re.ASCII)
        if match is None:
            raise ValueError(f"--array {text} is no array: write such as 0-5, 1,3,7 or 0-5%2 (two at a time)")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        step = 1 if match[3] is None else int(match[3])
        if last < first or step == 0:
            raise ValueError(f"--array {text}: {part} has no tasks: write the smaller number first")
        if (last - first) // step >= MOST:
            raise ValueError(f"--array {text}: {part} has more than {MOST} tasks")
        tasks.update(range(first, last + 1, step))
    return sorted(tasks)
