"""How alike two texts are, from 0 (nothing in common) to 1. Each metric says which definition it follows.

Equal texts have 1, but in ROUGE-N those of fewer than N words, and in ROUGE-L those of none, have 0.
Words are runs of letters and digits; for BLEU and GLEU each punctuation mark is a word too. In scripts without spaces
a whole clause is one word: compare those by fuzzy_match.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tuneway.graders.values import Metric

MAX_COMPARED = 65_536
"""Characters of either text: fuzzy_match and rouge_l take time that grows with the product of the lengths."""

REFUSED: Mapping[Metric, str] = {
    "cosine": "it compares embeddings, and this gateway serves no embedding model",
    "meteor": "it needs the synonyms of WordNet, which this gateway does not ship",
}
"""Metrics of OpenAI's API that cannot be had here, and why."""

_WORD = re.compile(r"\w+")
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")

Ngrams = Counter[tuple[str, ...]]


def fuzzy_match(text: str, reference: str) -> float:
    """RapidFuzz's `fuzz.ratio` / 100: 2·LCS / (length + length), in characters, case-sensitive."""
    from rapidfuzz import fuzz

    return float(fuzz.ratio(text, reference)) / 100


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU (Papineni et al., 2002) of up to 4-grams with brevity penalty, as sacreBLEU counts it.

    Orders without a match count 1/2, 1/4, … of one match (NIST's smoothing, `exp`), and orders for which the text is
    too short are left out (`use_effective_order`). Case-sensitive.
    """
    words, wanted = _WORD_OR_MARK.findall(text), _WORD_OR_MARK.findall(reference)
    logs, halvings = [], 1.0
    for order in range(1, min(4, len(words)) + 1):
        found, total = _matches(words, wanted, order), len(words) - order + 1
        if order == 1 and not found:
            return 0.0
        if not found:
            halvings *= 2
        logs.append(math.log((found or 1 / halvings) / total))
    if not logs:
        return float(not wanted)
    brevity = min(0.0, 1 - len(wanted) / len(words))
    return min(1.0, math.exp(brevity + math.fsum(logs) / len(logs)))


def gleu(text: str, reference: str) -> float:
    """Google's GLEU (Wu et al., 2016): all 1- to 4-grams, the smaller of recall and precision. Case-sensitive."""
    words, wanted = _WORD_OR_MARK.findall(text), _WORD_OR_MARK.findall(reference)
    longest = max(_count(words), _count(wanted))
    found = sum(_matches(words, wanted, order) for order in range(1, 5))
    return found / longest if longest else 1.0


def rouge_n(order: int) -> Callable[[str, str], float]:
    """ROUGE-N (Lin, 2004): F1 of the overlap of n-grams of words in lower case, without stemming."""

    def rouge(text: str, reference: str) -> float:
        words, wanted = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
        sizes = max(0, len(words) - order + 1) + max(0, len(wanted) - order + 1)
        return 2 * _matches(words, wanted, order) / sizes if sizes else 0.0

    return rouge


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L (Lin, 2004): F1 of the longest common subsequence of words in lower case, without stemming."""
    from rapidfuzz.distance import LCSseq

    words, wanted = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
    if not words or not wanted:
        return 0.0
    return 2 * LCSseq.similarity(words, wanted) / (len(words) + len(wanted))


METRICS: Mapping[Metric, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "rouge_1": rouge_n(1),
    "rouge_2": rouge_n(2),
    "rouge_3": rouge_n(3),
    "rouge_4": rouge_n(4),
    "rouge_5": rouge_n(5),
    "rouge_l": rouge_l,
}


def _ngrams(words: Sequence[str], order: int) -> Ngrams:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _matches(words: Sequence[str], wanted: Sequence[str], order: int) -> int:
    """How many n-grams of `words` stand in `wanted`, each at most as often as it does there."""
    return (_ngrams(words, order) & _ngrams(wanted, order)).total()


def _count(words: Sequence[str]) -> int:
    """How many 1- to 4-grams there are."""
    return sum(max(0, len(words) - order + 1) for order in range(1, 5))
