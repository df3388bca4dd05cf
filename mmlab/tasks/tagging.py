"""What tasks share in which each word of a text gets a tag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mmlab.adaptation.policy import Policy
from mmlab.batch import NOBODY, Batch, Input
from mmlab.metrics.entities import OUTSIDE, parts, spans
from mmlab.models.crf import TagField, Transitions, best_tags
from mmlab.models.word_tagger import WordTagger, by_sample
from mmlab.objectives.loss import Loss, mean_of
from mmlab.optim import Optimization
from mmlab.tasks.base import BaseTask

FORBIDDEN = -1e4
"""Far below what logits add up to, but finite: where the list of tags leaves no way, some are told anyhow."""


class Tagged(NamedTuple):
    """What was told of the words of one sample."""

    sample: int
    """Number in its batch."""
    place: int
    """See :attr:`mmlab.batch.Batch.place`."""
    tags: list[str]
    """One for each word."""
    probability: Float[Tensor, "words tags"]
    """Of every tag there is, by the word's own logits; on the CPU."""


class TaggingTask(BaseTask):
    """Learns to tag every word of a text; a leaf says what is made of the tags.

    Args:
        model: It gives as many tags.
        tags: All there are, by BIO, BIOES or BILOU.
        optimization: Optimizer and learning-rate schedule.
        adaptation: Which parameters are trained.
        crf: Learn what may follow what (:class:`~mmlab.models.crf.TagField`), and decode whole sentences.
        constrained: Tell the likeliest tags of a sentence among those that keep to their scheme (no I behind
            an O, or behind another type), not the likeliest tag of each word.

    Raises:
        ValueError: A tag is none or there twice, the model gives more or fewer, or `constrained` would never
            let one be told (:func:`scheme`).
    """

    model: WordTagger

    def __init__(
        self,
        model: WordTagger,
        *,
        tags: list[str],
        optimization: Optimization,
        adaptation: Policy,
        crf: bool = False,
        constrained: bool = True,
    ) -> None:
        super().__init__(model, optimization=optimization, adaptation=adaptation)
        self.tags = _numbered(tags, given=model.tags)
        self.field = TagField(len(tags)) if crf else None
        self.limits = scheme(tags) if constrained else None
        self._said = not constrained
        self._seen = set[tuple[str, str]]()

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Mean over all words of -log p of the right tag, or of the sentence's right tags."""
        if not batch.references:
            raise ValueError("no tags to learn from: set data.loading.references (`[json.tags]`)")
        emission, there = self._emission(batch)
        right, known = tag_numbers(batch, there, self.tags)
        there = there & known[:, None]
        if not self._said:
            self._look_at_scheme(batch)
        if self.field is not None:
            losses = self.field(emission, there, right)
        else:
            words = F.cross_entropy(emission.transpose(1, 2), right, reduction="none")
            losses = words.masked_fill(~there, 0).sum(dim=1)
        return {"tags": mean_of(losses, there.sum(dim=1).float(), batch.place)}

    def _look_at_scheme(self, batch: Batch) -> None:
        """Say once which right tags would never be told; each pair is looked at when it first comes."""
        closed = is_closed(self.tags)
        for key, known in zip(batch.keys, batch.references, strict=True):
            pairs = set(pairwise([OUTSIDE, *known, OUTSIDE] if known else [])) - self._seen
            self._seen |= pairs
            for before, after in sorted(pairs):
                if not follows(before, after, closed=closed):
                    self._said = True
                    rank_zero_info(
                        f"sample {key!r} has {after} behind {before}, which keeps to no scheme and is never "
                        "told: correct it, or set model.init_args.constrained to false"
                    )
                    return

    def _emission(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of each word of each sample, and which words there are."""
        logits = self(batch)
        assert batch.text is not None, "the model has read words"
        return by_sample(logits, batch.text)

    @torch.no_grad()
    def tell(self, batch: Batch) -> list[Tagged]:
        """The tags of each valid sample."""
        emission, there = self._emission(batch)
        if self.field is not None:
            told = self.field(emission, there, limits=self.limits)
        elif self.limits is not None:
            told = best_tags(emission, there, self.limits.to(emission.device))
        else:
            told = emission.argmax(dim=2)
        probability = emission.softmax(dim=2).cpu()
        place, valid, count = (x.tolist() for x in (batch.place, batch.valid, there.sum(dim=1)))
        names = list(self.tags)
        return [
            Tagged(
                number,
                place[number],
                [names[tag] for tag in told[number, : count[number]].tolist()],
                probability[number, : count[number]],
            )
            for number in range(len(batch))
            if valid[number]
        ]


def _numbered(tags: Sequence[str], *, given: int) -> dict[str, int]:
    """The number of each tag; the model gives so many."""
    spans(tags)
    if given != len(tags):
        raise ValueError(f"the model gives {given} tags, there are {len(tags)}: set both alike")
    for number, tag in enumerate(tags):
        if tag in tags[:number] or len(tag.split()) != 1:
            raise ValueError(f"tags: {tag!r} is there twice, or has a space: correct it")
    return {tag: number for number, tag in enumerate(tags)}


def tag_numbers(
    batch: Batch, there: Bool[Tensor, "samples words"], tags: dict[str, int]
) -> tuple[Int64[Tensor, "samples words"], Bool[Tensor, " samples"]]:
    """The right tags of each sample, any behind the end, and which samples have tags.

    Raises:
        ValueError: A sample has more or fewer tags than words, or one that is not in the list.
    """
    counts, valid = there.sum(dim=1).tolist(), batch.valid.tolist()
    right = torch.full(there.shape, tags.get(OUTSIDE, 0), dtype=torch.int64)
    has = [bool(known) and valid[number] for number, known in enumerate(batch.references)]
    for number, (key, known) in enumerate(zip(batch.keys, batch.references, strict=True)):
        if has[number]:
            check_tags(key, known, counts[number], tags)
            right[number, : len(known)] = torch.tensor([tags[tag] for tag in known], dtype=torch.int64)
    return right.to(there.device), torch.tensor(has, device=there.device)


def took_words(text: Input) -> bool:
    """Whether words of a batch were taken away from their sample: a row of words stays, and nobody owns it.

    What is in a row that stands for a sample without words begins none.
    """
    assert text.target is not None, "the model has read words"
    return bool(text.target[text.owner == NOBODY].any())


def check_tags(key: str, known: Sequence[str], words: int, tags: dict[str, int]) -> None:
    """Raise ValueError unless a sample has no tags at all, or one of the list for each word."""
    if known and len(known) != words:
        raise ValueError(
            f"sample {key!r} has {words} words and {len(known)} tags: name the fields of both "
            "(data.text.init_args.field, data.loading.references), or correct it"
        )
    for tag in known:
        if tag not in tags:
            raise ValueError(
                f"sample {key!r}: the tag {tag!r} is none of {', '.join(tags)}: add it, or correct it"
            )


def scheme(tags: Sequence[str]) -> Transitions:
    """0 where a tag may begin a sentence, follow another, or end one, by BIO, BIOES or BILOU.

    Raises:
        ValueError: A tag stands on no way through a sentence: it could never be told.
    """
    closed = is_closed(tags)
    begun, ended = ways(tags)
    if len(begun & ended) < len(set(tags)):
        last = "L" if any(parts(tag)[0] in "LU" for tag in tags) else "E"
        lacking = {f"B-{parts(tag)[1]}" for tag in tags if tag not in begun}
        lacking |= {f"{last}-{parts(tag)[1]}" for tag in tags if tag not in ended}
        raise ValueError(
            f"tags: {', '.join(tag for tag in tags if tag not in begun & ended)} would never be told, as no "
            "sentence of these tags that keeps to their scheme has one: add "
            f"{', '.join(sorted(lacking))}, or set model.init_args.constrained to false"
        )

    def score(before: str, after: str) -> float:
        return 0.0 if follows(before, after, closed=closed) else FORBIDDEN

    return Transitions(
        torch.tensor([score(OUTSIDE, tag) for tag in tags]),
        torch.tensor([[score(tag, then) for then in tags] for tag in tags]),
        torch.tensor([score(tag, OUTSIDE) for tag in tags]),
    )


def ways(tags: Sequence[str]) -> tuple[set[str], set[str]]:
    """The tags to which some way leads from the beginning of a sentence, and those with one to its end."""
    closed = is_closed(tags)
    begun, ended = {OUTSIDE}, {OUTSIDE}
    for _ in tags:  # no way need be longer
        begun |= {tag for tag in tags if any(follows(before, tag, closed=closed) for before in begun)}
        ended |= {tag for tag in tags if any(follows(tag, after, closed=closed) for after in ended)}
    return begun & set(tags), ended & set(tags)


def is_closed(tags: Iterable[str]) -> bool:
    """Whether the last word of an entity has a letter of its own, as by BIOES and BILOU."""
    return any(parts(tag)[0] in "ESLU" for tag in tags)


def follows(before: str, after: str, *, closed: bool) -> bool:
    """Whether a tag may stand behind another; O stands for both ends of a sentence, too."""
    (letter, kind), (then, its) = parts(before), parts(after)
    if then in "IEL":
        return letter in "BI" and kind == its
    return not closed or letter not in "BI"
