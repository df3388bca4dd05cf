"""Media among text: every marker gets its own media, whatever else the batch holds or lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_language import tiny_language, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mmlab.batch import MARKERS, NOBODY, Batch, Input, Modality
from mmlab.models.decoding import Decoding
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower, Resampler
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.models.pooling import AttentivePooling, SegmentPooling

IMAGE, AUDIO = MARKERS[Modality.IMAGE], MARKERS[Modality.AUDIO]
DIM = 32


class Pixels(Encoder):
    """Four tokens of a picture: its quarters."""

    modality = Modality.IMAGE
    dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, inputs: Input) -> Encoded:
        rows = inputs.data.float() / 255 * self.weight
        tokens = rows.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3).transpose(1, 2).flatten(2)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


class Samples(Encoder):
    """A token for each four samples of a sound."""

    modality = Modality.AUDIO
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(
            inputs.data.unflatten(1, (-1, 4)) * self.weight, inputs.mask.unflatten(1, (-1, 4)).any(2)
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("multimodal"), max_length=64)


@pytest.fixture
def model(folder: Path) -> MultimodalLM:
    torch.manual_seed(0)
    return MultimodalLM(
        LanguageModel(str(folder)), image=MediaTower(Pixels(), dim=DIM), audio=MediaTower(Samples(), dim=DIM)
    ).eval()


def inputs(rows: list[torch.Tensor], owner: list[int], samples: int, *, sized: bool = True) -> Input:
    length = torch.tensor([len(row) for row in rows])
    data = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if sized else torch.stack(rows)
    present = torch.tensor([sample in owner for sample in range(samples)])
    return Input(data, torch.tensor(owner), present, length if sized else None)


def text(rows: list[list[int]], answers: list[int]) -> Input:
    """Text of which the last few tokens of each row are to be said."""
    found = inputs([torch.tensor(row) for row in rows], list(range(len(rows))), len(rows))
    assert found.mask is not None
    assert found.length is not None
    steps = torch.arange(found.data.shape[1])
    said = (steps >= (found.length - torch.tensor(answers))[:, None]) & found.mask
    return Input(found.data, found.owner, found.present, found.length, target=said)


def batch(text: Input, image: Input, audio: Input) -> Batch:
    count = len(text.present)
    return Batch(
        keys=tuple(f"key{n}" for n in range(count)), place=torch.arange(count) + 10,
        valid=torch.ones(count, dtype=torch.bool), group=torch.arange(count),
        text=text, image=image, audio=audio,
    )  # fmt: skip


@pytest.fixture
def mixed() -> Batch:
    """A picture; two pictures and a sound, the sound between; none at all; a sound."""
    torch.manual_seed(2)
    pictures = [torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8) for _ in range(5)]
    sounds = [torch.randn(length) for length in (4, 12, 4, 8)]
    return batch(
        text(
            [[5, IMAGE, 6, 7], [IMAGE, 8, AUDIO, IMAGE, 9, 10, 11], [12, 13, 14], [AUDIO, 15, 16]],
            [2, 3, 1, 1],
        ),
        inputs(pictures, [0, 1, 1, NOBODY, NOBODY], 4, sized=False),
        inputs(sounds, [NOBODY, 1, NOBODY, 3], 4),
    )  # fmt: skip


def by_hand(model: MultimodalLM, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Embeddings of each sample, put together piece by piece, and logits of transformers' own model."""
    assert batch.text is not None
    pictures, sounds = model.image(batch.image).tokens, model.audio(batch.audio)
    media = {
        (0, 1): pictures[0], (1, 0): pictures[1], (1, 3): pictures[2],
        (1, 2): sounds.tokens[1][:3], (3, 0): sounds.tokens[3][:2],
    }  # fmt: skip
    embedded, logits = [], []
    plain = AutoModelForCausalLM.from_pretrained(model.language.name).eval()
    for row in range(4):
        ids = batch.text.data[row][: int(batch.text.length[row])].tolist()  # type: ignore[index]
        pieces = [
            media[row, step] if one < 0 else model.language.embed(torch.tensor([one]))
            for step, one in enumerate(ids)
        ]
        embedded.append(torch.cat(pieces))
        logits.append(plain(inputs_embeds=embedded[-1][None]).logits[0])
    return embedded, logits


