"""Many answers at once: rows of different lengths enter and leave a batch, each with its own adapters and sampling.

The prompts go through the model as in training; then every pass is one token for all rows, over keys and values that
stay where they are. On a GPU such a pass is captured once and replayed: the model's own Python would take ten times as
long as its products. What the model is made of is not assumed: the first answers of an engine are compared with the
model's own pass, and where they differ, or where a part is unknown, it is Unsupported.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import DynamicCache

from qlora_space.core.comparison import Sampling
from qlora_space.core.errors import first_line
from qlora_space.generate.one_token import OneToken, few_rows_on
from qlora_space.generate.products import Products
from qlora_space.generate.row_adapters import RowAdapters, Unsupported
from qlora_space.generate.slots import SlotCache
from qlora_space.model import max_rows
from qlora_space.model.base import is_out_of_memory

Tensor = torch.Tensor
GREEDY = Sampling()
_TOKENS_AT_ONCE = 16_384  # 2.3 GiB of keys and values in an 8B
_SIZES = (1, 2, 4, 8, 16, 32)  # batches that are captured
_LENGTH_STEP = 256
# Largest difference of a log-probability from the model's own pass, in nats.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_TOLERANCE_16_BIT = 0.25
_FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted. `strength`: of each adapter of the engine; 0 is the base."""

    prompt: Sequence[int]
    max_new_tokens: int
    strength: tuple[float, ...] = ()
    sampling: Sampling = GREEDY


class Token(NamedTuple):
    """A token of the answer to asks[ask]; `log_prob` in nats, before any sampling."""

    ask: int
    id: int
    log_prob: float


@dataclass
class _Row:
    """An answer in progress."""

    index: int
    ask: Ask
    num_tokens: int = 0
    generator: torch.Generator | None = field(default=None, repr=False)


