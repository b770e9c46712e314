"""Base and adapted model continue the same prompt in one batch: two rows, one copy of the base.

Row 0 runs without the adapter ("__base__" in peft), row 1 with it, so both stream together and share every base
weight by construction.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from transformers import Cache, PreTrainedTokenizerBase

from qlora_space.core.comparison import Chunk, Done, Pane, Sampling
from qlora_space.generate.answers import eos_token_ids

_PANES: tuple[Pane, Pane] = ("base", "adapted")
_INCOMPLETE = "�"  # what decode() makes of a character some of whose bytes are missing


class PairedGenerator:
    """stop_token_ids: ends of the trained answers, in addition to those of the base and the tokenizer."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._eos_ids = eos_token_ids(model.get_base_model(), tokenizer) | set(stop_token_ids)
        rows = ["__base__", model.active_adapter]
        self._batches = [[row] for row in rows] if _mixes_rows(model) else [rows]

    @torch.inference_mode()
    def generate(self, prompt: list[int], sampling: Sampling) -> Iterator[Chunk | Done]:
        """Yield Chunks of both answers, then Done. prompt: token ids, at least one."""
        started = time.monotonic()
        logits, caches = self._forward([prompt, prompt], [None] * len(self._batches))
        fingerprint = _fingerprint(logits[0])
        same_base = fingerprint == _fingerprint(self._base_alone(prompt))
        generators = [torch.Generator(logits.device).manual_seed(sampling.seed) for _ in _PANES]
        texts = [_AnswerText(self._tokenizer), _AnswerText(self._tokenizer)]
        tokens: list[int] = []
        for _ in range(sampling.max_new_tokens):
            if tokens:
                logits, caches = self._forward([[token] for token in tokens], caches)
            tokens = [_sample(row, sampling, g) for row, g in zip(logits, generators, strict=True)]
            for pane, text, token in zip(_PANES, texts, tokens, strict=True):
                if new := text.add(token, is_end=token in self._eos_ids):
                    yield Chunk(pane=pane, text=new)
            if all(text.is_ended for text in texts):
                break
        for pane, text in zip(_PANES, texts, strict=True):
            if rest := text.rest():
                yield Chunk(pane=pane, text=rest)
        seconds = time.monotonic() - started
        yield Done(
            base=texts[0].text,
            adapted=texts[1].text,
            base_fingerprint=fingerprint[:16],
            same_base=same_base,
            prompt_tokens=len(prompt),
            seconds=round(seconds, 3),
            tokens_per_second=round(sum(len(t.ids) for t in texts) / seconds, 1),
        )

    def _forward(
        self, rows: list[list[int]], caches: list[Cache | None]
    ) -> tuple[torch.Tensor, list[Cache | None]]:
        """Last logits (2, V) fp32 for the new tokens of each row, and the caches to continue with."""
        logits, new_caches, remaining = [], [], list(rows)
        for names, cache in zip(self._batches, caches, strict=True):
            batch, remaining = remaining[: len(names)], remaining[len(names) :]
            mixed = {"adapter_names": names} if len(names) > 1 else {}
            with self._model.disable_adapter() if names == ["__base__"] else nullcontext():
                output = self._model(
                    input_ids=torch.tensor(batch, device=self._model.device),
                    past_key_values=cache,
                    use_cache=True,
                    **mixed,
                )
            logits.append(output.logits[:, -1].float())
            new_caches.append(output.past_key_values)
        return torch.cat(logits), new_caches

    def _base_alone(self, prompt: list[int]) -> torch.Tensor:
        """Last logits (V) fp32 with the adapter disabled, in a batch of the same shape."""
        batch = torch.tensor([prompt] * len(self._batches[0]), device=self._model.device)
        with self._model.disable_adapter():
            return self._model(input_ids=batch, use_cache=True).logits[0, -1].float()


def _mixes_rows(model: PeftModel) -> bool:
    """Whether rows of one batch cannot have adapters of their own: LLM.int8 takes outlier columns over the whole batch,
    OPT and experts give their linears tokens without saying of which row,
    peft has no DoRA there."""
    base: Any = model.get_base_model()
    if base.config.model_type == "opt":
        return True
    if any(config.use_dora for config in model.peft_config.values()):  # type: ignore[attr-defined]
        return True
    return any(
        isinstance(module, (Linear8bitLt, ParamWrapper)) or hasattr(module, "packed_parameters")
        for module in model.modules()
    )


class _AnswerText:
    """The text of a growing answer, in whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""
        self.is_ended = False

    def add(self, token: int, is_end: bool) -> str:
        if self.is_ended or is_end:
            self.is_ended = True
            return ""
        self.ids.append(token)
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        if text.endswith(_INCOMPLETE) or not text.startswith(self.text):
            return ""
        new, self.text = text[len(self.text) :], text
        return new

    def rest(self) -> str:
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        new, self.text = text[len(self.text) :], text
        return new


def _sample(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from one row of logits (V), greedy at temperature 0."""
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
