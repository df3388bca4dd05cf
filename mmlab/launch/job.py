"""The batch script of a job: a pure function of what is to run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from mmlab.launch.profile import Profile

TASK = "%a"
"""In the words of an array's job: the number of the task."""
SPECIAL_NAMES = ("bash", "interactive")
"""Lightning takes jobs of these names for a person's shell, and every rank for a run of its own."""
_FREE_PORT = 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'


@dataclass(frozen=True)
class Resources:
    """What a job asks of the cluster."""

    nodes: int = 1
    tasks_per_node: int = 1
    """Ranks on each node: one for each device."""
    gpus_per_node: int = 0
    """0: the ranks compute on CPUs."""
    cpus_per_task: int | None = None
    """Loader workers and threads of each rank; None: as the cluster has it, usually 1."""
    mem: str | None = None
    """Of each node, such as `64G`."""
    time: str = "1:00:00"


@dataclass(frozen=True)
class JobSpec:
    """All that the text of a batch script depends on."""

    name: str
    run: Path
    """The run directory; of an array, the tasks' directories are this with `-TASK` behind."""
    directory: Path
    """Where the job runs: relative paths on its command line begin here."""
    words: tuple[str, ...]
    """For `mmlab fit`."""
    resources: Resources
    profile: Profile
    python: str
    """The Python that runs mmlab."""
    code: tuple[Path, ...] = ()
    """Folders that Python looks into first."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables of every rank, before those of the profile."""
    array: str | None = None
    dependency: str | None = None
    signal_seconds: int = 120
    """USR1 comes so long before the walltime ends."""
    requeues: int = 3
    """Failures (hangs, kills, errors) after which the job is queued again."""

    def __post_init__(self) -> None:
        """Raise ValueError where no script could say this."""
        check_name(self.name)
        for what in (self.run, self.directory, *self.code):
            if "\n" in str(what):
                raise ValueError(f"{str(what)!r}: a path with a line break cannot stand in a batch script")
        for folder in self.code:
            if ":" in str(folder):
                raise ValueError(f"{folder}: Python's search path cannot hold a folder with ':' in it")

    @property
    def log(self) -> str:
        """The file that the job writes to, as Slurm's pattern."""
        # In Slurm's patterns % begins a number, and a backslash takes all of them away.
        folder = str(self.run).replace("%", "%%")
        return f"{folder}/slurm-{'%A_%a' if self.array is not None else '%j'}.log"


def check_name(name: str) -> None:
    """Raise ValueError for a name that no job should have."""
    if name in SPECIAL_NAMES:
        raise ValueError(
            f"a job named {name!r} is taken for a person's shell, and its ranks would not find each other: "
            "choose another --name"
        )
    if re.fullmatch(r"\w[\w.-]*", name) is None:
        raise ValueError(
            f"--name {name!r}: it names the job and a folder, so use letters, digits, '.', '_' and '-' only"
        )


def batch_script(spec: JobSpec) -> str:
    """The text for sbatch; also to be read and run by a person."""
    parts = [_header(spec), _place(spec), _environment(spec), _training(spec)]
    return "#!/bin/bash\n" + "\n".join(parts)


def _header(spec: JobSpec) -> str:
    asked, site = spec.resources, spec.profile
    options: list[tuple[str, object]] = [
        ("job-name", spec.name), ("comment", f"mmlab {spec.run}"), ("partition", site.partition),
        ("account", site.account), ("qos", site.qos), ("constraint", site.constraint),
        ("nodes", asked.nodes), ("ntasks-per-node", asked.tasks_per_node),
        ("gpus-per-node", asked.gpus_per_node or None), ("cpus-per-task", asked.cpus_per_task),
        ("mem", asked.mem), ("time", asked.time), ("array", spec.array), ("dependency", spec.dependency),
        ("chdir", spec.directory), ("output", spec.log),
    ]  # fmt: skip
    lines = [f"--{name}={_sbatch_word(str(value))}" for name, value in options if value is not None]
    lines = [f"#SBATCH {line}" for line in lines]
    lines += [f"#SBATCH {line}" for line in site.options]
    lines += [
        "# Queued again, the job writes on in its log. USR1 goes to the ranks, not to this shell.",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=USR1@{spec.signal_seconds}",
        "",
        "set -e",
        "",
    ]
    return "\n".join(lines)


def _sbatch_word(text: str) -> str:
    """A value as sbatch reads it out of a line."""
    if re.fullmatch(r"[\w./:,=@%+~^*&|()\[\]-]+", text, re.ASCII) is not None:
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _place(spec: JobSpec) -> str:
    lines = [f"run={shlex.quote(str(spec.run))}"]
    if spec.array is not None:
        lines += ["run=$run-$SLURM_ARRAY_TASK_ID    # each task of the array is a run", 'mkdir -p "$run"']
    lines += [
        "# By its id a job that is queued again finds its run, and goes on.",
        "export MMLAB_RUN=$run MMLAB_RUN_ID=${run##*/}",
        f"export MMLAB_REQUEUES={spec.requeues}",
    ]
    return "\n".join(lines) + "\n"


