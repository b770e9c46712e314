"""How the weights of a checkpoint are stored: in 16 bits, packed and kept so, or packed and dequantized when read.

Which tensors then stand for which weights is found from the names in the headers (lowbit/stored.py reads them).
"""

from dataclasses import dataclass
from typing import Any, Literal

from qlora_space.core.errors import ModelError
from qlora_space.hub.headers import Tensor

JsonObject = dict[str, Any]
_GPTQ_BITS = (2, 3, 4, 8)
_WORD_BITS = 32
_ALTERNATIVES = {
    "auto-round": "Choose one of 2, 3, 4 or 8 bits everywhere, or the original 16-bit model.",
    "vptq": "Choose the original 16-bit model at 2 bits, or a checkpoint in GPTQ's format.",
    "aqlm": "Choose the original 16-bit model at 2 bits, or a checkpoint in GPTQ's format.",
    "bitsandbytes": "Choose one in NF4, or the original 16-bit model.",
    "hqq": "Choose the original 16-bit model at the same bits.",
    "gptq": "Choose a checkpoint of 2, 3, 4 or 8 bits, or the original 16-bit model.",
    "qlora_space_lowbit": "Choose the 16-bit model that it was packed from: it is packed again in minutes.",
}
_SCALES = (
    "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx",
    "weight_shape", "input_scale", "activation_scale", "input_zero_point", "k_scale", "v_scale", "q_scale",
    "output_scale", "absmax", "nested_absmax", "quant_map", "nested_quant_map", "bitsandbytes__nf4",
)  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """`kept`: the method of weights that are trained on as they are, of `bits` each. `read_as`: in words, of those that
    are dequantized while they are read and then treated like 16-bit ones. Neither for a plain checkpoint."""

    kept: Literal["", "gptq", "bitsandbytes"] = ""
    bits: int = 0
    read_as: str = ""


def storage_of(name: str, config: JsonObject) -> Storage:
    """Raises ModelError for all formats that are not read, with what to use instead."""
    stated = _stated(config)
    if not stated:
        return Storage()
    method, bits = _method(stated), stated.get("bits")
    if method == "gptq" and bits in _GPTQ_BITS:
        return Storage("gptq", int(bits))
    if method == "bitsandbytes" and stated.get("load_in_4bit") and _is_nf4(stated):
        return Storage("bitsandbytes", 4)
    if (
        method == "mxfp4"
    ):  # experts alone, which keep it (experts/stacks.py); the rest is in 16 bits
        return Storage()
    if method == "fp8":
        return Storage(read_as="FP8", bits=8)
    if method == "awq" and bits == 4 and stated.get("version", "gemm") == "gemm":
        return Storage(read_as="AWQ, 4 bits", bits=4)
    if method == "compressed-tensors" and (found := _compressed(stated)):
        return found
    raise ModelError(
        f"{name} is quantized already ({method[:40]}), in a format that is not trained on here.",
        _ALTERNATIVES.get(
            method, "Choose the original 16-bit model: it is quantized here to 8, 4, 3 or 2 bits."
        ),
    )


def _stated(config: JsonObject) -> JsonObject:
    """Wherever writers put it; an empty one is none."""
    text = config.get("text_config")
    for owner in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if value := owner.get(key):
                return value if isinstance(value, dict) else {"quant_method": str(value)}
    return {}


def _method(stated: JsonObject) -> str:
    """AutoRound's own format is GPTQ's or AWQ's, as it says, where all layers are integers of the same bits."""
    method = str(stated.get("quant_method") or "unknown method").removeprefix("intel/")
    is_plain = stated.get("data_type") == "int" and stated.get("act_bits") in (None, 16)
    if method != "auto-round" or stated.get("extra_config") or not is_plain:
        return method
    packing = str(stated.get("packing_format")).removeprefix("auto_round:").removeprefix("auto_")
    return {"round": "gptq", "gptq": "gptq", "awq": "awq"}.get(packing, method)


def _is_nf4(stated: JsonObject) -> bool:
    storage = stated.get("bnb_4bit_quant_storage", "uint8")
    return stated.get("bnb_4bit_quant_type") == "nf4" and storage == "uint8"


def _compressed(stated: JsonObject) -> Storage | None:
    """One group of integer or FP8 weights, whatever their activations are: they stay in 16 bits here."""
    groups = stated.get("config_groups")
    weights = [g.get("weights") for g in groups.values()] if isinstance(groups, dict) else []
    if len(weights) != 1 or not isinstance(weights[0], dict):
        return None
    kind, bits = weights[0].get("type"), weights[0].get("num_bits")
    known = {
        ("pack-quantized", "int", 4): "compressed-tensors, 4 bits",
        ("pack-quantized", "int", 8): "compressed-tensors, 8 bits",
        ("int-quantized", "int", 8): "compressed-tensors, 8 bits",
        ("float-quantized", "float", 8): "compressed-tensors, FP8",
        ("naive-quantized", "float", 8): "compressed-tensors, FP8",
    }
    words = known.get((stated.get("format"), kind, bits))  # type: ignore[arg-type]
    return Storage(read_as=words, bits=int(bits)) if words and bits else None  # type: ignore[arg-type]


def refuse_stored_experts(name: str, storage: Storage) -> None:
    """Raises ModelError for a mixture of experts whose weights are stored packed in another way than FP8 or MXFP4."""
    if storage.bits and storage.read_as != "FP8":
        raise ModelError(
            f"{name} is a mixture of experts that is stored as {storage.read_as or storage.kept}, and its experts are "
            "read in 16 bits, FP8 and MXFP4 only.",
            "Choose the original 16-bit model.",
        )


def weights_of(tensors: tuple[Tensor, ...], storage: Storage) -> tuple[Tensor, ...]:
    """The tensors as a 16-bit checkpoint would have them; packed ones, whose shape headers do not say, as a column."""
    if not storage.bits:
        return tensors
    counted = (t for t in tensors if t.name.rpartition(".")[2] not in _SCALES)
    per_word = _WORD_BITS // storage.bits if storage.bits != 3 else 0
    return tuple(_weight(t, storage, per_word) for t in counted)


def _weight(tensor: Tensor, storage: Storage, per_word: int) -> Tensor:
    stem, _, last = tensor.name.rpartition(".")
    if last == "weight_packed":
        return Tensor(f"{stem}.weight", "BF16", (tensor.shape[0], tensor.shape[1] * per_word))
    if last == "qweight":
        return Tensor(f"{stem}.weight", "BF16", (tensor.size * _WORD_BITS // storage.bits, 1))
    if storage.kept == "bitsandbytes" and tensor.dtype == "U8":
        return Tensor(tensor.name, "BF16", (tensor.size * 2, 1))
    return tensor
