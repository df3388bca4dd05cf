"""BLEU and chrF as the library sacrebleu computes them, for text in any language."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from mmlab.metrics.text import Answered, TextScore

TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Those that need neither a further package nor a download."""


class SacreBleu(TextScore):
    """Corpus BLEU and chrF of sacrebleu (Post 2018; Popović 2015). Samples may have any number of references.

    Args:
        tokenizer: Of BLEU: `13a` for languages that part words by blanks, `intl` the same by Unicode's
            classes of marks, `zh` for Chinese, `char` for others that do not part words, such as Japanese;
            `none` where words and marks are parted already.
        lowercase: Take capital for small letters, in both.

    Raises:
        ValueError: Unknown tokenizer.
    """

    def __init__(self, tokenizer: str = "13a", *, lowercase: bool = False) -> None:
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer {tokenizer!r} is none of {', '.join(TOKENIZERS)}: choose one")
        # Without force it would log that answers seem to be tokenized, where they end in " .".
        self._bleu = BLEU(tokenize=tokenizer, lowercase=lowercase, force=True)
        self._chrf = CHRF(lowercase=lowercase)
        self.signatures: dict[str, str] = {}
        """What to report beside the numbers, by their names, once they are computed."""

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`sacre_bleu` and `chrf`, from 0 to 100 as that library has them."""
        said = [one.prediction for one in answers]
        streams = reference_streams([one.references for one in answers])
        found = {}
        for name, metric in (("sacre_bleu", self._bleu), ("chrf", self._chrf)):
            # Its annotation does not know of None, its documentation does.
            found[name] = metric.corpus_score(said, streams).score  # type: ignore[arg-type]
            self.signatures[name] = str(metric.get_signature())
        return found


def reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """First references of all samples, second ones, and so on; None where a sample has fewer."""
    most = max(len(own) for own in references)
    return [[own[number] if number < len(own) else None for own in references] for number in range(most)]