def ready_lines(spec: JobSpec) -> list[str]:
    """What the site wants of a shell before Python starts: modules, environment, variables, its own lines."""
    site = spec.profile
    lines = [f"module load {shlex.join(site.modules)}"] if site.modules else []
    if site.venv is not None:
        lines.append(f"source {shlex.quote(site.venv + '/bin/activate')}")
    lines += [
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        "export PYTHONUNBUFFERED=1    # the log of a job that is killed has all that it said",
    ]
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in {**dict(spec.environment), **site.environment}.items()
    ]
    return [*lines, *site.setup]


def _environment(spec: JobSpec) -> str:
    lines = ready_lines(spec)
    if spec.code:
        folders = shlex.quote(":".join(map(str, spec.code)))
        lines += [
            "# The code as it was at submission. Without the second, Python would look into the working",
            "# directory before.",
            f"export PYTHONPATH={folders}${{PYTHONPATH:+:$PYTHONPATH}}",
            "export PYTHONSAFEPATH=1",
        ]
    lines += [
        "# A job that was submitted with --export=NONE would keep all of this from its ranks.",
        "export SLURM_EXPORT_ENV=ALL",
        "# Rank 0 is on this node, the first. Its system names a port that no other job on it listens at.",
        "export MASTER_ADDR=$SLURMD_NODENAME",
        f"MASTER_PORT=$({_host_python(spec)} -c {shlex.quote(_FREE_PORT)})",
        "export MASTER_PORT",
    ]
    return "\n".join(lines) + "\n"


def _host_python(spec: JobSpec) -> str:
    """A Python on the node itself, for what needs nothing but Python."""
    return shlex.quote(spec.python) if spec.profile.container is None else "python3"


def _training(spec: JobSpec) -> str:
    asked, box = spec.resources, spec.profile.container
    python = shlex.quote(spec.python)
    srun = ["srun", "--kill-on-bad-exit=1", "--label"]
    # As many as there are nodes now: a job may be queued again with others, and Slurm keeps the old number.
    srun.append('--ntasks="$((SLURM_NNODES * SLURM_NTASKS_PER_NODE))"')
    if asked.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={asked.cpus_per_task}")  # since 22.05 srun does not take sbatch's
    if box is not None and box.runtime == "pyxis":
        # The folders of the job are the same inside.
        srun += [shlex.quote(f"--container-image={box.image}"), *map(shlex.quote, box.options)]
    inside = ""
    if box is not None and box.runtime == "apptainer":
        gpu = ["--nv"] if asked.gpus_per_node > 0 else []
        inside = shlex.join(["apptainer", "exec", *gpu, *box.options, box.image]) + " "
    own = [
        "--name", spec.name, "--runs", str(spec.run.parent.parent),
    ]  # fmt: skip
    if not any(word.partition("=")[0] == "--trainer.accelerator" for word in spec.words):
        own += ["--trainer.accelerator", "gpu" if asked.gpus_per_node > 0 else "cpu"]
    command = " \\\n".join(
        [
            f"setsid --wait {' '.join(srun)}",
            f"    {inside}{python} -m mmlab fit",
            *_lines(spec.words, array=spec.array is not None),
            *_lines(own, array=False),
            '    --trainer.num_nodes "$SLURM_NNODES"',
            '    --trainer.devices "$SLURM_NTASKS_PER_NODE"',
        ]
    )
    ended = f'{inside}{python} -m mmlab jobs ended "$run" "$status" || true'
    if box is not None and box.runtime == "pyxis":
        ended = f"srun --nodes=1 --ntasks=1 {' '.join(srun[4:])} {ended}"
    return (
        "# Signals to the job are for the ranks: this shell only waits for them. Where Slurm signals whole\n"
        "# process groups, setsid keeps srun out of it: srun would kill the ranks before they have saved.\n"
        "trap : TERM USR1\n"
        "status=0\n"
        f"{command} \\\n    || status=$?\n\n"
        "# Queues the job again after a hang, a kill or an error, not after bad input, the same twice, or\n"
        "# too often.\n"
        f"{ended}\n"
        'exit "$status"\n'
    )


def _lines(words: list[str] | tuple[str, ...], *, array: bool) -> list[str]:
    """Words for the shell, an option with its values on each line."""
    lines: list[str] = []
    for word in words:
        quoted = _with_task(word) if array and TASK in word else shlex.quote(word)
        if word.startswith("--") or not lines:
            lines.append(f"    {quoted}")
        else:
            lines[-1] += f" {quoted}"
    return lines


def _with_task(word: str) -> str:
    """A word of the shell with the number of the array's task where it has `%a`."""
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in word.split(TASK))
