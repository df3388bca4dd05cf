"""Tables for people: test results beside the untrained model and chance, and what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.table import Table

CHANCE = "chance_"
"""A metric `chance_x` is what `x` would be by guessing."""
_TITLES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "mrr": "MRR", "median_rank": "median rank"}


def results_table(
    results: Mapping[str, float], untrained: Mapping[str, float], *, measured: str = "trained"
) -> Table:
    """Arrange flat results.

    Metrics named `stage/row/column` whose chance level is known fill a table with a line each for the
    trained model, the untrained one and chance; `stage/row/column@source` fill rows of their source. The
    other metrics follow one by one.

    Args:
        results: Flat name to value, as `metrics.json` holds them.
        untrained: The same measured before training; may be empty.
        measured: What the results are called.
    """
    rows: dict[_Row, list[str]] = {}
    for name in results:
        row, column = _split(name)
        if row.name(CHANCE + column) in results:
            rows.setdefault(row, []).append(column)
    columns = list(dict.fromkeys(column for found in rows.values() for column in found))
    table = Table(title="results", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(_TITLES.get(column, column), justify="right")
    for row in rows:
        lines = {measured: results}
        if untrained:
            lines["untrained"] = untrained
        lines["chance"] = results
        for label, values in lines.items():
            prefix = CHANCE if label == "chance" else ""
            cells = [_cell(values, row.name(prefix + column), column) for column in columns]
            if any(cells):
                title = row.title if label == measured else ""
                table.add_row(title, label, *cells, end_section=label == "chance")
    for name in results:
        if _split(name)[0] not in rows and not _is_bound(name, results):
            text = _cell(results, name, name)
            table.add_row(name, *(["", text, *[""] * (len(columns) - 1)] if columns else [text]))
    return table


class _Row(NamedTuple):
    """What stands in one line of the table."""

    path: str
    """`stage/row`."""
    source: str
    """Empty: all sources together."""

    def name(self, column: str) -> str:
        """The metric in a column."""
        return f"{self.path}/{column}" + (f"@{self.source}" if self.source else "")

    @property
    def title(self) -> str:
        """For people."""
        row = self.path.split("/", 1)[-1].replace("_", " ")
        return f"{self.source}: {row}" if self.source else row


def _split(name: str) -> tuple[_Row, str]:
    """Row and column of a metric."""
    path, _, source = name.partition("@")
    row, _, column = path.rpartition("/")
    return _Row(row, source), column


def _cell(values: Mapping[str, float], name: str, kind: str) -> str:
    """A value, with its interval where that is known; `kind` says how it is written."""
    text = format_value(kind, values.get(name))
    low, high = (values.get(_bound(name, end)) for end in ("low", "high"))
    if low is None or high is None:
        return text
    if text.endswith("%"):
        return f"{text} ({100 * low:.0f}-{100 * high:.0f})"
    return f"{text} ({format_value(kind, low)}-{format_value(kind, high)})"


def _bound(name: str, end: str) -> str:
    """The metric that is an end of a metric's interval."""
    metric, at, source = name.partition("@")
    return f"{metric}_{end}{at}{source}"


def _is_bound(name: str, values: Mapping[str, float]) -> bool:
    """Whether a metric is an end of the interval of another."""
    metric, at, source = name.partition("@")
    return metric.endswith(("_low", "_high")) and f"{metric.rpartition('_')[0]}{at}{source}" in values


def format_value(name: str, value: float | None) -> str:
    """Shares as percent, ranks and counts as they are."""
    if value is None:
        return ""
    is_share = name.startswith("r") or "mean_recall" in name
    if is_share and 0 <= value <= 1:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if 0 <= value < 1 else f"{value:.1f}"


def trained_table(rows: Iterable[tuple[str, str, int, int]]) -> Table:
    """What is trained: part, method, trained parameters, all parameters."""
    table = Table(title="what is trained", title_justify="left")
    for column in ("part", "method", "trained", "parameters"):
        table.add_column(column, justify="right" if column in ("trained", "parameters") else "left")
    for part, method, trained, total in rows:
        table.add_row(part, method, f"{trained:,}", f"{total:,}")
    return table
