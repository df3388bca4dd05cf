"""`mmlab doctor`'s work: builds what the config says and holds it against what is asked of the cluster.

As heavy as training: `commands/doctor.py` imports it when the command runs.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from mmlab.commands.asked import job_asked
from mmlab.commands.train import Parts, build
from mmlab.data.lanes import Lanes
from mmlab.data.module import ShardData
from mmlab.data.plan import check_room
from mmlab.launch import slurm
from mmlab.launch.checks import (
    Check,
    check_port,
    check_request,
    check_scratch,
    check_slurm,
    check_space,
)
from mmlab.launch.job import JobSpec
from mmlab.launch.nodes import ask_nodes
from mmlab.runs.status import newest_status

BAD = 2
_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}
_ONE_STATE = ("SGD", "RMSprop", "Adagrad", "Lion")
"""Optimizers that keep one number for each that is trained; others are taken for Adam, which keeps two."""


def run(arguments: argparse.Namespace) -> int:
    """Look at everything, print a table; exit status 2 where something is bad.

    Raises:
        ValueError: The command line or the config does not fit.
    """
    spec = job_asked(arguments, arguments.words)
    last = newest_status(spec.run.parent)
    # Built here, where there may be no GPU.
    parts = build(Parts, ["fit", *spec.words, "--trainer.accelerator", "cpu"])
    checks = [*check_request(spec, last), *check_slurm(spec, last), *check_data(parts.datamodule, spec)]
    runs = spec.run.parent.parent
    checks += [check_checkpoints(parts, spec), check_scratch(runs), check_port()]
    if arguments.on_nodes:
        checks += ask_nodes(spec) if slurm.available() else []
    Console().print(_table(checks))
    bad = sum(check.verdict == "bad" for check in checks)
    if bad:
        print(f"{bad} of {len(checks)} would keep this run from working")
    return BAD if bad else 0


def check_data(data: ShardData, spec: JobSpec) -> list[Check]:
    """Whether the samples can be dealt to the ranks and loader workers of the job."""
    asked, workers = spec.resources, data.loading.num_workers
    ranks = asked.nodes * asked.tasks_per_node
    try:
        data.prepare_data()
        samples, order = data.plan("train", ranks=ranks)
        order.check(ranks, workers)
        lanes = getattr(order, "lanes", None)
        if isinstance(lanes, Lanes):
            check_room(samples, lanes, loading=data.loading, nodes=asked.nodes)
        if data.has("val"):
            data.plan("val")[1].check(ranks, workers)
    except ValueError as error:
        return [Check("data", "bad", str(error))]
    count, shards = int(samples.counts.sum()), len(samples.counts)
    cut = "" if not isinstance(lanes, Lanes) else f", {lanes.ranks} x {lanes.groups} lanes"
    stored = f"{count} samples in {shards} shard{'' if shards == 1 else 's'}"
    text = f"{stored}{cut} for {ranks} ranks x {max(1, workers)} readers"
    if count < data.batch_size:
        remedy = f"data.batch_size of at most {count}"
        verdict = Check("data", "bad", f"{text}: fewer than one batch of {data.batch_size}", remedy)
    elif samples.damaged:
        text += f"; {len(samples.damaged)} shards are damaged"
        verdict = Check("data", "warn", text, "mmlab shards check")
    else:
        verdict = Check("data", "ok", text)
    found = [verdict]
    wanted, cpus = workers + 1, asked.cpus_per_task
    if cpus is None or cpus < wanted:
        has = "as many CPUs as the site gives (often 1)" if cpus is None else f"{cpus} CPUs"
        text = f"a rank and its {workers} loader workers share {has}"
        # A rank that reads by itself has its own CPU at least.
        found.append(
            Check("CPUs", "warn", text, f"--cpus-per-task {wanted}")
            if workers > 0
            else Check("CPUs", "ok", text)
        )
    else:
        found.append(Check("CPUs", "ok", f"{cpus} for a rank and its {workers} loader workers"))
    return found


def check_checkpoints(parts: Parts, spec: JobSpec) -> Check:
    """Whether the run directory has room for the checkpoints that are kept, and one that is being written."""
    config = parts.config[parts.subcommand]
    each = checkpoint_bytes(parts)
    top = int(config.checkpoint.save_top_k)
    kept = (1 if top < 0 else top) + (1 if config.checkpoint.save_last else 0) + 1
    what = f"{kept} checkpoints of {each / 1e6:.3g} MB"
    if top < 0:
        what += " (save_top_k -1 keeps all: that many at least)"
    return check_space(spec.run.parent.parent, kept * each, what)


def checkpoint_bytes(parts: Parts) -> int:
    """Bytes of a checkpoint: the weights that it keeps, and what the optimizer keeps of those trained."""
    model, policy = parts.model.model, parts.model.adaptation
    state = model.state_dict()
    weights = sum(state[name].numel() * state[name].element_size() for name in policy.kept(model))
    trained = sum(row.trained for row in policy.describe(model))
    optimizer = parts.config[parts.subcommand].get("model.init_args.optimization.optimizer.class_path", "")
    states = 1 if str(optimizer).rpartition(".")[2] in _ONE_STATE else 2
    return int(weights + states * trained * torch.float32.itemsize)


def _table(checks: list[Check]) -> Table:
    table = Table(show_edge=False)
    for column in ("", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        colour = _COLOURS[check.verdict]
        table.add_row(check.what, f"[{colour}]{check.verdict}[/]", check.found, check.remedy)
    return table
