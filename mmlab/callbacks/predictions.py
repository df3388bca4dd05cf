"""What `mmlab predict` leaves: the embeddings of every sample, as arrays that any program reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor

from mmlab import collectives
from mmlab.batch import NOBODY, Batch, Embeddings
from mmlab.runs.directory import put_text


class EmbeddingWriter(BasePredictionWriter):
    """Writes `predictions/embeddings-<rank>.safetensors` and `keys-<rank>.json` into the run directory.

    For each modality, `<modality>.vector` [rows, dim] holds unit vectors and `<modality>.place` [rows] the
    number of the sample that a row belongs to; the JSON file names the key of each place.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._rows: dict[str, list[Embeddings]] = {}
        self._keys: dict[int, str] = {}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the rows that stand for a sample, on the CPU."""
        for modality, rows in prediction._asdict().items():
            if rows is not None:
                keep = rows.group != NOBODY
                kept = Embeddings(*(field[keep].cpu() for field in rows))
                self._rows.setdefault(modality, []).append(kept)
        for key, place in zip(batch.keys, batch.place.tolist(), strict=True):
            if key != "":
                self._keys[place] = key

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write this rank's rows."""
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for modality, parts in self._rows.items():
            tensors[f"{modality}.vector"] = torch.cat([rows.vector for rows in parts]).contiguous()
            tensors[f"{modality}.place"] = torch.cat([rows.place for rows in parts])
        rank = collectives.rank()
        save_file(tensors, folder / f"embeddings-{rank}.safetensors")
        put_text(folder / f"keys-{rank}.json", json.dumps(self._keys, indent=0))
        self._rows.clear()
        self._keys.clear()
