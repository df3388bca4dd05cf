"""The rules of the tree, read from the source: who imports whom, one home per third party, sizes, names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LINES = 400
PARAMETERS = 8
LEAF_LINES = 80
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

ROOMS = {
    "batch": set(),
    "collectives": set(),
    "data": {"batch", "collectives", "assets.*"},
    "models": {"batch", "collectives", "assets.*"},
    "objectives": {"batch", "collectives"},
    "metrics": {"batch", "collectives", "assets.*"},
    "assets": set(),
    "sources": {"data.shards", "data.source", "assets.*"},
    "adaptation": {
        "batch", "models.encoders.encoder", "models.network", "models.blocks", "models.depth",
        "models.fingerprint",
    },
    "parallel": {
        "batch", "collectives", "models.encoders.encoder", "models.network", "models.blocks", "tasks.base",
    },
    "balance": {"batch", "collectives", "models.*", "objectives.*"},
    "optim": set(),
    "tasks": {
        "batch", "collectives", "models.*", "objectives.*", "metrics.*",
        "adaptation.*", "parallel.*", "balance.*", "optim", "assets.*",
    },
    "callbacks": {
        "batch", "tasks.base", "collectives", "runs.*", "parallel.*", "adaptation.staged",
        "metrics.classification", "metrics.entities", "metrics.recommendation", "launch.notice",
        "launch.own_job",
    },
    "runs": {"parallel.stored", "parallel.digests"},
    "launch": {"runs.directory", "runs.attempts", "runs.rank_page", "runs.status"},
    "commands": {"*"},
    "cli": {"*"},
    "__main__": {"*"},
}  # fmt: skip
"""What each room may import of mmlab beside itself."""

HOMES = {
    "lightning": {
        "tasks.*", "data.module", "callbacks.*", "runs.checkpoint", "parallel.strategies",
        "parallel.srun", "parallel.checkpoint_files", "commands.*",
    },
    "webdataset": {"data.shards"},
    "transformers": {
        "models.pretrained", "models.export", "models.encoders.*", "models.multimodal_lm",
        "models.language_model", "models.packed_attention", "models.decoding", "data.text", "assets.*",
    },
    "timm": {"models.*", "assets.*"},
    "peft": {"adaptation.*"},
    "sacrebleu": {"metrics.sacre_bleu"},
    "wandb": {"callbacks.*", "runs.*"},
}  # fmt: skip
"""The only modules that may import a third party, at their top or inside a function."""

LIGHT = [
    "__main__",
    "data.order",
    "data.shards",
    "data.source",
    "assets.*",
    "sources.*",
    "launch.*",
    "runs.directory",
    "runs.attempts",
    "runs.failure",
    "runs.rank_page",
    "runs.status",
]
HEAVY = {"torch", "torchvision", "torchmetrics", "lightning", "transformers", "timm", "peft", "wandb"}


class Import(NamedTuple):
    """One imported name."""

    name: str
    line: int
    lazy: bool
    """Inside a function or under TYPE_CHECKING, so that importing the module does not run it."""


class Module(NamedTuple):
    """A module of mmlab, by its name without the leading `mmlab.`."""

    name: str
    path: Path
    tree: ast.Module


def read_modules() -> list[Module]:
    found = []
    for path in sorted((ROOT / "mmlab").rglob("*.py")):
        parts = path.relative_to(ROOT / "mmlab").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


MODULES = read_modules()
NAMES = {module.name for module in MODULES}


def imports(module: Module) -> Iterator[Import]:
    """All imports, `from a import b` as `a.b`."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module.path}:{child.lineno} imports relatively"
                yield from (Import(f"{child.module}.{a.name}", child.lineno, lazy) for a in child.names)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from visit(child, lazy or function or typing_only)

    yield from visit(module.tree, False)


def target(name: str) -> str | None:
    """The module of mmlab that an imported name is or stands in, without `mmlab.`."""
    if name != "mmlab" and not name.startswith("mmlab."):
        return None
    inside = name.removeprefix("mmlab").removeprefix(".")
    while inside not in NAMES:
        inside = inside.rpartition(".")[0]
    return inside


def matches(name: str, patterns: set[str] | list[str]) -> bool:
    """Whether a module is named; `room.*` means the room itself too."""
    return any(fnmatch(name, p) or name == p.removesuffix(".*") for p in patterns)


def where(module: Module, line: int) -> str:
    return f"{module.path.relative_to(ROOT)}:{line}"


def classes(module: Module) -> list[ast.ClassDef]:
    return [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]


def test_each_room_imports_only_what_it_may() -> None:
    offences = []
    for module in MODULES:
        room = module.name.split(".")[0]
        if room == "":
            allowed: set[str] = set()
        else:
            assert room in ROOMS, f"{module.path}: a room that the rules do not know"
            allowed = ROOMS[room]
        for item in imports(module):
            other = target(item.name)
            if other is not None and other.split(".")[0] != room and not matches(other, allowed):
                offences.append(f"{where(module, item.line)} imports mmlab.{other}")
    assert not offences, "\n".join(offences)


