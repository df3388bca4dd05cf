from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from small_encoders import BERT, LLAMA, adapt, alone, encoder, rows
from torch import Tensor, nn
from transformers import (
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from mmlab.adaptation.prompts import Prompts
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.transformer_layer import TransformerLayer

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def in_front(prompt: Tensor, embedded: Tensor) -> Tensor:
    return torch.cat([prompt.expand(len(embedded), -1, -1), embedded], 1)


def language_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA).eval()


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_text_as_the_plain_model_computes_it_from_longer_embeddings(kind: str) -> None:
    plain, network = encoder(kind, torch.float64), encoder(kind, torch.float64)
    trained = adapt(network, Prompts(3))
    assert {name: tuple(p.shape) for name, p in trained.items()} == {"backbone.prompt": (3, 32)}
    inputs = rows(kind)
    assert inputs.mask is not None
    embedded = plain.backbone.get_input_embeddings()(inputs.data)
    mask = torch.cat([torch.ones(3, 3, dtype=torch.bool), inputs.mask], 1)
    expected = plain.backbone(
        inputs_embeds=in_front(network.backbone.prompt, embedded), attention_mask=mask.long()
    ).last_hidden_state[:, 3:]
    got = network(inputs)
    torch.testing.assert_close(got.tokens, expected, rtol=1e-9, atol=1e-9)
    assert got.mask.equal(inputs.mask)


def test_segments_and_positions_of_the_caller_move_on() -> None:
    torch.manual_seed(0)
    plain = BertModel(BERT).eval()
    network = BertModel(BERT).eval()
    network.load_state_dict(plain.state_dict())
    adapt(network, Prompts(2))
    ids, kinds = torch.randint(3, 50, (2, 4)), torch.tensor([[0, 0, 1, 1]] * 2)
    got = network(input_ids=ids, token_type_ids=kinds, position_ids=torch.arange(4)[None]).last_hidden_state
    expected = plain(
        inputs_embeds=in_front(network.prompt, plain.embeddings.word_embeddings(ids)),
        token_type_ids=torch.cat([torch.zeros(2, 2, dtype=torch.int64), kinds], 1),
    ).last_hidden_state[:, 2:]  # fmt: skip
    torch.testing.assert_close(got, expected)


