"""Of translations and summaries: BLEU, chrF and ROUGE, by the libraries that published numbers come from."""

from __future__ import annotations

from collections.abc import Sequence

from llmfactory.core.errors import MissingExtra


def bleu(written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Corpus `bleu` and `chrf`, 0 to 100 (Papineni et al. 2002; Popović 2015), as sacrebleu computes them (Post 2018)."""
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtra("sacrebleu", "eval", "BLEU") from error
    references = [list(right)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(written), references).score,
        "chrf": sacrebleu.corpus_chrf(list(written), references).score,
    }


def rouge(written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Mean F-measures `rouge1`, `rouge2` and `rougeL` (Lin 2004), with stemming, as rouge-score computes them."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtra("rouge-score", "eval", "ROUGE") from error
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(written, right, strict=True)]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}
