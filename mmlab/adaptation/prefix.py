"""Prefix tuning: learned keys and values in front of those of every attention."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmlab.adaptation import trial
from mmlab.adaptation.graft import Graft, graft, leave_fast_path
from mmlab.adaptation.method import EncoderMethod

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Of `F.scaled_dot_product_attention`, those that may come without a name."""


class Prefix(EncoderMethod):
    """Puts learned keys and values in front of those of every attention.

    As Li and Liang 2021, arXiv:2101.00190, but trained directly, not through a network. They have no
    position: rotary embeddings do not turn them. A cache of keys never holds them, they are put in front at
    each call, so `generate` works as before. Values start at zero: at first a prefix only draws attention
    away from the tokens.

    The places are wherever the network calls torch's `scaled_dot_product_attention`, seen in a trial run; the
    layers of transformers (`sdpa`), timm (fused attention) and torch do. A mode of torch's function overrides
    changes these calls, which compiles and can be recomputed. No plain weights stand for a prefix.
    """

    merges = False

    def __init__(self, length: int = 16) -> None:
        """Take the number of keys.

        Raises:
            ValueError: It is not positive.
        """
        if length < 1:
            raise ValueError(f"prefix: length={length} must be at least 1")
        self.length = length

    def adapt(self, network: nn.Module) -> None:
        """Give every module that attends a prefix.

        Raises:
            ValueError: None is found, or one cannot have a prefix.
        """
        name = type(network).__name__
        if not trial.can_run(network):
            raise ValueError(
                f"prefix: {name} is neither an encoder nor a language model, so its attention cannot be "
                "seen: adapt the whole encoder, or use lora"
            )
        found = _find_attentions(network)
        if not found:
            raise ValueError(
                f"prefix: {name} never calls torch's scaled_dot_product_attention: load a transformers model "
                "with attn_implementation sdpa; for a network without attention use adapters or lora"
            )
        for module, heads in found.items():
            if any(inner in found for inner in module.modules() if inner is not module):
                raise ValueError(
                    f"prefix: {type(module).__name__} attends itself and in a module inside it, which would "
                    "get both prefixes: use adapters or lora"
                )
            key = heads.like.new_empty(heads.number, self.length, heads.key_dim).normal_() * heads.scale
            value = heads.like.new_zeros(heads.number, self.length, heads.value_dim)
            kind = PrefixedMultihead if isinstance(module, nn.MultiheadAttention) else Prefixed
            graft(module, kind, prefix_key=nn.Parameter(key), prefix_value=nn.Parameter(value))
        leave_fast_path(network, Graft)

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """The prefixes."""
        return name.rpartition(".")[2] in ("prefix_key", "prefix_value")


class Heads(NamedTuple):
    """Shape of the keys and values of an attention."""

    number: int
    key_dim: int
    value_dim: int
    scale: float
    """Deviation of the keys."""
    like: Tensor
    """Whose type and device the prefix has."""


class Prefixed(Graft):
    """A module that attends, with more keys and values than it knows of."""

    prefix_key: nn.Parameter
    prefix_value: nn.Parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; the mode sees to its attention."""
        with _Extending(self.prefix_key, self.prefix_value):
            return super().forward(*args, **kwargs)


class PrefixedMultihead(Graft):
    """`nn.MultiheadAttention` with a prefix; it attends inside a function that no mode sees into."""

    prefix_key: nn.Parameter
    prefix_value: nn.Parameter

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention.forward`, but it gives no weights; `is_causal` adds nothing to a mask."""
        own: Any = self
        if own._qkv_same_embed_dim:
            weights = own.in_proj_weight.chunk(3)
        else:
            weights = own.q_proj_weight, own.k_proj_weight, own.v_proj_weight
        biases = (None,) * 3 if own.in_proj_bias is None else own.in_proj_bias.chunk(3)
        inputs = [x if own.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        heads = [
            F.linear(x, weight, bias).reshape(*x.shape[:2], own.num_heads, -1).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]
        mask = None
        if attn_mask is not None:
            shape = attn_mask.shape[-2:]
            mask = attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(-1, own.num_heads, *shape)
            mask = _additive(mask, heads[0])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask[:, None, None, :], heads[0])
            mask = padding if mask is None else mask + padding
        dropout = own.dropout if self.training else 0.0
        call = dict(zip(_ARGUMENTS, [*heads, mask, dropout], strict=False))
        attended = F.scaled_dot_product_attention(**extended(call, self.prefix_key, self.prefix_value))
        output = own.out_proj(attended.transpose(1, 2).flatten(2))
        return output if own.batch_first else output.transpose(0, 1), None


