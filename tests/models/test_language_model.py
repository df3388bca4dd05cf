"""Packed samples, logits at some tokens only, and generation, against transformers' plain computation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fetching import fetched
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import tiny_language
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from mmlab.assets import catalog
from mmlab.models.decoding import Decoding
from mmlab.models.language_model import LanguageModel
from mmlab.models.packed_attention import pack

LENGTHS = [7, 31, 1, 12, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("language"))


def samples(vocabulary: int, lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(2, vocabulary, (length,)) for length in lengths]


def assert_samples_do_not_meet(folder: Path, *, packing: bool = True) -> None:
    """A model of 60 tokens gives the logits that transformers gives for each sample alone."""
    model = LanguageModel(str(folder), packing=packing).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = samples(60)
    wanted = torch.cat([plain(one[None]).logits[0] for one in ids])
    got = model(model.embed(torch.cat(ids)), torch.tensor(LENGTHS), torch.arange(sum(LENGTHS)))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_logits_equal_those_of_each_sample_alone(folder: Path, packing: bool) -> None:
    model = LanguageModel(str(folder), packing=packing).double().eval()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = samples(plain.config.vocab_size)
    at = torch.tensor([0, 6, 7, 37, 38, 40, 80])
    wanted = torch.cat([plain(one[None]).logits[0] for one in ids])[at]
    embedded = model.embed(torch.cat(ids))
    torch.testing.assert_close(model(embedded, torch.tensor(LENGTHS), at), wanted, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_packing_of_the_pretrained_model_is_exact_to_1e_4() -> None:
    smollm2 = fetched(lambda: catalog.resolve("smollm2-135m-instruct"))
    assert smollm2 is not None
    model = LanguageModel(str(smollm2)).eval()
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ids = samples(plain.config.vocab_size)
    with torch.no_grad():
        wanted = torch.cat([plain(one[None]).logits[0] for one in ids])
        got = model(model.embed(torch.cat(ids)), torch.tensor(LENGTHS), torch.arange(sum(LENGTHS)))
    assert float((got - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_gradients_equal_those_of_each_sample_alone(folder: Path) -> None:
    model = LanguageModel(str(folder)).double().eval()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = samples(plain.config.vocab_size)
    torch.cat([plain(one[None]).logits[0] for one in ids]).square().sum().backward()
    at = torch.arange(sum(LENGTHS))
    model(model.embed(torch.cat(ids)), torch.tensor(LENGTHS), at).square().sum().backward()
    for (name, ours), theirs in zip(model.backbone.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_equal_those_of_each_prompt_alone(folder: Path, beams: int) -> None:
    model = LanguageModel(str(folder)).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chosen = Decoding(max_new_tokens=8, num_beams=beams).settings(plain)
    ids = samples(plain.config.vocab_size)
    got = model.generate(model.embed(torch.cat(ids)), torch.tensor(LENGTHS), settings=chosen)
    for row, one in zip(got, ids, strict=True):
        mask = torch.ones(1, len(one), dtype=torch.int64)
        alone = plain.generate(one[None], attention_mask=mask, generation_config=chosen)[0, len(one) :]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_models_whose_samples_would_see_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_language(tmp_path)
    monkeypatch.setattr("mmlab.models.language_model.pack", lambda length: pack(length.sum()[None]))
    with pytest.raises(ValueError, match="gives other logits when samples are packed"):
        LanguageModel(str(folder))


def test_a_model_that_cannot_run_packed_is_refused_in_a_line(tmp_path: Path) -> None:
    """Bloom takes no positions."""
    config = BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not run with samples packed \(.*\): set packing to false"):
        LanguageModel(str(tmp_path))
    assert_samples_do_not_meet(tmp_path, packing=False)


def test_media_get_the_size_of_embeddings_as_the_model_reads_them(tmp_path: Path) -> None:
    """Gemma 3 multiplies its table by the root of its width."""
    config = Gemma3TextConfig(
        vocab_size=60, hidden_size=64, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path))
    table = float(model.backbone.get_input_embeddings().weight.detach().square().mean().sqrt())
    assert model.embedding_scale() == pytest.approx(8 * table, rel=1e-2)


def test_learned_positions_start_anew_in_every_sample(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    ).save_pretrained(tmp_path)
    assert_samples_do_not_meet(tmp_path)


def test_a_sample_beyond_a_sliding_window_is_refused(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=16,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path))
    embedded = model.embed(torch.arange(20))
    with pytest.raises(ValueError, match=r"a sample of 20 tokens .* see 16: set packing to false"):
        model(embedded, torch.tensor([20]), torch.tensor([19]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_packing_covers_every_token_once(lengths: list[int]) -> None:
    packing = pack(torch.tensor(lengths))
    laid_out = torch.cat([group.flatten() for group in packing.groups])
    assert laid_out[packing.inverse].tolist() == list(range(sum(lengths)))
    assert packing.position[0].tolist() == [step for length in lengths for step in range(length)]
    assert packing.longest == max(lengths)