def test_a_language_model_generates_as_from_embeddings() -> None:
    network = language_model()
    trained = adapt(network, Prompts(3))
    assert set(trained) == {"model.prompt"}
    ids = torch.randint(3, 50, (2, 5))
    plain = language_model()
    embedded = in_front(network.model.prompt, plain.model.embed_tokens(ids))
    assert network(input_ids=ids).logits.shape == (2, 5, 50)
    wanted = plain.generate(inputs_embeds=embedded, attention_mask=torch.ones(2, 8).long(), **GREEDY)
    assert network.generate(input_ids=ids, **GREEDY)[:, 5:].equal(wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_with_and_without_a_cache_and_padding(kind: str) -> None:
    network = language_model()
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
        network = GPT2LMHeadModel(config).eval()
    adapt(network, Prompts(3))
    ids = torch.randint(3, 50, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    wanted = network.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY)
    assert network.generate(input_ids=ids, attention_mask=mask, **GREEDY).equal(wanted)
    assert network.generate(input_ids=ids[:1, 2:], **GREEDY)[0, 4:].equal(wanted[0, 6:])
    beams = [
        network.generate(input_ids=ids, attention_mask=mask, num_beams=2, use_cache=cached, **GREEDY)
        for cached in (True, False)
    ]
    assert beams[0].equal(beams[1])


def test_a_static_cache_is_refused() -> None:
    network = language_model()
    adapt(network, Prompts(3))
    ids = torch.randint(3, 50, (2, 6))
    with pytest.raises(ValueError, match="generate with the dynamic cache"):
        network.generate(input_ids=ids, cache_implementation="static", **GREEDY)


def test_a_layer_of_tokens_by_the_formula() -> None:
    """Prompts behind the tokens, seen by all; they see the valid tokens and each other."""
    plain, network = encoder("signal", torch.float64), encoder("signal", torch.float64)
    trained = adapt(network, Prompts(3))
    assert {name: tuple(p.shape) for name, p in trained.items()} == {"layers.0.prompt": (3, 16)}
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])[:, None, None, :]
    got = expected = tokens
    expected = torch.cat([tokens, network.layers[0].prompt.expand(2, -1, -1)], 1)
    longer = torch.cat([mask, torch.ones(2, 1, 1, 3, dtype=torch.bool)], 3)
    for layer, own in zip(network.layers, plain.layers, strict=True):
        got, expected = layer(got, mask), own(expected, longer)
    torch.testing.assert_close(got, expected[:, :5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["bool", "float"])
def test_masks_between_tokens_grow_in_both_directions(form: str) -> None:
    """As Whisper's layers get them; padding stays unseen by the prompts too."""
    network = encoder("whisper")
    adapt(network, Prompts(3))
    first, *_ = network.backbone.layers
    seen: list[Tensor] = []
    first.self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    mask = valid[:, None, None, :].expand(-1, 1, 4, -1)
    given = mask if form == "bool" else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    first(torch.randn(2, 4, 32), given)
    expected = torch.cat([valid, torch.ones(2, 3, dtype=torch.bool)], 1)[:, None, None, :].expand(
        -1, 1, 7, -1
    )
    assert (seen[0] if form == "bool" else seen[0] == 0).equal(expected)


def test_a_vit_by_its_own_blocks() -> None:
    plain, network = encoder("vit", torch.float64), encoder("vit", torch.float64)
    trained = adapt(network, Prompts(3))
    assert set(trained) == {"backbone.blocks.0.prompt"}
    tokens = torch.randn(2, 6, 64, dtype=torch.float64)
    expected = torch.cat([tokens, network.backbone.blocks[0].prompt.expand(2, -1, -1)], 1)
    got = tokens
    for block, own in zip(network.backbone.blocks, plain.backbone.blocks, strict=True):
        got, expected = block(got), own(expected)
    torch.testing.assert_close(got, expected[:, :6], rtol=0, atol=1e-12)


def test_they_start_at_the_scale_of_the_embeddings() -> None:
    network = encoder("bert")
    adapt(network, Prompts(30), size=0.0)
    table = network.backbone.get_input_embeddings().weight
    assert network.backbone.prompt.std().item() == pytest.approx(table.std().item(), rel=0.2)


def test_a_text_that_has_no_room_beside_the_prompts() -> None:
    network = encoder("bert")
    Prompts(38).apply(network)
    assert network(alone(rows("bert"), 1)).tokens.shape == (1, 2, 32)
    message = re.escape("a text of 4 tokens and 38 prompts, but BertModel has 40 positions: lower max_length")
    with pytest.raises(ValueError, match=message):
        network(alone(rows("bert"), 2))


class Fixed(TransformerLayer):
    """A layer that knows how many tokens it gets."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return super().forward(tokens.reshape(len(tokens), 16, 16), mask)


def test_what_cannot_be_adapted_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        Prompts(0)
    for name in ("resnet", "efficientnet"):
        with pytest.raises(ValueError, match=r"feature map has no place for prompts.*use adapters or lora"):
            Prompts(2).apply(encoder(name))
    with pytest.raises(ValueError, match=r"neither an encoder nor a language model.*adapt the whole encoder"):
        Prompts(2).apply(encoder("bert").backbone.encoder.layer[0])
    fixed = SignalEncoder(3, dim=16, num_layers=2)
    fixed.layers = nn.ModuleList(Fixed(16, num_heads=4, hidden=32) for _ in range(2))
    message = (
        r"SignalEncoder are made for 16 tokens and cannot take 2 more \(.*\): use prefix, adapters or lora"
    )
    with pytest.raises(ValueError, match=message):
        Prompts(2).apply(fixed)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="takes no inputs_embeds"):
        Prompts(2).apply(CLIPTextModel(config))
    assert not Prompts().merges
