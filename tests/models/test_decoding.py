"""Choosing by likelihood, against transformers' plain loss of each choice alone; media in every choice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_multimodal_lm import AUDIO, DIM, IMAGE, Pixels, Samples, batch, inputs
from tiny_language import tiny_language
from torch import Tensor
from transformers import AutoModelForCausalLM

from mmlab.batch import NOBODY, Batch, Input
from mmlab.models.cross_attention import CrossAttention
from mmlab.models.decoding import Choosing, Decoding, likelihood
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower
from mmlab.models.multimodal_lm import MultimodalLM


class Row(NamedTuple):
    """A prompt with one of its choices."""

    sample: int
    prompt: list[int]
    choice: list[int]


PROMPTS = {
    0: [5, IMAGE, 6, 7],
    1: [IMAGE, 8, AUDIO, IMAGE, 9],
    2: [12, 13, 14],
    4: [AUDIO, 15, 16],
}
"""Sample 3 could not be read."""
CHOICES = {
    0: [[20, 21], [22], [23, 24, 25, 26]],
    1: [[30], [31, 32, 33]],
    2: [[40, 41, 42, 43, 44], [45], [46, 47], [48]],
    4: [[50, 51, 52], [53]],
}
ROWS = [Row(sample, PROMPTS[sample], choice) for sample, found in CHOICES.items() for choice in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("decoding"), max_length=64)


def make(folder: Path, *, packing: bool = True, injection: bool = False) -> MultimodalLM:
    torch.manual_seed(0)
    model = MultimodalLM(
        LanguageModel(str(folder), packing=packing),
        image=MediaTower(Pixels(), dim=DIM),
        audio=MediaTower(Samples(), dim=DIM),
        injection=CrossAttention(every=1, num_heads=4, expansion=2) if injection else None,
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    return model.eval()


def text(rows: list[Row], samples: int = 5) -> Input:
    """One row of text each, its choice to be said; a sample that has none keeps a blank row."""
    data: list[Tensor] = []
    owner: list[int] = []
    said: list[int] = []
    for sample in range(samples):
        own = [row for row in rows if row.sample == sample]
        data += [torch.tensor(row.prompt + row.choice) for row in own] or [torch.tensor([0])]
        owner += [sample] * len(own) or [NOBODY]
        said += [len(row.choice) for row in own] or [0]
    found = inputs(data, owner, samples)
    assert found.mask is not None
    assert found.length is not None
    steps = torch.arange(found.data.shape[1])
    target = (steps >= (found.length - torch.tensor(said))[:, None]) & found.mask
    return Input(found.data, found.owner, found.present, found.length, target=target)


def make_batch(rows: list[Row]) -> Batch:
    """Pictures of samples 0 and 1 (two), sounds of 1 and 4."""
    torch.manual_seed(2)
    pictures = [torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8) for _ in range(6)]
    sounds = [torch.randn(length) for length in (4, 12, 4, 4, 8)]
    return batch(
        text(rows),
        inputs(pictures, [0, 1, 1, NOBODY, NOBODY, NOBODY], 5, sized=False),
        inputs(sounds, [NOBODY, 1, NOBODY, NOBODY, 4], 5),
    )


def plain_losses(model: MultimodalLM, rows: list[Row], whole: Batch) -> list[float]:
    """Transformers' own mean loss of each choice, after its prompt put together by hand."""
    pictures, sounds = model.image(whole.image).tokens, model.audio(whole.audio).tokens  # type: ignore[misc, arg-type]
    media = {0: [pictures[0]], 1: [pictures[1], sounds[1], pictures[2]], 2: [], 4: [sounds[4][:2]]}
    plain = AutoModelForCausalLM.from_pretrained(model.language.name).eval()
    losses = []
    for row in rows:
        coming = iter(media[row.sample])
        pieces = [next(coming) if i < 0 else model.language.embed(torch.tensor([i])) for i in row.prompt]
        embedded = torch.cat([*pieces, model.language.embed(torch.tensor(row.choice))])[None]
        labels = torch.tensor([[-100] * (embedded.shape[1] - len(row.choice)) + row.choice])
        losses.append(float(plain(inputs_embeds=embedded, labels=labels).loss))
    return losses


