"""llama.cpp answers conversations: `python -m qlora_space.model.llama_cpp_answers`, one JSON object in, one list out.

A process of its own: llama.cpp ends the one that it is in when a file is wrong.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any


def answers(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """For each conversation: text, number of tokens of the prompt, and whether it ended by itself."""
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = asked["file"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = asked["context_tokens"], 1, 0
    params.warmup, params.use_jinja, params.verbosity = False, True, -1
    params.cpuparams.n_threads = asked["threads"]
    if asked["adapter"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    server = xllamacpp.Server(params)
    found = []
    for messages in asked["conversations"]:
        request = {"messages": messages, "temperature": 0, "max_tokens": asked["new_tokens"]}
        reply = server.handle_chat_completions(request)
        choice = reply["choices"][0]
        found.append(
            {
                "text": choice["message"].get("content") or "",
                "prompt_tokens": reply["usage"]["prompt_tokens"],
                "is_ended": choice["finish_reason"] == "stop",
            }
        )
    return found


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp prints
    written = json.dumps(answers(json.load(sys.stdin)))
    out.write(written + "\n")
    out.flush()
    os._exit(0)  # its threads would be waited for
