"""Scores of captions as the COCO server counts them: BLEU, ROUGE-L, CIDEr."""

from __future__ import annotations

from collections.abc import Sequence

from mmlab.metrics.bleu import corpus_bleu
from mmlab.metrics.cider import cider
from mmlab.metrics.ptb import ptb_tokens
from mmlab.metrics.rouge import rouge_l
from mmlab.metrics.text import Answered, TextScore, with_interval


class CaptionScores(TextScore):
    """BLEU, ROUGE-L and CIDEr of coco-caption, with its tokens, without Java.

    What coco-caption prints as CIDEr, and papers report, is CIDEr-D: `cider` and `cider_d` are one number.
    `cider_plain` is what the authors of CIDEr call CIDEr in their own repository, without clipping and
    penalty. METEOR and SPICE are missing: they are programs in Java, and what imitates them gives other
    numbers.
    """

    def __call__(self, answers: Sequence[Answered]) -> dict[str, float]:
        """`cider` with its interval, `cider_d`, `cider_plain`, `bleu_1` to `bleu_4`, `rouge_l`.

        All as shares of 1 but CIDEr, which goes up to 10. Document frequencies are those of the references
        given, so CIDEr is comparable on the same set of samples only, and 0 where there is one sample.
        """
        said = [ptb_tokens(one.prediction) for one in answers]
        right = [[ptb_tokens(reference) for reference in one.references] for one in answers]
        rouge = [rouge_l(answer, references) for answer, references in zip(said, right, strict=True)]
        # BLEU and CIDEr part at the blank inside a token such as `1 1/2`, ROUGE does not.
        said = [_parted(answer) for answer in said]
        right = [[_parted(reference) for reference in references] for references in right]
        consensus = cider(said, right)
        found = with_interval("cider", [score.d for score in consensus], answers)
        found["cider_d"] = found["cider"]
        found["cider_plain"] = sum(score.plain for score in consensus) / len(consensus)
        found |= {f"bleu_{order}": score for order, score in enumerate(corpus_bleu(said, right), start=1)}
        return found | {"rouge_l": sum(rouge) / len(rouge)}


def _parted(tokens: Sequence[str]) -> list[str]:
    return " ".join(tokens).split()
