"""A base that stays in memory between comparisons, while adapters on it are exchanged."""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from qlora_space.core.comparison import (
    CompareRequest,
    Done,
    Loading,
    Question,
    Reply,
    Sampling,
    Turn,
)
from qlora_space.core.errors import RequestError
from qlora_space.data import Message, Renderer, load_tokenizer
from qlora_space.generate.paired import PairedGenerator, Prompted
from qlora_space.hub import fetch_base, fetch_tokenizer
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.model import compute_dtype, explains_out_of_memory
from qlora_space.model.adapter import WEIGHTS_FILE, adapter_names, load_adapters
from qlora_space.model.load import load_frozen_base

_POLL_SECONDS = 1.0


class ResidentModel:
    """Holds at most one base, and adapters on it. One request at a time."""

    def __init__(self) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._base_key: tuple[str, str, int, int, str, bool] | None = None
        self._adapters_key: tuple[object, ...] = ()
        self._model: PeftModel | None = None
        self._generator: tuple[object, PairedGenerator] | None = None
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        return self._model is not None

    def unload_when(self, is_machine_wanted: Callable[[], bool]) -> None:
        """Poll in a thread from now on, and unload the model while the machine is wanted and no request runs."""
        threading.Thread(
            target=self._unload_when_wanted, args=(is_machine_wanted,), daemon=True
        ).start()

    def _unload_when_wanted(self, is_machine_wanted: Callable[[], bool]) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            if self.is_loaded and is_machine_wanted():
                with self._lock:
                    self._unload()

    def compare(self, request: CompareRequest, token: str | None) -> Iterator[Reply]:
        """Yield Loading messages, then Chunks of all panes or how many are Answered, then Done. Raises
        QloraSpaceError."""
        with self._lock:
            yield from self._compare(request, token)

    def _compare(self, request: CompareRequest, token: str | None) -> Iterator[Reply]:
        is_packed = (Path(request.packed_folder or "-") / "config.json").is_file()
        folder = (fetch_tokenizer if is_packed else fetch_base)(request.base, token)
        tokenizer = load_tokenizer(folder)
        asked = _prompted(request, tokenizer)
        longest = max(len(prompt) for each in asked for prompt in each.prompts)
        sampling = _within_context(request, longest)
        yield from self._load(request, folder)
        with explains_out_of_memory("Answering"):
            generator = self._generator_for(request, tokenizer)
            for reply in generator.generate(asked, sampling, request.strength):
                yield reply.judged(request.score) if isinstance(reply, Done) else reply

    def _generator_for(self, request: CompareRequest, tokenizer: Any) -> PairedGenerator:
        """The one before where only the questions are others: its engine is warm."""
        key = (self._base_key, self._adapters_key, request.stop_token_ids)
        if self._generator is None or self._generator[0] != key:
            self._generator = None
            assert self._model is not None
            names = adapter_names(len(request.adapter_folders))
            made = PairedGenerator(self._model, tokenizer, request.stop_token_ids, names)
            self._generator = (key, made)
        return self._generator[1]

    def _load(self, request: CompareRequest, folder: Path) -> Iterator[Loading]:
        base, grid = request.base, (request.bits, request.group_size)
        key = (base.id, base.sha, *grid, request.packed_folder, request.cpu_offload)
        adapters = [Path(name) for name in request.adapter_folders]
        adapters_key = _written_at(adapters)
        what = "adapter" if len(adapters) == 1 else f"{len(adapters)} adapters"
        if key != self._base_key:
            yield Loading(text=f"Loading {base.id} at {request.bits} bits")
            self._unload()
            self._model = load_adapters(self._load_base(request, folder), adapters)
            self._base_key, self._adapters_key = key, adapters_key
        elif adapters_key != self._adapters_key:
            yield Loading(text=f"Loading the {what}")
            assert self._model is not None
            self._generator, self._adapters_key = None, ()  # they are removed, whatever comes then
            self._model = load_adapters(self._model.unload(), adapters)
            self._adapters_key = adapters_key

    def _load_base(self, request: CompareRequest, folder: Path) -> PreTrainedModel:
        if not request.packed_folder:
            on_host = request.cpu_offload
            return load_frozen_base(
                request.base, folder, request.bits, self._device, on_host=on_host
            )
        packed = Path(request.packed_folder)
        dtype = compute_dtype(self._device)
        if (packed / "config.json").is_file():
            return load_lowbit(packed, self._device, dtype)
        return pack_base(folder, request.bits, request.group_size, self._device, dtype)

    def _unload(self) -> None:
        self._model = self._base_key = self._generator = None
        self._adapters_key = ()
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()


def _prompted(request: CompareRequest, tokenizer: Any) -> list[Prompted]:
    """Rendered as in training; panes with the same turns share a prompt."""
    renderer = Renderer(tokenizer, request.format)
    found = []
    for question in request.questions:
        histories = [question.turns_of(pane) for pane in range(request.num_panes)]
        ids = {turns: renderer.prompt_ids(_messages(question, turns)) for turns in set(histories)}
        found.append(Prompted(question, tuple(ids[turns] for turns in histories)))
    return found


def _messages(question: Question, turns: Sequence[Turn]) -> list[Message]:
    return [Message(role, content) for role, content in question.conversation(turns)]


def _written_at(adapters: Sequence[Path]) -> tuple[object, ...]:
    """What was loaded: a checkpoint of the same step may be written anew."""
    files = [folder / WEIGHTS_FILE for folder in adapters]
    return tuple((str(f), f.stat().st_mtime_ns if f.is_file() else 0) for f in files)


def _within_context(request: CompareRequest, num_tokens: int) -> Sampling:
    """The answer ends where the context of the base does. Raises RequestError if the prompt does not fit into it."""
    context = request.base.max_position_embeddings
    room = context - num_tokens
    if room < 1:
        raise RequestError(
            f"The prompt has {num_tokens:,} tokens, but {request.base.id} reads at most {context:,}.",
            f"Shorten it by {1 - room:,} tokens or more.",
        )
    longest = min(request.sampling.max_new_tokens, room)
    return request.sampling.model_copy(update={"max_new_tokens": longest})
