"""Rows of one batch for the panes of a comparison: by the engine, or by passes of the model itself where the engine
does not know it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import Cache

from qlora_space.core.comparison import Sampling
from qlora_space.generate.engine import Ask, Engine, Token, sample

_BASE = "__base__"  # peft's name for rows without an adapter


class PaneRows(Protocol):
    """Answers to asks, each with a strength for every adapter; that of the base has zeros."""

    @property
    def base_logits(self) -> torch.Tensor:
        """(V) fp32 after the prompt of the first ask, which is the base's."""
        ...

    def stream(self, asks: Sequence[Ask]) -> Iterator[list[Token]]: ...

    def base_alone(self, asks: Sequence[Ask]) -> torch.Tensor:
        """(V) fp32 after the first ask's prompt, adapters disabled, in a batch of the shape of these asks."""
        ...


class EngineRows:
    """All asks in one batch."""

    def __init__(self, model: PeftModel, eos_ids: set[int], adapters: Sequence[str]) -> None:
        """Raises Unsupported."""
        self._model = model
        self._engine = Engine(model, eos_ids, adapters)

    @property
    def base_logits(self) -> torch.Tensor:
        return self._engine.first_logits[0]

    def stream(self, asks: Sequence[Ask]) -> Iterator[list[Token]]:
        return self._engine.stream(asks)

    def base_alone(self, asks: Sequence[Ask]) -> torch.Tensor:
        order = sorted(range(len(asks)), key=lambda i: -len(asks[i].prompt))  # as they enter
        off = [Ask(asks[i].prompt, 1, (0.0,) * len(asks[i].strength)) for i in order]
        with self._model.disable_adapter():
            return self._engine.after_prompt(off)[order.index(0)]


class PassRows:
    """The panes of one question after those of the other."""

    def __init__(self, model: PeftModel, eos_ids: set[int], adapters: Sequence[str]) -> None:
        self._model, self._eos_ids, self._adapters = model, eos_ids, tuple(adapters)
        self._is_mixed = not mixes_rows(model)
        self._base_logits = torch.empty(0)

    @property
    def base_logits(self) -> torch.Tensor:
        return self._base_logits

    def stream(self, asks: Sequence[Ask]) -> Iterator[list[Token]]:
        num_panes = 1 + len(self._adapters)
        for first in range(0, len(asks), num_panes):
            yield from self._stream(asks[first : first + num_panes], first)

    def _stream(self, asks: Sequence[Ask], first: int) -> Iterator[list[Token]]:
        batches = self._batches(asks)
        logits, caches = self._forward(batches, [list(a.prompt) for a in asks], None)
        if not first:
            self._base_logits = logits[0]
        generators = [torch.Generator(logits.device).manual_seed(a.sampling.seed) for a in asks]
        is_ended = [False] * len(asks)
        for num in range(asks[0].max_new_tokens):
            chosen = [_choose(*each) for each in zip(logits, asks, generators, strict=True)]
            log_probs = logits.log_softmax(-1)
            yield [
                Token(first + i, id_, float(log_probs[i, id_]))
                for i, id_ in enumerate(chosen)
                if not is_ended[i]
            ]
            is_ended = [e or id_ in self._eos_ids for e, id_ in zip(is_ended, chosen, strict=True)]
            if all(is_ended) or num + 1 == asks[0].max_new_tokens:
                return
            logits, caches = self._forward(batches, [[id_] for id_ in chosen], caches)

    def _batches(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        """(adapter, strength) of each row of each batch: rows share one if all have the same prompt."""
        rows = [self._adapter_of(ask) for ask in asks]
        is_one = self._is_mixed and len({tuple(ask.prompt) for ask in asks}) == 1
        return [rows] if is_one else [[row] for row in rows]

    def _adapter_of(self, ask: Ask) -> tuple[str, float]:
        found = [pair for pair in zip(self._adapters, ask.strength, strict=True) if pair[1]]
        return found[0] if found else (_BASE, 1.0)

    def _forward(
        self,
        batches: list[list[tuple[str, float]]],
        rows: list[list[int]],
        caches: list[Cache | None] | None,
    ) -> tuple[torch.Tensor, list[Cache | None]]:
        """Last logits (rows, V) fp32 for the new tokens of each row, and the caches to continue with."""
        logits, new_caches, remaining = [], [], list(rows)
        for batch, cache in zip(batches, caches or [None] * len(batches), strict=True):
            ids, remaining = remaining[: len(batch)], remaining[len(batch) :]
            output = self._pass(batch, ids, cache)
            logits.append(output.logits[:, -1].float())
            new_caches.append(output.past_key_values)
        return torch.cat(logits), new_caches

    def _pass(
        self, batch: list[tuple[str, float]], ids: list[list[int]], cache: Cache | None
    ) -> Any:
        names = [name for name, _ in batch]
        mixed: dict[str, Any] = {"adapter_names": names} if len(names) > 1 else {}
        strength = next((s for name, s in batch if name != _BASE), 1.0)
        off = self._model.disable_adapter() if names == [_BASE] else nullcontext()
        with off, at_strength(self._model, strength, "" if mixed else names[0]):
            return self._model(
                input_ids=torch.tensor(ids, device=self._model.device),
                past_key_values=cache,
                use_cache=True,
                **mixed,
            )

    def base_alone(self, asks: Sequence[Ask]) -> torch.Tensor:
        rows = len(self._batches(asks)[0])
        batch = torch.tensor([list(asks[0].prompt)] * rows, device=self._model.device)
        with self._model.disable_adapter():
            return self._model(input_ids=batch, use_cache=True).logits[0, -1].float()


@contextmanager
def at_strength(model: PeftModel, strength: float, adapter: str = "") -> Iterator[None]:
    """Adapters times `strength` meanwhile, and `adapter` the active one if it is named."""
    if adapter not in ("", _BASE) and adapter != model.active_adapter:
        model.set_adapter(adapter, inference_mode=True)
    if strength == 1:
        yield
        return
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: s * strength for name, s in layer.scaling.items()})
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def mixes_rows(model: PeftModel) -> bool:
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


def is_int8(model: nn.Module) -> bool:
    return any(isinstance(module, Linear8bitLt) for module in model.modules())


def _choose(logits: torch.Tensor, ask: Ask, generator: torch.Generator) -> int:
    sampling: Sampling = ask.sampling
    return sample(logits, sampling, generator)
