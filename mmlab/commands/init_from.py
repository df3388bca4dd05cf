"""Beginning with the weights of another run: which of its parts fit into a model that was just built.

`--model.init_from RUN` for any task. As heavy as training.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table
from torch import Tensor, nn

from mmlab.adaptation.method import within
from mmlab.adaptation.policy import Policy
from mmlab.models.encoders.encoder import Encoder
from mmlab.models.fingerprint import weights_digest
from mmlab.models.network import Network
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
    model (`image.encoder`, or `text` of a tagger); a language model and every other part by its path. All
    names and sizes must be equal. What the run left to pretrained weights must be the same pretrained weights
    here.
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
        self._beside: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module) -> None:
        """Fill a model in place.

        Raises:
            ValueError: Nothing fits; the run added to a network what is not merged, or trained beside other
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
        self._beside = {name: tensor for name, tensor in weights.state.items() if not name.startswith(_MODEL)}
        networks = _networks(model)
        self.parts = [self._network(path, network, theirs) for path, network in networks.items()]
        own = model.state_dict()
        for path in _others(model, networks):
            state = Weights(_below(path, theirs.state), theirs.bases)
            self.parts.append(self._fit(path, path, _below(path, own), state))
        if not any(part.tensors for part in self.parts):
            reasons = "; ".join(f"{part.path}: {part.reason}" for part in self.parts[:3])
            raise ValueError(
                f"--model.init_from {self.checkpoint}: no part of that run fits this model ({reasons}): name "
                "a run with the same encoders"
            )

    def fill_beside(self, task: nn.Module) -> None:
        """Fill what a task has beside its model and the run's task has too: a CRF, a temperature."""
        for path, child in task.named_children():
            if f"{path}." != _MODEL and (own := child.state_dict()):
                self.parts.append(self._fit(path, path, own, Weights(_below(path, self._beside), {})))

    def table(self) -> Table:
        """What was taken, and why the rest was not."""
        table = Table(title=f"weights of {self.checkpoint}", title_justify="left")
        for column in ("part", "tensors taken", ""):
            table.add_column(column, justify="right" if column == "tensors taken" else "left")
        for part in self.parts:
            table.add_row(part.path, str(part.tensors) if part.tensors else "", part.reason)
        return table

    def _network(self, path: str, network: Network, theirs: Weights) -> Part:
        found = _standing(path, network, theirs)
        if found is None:
            what = f"encoder of {network.modality}" if isinstance(network, Encoder) else "such part"
            return Part(path, 0, f"stays: the run has no {what}")
        own, state = network.state_dict(), _below(found, theirs.state)
        # A layout is added to an encoder, which is the same without.
        if not all(any(name.startswith(_LAYOUT) for name in names) for names in (own, state)):
            own, state = _plain(own), _plain(state)
        return self._fit(path, found, own, Weights(state, theirs.bases))

    def _fit(self, path: str, found: str, own: Mapping[str, Tensor], theirs: Weights) -> Part:
        """Fill one part with what the run holds of it, `theirs.state`, or say why it stays."""
        state, base = theirs.state, theirs.bases.get(found)
        source = f"from {found}" if found != path else "taken"
        if not state and base is None:
            return Part(path, 0, "stays: the run has no such part")
        if own.keys() == state.keys() and not _misfits(own, state):
            _fill(own, state)
            return Part(path, len(state), source)
        if base is None:
            return Part(path, 0, f"stays: another {found} there ({_difference(own, state)})")
        added = sorted(state.keys() - own.keys())
        # Where a checkpoint holds all of a part, what it was trained beside does not matter.
        if base != (digest := weights_digest(_plain(own))) and not (added and len(state) >= len(own)):
            raise ValueError(
                f"--model.init_from {self.checkpoint}: its {found} was trained beside other pretrained "
                f"weights ({base[:12]}, here {digest[:12]}): give {path} the same ones"
            )
        if added:
            raise ValueError(
                f"--model.init_from {self.checkpoint}: its {found} holds what {path} does not ({added[0]}, "
                "...): merge what was added to pretrained weights first with `mmlab adapt merge RUN --out "
                "DIR`, and name DIR/model.safetensors"
            )
        _fill({name: own[name] for name in state}, state)
        rest = "the same pretrained weights in both"
        return Part(path, len(state), f"{source}, the rest is {rest}" if state else f"stays: {rest}")


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


def _networks(model: nn.Module) -> dict[str, Network]:
    """The outermost networks, by their paths."""
    found: dict[str, Network] = {}
    for path, module in model.named_modules():
        if isinstance(module, Network) and not any(within(path, outer) for outer in found):
            found[path] = module
    return found


def _standing(path: str, network: Network, theirs: Weights) -> str | None:
    """Where a network stands in the other model; an encoder anywhere, by what it reads, its path first."""
    if not isinstance(network, Encoder):
        return path if path in theirs.bases or _below(path, theirs.state) else None
    name = network.modality.value
    inside = set(network.state_dict())
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


def _others(model: nn.Module, networks: Collection[str]) -> list[str]:
    """The outermost parts that hold no network, and hold anything."""
    found: list[str] = []

    def look(path: str, module: nn.Module) -> None:
        if path in networks or not module.state_dict():
            return
        if any(within(network, path) for network in networks):
            for name, child in module.named_children():
                look(f"{path}.{name}", child)
        else:
            found.append(path)

    for name, child in model.named_children():
        look(name, child)
    return found


def _below(path: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict holds of a part."""
    prefix = f"{path}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without a layout."""
    return {name: value for name, value in state.items() if not name.startswith(_LAYOUT)}


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
