"""Text that looks at media through layers put into the language model, against a slow plain loop."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_multimodal_lm import AUDIO, DIM, IMAGE, Pixels, Samples, batch, inputs, text
from tiny_language import tiny_language
from torch import Tensor

from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch, Input
from mmlab.models.cross_attention import CrossAttention, GatedCrossAttention, plan
from mmlab.models.decoding import Decoding
from mmlab.models.interleave import questions
from mmlab.models.language_model import LanguageModel
from mmlab.models.media import MediaTower, Resampler
from mmlab.models.multimodal_lm import MultimodalLM
from mmlab.parallel.recompute import checkpoint_blocks
from mmlab.parallel.sharding import shard

ROWS = [[5, IMAGE, 6, 7], [IMAGE, 8, AUDIO, IMAGE, 9, 10, 11], [12, 13, 14], [4, AUDIO, 15, 16, 17]]
ANSWERS = [2, 2, 1, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language(tmp_path_factory.mktemp("injected"), max_length=64)


def make(folder: Path, *, packing: bool = True, gates: float = 1.0) -> MultimodalLM:
    """In float64; gates and all else in the layers are drawn, the gates from -gates to gates."""
    language = LanguageModel(str(folder), packing=packing)
    torch.manual_seed(0)
    model = MultimodalLM(
        language,
        image=MediaTower(Pixels(), dim=DIM),
        audio=MediaTower(Samples(), dim=DIM, resampler=Resampler(4, queries=3, num_heads=2)),
        injection=CrossAttention(every=1, num_heads=4, expansion=2),
    ).double()
    for layer in layers(model):
        for gate in (layer.attention_gate, layer.feed_forward_gate):
            torch.nn.init.uniform_(gate, -gates, gates)
        torch.nn.init.normal_(layer.norm.weight)
        torch.nn.init.normal_(layer.query.weight, std=0.3)
        torch.nn.init.normal_(layer.key_value.weight, std=0.3)
    return model.eval()


def layers(model: MultimodalLM) -> list[GatedCrossAttention]:
    assert model.injection is not None
    return list(model.injection.layers)  # type: ignore[arg-type]


def make_batch(rows: list[list[int]] = ROWS, *, other: int | None = None) -> Batch:
    """Two pictures and a sound between, one of each, none at all; `other` changes a picture."""
    torch.manual_seed(2)
    pictures = [torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8) for _ in range(5)]
    sounds = [torch.randn(length).double() for length in (4, 12, 4, 8)]
    if other is not None:
        pictures[other] = 255 - pictures[other]
    return batch(
        text(rows, ANSWERS),
        inputs(pictures, [0, 1, 1, NOBODY, NOBODY], 4, sized=False),
        inputs(sounds, [NOBODY, 1, NOBODY, 3], 4),
    )


def without_media() -> Batch:
    blank = torch.zeros(3, 4, 4, dtype=torch.uint8)
    return batch(
        text([[5, 6, 7], [8, 9]], [1, 1]),
        inputs([blank, blank], [NOBODY, NOBODY], 2, sized=False),
        inputs([torch.zeros(4).double(), torch.zeros(4).double()], [NOBODY, NOBODY], 2),
    )


def media_of(model: MultimodalLM, whole: Batch) -> dict[tuple[int, int], Tensor]:
    """Tokens of the media by row and place of their marker, each with the code of its number."""
    pictures, sounds = model.image(whole.image).tokens, model.audio(whole.audio).tokens  # type: ignore[misc, arg-type]
    found = {
        (0, 1): (pictures[0], 0), (1, 0): (pictures[1], 0), (1, 2): (sounds[1], 1),
        (1, 3): (pictures[2], 2), (3, 1): (sounds[3], 0),
    }  # fmt: skip
    coded = {}
    for place, (tokens, number) in found.items():
        angles = [number / 10000 ** (pair / DIM) for pair in range(0, DIM, 2)]
        code = torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)], dtype=torch.float64)
        coded[place] = tokens + code
    return coded


def look(layer: GatedCrossAttention, x: Tensor, seen: Tensor) -> Tensor:
    """What one token becomes that sees some media, head by head."""
    key, value = (seen @ layer.key_value.weight.T).split(DIM, dim=1)
    query = layer.query.weight @ layer.norm(x)
    heads = []
    for head in range(layer.num_heads):
        of = slice(head * DIM // layer.num_heads, (head + 1) * DIM // layer.num_heads)
        share = torch.softmax(key[:, of] @ query[of] / math.sqrt(DIM / layer.num_heads), dim=0)
        heads.append(share @ value[:, of])
    x = x + torch.tanh(layer.attention_gate) * (layer.output.weight @ torch.cat(heads))
    return x + torch.tanh(layer.feed_forward_gate) * layer.feed_forward(x)


def slowly(model: MultimodalLM, ids: list[int], media: dict[int, Tensor]) -> Tensor:
    """Logits of one sample, token by token and without hooks: `media` by place of the marker."""
    plain = copy.deepcopy(model.language.backbone)
    seen: list[Tensor] = []
    before: list[Tensor | None] = []
    for place, one in enumerate(ids):
        if one < 0:
            seen.append(media[place])
        else:
            before.append(torch.cat(seen) if seen else None)
    x = model.language.embed(torch.tensor([one for one in ids if one >= 0]))
    steps = torch.arange(len(x))
    angles = plain.model.rotary_emb(x[None], steps[None])
    hidden = torch.where(steps[:, None] >= steps, 0.0, -torch.inf).double()[None, None]
    for layer, block in zip(layers(model), plain.model.layers, strict=True):
        looked = [
            token if sees is None else look(layer, token, sees) for token, sees in zip(x, before, strict=True)
        ]
        block._forward_pre_hooks.clear()
        x = block(torch.stack(looked)[None], attention_mask=hidden, position_embeddings=angles)[0]
    logits: Tensor = plain.lm_head(plain.model.norm(x))
    return logits


def of_row(media: dict[tuple[int, int], Tensor], row: int) -> dict[int, Tensor]:
    return {place: tokens for (owner, place), tokens in media.items() if owner == row}


@pytest.mark.parametrize("packing", [True, False])
def test_logits_equal_those_of_a_plain_loop(folder: Path, packing: bool) -> None:
    model, whole = make(folder, packing=packing), make_batch()
    media = media_of(model, whole)
    wanted = [
        slowly(model, ids, of_row(media, row))[-count - 1 : -1]
        for row, (ids, count) in enumerate(zip(ROWS, ANSWERS, strict=True))
    ]
    said = model(whole)
    torch.testing.assert_close(said.logits, torch.cat(wanted), rtol=0, atol=1e-10)
    assert said.token.tolist() == [6, 7, 10, 11, 14, 17]
    assert said.row.tolist() == [0, 0, 1, 1, 2, 3]


def test_closed_gates_leave_the_language_model_as_it_was(folder: Path) -> None:
    words = make_batch([[one for one in row if one >= 0] for row in ROWS])
    model = make(folder, gates=0.0)
    alone = MultimodalLM(LanguageModel(str(folder))).double().eval()
    assert torch.equal(model(make_batch()).logits, alone(words).logits)
    settings = Decoding(max_new_tokens=4).settings(model.language.backbone)
    assert torch.equal(
        model.generate(make_batch(), settings=settings), alone.generate(words, settings=settings)
    )


def test_text_that_sees_no_media_is_that_of_the_language_model(folder: Path) -> None:
    model = make(folder)
    alone = MultimodalLM(LanguageModel(str(folder))).double().eval()
    assert torch.equal(model(without_media()).logits, alone(without_media()).logits)


@pytest.mark.parametrize("packing", [True, False])
def test_nobody_sees_the_media_of_another_sample(folder: Path, packing: bool) -> None:
    model = make(folder, packing=packing)
    before, after = (model(make_batch(other=other)) for other in (None, 2))
    changed = (before.logits != after.logits).any(dim=1)
    assert set(before.row[changed].tolist()) == {1}
    assert bool(changed[before.row == 1].all())


def test_two_media_are_told_apart_by_their_order(folder: Path) -> None:
    model, whole = make(folder), make_batch()
    assert whole.image is not None
    swapped = Input(whole.image.data[[0, 2, 1, 3, 4]], whole.image.owner, whole.image.present)
    assert not torch.allclose(
        model(whole).logits[2:4], model(batch(whole.text, swapped, whole.audio)).logits[2:4]  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_equal_those_of_a_search_without_a_cache(folder: Path, beams: int) -> None:
    model, whole, steps = make(folder, gates=3.0), make_batch(), 5
    chosen = Decoding(max_new_tokens=steps, num_beams=beams).settings(model.language.backbone)
    chosen.eos_token_id = None  # every beam runs to the end
    got = model.generate(whole, settings=chosen)
    media = media_of(model, whole)
    for row, (ids, count) in enumerate(zip(ROWS, ANSWERS, strict=True)):
        found: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(steps):
            further = []
            for score, said in found:
                logits = slowly(model, ids[:-count] + said, of_row(media, row))[-1].detach().log_softmax(0)
                further += [(score + float(logits[one]), [*said, one]) for one in range(len(logits))]
            found = sorted(further, reverse=True)[:beams]
        assert got[row].tolist() == found[0][1]


def test_a_batch_without_media_is_answered_as_by_the_language_model(folder: Path) -> None:
    model = make(folder)
    chosen = Decoding(max_new_tokens=4, num_beams=2).settings(model.language.backbone)
    alone = MultimodalLM(LanguageModel(str(folder))).double().eval()
    whole = without_media()
    assert torch.equal(model.generate(whole, settings=chosen), alone.generate(whole, settings=chosen))


def gradients(model: MultimodalLM, whole: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    model(whole).logits.square().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gates_open_first_and_towers_follow(folder: Path) -> None:
    closed, opened = gradients(make(folder, gates=0.0), make_batch()), gradients(make(folder), make_batch())
    for name, gradient in closed.items():
        if name.startswith("injection"):
            assert bool(gradient.any()) == name.endswith("gate"), name
        elif not name.startswith("language"):
            assert not gradient.any(), name
    assert all(bool(gradient.any()) for gradient in opened.values())


@pytest.mark.parametrize("packing", [True, False])
def test_all_get_a_gradient_where_no_sample_has_media(folder: Path, packing: bool) -> None:
    for name, gradient in gradients(make(folder, packing=packing), without_media()).items():
        assert bool(gradient.any()) == name.startswith("language"), name


def test_recomputed_blocks_give_the_same_gradients(folder: Path) -> None:
    model = make(folder).train()
    held = gradients(model, make_batch())
    checkpoint_blocks(model, 1.0)
    again = gradients(model, make_batch())
    for name, gradient in held.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_the_layers_are_trained_whole_whatever_adapts_the_language_model(folder: Path) -> None:
    for method in ("lora", "frozen", "prefix", "adapters"):
        model = make(folder)
        policy = Policy({"language": method, "image": "frozen", "audio": "frozen"})  # type: ignore[dict-item]
        before = model(make_batch()).logits
        policy.apply(model)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {n for n, _ in model.named_parameters() if n.startswith("injection")} <= trained
        assert {n for n in model.state_dict() if n.startswith("injection")} <= policy.kept(model)
        if method != "prefix":
            torch.testing.assert_close(model(make_batch()).logits, before)


def sharded(rank_folder: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, answers and gradients of both ranks together, from a model in shards."""
    from torch.distributed.device_mesh import init_device_mesh

    model = make(Path(rank_folder))
    task: Any = torch.nn.Module()
    task.model = model
    shard(task, init_device_mesh("cpu", (2,), mesh_dim_names=("shards",)))
    whole = make_batch() if torch.distributed.get_rank() == 0 else without_media()
    grads = gradients(model, whole)
    chosen = Decoding(max_new_tokens=3, num_beams=2).settings(model.language.backbone)
    return (
        model(whole).logits.detach(),
        model.generate(whole, settings=chosen, together=True),
        {name: gradient.full_tensor() for name, gradient in grads.items()},  # type: ignore[operator]
    )


