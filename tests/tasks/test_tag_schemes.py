"""What may follow what: tags that keep to a scheme, tags that none lets be told, a field that learns it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlab.adaptation.policy import Policy
from mmlab.batch import Input, Modality
from mmlab.models.crf import best_tags
from mmlab.models.encoders.encoder import Encoded, Encoder
from mmlab.models.word_tagger import WordTagger
from mmlab.optim import Optimization
from mmlab.tasks.extraction import ExtractionTask
from mmlab.tasks.tagging import follows, is_closed, scheme, ways

pytestmark = pytest.mark.filterwarnings("ignore:Attribute .* is an instance of")


class Table(Encoder):
    """A vector for each token."""

    modality = Modality.TEXT
    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 8)

    def encode(self, inputs: Input) -> Encoded:
        assert inputs.mask is not None
        return Encoded(self.table(inputs.data), inputs.mask)


def make_task(tags: list[str], *, crf: bool = False, constrained: bool = True) -> ExtractionTask:
    return ExtractionTask(
        WordTagger(Table(), tags=len(tags)),
        tags=tags,
        crf=crf,
        constrained=constrained,
        optimization=Optimization(torch.optim.AdamW),
        adaptation=Policy("full"),
    )


SCHEMES = {
    "BIO": (["O", "B-A", "I-A", "B-B"], {"O": "OB", "B": "OBI", "I": "OBI"}, "OB", "OBI"),
    "BIOES": (["O", "B-A", "I-A", "E-A", "S-B"], {"O": "OBS", "B": "IE", "I": "IE", "E": "OBS", "S": "OBS"},
              "OBS", "OES"),
    "BILOU": (["O", "B-A", "I-A", "L-A", "U-B"], {"O": "OBU", "B": "IL", "I": "IL", "L": "OBU", "U": "OBU"},
              "OBU", "OLU"),
}  # fmt: skip
"""Some tags, which letters may follow which, begin and end."""


def keeps_to(name: str, tags: Sequence[str]) -> bool:
    _, after, begin, end = SCHEMES[name]
    return (
        tags[0][0] in begin
        and tags[-1][0] in end
        and all(
            then[0] in after[tag[0]] and (then[0] not in "IEL" or then[1:] == tag[1:])
            for tag, then in pairwise(tags)
        )
    )


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(SCHEMES)), words=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_what_is_told_is_the_likeliest_that_keeps_to_its_scheme(name: str, words: int, seed: int) -> None:
    tags = SCHEMES[name][0]
    logits = torch.randn(words, len(tags), generator=torch.Generator().manual_seed(seed)) * 3
    told = best_tags(logits[None], torch.ones(1, words, dtype=torch.bool), scheme(tags))[0].tolist()
    score = {
        numbers: sum(logits[word, tag].item() for word, tag in enumerate(numbers))
        for numbers in product(range(len(tags)), repeat=words)
        if keeps_to(name, [tags[number] for number in numbers])
    }
    assert score[tuple(told)] == pytest.approx(max(score.values()), abs=1e-4)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (["O", "I-PER", "I-LOC"], "I-PER, I-LOC would never be told, .* add B-LOC, B-PER, or set"),
        (["O", "I-PER", "E-PER", "B-LOC", "E-LOC"], "I-PER, E-PER would never be told, .* add B-PER, or set"),
        (["O", "B-PER", "I-PER", "S-PER"], "B-PER, I-PER would never be told, .* add E-PER, or set"),
        (["O", "B-PER", "I-PER", "U-PER"], "B-PER, I-PER would never be told, .* add L-PER, or set"),
        (["O", "B-PER", "I-PER", "I-LOC"], "tags: I-LOC would never be told, .* add B-LOC, or set"),
        (["B-PER", "E-LOC"], "B-PER, E-LOC would never be told, .* add B-LOC, E-PER, or set"),
    ],
)
def test_tags_that_could_never_be_told_are_refused(tags: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said + r" model\.init_args\.constrained to false"):
        scheme(tags)
    with pytest.raises(ValueError, match=said):
        make_task(tags)
    assert make_task(tags, constrained=False).limits is None


@settings(max_examples=60)
@given(
    tags=st.lists(
        st.sampled_from([f"{letter}-{kind}" for letter in "BIES" for kind in "AB"]),
        min_size=1, max_size=5, unique=True,
    ).map(lambda tags: ["O", *tags])
)  # fmt: skip
def test_tags_are_refused_where_no_short_sentence_has_them(tags: list[str]) -> None:
    closed = is_closed(tags)
    found = {
        tag
        for words in range(1, 4)
        for told in product(tags, repeat=words)
        if all(follows(one, then, closed=closed) for one, then in pairwise(["O", *told, "O"]))
        for tag in told
    }
    begun, ended = ways(tags)
    assert begun & ended == found
    if found < set(tags):
        with pytest.raises(ValueError, match="would never be told"):
            scheme(tags)
    else:
        scheme(tags)


def test_the_experiment_gives_a_field_a_rate_at_which_it_learns() -> None:
    path = Path(__file__).parents[2] / "experiments" / "extraction" / "wnut17.yaml"
    text = path.read_text(encoding="utf-8")
    config = yaml.safe_load(text)["model"]["init_args"]["optimization"]
    (rates,) = re.findall(r'--model\.init_args\.crf true .*optimization\.rates "(.*)"', text)
    optimization = Optimization(
        partial(torch.optim.AdamW, **config["optimizer"]["init_args"]), rates=yaml.safe_load(rates)
    )
    task = make_task(["O", "B-PER", "I-PER", "B-LOC"], crf=True)
    assert task.field is not None
    optimization.check_parts(name for name, _ in task.named_parameters())
    optimizer = optimization.build_optimizer(task.named_parameters())
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[task.field.between] == rate[task.field.start] == pytest.approx(1e-2)
    assert rate[task.model.head.weight] == pytest.approx(config["rates"]["head"] * 2e-4)
    assert "field" not in config["rates"]  # it is no part of a run without one, and would be refused
    # Emissions say nothing, and I-PER stands behind B-PER only.
    there, right = torch.ones(8, 6, dtype=torch.bool), torch.tensor([[0, 1, 2, 0, 3, 0]] * 8)
    for _ in range(300):
        optimizer.zero_grad()
        task.field(torch.zeros(8, 6, 4), there, right).mean().backward()
        optimizer.step()
    assert task.field.between[1, 2] - task.field.between[0, 2] > 2
