"""The pretraining model: whose words are told, what a pair sees, causality, gradients, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining_parts import make_batch, make_model, tiny_text
from tiny_encoders import tiny_bert
from tiny_language import tiny_tokenizer

from mmlab.batch import NOBODY, Batch, Modality
from mmlab.models.caption_decoder import CaptionDecoder
from mmlab.models.dual_encoder import Tower
from mmlab.models.encoders.signal import SignalEncoder
from mmlab.models.encoders.text import TextEncoder
from mmlab.models.fusion.transformer import TransformerFusion
from mmlab.models.layout import Layout
from mmlab.models.pretraining_model import PretrainingModel


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def model(text: Path) -> PretrainingModel:
    return make_model(text).eval()


def hidden(model: PretrainingModel, batch: Batch, step: int = 2) -> Batch:
    """One word of each row is hidden."""
    words = model.ordinary_words(batch)
    assert batch.text is not None
    target = words & (torch.arange(words.shape[1]) == step)
    masked = batch.text.data.masked_fill(target, model.mask)
    return replace(batch, text=replace(batch.text, target=target, masked=masked))


class TestWords:
    def test_special_tokens_padding_and_what_is_nobodys_are_none(self, model: PretrainingModel) -> None:
        batch = make_batch(lacks_text=3)
        assert batch.text is not None
        words = model.ordinary_words(batch)
        ids, length = batch.text.data, batch.text.length
        assert length is not None
        owned = (batch.text.owner != NOBODY)[:, None]
        inside = torch.arange(9) < length[:, None]
        assert torch.equal(words, owned & inside & (ids >= 4) & (ids != model.mask))
        assert words.any()

    def test_guesses_are_of_the_hidden_words_and_see_the_rest_and_the_other_modality(
        self, model: PretrainingModel
    ) -> None:
        batch = hidden(model, make_batch())
        assert batch.text is not None
        assert batch.text.target is not None
        found = model(batch).guessed
        assert torch.equal(found.token, batch.text.data[batch.text.target])
        assert found.place.tolist() == [20, 21, 21, 22, 23, 24]
        for changed in (0, 4):
            assert batch.signal is not None
            data = batch.signal.data.clone()
            data[changed] += 1
            again = model(replace(batch, signal=replace(batch.signal, data=data))).guessed
            mine = found.place == 20 + changed
            assert not torch.allclose(again.logits[mine], found.logits[mine], atol=1e-4)
            assert torch.allclose(again.logits[~mine], found.logits[~mine], atol=1e-5)
            assert mine.any()

    def test_a_guess_does_not_see_the_word(self, model: PretrainingModel) -> None:
        batch = hidden(model, make_batch())
        assert batch.text is not None
        assert batch.text.target is not None
        other = replace(batch.text, data=batch.text.data.masked_fill(batch.text.target, 7))
        first, second = model(batch).guessed, model(replace(batch, text=other)).guessed
        assert torch.equal(first.logits, second.logits)
        assert set(second.token.tolist()) == {7}

    def test_places_on_the_page_are_read_with_hidden_words_too(self, text: Path) -> None:
        tower = Tower(TextEncoder(str(text), dropout=0.0, layout=Layout(32)), dim=8)
        placed = PretrainingModel(
            tower,
            signal=Tower(SignalEncoder(3, dim=16, num_layers=2), dim=8),
            fusion=TransformerFusion({"text": 32, "signal": 16}, dim=12, num_heads=2),
            masked=True,
        )
        batch = make_batch()
        assert batch.text is not None
        boxes = torch.zeros(*batch.text.data.shape, 4)
        batch = hidden(placed, replace(batch, text=replace(batch.text, box=boxes)))
        assert placed(batch).guessed is not None

    def test_a_sample_is_guessed_alone_as_in_a_batch(self, model: PretrainingModel) -> None:
        batch = hidden(model, make_batch(lacks_signal=2))
        found = model(batch).guessed
        for sample in range(5):
            alone = model(batch.select(torch.tensor([sample]))).guessed
            mine = found.place == 20 + sample
            torch.testing.assert_close(alone.logits, found.logits[mine], atol=1e-5, rtol=1e-5)

    def test_words_are_told_by_the_embeddings_of_the_encoder(self, model: PretrainingModel) -> None:
        batch = hidden(model, make_batch())
        before = model(batch).guessed.logits
        assert model.text is not None
        assert isinstance(model.text.encoder, TextEncoder)
        with torch.no_grad():
            model.text.encoder.words.weight[40] = torch.linspace(-3, 3, 32)
        assert batch.text is not None
        assert batch.text.masked is not None
        assert not (batch.text.data == 40).any()
        # No text has the word, so that nothing but its own logit changes.
        changed = (model(batch).guessed.logits - before).abs().amax(dim=0) > 1e-4
        assert changed.nonzero().flatten().tolist() == [40]

    def test_nothing_is_guessed_where_nothing_is_hidden(self, model: PretrainingModel) -> None:
        assert model(make_batch()).guessed is None


class TestMatching:
    def test_a_pair_sees_its_own_two_and_no_other(self, model: PretrainingModel) -> None:
        batch = make_batch()
        read = model(batch).read
        text, beside = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 2, 1, 2])
        found = model.match(batch, read, text, beside)
        for number, (a, b) in enumerate(zip(text, beside, strict=True)):
            alone = model.match(batch, read, a[None], b[None])
            torch.testing.assert_close(alone, found[[number]], atol=1e-5, rtol=1e-5)
        assert len({round(value, 4) for value in found.tolist()}) == 4

    def test_all_texts_of_a_sample_count(self, model: PretrainingModel) -> None:
        batch, one = make_batch(), torch.tensor([1])
        read = model(batch).read
        first = read.text.tokens.clone()
        first[2] *= -1  # the second text of sample 1
        changed = read._replace(text=read.text._replace(tokens=first))
        assert not torch.allclose(
            model.match(batch, read, one, one), model.match(batch, changed, one, one), atol=1e-4
        )


class TestCaptioning:
    def test_each_word_after_those_before_it(self, model: PretrainingModel) -> None:
        batch = make_batch()
        assert batch.text is not None
        assert batch.text.length is not None
        found = model(batch).said
        # Each token but the first, of texts that someone owns.
        wanted = [
            batch.text.data[row, 1 : int(length)].tolist()
            for row, (owner, length) in enumerate(zip(batch.text.owner, batch.text.length, strict=True))
            if owner != NOBODY
        ]
        assert found.token.tolist() == [token for row in wanted for token in row]

    def test_does_not_see_what_comes(self, model: PretrainingModel) -> None:
        batch = make_batch()
        assert batch.text is not None
        data = batch.text.data.clone()
        data[:, 3] = 9
        first = model(batch).said.logits
        second = model(replace(batch, text=replace(batch.text, data=data))).said.logits
        same = (first - second).abs().amax(dim=1) < 1e-5
        assert same[:3].all()  # words 1 to 3 are told from words 0 to 2
        assert not same[3]

    def test_looks_at_what_the_text_is_of_and_is_silent_without(self, model: PretrainingModel) -> None:
        found = model(make_batch(lacks_signal=1)).said
        assert 21 not in found.place.tolist()
        batch = make_batch()
        assert batch.signal is not None
        moved = replace(batch, signal=replace(batch.signal, data=batch.signal.data + 1))
        assert not torch.allclose(model(batch).said.logits, model(moved).said.logits, atol=1e-4)


@pytest.mark.parametrize("lacking", ["nothing", "text", "signal", "both", "words"])
def test_every_parameter_has_a_gradient_whatever_a_batch_lacks(text: Path, lacking: str) -> None:
    model = make_model(text).train()
    batch = make_batch(2, lacks_text=0 if lacking in ("text", "both") else None,
                       lacks_signal=0 if lacking in ("signal", "both") else None)  # fmt: skip
    batch = hidden(model, batch, step=100 if lacking == "words" else 1)
    output = model(batch)
    own = torch.zeros(3, dtype=torch.int64)
    total = model.match(batch, output.read, own, own).sum() + output.guessed.logits.sum()
    total = total + output.said.logits.sum()
    for modality in model.modalities:
        total = total + output.get(modality).vector.sum()
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


class TestRefusals:
    def refused(self, text: Path, match: str, parts: Any = ("masked",), **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            make_model(text, parts, **settings)

    def test_not_two_towers(self, text: Path) -> None:
        tower = Tower(SignalEncoder(3, dim=16), dim=8)
        self.refused(text, "towers of text: pretraining takes text and one other", signal=None)
        audio = Tower(SignalEncoder(3, dim=16, modality="audio"), dim=8)
        self.refused(text, "towers of text, audio, signal", signal=tower, audio=audio)

    def test_a_fusion_that_is_missing_of_other_sizes_or_for_nothing(self, text: Path) -> None:
        self.refused(text, "masked and matching need a fusion: give one with dims=", fusion=None)
        other = TransformerFusion({"text": 32, "signal": 99}, dim=12, num_heads=2)
        self.refused(text, "the encoders give .*but the fusion is made for .*99", fusion=other)
        right = TransformerFusion({"text": 32, "signal": 16}, dim=12, num_heads=2)
        self.refused(text, "nothing reads the fusion", ("captioning",), fusion=right)

    def test_a_decoder_of_other_sizes(self, text: Path) -> None:
        for sizes, match in (
            ({"sees": 9, "words": 32}, "set its sees"),
            ({"sees": 16, "words": 9}, "set its words"),
        ):
            self.refused(text, match, decoder=CaptionDecoder(12, num_heads=2, **sizes))
        with pytest.raises(ValueError, match="dim=12 must be even and a multiple of num_heads=5"):
            CaptionDecoder(12, words=32, sees=16, num_heads=5)

    def test_words_of_no_text_encoder(self, text: Path) -> None:
        features = Tower(SignalEncoder(3, dim=32, modality="text"), dim=8)
        fusion = TransformerFusion({"text": 32, "signal": 16}, dim=12, num_heads=2)
        signal = Tower(SignalEncoder(3, dim=16), dim=8)
        with pytest.raises(ValueError, match="words are told by a TextEncoder, and text has SignalEncoder"):
            PretrainingModel(features, signal=signal, fusion=fusion, masked=True)
        assert (
            PretrainingModel(features, signal=signal, fusion=fusion, matching=True).beside is Modality.SIGNAL
        )

    def test_a_tokenizer_without_a_mask_or_none(self, text: Path, tmp_path: Path) -> None:
        folder = tiny_bert(tmp_path, vocabulary=100)
        with pytest.raises(ValueError, match="there is no tokenizer beside the weights of"):
            make_model(folder, ("masked",))
        tiny_tokenizer().save_pretrained(folder)
        with pytest.raises(ValueError, match="has no mask token: set masked to false"):
            make_model(folder, ("masked",))
