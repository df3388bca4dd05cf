"""What is trained: one object that maps parts of a model to methods of adaptation."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from torch import nn

from mmlab.models.encoders.encoder import Encoder

MethodName = Literal["full", "frozen", "probe"]


class Method(ABC):
    """How one part of a model is trained. The policy makes a copy for each part and applies it first."""

    def apply(self, part: nn.Module) -> nn.Module:
        """Prepare a part, before it is sharded; returns what stands in its place from now on."""
        return part

    @abstractmethod
    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is trained; `name` starts at the part. What was built fixed stays so."""


class Full(Method):
    """Everything is trained."""

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """Every parameter."""
        return True


class Frozen(Method):
    """Encoders keep their weights and stay in evaluation mode; what follows them is trained.

    What follows (pooling, projection) starts at random, so freezing it too would be of no use. A part that
    holds no encoder is kept whole.
    """

    def apply(self, part: nn.Module) -> nn.Module:
        """Find the encoders."""
        found = [name for name, module in part.named_modules() if isinstance(module, Encoder)]
        self.encoders = found or [""]
        return part

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """What is in no encoder."""
        return not any(_within(name, encoder) for encoder in self.encoders)


class Probe(Frozen):
    """Linear probe: as frozen, and of what follows the encoders only the last linear layer is trained."""

    def apply(self, part: nn.Module) -> nn.Module:
        """Find the encoders and the layer.

        Raises:
            ValueError: No linear layer follows the encoders.
        """
        super().apply(part)
        after = [
            name
            for name, module in part.named_modules()
            if isinstance(module, nn.Linear) and not any(_within(name, encoder) for encoder in self.encoders)
        ]
        if not after:
            raise ValueError(
                f"probe: {type(part).__name__} has no linear layer after its encoders: use frozen there, or "
                "name a part that has one (a whole tower)"
            )
        self.layer = after[-1]
        return part

    def trainable(self, name: str, parameter: nn.Parameter) -> bool:
        """The last linear layer's."""
        return _within(name, self.layer)


METHODS: Mapping[str, type[Method]] = {"full": Full, "frozen": Frozen, "probe": Probe}


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

    def __init__(self, towers: MethodName | dict[str, MethodName | Method]) -> None:
        """Take the methods.

        Args:
            towers: Method of each part: `full`, `frozen`, `probe`, or a built one. One name alone holds for
                all towers.
        """
        named = {"*": towers} if isinstance(towers, str) else towers
        self.towers = {
            key: METHODS[method]() if isinstance(method, str) else method for key, method in named.items()
        }
        self._applied: dict[str, Method] = {}
        self._trained: frozenset[str] = frozenset()

    def apply(self, model: nn.Module) -> nn.Module:
        """Prepare every part and fix what is not trained.

        Returns:
            The model itself; parts may have been replaced in it.

        Raises:
            ValueError: A key names nothing, two keys name one parameter, or nothing is left to train.
        """
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for path, method in self._parts(model).items():
            self._applied[path] = copy.deepcopy(method)
            model.set_submodule(path, self._applied[path].apply(model.get_submodule(path)))
        for name, parameter in model.named_parameters():
            part = self._owner(name)
            if part is not None:
                wanted = self._applied[part].trainable(name.removeprefix(f"{part}."), parameter)
                parameter.requires_grad_(parameter.requires_grad and wanted)
        self._trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        if trained and not self._trained:
            raise ValueError("nothing is left to train: set some part to full")
        return model

    def trainable(self, name: str) -> bool:
        """Whether a parameter of the applied model is trained."""
        return name in self._trained

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

    def _owner(self, name: str) -> str | None:
        """The part that a parameter belongs to."""
        return next((path for path in self._applied if _within(name, path)), None)

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
                    if _within(path, other) or _within(other, path):
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
                if not any(_within(path, tower) for path in parts):
                    parts[tower] = "*"
        return {path: self.towers[key] for path, key in parts.items()}


def _within(name: str, path: str) -> bool:
    """Whether a dotted name is a module path or stands below it; all stand below the empty one."""
    return path == "" or name == path or name.startswith(f"{path}.")


def _outermost(paths: Iterator[str]) -> Iterator[str]:
    """Leave out paths below an earlier one; parents come before their children."""
    kept: list[str] = []
    for path in paths:
        if not any(_within(path, other) for other in kept):
            kept.append(path)
            yield path


def _towers(model: nn.Module) -> list[str]:
    """The children that hold an encoder."""
    return [
        name
        for name, child in model.named_children()
        if any(isinstance(module, Encoder) for module in child.modules())
    ]
