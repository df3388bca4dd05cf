"""`mmlab data`: public data sets, from their released format to shards."""

from __future__ import annotations

import argparse
import inspect
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmlab.commands.action import ActionParser
from mmlab.data.source import Source
from mmlab.sources import catalog

_PLACES = {"from_file": "--from", "out": "--out"}
"""Where a data set is read from and written to: its settings, and the options that stand for them."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab data list | prepare | features`."""
    parser = verbs.add_parser(
        "data",
        help="public data sets into shards, and features of shards: list, prepare, features",
        description="Public data sets in their released formats, written as WebDataset shards with an index; "
        "and what a config's frozen encoders make of shards.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=ActionParser)
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
    prepare.epilog = (
        "Settings of the data set follow as --key value (--val 500 --max_side 256): those that stand below "
        "data.source.init_args in a config; lists as '[en, fr]'. A key that it does not have shows which "
        "there are."
    )
    prepare.set_defaults(run=_prepare, words=[])
    _add_features(actions)


def _add_features(actions: argparse._SubParsersAction[ActionParser]) -> None:
    purpose = "keep what a config's frozen encoders give, so that training takes seconds"
    features = actions.add_parser(
        "features",
        help=purpose,
        usage="mmlab data features --config FILE [--config FILE ...] [--key value ...] [--out DIR] "
        "[--splits SPLIT ...] [--variants K] [--precision float16|float32]",
        description="Runs the frozen encoders of a config over its shards and keeps their tokens. Configs "
        "and keys are those of `mmlab fit`. What was stopped goes on; what changed is made anew.",
        allow_abbrev=False,
    )
    features.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="as for `mmlab fit`; may be repeated"
    )
    features.add_argument(
        "--out", type=Path, metavar="DIR", help="default: data.loading.features of the config, else the cache"
    )
    features.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "val", "test", "predict"),
        metavar="SPLIT",
        help="default: train, val and test, as far as they exist",
    )
    features.add_argument(
        "--variants", type=int, default=0, metavar="K",
        help="augmented variants of each training sample, of which training draws one; default: none, as in "
        "evaluation",
    )  # fmt: skip
    features.add_argument(
        "--precision", choices=("float16", "float32"), default="float16", help="of what is kept; %(default)s"
    )
    features.set_defaults(run=_features, words=[])


def _features(arguments: argparse.Namespace) -> int:
    # As heavy as training.
    from mmlab.commands import features

    return features.run(arguments)


def _list(arguments: argparse.Namespace) -> int:
    width = max(map(len, catalog.SOURCES))
    for name in sorted(catalog.SOURCES):
        about = inspect.getdoc(catalog.source_class(name)) or ""
        print(f"{name:{width}}  {about.splitlines()[0]}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    source = catalog.source_class(arguments.name)
    given = {key: value for key in _PLACES if (value := getattr(arguments, key)) is not None}
    taken = inspect.signature(source).parameters
    for key in given:
        if key not in taken:
            raise ValueError(
                f"data set {arguments.name!r} takes no {_PLACES[key]}: it is made on this machine"
            )
    print(source(**given, **_settings(source, arguments.name, arguments.words)).prepare())
    return 0


def _settings(source: type[Source], name: str, words: Sequence[str]) -> dict[str, Any]:
    """Settings of a data set from the command line, as a config has them.

    Raises:
        ValueError: It has no such setting, or the value is none.
    """
    from jsonargparse import ArgumentParser  # other actions need not wait for it

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    places = {key: option for key, option in _PLACES.items() if key in inspect.signature(source).parameters}
    known = parser.add_class_arguments(source, skip=set(places))
    try:
        return dict(vars(parser.parse_args(list(words))))
    except ArgumentError as error:
        options = ", ".join([*(f"--{key}" for key in known), *places.values()])
        raise ValueError(f"{error}; settings of {name}: {options}") from error