def test_logits_of_the_answers_are_those_of_each_sample_put_together_by_hand(
    model: MultimodalLM, mixed: Batch
) -> None:
    said = model(mixed)
    _, logits = by_hand(model, mixed)
    wanted = torch.cat([one[-count - 1 : -1] for one, count in zip(logits, [2, 3, 1, 1], strict=True)])
    torch.testing.assert_close(said.logits, wanted, rtol=0, atol=1e-5)
    assert said.token.tolist() == [6, 7, 9, 10, 11, 14, 16]
    assert said.row.tolist() == [0, 0, 1, 1, 1, 2, 3]
    assert said.place.tolist() == [10, 10, 11, 11, 11, 12, 13]


def test_answers_are_generated_from_what_stands_before_them(model: MultimodalLM, mixed: Batch) -> None:
    settings = Decoding(max_new_tokens=5).settings(model.language.backbone)
    got = model.generate(mixed, settings=settings)
    embedded, _ = by_hand(model, mixed)
    for row, (one, count) in enumerate(zip(embedded, [2, 3, 1, 1], strict=True)):
        alone = model.language.backbone.generate(
            inputs_embeds=one[None, :-count],
            attention_mask=torch.ones(1, len(one) - count, dtype=torch.int64),
            generation_config=settings,
        )[0]
        assert got[row, : len(alone)].tolist() == alone.tolist()


def test_every_tower_gets_a_gradient_where_no_sample_has_its_modality(
    model: MultimodalLM, mixed: Batch
) -> None:
    blank = torch.zeros(3, 4, 4, dtype=torch.uint8)
    alone = batch(
        text([[5, 6, 7], [8, 9]], [1, 1]),
        inputs([blank, blank], [NOBODY, NOBODY], 2, sized=False),
        inputs([torch.zeros(4), torch.zeros(4)], [NOBODY, NOBODY], 2),
    )
    model(alone).logits.sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    for tower in (model.image, model.audio):
        assert tower is not None
        assert all(float(parameter.grad.abs().max()) == 0 for parameter in tower.parameters())  # type: ignore[union-attr]


def test_a_batch_without_an_answer_gives_no_loss_and_every_gradient(
    model: MultimodalLM, mixed: Batch
) -> None:
    from mmlab.objectives.sequence import TokenCrossEntropy

    assert mixed.text is not None
    none = Input(mixed.text.data, mixed.text.owner, mixed.text.present, mixed.text.length)
    loss = TokenCrossEntropy()(model(batch(none, mixed.image, mixed.audio)))  # type: ignore[arg-type]
    loss.value.backward()
    assert float(loss.value.detach()) == 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_tower_in_full_precision_computes_as_without_autocast() -> None:
    torch.manual_seed(0)
    whole, mixed = (MediaTower(Pixels(), dim=DIM, hidden=16, full_precision=full) for full in (True, False))
    mixed.load_state_dict(whole.state_dict())
    pictures = [torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8) for _ in range(3)]
    given = inputs(pictures, [0, 1, 2], 3, sized=False)
    wanted = whole(given).tokens
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = whole(given).tokens, mixed(given).tokens
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # the rest is mixed as before
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert not torch.equal(rounded, wanted)


def test_a_resampler_gives_as_many_tokens_as_it_has_queries(folder: Path, mixed: Batch) -> None:
    tower = MediaTower(Pixels(), dim=DIM, hidden=16, resampler=Resampler(12, queries=3, num_heads=2))
    assert mixed.image is not None
    tokens, mask = tower(mixed.image)
    assert tokens.shape == (5, 3, DIM)
    assert mask.all()
    with pytest.raises(ValueError, match="tokens of size 16, but Pixels gives 12: set its dim to 12"):
        MediaTower(Pixels(), dim=DIM, resampler=Resampler(16, queries=3))


