"""Write a base of a real shape with random weights, for machines that reach no hub.

    python benchmarks/random_base.py qwen3-8b /dev/shm/qwen3-8b

Speed and memory do not depend on what the weights say. Never zeros: a GPU multiplies zeros faster.
The tokenizer is that of the embedded base.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from qlora_space.core.demo import BASE_FOLDER

QWEN3 = {
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
}
SHAPES = {
    # config.json of the models of that name
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "tie_word_embeddings": True},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "tie_word_embeddings": False},
    "qwen3-14b": {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
                  "num_attention_heads": 40, "tie_word_embeddings": False},
    "llama-3.1-8b": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
                     "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 128256,
                     "tie_word_embeddings": False, "max_position_embeddings": 131072},
    "gemma-2-9b": {"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336,
                   "num_hidden_layers": 42, "num_attention_heads": 16, "head_dim": 256, "vocab_size": 256000,
                   "tie_word_embeddings": True, "max_position_embeddings": 8192, "sliding_window": 4096,
                   "query_pre_attn_scalar": 256},
    # the shape of Llama 3.3 70B, as the same architecture
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "tie_word_embeddings": False, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64,
             "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
             "vocab_size": 8192},
}  # fmt: skip
_SHARD_BYTES = 4 * 10**9
_STD = 0.02


def write_base(shape: str, folder: Path, distinct_layers: int = 1000) -> None:
    """config.json, safetensors shards with an index, tokenizer files; weights of no more layers than asked."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = AutoConfig.from_pretrained(BASE_FOLDER)
    config = AutoConfig.for_model(
        **{"model_type": "qwen3"} | QWEN3 | SHAPES[shape],
        eos_token_id=ends.eos_token_id,
        pad_token_id=ends.pad_token_id,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    config.save_pretrained(folder)
    for file in BASE_FOLDER.iterdir():
        if "token" in file.name or "template" in file.name or file.name == "generation_config.json":
            shutil.copy(file, folder)
    _write_weights(model, folder, distinct_layers)


def _write_weights(model: PreTrainedModel, folder: Path, distinct_layers: int) -> None:
    config, shapes = model.config, {n: p.shape for n, p in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    kept = range(min(distinct_layers, config.num_hidden_layers))
    shapes = {
        n: s for n, s in shapes.items() if ".layers." not in n or int(n.split(".")[2]) in kept
    }
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    for i, (name, size) in enumerate(shapes.items()):
        shard[name] = _random(name, size, norm=0.0 if "gemma" in config.model_type else 1.0)
        is_full = sum(t.numel() * 2 for t in shard.values()) > _SHARD_BYTES
        if is_full or i == len(shapes) - 1:
            file = f"model-{len(set(index.values())):05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
    )


def _random(name: str, size: torch.Size, norm: float) -> torch.Tensor:
    """norm: of a norm's weight, so that it multiplies by 1; Gemma adds 1 itself."""
    if "norm" in name:
        return torch.full(size, norm, dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(size, device=device, dtype=torch.bfloat16) * _STD).cpu()


if __name__ == "__main__":
    write_base(sys.argv[1], Path(sys.argv[2]))
