"""A trial run of a network on the smallest input it takes, to see what it calls with what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmlab.models.network import Network


class Call(NamedTuple):
    """One call of a module."""

    module: nn.Module
    args: tuple[Any, ...]
    """Those without a name."""
    output: Any


def can_run(network: nn.Module) -> bool:
    """Whether there is an input to try it on: it is an encoder, a language model, or reads token ids."""
    return isinstance(network, Network) or embedding(network) is not None


def embedding(network: nn.Module) -> nn.Embedding | None:
    """The table of token embeddings of a transformers model; None for what has none."""
    find = getattr(network, "get_input_embeddings", None)
    table = find() if callable(find) else None
    return table if isinstance(table, nn.Embedding) else None


def run(network: nn.Module) -> None:
    """Run a network on a blank input, in evaluation mode and without gradient; its modes stay as they are."""
    assert can_run(network)
    with _evaluation(network), torch.no_grad():
        if isinstance(network, Network):
            network.try_out()
            return
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        config: Any = network.config
        network(input_ids=ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {}))


def calls(network: nn.Module, modules: Iterable[nn.Module]) -> list[Call]:
    """Run a network and say which of some modules it called, in the order in which the calls ended."""
    found: list[Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append(Call(module, args, output))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note).remove)
        run(network)
    return found


def first_tensor(output: Any) -> Tensor:
    """What a block computes, which may stand first in a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
