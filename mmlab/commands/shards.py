"""`mmlab shards`: look at WebDataset tars, and find what is broken in them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlab.commands.action import ActionParser

LOOKED_AT = 1_000
"""Samples that `info` looks into."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab shards index | info | check | order`."""
    parser = verbs.add_parser(
        "shards",
        help="WebDataset tars: index, info, check, order",
        description="Look at WebDataset tars. PATHS are files, patterns ('train-*.tar') or ranges "
        "('train-{000000..000099}.tar').",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=ActionParser)
    _add_index(actions)
    _add_info(actions)
    _add_check(actions)
    _add_order(actions)


_Actions = argparse._SubParsersAction


def _add_index(actions: _Actions[ActionParser]) -> None:
    purpose = "write the index of shards that have none, beside them"
    action = actions.add_parser("index", help=purpose, description=purpose)
    action.add_argument("paths", nargs="+", metavar="PATHS")
    action.set_defaults(run=_index)


# What follows imports numpy and decoders, for which no other verb is to wait.
def _index(arguments: argparse.Namespace) -> int:
    from mmlab.data.shards import ShardSet

    shards = ShardSet.find(arguments.paths)
    print(f"{len(shards)} shards, {int(shards.counts.sum())} samples, digest {shards.digest}")
    return 0


def _add_info(actions: _Actions[ActionParser]) -> None:
    action = actions.add_parser(
        "info",
        help="count samples, bytes and modalities; show some of them",
        description="Counts samples, bytes and modalities. Labels, picture sizes and sound lengths are those "
        f"of {LOOKED_AT} random samples, or of all where there are fewer.",
    )
    action.add_argument("paths", nargs="+", metavar="PATHS")
    action.add_argument("--json", action="store_true", help="one line of JSON")
    action.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="write random samples to a page (.html) or a picture (.png)",
    )
    action.add_argument("--samples", type=int, default=24, metavar="N", help="on the sheet; default: 24")
    action.add_argument(
        "--seed", type=int, default=0, metavar="N", help="which samples are looked at; default: 0"
    )
    action.add_argument(
        "--label",
        metavar="FIELD",
        help="where labels are, such as json.class; default: the member cls, or json.label",
    )
    action.set_defaults(run=_info)


def _add_check(actions: _Actions[ActionParser]) -> None:
    action = actions.add_parser(
        "check",
        help="read and decode every member; exit status 1 if anything is wrong",
        description="Reads and decodes every member. Wrong are: shards that are cut off, members that cannot "
        "be read, keys that repeat in a split, pictures and sounds that are in two splits (pictures also if "
        "scaled or compressed again). Worth knowing, but not wrong: what repeats within a split, captions "
        "that two splits share, samples that lack what others have, unsorted keys. What was found in a shard "
        "is kept in the cache until the shard changes: an interrupted check goes on.",
    )
    action.add_argument("paths", nargs="+", metavar="PATHS")
    action.add_argument(
        "--json", action="store_true", help="one line of JSON for each shard, and one for all of them"
    )
    action.add_argument("--jobs", type=int, metavar="N", help="processes that read; default: the cores")
    action.add_argument(
        "--split",
        action="append",
        metavar="NAME=PATTERN",
        help="which shards are which split, several times; default: by the name before the number, "
        "val-000000.tar",
    )
    action.add_argument("--fresh", action="store_true", help="read also what was checked before")
    action.set_defaults(run=_check)


def _add_order(actions: _Actions[ActionParser]) -> None:
    action = actions.add_parser(
        "order",
        help="print which samples each rank gets at each step of training",
        usage="mmlab shards order --config FILE [--config FILE ...] [--key value ...] --steps A:B "
        "[--ranks R] [--workers W] [--json]",
        description="Prints which samples each rank gets at each step of training. Configs and keys are "
        "those of `mmlab fit`; the data part of them is built, the model is not. The batches, over all "
        "ranks, are the same for every number of ranks and workers.",
        allow_abbrev=False,
    )
    action.add_argument(
        "--steps", required=True, metavar="A:B", help="steps from A up to but without B, from 0; or one step"
    )
    action.add_argument("--ranks", type=int, default=1, metavar="R", help="processes that train; default: 1")
    action.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help="loader processes of each rank; default: the config's data.loading.num_workers",
    )
    action.add_argument(
        "--json", action="store_true", help='one line a step: {"step": 100, "ranks": [[key, ...], ...]}'
    )
    action.set_defaults(run=_order, words=[])


def _info(arguments: argparse.Namespace) -> int:
    from mmlab.commands import shards_info

    return shards_info.run(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from mmlab.commands import shards_check

    return shards_check.run(arguments)


def _order(arguments: argparse.Namespace) -> int:
    # Configs name classes that import torch and Lightning; the other actions need neither.
    from mmlab.commands import shards_order

    return shards_order.run(arguments)
