from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoders import LLAMA, TOKENS, adapt, encoder, rows
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DynamicCache, LlamaForCausalLM

from mmlab.adaptation.prefix import Prefix, extended
from mmlab.models.encoders.signal import SignalEncoder

EXACT = {"rtol": 0, "atol": 1e-12}


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention as it is written, where a mask is added."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask
    return scores.softmax(-1) @ value


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 4), queries=st.integers(1, 5), keys=st.integers(1, 5), groups=st.integers(1, 3),
    form=st.sampled_from(["none", "bool", "float", "causal", "shared"]), between=st.integers(0, 2),
)  # fmt: skip
def test_the_extended_attention_by_the_formula(
    length: int, queries: int, keys: int, groups: int, form: str, between: int
) -> None:
    torch.manual_seed(0)
    heads, inner = 2, (3,) * between
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    query = make(2, heads * groups, *inner, queries, 4)
    key, value = make(2, heads * groups, *inner, keys, 4), make(2, heads * groups, *inner, keys, 6)
    prefix_key, prefix_value = make(heads, length, 4), make(heads, length, 6)
    call: dict[str, Any] = {"query": query, "key": key, "value": value}
    added = torch.zeros(queries, keys, dtype=torch.float64)
    if form == "causal":
        call["is_causal"] = True
        added = torch.full_like(added, -torch.inf).triu(1)
    elif form == "float":
        call["attn_mask"] = added = torch.randn_like(added)
    elif form != "none":
        shown = torch.rand(1 if form == "shared" else queries, keys) < 0.6
        call["attn_mask"] = shown
        added = torch.zeros_like(added).masked_fill(~shown, -torch.inf)
    got = F.scaled_dot_product_attention(**extended(call, prefix_key, prefix_value))
    spread = (
        part.repeat_interleave(groups, 0)[(None, slice(None), *[None] * between)].expand(
            2, -1, *inner, -1, -1
        )
        for part in (prefix_key, prefix_value)
    )
    whole = (torch.cat([part, own], -2) for part, own in zip(spread, (key, value), strict=True))
    expected = attend(query, *whole, F.pad(added, (length, 0)))
    torch.testing.assert_close(got, expected, **EXACT)


def test_a_layer_of_the_signal_encoder_by_the_formula() -> None:
    torch.manual_seed(0)
    network = SignalEncoder(3, dim=8, num_heads=2, num_layers=1).double().eval()
    trained = adapt(network, Prefix(3))
    assert {name: tuple(p.shape) for name, p in trained.items()} == {
        "layers.0.prefix_key": (2, 3, 4), "layers.0.prefix_value": (2, 3, 4),
    }  # fmt: skip
    layer: Any = network.layers[0]
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    normed = layer.attention_norm(tokens)
    query, key, value = (
        own(normed).unflatten(2, (2, 4)).transpose(1, 2) for own in (layer.query, layer.key, layer.value)
    )
    key = torch.cat([layer.prefix_key.expand(2, -1, -1, -1), key], 2)
    value = torch.cat([layer.prefix_value.expand(2, -1, -1, -1), value], 2)
    seen = attend(query, key, value, torch.zeros((), dtype=torch.float64)).transpose(1, 2).flatten(2)
    middle = tokens + layer.out(seen)
    expected = middle + layer.narrow(F.gelu(layer.widen(layer.feedforward_norm(middle))))
    got = layer(tokens, torch.ones(2, 1, 1, 5, dtype=torch.bool))
    torch.testing.assert_close(got, expected, **EXACT)


def language_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA).eval()


