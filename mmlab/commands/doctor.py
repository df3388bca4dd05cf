"""`mmlab doctor`: whether a run will work on the cluster, before it waits in the queue."""

from __future__ import annotations

import argparse

from mmlab.commands.asked import add_resources


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mmlab doctor`."""
    parser = verbs.add_parser(
        "doctor",
        help="check a run before it waits in the queue: data, devices, space, walltime, nodes",
        usage="mmlab doctor --config FILE [--config FILE ...] [--key value ...] --time TIME [--nodes N] "
        "[--gpus-per-node N] [--profile FILE] [--on-nodes]",
        description="Builds what the config says, without training, and holds it against what is asked of "
        "the cluster. Exit status 2 where something is bad.",
        allow_abbrev=False,
    )
    add_resources(parser)
    parser.add_argument(
        "--on-nodes", action="store_true",
        help="also start a small job on as many nodes, and compare what they have; waits in the queue",
    )  # fmt: skip
    parser.set_defaults(run=_run, words=[])


def _run(arguments: argparse.Namespace) -> int:
    # As heavy as training.
    from mmlab.commands import doctor_checks

    return doctor_checks.run(arguments)