def test_a_pooling_gives_a_token_for_each_of_its_parts(mixed: Batch) -> None:
    whole = MediaTower(Pixels(), dim=DIM)
    tower = MediaTower(Pixels(), dim=DIM, resampler=SegmentPooling(2))
    tower.load_state_dict(whole.state_dict())
    assert mixed.image is not None
    tokens, mask = tower(mixed.image)
    assert tokens.shape == (5, 2, DIM)
    assert mask.all()
    quarters = whole.encoder(mixed.image).tokens
    halves = quarters.unflatten(1, (2, 2)).mean(2)
    torch.testing.assert_close(tokens, whole.norm(whole.projection(halves)))
    with pytest.raises(
        ValueError, match="AttentivePooling is made for tokens of size 16, but Pixels gives 12"
    ):
        MediaTower(Pixels(), dim=DIM, resampler=AttentivePooling(16))


def test_tokens_of_media_start_at_the_size_of_embeddings(model: MultimodalLM, mixed: Batch) -> None:
    assert model.image is not None
    tokens = model.image(mixed.image).tokens  # type: ignore[arg-type]
    assert float(tokens.detach().square().mean().sqrt()) == pytest.approx(
        model.language.embedding_scale(), rel=0.01
    )


def test_what_does_not_fit_is_said(folder: Path, model: MultimodalLM, mixed: Batch) -> None:
    language = LanguageModel(str(folder))
    with pytest.raises(ValueError, match=r"image\.dim=8, but the embeddings of .* have size 32"):
        MultimodalLM(language, image=MediaTower(Pixels(), dim=8))
    with pytest.raises(ValueError, match="the audio tower has Pixels, an encoder of image"):
        MultimodalLM(language, audio=MediaTower(Pixels(), dim=DIM))
    with pytest.raises(ValueError, match="a prompt names <audio>, but the model reads no audio"):
        MultimodalLM(language, image=MediaTower(Pixels(), dim=DIM))(mixed)
    long = batch(text([[5] * 61 + [IMAGE], [5, 6], [7, 8], [9, 9]], [1, 1, 1, 1]), mixed.image, mixed.audio)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sample 'key0' has 65 tokens with its media, but .* reads 64"):
        model(long)


@pytest.fixture
def learned(tmp_path: Path) -> MultimodalLM:
    """A language model that has learned a position for each of 16 tokens, and can read no further."""
    tiny_tokenizer().save_pretrained(tmp_path)
    config = GPT2Config(
        vocab_size=300, n_positions=16, n_embd=DIM, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=299
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return MultimodalLM(LanguageModel(str(tmp_path), packing=False)).eval()


def test_a_prompt_leaves_room_for_the_longest_answer(learned: MultimodalLM) -> None:
    found = text([[5, 6, 7], [5] * 11 + [6]], [1, 1])
    asked = Batch(
        keys=("short", "long"), place=torch.arange(2), valid=torch.ones(2, dtype=torch.bool),
        group=torch.arange(2), text=found,
    )  # fmt: skip
    learned.language.backbone.generation_config.eos_token_id = None  # every answer runs to the end
    fits = learned.generate(asked, settings=Decoding(max_new_tokens=6).settings(learned.language.backbone))
    assert fits.shape == (2, 6)
    with pytest.raises(
        ValueError,
        match=r"sample 'long' has 11 tokens with its media and max_new_tokens=7, but .* reads 16: "
        r"lower model\.decoding\.max_new_tokens or data\.text\.max_length",
    ):
        learned.generate(asked, settings=Decoding(max_new_tokens=7).settings(learned.language.backbone))
    assert learned(asked).logits.shape[0] == 2  # nothing is generated in training
