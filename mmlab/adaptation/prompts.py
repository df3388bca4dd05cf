"""Prompt tuning: learned vectors among the tokens of a sequence."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlab.adaptation import trial
from mmlab.adaptation.graft import Graft, graft, leave_fast_path
from mmlab.adaptation.method import EncoderMethod
from mmlab.models.blocks import find_blocks
from mmlab.models.network import Network


class Prompts(EncoderMethod):
    """Puts learned vectors among the tokens of a network, and takes out again what became of them.

    A network with a table of token embeddings gets them in front of the embeddings (Lester et al. 2021,
    arXiv:2104.08691): its own tokens move on by as many positions. `generate` works with a growing cache of
    keys, which then holds the prompts. Other networks get them behind the tokens that their first block reads
    (Jia et al. 2022, arXiv:2203.12119, shallow), without a position; every token sees them.

    They start at random at the scale of what they stand among, so the function changes at once.
    """

    merges = False

    def __init__(self, length: int = 16) -> None:
        """Take the number of vectors.

        Raises:
            ValueError: It is not positive.
        """
        if length < 1:
            raise ValueError(f"prompts: length={length} must be at least 1")
        self.length = length

    def adapt(self, network: nn.Module) -> None:
        """Give the network its prompts.

        Raises:
            ValueError: It has no sequence that they could stand in, or one for many samples.
        """
        name = type(network).__name__
        if not trial.can_run(network):
            raise ValueError(
                f"prompts: {name} is neither an encoder nor a language model, so its tokens cannot be seen: "
                "adapt the whole encoder, or use lora"
            )
        if isinstance(network, Network) and network.packing:
            raise ValueError(
                f"prompts: {name} runs samples as one sequence, and the prompts would stand before "
                "the first alone: set packing of the language model to false, or use prefix"
            )
        embedding = [module for module in network.modules() if trial.embedding(module) is not None]
        embedding = [call.module for call in trial.calls(network, embedding)]
        if embedding:
            # The inner one ended first: of a model with a head on top, what the head stands on.
            self._prompt_model(embedding[0])
        else:
            self._prompt_blocks(network)
        leave_fast_path(network, Graft)

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """The prompts."""
        return name.rpartition(".")[2] == "prompt"

    def _prompt_model(self, model: nn.Module) -> None:
        if "inputs_embeds" not in inspect.signature(type(model).forward).parameters:
            raise ValueError(
                f"prompts: {type(model).__name__} takes no inputs_embeds, so nothing can stand among its "
                "embeddings: use prefix, adapters or lora"
            )
        table = trial.embedding(model)
        assert table is not None
        graft(model, PromptedModel, prompt=self._start(table.weight))

    def _prompt_blocks(self, network: nn.Module) -> None:
        name = type(network).__name__
        calls = trial.calls(network, [block.module for block in find_blocks(network)])
        read = [call.args[0] for call in calls if call.args]
        shapes = {tokens.shape for tokens in read if isinstance(tokens, Tensor)}
        shape = shapes.pop() if len(shapes) == 1 else ()
        if len(shape) != 3 or len(read) < len(calls) or len({call.module for call in calls}) < len(calls):
            raise ValueError(
                f"prompts: {name} does not run one sequence of tokens through all of its blocks (a feature "
                "map has no place for prompts): use adapters or lora"
            )
        for call in calls:
            prompt = self._start(read[0]) if call is calls[0] else None
            closes = call is calls[-1]
            graft(call.module, PromptedBlock, prompt=prompt, prompts=self.length, closes=closes)
        try:
            trial.run(network)
        except RuntimeError as error:
            raise ValueError(
                f"prompts: the blocks of {name} are made for {shape[1]} tokens and cannot take "
                f"{self.length} more ({str(error).partition(chr(10))[0]}): use prefix, adapters or lora"
            ) from error

    def _start(self, among: Tensor) -> nn.Parameter:
        """Vectors at the scale of others, in float32 at least: what is trained needs the digits."""
        known = among.detach().to(torch.promote_types(among.dtype, torch.float32))
        return nn.Parameter(known.std() * known.new_empty(self.length, known.shape[-1]).normal_())


class PromptedModel(Graft):
    """A transformers model on token ids, with prompts in front that whoever calls it does not see."""

    prompt: nn.Parameter

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the model, and cut the prompts from its last hidden state.

        Raises:
            ValueError: Tokens and prompts do not fit into the model's positions, or the mask is of the form
                that only a static cache needs.
        """
        prompts = len(self.prompt)
        if attention_mask is not None:
            if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
                raise ValueError(
                    "prompts: the attention mask must be [rows, tokens]: generate with the dynamic cache "
                    "(leave cache_implementation out)"
                )
            attention_mask = F.pad(attention_mask, (prompts, 0), value=1)
        positions = kwargs.get("position_ids")
        if positions is not None:
            kwargs["position_ids"] = positions + prompts
        # transformers 5.24 renamed it.
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None and cache.get_seq_length() > 0:
            # The cache holds the prompts already.
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        own = kwargs.pop("inputs_embeds", None)
        if own is None:
            table = trial.embedding(self)
            assert table is not None
            own = table(input_ids)
        self._check_room(own.shape[1])
        if positions is not None:
            first = torch.arange(prompts, device=own.device).expand(*positions.shape[:-1], -1)
            kwargs["position_ids"] = torch.cat([first, kwargs["position_ids"]], dim=-1)
        if kwargs.get("token_type_ids") is not None:
            kwargs["token_type_ids"] = F.pad(kwargs["token_type_ids"], (prompts, 0))
        embedded = torch.cat([self.prompt.to(own.dtype).expand(len(own), -1, -1), own], dim=1)
        output = super().forward(inputs_embeds=embedded, attention_mask=attention_mask, **kwargs)
        output.last_hidden_state = output.last_hidden_state[:, prompts:]
        return output

    def _check_room(self, tokens: int) -> None:
        config: Any = self.config
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and tokens + len(self.prompt) > limit:
            raise ValueError(
                f"a text of {tokens} tokens and {len(self.prompt)} prompts, but {type(self).__name__} has "
                f"{limit} positions: lower max_length of the text in the data module, or the prompts' length"
            )


class PromptedBlock(Graft):
    """A block that reads tokens with prompts behind them; the first adds these, the last cuts them off."""

    prompt: nn.Parameter | None
    """Of the first block."""
    prompts: int
    """How many there are."""
    closes: bool
    """Whether it is the last block."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block, with masks that know of the prompts."""
        own = tokens.shape[1] if self.prompt is not None else tokens.shape[1] - self.prompts
        if self.prompt is not None:
            tokens = torch.cat([tokens, self.prompt.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)
        args = tuple(_extended(value, own, self.prompts) for value in args)
        kwargs = {name: _extended(value, own, self.prompts) for name, value in kwargs.items()}
        output = super().forward(tokens, *args, **kwargs)
        if not self.closes:
            return output
        if isinstance(output, tuple):
            return (output[0][:, :own], *output[1:])
        return output[:, :own]


def _extended(mask: Any, tokens: int, prompts: int) -> Any:
    """A mask [rows, heads, tokens or 1, tokens], boolean or added, under which all tokens see the prompts.

    The prompts see each other, and what any token sees. What is no such mask comes back as it is.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[3] != tokens:
        return mask
    shown = mask.dtype == torch.bool
    if mask.shape[2] == tokens:
        any_sees = mask.any(dim=2, keepdim=True) if shown else mask.amax(dim=2, keepdim=True)
        mask = torch.cat([mask, any_sees.expand(-1, -1, prompts, -1)], dim=2)
    return F.pad(mask, (0, prompts), value=shown)
