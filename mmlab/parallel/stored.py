"""Checkpoints on disk: one file, a folder to which each rank wrote its part, or weights alone."""

from __future__ import annotations

import difflib
import json
import pickle
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from mmlab.parallel.digests import PART, SUMS, proven, rename

REST = "meta.pt"
"""File of a folder that holds all but the tensors."""
WEIGHTS = "state_dict."
HEADER = "mmlab"
"""Entry of a safetensors header that says, as JSON, what the weights are."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""What safetensors calls the types of tensors."""
UNREADABLE = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError,
    pickle.UnpicklingError, BadZipFile, struct.error, zlib.error, SafetensorError,
)  # fmt: skip
"""What reading random bytes as a checkpoint may raise."""


class Shape(NamedTuple):
    """What a stored tensor is."""

    size: tuple[int, ...]
    dtype: torch.dtype


class Stored(ABC):
    """A checkpoint whose tensors stay on disk until they are asked for.

    Tensors have one name each: `state_dict.NAME` for weights, `optimizer_I.state.P.KEY` for what optimizer I
    keeps of its parameter P, both counted from 0.
    """

    rest: dict[str, Any]
    """All but the tensors, as Lightning keeps it; of optimizers, `optimizer_states` has the settings."""
    shapes: Mapping[str, Shape]
    """Of every tensor, by name."""

    @abstractmethod
    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, by name; of a DTensor this rank's part.

        Every tensor must have the stored size; its type may be another one.
        """

    @property
    def weights(self) -> set[str]:
        """Names of the weights, as in the state dict of the task."""
        return {name.removeprefix(WEIGHTS) for name in self.shapes if name.startswith(WEIGHTS)}

    def new(self, name: str) -> Tensor:
        """A stored tensor, whole."""
        tensor = torch.empty(self.shapes[name].size, dtype=self.shapes[name].dtype)
        self.read({name: tensor})
        return tensor

    def optimizer_state(self, number: int, parameters: list[Tensor]) -> dict[str, Any]:
        """What `load_state_dict` of an optimizer takes.

        Args:
            number: Of the optimizer.
            parameters: Its parameters, in order. What is kept of one in its own size is sharded as it is.
        """
        prefix = f"optimizer_{number}.state."
        settings = self.rest["optimizer_states"][number]
        state = {int(place): dict(kept) for place, kept in settings["state"].items()}
        tensors: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            if name.startswith(prefix):
                place, key = name.removeprefix(prefix).split(".", 1)
                tensors[name] = _empty(shape, parameters[int(place)])
                state.setdefault(int(place), {})[key] = tensors[name]
        self.read(tensors)
        return {"state": state, "param_groups": settings["param_groups"]}

    def whole(self) -> dict[str, Any]:
        """All of it, as one file would hold it."""
        tensors = {name: torch.empty(shape.size, dtype=shape.dtype) for name, shape in self.shapes.items()}
        self.read(tensors)
        return joined(tensors, self.rest)


def _empty(shape: Shape, parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and tuple(parameter.shape) == shape.size:
        return torch.empty_like(parameter, dtype=shape.dtype, requires_grad=False)
    return torch.empty(shape.size, dtype=shape.dtype)


def parted(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part a checkpoint, as Lightning makes it, into its tensors by name and the rest."""
    tensors = {f"{WEIGHTS}{name}": value for name, value in checkpoint["state_dict"].items()}
    rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    settings = []
    for number, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        state: dict[int, dict[str, Any]] = {}
        for place, kept in optimizer["state"].items():
            for key, value in kept.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer_{number}.state.{place}.{key}"] = value
                else:
                    state.setdefault(place, {})[key] = value
        settings.append({"state": state, "param_groups": optimizer["param_groups"]})
    return tensors, rest | ({"optimizer_states": settings} if settings else {})