@pytest.mark.parametrize("packing", [True, False])
@torch.no_grad()
def test_the_likelihood_of_each_choice_is_that_of_transformers(folder: Path, packing: bool) -> None:
    model, whole = make(folder, packing=packing), make_batch(ROWS)
    assert whole.text is not None
    found = likelihood(model(whole), len(whole.text.owner))
    there = whole.text.owner != NOBODY
    assert found.tokens.tolist() == [2, 1, 4, 1, 3, 5, 1, 2, 1, 0, 3, 1]
    wanted = [
        -loss * len(row.choice) for loss, row in zip(plain_losses(model, ROWS, whole), ROWS, strict=True)
    ]
    assert found.log_probability[there].tolist() == pytest.approx(wanted, abs=1e-4, rel=0)
    assert found.log_probability[~there].tolist() == [0]


@torch.no_grad()
def test_media_beside_the_text_are_seen_anew_by_each_choice(folder: Path) -> None:
    model = make(folder, injection=True)
    together = likelihood(model(make_batch(ROWS)), len(ROWS) + 1).log_probability
    alone = []
    for row in ROWS:
        one = make_batch([row])
        alone.append(float(likelihood(model(one), 5).log_probability[row.sample]))
    there = [place for place in range(len(ROWS) + 1) if place != 9]
    assert together[there].tolist() == pytest.approx(alone, abs=1e-4, rel=0)
    other = make_batch(ROWS)
    other.image.data[1] = 255 - other.image.data[1]  # type: ignore[union-attr]
    changed = (likelihood(model(other), len(ROWS) + 1).log_probability - together).abs() > 1e-5
    assert changed.tolist() == [place in (3, 4) for place in range(len(ROWS) + 1)]


@pytest.mark.parametrize("normalize", ["tokens", "none"])
@torch.no_grad()
def test_the_likeliest_choice_is_the_answer(folder: Path, normalize: str) -> None:
    model, whole = make(folder), make_batch(ROWS)
    losses = plain_losses(model, ROWS, whole)
    weight = [len(row.choice) if normalize == "none" else 1 for row in ROWS]
    wanted = {}
    for sample in PROMPTS:
        own = [number for number, row in enumerate(ROWS) if row.sample == sample]
        wanted[sample] = ROWS[min(own, key=lambda number: losses[number] * weight[number])].choice
    found = Choosing(normalize).answer(model, whole)  # type: ignore[arg-type]
    assert {one.sample: one.ids.tolist() for one in found} == wanted


@torch.no_grad()
def test_the_sum_favours_short_choices_and_the_mean_does_not(folder: Path) -> None:
    model, whole = make(folder), make_batch(ROWS)
    by_sum, by_mean = (
        [len(one.ids) for one in Choosing(normalize).answer(model, whole)]  # type: ignore[arg-type]
        for normalize in ("none", "tokens")
    )
    assert sum(by_sum) < sum(by_mean)


@torch.no_grad()
def test_the_order_of_choices_does_not_matter(folder: Path) -> None:
    model = make(folder)
    first, turned = (Choosing().answer(model, make_batch(rows)) for rows in (ROWS, ROWS[::-1]))
    assert [one.ids.tolist() for one in first] == [one.ids.tolist() for one in turned]


@torch.no_grad()
def test_of_equal_choices_the_first_is_taken_and_who_has_none_is_not_answered(folder: Path) -> None:
    model = make(folder)
    twice = [Row(2, PROMPTS[2], [45]), Row(2, PROMPTS[2], [45])]
    (one,) = Choosing().answer(model, make_batch(twice))
    assert (one.sample, one.ids.tolist()) == (2, [45])
    assert Choosing().answer(model, make_batch([])) == []


