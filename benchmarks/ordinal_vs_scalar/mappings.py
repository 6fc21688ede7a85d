"""The mappings that are compared, and which of their runs are the same runs."""

from __future__ import annotations

from orlaif.advantages import DCG, ODRPO, RLOO, Advantage, Borda, MeanCentered, NDCGPenalty, ZScore

#: Of ranks alone, of scores, and the penalty of ranks and log-probs in its four readings.
RANKS = {"dcg": DCG(), "borda": Borda()}
SCORES = {"zscore": ZScore(), "mean_centered": MeanCentered(), "rloo": RLOO(), "odrpo": ODRPO()}
PENALTIES = {
    f"ndcg_penalty, {gain}, {quotient}": NDCGPenalty(gain, quotient)
    for quotient in ("literal", "reversed")
    for gain in ("text", "appendix")
}
MAPPINGS: dict[str, Advantage] = {**RANKS, **SCORES, **PENALTIES}
#: Another scale of each question leaves these as they were: they see the order alone.
ORDER_ONLY = (*RANKS, "odrpo", *PENALTIES)


def mapping_of(name: str, voice: str) -> Advantage:
    """The mapping; ODRPO knows the levels of a judge that has levels."""
    return ODRPO((2, 3, 4, 5)) if (name, voice) == ("odrpo", "quantised") else MAPPINGS[name]


def heard_as(name: str, voice: str) -> str:
    """The voice whose runs these are: what sees the order alone learns of ``rescaled`` what it learns of ``clean``."""
    return "clean" if voice == "rescaled" and name in ORDER_ONLY else voice
