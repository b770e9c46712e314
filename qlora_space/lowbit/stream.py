"""One block at a time: its 16-bit weights, the calibration windows through it, covariances of its linears' inputs.

Every block sees the hidden states of the 16-bit model, not those of the quantized one, so the states after the last
block are the teacher of the evaluation and of the distillation (distill.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.architecture import (
    block_linears,
    block_names,
    decoder_blocks,
    final_norm,
    max_rows,
)
from qlora_space.lowbit.shards import Shards, load_outside_blocks
from qlora_space.lowbit.windows import Windows

_PROBE_TOKENS = 4096
_READ_FROM_BLOCKS = (
    "attention_type",
    "layer_type",
    "layer_idx",
    "is_attention_layer",
    "block_type",
)
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class CalibratedBlock:
    """A block with its 16-bit weights in place.

    linears: by their name inside the block. covariances: for each of them (n, n) fp32, mean of x x^T over the
    calibration tokens. output(): runs the block, with the weights that it has then, on the first windows (rows, L, H).
    """

    name: str
    linears: dict[str, nn.Linear]
    covariances: dict[str, torch.Tensor]
    output: Callable[[], torch.Tensor]


class CalibrationStream:
    """Iterate over it to get the blocks; replace in them what is to be replaced, and move them away afterwards.

    hidden_states: (N, L, H) on the CPU once all blocks were taken, after the final norm. Raises ModelError.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        shards: Shards,
        windows: Windows,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._model, self._shards, self._windows = model, shards, windows
        self._device, self._dtype = device, dtype
        length = windows.ids.shape[1]
        at_once = _TOKENS_AT_ONCE[device.split(":")[0]] // length
        self._rows_per_batch = max(1, min(at_once, max_rows(model, length)))
        load_outside_blocks(model, shards, device, dtype)
        self.hidden_states: torch.Tensor = torch.empty(0)

    @torch.no_grad()
    def __iter__(self) -> Iterator[CalibratedBlock]:
        layers = decoder_blocks(self._model)
        self.hidden_states, arguments = self._embedded(layers)
        states_device = self._device_of_states()
        self.hidden_states = self.hidden_states.to(states_device)
        for layer, name, layer_arguments in zip(
            layers, block_names(self._model), arguments, strict=True
        ):
            self._shards.load_into(self._model, name, self._device, self._dtype)
            linears = block_linears(layer)
            covariances = _Covariances(linears)
            probe = self.hidden_states[: max(1, _PROBE_TOKENS // self.hidden_states.shape[1])]
            probe = probe.clone()
            self._advance(layer, layer_arguments, covariances)
            output = partial(self._output, layer, probe, layer_arguments)
            yield CalibratedBlock(name, linears, covariances.means(), output)
        norm = final_norm(self._model)
        for batch in self._batches():
            states = self.hidden_states[batch].to(self._device)
            self.hidden_states[batch] = norm(states).to(states_device)
        self.hidden_states = self.hidden_states.cpu()

    def _embedded(self, layers: nn.ModuleList) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Embedded windows (N, L, H), and the keyword arguments that the decoder gives to each block."""
        decoder = self._model.get_decoder()
        recorders = [_InputRecorder(layer) for layer in layers]
        decoder.layers = nn.ModuleList(recorders)
        states = []
        for batch in self._batches():
            ids = self._windows.ids[batch].to(self._device)
            decoder(input_ids=ids, use_cache=False)
            states.append(recorders[0].hidden_states.cpu())
        decoder(input_ids=self._windows.ids[:1].to(self._device), use_cache=False)
        decoder.layers = layers
        return torch.cat(states), [recorder.arguments for recorder in recorders]

    def _advance(
        self, layer: nn.Module, arguments: dict[str, Any], covariances: "_Covariances"
    ) -> None:
        """Replace all hidden states by the block's output, and count what its linears see of the calibration."""
        for batch in self._batches():
            is_calibration = torch.arange(batch.start, batch.stop) < self._windows.num_calibration
            mask = self._windows.is_text[batch] & is_calibration[:, None]
            with covariances.counting(mask.to(self._device)):
                output = self._output(layer, self.hidden_states[batch], arguments)
            self.hidden_states[batch] = output.to(self.hidden_states.device)

    @torch.no_grad()
    def _output(
        self, layer: nn.Module, states: torch.Tensor, arguments: dict[str, Any]
    ) -> torch.Tensor:
        output = layer(states.to(self._device), **arguments)
        return output[0] if isinstance(output, tuple) else output

    def _device_of_states(self) -> str:
        """The GPU if the states are small beside its free memory: copies to the CPU would take longest."""
        if not self._device.startswith("cuda"):
            return "cpu"
        needed = self.hidden_states.numel() * self.hidden_states.element_size()
        return self._device if 8 * needed < torch.cuda.mem_get_info()[0] else "cpu"

    def _batches(self) -> Iterator[slice]:
        total = len(self._windows.ids)
        for start in range(0, total, self._rows_per_batch):
            yield slice(start, min(start + self._rows_per_batch, total))


class _InputRecorder(nn.Module):
    """In a block's stead: remembers its arguments and passes the hidden states on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in _READ_FROM_BLOCKS:  # what decoders read from their blocks
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.hidden_states = torch.empty(0)
        self.arguments: dict[str, Any] = {}

    def forward(
        self, hidden_states: torch.Tensor, *positional: Any, **arguments: Any
    ) -> torch.Tensor:
        if any(value is not None for value in positional):
            raise ModelError(
                "The blocks of this base get more of each token than its hidden state (Gemma 4 E2B, E4B).",
                "Use 4 bits, or another base.",
            )
        self.hidden_states, self.arguments = hidden_states, arguments
        return hidden_states


class _Covariances:
    """Mean of x x^T over the counted tokens, one matrix for linears that share their input. Sums in fp64."""

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        self._linears = linears
        self._leaders: dict[str, str] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens = 0
        self._mask = torch.empty(0)
        self._last: tuple[str, torch.Tensor] | None = None

    def counting(self, mask: torch.Tensor) -> "_Covariances":
        """For one forward pass: mask (batch, L) of the tokens that count."""
        self._mask = mask
        return self

    def __enter__(self) -> None:
        self._tokens += int(self._mask.sum())
        self._handles = [
            linear.register_forward_pre_hook(self._hook(name))
            for name, linear in self._linears.items()
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, args: self._add(name, args[0])

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def _add(self, name: str, x: torch.Tensor) -> None:
        if self._last is not None and self._last[1] is x:
            self._leaders[name] = self._last[0]
            return
        self._leaders[name], self._last = name, (name, x)
        if not self._mask.any():
            return
        # Shared experts get all tokens in one row; keys of latent attention have one head.
        product = _gram(x.reshape(*self._mask.shape, x.shape[-1])[self._mask])
        if name in self._sums:
            self._sums[name].add_(product)
        else:
            self._sums[name] = product.double()

    def means(self) -> dict[str, torch.Tensor]:
        """Per linear (n, n) fp32; linears with the same input share the tensor. Frees the sums."""
        means = {}
        for name in list(self._sums):
            means[name] = self._sums.pop(name).div_(max(1, self._tokens)).float()
        return {name: means[leader] for name, leader in self._leaders.items() if leader in means}


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """x^T x (n, n) fp32 of (tokens, n): products of 16-bit numbers are exact in fp32, only the sums are rounded."""
    if rows.is_cuda and rows.dtype != torch.float32:
        return torch.mm(rows.T, rows, out_dtype=torch.float32)
    rows = rows.float()
    return rows.T @ rows
