"""packs_experts(): while transformers loads a model in 4 bits, its experts are packed too, one layer after the other.

transformers reads the checkpoint, renames and joins its tensors, and asks a quantizer for each of them; bitsandbytes'
quantizer takes linears only. This one takes experts as well: their 16-bit tensors are on the device one parameter at a
time, and never again. Written for transformers 5.17 to 5.23.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from qlora_space.experts.module import (
    PackedExperts,
    make_packable,
    packed_experts,
    placeholder,
    routers,
)

_METHOD = "bitsandbytes_4bit"


class ExpertsQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' quantizer, and experts."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, PackedExperts):
            return name in module.names
        return super().param_needs_quantization(model, param_name, **kwargs)

    def _process_model_before_weight_loading(
        self, model: Any, device_map: Any, **kwargs: Any
    ) -> None:
        if not self.pre_quantized:
            make_packable(model)
        if _are_in_mxfp4(kwargs.get("checkpoint_files")):
            for _, experts in packed_experts(model):
                experts.expect_mxfp4()
        config: Any = self.quantization_config
        if kept := [name.replace(".", r"\.") + "$" for name in routers(model)]:
            others = config.llm_int8_skip_modules
            if others is None:
                others = self.get_modules_to_not_convert(model)
            config.llm_int8_skip_modules = [*others, *kept]
        super()._process_model_before_weight_loading(model, device_map, **kwargs)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for _, experts in packed_experts(model):
            experts.take_mxfp4()
            experts.show(None)
        return super()._process_model_after_weight_loading(model, **kwargs)

    def get_quantize_ops(self) -> Any:
        return _Quantize(self, super().get_quantize_ops())


class _Quantize(ConversionOps):
    def __init__(self, quantizer: ExpertsQuantizer, linears: ConversionOps) -> None:
        self.hf_quantizer = quantizer
        self._linears = linears

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        packed, others = {}, {}
        for name, value in input_dict.items():
            module, last = get_module_from_name(kwargs["model"], name)
            if isinstance(module, PackedExperts):
                weight = value[0] if isinstance(value, list) else value
                module.pack(last, weight)
                packed[name] = placeholder(weight.shape, weight.device)
            else:
                others[name] = value
        return {**packed, **(self._linears.convert(others, *args, **kwargs) if others else {})}


def _are_in_mxfp4(files: Sequence[str] | None) -> bool:
    """Whether a checkpoint holds experts in MXFP4, as gpt-oss does."""
    for file in files or ():
        with safe_open(file, framework="pt") as opened:
            keys = opened.keys()
        if any(key.endswith(".gate_up_proj_blocks") for key in keys):
            return True
    return False


def without_mxfp4(config: PreTrainedConfig) -> None:
    """Take MXFP4 out of a config that is to be loaded in 4 bits: experts keep their codes, the rest is in 16 bits."""
    stated = getattr(config, "quantization_config", None)
    if isinstance(stated, dict) and stated.get("quant_method") == "mxfp4":
        del config.quantization_config  # type: ignore[attr-defined]


@contextmanager
def packs_experts() -> Iterator[None]:
    """Inside, `from_pretrained` with a 4-bit BitsAndBytesConfig packs experts too. Raises ModelError from inside for
    experts that cannot be packed."""
    before = AUTO_QUANTIZER_MAPPING[_METHOD]
    AUTO_QUANTIZER_MAPPING[_METHOD] = ExpertsQuantizer
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING[_METHOD] = before