def test_a_language_model_as_with_a_cache_that_was_filled_before() -> None:
    """What transformers itself computes with given past keys, the tokens' positions starting at zero."""
    network = language_model().double()
    adapt(network, Prefix(3))
    ids = torch.randint(3, 50, (2, 6))
    got = network(input_ids=ids).logits
    plain = language_model().double()
    cache = DynamicCache(config=LLAMA)
    for number, layer in enumerate(network.model.layers):
        own = (
            part.expand(2, -1, -1, -1) for part in (layer.self_attn.prefix_key, layer.self_attn.prefix_value)
        )
        cache.update(*own, number)
    # In the order of the parameters: transformers 5.24 renamed that of the cache.
    expected = plain(ids, torch.ones(2, 9, dtype=torch.int64), torch.arange(6)[None], cache).logits
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_generation_with_and_without_a_cache_and_padding() -> None:
    network = language_model()
    adapt(network, Prefix(3))
    ids = torch.randint(3, 50, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = network.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
    assert network.generate(input_ids=ids, attention_mask=mask, **settings).equal(wanted)
    static = network.generate(input_ids=ids, attention_mask=mask, cache_implementation="static", **settings)
    assert static.equal(wanted)
    beams = [
        network.generate(input_ids=ids, attention_mask=mask, num_beams=2, use_cache=cached, **settings)
        for cached in (True, False)
    ]
    assert beams[0].equal(beams[1])
    assert network.generate(input_ids=ids[:1, 2:], **settings)[0, 4:].equal(wanted[0, 6:])
    assert not language_model().generate(input_ids=ids, attention_mask=mask, **settings).equal(wanted)


class Embedded(nn.Module):
    """`nn.MultiheadAttention` over embedded ids."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.inner = nn.MultiheadAttention(8, 2, **settings)
        self.config = BertConfig()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids: Tensor, **masks: Any) -> Tensor:
        x = self.table(input_ids)
        x = x if self.inner.batch_first else x.transpose(0, 1)
        attended: Tensor = self.inner(x, x, x, need_weights=False, **masks)[0]
        return attended if self.inner.batch_first else attended.transpose(0, 1)


@pytest.mark.parametrize("form", ["plain", "padding", "bool", "float", "heads"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_torch_as_with_its_own_extra_key(form: str, batch_first: bool) -> None:
    """`add_bias_kv` is a prefix of length one."""
    torch.manual_seed(0)
    reference = Embedded(batch_first=batch_first, add_bias_kv=True).double().eval()
    network = Embedded(batch_first=batch_first).double().eval()
    network.load_state_dict(reference.state_dict(), strict=False)
    adapt(network, Prefix(1))
    with torch.no_grad():
        network.inner.prefix_key.copy_(reference.inner.bias_k.view(2, 1, 4))
        network.inner.prefix_value.copy_(reference.inner.bias_v.view(2, 1, 4))
    masks: dict[str, Any] = {}
    if form == "padding":
        masks["key_padding_mask"] = torch.arange(5) >= torch.tensor([5, 2, 4])[:, None]
    elif form == "bool":
        masks["attn_mask"] = torch.rand(5, 5) < 0.5
    elif form == "float":
        masks["attn_mask"] = torch.randn(5, 5, dtype=torch.float64)
    elif form == "heads":
        masks["attn_mask"] = torch.rand(6, 5, 5) < 0.5
    ids = torch.randint(20, (3, 5))
    torch.testing.assert_close(network(ids, **masks), reference(ids, **masks), **EXACT)


@pytest.mark.parametrize("name", TOKENS)
def test_the_start_only_draws_attention_away(name: str) -> None:
    network = encoder(name)
    trained = adapt(network, Prefix(2), size=0.0)
    assert all(p.any() == name_.endswith("key") for name_, p in trained.items())
    assert network(rows(name)).tokens.isfinite().all()


def test_what_cannot_be_adapted_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        Prefix(0)
    with pytest.raises(
        ValueError, match=r"never calls torch's scaled_dot_product_attention.*adapters or lora"
    ):
        Prefix(2).apply(encoder("resnet"))
    eager = BertModel(BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        attn_implementation="eager",
    ))  # fmt: skip
    with pytest.raises(ValueError, match="with attn_implementation sdpa"):
        Prefix(2).apply(eager)
    with pytest.raises(ValueError, match=r"neither an encoder nor a language model.*adapt the whole encoder"):
        Prefix(2).apply(encoder("bert").backbone.encoder.layer[0])
    assert not Prefix().merges
