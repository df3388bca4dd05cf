"""`mmlab data`: public data sets, from their released format to shards."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from mmlab.sources import catalog


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab data list | prepare`."""
    parser = verbs.add_parser(
        "data",
        help="public data sets into shards: list, prepare",
        description="Public data sets in their released formats, written as WebDataset shards with an index.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the data sets that mmlab knows")
    listing.set_defaults(run=_list)
    prepare = actions.add_parser(
        "prepare", help="write the shards of one; nothing to do where they are complete"
    )
    prepare.add_argument(
        "name", choices=sorted(catalog.SOURCES), metavar="NAME", help="see `mmlab data list`"
    )
    prepare.add_argument(
        "--from", dest="from_file", type=Path, metavar="PATH", help="the released file or folder, if at hand"
    )
    prepare.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: the cache")
    prepare.set_defaults(run=_prepare)


def _list(arguments: argparse.Namespace) -> int:
    width = max(map(len, catalog.SOURCES))
    for name in sorted(catalog.SOURCES):
        about = inspect.getdoc(catalog.source_class(name)) or ""
        print(f"{name:{width}}  {about.splitlines()[0]}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    source = catalog.source_class(arguments.name)
    given = {
        key: getattr(arguments, key) for key in ("from_file", "out") if getattr(arguments, key) is not None
    }
    taken = inspect.signature(source).parameters
    for key in given:
        if key not in taken:
            option = {"from_file": "--from", "out": "--out"}[key]
            raise ValueError(f"data set {arguments.name!r} takes no {option}: it is made on this machine")
    print(source(**given).prepare())
    return 0