def test_shards_give_the_same_where_one_rank_has_no_media(folder: Path, ranks: Any) -> None:
    model = make(folder)
    batches = make_batch(), without_media()
    chosen = Decoding(max_new_tokens=3, num_beams=2).settings(model.language.backbone)
    grads = [gradients(model, whole) for whole in batches]
    for (logits, answers, together), whole in zip(ranks(sharded, str(folder)), batches, strict=True):
        torch.testing.assert_close(logits, model(whole).logits, rtol=0, atol=1e-10)
        wanted = model.generate(whole, settings=chosen)
        assert torch.equal(answers[:, : wanted.shape[1]], wanted)
        for name, gradient in together.items():
            mean = (grads[0][name] + grads[1][name]) / 2
            torch.testing.assert_close(gradient, mean, rtol=1e-9, atol=1e-9, msg=name)


def test_nothing_is_left_behind_and_copies_stand_alone(folder: Path) -> None:
    model, words = make(folder), make_batch([[5, 6, 7], [8, 9, 10], [12, 13, 14], [4, 15, 16, 17]])
    quiet = model(words).logits
    model(make_batch())
    long = make_batch()
    with pytest.raises(ValueError, match="the text has"), model._shown(model._read(long, long.text)):  # type: ignore[arg-type]
        model.language(model.language.embed(torch.arange(3)), torch.tensor([3]), torch.tensor([2]))
    embedded = model.language.embed(torch.arange(3))
    model.language(embedded, torch.tensor([3]), torch.tensor([2]))
    assert torch.equal(model(words).logits, quiet)
    other = copy.deepcopy(model)
    for layer in layers(other):
        torch.nn.init.zeros_(layer.attention_gate)
    assert not torch.allclose(other(make_batch()).logits, model(make_batch()).logits)


