"""The text of a growing answer, in whole characters."""

from transformers import PreTrainedTokenizerBase

from qlora_space.generate.engine import Token

_INCOMPLETE = "�"  # what decode() makes of a character some of whose bytes are missing


class AnswerText:
    """`pieces`: the text that each token added; '' for those that are only the beginning of a character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.tokens: list[Token] = []
        self.pieces: list[str] = []
        self.text = ""
        self.is_ended = False

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def add(self, token: Token, is_end: bool) -> str:
        """The text that became whole."""
        if self.is_ended or is_end:
            self.is_ended = True
            return ""
        self.tokens.append(token)
        self.pieces.append("")
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        if text.endswith(_INCOMPLETE) or not text.startswith(self.text):
            return ""
        return self._grow(text)

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._grow(str(self._tokenizer.decode(self.ids, skip_special_tokens=True)))

    def _grow(self, text: str) -> str:
        new, self.text = text[len(self.text) :], text
        if new and self.pieces:
            self.pieces[-1] += new
        return new
