"""The public data sets that `mmlab data` knows by name."""

from __future__ import annotations

from importlib import import_module

from mmlab.data.source import Source

SOURCES = {
    "generated": "mmlab.sources.generated.Generated",
    "stamps": "mmlab.sources.stamps.Stamps",
}
"""Import path of each source."""


def source_class(name: str) -> type[Source]:
    """Import a source; its docstring says what it is.

    Raises:
        ValueError: There is no such source.
    """
    if name not in SOURCES:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(SOURCES)}")
    module, _, attribute = SOURCES[name].rpartition(".")
    found: type[Source] = getattr(import_module(module), attribute)
    return found
