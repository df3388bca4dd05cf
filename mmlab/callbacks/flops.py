"""Floating-point operations of a training step: counted while some step runs, remembered for its shapes."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from mmlab.batch import Batch
from mmlab.parallel.recompute import recomputing

Shapes = tuple[tuple[int, ...], ...]
"""What the operations of a step depend on; lengths are rounded."""

_FORMULAS = {
    # Not every release of torch counts attention on a CPU.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
    **flop_registry,
}
_STEPS_OF_OCTAVE = 8
"""Sizes that are told apart between a size and its double: within 4.4 % they count as one."""
_MOST_COUNTS = 24
"""Steps of a run that are counted; each takes about twice its time."""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of matrix products, convolutions and attention that run inside.

    By torch's own formulas: a multiply-add is two operations, masked attention counts whole. What runs a
    second time to save memory does not count.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = {} if kwargs is None else kwargs
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(getattr(func, "_overloadpacket", func))
        if formula is not None and not recomputing():
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


class StepFlops:
    """Knows the operations of steps, forward and backward, by the shapes of their batch."""

    def __init__(self) -> None:
        self._known: dict[Shapes, int] = {}
        self._counter: FlopCounter | None = None
        self._entered = ExitStack()
        self._shapes: Shapes = ()

    def of(self, shapes: Shapes) -> int | None:
        """Operations of a step, or None where none like it was counted."""
        if shapes in self._known or not self._known:
            return self._known.get(shapes)
        like = [known for known in self._known if [len(s) for s in known] == [len(s) for s in shapes]]
        return self._known[min(like, key=lambda known: _distance(known, shapes))] if like else None

    def begin(self, shapes: Shapes, module: LightningModule) -> bool:
        """Count the forward and backward pass that comes next, if it is new and there is room for it.

        Compiled networks run as they were written then, which takes more memory: activations are kept on the
        host where the device may not hold them.

        Returns:
            Whether the step is counted; it takes more time than others.
        """
        if shapes in self._known or len(self._known) >= _MOST_COUNTS:
            return False
        with ExitStack() as stack:
            if _is_compiled(module):
                if module.device.type == "cuda" and not _make_room(module.device, stack):
                    return False
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._counter = stack.enter_context(FlopCounter())
            self._entered = stack.pop_all()
        self._shapes = shapes
        return True

    def end(self) -> None:
        """The backward pass is done, or has failed."""
        if self._counter is not None:
            self._entered.close()
            self._known[self._shapes] = self._counter.total
            self._counter = None


def step_shapes(batch: Batch, stage: int) -> Shapes:
    """What decides the operations of a step.

    Args:
        batch: Its rows and lengths count.
        stage: Of the adaptation: it decides what the backward pass computes.
    """
    found: list[tuple[int, ...]] = [(stage,)]
    for number, (_, inputs) in enumerate(batch.inputs()):
        sizes = inputs.data.shape if inputs.length is None else inputs.data.shape[:2]
        found.append((number, int(inputs.encoded), *(round(_STEPS_OF_OCTAVE * math.log2(n)) for n in sizes)))
    return tuple(found)


def _distance(first: Shapes, second: Shapes) -> int:
    return sum(abs(a - b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def _is_compiled(module: nn.Module) -> bool:
    return any(part._compiled_call_impl is not None for part in module.modules())


def _make_room(device: torch.device, stack: ExitStack) -> bool:
    """Whether a step may run as it was written where a compiled one has run."""
    used = torch.cuda.max_memory_allocated(device)
    if used == torch.cuda.memory_allocated(device):
        return False  # the first step: nothing is known
    if 2 * used > torch.cuda.mem_get_info(device)[1]:
        if 2 * used > _free_on_host():
            return False
        stack.enter_context(torch.autograd.graph.save_on_cpu())
    # What this one step takes is not what training takes.
    stack.callback(torch.cuda.reset_peak_memory_stats, device)
    return True


def _free_on_host() -> int:
    """Bytes that the system can give; 0 where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
    except OSError:
        return 0
    return int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024
