"""The layers of a network that something can be put around: found by default, or named by the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from peft.tuners.lora.layer import Conv1D
from torch import nn

from mmlab.adaptation.method import within
from mmlab.models.blocks import find_blocks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, Conv1D, *CONVOLUTIONS)


class Candidate(NamedTuple):
    """A linear layer or convolution."""

    module: nn.Module
    unfit: str | None
    """Why nothing can be put around it; None where something can."""


def find_candidates(network: nn.Module) -> dict[str, Candidate]:
    """Every linear layer and convolution below a network, by module path."""
    users = Counter(
        id(parameter)
        for _, module in network.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return {
        path: Candidate(module, _unfit(network.get_submodule(path.rpartition(".")[0]), path, module, users))
        for path, module in network.named_modules()
        if path and isinstance(module, LAYERS)
    }


def default_paths(network: nn.Module, candidates: Mapping[str, Candidate]) -> list[str]:
    """The candidates that fit, inside the blocks; of the whole network where it has no blocks."""
    blocks = [block.path for block in find_blocks(network)] or [""]
    return [
        path
        for path, candidate in candidates.items()
        if candidate.unfit is None and any(within(path, block) for block in blocks)
    ]


def named_paths(
    candidates: Mapping[str, Candidate],
    patterns: list[str],
    *,
    method: str,
    refuse: Callable[[nn.Module], str | None] = lambda layer: None,
) -> list[str]:
    """The candidates that patterns of shell style name.

    What a pattern names besides layers that fit (such as depthwise convolutions) is left out.

    Args:
        candidates: Of the network.
        patterns: Each over whole paths: `*.query`, `backbone.blocks.[0-3].mlp.*`.
        method: Name for messages.
        refuse: Why a layer cannot be taken, though something can be put around it; None if it can.

    Raises:
        ValueError: A pattern names no layer, none that fits, or one that is refused.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        named = [path for path in candidates if fnmatchcase(path, pattern)]
        if not named:
            raise ValueError(
                f"{method}: no linear layer or convolution is called {pattern!r}; "
                f"nearest: {', '.join(_near(pattern, candidates)) or 'there is none'}"
            )
        fit = [path for path in named if candidates[path].unfit is None]
        if not fit:
            raise ValueError(f"{method}: {named[0]} (by {pattern!r}) {candidates[named[0]].unfit}")
        for path in fit:
            reason = refuse(candidates[path].module)
            if reason is not None:
                raise ValueError(f"{method}: {path} (by {pattern!r}) {reason}")
        chosen |= dict.fromkeys(fit)
    return list(chosen)


def _unfit(parent: nn.Module, path: str, layer: nn.Module, users: Mapping[int, int]) -> str | None:
    plain = any(type(layer).forward is kind.forward for kind in LAYERS)
    weight = layer._parameters.get("weight")
    if weight is None or not plain or getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"is a {type(layer).__name__} that computes in a way of its own: name another layer"
    if getattr(layer, "groups", 1) != 1:
        return "is a grouped convolution, which does not merge: name another layer"
    if users[id(weight)] > 1:
        return "shares its weight with another layer, which merging would change too: name another layer"
    # Their weights are read, they are never called; timm's BEiT, EVA and Swin v2 do so where q_bias is given.
    leaf = path.rpartition(".")[2]
    separate = getattr(parent, "q_bias", None) is not None and not getattr(parent, "qkv_bias_separate", False)
    if isinstance(parent, nn.MultiheadAttention) or (leaf == "qkv" and separate):
        return f"never runs as a layer: {type(parent).__name__} reads its weight; name another layer"
    if not weight.requires_grad:
        return "is unused or was built fixed: name another layer"
    return None


def _near(pattern: str, candidates: Mapping[str, Candidate]) -> list[str]:
    """Patterns that the user may have meant."""
    if any(fnmatchcase(path, f"{pattern}.*") for path in candidates):
        return [f"{pattern}.*"]
    leaves = list(dict.fromkeys(f"*.{path.rpartition('.')[2]}" for path in candidates))
    return get_close_matches(pattern, [*leaves, *candidates]) or leaves[:6]
