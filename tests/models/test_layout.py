"""Embeddings of places: LayoutLM's, none at the start, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LayoutLMConfig, LayoutLMModel

from mmlab.batch import Input
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.layout import Layout

pytest_plugins = "tiny_parts"


def page(rows: int = 3, tokens: int = 7) -> Input:
    """Token ids of different lengths with boxes, on the thousandths that LayoutLM knows."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(0, 1001, (rows, tokens, 2, 2), generator=generator).sort(dim=2).values
    return Input(
        torch.randint(1, 50, (rows, tokens), generator=generator),
        torch.arange(rows),
        torch.ones(rows, dtype=torch.bool),
        torch.tensor([tokens, 2, 4])[:rows],
        box=torch.cat([ends[:, :, 0], ends[:, :, 1]], dim=2) / 1000,
    )


def test_a_text_encoder_with_a_layout_is_layoutlm(tiny_bert: Path) -> None:
    encoder = TextEncoder(str(tiny_bert), layout=Layout(32, buckets=1001)).eval()
    torch.manual_seed(0)
    peer = LayoutLMModel(
        LayoutLMConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=40, max_2d_position_embeddings=1001,
        )
    ).eval()  # fmt: skip
    encoder.backbone.load_state_dict(peer.state_dict(), strict=False)
    assert encoder.layout is not None
    ours, theirs = encoder.layout, peer.embeddings
    for name in ("x", "y"):
        getattr(ours, name).weight = getattr(theirs, f"{name}_position_embeddings").weight
    ours.width.weight, ours.height.weight = (
        theirs.w_position_embeddings.weight,
        theirs.h_position_embeddings.weight,
    )
    inputs = page()
    tokens, mask = encoder(inputs)
    assert inputs.box is not None
    expected = peer(
        input_ids=inputs.data, bbox=(inputs.box * 1000).round().long(), attention_mask=mask.long()
    ).last_hidden_state
    torch.testing.assert_close(tokens[mask], expected[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_it_changes_nothing_at_the_start_and_learns(kind: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue(f"tiny_{kind}"))
    encoder, plain = TextEncoder(folder, layout=Layout(32)).eval(), TextEncoder(folder).eval()
    inputs = page()
    tokens, mask = encoder(inputs)
    torch.testing.assert_close(tokens[mask], plain(inputs).tokens[mask])
    tokens[mask].square().sum().backward()
    assert encoder.layout is not None
    for name, parameter in encoder.layout.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("buckets", [2, 11, 1001])
def test_edges_of_the_page_have_a_row(buckets: int) -> None:
    layout = Layout(4, buckets=buckets)
    for table in (layout.x, layout.y, layout.width, layout.height):
        torch.nn.init.normal_(table.weight)
    found = layout(torch.tensor([[[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]))[0]
    x, y, width, height = (t.weight for t in (layout.x, layout.y, layout.width, layout.height))
    torch.testing.assert_close(found[0], x[0] + x[-1] + width[-1] + y[0] + y[-1] + height[-1])
    torch.testing.assert_close(found[1], 2 * x[-1] + width[0] + 2 * y[-1] + height[0])


def test_what_does_not_fit(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"layout\.dim=16, but .* reads tokens of size 32: set it so"):
        TextEncoder(str(tiny_bert), layout=Layout(16))
    with pytest.raises(ValueError, match=r"layout\.buckets=1: at least 2"):
        Layout(32, buckets=1)
    encoder: Any = TextEncoder(str(tiny_bert), layout=Layout(32))
    with pytest.raises(ValueError, match=r"the data read no boxes: set data\.text\.boxes"):
        encoder(replace(page(), box=None))
    encoder.try_out()  # as adaptation does
