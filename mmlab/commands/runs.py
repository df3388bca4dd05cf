"""`mmlab runs`: what a run has left behind."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab runs consolidate | judge`."""
    parser = verbs.add_parser(
        "runs", help="what runs have left behind: consolidate checkpoints, judge answers"
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    consolidate = actions.add_parser(
        "consolidate",
        help="one safetensors file from a checkpoint, also one that several ranks wrote",
        description="Write the weights of a checkpoint into one safetensors file: what was trained, or all, "
        "as the adaptation says. Its header names what they were trained beside. `mmlab test --ckpt_path "
        "FILE` takes it.",
    )
    consolidate.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint (file or folder), or a run directory: its best checkpoint, else its newest",
    )
    consolidate.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    consolidate.set_defaults(run=_consolidate)
    _add_judge(actions)


def _add_judge(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    judge = actions.add_parser(
        "judge",
        help="score answers by a retrieval run: CLIPScore, with and without references",
        description="Scores what a language model has said of pictures or sounds by a retrieval run that has "
        "aligned these with text: CLIPScore, 2.5 max(cosine, 0), with its 95 % interval over groups. Beside "
        "it stand the scores of references and of answers to other samples, and RefCLIPScore. Samples are "
        "those of the run's own split that has the keys, read as the run reads them. Compare only what the "
        "same run has judged.",
    )
    judge.add_argument(
        "run_directory",
        type=Path,
        metavar="RUN",
        help="run directory of a retrieval run; its best checkpoint",
    )
    judge.add_argument(
        "answers", type=Path, metavar="ANSWERS",
        help="predictions/answers.jsonl (or .json) of `mmlab predict`: records with key and answer",
    )  # fmt: skip
    judge.add_argument(
        "--references", metavar="FIELD", help="such as json.captions.en; default: the texts that RUN reads"
    )
    judge.add_argument(
        "--data", action="append", metavar="SHARDS",
        help="where the samples are, if not in a split of RUN; may be repeated",
    )  # fmt: skip
    judge.add_argument("--json", action="store_true", help="one line of JSON")
    judge.set_defaults(run=_judge)


def _judge(arguments: argparse.Namespace) -> int:
    # As heavy as training.
    from mmlab.commands import runs_judge

    return runs_judge.run(arguments)


def _consolidate(arguments: argparse.Namespace) -> int:
    from mmlab.parallel.consolidate import consolidate

    done = consolidate(arguments.checkpoint, arguments.out)
    print(
        f"{arguments.out}: {done.tensors} tensors, {done.size / 1e6:.1f} MB, from {done.checkpoint} (step "
        f"{done.step})"
    )
    return 0
