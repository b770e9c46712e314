"""The process in which chat templates of unknown origin are rendered, within limits that the kernel keeps.

Run as a script by `process.py`, and then it imports nothing of ours; or forked by it (`fork`). One JSON request a line:
{"template", "special_tokens", "jobs": [{"messages", "tools", "add_generation_prompt",
"generation_spans", "trace"}]}; the reply is {"results": [{"text", "generation_spans", "trace"} or
{"refused"}]} or {"failed"}. Jinja's sandbox limits what a template may touch, not how much it computes.
"""

import contextlib
import gc
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TextIO

from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEnvironment

CPU_SECONDS = 2
MEMORY_BYTES = 512 * 2**20
MAX_OUTPUT_CHARS = 8 * 2**20
# `fast_getattr` was compared with the sandbox of this version.
JINJA_VERSION = "3.1.6"

# By its path: the script's folder is not for imports, and its package would import everything of ours.
_spec = spec_from_file_location("_tracer", Path(__file__).with_name("tracer.py"))
assert _spec is not None
assert _spec.loader is not None
_tracer = module_from_spec(_spec)
_spec.loader.exec_module(_tracer)

_jinja_getattr = SandboxedEnvironment.getattr
_DICT_ATTRIBUTES = frozenset(dir(dict))
_SAFE_OF_STR = frozenset(name for name in dir(str) if not name.startswith(("_", "format")))
_SAFE_OF_LOOP = frozenset(("index", "index0", "first", "last"))


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    serve(sys.stdin, replies)


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer until the requests end."""
    from transformers.utils.chat_template_utils import render_jinja_template

    SandboxedEnvironment.getattr = sandboxed_getattr(version("jinja2"))
    gc.freeze()  # what was imported is not searched for cycles again and again
    limit_memory_and_files()
    replies.write('{"ready": true}\n')
    for line in requests:
        allow_cpu_time()
        try:
            reply = json.dumps({"results": render_all(json.loads(line), render_jinja_template)})
        except OutputTooLarge:
            reply = json.dumps({"failed": "output"})
        except MemoryError:
            reply = json.dumps({"failed": "memory"})
        replies.write(reply + "\n")


def sandboxed_getattr(jinja_version: str) -> Callable[..., Any]:
    """The fast one for the version that it was written against, else Jinja's own."""
    return fast_getattr if jinja_version == JINJA_VERSION else _jinja_getattr


def fast_getattr(self: SandboxedEnvironment, obj: Any, attribute: str) -> Any:
    """What the sandbox returns, without its checks where they always pass: a third of a template's time.

    Only for exact types: keys of a dict that no attribute hides, methods of str that neither format nor
    are private, and plain numbers of a loop. Everything else goes to Jinja.
    """
    kind = type(obj)
    if kind is dict and attribute not in _DICT_ATTRIBUTES and attribute in obj:
        return obj[attribute]
    if (kind is str and attribute in _SAFE_OF_STR) or (
        kind is LoopContext and attribute in _SAFE_OF_LOOP
    ):
        return getattr(obj, attribute)
    return _jinja_getattr(self, obj, attribute)


class OutputTooLarge(Exception):
    """A rendered text is larger than any conversation."""


def limit_memory_and_files() -> None:
    """MEMORY_BYTES more than now, and nothing is written to disk."""
    limit(resource.RLIMIT_AS, address_space_bytes() + MEMORY_BYTES)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)


def limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system has every limit
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def address_space_bytes() -> int:
    """What the imports took: transformers before 5.23 brings torch, and torch maps CUDA's libraries."""
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[0]) * resource.getpagesize()


def allow_cpu_time() -> None:
    """CPU_SECONDS from now: the kernel counts a process's CPU time from its start, in whole seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)


def render_all(request: dict[str, Any], render: Callable[..., Any]) -> list[dict[str, Any]]:
    template, special_tokens = request["template"], request["special_tokens"]
    return [render_job(template, special_tokens, job, render) for job in request["jobs"]]


def render_job(
    template: str, special_tokens: dict[str, Any], job: dict[str, Any], render: Callable[..., Any]
) -> dict[str, Any]:
    try:
        texts, spans = render(
            conversations=[job["messages"]],
            tools=job["tools"],
            chat_template=template,
            add_generation_prompt=job["add_generation_prompt"],
            return_assistant_tokens_mask=job["generation_spans"],
            **special_tokens,
        )
    except MemoryError:
        raise
    except Exception as error:  # a template is code: it may raise anything
        return {"refused": (str(error) or type(error).__name__)[:1000]}
    if len(texts[0]) > MAX_OUTPUT_CHARS:
        raise OutputTooLarge
    trace = _tracer.trace(template, special_tokens, job, texts[0]) if job["trace"] else None
    generation_spans = spans[0] if job["generation_spans"] else []
    return {"text": texts[0], "generation_spans": generation_spans, "trace": trace}


if __name__ == "__main__":
    main()
