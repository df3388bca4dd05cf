"""`mmlab runs judge`: how well answers fit what they were said of, by a retrieval run of one's own.

As heavy as training: `commands/runs.py` imports it when the command runs.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
import yaml

from mmlab.commands.answered import Judge, collect, find_split, look_up
from mmlab.commands.shards_check import counted, plain
from mmlab.commands.train import Parts, build
from mmlab.data.shards import ShardSet
from mmlab.data.text import TextReader
from mmlab.metrics.clip_score import summarize
from mmlab.runs.answers import read_answers
from mmlab.runs.checkpoint import find_checkpoint, load_weights, read_weights
from mmlab.tasks.retrieval import RetrievalTask

CONFIG = "config.yaml"
_WIDTH = 22
"""Letters of a column."""
_ROWS = {"answers": "answers", "references": "references", "shuffled": "answers of others"}
_COLUMNS = {"clip_score": "CLIPScore", "ref_clip_score": "RefCLIPScore"}


def run(arguments: argparse.Namespace) -> int:
    """Judge answers; returns the exit status.

    Raises:
        ValueError: The run is of another kind or not finished, the file holds no answers, or none of them
            can be judged.
    """
    answers = read_answers(arguments.answers)
    config = _config(arguments.run_directory)
    checkpoint = find_checkpoint(arguments.run_directory)
    # As the encoders read them: cached features are those of the run's own splits.
    raw = ["--data.loading.features", "null", "--init_from", "null"]
    built = build(Parts, ["test", "--config", str(config), *raw])
    assert isinstance(built.model, RetrievalTask)
    data = built.datamodule
    towers = Judge(built.model, data, built.trainer)
    load_weights(built.model, read_weights(checkpoint))
    if arguments.data is None:
        found = find_split(data, answers.said.keys())
    else:
        shards = ShardSet.find(arguments.data, remote=data.loading.remote)
        found = look_up(", ".join(arguments.data), shards, answers.said.keys())
    fields = towers.text.fields if arguments.references is None else (arguments.references,)
    rows, reasons = collect(towers, found, answers.said, fields)
    left_out = Counter({
        "key of an earlier answer": answers.repeated, "no text": answers.blank,
        "key of no sample": len(answers.said) - found.hits, "key of several samples": found.unclear,
    }) + reasons  # fmt: skip
    if rows is None:
        raise ValueError(
            f"none of {counted(answers.records, 'answer')} can be judged by {plain(found.where)}: "
            f"{_listed(left_out)}; --data names the shards that they are from"
        )
    text, said = towers.text, [answers.said[key] for key in found.places]
    longer = TextReader(text.tokenizer, max_length=text.max_length + 1)
    facts = {
        "checkpoint": str(checkpoint), "samples": found.where, "medium": towers.medium.value,
        "answers": answers.records, "judged": len(rows.group), "groups": len(torch.unique(rows.group)),
        "with_references": len(torch.unique(rows.owner)), "left_out": dict(left_out),
        "cut": sum(len(longer.encode(answer)) > text.max_length for answer in said),
    }  # fmt: skip
    scores = summarize(rows)
    if arguments.json:
        # JSON has no NaN: what could not be measured is null.
        finite = {name: value if isfinite(value) else None for name, value in scores.items()}
        print(json.dumps(facts | finite))
    else:
        print("\n".join(_lines(facts, scores, max_length=text.max_length)))
    return 0


def _config(folder: Path) -> Path:
    """The config of a retrieval run; the model of another is not built to say that it is none."""
    config = folder / CONFIG
    if not config.is_file():
        raise ValueError(f"{folder}: no run directory of `mmlab fit` (it has no {CONFIG})")
    model = yaml.safe_load(config.read_text(encoding="utf-8")).get("model", {})
    kind = locate(model.get("class_path", ""))
    if not (isinstance(kind, type) and issubclass(kind, RetrievalTask)):
        raise ValueError(
            f"{folder} is a run of {model.get('class_path')}: answers are judged by a run of a RetrievalTask"
        )
    return config


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {plain(reason)}" for reason, number in left_out.items())


def _lines(facts: Mapping[str, Any], scores: Mapping[str, float], *, max_length: int) -> Iterator[str]:
    """For people."""
    yield f"by {plain(facts['checkpoint'])}, comparable with what the same run has judged only"
    yield (
        f"{facts['judged']} of {counted(facts['answers'], 'answer')}, by the {facts['medium']} of samples of "
        f"{plain(facts['samples'])} ({counted(facts['groups'], 'group')}, {facts['with_references']} with "
        "references)"
    )
    if facts["left_out"]:
        yield f"left out: {_listed(facts['left_out'])}"
    if facts["cut"] > 0:
        yield f"of {counted(facts['cut'], 'answer')} only the first {max_length} tokens are read"
    columns = [column for column in _COLUMNS if f"answers/{column}" in scores]
    yield " " * _WIDTH + "".join(f"{_COLUMNS[column]:{_WIDTH}}" for column in columns).rstrip()
    for row, title in _ROWS.items():
        cells = [_cell(scores, f"{row}/{column}") for column in columns]
        if any(cells):
            yield (f"{title:{_WIDTH}}" + "".join(f"{cell:{_WIDTH}}" for cell in cells)).rstrip()


def _cell(scores: Mapping[str, float], name: str) -> str:
    """A score with its interval; empty where it was not measured."""
    if name not in scores:
        return ""
    return f"{scores[name]:.3f} ({scores[f'{name}_low']:.3f}-{scores[f'{name}_high']:.3f})"
