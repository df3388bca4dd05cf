"""Drawings of numbers as SVG: a curve with its interval, and a table of counts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 40, 48
_BLUE = "#2563a8"


class Point(NamedTuple):
    """A point of a curve with its interval; both ends equal the value where there is none."""

    x: float
    y: float
    low: float
    high: float


def curve(points: Sequence[Point], *, title: str, across: str, up: str) -> str:
    """A line through points, with a band for their intervals; the axis up spans at least 0 to 1.

    Args:
        points: From left to right; those that are not finite are left out.
        title: Above it.
        across: Name of the horizontal axis.
        up: Of the vertical axis.
    """
    first, last = points[0].x, max(points[-1].x, points[0].x + 1e-9)
    points = [point for point in points if all(map(math.isfinite, point))]
    top = max([1.0, *(point.high for point in points)])
    bottom = min([0.0, *(point.low for point in points)])

    def place(x: float, y: float) -> tuple[float, float]:
        across_share, up_share = (x - first) / (last - first), (y - bottom) / (top - bottom)
        return (
            _LEFT + across_share * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up_share * (HEIGHT - _TOP - _BOTTOM),
        )

    def path(pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*pair) for pair in pairs))

    lines = []
    for tick in range(6):
        y = bottom + (top - bottom) * tick / 5
        left, height = place(first, y)
        lines.append(
            f"<line x1='{left}' x2='{WIDTH - _RIGHT}' y1='{height:.1f}' y2='{height:.1f}' stroke='#ddd'/>"
            f"<text x='{left - 8}' y='{height + 4:.1f}' text-anchor='end'>{y:.2g}</text>"
        )
    for point in points:
        middle, _ = place(point.x, bottom)
        lines.append(f"<text x='{middle:.1f}' y='{HEIGHT - 28}' text-anchor='middle'>{point.x:.2g}</text>")
    band = [(point.x, point.low) for point in points] + [(point.x, point.high) for point in reversed(points)]
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{_BLUE}'/>"
        for x, y in (place(point.x, point.y) for point in points)
    )
    return _svg(
        f"<text x='{_LEFT}' y='22' font-size='15' font-weight='600'>{html.escape(title)}</text>"
        + "".join(lines)
        + f"<polygon points='{path(band)}' fill='{_BLUE}' opacity='0.15'/>"
        f"<polyline points='{path([(p.x, p.y) for p in points])}' fill='none' stroke='{_BLUE}' "
        f"stroke-width='2'/>{dots}"
        f"<text x='{(WIDTH + _LEFT) / 2}' y='{HEIGHT - 8}' text-anchor='middle'>{html.escape(across)}</text>"
        f"<text transform='translate(16 {HEIGHT / 2}) rotate(-90)' text-anchor='middle'>"
        f"{html.escape(up)}</text>",
        WIDTH,
        HEIGHT,
    )


def counts(rows: Sequence[Sequence[int]], labels: Sequence[str], *, title: str) -> str:
    """A table of how often what stands above a column was said of what stands beside a row.

    Each cell is as dark as its share of the row.

    Args:
        rows: Counts.
        labels: Of rows and columns.
        title: Above it.
    """
    size, side = 52, 24 + 7 * max(map(len, labels))
    parts = [f"<text x='12' y='22' font-size='15' font-weight='600'>{html.escape(title)}</text>"]
    top = 44 + side
    for number, label in enumerate(labels):
        name, middle = html.escape(label), (number + 0.5) * size
        parts.append(f"<text x='{side}' y='{top + middle + 4}' text-anchor='end'>{name}</text>")
        parts.append(f"<text transform='translate({side + 16 + middle} {top - 8}) rotate(-60)'>{name}</text>")
    for i, row in enumerate(rows):
        for j, count in enumerate(row):
            share = count / max(sum(row), 1)
            x, y = side + 12 + j * size, top + i * size
            ink = "#fff" if share > 0.5 else "#222"
            parts.append(
                f"<rect x='{x}' y='{y}' width='{size - 2}' height='{size - 2}' fill='{_BLUE}' "
                f"fill-opacity='{share:.3f}' stroke='#ddd'/>"
                f"<text x='{x + size / 2 - 1}' y='{y + size / 2 + 4}' text-anchor='middle' "
                f"fill='{ink}'>{count}</text>"
            )
    width = max(side + 12 + size * len(labels) + 60, 24 + 9 * len(title))
    return _svg("".join(parts), width, top + size * len(labels) + 12)


def _svg(inside: str, width: int, height: int) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' font-family='system-ui, sans-serif' font-size='12' fill='#222'>"
        f"<rect width='100%' height='100%' fill='#fff'/>{inside}</svg>\n"
    )