def joined(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`parted`."""
    checkpoint: dict[str, Any] = {**rest, "state_dict": {}}
    if "optimizer_states" in rest:
        checkpoint["optimizer_states"] = [
            {"state": {place: dict(kept) for place, kept in one["state"].items()}, **_groups(one)}
            for one in rest["optimizer_states"]
        ]
    for name, value in tensors.items():
        if name.startswith(WEIGHTS):
            checkpoint["state_dict"][name.removeprefix(WEIGHTS)] = value
        else:
            optimizer, _, place, key = name.split(".", 3)
            state = checkpoint["optimizer_states"][int(optimizer.removeprefix("optimizer_"))]["state"]
            state.setdefault(int(place), {})[key] = value
    return checkpoint


def _groups(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    return {"param_groups": optimizer["param_groups"]}


def open_checkpoint(path: Path) -> Stored:
    """Look into a checkpoint of any form; nothing in it is run, whoever wrote it.

    Raises:
        ValueError: It is none.
    """
    path = left_of(path)
    if (path / REST).is_file():
        return _Folder(path)
    if path.is_file() and is_zipfile(path):
        return _File(path)
    if path.is_file() and path.suffix == ".safetensors":
        return _Weights(path)
    inside = path / "checkpoints" / "last.ckpt"
    if inside.exists():
        what = f"this is a run directory: take {inside}"
    elif path.is_dir() or path.exists():
        what = "this is no checkpoint, or is cut off"
    else:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        what = "nothing is there" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    raise ValueError(f"checkpoint {path}: {what}")


def part_of(path: Path) -> Path:
    """Where a folder is written until it is complete; all ranks know it."""
    return path.with_name(f".{path.name}{PART}")


def former_of(path: Path) -> Path:
    """What the checkpoint of this name is called while another one takes its place."""
    return path.with_name(f".{path.name}.old")


def left_of(path: Path) -> Path:
    """Where a checkpoint stands: elsewhere, if its save was cut off while names were changed."""
    if path.exists():
        return path
    if (part_of(path) / SUMS).is_file():  # it is written last
        return part_of(path)
    return former_of(path) if former_of(path).exists() else path


def finish_rename(path: Path) -> None:
    """Give a checkpoint its name where a save was cut off before it could."""
    left = left_of(path)
    if left != path:
        rename(left, path.name)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint of any form, all of which is read; None if nothing is.

    A SHA-256 beside it, or in its folder, decides; without one, whether all can be read, which the checksums
    within files of torch prove.
    """
    path = left_of(path)
    try:
        fits = proven(path) if path.exists() else None
        if fits is False:
            return "its content is not what was written (SHA-256)"
        stored = open_checkpoint(path)
        if fits is None:
            if path.is_file() and is_zipfile(path):
                with ZipFile(path) as archive:
                    bad = archive.testzip()
                if bad is not None:
                    return f"its content is not what was written (checksum of {bad})"
            else:
                for name in stored.shapes:
                    stored.new(name)
    except UNREADABLE as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return first.removeprefix(f"checkpoint {path}: ")
    return None


class _File(Stored):
    """One file, as Lightning writes it."""

    def __init__(self, path: Path) -> None:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if "state_dict" not in checkpoint:
            raise ValueError(f"checkpoint {path}: this file holds no state_dict")
        self._tensors, self.rest = parted(checkpoint)
        self.shapes = {name: Shape(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            _fill(tensor, self._tensors[name])


class _Weights(Stored):
    """A safetensors file, with what the weights are in its header."""

    def __init__(self, path: Path) -> None:
        opened: Any = safe_open
        self._file = opened(path, framework="pt")
        self.rest = json.loads((self._file.metadata() or {}).get(HEADER, "{}"))
        parts = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  it is no dict
        self.shapes = {
            f"{WEIGHTS}{name}": Shape(tuple(part.get_shape()), TYPES[part.get_dtype()])
            for name, part in parts.items()
        }

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            _fill(tensor, self._file.get_tensor(name.removeprefix(WEIGHTS)))


def _fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy a tensor, or this rank's part of it."""
    if isinstance(tensor, DTensor):
        # Every rank has read the whole: no rank needs to send anything.
        part = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(part.to_local())
    else:
        tensor.copy_(whole)


class _Folder(Stored):
    """A folder of torch.distributed.checkpoint, and a file for the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rest = torch.load(path / REST, map_location="cpu", weights_only=True)
        self._table = _Reader(path).read_metadata()
        self.shapes = {}
        for name, entry in self._table.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise ValueError(f"checkpoint {path}: {name} is no tensor, so mmlab has not written it")
            self.shapes[name] = Shape(tuple(entry.size), entry.properties.dtype)

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        # As dcp.load does, but every rank for itself: what one cannot read stops that rank, not the others
        # in a collective.
        reader, planner = _Reader(self._path), DefaultLoadPlanner(flatten_state_dict=False)
        planner.set_up_planner(dict(tensors), self._table, is_coordinator=True)
        reader.set_up_storage_reader(self._table, is_coordinator=True)
        plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
        reader.read_data(plan, planner).wait()


class _Reader(FileSystemReader):
    """Reads a folder whose table may have been written by anyone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with self.fs.create_stream(self._get_metadata_path(), "rb") as file:
            table = _Table(file).load()
        if not isinstance(table, Metadata):
            raise ValueError(f"checkpoint {self.path}: its table is a {type(table).__name__}")
        return table


class _Table(pickle.Unpickler):
    """Unpickles what torch.distributed.checkpoint writes, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"):
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module and name in _RECORDS:
                return found
        if (module, name) in (("torch", "Size"), ("torch.serialization", "_get_layout")):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("pathlib") and name.endswith("Path"):
            return PurePosixPath
        raise ValueError(f"the table of a checkpoint names {module}.{name}, which no checkpoint needs")


_RECORDS = {
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
    "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING", "_StorageInfo",
}  # fmt: skip
