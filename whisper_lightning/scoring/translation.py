"""BLEU and chrF of translations, as sacrebleu computes them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from whisper_lightning.errors import UserError


def check_sacrebleu() -> None:
    """Look for sacrebleu, which a run that translates is scored with.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise UserError("translations are scored with sacrebleu: pip install 'whisper-lightning[translate]'")


def score_translations(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Score translations, one reference each.

    Args:
        hypotheses: The model's translations.
        references: What they should be.

    Returns:
        `bleu` (Papineni et al. 2002) and `chrf` (Popović 2015) of the whole, 0 to 100, with sacrebleu's defaults.

    Raises:
        UserError: sacrebleu is not installed.
    """
    check_sacrebleu()
    from sacrebleu import corpus_bleu, corpus_chrf

    bleu, chrf = (metric(hypotheses, [references]) for metric in (corpus_bleu, corpus_chrf))
    return {"bleu": float(bleu.score), "chrf": float(chrf.score)}
