"""Base and adapted model answer the same prompt in one batch: two rows, one copy of the base.

Row 0 runs without the adapter ("__base__" in peft), row 1 with it, so both panes stream together
and share every base weight by construction.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import PeftModel
from transformers import Cache, PreTrainedTokenizerBase

from qlora_space.core.comparison import Chunk, Done, Pane, Sampling
from qlora_space.generate.answers import end_token_ids

_PANES: tuple[Pane, Pane] = ("base", "adapted")
_UNFINISHED = "�"  # decode() shows a character whose bytes are not all there yet as this


class SideBySide:
    """One loaded model, asked again and again."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._ends = end_token_ids(model.get_base_model(), tokenizer) | set(stop_token_ids)
        rows = ["__base__", model.active_adapter]
        # LLM.int8 looks for outlier columns over the whole batch, so its rows would influence each other.
        is_int8 = any(isinstance(module, Linear8bitLt) for module in model.modules())
        self._batches = [[row] for row in rows] if is_int8 else [rows]

    @torch.inference_mode()
    def answer(self, prompt: list[int], sampling: Sampling) -> Iterator[Chunk | Done]:
        """Stream both answers, then Done. `prompt` is token ids, at least one."""
        started = time.monotonic()
        logits, caches = self._forward([prompt, prompt], [None] * len(self._batches))
        fingerprint = _fingerprint(logits[0])
        same_base = fingerprint == _fingerprint(self._base_alone(prompt))
        generators = [torch.Generator(logits.device).manual_seed(sampling.seed) for _ in _PANES]
        texts = [_Text(self._tokenizer), _Text(self._tokenizer)]
        tokens: list[int] = []
        for _ in range(sampling.max_new_tokens):
            if tokens:
                logits, caches = self._forward([[token] for token in tokens], caches)
            tokens = [_choose(row, sampling, g) for row, g in zip(logits, generators, strict=True)]
            for pane, text, token in zip(_PANES, texts, tokens, strict=True):
                if new := text.add(token, is_end=token in self._ends):
                    yield Chunk(pane=pane, text=new)
            if all(text.is_over for text in texts):
                break
        for pane, text in zip(_PANES, texts, strict=True):
            if rest := text.rest():
                yield Chunk(pane=pane, text=rest)
        seconds = time.monotonic() - started
        yield Done(
            base=texts[0].whole,
            adapted=texts[1].whole,
            base_fingerprint=fingerprint[:16],
            same_base=same_base,
            prompt_tokens=len(prompt),
            seconds=round(seconds, 3),
            tokens_per_second=round(sum(len(t.ids) for t in texts) / seconds, 1),
        )

    def _forward(
        self, rows: list[list[int]], caches: list[Cache | None]
    ) -> tuple[torch.Tensor, list[Cache | None]]:
        """Last logits (2, V) in fp32 of one new piece per row, and the caches to go on from."""
        logits, new_caches, remaining = [], [], list(rows)
        for names, cache in zip(self._batches, caches, strict=True):
            batch, remaining = remaining[: len(names)], remaining[len(names) :]
            output = self._model(
                input_ids=torch.tensor(batch, device=self._model.device),
                past_key_values=cache,
                use_cache=True,
                adapter_names=names,
            )
            logits.append(output.logits[:, -1].float())
            new_caches.append(output.past_key_values)
        return torch.cat(logits), new_caches

    def _base_alone(self, prompt: list[int]) -> torch.Tensor:
        """Last logits with the adapter switched off altogether, in a batch of the same shape."""
        batch = torch.tensor([prompt] * len(self._batches[0]), device=self._model.device)
        with self._model.disable_adapter():
            return self._model(input_ids=batch, use_cache=True).logits[0, -1].float()


class _Text:
    """One growing answer; gives out only whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self.whole = ""
        self.is_over = False

    def add(self, token: int, is_end: bool) -> str:
        if self.is_over or is_end:
            self.is_over = True
            return ""
        self.ids.append(token)
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        if text.endswith(_UNFINISHED) or not text.startswith(self.whole):
            return ""
        new, self.whole = text[len(self.whole) :], text
        return new

    def rest(self) -> str:
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        new, self.whole = text[len(self.whole) :], text
        return new


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Next token from one row of logits (V)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(
            0, index, ordered.masked_fill(beyond, 0.0)
        )
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _fingerprint(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()
