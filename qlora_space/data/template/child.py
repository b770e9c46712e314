"""The process in which strangers' chat templates are rendered, with limits that the kernel keeps.

Run as a script by `process.py`; imports nothing of ours. One JSON request a line on stdin:
{"template", "special_tokens", "jobs": [{"messages", "tools", "prompt", "marks", "record"}]}; the reply
is {"pages": [{"text", "spans", "recording"} or {"refused"}]} or {"fatal"}. Jinja's sandbox stops code,
not work.
"""

import contextlib
import gc
import json
import os
import resource
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 512 * 2**20
PAGE_CHARS = 8 * 2**20

# By its place: the folder is not for imports, and its package would bring everything that we import.
_spec = spec_from_file_location("_recording", Path(__file__).with_name("tracer.py"))
assert _spec is not None
assert _spec.loader is not None
_recording = module_from_spec(_spec)
_spec.loader.exec_module(_recording)

_checked_getattr = SandboxedEnvironment.getattr
_OF_DICTS = frozenset(dir(dict))
_OF_TEXTS = frozenset(name for name in dir(str) if not name.startswith(("_", "format")))
_OF_LOOPS = frozenset(("index", "index0", "first", "last"))


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    from transformers.utils.chat_template_utils import render_jinja_template

    SandboxedEnvironment.getattr = quick_getattr
    gc.freeze()  # what was imported is not searched for cycles again and again
    limit(resource.RLIMIT_AS, address_space_bytes() + MEMORY_BYTES)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        allow_cpu_time()
        try:
            reply = json.dumps({"pages": answer(json.loads(line), render_jinja_template)})
        except TooMuch as much:
            reply = json.dumps({"fatal": much.args[0]})
        except MemoryError:
            reply = json.dumps({"fatal": "memory"})
        replies.write(reply + "\n")


def quick_getattr(self: SandboxedEnvironment, obj: Any, attribute: str) -> Any:
    """What the sandbox gives, without its checks where they always pass: a third of a template's time."""
    kind = type(obj)
    if kind is dict and attribute not in _OF_DICTS and attribute in obj:
        return obj[attribute]
    if (kind is str and attribute in _OF_TEXTS) or (kind is LoopContext and attribute in _OF_LOOPS):
        return getattr(obj, attribute)
    return _checked_getattr(self, obj, attribute)


class TooMuch(Exception):
    """A page is larger than any conversation."""


def limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system has every limit
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def address_space_bytes() -> int:
    """What the imports took: transformers before 5.23 brings torch, and torch maps CUDA's libraries."""
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[0]) * resource.getpagesize()


def allow_cpu_time() -> None:
    """Full seconds from now: the kernel counts a process's CPU time from its start, in whole seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)


def answer(request: dict[str, Any], render: Any) -> list[dict[str, Any]]:
    return [
        page(request["template"], request["special_tokens"], job, render) for job in request["jobs"]
    ]


def page(
    template: str, special_tokens: dict[str, Any], job: dict[str, Any], render: Any
) -> dict[str, Any]:
    try:
        texts, spans = render(
            conversations=[job["messages"]],
            tools=job["tools"],
            chat_template=template,
            add_generation_prompt=job["prompt"],
            return_assistant_tokens_mask=job["marks"],
            **special_tokens,
        )
    except MemoryError:
        raise
    except Exception as error:  # a template is code: it may raise anything
        return {"refused": (str(error) or type(error).__name__)[:1000]}
    if len(texts[0]) > PAGE_CHARS:
        raise TooMuch("output")
    recording = (
        _recording.record(template, special_tokens, job, texts[0]) if job["record"] else None
    )
    return {"text": texts[0], "spans": spans[0] if job["marks"] else [], "recording": recording}


if __name__ == "__main__":
    main()
