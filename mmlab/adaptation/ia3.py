"""Scaling inner activations by learned vectors, by peft's layers."""

from __future__ import annotations

from itertools import pairwise

from peft import IA3Config
from peft.tuners.lora.layer import Conv1D
from torch import nn

from mmlab.adaptation.injected import InjectedMethod
from mmlab.adaptation.structure import sublayers
from mmlab.adaptation.targets import CONVOLUTIONS, Candidate, find_candidates, named_paths
from mmlab.models.blocks import Block, find_blocks

QUERIES = {"q", "wq", "query", "queries"}
OTHERS = {"k", "v", "kv", "key", "keys", "value", "values"}


class IA3(InjectedMethod):
    """Multiplies keys, values and the inside of the feed-forward by learned vectors, one at the start.

    Liu et al. 2022, arXiv:2205.05638, section 3.3. In a block whose queries, keys and values come from one
    layer, all three are scaled; inside `nn.MultiheadAttention` nothing is, as its layers are never called. A
    convolutional block without a feed-forward gets a vector on what its last convolution reads.
    """

    tensors = frozenset({"ia3_l"})

    def __init__(self, targets: list[str] | None = None, feedforward: list[str] | None = None) -> None:
        """Take the settings.

        Args:
            targets: Layers whose output is scaled: patterns of shell style over module paths inside the
                encoder; None takes what makes keys and values in each block.
            feedforward: Layers whose input is scaled; None takes the last layer of each feed-forward.
        """
        super().__init__()
        self.targets = targets
        self.feedforward = feedforward

    def adapt(self, network: nn.Module) -> None:
        """Put the vectors in.

        Raises:
            ValueError: There is no layer to scale, or one is named for output and input.
        """
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return
        candidates = find_candidates(network)
        outputs, inputs = _defaults(network, candidates)
        if self.targets is not None:
            outputs = named_paths(candidates, self.targets, method="ia3", refuse=_refuse)
        if self.feedforward is not None:
            inputs = named_paths(candidates, self.feedforward, method="ia3", refuse=_refuse)
        twice = sorted(set(outputs) & set(inputs))
        if twice:
            raise ValueError(f"ia3: targets and feedforward both name {twice[0]}: keep it in one of them")
        if not outputs and not inputs:
            raise ValueError(
                f"ia3: {type(network).__name__} has no attention, feed-forward or convolution that can be "
                "scaled: name layers in targets, or use lora"
            )
        for transposed in (False, True):
            chosen = {
                path: path in inputs
                for path in [*outputs, *inputs]
                if isinstance(candidates[path].module, Conv1D) == transposed
            }
            if chosen:
                config = IA3Config(fan_in_fan_out=transposed)
                self.inject(network, config, chosen, feedforward=[p for p, reads in chosen.items() if reads])


def _defaults(network: nn.Module, candidates: dict[str, Candidate]) -> tuple[list[str], list[str]]:
    """Layers whose output is scaled, and layers whose input is."""
    outputs: list[str] = []
    inputs: list[str] = []
    for path, block in find_blocks(network) or [Block("", network)]:
        found = sublayers(block)
        outputs += [f"{path}.{inner}".lstrip(".") for inner in _keys_and_values(found.attention_inputs)]
        last = found.ffn_output or _last_convolution(block)
        if last is not None:
            inputs.append(f"{path}.{last}".lstrip("."))
    return _usable(outputs, candidates), _usable(inputs, candidates)


def _usable(paths: list[str], candidates: dict[str, Candidate]) -> list[str]:
    return [
        path
        for path in paths
        if path in candidates and candidates[path].unfit is None and _refuse(candidates[path].module) is None
    ]


def _keys_and_values(attention_inputs: list[str]) -> list[str]:
    """Those whose names do not say that they make queries only."""
    words = {path: set(path.rpartition(".")[2].lower().split("_")) for path in attention_inputs}
    return [path for path, said in words.items() if not said & QUERIES or said & OTHERS]


def _last_convolution(block: nn.Module) -> str | None:
    """The last ungrouped convolution that reads what the one before it gives, as one beside them does not."""
    convolutions = [(path, layer) for path, layer in block.named_modules() if isinstance(layer, nn.Conv2d)]
    chained = [
        path
        for (_, before), (path, layer) in pairwise(convolutions)
        if layer.in_channels == before.out_channels and layer.groups == 1
    ]
    return chained[-1] if chained else None


def _refuse(layer: nn.Module) -> str | None:
    if isinstance(layer, CONVOLUTIONS) and not isinstance(layer, nn.Conv2d):
        return f"is a {type(layer).__name__}, which IA3 has no form of: leave it out, or use lora"
    return None
