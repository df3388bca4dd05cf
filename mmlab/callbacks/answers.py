"""What a language model said: a result file in a benchmark's own format, and a page of fixed samples."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import lightning as L
import wandb
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.utilities import rank_zero_info

from mmlab import collectives
from mmlab.callbacks.cards import STYLE, open_picture, sound_tag, thumbnail
from mmlab.callbacks.run_logger import RunLogger
from mmlab.callbacks.spared import spare_text
from mmlab.runs.directory import put_text

_SAID = "answer"
"""What stands for the answer among the fields of a result."""


class AnswerWriter(BasePredictionWriter):
    """Writes `predictions/<file>` into the run directory, one record for each sample, in their order.

    Args:
        fields: What a record holds: by its name in the file a field of the sample (`json.question_id`),
            `key`, or `answer`, which is what the model said.
        file: `.jsonl` has a record on each line; `.json` is one array, as VQA and COCO take it.

    Raises:
        ValueError: No field is the answer, or the file has another ending.
    """

    def __init__(self, fields: dict[str, str], file: str = "answers.jsonl") -> None:
        super().__init__("batch")
        if _SAID not in fields.values():
            raise ValueError(f"fields {fields}: one must be `answer`, which is what the model said")
        if not file.endswith((".jsonl", ".json")):
            raise ValueError(f"file={file}: it ends in .jsonl or .json")
        self.fields = fields
        self.file = file
        self._records: dict[int, dict[str, Any]] = {}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the records of a batch."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for said in prediction:
            known = {_SAID: said.text, "key": said.key}
            self._records[said.place] = {
                name: known[field] if field in known else _first(data.field("predict", said.place, field))
                for name, field in self.fields.items()
            }

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the records of all ranks together and write them."""
        gathered: dict[int, dict[str, Any]] = {}
        for part in collectives.gather_objects(self._records):
            gathered |= part
        self._records = {}
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        records = [gathered[place] for place in sorted(gathered)]
        if self.file.endswith(".json"):
            text = json.dumps(records, ensure_ascii=False, indent=0)
        else:
            text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        put_text(folder / self.file, text)


def _first(values: Sequence[Any]) -> Any:
    return values[0] if values else None


class Predicted(NamedTuple):
    """What was said of a sample that is only predicted, as far as a page shows it."""

    place: int
    prediction: str
    references: tuple[str, ...]
    whole: str | None


class AnswerPage(Callback):
    """Shows what the model says of the same samples at every validation, at the test and in prediction.

    `answers-val.html`, `answers-test.html` and `answers-predict.html` in the run directory, and a Weights &
    Biases table. The samples are spread evenly over the split, whatever the model makes of them. Where the
    answer is a part of what was said, all of that is shown.

    Args:
        samples: How many.
        question: Field of the sample (`json.question`) that is shown as what was asked; None: what readers of
            text read. For questions that the model reads as numbers.
    """

    def __init__(self, samples: int = 12, question: str | None = None) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: at least 1")
        self.samples = samples
        self.question = question
        self._predicted: list[Predicted] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the validation samples."""
        if not trainer.sanity_checking:
            self._show(trainer, _answered(pl_module), "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the test samples."""
        self._show(trainer, _answered(pl_module), "test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew."""
        self._predicted = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what was said."""
        task: Any = pl_module
        for said in outputs:
            references = task.references_of(batch, said.sample)
            self._predicted.append(Predicted(said.place, said.text, references, said.whole))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show samples of what was predicted."""
        parts = collectives.gather_objects(self._predicted)
        found = {one.place: one for part in parts for one in part}
        self._show(trainer, [found[place] for place in sorted(found)], "predict")

    def _show(self, trainer: L.Trainer, answered: Sequence[Any], split: str) -> None:
        if not trainer.is_global_zero or not answered:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        wanted = min(self.samples, len(answered))
        chosen = [answered[number * len(answered) // wanted] for number in range(wanted)]
        rows = [(one, self._exhibit(data, split, one.place)) for one in chosen]
        if self.question is not None and not any(shown.texts for _, shown in rows):
            rank_zero_info(f"answers-{split}.html: no sample on it has the field {self.question}")
        spare_text(
            Path(trainer.default_root_dir) / f"answers-{split}.html",
            f"<!doctype html><meta charset=utf-8><title>Answers</title><style>{STYLE}</style>"
            f"<h1>What the model says of {wanted} samples</h1><p>Step {trainer.global_step}. Samples are "
            "spread evenly over the split, not chosen. Green where the answer is one of the references, in "
            "capitals or not.</p>" + "".join(_section(one, shown) for one, shown in rows),
        )
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                _log(logger, rows, split=split)

    def _exhibit(self, data: Any, split: str, place: int) -> Any:
        shown = data.exhibit(split, place)
        if self.question is None:
            return shown
        return shown._replace(texts=tuple(map(str, data.field(split, place, self.question))))


def _answered(pl_module: L.LightningModule) -> Sequence[Any]:
    """What was said in the evaluation that has just ended; every rank must call it."""
    metrics: Any = pl_module.metrics
    found: Sequence[Any] = metrics.answered()
    return found


def _section(answered: Any, shown: Any) -> str:
    media = "".join(f"<img alt='' src='{thumbnail(image)}'>" for image in shown.images)
    media += "".join(sound_tag(sound.extension, sound.content) for sound in shown.sounds)
    right = answered.prediction.casefold() in [reference.casefold() for reference in answered.references]
    references = "; ".join(answered.references[:5])
    asked = f"<div class='card wide'>{html.escape(shown.texts[0])}</div>" if shown.texts else ""
    return (
        f"<div class=row><div class='card query'>{media}<div class=note>{html.escape(shown.key)}</div></div>"
        f"{asked}<span class=arrow>&rarr;</span>"
        f"<div class='card wide {'right' if right else ''}'>{html.escape(_said(answered))}"
        f"<div class=note>{html.escape(references)}</div></div></div>"
    )


def _said(answered: Any) -> str:
    whole: str = answered.prediction if answered.whole is None else answered.whole
    return whole


def _log(logger: RunLogger, rows: Sequence[tuple[Any, Any]], *, split: str) -> None:
    """A table with pictures and sounds."""
    table = wandb.Table(columns=["key", "image", "sound", "question", "answer", "references"])
    with TemporaryDirectory() as folder:  # wandb copies sounds when the table is logged
        for number, (answered, shown) in enumerate(rows):
            picture = wandb.Image(open_picture(shown.images[0])) if shown.images else None
            sound = _sound(shown.sounds[0], Path(folder) / str(number)) if shown.sounds else None
            asked = shown.texts[0] if shown.texts else ""
            references = "; ".join(answered.references[:5])
            table.add_data(shown.key, picture, sound, asked, _said(answered), references)
        values: Mapping[str, Any] = {f"{split}/answers": table}
        logger.experiment.log(dict(values), commit=False)


def _sound(sound: Any, path: Path) -> wandb.Audio:
    """A sound as it lies in the shard, with the ending that players go by."""
    file = path.with_suffix(f".{sound.extension.rpartition('.')[2]}")
    file.write_bytes(sound.content)
    return wandb.Audio(str(file))