@torch.no_grad()
def test_generation_answers_one_row_a_sample(folder: Path) -> None:
    rows = [Row(sample, PROMPTS[sample], CHOICES[sample][0]) for sample in PROMPTS]
    found = Decoding(max_new_tokens=3).answer(make(folder), make_batch(rows))
    assert [one.sample for one in found] == [0, 1, 2, 4]
    assert all(len(one.ids) <= 3 for one in found)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=12),
        Decoding(max_new_tokens=12, num_beams=3),
        Decoding(max_new_tokens=12, sample=True, temperature=2.0),
    ],
)
@torch.no_grad()
def test_an_answer_stops_at_the_end_that_is_trained_and_at_that_of_the_model(
    folder: Path, decoding: Decoding
) -> None:
    rows = [Row(sample, PROMPTS[sample], CHOICES[sample][0]) for sample in PROMPTS]
    model, whole = make(folder), make_batch(rows)
    config = model.language.backbone.generation_config
    assert config is not None
    config.pad_token_id, config.eos_token_id = 0, None
    torch.manual_seed(3)
    free = [one.ids.tolist() for one in decoding.answer(model, whole)]
    trained, own = free[0][2], free[1][3]
    config.eos_token_id = own
    model.language.ends = (trained,)
    torch.manual_seed(3)
    stopped = [one.ids.tolist() for one in decoding.answer(model, whole)]
    for ids in stopped:
        ends = [step for step, token in enumerate(ids) if token in (own, trained)]
        assert not any(ids[ends[0] + 1 :] if ends else ())  # padding
    if decoding.num_beams == 1:  # with beams, one that ends sooner may win
        for ids, longer in zip(stopped, free, strict=True):
            cut = min((longer.index(end) for end in (own, trained) if end in longer), default=len(longer) - 1)
            assert ids[: cut + 1] == longer[: cut + 1]
    settings = decoding.settings(model.language.backbone, ends=(own, trained))
    assert settings.eos_token_id == [own, trained]


@torch.no_grad()
def test_what_the_language_models_own_config_asks_for_is_not_done(folder: Path) -> None:
    rows = [Row(sample, PROMPTS[sample], CHOICES[sample][0]) for sample in PROMPTS]
    model, whole = make(folder), make_batch(rows)

    def answers(decoding: Decoding) -> list[list[int]]:
        torch.manual_seed(3)
        return [one.ids.tolist() for one in decoding.answer(model, whole)]

    greedy, drawn = Decoding(max_new_tokens=12), Decoding(max_new_tokens=12, sample=True, temperature=3.0)
    config = model.language.backbone.generation_config
    assert config is not None
    config.pad_token_id, config.eos_token_id = 0, None
    before = answers(greedy), answers(drawn)
    assert any(len(set(ids)) < len(ids) for ids in before[0])  # which the config would forbid
    config.no_repeat_ngram_size, config.top_k, config.min_p, config.typical_p = 1, 1, 0.9, 0.1
    config.epsilon_cutoff, config.eta_cutoff = 0.5, 0.5
    assert (answers(greedy), answers(drawn)) == before


@torch.no_grad()
def test_what_is_drawn_is_the_whole_distribution(folder: Path) -> None:
    """Not the 50 likeliest, as transformers has it by default."""
    rows = [Row(2, PROMPTS[2], CHOICES[2][0])]
    model, whole = make(folder), make_batch(rows)
    logits = model(whole).logits[0]
    likeliest = set(logits.topk(50).indices.tolist())
    assert len(logits) > 100
    torch.manual_seed(3)
    decoding = Decoding(max_new_tokens=1, sample=True, temperature=50.0)
    said = {int(decoding.answer(model, whole)[0].ids[0]) for _ in range(40)}
    assert said - likeliest


def test_choices_and_ways_to_answer_that_do_not_go_together_are_refused(folder: Path) -> None:
    model = make(folder)
    single = [Row(sample, PROMPTS[sample], CHOICES[sample][0]) for sample in PROMPTS]
    with pytest.raises(ValueError, match=r"nothing to choose among: set data\.text\.choices, or give"):
        Choosing().answer(model, make_batch(single))
    with pytest.raises(ValueError, match=r"set it to Choosing .*, or leave data\.text\.choices"):
        Decoding().answer(model, make_batch(ROWS))
