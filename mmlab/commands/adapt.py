"""`mmlab adapt`: what becomes of adapted models, and which method to take."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlab.commands.action import ActionParser


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab adapt merge | soup | compare`."""
    parser = verbs.add_parser(
        "adapt",
        help="adapted models: merge into plain weights, average runs, compare methods",
        description="Merges what an adaptation added into plain weights, averages runs of one model, and "
        "compares methods of adaptation.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=ActionParser)
    _add_merge(actions)
    _add_soup(actions)
    _add_compare(actions)


def _add_merge(actions: argparse._SubParsersAction[ActionParser]) -> None:
    merge = actions.add_parser(
        "merge",
        help="fold what was added to a model into plain weights",
        description="Folds LoRA, IA3 and the like into plain weights and checks the outputs before and after "
        "on samples of the run. Writes DIR/model.safetensors with all weights, DIR/config.yaml to use it "
        "with, and each pretrained encoder as a folder of its own format. What no plain weight can stand "
        "for (adapters, prompts) stays as it is, and is named.",
    )
    merge.add_argument("run_directory", type=Path, metavar="RUN", help="a run directory of `mmlab fit`")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    merge.add_argument(
        "--ckpt", type=Path, metavar="FILE", help="a checkpoint of the run; default: its best, or its last"
    )
    merge.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="X",
        help="largest difference that any output may have before and after; %(default)s",
    )  # fmt: skip
    merge.add_argument("--force", action="store_true", help="replace DIR where it exists")
    merge.set_defaults(run=_merge)


def _add_soup(actions: argparse._SubParsersAction[ActionParser]) -> None:
    soup = actions.add_parser(
        "soup",
        help="average the weights of several runs of one model",
        description="Averages what several runs have trained, and measures each of them and the average on "
        "the validation split. The runs must have started from the same weights (one seed_everything) and "
        "may differ in what they saw and how they were trained.",
    )
    soup.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories or checkpoint files in them"
    )
    soup.add_argument(
        "--out", type=Path, required=True, metavar="DIR_OR_FILE",
        help="a folder for config.yaml and model.safetensors, or one FILE.safetensors",
    )  # fmt: skip
    soup.add_argument(
        "--greedy", action="store_true", help="from the best run on, add only what does not lower the score"
    )
    soup.add_argument("--force", action="store_true", help="replace what is there")
    soup.set_defaults(run=_soup)


def _add_compare(actions: argparse._SubParsersAction[ActionParser]) -> None:
    compare = actions.add_parser(
        "compare",
        help="train one config with several methods and print a table",
        usage="mmlab adapt compare --config FILE [--config FILE ...] [--methods M,M,...] [--seeds N,N,...] "
        "[--out DIR] [--key value ...]",
        description="Runs `mmlab fit` for every method and seed, one after the other, and prints a Markdown "
        "table. Configs and keys are those of `mmlab fit`. Runs that have finished are kept: stopped, it "
        "goes on; a run that failed is tried again.",
        allow_abbrev=False,
    )
    compare.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="as for `mmlab fit`; may be repeated"
    )
    compare.add_argument(
        "--methods", type=_names, metavar="M,M,...",
        help="overlays by name (_base/NAME.yaml beside the config's folder) or by file; default: every "
        "method that has one there",
    )  # fmt: skip
    compare.add_argument(
        "--seeds", type=_numbers, default=[1, 2, 3], metavar="N,N,...", help="default: 1,2,3"
    )
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("runs/compare"),
        metavar="DIR",
        help="folder of the runs; %(default)s",
    )
    compare.set_defaults(run=_compare, words=[])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers, such as 1,2,3") from None


def _merge(arguments: argparse.Namespace) -> int:
    # As heavy as training.
    from mmlab.commands import adapt_merge

    return adapt_merge.run(arguments)


def _soup(arguments: argparse.Namespace) -> int:
    # As heavy as training.
    from mmlab.commands import adapt_soup

    return adapt_soup.run(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from mmlab.commands import adapt_compare

    return adapt_compare.run(arguments)
