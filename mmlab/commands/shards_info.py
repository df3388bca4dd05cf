"""`mmlab shards info`: what shards hold, and a sheet of some of it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from itertools import islice

from mmlab.commands.shards import LOOKED_AT
from mmlab.commands.shards_check import counted, plain
from mmlab.data.card import make_card
from mmlab.data.members import kind_of
from mmlab.data.shards import ShardSet
from mmlab.data.sheet import check_sheet, write_sheet
from mmlab.data.survey import Spread, Survey, survey

_LABELS = 10
"""Labels listed for people."""


def run(arguments: argparse.Namespace) -> int:
    """Describe the shards that the command names; returns the exit status."""
    if arguments.samples < 1:
        raise ValueError(f"--samples {arguments.samples}: a sheet shows at least 1")
    if arguments.sheet is not None:
        check_sheet(arguments.sheet)
    shards = ShardSet.find(arguments.paths)
    found = survey(
        shards, looked_at=LOOKED_AT, shown=arguments.samples, seed=arguments.seed, label=arguments.label
    )
    if arguments.json:
        print(json.dumps(_values(shards, found)))
    else:
        print("\n".join(_lines(shards, found)))
    if arguments.sheet is not None:
        cards = [make_card(raw, label=found.label) for raw in found.samples]
        first = shards.paths[0]
        title = str(first) if len(shards) == 1 else f"{first} and {counted(len(shards) - 1, 'shard')} more"
        facts = [
            f"{_total(shards)}; {counted(len(cards), 'random sample')}, seed {arguments.seed}",
            ", ".join(f"{name} {count}" for name, count in shards.extensions.items()),
        ]
        write_sheet(arguments.sheet, cards, title=plain(title), facts=[plain(fact) for fact in facts])
        if not arguments.json:
            print(f"sheet: {arguments.sheet}")
    return 0


def _total(shards: ShardSet) -> str:
    samples, size = int(shards.counts.sum()), sum(info.bytes for info in shards.infos)
    return f"{counted(len(shards), 'shard')}, {counted(samples, 'sample')}, {size / 1e6:.1f} MB"


def _values(shards: ShardSet, found: Survey) -> dict[str, object]:
    values = asdict(found)
    del values["samples"]
    for name, value in values.items():
        if isinstance(value, Spread):
            values[name] = value._asdict()
    return {
        "shards": len(shards),
        "samples": int(shards.counts.sum()),
        "bytes": sum(info.bytes for info in shards.infos),
        "digest": shards.digest,
        "damaged": list(shards.damaged),
        "extensions": shards.extensions,
        **values,
    }


def _lines(shards: ShardSet, found: Survey) -> list[str]:
    """For people."""
    lines = [_total(shards)]
    lines += [f"  damaged: {plain(name)}" for name in shards.damaged]
    lines += [
        f"  {plain(name)} ({kind_of(name)}): {counted(count, 'sample')}"
        for name, count in shards.extensions.items()
    ]
    share = ", ".join(f"{name} {count}" for name, count in found.modalities.items())
    lines.append(f"of {counted(found.looked_at, 'sample')} looked at: {share or 'no modality known'}")
    if found.broken > 0:
        lines.append(f"  {found.broken} with something broken: see `mmlab shards check`")
    for what, unit, spread in (
        ("picture width", "pixels", found.width),
        ("picture height", "pixels", found.height),
        ("sound length", "s", found.seconds),
        ("caption length", "words", found.words),
    ):
        if spread is not None:
            lines.append(
                f"  {what}: {spread.least:g} to {spread.most:g} {unit}, median {spread.median:g}, 90 % from "
                f"{spread.p5:g} to {spread.p95:g}"
            )
    if found.rates:
        rates = ", ".join(f"{rate} Hz ({count})" for rate, count in found.rates.items())
        lines.append(f"  sampling rates: {rates}")
    if found.label is not None:
        shown = ", ".join(f"{plain(name)} ({n})" for name, n in islice(found.labels.items(), _LABELS))
        more = f", and {len(found.labels) - _LABELS} more" if len(found.labels) > _LABELS else ""
        lines.append(f"  {counted(len(found.labels), 'label')} in {plain(found.label)}: {shown}{more}")
    return lines
