"""Loads a published adapter by the code of its card: `python fresh_load.py FOLDER`, which imports nothing of ours.

FOLDER/asked.json: {"code", "rows": [{"ids", "positions"}], "conversations"}. Writes logits.safetensors (row number to
(A, V)) and found.json: {"prompts": ids of each conversation, "ends": ids that end an answer, "tokenizer_end": that of
the tokenizer, "adapter": sha256}.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def load(code: str) -> tuple[Any, Any]:
    """`model` and `tokenizer` of the code."""
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    model = names["model"].eval()
    for module in model.modules():
        # bitsandbytes 0.50.2 repacks 4-bit weights in eval mode on CPUs with AVX512-BF16, coarser: about this machine,
        # not about what was published.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, names["tokenizer"]


def ends(model: Any, tokenizer: Any) -> list[int]:
    """Ids that generate() stops at, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in (*listed, tokenizer.eos_token_id) if i is not None})


def adapter_sha256(model: Any) -> str:
    """Of the adapter's values that are in use, in fp32, and of their scales, by the names of its file."""
    digest = hashlib.sha256()
    for name, module in sorted(model.named_modules()):
        if hasattr(module, "lora_A"):  # attention has a scaling of its own
            digest.update(f"{name} {sorted(module.scaling.values())}".encode())
    own = {n.replace(".default", ""): p for n, p in model.named_parameters() if ".lora_" in n}
    for name, value in sorted(own.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text())
    model, tokenizer = load(asked["code"])
    device = next(p.device for p in model.parameters() if p.device.type != "meta")
    logits = {}
    with torch.inference_mode():
        for number, row in enumerate(asked["rows"]):
            ids = torch.tensor([row["ids"]], device=device)
            out = model(input_ids=ids, use_cache=False).logits[0]
            logits[str(number)] = out[row["positions"]].cpu().contiguous()
    prompts = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        for turns in asked["conversations"]
    ]
    found = {
        "prompts": [list(map(int, ids)) for ids in prompts],
        "ends": ends(model, tokenizer),
        "tokenizer_end": tokenizer.eos_token_id,
        "adapter": adapter_sha256(model),
    }
    save_file(logits, folder / "logits.safetensors")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
