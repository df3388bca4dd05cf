"""A language model that sees, tuned by transformers' Trainer; benchmarks/lm_tuning.py runs this file.

    python transformers_tuning.py --serve FOLDER ROUNDS STEPS BATCH THREADS

As a user of transformers puts it together, after LLaVA: the model's own forward with embeddings and labels,
embeddings of pictures scattered to where their tokens stand, peft's LoRA in all linear layers, a collator
that pads to the longest. The image tower is mmlab's, so that the start can be the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lm_tuning import Turns
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mmlab.assets import catalog
from mmlab.batch import MARKERS, Input, Modality
from mmlab.models.encoders.image import ImageEncoder
from mmlab.models.media import MediaTower
from mmlab.models.pretrained import quiet

IMAGE = MARKERS[Modality.IMAGE]
IGNORED = -100


class SeeingModel(nn.Module):
    """An image tower and a language model with LoRA."""

    def __init__(self, start: dict[str, Any]) -> None:
        super().__init__()
        self.tower = MediaTower(ImageEncoder("efficientnet-lite0"), dim=576, hidden=576)
        self.tower.load_state_dict(start["tower"])
        with quiet():
            language = AutoModelForCausalLM.from_pretrained(
                catalog.resolve("smollm2-135m-instruct"), dtype=torch.float32
            )
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        self.language = get_peft_model(language, lora)
        self.embed = language.get_input_embeddings()
        names = {name.partition("backbone.")[2]: value for name, value in start["lora"].items()}
        state = {f"base_model.model.{name.replace('.default', '')}": value for name, value in names.items()}
        wrong = set_peft_model_state_dict(self.language, state).unexpected_keys
        assert not wrong, wrong

    def see(self, pixels: Tensor) -> Tensor:
        """Tokens of pictures."""
        owner = torch.arange(len(pixels), device=pixels.device)
        tokens: Tensor = self.tower(Input(pixels, owner, torch.ones_like(owner, dtype=torch.bool))).tokens
        return tokens

    def forward(
        self, pixels: Tensor, ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """The loss."""
        place = ids == IMAGE
        embedded = self.embed(ids.masked_fill(place, 0))
        embedded = embedded.masked_scatter(place[..., None], self.see(pixels))
        output = self.language(
            inputs_embeds=embedded, attention_mask=attention_mask, labels=labels, use_cache=False
        )
        self.loss = output.loss.detach()  # for Taking: callbacks are not told
        return {"loss": output.loss}


def expand(sample: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """As many tokens for a picture as its embeddings, and what is to be said as labels."""
    count = torch.where(sample["ids"] == IMAGE, tokens, 1)
    labels = torch.where(sample["said"], sample["ids"], IGNORED)
    return {
        "pixels": sample["pixels"],
        "ids": torch.repeat_interleave(sample["ids"], count),
        "labels": torch.repeat_interleave(labels, count),
    }


def pad(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch, padded to its longest."""
    ids = [row["ids"] for row in rows]
    return {
        "pixels": torch.stack([row["pixels"] for row in rows]),
        "ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
    }


class Taking(TrainerCallback):
    """The Trainer's steps, in turns."""

    def __init__(self, turns: Turns, model: SeeingModel) -> None:
        self.turns, self.model = turns, model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait."""
        self.turns.begin(self.model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count."""
        self.turns.step(self.model.loss)


def main() -> None:
    folder, *numbers = sys.argv[2:]
    rounds, steps, batch, threads = map(int, numbers)
    torch.set_num_threads(threads)
    turns = Turns(rounds, steps)
    start = torch.load(Path(folder) / "start.pt")
    model = SeeingModel(start)
    settings = TrainingArguments(
        output_dir=str(Path(folder) / "transformers"),
        per_device_train_batch_size=batch,
        max_steps=rounds * steps,
        optim="adamw_torch_fused",
        learning_rate=5e-4,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(
        model,
        settings,
        train_dataset=[expand(sample, start["media"]) for sample in start["samples"]] * rounds,
        data_collator=pad,
        callbacks=[Taking(turns, model)],
    ).train()


if __name__ == "__main__":
    main()