class Engine:
    """Answers of one model. Make it anew when weights have changed. Raises Unsupported."""

    def __init__(
        self, model: nn.Module, eos_ids: set[int], adapters: Sequence[str] = (), num_slots: int = 32
    ) -> None:
        self._base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._config = self._base.config.get_text_config()
        _check(self._base, self._config)
        self._eos_ids, self._num_slots = eos_ids, num_slots
        self._model, self._names = model, adapters
        self._num_adapters = len(adapters)
        self._few_rows = few_rows_on(self.device, self._base.dtype)
        self._arrange()
        self._is_proved = False
        self._memory: _Memory | None = None
        self.first_logits: dict[
            int, Tensor
        ] = {}  # by index: (V) fp32 after the prompt, of the newest call

    def _arrange(self) -> None:
        products = Products(self._model, self._base.dtype, self._few_rows)
        self._adapters = RowAdapters(self._model, self._names, products.of)
        self._one_token: OneToken | None = None

    @property
    def device(self) -> torch.device:
        return self._base.device

    def answers(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Token ids of each answer, without the one that ends it. Raises Unsupported."""
        found: list[list[int]] = [[] for _ in asks]
        for tokens in self.stream(asks):
            for token in tokens:
                if token.id not in self._eos_ids:
                    found[token.ask].append(token.id)
        return found

    @torch.inference_mode()
    def stream(self, asks: Sequence[Ask]) -> Iterator[list[Token]]:
        """After every pass the new tokens; an answer's last one may be one that ends it. Raises Unsupported before the
        first."""
        if not asks:
            return
        self.first_logits.clear()
        self._prove(asks[-1])
        with _evaluating(self._base), self._adapters.in_place():
            yield from _Batch(self, asks, self._room_for(asks)).run()

    def _room_for(self, asks: Sequence[Ask]) -> "_Memory":
        """What the last call left, if it holds these."""
        longest = max(len(ask.prompt) + ask.max_new_tokens for ask in asks)
        length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
        slots = max(1, min(self._num_slots, len(asks), _TOKENS_AT_ONCE // length))
        if self._memory is None or not self._memory.holds(slots, length):
            self._memory = None  # before the next one is made
            self._memory = _Memory(slots, length, self)
        return self._memory

    @torch.inference_mode()
    def after_prompt(self, asks: Sequence[Ask]) -> Tensor:
        """Logits (rows, V) fp32 after each prompt."""
        with _evaluating(self._base), self._adapters.in_place():
            return self.prefill(asks)[0]

    # What a batch asks of the model

    def prefill(self, asks: Sequence[Ask]) -> tuple[Tensor, DynamicCache]:
        """Logits (rows, V) fp32 after each prompt, and the prompts' keys and values, padded on the right."""
        lengths = [len(ask.prompt) for ask in asks]
        width = max(lengths)
        ids = [[*ask.prompt, *[0] * (width - len(ask.prompt))] for ask in asks]
        self._adapters.set(self.strengths(asks))
        ends = sorted({n - 1 for n in lengths})
        output = self._base(
            input_ids=torch.tensor(ids, device=self.device),
            past_key_values=DynamicCache(),  # whole: one of the config forgets what a window hides
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=self.device),
        )
        at = [ends.index(n - 1) for n in lengths]
        logits = output.logits[torch.arange(len(asks)), at].float()
        return logits, output.past_key_values

    def step(self, ids: Tensor, cache: SlotCache, strength: Tensor | None) -> Tensor:
        """Logits (rows, V) fp32 of one more token for each row."""
        self._adapters.set(strength)
        if self._one_token is None:
            self._one_token = OneToken(self._base, self._few_rows)
        with self._one_token.in_place():
            output = self._base(
                input_ids=ids[: cache.num_rows, None],
                attention_mask=self._masks(cache),
                position_ids=cache.positions[: cache.num_rows, None],
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits[:, -1].float()

    def strengths(self, asks: Sequence[Ask]) -> Tensor | None:
        rows = [ask.strength or (1.0,) * self._num_adapters for ask in asks]
        if not any(map(any, rows)):
            return None
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def window(self) -> int | None:
        return getattr(self._config, "sliding_window", None)

    def _masks(self, cache: SlotCache) -> Tensor | dict[str, Tensor]:
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if kinds == {"full_attention", "sliding_attention"} or self._takes_masks_by_kind():
            return {
                kind: self._as_added(cache.mask(is_sliding=kind == "sliding_attention"))
                for kind in ("full_attention", "sliding_attention")
            }
        return self._as_added(cache.mask(is_sliding=not kinds or "sliding_attention" in kinds))

    def _takes_masks_by_kind(self) -> bool:
        return hasattr(self._base.get_decoder(), "has_sliding_layers")

    def _as_added(self, mask: Tensor) -> Tensor:
        """Eager attention adds its mask to the scores."""
        if self._base.config._attn_implementation != "eager":
            return mask
        lowest = torch.finfo(self._base.dtype).min
        return torch.zeros_like(mask, dtype=self._base.dtype).masked_fill(~mask, lowest)

    def _prove(self, ask: Ask) -> None:
        """Compare a first pass of one token with the model's own pass over all. Raises Unsupported."""
        if self._is_proved:
            return
        try:
            self._compare(ask)
        except Exception as error:
            # A kernel may fail in ways of its own, or be wrong for this model, which has a way without.
            if self._few_rows is None or is_out_of_memory(error):
                raise
            self._few_rows = None
            self._arrange()
            self._compare(ask)
        self._is_proved = True

    def _compare(self, ask: Ask) -> None:
        """Two rows of different lengths: what is right for one may not be for the next."""
        rows = [ask, replace(ask, prompt=ask.prompt[:4])]
        lengths = [len(row.prompt) for row in rows]
        with _evaluating(self._base), self._adapters.in_place():
            try:
                # Together: some linear may get two rows in another shape.
                self.prefill([replace(ask, prompt=ask.prompt[:length]) for length in (4, 2)])
                cache = SlotCache(2, max(lengths) + 1, self.window(), self.device, self._few_rows)
                logits = []
                for at, row in enumerate(rows):
                    after, prompt = self.prefill([row])
                    cache.fill(at, prompt, [lengths[at]])
                    logits.append(after[0])
                cache.num_rows = 2
                tokens = torch.stack(logits).argmax(-1)
                found = self.step(tokens, cache, self.strengths(rows))
            except _FAULTS as error:
                if is_out_of_memory(error):
                    raise
                raise Unsupported(f"a step fails: {first_line(error)}") from error
            self._adapters.set(self.strengths([ask]))
            for row, token, step in zip(rows, tokens.tolist(), found, strict=True):
                ids = torch.tensor([[*row.prompt, token]], device=self.device)
                own = self._base(input_ids=ids, use_cache=False).logits[0, -1].float()
                _check_is_close(step, own, tolerance(self._base.dtype))


class _Memory:
    """Where the rows of a call are: of a fixed shape, so that a captured pass can be replayed."""

    def __init__(self, slots: int, length: int, engine: Engine) -> None:
        self._engine, num = engine, engine._num_adapters
        self.cache = SlotCache(slots, length, engine.window(), engine.device, engine._few_rows)
        self.ids = torch.zeros(slots, dtype=torch.long, device=engine.device)
        self.strength = torch.zeros(slots, num, device=engine.device) if num else None
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def holds(self, slots: int, length: int) -> bool:
        """Not if it is much larger either: every pass would read over it."""
        return self.cache.num_slots == slots and length <= self.cache.length <= 2 * length

    def step(self, n: int, longest: int, *, is_base: bool) -> Tensor:
        """Logits (n, V) fp32 of one more token for the first n rows."""
        if self.ids.is_cuda:
            return self._replayed(n)
        self.cache.num_rows = n
        self.cache.narrow(longest)
        strength = None if is_base or self.strength is None else self.strength[:n]
        return self._engine.step(self.ids, self.cache, strength)

    def _replayed(self, n: int) -> Tensor:
        """By the smallest captured pass that holds n rows."""
        size = min(next((s for s in _SIZES if s >= n), n), self.cache.num_slots)
        if size not in self._graphs:
            self._graphs[size] = self._captured(size)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:n]

    def _captured(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        self.cache.num_rows = size
        strength = None if self.strength is None else self.strength[:size]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and workspaces made before
            for _ in range(2):
                self._engine.step(self.ids, self.cache, strength)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._engine.step(self.ids, self.cache, strength)
        return graph, logits


class _Batch:
    """The answers of one call."""

    def __init__(self, engine: Engine, asks: Sequence[Ask], memory: _Memory) -> None:
        self._engine, self._memory, self._cache = engine, memory, memory.cache
        # Long ones first: the last to be answered then wait for nobody.
        self._waiting = sorted(enumerate(asks), key=lambda each: -len(each[1].prompt))
        self._is_base = not any(any(ask.strength or (1,) * engine._num_adapters) for ask in asks)
        self._rows: list[_Row] = []

    def run(self) -> Iterator[list[Token]]:
        while self._waiting or self._rows:
            free = self._cache.num_slots - len(self._rows)
            if self._waiting and (not self._rows or free >= max(1, self._cache.num_slots // 4)):
                longest = len(self._waiting[0][1].prompt)
                most = max_rows(self._engine._base, longest)
                yield self._enter(min(free, len(self._waiting), most))
            if self._rows:
                yield self._pass()

    def _enter(self, count: int) -> list[Token]:
        """Prompts into free rows; their first tokens."""
        new = [_Row(index, ask) for index, ask in self._waiting[:count]]
        del self._waiting[:count]
        first = len(self._rows)
        asks = [row.ask for row in new]
        logits, prompts = self._engine.prefill(asks)
        self._cache.fill(first, prompts, [len(ask.prompt) for ask in asks])
        if (strength := self._memory.strength) is not None:
            found = self._engine.strengths(asks)
            strength[first : first + count] = 0 if found is None else found
        self._engine.first_logits |= {row.index: one for row, one in zip(new, logits, strict=True)}
        self._rows += new
        return self._take(first, logits)

    def _pass(self) -> list[Token]:
        """One token for each row."""
        n = len(self._rows)
        longest = max(len(row.ask.prompt) + row.num_tokens for row in self._rows)
        logits = self._memory.step(n, longest, is_base=self._is_base)
        self._cache.positions[:n] += 1
        return self._take(0, logits)

    def _take(self, first: int, logits: Tensor) -> list[Token]:
        """Choose tokens for rows from `first` on; rows that are done leave."""
        rows = self._rows[first:]
        chosen = logits.argmax(-1)
        for i, row in enumerate(rows):
            if row.ask.sampling.temperature:
                chosen[i] = self._sampled(row, logits[i])
        self._memory.ids[first : first + len(rows)] = chosen
        log_probs = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        # One copy for all rows: the next pass waits for it.
        ids, log_probs = torch.stack((chosen.double(), log_probs.double())).tolist()
        tokens = [int(token) for token in ids]
        found = [
            Token(row.index, token, log_prob)
            for row, token, log_prob in zip(rows, tokens, log_probs, strict=True)
        ]
        for row in rows:
            row.num_tokens += 1
        for at in range(len(self._rows) - 1, first - 1, -1):
            row, token = self._rows[at], tokens[at - first]
            if token in self._engine._eos_ids or row.num_tokens >= row.ask.max_new_tokens:
                self._leave(at)
        return found

    def _leave(self, at: int) -> None:
        """The last row takes its place."""
        last = len(self._rows) - 1
        if at != last:
            memory = self._memory
            self._cache.move(last, at)
            memory.ids[at] = memory.ids[last]
            if memory.strength is not None:
                memory.strength[at] = memory.strength[last]
        self._rows[at] = self._rows[last]
        self._rows.pop()

    def _sampled(self, row: _Row, logits: Tensor) -> int:
        if row.generator is None:
            row.generator = torch.Generator(logits.device).manual_seed(row.ask.sampling.seed)
        return sample(logits, row.ask.sampling, row.generator)


def tolerance(dtype: torch.dtype) -> float:
    """Nats by which two ways to the same log-probability may differ by rounding."""
    return _TOLERANCE.get(dtype, _TOLERANCE_16_BIT)


def _check_is_close(logits: Tensor, own: Tensor, most: float) -> None:
    """Raises Unsupported where a likely token's log-probability differs by more than `most` nats."""
    off = (own.log_softmax(-1) - logits.log_softmax(-1)).abs()
    likely = own.log_softmax(-1) > -8  # of the others rounding alone makes a difference
    likely[own.argmax()] = True
    found = off[likely].max()
    if not found <= most:
        raise Unsupported(f"a step differs from the model's own by {found:.2g} nats")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
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


def _check(base: Any, config: Any) -> None:
    """Raises Unsupported for what keeps more of the past than keys and values."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise Unsupported(f"layers of {', '.join(sorted(kinds))}")
    if getattr(base, "_is_stateful", False):
        raise Unsupported("a model with a state")
    if any(hasattr(module, "host_block") for module in base.modules()):
        raise Unsupported("a base in host memory")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
