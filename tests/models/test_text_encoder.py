from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel

from mmlab.batch import NOBODY, Input
from mmlab.models.encoders.text import TextEncoder

pytest_plugins = "tiny_parts"


def ids(lengths: list[int]) -> Input:
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor(lengths)
    data = torch.randint(1, 50, (len(lengths), max(lengths)), generator=generator)
    rows = torch.arange(len(lengths))
    return Input(data, rows, torch.ones(len(lengths), dtype=torch.bool), length)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_a_row_gives_in_a_batch_what_transformers_gives_it_alone(
    kind: str, lengths: list[int], request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(f"tiny_{kind}"))
    encoder = TextEncoder(folder).eval()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.get_encoder() if kind == "t5" else model
    inputs = ids(lengths)
    tokens, mask = encoder(inputs)
    assert mask.sum(dim=1).tolist() == lengths
    for row, length in enumerate(lengths):
        alone = model(input_ids=inputs.data[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(tokens[row, :length], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_every_parameter_gets_a_gradient(kind: str, request: pytest.FixtureRequest) -> None:
    encoder = TextEncoder(str(request.getfixturevalue(f"tiny_{kind}")))
    encoder(ids([3, 5])).tokens.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_dropout_is_set_everywhere(tiny_bert: Path) -> None:
    inputs = ids([4])
    still = TextEncoder(str(tiny_bert), dropout=0.0).train()
    assert torch.equal(still(inputs).tokens, still(inputs).tokens)
    lively = TextEncoder(str(tiny_bert), dropout=0.5).train()
    assert {m.p for m in lively.modules() if isinstance(m, nn.Dropout)} == {0.5}
    assert not torch.equal(lively(inputs).tokens, lively(inputs).tokens)


def test_dropout_without_a_layer_for_it_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"no dropout layers: leave dropout=0.1 out"):
        TextEncoder(str(tiny_llama), dropout=0.1)


def test_a_text_beyond_the_positions_names_the_remedy(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"a text of 41 tokens.*40 positions: lower max_length"):
        TextEncoder(str(tiny_bert))(ids([41]))


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_positions_that_begin_behind_the_padding_token_are_fewer(kind: str, tmp_path: Path) -> None:
    config, model = {"roberta": (RobertaConfig, RobertaModel), "mpnet": (MPNetConfig, MPNetModel)}[kind]
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 34, "pad_token_id": 1,
    }  # fmt: skip
    model(config(**sizes)).save_pretrained(tmp_path)
    encoder = TextEncoder(str(tmp_path)).eval()
    assert encoder.max_length == 32
    assert encoder(whole(32)).tokens.isfinite().all()
    with pytest.raises(ValueError, match=r"a text of 33 tokens.*32 positions: lower max_length"):
        encoder(whole(33))


def whole(tokens: int) -> Input:
    """A text without a token of padding."""
    data = torch.arange(tokens)[None] % 40 + 5
    return Input(data, torch.arange(1), torch.ones(1, dtype=torch.bool), torch.tensor([tokens]))


def test_a_row_of_nobody_gives_no_nan(tiny_bert: Path) -> None:
    encoder = TextEncoder(str(tiny_bert))
    data = torch.zeros(1, 3, dtype=torch.int64)
    tokens = encoder(
        Input(data, torch.tensor([NOBODY]), torch.tensor([False]), torch.ones(1, dtype=torch.int64))
    ).tokens
    tokens.sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.slow
def test_minilm_finds_the_paraphrase(asset: Callable[[str], str]) -> None:
    from transformers import AutoTokenizer

    from mmlab.assets import catalog
    from mmlab.models.pooling import MeanPooling

    tokenizer = AutoTokenizer.from_pretrained(catalog.resolve(asset("minilm-l6")))
    encoder = TextEncoder("minilm-l6").eval()
    batch = tokenizer(
        ["a small dog runs", "a puppy is running", "the stock market fell"], padding=True, return_tensors="pt"
    )
    inputs = Input(
        batch["input_ids"], torch.arange(3), torch.ones(3, dtype=torch.bool), batch["attention_mask"].sum(1)
    )
    with torch.no_grad():
        vector = nn.functional.normalize(MeanPooling()(encoder(inputs)), dim=-1)
    assert vector[0] @ vector[1] > 0.6 > 0.3 > vector[0] @ vector[2]