def test_what_does_not_fit_is_said(folder: Path) -> None:
    def build(**chosen: int) -> MultimodalLM:
        tower = MediaTower(Pixels(), dim=DIM)
        return MultimodalLM(LanguageModel(str(folder)), image=tower, injection=CrossAttention(**chosen))

    with pytest.raises(ValueError, match=r"injection\.num_heads=3 must divide 32"):
        build(every=1, num_heads=3)
    with pytest.raises(ValueError, match=r"injection\.every=4: at most 2"):
        build()
    with pytest.raises(ValueError, match=r"every=0, .* at least 1 each"):
        build(every=0)
    with pytest.raises(ValueError, match="injection: there is no tower"):
        MultimodalLM(LanguageModel(str(folder)), injection=CrossAttention(every=1))
    model = make(folder)
    with pytest.raises(ValueError, match="no word before what is to be said"):
        model(make_batch([[IMAGE, 6, 7], *ROWS[1:]]))
    assert len(layers(build(every=2))) == 1
    model = Policy({"language": "prompts"}).apply(make(folder, packing=False))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="do not adapt the language model by prompts"):
        model(make_batch())


def test_questions_keep_what_they_show(folder: Path) -> None:
    asked = questions(make_batch().text)  # type: ignore[arg-type]
    assert asked.target is None
    assert make(folder)(batch(asked, make_batch().image, make_batch().audio)).logits.shape[0] == 0  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=6), st.integers(1, 3))
def test_each_token_sees_the_first_media_of_its_row(steps: list[list[int]], extra: int) -> None:
    before = [torch.tensor(row, dtype=torch.int64).cumsum(0) for row in steps]
    length = torch.tensor([int(row[-1]) + extra if len(row) > 0 else extra for row in before])
    grid = torch.nn.utils.rnn.pad_sequence([torch.nn.functional.pad(row, (1, 0)) for row in before], True)
    row = torch.arange(len(grid))[:, None].expand_as(grid)
    found = plan(grid, row, length)
    starts = (length.cumsum(0) - length).tolist()
    seen = [
        sorted(set(media[sees].tolist()))
        for group in found.groups
        for media, several in zip(group.media, group.sees[:, 0], strict=True)
        for sees in several
    ]
    looking = [(r, int(count)) for r, counts in enumerate(grid) for count in counts if count > 0]
    assert (found.weight == 1) == bool(looking)
    for (r, count), place in zip(looking, found.inverse.tolist(), strict=bool(looking)):
        assert seen[place] == list(range(starts[r], starts[r] + count))
