"""The proof of a mask: what is trained is decoded and must read as the answers, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tokens:
    """One document. `trained[i]` says whether token i gets a loss."""

    input_ids: list[int]
    trained: list[bool]


def prove(tokenizer: Any, tokens: Tokens, answers: Sequence[str]) -> str:
    """'' if the trained tokens read exactly as `answers` and there is no second BOS, else why not."""
    return prove_all(tokenizer, [tokens], [answers])[0]


def prove_all(
    tokenizer: Any, documents: Sequence[Tokens], answers: Sequence[Sequence[str]]
) -> list[str]:
    """`prove` for many documents at once."""
    runs = [runs_of(tokens.trained) for tokens in documents]
    pieces = [
        tokens.input_ids[first:last]
        for tokens, spans in zip(documents, runs, strict=True)
        for first, last in spans
    ]
    backend = tokenizer.backend_tokenizer
    decoded = iter(backend.decode_batch(pieces, skip_special_tokens=False))
    reasons = []
    for tokens, spans, wanted in zip(documents, runs, answers, strict=True):
        read = [next(decoded) for _ in spans]
        reasons.append(_why_unproved(tokenizer, tokens, read, wanted))
    return reasons


def _why_unproved(tokenizer: Any, tokens: Tokens, read: list[str], wanted: Sequence[str]) -> str:
    bos = tokenizer.bos_token_id
    if bos is not None and tokens.input_ids[:2] == [bos, bos]:
        return "The text begins with two BOS tokens."
    if len(read) != len(wanted):
        return f"{len(read)} stretches would be trained, but there are {len(wanted)} answers."
    for found, answer in zip(read, wanted, strict=True):
        if found != answer and not _reads_the_same(tokenizer, found, answer):
            return f"{found[-60:]!r} would be trained instead of {answer[-60:]!r}."
    return ""


def _reads_the_same(tokenizer: Any, found: str, answer: str) -> bool:
    """Equal but for what the tokenizer itself does to text: normalization, one space in front."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    normal = normalizer.normalize_str(answer) if normalizer else answer
    # SentencePiece writes spaces as a sign of its own, and its decoder drops the first.
    normal = normal.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
    drops_space = tokenizer.backend_tokenizer.decode(
        tokenizer.backend_tokenizer.encode(" a", add_special_tokens=False).ids
    )
    return found == normal or (drops_space == "a" and found == normal.removeprefix(" "))


def runs_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Start and end of each stretch of True."""
    runs: list[tuple[int, int]] = []
    packed = bytes(flags)
    start = packed.find(1)
    while start >= 0:
        end = packed.find(0, start)
        end = end if end >= 0 else len(packed)
        runs.append((start, end))
        start = packed.find(1, end)
    return runs
