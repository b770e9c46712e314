"""The weights of a base, one module at a time, from its safetensors files into a model on the meta device."""

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.architecture import block_names, decoder_blocks
from qlora_space.lowbit.stored import is_stored_packed, scaled, unpacked

_BLOCK = 128  # DeepSeek's


class Shards:
    """The safetensors files of one folder, with or without an index. Raises ModelError if there are none.

    model: tensors are asked for by its names, and found under those that transformers renames to them when it loads.
    """

    def __init__(self, folder: Path, model: PreTrainedModel | None = None) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file() and not (folder / "model.safetensors").is_file():
            names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
            self._files = {name: folder / Path(file).name for name, file in names.items()}
        else:
            single = folder / "model.safetensors"
            with _open(single, "cpu") as file:
                self._files = dict.fromkeys(file.keys(), single)
        self._block = _block_size(folder)
        self._stored = _stored_names(self._files, model) if model else {}
        self._parts = _parts(self._files, model) if model else {}

    def load_into(
        self,
        model: nn.Module,
        name: str,
        device: str,
        dtype: torch.dtype | None,
        recurse: bool = True,
        skip: type[nn.Module] | None = None,
    ) -> None:
        """Give the module of that name its parameters and persistent buffers; `recurse` includes the modules inside
        it, except those of the class `skip`.

        Floats become `dtype` unless it is None, fp32 ones by way of bf16: no base here has more than 16 bits, and
        fp32 is only what some CPUs compute in. Raises ModelError if a weight is missing or has another shape.
        """
        module = model.get_submodule(name)
        for inner, tensor in list(_state(module, recurse).items()):
            owner, _, last = inner.rpartition(".")
            parent = module.get_submodule(owner)
            if not tensor.numel() or (skip and isinstance(parent, skip)):
                continue  # the empty weight of a LowBitLinear; what has its weights already
            key = f"{name}.{inner}" if name else inner
            value = self.read(key, device)
            if value.shape != tensor.shape:
                raise ModelError(
                    f"{key} has the shape {tuple(value.shape)}, config.json states {tuple(tensor.shape)}.",
                    "Choose another base.",
                )
            if isinstance(tensor, nn.Parameter):
                value = value if dtype is None else _in_16_bits(value).to(dtype)
                setattr(parent, last, nn.Parameter(value, requires_grad=False))
            else:
                setattr(parent, last, value)

    def has(self, key: str) -> bool:
        """Whether there is a tensor of that name, as it is or packed."""
        return self._has(key) or is_stored_packed(key, self._has) or key in self._parts

    @property
    def names(self) -> list[str]:
        """Of the tensors in the files."""
        return list(self._files)

    def name_in_files(self, key: str) -> str | None:
        """What the files call a tensor of the model; None where several of theirs make it."""
        return None if key in self._parts else self._stored.get(key, key)

    def read_stored(self, name: str) -> torch.Tensor:
        """A tensor by its name in the files, as it is stored. Raises ModelError."""
        with _open(self._files[name], "cpu") as file:
            return file.get_tensor(name)

    def is_fp32(self, name: str) -> bool:
        """Whether the tensor of that name in the files is stored in fp32. Raises ModelError."""
        with _open(self._files[name], "cpu") as file:
            return file.get_slice(name).get_dtype() == "F32"

    def read(self, key: str, device: str) -> torch.Tensor:
        """One tensor, in 16 bits or more where it is stored packed (stored.py). Raises ModelError."""
        read = partial(self._read, device=device)
        if key in self._parts:
            return self._joined(key, device)
        if self._has(key):
            return scaled(read(key), key, self._has, read, self._block)
        if is_stored_packed(key, self._has):
            return unpacked(key, self._has, read)
        raise ModelError(f"The weights have no {key}.", "Choose a base that transformers loads.")

    def _joined(self, key: str, device: str) -> torch.Tensor:
        """Of several tensors, as transformers makes one of them when it loads: an expert after the other."""
        converter, parts = self._parts[key]
        converter: Any = deepcopy(converter)
        for pattern, name in parts:
            converter.add_tensor(key, name, pattern, self.read(name, device))
        found = converter.convert(key)[key]
        return found[0] if isinstance(found, list) else found

    def _has(self, key: str) -> bool:
        return self._stored.get(key, key) in self._files

    def _read(self, key: str, device: str) -> torch.Tensor:
        """As it is stored."""
        stored = self._stored.get(key, key)
        with _open(self._files[stored], device) as file:
            return file.get_tensor(stored)


def load_outside_blocks(
    model: PreTrainedModel, shards: Shards, device: str, dtype: torch.dtype
) -> None:
    """Embeddings, final norm and head get their weights; buffers are moved to the device. Raises ModelError."""
    blocks = decoder_blocks(model)
    inside = {id(p) for p in blocks.parameters()}
    owners = {n.rpartition(".")[0] for n, p in model.named_parameters() if id(p) not in inside}
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    is_tied = not shards.has(f"{head}.weight")
    for name in owners - ({head} if is_tied else set()):
        shards.load_into(model, name, device, dtype, recurse=False)
    if is_tied:
        output: Any = model.get_output_embeddings()
        output.weight = model.get_input_embeddings().weight
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device.type != "meta":
                module._buffers[name] = buffer.to(device)


def load_blocks(
    model: PreTrainedModel, shards: Shards, device: str, dtype: torch.dtype
) -> Iterator[nn.Module]:
    """What is outside of the blocks at once, then one block after the other with its weights. Raises ModelError."""
    load_outside_blocks(model, shards, device, dtype)
    for name in block_names(model):
        shards.load_into(model, name, device, dtype)
        yield model.get_submodule(name)


def _stored_names(names: Iterable[str], model: PreTrainedModel) -> dict[str, str]:
    """Name in the model to name in the files, where they differ: wrappers were renamed since they were published."""
    state = model.state_dict()
    renamings = [m for m in get_model_conversion_mapping(model) if isinstance(m, WeightRenaming)]
    found = {}
    for name in names:
        if name not in state:
            new, _ = rename_source_key(name, renamings, [], model.base_model_prefix, state)
            found[new] = name
    return found


def _parts(
    names: Iterable[str], model: PreTrainedModel
) -> dict[str, tuple[WeightConverter, list[tuple[str, str]]]]:
    """Name in the model to what makes one tensor of several, and to (pattern, name in the files) of these, in order."""
    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state = model.state_dict()
    found: dict[str, tuple[WeightConverter, list[tuple[str, str]]]] = {}
    for name in sorted(names, key=dot_natural_key):
        if name in state:
            continue
        new, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        if pattern is not None and new in state:
            found.setdefault(new, (by_pattern[pattern], []))[1].append((pattern, name))
    return found


def _block_size(folder: Path) -> int:
    """Edge of the square blocks that share a scale in FP8 checkpoints."""
    file = folder / "config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    owners = (config, config.get("text_config") or {})
    stated = next((o["quantization_config"] for o in owners if o.get("quantization_config")), {})
    return int((stated.get("weight_block_size") or [_BLOCK])[0])


def _in_16_bits(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.bfloat16) if value.dtype == torch.float32 else value


def _open(file: Path, device: str) -> safe_open:
    try:
        return safe_open(file, framework="pt", device=device)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file.name} cannot be read.", "Choose another base.") from error


def _state(module: nn.Module, recurse: bool) -> dict[str, torch.Tensor]:
    """Parameters, and those buffers that a checkpoint contains."""
    state = module.state_dict(keep_vars=True)
    return state if recurse else {k: v for k, v in state.items() if "." not in k}
