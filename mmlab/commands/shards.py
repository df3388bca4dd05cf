"""`mmlab shards`: look at WebDataset tars, and find what is broken in them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from mmlab.data.check import ShardReport, check_shards
from mmlab.data.shards import ShardSet, find_shards


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab shards index | info | check`."""
    parser = verbs.add_parser(
        "shards",
        help="WebDataset tars: index, info, check",
        description="Look at WebDataset tars. PATHS are files, patterns ('train-*.tar') or ranges "
        "('train-{000000..000099}.tar').",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, purpose in (
        ("index", _index, "write the index of shards that have none, beside them"),
        ("info", _info, "count samples, bytes and members"),
        ("check", _check, "read and decode every member; exit status 1 if anything is wrong"),
    ):
        action = actions.add_parser(name, help=purpose, description=purpose)
        action.add_argument("paths", nargs="+", metavar="PATHS")
        if name == "check":
            action.add_argument("--json", action="store_true", help="one line of JSON for each shard")
        action.set_defaults(run=run)


def _index(arguments: argparse.Namespace) -> int:
    shards = ShardSet.find(arguments.paths)
    print(f"{len(shards)} shards, {int(shards.counts.sum())} samples, digest {shards.digest}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    shards = ShardSet.find(arguments.paths)
    for path, info in zip(shards.paths, shards.infos, strict=True):
        print(f"{path}: {info.samples} samples, {info.bytes / 1e6:.1f} MB")
    print(f"{len(shards)} shards, {int(shards.counts.sum())} samples")
    for extension, count in shards.extensions.items():
        print(f"  {extension}: {count}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    fine = True
    paths = find_shards(arguments.paths)
    for number, report in enumerate(check_shards(paths), start=1):
        fine = fine and report.fine
        if arguments.json:
            print(json.dumps({**asdict(report), "path": str(report.path), "fine": report.fine}))
        else:
            print("\n".join(_describe(report)))
        print(f"checked {number} of {len(paths)} shards", file=sys.stderr)
    return 0 if fine else 1


def _describe(report: ShardReport) -> list[str]:
    """Lines for people: what is wrong first, then what samples lack, which may be meant."""
    state = "fine" if report.fine else "NOT FINE"
    lines = [f"{report.path}: {state}, {report.samples} samples, {report.bytes / 1e6:.1f} MB"]
    if report.damage is not None:
        lines.append(f"  damaged: {report.damage}")
    if report.duplicates > 0:
        lines.append(f"  {report.duplicates} samples repeat a key")
    lines += [f"  {count} x {reason}" for reason, count in report.broken.items()]
    lines += [f"  {count} samples have no {name}" for name, count in report.lacking.items()]
    return lines
