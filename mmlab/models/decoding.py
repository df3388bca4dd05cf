"""How a language model chooses what it says."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedModel


@dataclass(frozen=True)
class Decoding:
    """Settings of generation.

    Raises:
        ValueError: If a setting is out of its range.
    """

    max_new_tokens: int = 32
    """Longest answer."""
    num_beams: int = 1
    """Beams that are searched; 1 takes the most likely token, or draws one."""
    sample: bool = False
    """Draw tokens instead of taking the most likely."""
    temperature: float = 1.0
    """Of drawing: below 1 sharper."""
    top_p: float = 1.0
    """Draw among the most likely tokens that hold this share of probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that were said (Keskar et al. 2019); 1 does nothing."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens}, num_beams={self.num_beams}: at least 1 each"
            )
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.repetition_penalty > 0):
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}, repetition_penalty="
                f"{self.repetition_penalty}: above 0, top_p at most 1"
            )

    def settings(self, model: PreTrainedModel) -> GenerationConfig:
        """For transformers, with the special tokens of a model."""
        own = model.generation_config
        assert own is not None, "a causal language model has a generation config"
        end = own.eos_token_id
        padding = own.pad_token_id
        if padding is None:
            padding = end[0] if isinstance(end, list) else end
        drawn = {"temperature": self.temperature, "top_p": self.top_p} if self.sample else {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=self.sample,
            repetition_penalty=self.repetition_penalty,
            bos_token_id=own.bos_token_id,
            eos_token_id=end,
            pad_token_id=padding,
            **drawn,
        )
