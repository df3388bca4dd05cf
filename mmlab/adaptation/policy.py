"""What is trained: one object that maps parts of a model to methods of adaptation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmlab.adaptation.adapters import Adapters
from mmlab.adaptation.ia3 import IA3
from mmlab.adaptation.lora import LoRA
from mmlab.adaptation.method import Method, within
from mmlab.adaptation.partial import BitFit, NormTuning
from mmlab.adaptation.plain import Frozen, Full, Probe
from mmlab.adaptation.prefix import Prefix
from mmlab.adaptation.prompts import Prompts
from mmlab.adaptation.staged import Staged
from mmlab.models.fingerprint import weights_digest
from mmlab.models.network import Network, pretrained_state

MethodName = Literal[
    "full", "frozen", "probe", "lora", "adapters", "prompts", "prefix", "ia3", "bitfit", "layernorm", "staged"
]
METHODS: Mapping[str, type[Method]] = {
    "full": Full, "frozen": Frozen, "probe": Probe, "lora": LoRA, "adapters": Adapters, "prompts": Prompts,
    "prefix": Prefix, "ia3": IA3, "bitfit": BitFit, "layernorm": NormTuning, "staged": Staged,
}  # fmt: skip


class Trained(NamedTuple):
    """One line of a table of what is trained."""

    part: str
    """Module path of the part; `(rest)` for what no part holds."""
    method: str
    trained: int
    """Parameters that are trained."""
    total: int
    """All parameters."""


class Policy:
    """Says what is trained, by part of the model; what no part holds is trained.

    A part is named by its module path: a tower (`image`), its encoder (`image.encoder`), layers by a pattern
    of shell style (`text.encoder.backbone.encoder.layer.[0-3]`). `*` stands for all towers, that is children
    of the model that hold an encoder, which no other key touches. ::

        Policy({"*": "frozen", "audio": "full"})
        Policy("frozen")                            the same as {"*": "frozen"}

    The task applies it once to the built model, before sharding, and calls `set_mode` after each `train()`.
    """

    def __init__(
        self,
        towers: MethodName | dict[str, MethodName | Method],
        *,
        checkpoint: Literal["trained", "full"] = "trained",
        frozen_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    ) -> None:
        """Take the methods.

        Args:
            towers: Method of each part: `full`, `frozen`, `probe`, `lora`, `adapters`, `prompts`, `prefix`,
                `ia3`, `bitfit`, `layernorm`, `staged`, or a built one. One name alone holds for all towers.
            checkpoint: `trained` keeps what is trained and the digest of the pretrained rest; `full` keeps
                all weights.
            frozen_dtype: Type of pretrained matrices that are never trained; None leaves them.
                A low precision needs a mixed one of the trainer (`bf16-mixed`).

        Raises:
            ValueError: No such method.
        """
        named = {"*": towers} if isinstance(towers, str) else towers
        unknown = [method for method in named.values() if isinstance(method, str) and method not in METHODS]
        if unknown:
            raise ValueError(f"adaptation: no method {unknown[0]!r}; there are {', '.join(METHODS)}")
        self.towers = {
            key: METHODS[method]() if isinstance(method, str) else method for key, method in named.items()
        }
        self.checkpoint = checkpoint
        self.frozen_dtype = frozen_dtype
        self.stage = 0
        """How far a staged training has come."""
        self.beginning: Callable[[nn.Module], None] | None = None
        """Puts other weights into the built model before anything is added to it. They are no pretrained ones
        that a config would build again, so a checkpoint then holds all weights."""
        self.bases: dict[str, str] = {}
        """Digest of the weights of each pretrained network, as it was before anything was added to it."""
        self._applied: dict[str, Method] = {}
        self._stages: dict[str, int] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare every part and fix what is not trained.

        Returns:
            The model itself; parts may have been replaced in it.

        Raises:
            ValueError: A key names nothing, two keys name one parameter, or nothing is left to train.
        """
        if self.beginning is not None:
            self.beginning(model)
            self.checkpoint = "full"
        any_trained = any(parameter.requires_grad for parameter in model.parameters())
        parts = self._parts(model)
        self.bases = {
            path: weights_digest(pretrained_state(model.get_submodule(path))) for path in _bases(model, parts)
        }
        for path, method in parts.items():
            self._applied[path] = copy.deepcopy(method)
            model.set_submodule(path, self._applied[path].apply(model.get_submodule(path)))
        for name, parameter in model.named_parameters():
            part = self._owner(name)
            local = name if part is None else name.removeprefix(f"{part}.")
            if part is not None and not self._applied[part].trainable(local, parameter):
                parameter.requires_grad_(False)
            if parameter.requires_grad:
                self._stages[name] = 0 if part is None else self._applied[part].stage(local)
        if any_trained and not self._stages:
            raise ValueError("nothing is left to train: set some part to full")
        self._lower(model)
        self.open(model, self.stage)
        return model

    def open(self, model: nn.Module, stage: int) -> None:
        """Train what is trained at a stage, and fix what comes later."""
        self.stage = stage
        for name, parameter in model.named_parameters():
            if name in self._stages:
                parameter.requires_grad_(self._stages[name] <= stage)

    @property
    def last_stage(self) -> int:
        """The stage at which all is trained that will be; 0 without staged parts."""
        return max(self._stages.values(), default=0)

    def trainable(self, name: str) -> bool:
        """Whether a parameter of the applied model is trained, now or at a later stage."""
        return name in self._stages

    def kept(self, model: nn.Module) -> set[str]:
        """Names of the state that a checkpoint holds: all but what a digest of :attr:`bases` stands for.

        Buffers of a network (the statistics of batch normalisation) are kept where anything in it is trained.
        """
        names = set(model.state_dict())
        if self.checkpoint == "full":
            return names
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        moving = {base for base in self.bases if any(within(name, base) for name in self._stages)}
        for base in self.bases:
            for name in [name for name in names if within(name, base)]:
                if not (name in self._stages or (name not in parameters and base in moving)):
                    names.discard(name)
        return names

    def methods(self, model: nn.Module) -> Iterator[tuple[str, nn.Module, Method]]:
        """Module path, module and method of each part of the applied model."""
        for path, method in self._applied.items():
            yield path, model.get_submodule(path), method

    def penalties(self, model: nn.Module) -> list[Tensor]:
        """What the methods add to the loss."""
        found = (method.penalty(part) for _, part, method in self.methods(model))
        return [penalty for penalty in found if penalty is not None]

    def after_step(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Tell the methods that an optimizer step is done; see :meth:`Method.after_step`."""
        for _, part, method in self.methods(model):
            method.after_step(part, step, total_steps)

    def merge(self, model: nn.Module) -> list[str]:
        """Fold what was added into plain weights.

        Returns:
            The parts that keep something which no plain weight can stand for (adapters, prompts).
        """
        for path, part, method in list(self.methods(model)):
            model.set_submodule(path, method.merge(part))
        return [path for path, method in self._applied.items() if not method.merges]

    def set_mode(self, model: nn.Module) -> None:
        """Put what is wholly fixed into evaluation mode: no dropout, no new running statistics."""
        parameters = list(model.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            model.eval()
            return
        for child in model.children():
            self.set_mode(child)

    def describe(self, model: nn.Module) -> list[Trained]:
        """Count the parameters of each part of the applied model."""
        counts = {path: [0, 0] for path in [*self._applied, ""]}
        for name, parameter in model.named_parameters():
            count = counts[self._owner(name) or ""]
            count[0] += parameter.numel() if self.trainable(name) else 0
            count[1] += parameter.numel()
        rows = [
            Trained(path, type(method).__name__.lower(), *counts[path])
            for path, method in self._applied.items()
        ]
        return rows if counts[""][1] == 0 else [*rows, Trained("(rest)", "full", *counts[""])]

    def _lower(self, model: nn.Module) -> None:
        """Hold what is never trained in the precision that was asked for."""
        if self.frozen_dtype is None:
            return
        dtype = getattr(torch, self.frozen_dtype)
        whole = [path for path, module in model.named_modules() if getattr(module, "full_precision", False)]
        for name, parameter in model.named_parameters():
            fixed = name not in self._stages and any(within(name, base) for base in self.bases)
            spared = any(within(name, path) for path in whole)
            # Vectors are small, and batch normalisation needs its scale in the type of its statistics.
            if fixed and not spared and parameter.is_floating_point() and parameter.ndim > 1:
                parameter.data = parameter.data.to(dtype)

    def _owner(self, name: str) -> str | None:
        """The part that a parameter belongs to."""
        return next((path for path in self._applied if within(name, path)), None)

    def _parts(self, model: nn.Module) -> dict[str, Method]:
        """The module path of every part, with its method."""
        paths = [name for name, _ in model.named_modules() if name]
        parts: dict[str, str] = {}
        for key in self.towers:
            if key == "*":
                continue
            matched = list(_outermost(path for path in paths if fnmatchcase(path, key)))
            if not matched:
                near = get_close_matches(key, paths) or _towers(model)
                raise ValueError(f"adaptation: no part is called {key!r}; nearest: {', '.join(near)}")
            for path in matched:
                for other, key_of_other in parts.items():
                    if within(path, other) or within(other, path):
                        raise ValueError(
                            f"adaptation: {key!r} and {key_of_other!r} both name "
                            f"{max(path, other, key=len)}: keep one"
                        )
                parts[path] = key
        if "*" in self.towers:
            towers = _towers(model)
            if not towers and not isinstance(self.towers["*"], Full):
                raise ValueError("adaptation: no child of the model holds an encoder: name the parts instead")
            for tower in towers:
                if not any(within(path, tower) for path in parts):
                    parts[tower] = "*"
        return {path: self.towers[key] for path, key in parts.items()}


def _outermost(paths: Iterable[str]) -> Iterator[str]:
    """Leave out paths below an earlier one; parents come before their children."""
    kept: list[str] = []
    for path in paths:
        if not any(within(path, other) for other in kept):
            kept.append(path)
            yield path


def _towers(model: nn.Module) -> list[str]:
    """The children that hold an encoder."""
    return [
        name
        for name, child in model.named_children()
        if any(isinstance(module, Network) for module in child.modules())
    ]


def _bases(model: nn.Module, parts: Mapping[str, Method]) -> list[str]:
    """Networks whose weights are known by a digest: encoders, and parts without any, not trained whole."""
    encoders = [name for name, module in model.named_modules() if isinstance(module, Network)]
    adapted = [path for path, method in parts.items() if not isinstance(method, Full)]
    alone = [
        path
        for path in adapted
        if not any(within(encoder, path) or within(path, encoder) for encoder in encoders)
    ]
    touched = [
        encoder
        for encoder in _outermost(encoders)
        if any(within(encoder, path) or within(path, encoder) for path in adapted)
    ]
    return [*touched, *alone]
