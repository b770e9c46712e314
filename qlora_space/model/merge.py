"""Base and adapter as one 16-bit checkpoint, which transformers loads without peft: W + scale B A for every layer.

A layer of the base at a time is in 16 bits or more; the sums are peft's own, in fp32, rounded once. Names are those of
the base's files, and what text does not need of these (towers for images and sound) is copied.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from qlora_space.core.errors import ModelError
from qlora_space.experts.module import PackedExperts
from qlora_space.lowbit.architecture import GENERATION_CONFIG, empty_model
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.text_model import is_wrapper
from qlora_space.model.adapter import WEIGHTS_FILE
from qlora_space.model.shard_writer import ShardWriter

Weights = dict[str, torch.Tensor]  # by their names in the model
_QUANTIZATION = ("quantization_config", "compression_config")


def frozen_weights(base: PreTrainedModel) -> Iterator[Weights]:
    """What a loaded base multiplies with, module by module, dequantized in fp32; a tied head is the embeddings."""
    output: Any = base.get_output_embeddings()
    embedding: Any = base.get_input_embeddings()
    tied = {id(output)} if output.weight is embedding.weight else set()
    for name, module in base.named_modules():
        if id(module) not in tied and (own := _own_weights(module, f"{name}." if name else "")):
            yield own


def original_weights(folder: Path) -> Iterator[Weights]:
    """The same of the base in that folder as its files have it; it is never there whole. Raises ModelError."""
    model = empty_model(folder)
    shards, head = Shards(folder, model), model.get_output_embeddings()
    tied = {f"{n}.weight" for n, m in model.named_modules() if m is head}
    for name in model.state_dict():
        if name not in tied or shards.has(name):
            yield {name: shards.read(name, "cpu")}


def merge(
    weights: Iterator[Weights],
    adapter_folder: Path,
    base_folder: Path,
    folder: Path,
    dtype: torch.dtype,
) -> Iterator[tuple[int, int]]:
    """Write the merged model into the empty `folder` in `dtype`, but for the few tensors that a 16-bit checkpoint has
    in fp32. Yields how many tensors are done, of how many.

    base_folder: for names, config.json and what is copied. Tokenizer files come from the adapter's folder. Raises
    ModelError if the adapter does not fit the base, or a merged weight is not finite.
    """
    model = empty_model(base_folder)
    total = len(model.state_dict())
    adapter = _AdapterOnPaper(base_folder, adapter_folder)
    names = _FileNames(base_folder, model)
    writer = ShardWriter(folder)
    done = 0
    for part in weights:
        for name, tensor in adapter.merged_into(part).items():
            rounded = _rounded(tensor, torch.float32 if names.is_fp32(name) else dtype)
            for stored, value in names.of(name, rounded).items():
                writer.add(stored, value)
        done += len(part)
        yield min(done, total), total
    adapter.require_all_merged()
    yield total, total
    for name, tensor in names.left_out(writer.names):
        writer.add(name, tensor)
    writer.close()
    _write_configs(base_folder, folder, dtype)


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float tensor in `dtype`. Raises ModelError for a value that is not finite there."""
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded).all():
        raise ModelError(
            f"The merged model has weights that are no finite numbers in {str(dtype).removeprefix('torch.')}.",
            "Publish the adapter instead.",
        )
    return rounded


def _own_weights(module: nn.Module, prefix: str) -> Weights:
    """Parameters and persistent buffers of one module, dequantized, on the CPU."""
    if isinstance(module, PackedExperts):
        own = {n: module.dequantized(n, torch.float32) for n in module.names}
        own |= {n: p for n, p in module.named_parameters(recurse=False) if n not in own}
    elif (weight := _dense_weight(module)) is not None:
        bias: Any = module.bias
        own = {"weight": weight} | ({} if bias is None else {"bias": bias})
    elif _is_inside_packed(module):
        own = {}
    else:
        stored = module.state_dict()
        own = {n: t for n, t in stored.items() if "." not in n}
    return {prefix + name: tensor.detach().cpu() for name, tensor in own.items()}


