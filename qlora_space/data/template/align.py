"""Text with spans to tokens with a mask: exactly the tokens of the spans, and the prompt as at inference."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qlora_space.data.rows import RowProblem
from qlora_space.data.template.proof import Tokens, prove_all


@dataclass(frozen=True)
class Rendered:
    """A document as text, the spans that are trained, and what is fixed in front of each.

    `tails`: the prompt's text after its last special token, where it is the same for all rows.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    tails: tuple[str | None, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(self.text[start:end] for start, end in self.spans)


class Aligner:
    """Tokenizes rendered documents and proves their masks."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._encode_tail = lru_cache(maxsize=256)(self.encode)

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def tokenize(self, documents: Sequence[Rendered]) -> list[Tokens | RowProblem]:
        """Tokens with a proved mask for each document, or why there are none."""
        encodings = self._backend.encode_batch(
            [r.text for r in documents], add_special_tokens=False
        )
        first = [self._aligned(r, e) for r, e in zip(documents, encodings, strict=True)]
        reasons = prove_all(self._tokenizer, first, [r.answers for r in documents])
        return [self._checked(*each) for each in zip(documents, first, reasons, strict=True)]

    def _aligned(self, rendered: Rendered, encoding: Any) -> Tokens:
        """Tokens of the whole text; cut at the spans where a token would lie across an edge."""
        ids: list[int] = encoding.ids
        trained = [False] * len(ids)
        for (start, end), tail in zip(rendered.spans, rendered.tails, strict=True):
            first = _token_at(encoding, start, len(rendered.text))
            last = _token_at(encoding, end, len(rendered.text))
            if first is None or last is None:
                return self._cut(rendered)
            if not self._prompt_is_stable(rendered.text, start, ids[:first], tail):
                return self._cut(rendered)
            trained[first:last] = [True] * (last - first)
        return Tokens(ids, trained)

    def _prompt_is_stable(self, text: str, start: int, ids: list[int], tail: str | None) -> bool:
        """Whether the prompt alone gives these ids: white space at its end may be cut otherwise."""
        before = text[max(0, start - 2) : start]
        if not before[-1:].isspace() or (before[-1] == "\n" and not before[:1].isspace()):
            return True
        if tail is None:
            return self.encode(text[:start]) == ids
        expected = self._encode_tail(tail)
        return ids[len(ids) - len(expected) :] == expected

    def _cut(self, rendered: Rendered) -> Tokens:
        ids: list[int] = []
        trained: list[bool] = []
        edges = [0, *(edge for span in rendered.spans for edge in span), len(rendered.text)]
        for index, (start, end) in enumerate(itertools.pairwise(edges)):
            piece = self.encode(rendered.text[start:end])
            ids += piece
            trained += [index % 2 == 1] * len(piece)
        return Tokens(ids, trained)

    def _checked(self, rendered: Rendered, tokens: Tokens, why: str) -> Tokens | RowProblem:
        if why:
            tokens = self._cut(rendered)
            (why,) = prove_all(self._tokenizer, [tokens], [rendered.answers])
        return RowProblem("unproved_mask", why) if why else tokens


def _token_at(encoding: Any, position: int, text_length: int) -> int | None:
    """The token that begins at this character; None if none does."""
    if position == text_length:
        return len(encoding)
    token = encoding.char_to_token(position)
    if token is None or encoding.token_to_chars(token)[0] != position:
        return None
    return token
