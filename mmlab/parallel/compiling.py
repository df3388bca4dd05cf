"""Compiling a model block by block, for any batch size and length."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from mmlab.batch import Modality
from mmlab.models.blocks import find_blocks
from mmlab.models.encoders.encoder import Encoder
from mmlab.parallel.recompute import networks

VERSIONS = 16
"""Most compiled versions of a block. Training, evaluation and inference mode make three; a batch of one row,
another layout of a mask and another stage of the training may each double them."""


def compile_model(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the blocks of every network with torch.compile, in place; names of parameters stay.

    Blocks of one class, size and setting share what is compiled, so it takes a fraction of the time of the
    whole network, and FSDP gathers weights between compiled parts. What stands between the blocks
    (embeddings, stems, heads) runs as it is. A network without blocks is compiled whole.

    Sequences are compiled for any number of rows and steps at once. Pictures have one size, and training
    batches too: blocks of image encoders are compiled for that and once more when another comes.

    Args:
        model: Built and adapted, and not yet sharded.
        backend: Of torch.compile.

    Raises:
        ValueError: The machine has no compiler that torch could use.
    """
    if backend == "inductor":
        _check_compiler()
    compiled = 0
    for network in networks(model):
        one_size = isinstance(network, Encoder) and network.modality is Modality.IMAGE
        for module in [block.module for block in find_blocks(network)] or [network]:
            module.compile(backend=backend, dynamic=None if one_size else True)
            compiled += 1
    # Torch counts versions by the code that they come from, which many blocks have in common even where their
    # sizes differ, as those of convolutional networks; beyond the limit it runs them uncompiled.
    limits = torch.compiler.config
    limits.recompile_limit = max(limits.recompile_limit, VERSIONS * compiled)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, VERSIONS * compiled)


def _check_compiler() -> None:
    names = ["g++", "clang++", "c++", "cl"]
    if torch.cuda.is_available():  # for a GPU, Triton needs C only
        names += ["gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in [os.environ.get("CXX", ""), *names]):
        raise ValueError(
            "execution.compile=true: torch.compile needs a C++ compiler, and none is on the PATH: install g++"
            " or clang, set CXX, or leave execution.compile out"
        )
