"""Language models of random weights, trained by mmlab for the next token; benchmarks/gpu.py runs this file.

    python gpu_language.py SIZE DEVICE ROWS TOKENS STEPS

Once all weights, once LoRA of rank 16. Each prints one line of JSON.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from gpu_training import Repeated, measure, optimization, quiet, tell
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from transformers import LlamaConfig, LlamaForCausalLM

from mmlab.adaptation.lora import LoRA
from mmlab.adaptation.policy import Policy
from mmlab.batch import Batch, Input
from mmlab.parallel.execution import Execution
from mmlab.tasks.base import BaseTask

SIZES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
    },
    "Llama-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 500, "tie_word_embeddings": True,
    },
}  # fmt: skip


class LanguageModel(nn.Module):
    """Logits of each next token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.network = LlamaForCausalLM(config)

    def forward(self, batch: Batch) -> Tensor:
        """Run the network on the rows of text."""
        assert batch.text is not None
        logits: Tensor = self.network(input_ids=batch.text.data, use_cache=False).logits
        return logits


class NextToken(BaseTask):
    """The loss that language models are trained with."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of each token, given those before it."""
        assert batch.text is not None
        logits = self(batch)[:, :-1]
        return {"next": F.cross_entropy(logits.flatten(0, 1), batch.text.data[:, 1:].flatten())}

    def make_metrics(self) -> Metric:
        """The mean loss."""
        return MeanMetric()

    def update_metrics(self, metrics: Metric, batch: Batch) -> None:
        """Add a batch."""
        metrics.update(self.losses(batch)["next"])


def main() -> None:
    quiet()
    name, device, *numbers = sys.argv[1:]
    rows, tokens, steps = map(int, numbers)
    config = LlamaConfig(**SIZES[name], max_position_embeddings=tokens)
    owner, present = torch.arange(rows), torch.ones(rows, dtype=torch.bool)
    ids = torch.randint(0, config.vocab_size, (rows, tokens))
    text = Input(ids, owner, present, torch.full((rows,), tokens))
    batch = Batch(keys=("k",) * rows, place=owner, valid=present, group=owner, text=text)
    for title, method in (("all weights", "full"), ("LoRA", LoRA(16))):
        torch.manual_seed(0)
        task = NextToken(
            LanguageModel(config), optimization=optimization(), adaptation=Policy({"network": method})
        )
        task.execution = Execution(compile=True)
        found = measure(f"{name}, {title}", task, Repeated(batch, steps), device=device, unit="tokens/s")
        tell(found)
        del task


if __name__ == "__main__":
    main()