def test_the_contract_knows_torch_only() -> None:
    offences = [
        f"{where(module, item.line)} imports {item.name}"
        for module in MODULES
        if module.name in ("batch", "collectives", "optim")
        for item in imports(module)
        if (top := item.name.split(".")[0]) not in sys.stdlib_module_names
        and top not in ("torch", "jaxtyping", "mmlab")
    ]
    assert not offences, "\n".join(offences)


def test_each_third_party_has_one_home() -> None:
    offences = [
        f"{where(module, item.line)} imports {item.name}"
        for module in MODULES
        for item in imports(module)
        if (homes := HOMES.get(item.name.split(".")[0])) is not None and not matches(module.name, homes)
    ]
    assert not offences, "\n".join(offences)


def imports_what_a_user_named(node: ast.Try) -> bool:
    """A configured class path is looked up by a name that is not written in the source."""
    return any(
        isinstance(call, ast.Call)
        and ast.unparse(call.func) == "importlib.import_module"
        and not isinstance(call.args[0], ast.Constant)
        for statement in node.body
        for call in ast.walk(statement)
    )


def test_no_import_is_tried() -> None:
    offences = []
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Try):
                caught = " ".join(ast.dump(h.type) for h in node.handlers if h.type is not None)
                catches = "ImportError" in caught or "ModuleNotFoundError" in caught
                tried = any(isinstance(part, ast.Import | ast.ImportFrom) for part in node.body)
                if tried or (catches and not imports_what_a_user_named(node)):
                    offences.append(where(module, node.lineno))
    assert not offences, "\n".join(offences)


def top_level(name: str) -> set[str]:
    """Third parties that importing a module of mmlab runs, through all modules of mmlab that it imports."""
    reached, queue = {""}, [name]
    while queue:
        current = queue.pop()
        if current not in reached:
            reached.add(current)
            queue.append(current.rpartition(".")[0])
            module = next(module for module in MODULES if module.name == current)
            others = [target(item.name) for item in imports(module) if not item.lazy]
            queue += [other for other in others if other is not None]
    return {
        item.name.split(".")[0]
        for module in MODULES
        if module.name in reached
        for item in imports(module)
        if not item.lazy
    }


def test_light_modules_reach_nothing_heavy() -> None:
    light = [module.name for module in MODULES if matches(module.name, LIGHT)]
    assert "data.order" in light
    offences = {name: sorted(top_level(name) & HEAVY) for name in light if top_level(name) & HEAVY}
    assert not offences


def test_light_modules_import_no_torch_when_run() -> None:
    light = [f"mmlab.{module.name}" for module in MODULES if matches(module.name, LIGHT)]
    code = f"import {', '.join(light)}, sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_files_have_one_noun_and_a_bounded_size() -> None:
    offences = []
    for folder in ("mmlab", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LINES:
                offences.append(f"{path.relative_to(ROOT)} has {lines} lines, more than {LINES}")
            if VAGUE & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}:
                offences.append(f"{path.relative_to(ROOT)} has a name that says nothing")
    assert not offences, "\n".join(offences)


def test_every_module_says_what_it_is() -> None:
    silent = [str(module.path.relative_to(ROOT)) for module in MODULES if not ast.get_docstring(module.tree)]
    assert not silent


def test_no_signature_is_longer_than_eight() -> None:
    offences = []
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
                if len(names) > PARAMETERS:
                    offences.append(f"{where(module, node.lineno)} {node.name} takes {len(names)}")
    assert not offences, "\n".join(offences)


SHARED = {"tasks.base", "tasks.fused", "tasks.generative", "tasks.outcome", "tasks.tagging"}
"""What several leaves are made of."""
LEAVES = [m for m in MODULES if m.name.startswith("tasks.") and m.name not in SHARED]


@pytest.mark.parametrize("leaf", LEAVES, ids=[leaf.name for leaf in LEAVES])
def test_a_leaf_task_only_answers_its_three_questions(leaf: Module) -> None:
    others = {node.name for module in LEAVES for node in classes(module)}
    for node in classes(leaf):
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        assert not bases & others, f"{where(leaf, node.lineno)} inherits from another leaf"
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert lines <= LEAF_LINES, f"{where(leaf, node.lineno)} has {lines} lines, more than {LEAF_LINES}"
        for method in node.body:
            if isinstance(method, ast.FunctionDef):
                forbidden = method.name.endswith("_step") or method.name.startswith("configure_")
                assert not forbidden, f"{where(leaf, method.lineno)} {method.name} belongs to the base"
    foreign = [t for item in imports(leaf) if (t := target(item.name)) is not None and t.startswith("tasks")]
    assert set(foreign) <= SHARED, f"{leaf.name} imports {foreign}"
