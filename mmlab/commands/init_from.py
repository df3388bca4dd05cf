"""Beginning with the weights of another run: which of its parts fit into a model that was just built.

`--model.init_from RUN` for any task. As heavy as training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table
from torch import Tensor, nn

from mmlab.adaptation.policy import Policy
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.fingerprint import weights_digest
from mmlab.runs.checkpoint import Weights, find_checkpoint, read_weights

_MODEL = "model."
_LAYOUT = "layout."


class Part(NamedTuple):
    """What becomes of one part of the model."""

    path: str
    tensors: int
    """Taken."""
    reason: str


class Beginning:
    """Puts what fits of a run into a model, before anything is added to that.

    A part is taken whole or not at all. Encoders are matched by what they read, wherever they stand in either
    model (`image.encoder`, or `text` of a tagger); every other part by its path. All names and sizes must be
    equal. What the run left to pretrained weights must be the same pretrained weights here.
    """

    def __init__(self, path: Path) -> None:
        """Find the checkpoint.

        Args:
            path: A run directory (its best checkpoint, or its last) or a checkpoint in any form.

        Raises:
            ValueError: It is neither.
        """
        self.checkpoint = find_checkpoint(path)
        self.parts: list[Part] = []

    def __call__(self, model: nn.Module) -> None:
        """Fill a model in place.

        Raises:
            ValueError: Nothing fits; the run added to an encoder what is not merged, or trained beside other
                pretrained weights.
        """
        weights = read_weights(self.checkpoint)
        theirs = Weights(
            {
                name.removeprefix(_MODEL): value
                for name, value in weights.state.items()
                if name.startswith(_MODEL)
            },
            weights.bases,
        )
        encoders = {path: module for path, module in model.named_modules() if isinstance(module, Encoder)}
        self.parts = [self._encoder(path, encoder, theirs) for path, encoder in encoders.items()]
        self.parts += [self._other(path, model, theirs) for path in _others(model, set(encoders))]
        if not any(part.tensors for part in self.parts):
            reasons = "; ".join(f"{part.path}: {part.reason}" for part in self.parts[:3])
            raise ValueError(
                f"--model.init_from {self.checkpoint}: no part of that run fits this model ({reasons}): name "
                "a run with the same encoders"
            )

    def table(self) -> Table:
        """What was taken, and why the rest was not."""
        table = Table(title=f"weights of {self.checkpoint}", title_justify="left")
        for column in ("part", "tensors taken", ""):
            table.add_column(column, justify="right" if column == "tensors taken" else "left")
        for part in self.parts:
            table.add_row(part.path, str(part.tensors) if part.tensors else "", part.reason)
        return table

    def _encoder(self, path: str, encoder: Encoder, theirs: Weights) -> Part:
        own = encoder.state_dict()
        found = _standing(path, encoder, theirs)
        if found is None:
            return Part(path, 0, f"stays: the run has no encoder of {encoder.modality}")
        state = _below(found, theirs.state)
        # A layout is added to an encoder, which is the same without.
        layout = {name for name in own if name.startswith(_LAYOUT)}
        apart = set() if any(name.startswith(_LAYOUT) for name in state) else layout
        own = {name: tensor for name, tensor in own.items() if name not in apart}
        source = f"from {found}" if found != path else "taken"
        base = theirs.bases.get(found)
        if own.keys() == state.keys() and not _misfits(own, state):
            _fill(own, state)
            return Part(path, len(state), source)
        if base is None:
            return Part(path, 0, f"stays: {found} is another network there ({_difference(own, state)})")
        if base != (digest := weights_digest(encoder, without=apart)):
            raise ValueError(
                f"--model.init_from {self.checkpoint}: its {found} was trained beside other pretrained "
                f"weights ({base[:12]}, here {digest[:12]}): give {path} the same ones"
            )
        if added := sorted(state.keys() - own.keys()):
            raise ValueError(
                f"--model.init_from {self.checkpoint}: its {found} holds what was added to pretrained "
                f"weights ({added[0]}, ...): merge it first with `mmlab adapt merge RUN --out DIR`, and name "
                "DIR/model.safetensors"
            )
        _fill({name: own[name] for name in state}, state)
        rest = "the same pretrained weights in both"
        return Part(path, len(state), f"{source}, the rest is {rest}" if state else f"stays: {rest}")

    def _other(self, path: str, model: nn.Module, theirs: Weights) -> Part:
        own, state = _below(path, model.state_dict()), _below(path, theirs.state)
        if not state:
            return Part(path, 0, "stays: the run has no such part")
        if own.keys() != state.keys() or _misfits(own, state):
            return Part(path, 0, f"stays: another there ({_difference(own, state)})")
        _fill(own, state)
        return Part(path, len(state), "taken")


_NAME, _ALIAS = "--init_from", "--model.init_from"


def plainly(words: Sequence[str]) -> list[str]:
    """The words of a command with the argument by its first name, for who looks for keys of a task."""
    return [word.replace(_ALIAS, _NAME, 1) if word.split("=", 1)[0] == _ALIAS else word for word in words]


def add_init_from(parser: LightningArgumentParser) -> None:
    """Add the argument, by both of its names: it belongs to no task, and `--model.init_from` reads well."""
    parser.add_argument(
        _NAME,
        _ALIAS,
        type=str | None,
        default=None,
        help="Begin with the weights of another run, where parts fit: its directory, or a checkpoint. A run "
        "that --ckpt_path goes on with, or measures, has its own.",
    )


def begin(parser: LightningArgumentParser, config: Namespace) -> Beginning | None:
    """Let the model that a parser builds begin with the weights of a run, if it is to.

    Args:
        parser: Builds a policy, which is handed the model as it is before anything is added.
        config: Of the subcommand.

    Raises:
        ValueError: There is no such run, or the data bring features.
    """
    if config.init_from is None or config.ckpt_path is not None:
        return None
    if config.data.loading.features is not None:
        raise ValueError(
            "--model.init_from with data.loading.features: the encoders are not those that the config names, "
            "and a run that goes on would take the features for wrong: leave one out"
        )
    beginning = Beginning(Path(config.init_from))

    def begun(kind: type[Policy], *arguments: Any, **named: Any) -> Policy:
        policy = kind(*arguments, **named)
        policy.beginning = beginning
        return policy

    parser.add_instantiator(begun, Policy)
    return beginning


def _standing(path: str, encoder: Encoder, theirs: Weights) -> str | None:
    """Where an encoder of the same modality stands in the other model; the same path comes first."""
    name = encoder.modality.value
    inside = set(encoder.state_dict())
    found = {base for base in theirs.bases if name in base.split(".")}
    for key in theirs.state:
        parts = key.split(".")
        for depth in range(1, len(parts)):
            above, below = parts[:depth], ".".join(parts[depth:])
            if name in above and (above[-1] in (name, "encoder")) and below in inside:
                found.add(".".join(above))
    if path in found:
        return path
    return min(found, key=lambda one: (-len(_below(one, theirs.state)), one), default=None)


def _others(model: nn.Module, encoders: set[str]) -> list[str]:
    """Paths of the parts beside the encoders that hold anything: children, and of towers their children."""
    found = []
    for name, child in model.named_children():
        inside = [path for path in encoders if path == name or path.startswith(f"{name}.")]
        below = [name] if not inside else [f"{name}.{part}" for part, _ in child.named_children()]
        for path in below:
            if path not in encoders and name not in encoders and _below(path, model.state_dict()):
                found.append(path)
    return found


def _below(path: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict holds of a part."""
    prefix = f"{path}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Names that both have, in different sizes."""
    return [name for name in own if name in state and own[name].shape != state[name].shape]


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """In a few words, in what two parts differ."""
    if sizes := _misfits(own, state):
        name = sizes[0]
        return f"{name} is {tuple(state[name].shape)}, here {tuple(own[name].shape)}"
    return f"{len(own.keys() - state.keys())} tensors fewer, {len(state.keys() - own.keys())} others"


@torch.no_grad()
def _fill(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy by name; what a state dict gives shares memory with the model."""
    for name, tensor in own.items():
        tensor.copy_(state[name])
