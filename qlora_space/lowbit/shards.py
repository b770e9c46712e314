"""A model without weights, and its weights one module at a time from safetensors files."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.model import attention_of

GENERATION_CONFIG = "generation_config.json"


def skeleton(folder: Path) -> PreTrainedModel:
    """The model of config.json with parameters on the meta device and real buffers; frozen, in eval mode."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.quantization_config = None
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention_of(config), trust_remote_code=False
        )
    del model.config.quantization_config
    if (folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval()


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks. Raises ModelError for a model that is built in another way."""
    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not hasattr(decoder, "norm"):
        raise ModelError(
            f"{type(model).__name__} is not built of decoder.layers and decoder.norm, so it cannot be "
            "quantized block by block.",
            "Use 4 bits, or a model of the Llama, Qwen, Mistral or Gemma kind.",
        )
    return blocks


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of last hidden states (..., H), as the model makes them: Granite divides them, Cohere multiplies
    them, Gemma 2 caps them."""
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    logits = head(states) * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def linears_of(block: nn.Module) -> dict[str, nn.Linear]:
    """Names inside the block. Raises ModelError where most of the block is something else (mixtures of experts)."""
    found = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    inside = sum(m.weight.numel() for m in found.values())
    if inside < 0.9 * sum(p.numel() for p in block.parameters()):
        raise ModelError(
            "Most weights of this base are not in linear layers (a mixture of experts?).",
            "Use 4 bits, or another base.",
        )
    return found


class Shards:
    """The safetensors files of one folder."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file() and not (folder / "model.safetensors").is_file():
            names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
            self._files = {name: folder / Path(file).name for name, file in names.items()}
        else:
            whole = folder / "model.safetensors"
            with _opened(whole, "cpu") as file:
                self._files = dict.fromkeys(file.keys(), whole)

    def fill(
        self,
        model: nn.Module,
        name: str,
        device: str,
        dtype: torch.dtype | None,
        deep: bool = True,
        unless: type[nn.Module] | None = None,
    ) -> None:
        """Give the module of that name its parameters and saved buffers; `deep` includes the modules inside it, but
        not those of the class `unless`.

        Floats become `dtype` unless it is None, fp32 ones by way of bf16: no base here has more than 16 bits, and
        fp32 is only what some CPUs compute in. Raises ModelError if a weight is missing or has another shape.
        """
        module = model.get_submodule(name)
        for inner, tensor in list(_state(module, deep).items()):
            owner, _, last = inner.rpartition(".")
            home = module.get_submodule(owner)
            if not tensor.numel() or (unless and isinstance(home, unless)):
                continue  # the empty weight of a packed linear; what has its weights already
            key = f"{name}.{inner}" if name else inner
            value = self.read(key, device)
            if value.shape != tensor.shape:
                raise ModelError(
                    f"{key} has the shape {tuple(value.shape)}, config.json states {tuple(tensor.shape)}.",
                    "Choose another base.",
                )
            if isinstance(tensor, nn.Parameter):
                value = value if dtype is None else _in_16_bits(value).to(dtype)
                setattr(home, last, nn.Parameter(value, requires_grad=False))
            else:
                setattr(home, last, value)

    def has(self, key: str) -> bool:
        return key in self._files

    def read(self, key: str, device: str) -> torch.Tensor:
        """One tensor as it is stored. Raises ModelError."""
        if key not in self._files:
            raise ModelError(
                f"The weights have no {key}.", "Choose a base that transformers loads."
            )
        with _opened(self._files[key], device) as file:
            return file.get_tensor(key)


def _in_16_bits(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.bfloat16) if value.dtype == torch.float32 else value


def _opened(file: Path, device: str) -> safe_open:
    try:
        return safe_open(file, framework="pt", device=device)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file.name} cannot be read.", "Choose another base.") from error


def _state(module: nn.Module, deep: bool) -> dict[str, torch.Tensor]:
    """Parameters, and those buffers that a checkpoint keeps."""
    state = module.state_dict(keep_vars=True)
    return state if deep else {k: v for k, v in state.items() if "." not in k}
