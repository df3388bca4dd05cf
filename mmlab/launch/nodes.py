"""What the nodes of a cluster have, told by themselves: a small job that each task of answers a line of."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from typing import Any

from mmlab.launch import slurm
from mmlab.launch.checks import Check, Verdict
from mmlab.launch.job import JobSpec, ready_lines

_SKEW = 2.0
"""Seconds by which clocks may differ: files of one rank look new to another by them."""
PROBE = """
import importlib.metadata, json, os, pathlib, platform, subprocess, sys, time
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
folder = pathlib.Path(sys.argv[1])
while not folder.exists():
    folder = folder.parent
try:
    seen = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
except (OSError, subprocess.TimeoutExpired):
    seen = ""
scratch = os.environ.get("TMPDIR", "/tmp")
print("MMLAB " + json.dumps({
    "node": platform.node(), "time": time.time(), "python": platform.python_version(),
    "torch": version("torch"), "mmlab": version("mmlab"), "folder": str(folder),
    "writable": os.access(folder, os.W_OK), "scratch": os.access(scratch, os.W_OK),
    "gpus": sum(line.startswith("GPU ") for line in seen.splitlines()),
}))
"""


def ask_nodes(spec: JobSpec, *, seconds: float = 300) -> list[Check]:
    """Run the probe on as many nodes as the job asks for, through the queue, and compare.

    Args:
        spec: The job; its environment is made ready as its script does.
        seconds: To wait for the nodes.
    """
    site, asked = spec.profile, spec.resources
    box = site.container
    options = [
        f"--nodes={asked.nodes}", "--ntasks-per-node=1", "--time=5", "--job-name=mmlab-doctor",
        f"--immediate={int(seconds)}", *(word for option in site.options for word in shlex.split(option)),
    ]  # fmt: skip
    for name in ("partition", "account", "qos", "constraint"):
        if (value := getattr(site, name)) is not None:
            options.append(f"--{name}={value}")
    if asked.gpus_per_node > 0:
        options.append(f"--gpus-per-node={asked.gpus_per_node}")
    inside: list[str] = []
    if box is not None and box.runtime == "pyxis":
        options += [f"--container-image={box.image}", *box.options]
    elif box is not None:
        inside = [
            "apptainer",
            "exec",
            *(["--nv"] if asked.gpus_per_node > 0 else []),
            *box.options,
            box.image,
        ]
    probe = shlex.join([*inside, spec.python, "-c", PROBE, str(spec.run.parent.parent)])
    script = "\n".join(["set -e", *ready_lines(spec), probe])
    began = time.time()
    try:
        said = slurm.call("srun", *options, "bash", "-c", script, seconds=seconds + 60)
    except slurm.SlurmError as error:
        return [Check("nodes", "bad", str(error)[:300], "try it by hand: srun --pty bash")]
    found = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("MMLAB ")]
    return compare_nodes(spec, found, began=began, ended=time.time())


def compare_nodes(
    spec: JobSpec, answers: Sequence[dict[str, Any]], *, began: float, ended: float
) -> list[Check]:
    """Hold what nodes have told against each other.

    Args:
        spec: The job.
        answers: Of the probe.
        began: When it was started, by the clock of this machine.
        ended: When it was over.
    """
    asked = spec.resources
    if len(answers) < asked.nodes:
        return [Check("nodes", "bad", f"{len(answers)} of {asked.nodes} nodes have answered")]
    found = []
    for what in ("python", "torch", "mmlab"):
        values = {str(answer["node"]): answer[what] for answer in answers}
        different = sorted(set(map(str, values.values())))
        if None in values.values() and what != "mmlab":
            lacking = next(node for node, value in values.items() if value is None)
            found.append(Check(f"{what} on nodes", "bad", f"none on {lacking}", "venv, modules or container"))
        elif len(different) > 1:
            text = ", ".join(f"{node}: {value}" for node, value in values.items())
            found.append(Check(f"{what} on nodes", "bad", text, "the same environment on all nodes"))
        else:
            text = "not installed, from the frozen code" if different == ["None"] else different[0]
            found.append(Check(f"{what} on nodes", "ok", text))
    closed = [answer["node"] for answer in answers if not answer["writable"]]
    folder = str(answers[0]["folder"])
    elsewhere = len({answer["folder"] for answer in answers}) > 1
    if closed or elsewhere:
        text = f"not writable on {closed[0]}" if closed else "not the same on all nodes"
        found.append(Check("runs on nodes", "bad", f"{folder}: {text}", "a file system that all nodes share"))
    else:
        found.append(Check("runs on nodes", "ok", f"{folder} can be written to"))
    lacking_scratch = [answer["node"] for answer in answers if not answer["scratch"]]
    if lacking_scratch:
        found.append(Check("$TMPDIR on nodes", "bad", f"not writable on {lacking_scratch[0]}", "set TMPDIR"))
    fewest = min(int(answer["gpus"]) for answer in answers)
    if asked.gpus_per_node > 0:
        verdict: Verdict = "ok" if fewest >= asked.gpus_per_node else "bad"
        remedy = "" if verdict == "ok" else "drivers, or a container without --nv"
        found.append(
            Check("GPUs on nodes", verdict, f"{fewest} seen, {asked.gpus_per_node} asked for", remedy)
        )
    # A node's clock lies between start and end by ours, if they agree.
    skew = max(max(began - float(a["time"]), float(a["time"]) - ended, 0.0) for a in answers)
    agreed: Verdict = "ok" if skew < _SKEW else "warn"
    text = (
        f"within {max(skew, ended - began):.1f} s" if skew == 0 else f"{skew:.1f} s away from this machine's"
    )
    found.append(Check("clocks", agreed, text, "" if agreed == "ok" else "a time service (chrony)"))
    return found
