"""Base and adapted model continue the same prompt in one batch: two rows, one copy of the base.

Row 0 runs without the adapter, row 1 with it, so both stream together and share every base weight by construction.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from transformers import Cache, PreTrainedTokenizerBase

from qlora_space.core.comparison import Chunk, Done, Pane, Sampling
from qlora_space.generate.answers import eos_token_ids
from qlora_space.generate.engine import Ask, Engine, Token, sample, tolerance
from qlora_space.generate.row_adapters import Unsupported

log = logging.getLogger(__name__)

_PANES: tuple[Pane, Pane] = ("base", "adapted")
_INT8_TOLERANCE = 0.5  # nats: LLM.int8 takes outlier columns over all tokens of a pass
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
        self._rows: _Rows
        try:
            self._rows = _EngineRows(model, self._eos_ids)
        except Unsupported as why:
            self._use_passes(why)

    def _use_passes(self, why: Unsupported) -> None:
        log.info("Compared by the model's own passes: %s.", why)
        self._rows = _PassRows(self._model)

    @torch.inference_mode()
    def generate(self, prompt: list[int], sampling: Sampling) -> Iterator[Chunk | Done]:
        """Yield Chunks of both answers, then Done. prompt: token ids, at least one."""
        started = time.monotonic()
        texts = [_AnswerText(self._tokenizer), _AnswerText(self._tokenizer)]
        for tokens in self._tokens(prompt, sampling):
            for token in tokens:
                text = texts[token.ask]
                if new := text.add(token, is_end=token.id in self._eos_ids):
                    yield Chunk(pane=_PANES[token.ask], text=new)
            if all(text.is_ended for text in texts):
                break
        for pane, text in zip(_PANES, texts, strict=True):
            if rest := text.rest():
                yield Chunk(pane=pane, text=rest)
        seconds = time.monotonic() - started
        yield Done(
            base=texts[0].text,
            adapted=texts[1].text,
            base_fingerprint=_fingerprint(self._rows.base_logits)[:16],
            same_base=self._is_same_base(prompt, texts[0].tokens),
            prompt_tokens=len(prompt),
            seconds=round(seconds, 3),
            tokens_per_second=round(sum(len(t.ids) for t in texts) / seconds, 1),
        )

    def _tokens(self, prompt: list[int], sampling: Sampling) -> Iterator[list[Token]]:
        try:
            yield from self._rows.stream(prompt, sampling)
        except Unsupported as why:  # raised before the first token
            self._use_passes(why)
            yield from self._rows.stream(prompt, sampling)

    def _is_same_base(self, prompt: list[int], answer: list[Token]) -> bool:
        """Whether the base's row was the base: its logits after the prompt are those of the base alone, and every token
        of its answer is as likely in one pass of the base over all of it, without adapter, rows or cache."""
        if _fingerprint(self._rows.base_logits) != _fingerprint(self._rows.base_alone(prompt)):
            return False
        ids = torch.tensor([[*prompt, *(token.id for token in answer)]], device=self._model.device)
        with self._model.disable_adapter():
            logits = self._model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        if not answer:
            return True
        own = logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        seen = torch.tensor([token.log_prob for token in answer], device=own.device)
        return bool((own - seen).abs().max() <= _tolerance(self._model))


def _tolerance(model: PeftModel) -> float:
    base: Any = model.get_base_model()
    is_int8 = any(isinstance(module, Linear8bitLt) for module in base.modules())
    return _INT8_TOLERANCE if is_int8 else tolerance(base.dtype)


class _Rows(Protocol):
    """Two rows that answer one prompt: the base, and the adapted model."""

    @property
    def base_logits(self) -> torch.Tensor:
        """(V) fp32, of the base's row after the prompt."""
        ...

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[list[Token]]: ...

    def base_alone(self, prompt: list[int]) -> torch.Tensor:
        """(V) fp32 after the prompt with the adapter disabled, in a batch of the same shape."""
        ...


class _EngineRows:
    def __init__(self, model: PeftModel, eos_ids: set[int]) -> None:
        """Raises Unsupported."""
        self._model = model
        self._engine = Engine(model, eos_ids, [str(model.active_adapter)], num_slots=2)

    @property
    def base_logits(self) -> torch.Tensor:
        return self._engine.first_logits[0]

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[list[Token]]:
        asks = [Ask(prompt, sampling.max_new_tokens, (s,), sampling) for s in (0.0, 1.0)]
        return self._engine.stream(asks)

    def base_alone(self, prompt: list[int]) -> torch.Tensor:
        with self._model.disable_adapter():
            return self._engine.after_prompt([Ask(prompt, 1, (0.0,))] * 2)[0]


class _PassRows:
    """By passes of the model itself, where the engine does not know it."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        rows = ["__base__", model.active_adapter]
        self._batches = [[row] for row in rows] if _mixes_rows(model) else [rows]
        self._base_logits = torch.empty(0)

    @property
    def base_logits(self) -> torch.Tensor:
        return self._base_logits

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[list[Token]]:
        logits, caches = self._forward([prompt, prompt], [None] * len(self._batches))
        self._base_logits = logits[0]
        generators = [torch.Generator(logits.device).manual_seed(sampling.seed) for _ in _PANES]
        for _ in range(sampling.max_new_tokens):
            chosen = [sample(row, sampling, g) for row, g in zip(logits, generators, strict=True)]
            log_probs = logits.log_softmax(-1)
            yield [Token(i, id_, float(log_probs[i, id_])) for i, id_ in enumerate(chosen)]
            logits, caches = self._forward([[id_] for id_ in chosen], caches)

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

    def base_alone(self, prompt: list[int]) -> torch.Tensor:
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
        self.tokens: list[Token] = []
        self.text = ""
        self.is_ended = False

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def add(self, token: Token, is_end: bool) -> str:
        if self.is_ended or is_end:
            self.is_ended = True
            return ""
        self.tokens.append(token)
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        if text.endswith(_INCOMPLETE) or not text.startswith(self.text):
            return ""
        new, self.text = text[len(self.text) :], text
        return new

    def rest(self) -> str:
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        new, self.text = text[len(self.text) :], text
        return new


def _fingerprint(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()
