"""`mmlab shards`: look at tars and their index."""

from __future__ import annotations

import argparse

from mmlab.data.shards import ShardSet


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab shards index | info`."""
    parser = verbs.add_parser(
        "shards",
        help="WebDataset tars: index, check, info",
        description="Look at WebDataset tars. PATHS are files, patterns ('train-*.tar') or ranges "
        "('train-{000000..000099}.tar').",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, purpose in (
        ("index", _index, "write the index of shards that have none, beside them"),
        ("info", _info, "count samples, bytes and members"),
    ):
        action = actions.add_parser(name, help=purpose, description=purpose)
        action.add_argument("paths", nargs="+", metavar="PATHS")
        action.set_defaults(run=run)


def _index(arguments: argparse.Namespace) -> int:
    shards = ShardSet.find(arguments.paths)
    print(f"{len(shards)} shards, {int(shards.counts.sum())} samples, digest {shards.digest}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    shards = ShardSet.find(arguments.paths)
    for path, info in zip(shards.paths, shards.infos, strict=True):
        print(f"{path}: {info.samples} samples, {path.stat().st_size / 1e6:.1f} MB")
    print(f"{len(shards)} shards, {int(shards.counts.sum())} samples")
    for extension, count in shards.extensions.items():
        print(f"  {extension}: {count}")
    return 0
