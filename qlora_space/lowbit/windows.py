"""Token windows: the text that a base is calibrated on, and the held-out text that it is evaluated on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qlora_space.core.errors import DatasetError


@dataclass(frozen=True)
class Windows:
    """N windows of L tokens: the first `num_calibration` are calibrated on, the rest are held out.

    ids: (N, L) int64. is_text: (N, L) bool, False for padding, which is on the right, where causal attention keeps it
    from every token before it.
    """

    ids: torch.Tensor
    is_text: torch.Tensor
    num_calibration: int

    @classmethod
    def from_texts(
        cls,
        tokenizer: Any,
        texts: Iterable[str],
        heldout_texts: Iterable[str],
        *,
        length: int = 512,
        max_tokens: int = 2**16,
        max_heldout_tokens: int = 2**14,
    ) -> "Windows":
        """Cut texts into windows of `length` tokens, up to the given numbers of tokens.

        Texts follow each other without a separator: put the end-of-text token into them if the base saw one in its
        training. The calibration decides much, so take text of the kind that the model is for. Raises DatasetError if
        one of the two has no tokens.
        """
        calibration = cut_windows(_encoded(tokenizer, texts), length, max_tokens)
        heldout = cut_windows(_encoded(tokenizer, heldout_texts), length, max_heldout_tokens)
        for name, rows in (("calibration", calibration), ("held-out", heldout)):
            if not rows:
                raise DatasetError(f"The {name} texts have no tokens.", "Give texts with words.")
        return cls.from_token_ids(calibration, heldout, length)

    @classmethod
    def from_token_ids(
        cls, calibration: Sequence[list[int]], heldout: Sequence[list[int]], length: int
    ) -> "Windows":
        """Rows of at most `length` token ids, padded on the right with 0."""
        rows = [*calibration, *heldout]
        ids = torch.zeros((len(rows), length), dtype=torch.long)
        is_text = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            is_text[row, : len(tokens)] = True
        return cls(ids, is_text, len(calibration))


def cut_windows(documents: Iterable[list[int]], length: int, max_tokens: int) -> list[list[int]]:
    """Documents joined and cut into whole windows; text shorter than one window is one short window.

    Reading ends with the document that reaches `max_tokens`.
    """
    ids: list[int] = []
    for document in documents:
        ids += document
        if len(ids) >= max_tokens:
            break
    count = max(1, len(ids) // length) if ids else 0
    return [ids[i * length : (i + 1) * length] for i in range(count)]


def _encoded(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    for text in texts:
        yield tokenizer(text, add_special_tokens=False)["input_ids"]
