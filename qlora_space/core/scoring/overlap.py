"""How many words two texts share."""

import re
from collections import Counter

from qlora_space.core.scoring.text import bounded

_MAX_WORDS = 2000
_HAN_AND_KANA = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN_AND_KANA}]|[^\W{_HAN_AND_KANA}]+")
_ARTICLES = frozenset(("a", "an", "the"))


def words_of(text: str) -> list[str]:
    """In lower case, without punctuation; a character of Chinese or Japanese is a word. At most 2,000."""
    return _WORD.findall(bounded(text).lower())[:_MAX_WORDS]


def token_f1(answer: str, expected: str) -> float:
    """F1 over the words of both, articles left out: SQuAD 1.1's measure (Rajpurkar et al. 2016, arXiv 1606.05250).

    Two texts without a word are the same, as in SQuAD 2.0's script.
    """
    one, other = (Counter(w for w in words_of(t) if w not in _ARTICLES) for t in (answer, expected))
    total = sum(one.values()) + sum(other.values())
    return 2 * sum((one & other).values()) / total if total else 1.0


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words (ROUGE-L, Lin 2004, with beta 1 as the package rouge-score has it;
    words are not stemmed)."""
    one, other = words_of(answer), words_of(expected)
    if not one or not other:
        return float(one == other)
    return 2 * _common_subsequence(one, other) / (len(one) + len(other))


def _common_subsequence(one: list[str], other: list[str]) -> int:
    """Its length, a whole row of the table at a time in the bits of one number (Hyyrö 2004, bit-parallel LCS)."""
    where: dict[str, int] = {}
    for at, word in enumerate(one):
        where[word] = where.get(word, 0) | 1 << at
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        matched = row & where.get(word, 0)
        row = (row + matched | row - matched) & every
    return len(one) - row.bit_count()