def extended(
    call: Mapping[str, Any],
    prefix_key: Float[Tensor, "heads length key_dim"],
    prefix_value: Float[Tensor, "heads length value_dim"],
) -> dict[str, Any]:
    """Put a prefix in front of keys and values, which every query sees.

    Args:
        call: Arguments of `F.scaled_dot_product_attention` by name; keys [rows, heads, ..., keys, key_dim],
            or [rows, keys, key_dim] where there is one head. A model may have repeated its heads for groups
            of queries.
        prefix_key: In any floating type.
        prefix_value: In any floating type.
    """
    key = call["key"]
    length = prefix_key.shape[1]
    mask = call.get("attn_mask")
    if call.get("is_causal", False):
        # Query i sees the keys to i, counted from the first, however many there are.
        mask = torch.ones(call["query"].shape[-2], key.shape[-2], dtype=torch.bool, device=key.device).tril()
    if mask is not None:
        mask = F.pad(
            mask.expand(*mask.shape[:-1], key.shape[-2]), (length, 0), value=mask.dtype == torch.bool
        )
    return {
        **call,
        "key": torch.cat([_spread(prefix_key, key), key], dim=-2),
        "value": torch.cat([_spread(prefix_value, call["value"]), call["value"]], dim=-2),
        "attn_mask": mask,
        "is_causal": False,
    }


def _spread(prefix: Tensor, heads: Tensor) -> Tensor:
    """A prefix in type and shape of keys, but for their number."""
    if heads.ndim == 3:
        return prefix.to(heads.dtype).expand(len(heads), -1, -1)
    groups = heads.shape[1] // len(prefix)
    prefix = prefix.to(heads.dtype).repeat_interleave(groups, dim=0)
    between = heads.shape[2:-2]
    return prefix[(None, slice(None), *(None for _ in between))].expand(len(heads), -1, *between, -1, -1)


def _additive(masked: Tensor, like: Tensor) -> Tensor:
    """A mask of torch's layers, where True hides, as what is added to the scores."""
    if masked.dtype != torch.bool:
        return masked.to(like.dtype)
    return torch.zeros_like(masked, dtype=like.dtype).masked_fill(masked, -torch.inf)


class _Extending(TorchFunctionMode):
    """Extends every attention that is computed inside it."""

    def __init__(self, prefix_key: Tensor, prefix_value: Tensor) -> None:
        super().__init__()
        self.prefix = prefix_key, prefix_value

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            call = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            return func(**extended(call, *self.prefix))
        return func(*args, **kwargs)


class _Watching(TorchFunctionMode):
    """Notes which module computes attention of which shape."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[nn.Module] = []
        self.found: dict[nn.Module, Heads] = {}

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Called before a module's forward pass."""
        self.running.append(module)
        if isinstance(module, nn.MultiheadAttention):
            like = _precise(module.out_proj.weight)
            self.found[module] = Heads(module.num_heads, module.head_dim, module.head_dim, 1.0, like)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Called after it."""
        self.running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            call = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            self._note(call["key"], call["value"])
        return func(*args, **kwargs)

    def _note(self, key: Tensor, value: Tensor) -> None:
        module = self.running[-1]
        number = 1 if key.ndim == 3 else key.shape[1]
        shape = number, key.shape[-1], value.shape[-1]
        known = self.found.setdefault(module, Heads(*shape, float(key.float().std()), _precise(key)))
        if known[:3] != shape:
            raise ValueError(
                f"prefix: {type(module).__name__} attends with (heads, size of keys, of values) {known[:3]} "
                f"and {shape}, which one prefix cannot serve: use adapters or lora"
            )


def _precise(tensor: Tensor) -> Tensor:
    """An empty one on its device, of float32 at least: what is trained needs the digits."""
    return tensor.new_empty(0, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _find_attentions(network: nn.Module) -> dict[nn.Module, Heads]:
    """The modules that attend themselves, not in a module inside them."""
    watching = _Watching()
    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(watching.enter).remove)
            stack.callback(module.register_forward_hook(watching.leave, always_call=True).remove)
        with watching:
            trial.run(network)
    return watching.found
