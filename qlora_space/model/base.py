"""Load a causal LM from a local folder with its linears quantized by bitsandbytes, or in 16 bits; experts are packed
in the same 4 bits.

The folder comes from hub.fetch_base, which lets only safetensors, JSON and tokenizer files through.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from qlora_space.core.errors import ModelError, OutOfMemory, first_line
from qlora_space.core.machine import cpu_has_bf16
from qlora_space.experts import packs_experts, without_mxfp4
from qlora_space.lowbit.architecture import attention_implementation, max_rows
from qlora_space.lowbit.text_model import not_quantized, text_class, without_router_loss

__all__ = ["compute_dtype", "explains_out_of_memory", "load_base", "max_rows"]

_UNLOADABLE = (
    RuntimeError, ValueError, OSError, KeyError, SafetensorError, StrictDataclassError,
)  # fmt: skip


def load_base(folder: Path, bits: int, device: str) -> PreTrainedModel:
    """Weights frozen; linears in `bits`, everything else in the compute dtype, nothing upcast.

    peft's prepare_model_for_kbit_training is not used: it makes embeddings and head fp32
    (+2.9 GiB on a 14B). Raises ModelError, OutOfMemory.
    """
    dtype = compute_dtype(device)
    with explains_out_of_memory("Loading the base"), packs_experts():
        try:
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            without_router_loss(config)
            without_mxfp4(config)
            quantization = _quantization(bits, dtype)
            if (own := getattr(config, "quantization_config", None)) is not None:
                own["bnb_4bit_compute_dtype"], quantization = dtype, None  # saved in 4 bits
            declared = text_class(config, lambda model: _keep_in_16_bits(model, quantization))
            model = declared.from_pretrained(
                folder,
                config=config,
                quantization_config=quantization,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=attention_implementation(config),
                use_safetensors=True,
                local_files_only=True,
                # transformers would find adapter_config.json beside the weights and would add that adapter.
                adapter_kwargs={"subfolder": "no adapter"},
            )
        except _UNLOADABLE as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"The base could not be loaded: {_reason(error)}.", "Choose another base."
            ) from error
    forbid_repacking(model)
    model.requires_grad_(False)
    return model


def _reason(error: BaseException) -> str:
    if "ignore_mismatched_sizes" in str(error):  # transformers writes the report to the log
        return "its weights do not have the shapes that config.json states"
    return first_line(error)


def forbid_repacking(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes (0.50.2, nn/modules.py Linear4bit.forward) repacks the weights in
    the first forward pass in eval mode, for a kernel that has no gradient and coarser scales: training after
    an evaluation would silently learn nothing through the base, and the base would not be the same any more.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def compute_dtype(device: str) -> torch.dtype:
    """bf16 where the device multiplies it itself; else fp16 on a GPU, fp32 on a CPU."""
    if not device.startswith("cuda"):
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def _quantization(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if bits == 4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else None


def _keep_in_16_bits(model: PreTrainedModel, quantization: BitsAndBytesConfig | None) -> None:
    """transformers' own list lacks what is read past the layer."""
    if quantization is not None:
        quantization.llm_int8_skip_modules = not_quantized(model)


@contextmanager
def explains_out_of_memory(doing: str) -> Iterator[None]:
    """Turn torch's and Python's out-of-memory errors into one sentence. Raises OutOfMemory."""
    hint = "Use a shorter max_length, a smaller batch, fewer bits, or a smaller base."
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        size = f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB were in use"
        raise OutOfMemory(f"{doing} needs more memory than the GPU has ({size}).", hint) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{doing} needs more memory than this machine has.", hint) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or the host; torch's CPU allocator raises a plain RuntimeError."""
    is_named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_named or "DefaultCPUAllocator" in str(error)