def _dense_weight(module: nn.Module) -> torch.Tensor | None:
    """(m, n) in fp32 of a packed linear; None for anything else."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, LowBitLinear):
        return module.dequantized(torch.float32)
    if isinstance(module, Linear4bit):
        state = weight.quant_state
        # What training multiplied with: the compute dtype is the state's.
        return dequantize_4bit(weight.data, state).to(module.compute_dtype or state.dtype).float()
    if isinstance(module, Linear8bitLt):
        scales: Any = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * (scales.float()[:, None] / 127)
    return None


def _is_inside_packed(module: nn.Module) -> bool:
    """A stack of packed experts, which are read from their module, or the dictionary of these."""
    return isinstance(module, nn.ModuleDict) or hasattr(module, "matrices")


class _AdapterOnPaper:
    """The adapter over a base on the meta device, whose layers get their weights one after the other."""

    def __init__(self, base_folder: Path, adapter_folder: Path) -> None:
        config = PeftConfig.from_pretrained(str(adapter_folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a base without values
            model = PeftModel(empty_model(base_folder), config)
        # peft's own loading would move the adapter to the base's device, which holds no values.
        weights = load_file(adapter_folder / WEIGHTS_FILE)
        own = {n: weights.get(_name_in_file(n)) for n in model.state_dict() if ".lora_" in n}
        found = {name: weight for name, weight in own.items() if weight is not None}
        model.load_state_dict(found, strict=False, assign=True)
        base: nn.Module = model.get_base_model()
        self._layers: dict[str, LoraLayer] = {}
        for name, module in base.named_modules():
            if isinstance(module, LoraLayer) and module.active_adapters[0] in module.lora_A:
                owner = ".".join(part for part in name.split(".") if part != "base_layer")
                parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
                self._layers[f"{owner}.{parameter}"] = module
                if any(p.is_meta for p in _adapter_parameters(module)):
                    raise ModelError(
                        f"The adapter has no weights for {owner}.", "Publish the adapter instead."
                    )

    @torch.no_grad()
    def merged_into(self, weights: Weights) -> Weights:
        """With B A added to those that are adapted, in fp32."""
        found: Weights = {}
        for name, tensor in weights.items():
            layer = self._layers.pop(name, None)
            found[name] = tensor if layer is None else _merged(layer, name, tensor)
        return found

    def require_all_merged(self) -> None:
        """Raises ModelError if the base has lacked a layer of the adapter."""
        if self._layers:
            raise ModelError(
                f"The base has no {min(self._layers)}, which the adapter changes.",
                "Choose the base that it was trained on.",
            )


def _name_in_file(name: str) -> str:
    """Of a tensor of peft's model, without the name of the adapter."""
    in_file = name.replace(".default", "")
    return in_file.removesuffix(".weight") if "lora_magnitude_vector" in name else in_file


def _adapter_parameters(layer: LoraLayer) -> Iterator[nn.Parameter]:
    parts = (getattr(layer, part) for part in layer.adapter_layer_names)
    return (p for part in parts for p in part.parameters())


def _merged(layer: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    base, parameter = layer.get_base_layer(), name.rpartition(".")[2]
    if getattr(base, parameter).shape != weight.shape:
        raise ModelError(
            f"{name} has the shape {tuple(weight.shape)} in the base, {tuple(getattr(base, parameter).shape)} in the "
            "adapter.",
            "Choose the base that it was trained on.",
        )
    setattr(base, parameter, nn.Parameter(weight.float().clone(), requires_grad=False))
    layer.merge()
    merged = getattr(base, parameter).data
    setattr(base, parameter, nn.Parameter(merged.to("meta"), requires_grad=False))
    return merged


class _FileNames:
    """What the files of the base call the tensors of its model."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        self._shards, self._model = Shards(folder, model), model
        self._is_all_fp32 = model.config.dtype is torch.float32

    def is_fp32(self, key: str) -> bool:
        """Whether it is one of the few tensors of a 16-bit checkpoint that are stored in fp32."""
        stored = self._shards.name_in_files(key)
        is_there = not self._is_all_fp32 and stored in self._shards.names
        return is_there and self._shards.is_fp32(str(stored))

    def of(self, key: str, tensor: torch.Tensor) -> Weights:
        """The tensor under its name in the files, or the several of an expert each that are joined when loaded."""
        stored = self._shards.name_in_files(key)
        if stored is not None:
            return {stored: tensor}
        return {
            n: t.clone() for n, t in revert_weight_conversion(self._model, {key: tensor}).items()
        }

    def left_out(self, written: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """What a wrapper has beside its text model, as it is stored."""
        if not is_wrapper(self._model.config):
            return
        owners = {name.rpartition(".")[0] for name in written}
        for name in self._shards.names:
            if name.rpartition(".")[0] not in owners and not name.endswith("lm_head.weight"):
                yield name, self._shards.read_stored(name)


def _write_configs(base_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    config = json.loads((base_folder / "config.json").read_bytes())
    for one in (config, config.get("text_config") or {}):
        for name in _QUANTIZATION:
            one.pop(name, None)
        for name in ("dtype", "torch_dtype"):
            if name in one:
                one[name] = str(dtype).removeprefix("torch.")
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if (base_folder / GENERATION_CONFIG).is_file():
        shutil.copyfile(base_folder / GENERATION_CONFIG, folder / GENERATION_CONFIG)
