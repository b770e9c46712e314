"""What a model writes to held-out prompts, greedily: to be compared with what another program writes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from qlora_space.core.child import ChildFailed, run_python
from qlora_space.core.comparison import Question
from qlora_space.core.errors import ModelError
from qlora_space.core.export import LlamaCppCheck
from qlora_space.core.machine import cpu_cores
from qlora_space.data.messages import Message
from qlora_space.data.template.renderer import Renderer

PROMPTS, NEW_TOKENS = 4, 32
_SECONDS = 1800


@dataclass(frozen=True)
class Spoken:
    """An answer to the conversation `messages`, whose prompt has `prompt_tokens`."""

    messages: tuple[dict[str, str], ...]
    prompt_tokens: int
    text: str
    is_ended: bool


@torch.inference_mode()
def spoken_answers(
    model: Any,
    tokenizer: Any,
    renderer: Renderer,
    questions: Sequence[Question],
    stop_ids: Sequence[int],
) -> list[Spoken]:
    """At most NEW_TOKENS of each; prompts are rendered as in training. Raises ModelError."""
    device, found = next(model.parameters()).device, []
    for question in questions:
        turns = question.conversation()
        prompt = renderer.prompt_ids([Message(role, content) for role, content in turns])
        ids = model.generate(
            input_ids=torch.tensor([prompt], device=device),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(prompt) :].tolist()
        is_ended = bool(ids) and ids[-1] in stop_ids
        text = str(tokenizer.decode(ids[:-1] if is_ended else ids))
        messages = tuple({"role": role, "content": content} for role, content in turns)
        found.append(Spoken(messages, len(prompt), text, is_ended))
    return found


def can_ask_llama_cpp() -> bool:
    return find_spec("xllamacpp") is not None


def llama_cpp_check(
    file: Path, expected: Sequence[Spoken], adapter: Path | None = None
) -> LlamaCppCheck | None:
    """Ask llama.cpp, in a process of its own, by the chat template in the file; None where it is not installed or there
    is nothing to ask. Raises ModelError if it does not load the file."""
    if not expected or not can_ask_llama_cpp():
        return None
    asked = {
        "file": str(file),
        "adapter": str(adapter) if adapter else "",
        "conversations": [each.messages for each in expected],
        "new_tokens": NEW_TOKENS,
        "context_tokens": 2 * max(s.prompt_tokens for s in expected) + NEW_TOKENS + 64,
        "threads": max(1, cpu_cores() // 2),
    }
    try:
        written = run_python(
            ["-m", "qlora_space.model.llama_cpp_answers"], seconds=_SECONDS, stdin=json.dumps(asked)
        )
    except ChildFailed as why:
        raise ModelError(
            f"llama.cpp does not load what was written: {why}.", "Export it as merged."
        ) from None
    return _compared(expected, json.loads(written.splitlines()[-1]))


def _compared(expected: Sequence[Spoken], answers: list[dict[str, Any]]) -> LlamaCppCheck:
    pairs = list(zip(expected, answers, strict=True))
    return LlamaCppCheck(
        prompts=len(expected),
        same_prompts=sum(s.prompt_tokens == a["prompt_tokens"] for s, a in pairs),
        same_answers=sum(s.text.strip() == a["text"].strip() for s, a in pairs),
        ended=sum(a["is_ended"] for _, a in pairs),
        adapter_ended=sum(s.is_ended for s in expected),
    )
