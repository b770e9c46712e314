"""One block at a time: weights from the files, calibration windows through it, covariances of what its linears see.

The inputs are those of the 16-bit model, so its hidden states at the end are the teacher for gate and heal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.lowbit.shards import Shards, blocks_of, linears_of
from qlora_space.model import most_rows

_TRIED_TOKENS = 4096
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class Windows:
    """Token ids (N, L) and which of them are text (N, L) bool; padding is on the right, where causal attention
    keeps it from everything before it. The first `calibration` windows are calibrated on, the rest only carried."""

    ids: torch.Tensor
    is_text: torch.Tensor
    calibration: int


@dataclass(frozen=True)
class Block:
    """A block with its 16-bit weights in place, and covariance (n, n) fp32 of the inputs of each of its linears.
    `output` runs it again on the first windows, with the weights that it has then."""

    name: str
    linears: dict[str, nn.Linear]
    covariances: dict[str, torch.Tensor]
    output: Callable[[], torch.Tensor]


class Stream:
    """Iterate to get the blocks; the consumer replaces what it wants, and the 16-bit weights are let go of."""

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
        self._per_batch = max(1, min(at_once, most_rows(model, length)))
        fill_outside(model, shards, device, dtype)
        self.hidden: torch.Tensor = torch.empty(0)

    @torch.no_grad()
    def __iter__(self) -> Iterator[Block]:
        """`hidden` (N, L, H) is the state after the last block and the final norm once all blocks were taken."""
        layers = blocks_of(self._model)
        self.hidden, arguments = self._embedded(layers)
        place = self._place_of_states()
        self.hidden = self.hidden.to(place)
        prefix = next(n for n, m in self._model.named_modules() if m is layers)
        for i in range(len(layers)):
            name = f"{prefix}.{i}"
            self._shards.fill(self._model, name, self._device, self._dtype)
            layer = layers[i]
            linears = linears_of(layer)
            meter = _Covariances(linears)
            tried = self.hidden[: max(1, _TRIED_TOKENS // self.hidden.shape[1])].clone()
            self._advance(layer, arguments[i], meter)
            output = partial(self._output, layer, tried, arguments[i])
            yield Block(name, linears, meter.means(), output)
            layers[i] = layer  # a consumer that replaced the linears did it inside this module
        norm: Any = self._model.get_decoder().norm
        for batch in self._batches():
            self.hidden[batch] = norm(self.hidden[batch].to(self._device)).to(place)
        self.hidden = self.hidden.cpu()

    def _embedded(self, layers: nn.ModuleList) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Embedded windows (N, L, H), and the arguments that the decoder gives to each block."""
        decoder = self._model.get_decoder()
        recorders = [_Recorder(layer) for layer in layers]
        decoder.layers = nn.ModuleList(recorders)
        states = []
        for batch in self._batches():
            ids = self._windows.ids[batch].to(self._device)
            decoder(input_ids=ids, use_cache=False)
            states.append(recorders[0].hidden.cpu())
        decoder(input_ids=self._windows.ids[:1].to(self._device), use_cache=False)
        decoder.layers = layers
        return torch.cat(states), [recorder.arguments for recorder in recorders]

    def _advance(self, layer: nn.Module, arguments: dict[str, Any], meter: "_Covariances") -> None:
        for batch in self._batches():
            is_calibration = torch.arange(batch.start, batch.stop) < self._windows.calibration
            counted = self._windows.is_text[batch] & is_calibration[:, None]
            with meter.counting(counted.to(self._device)):
                output = self._output(layer, self.hidden[batch], arguments)
            self.hidden[batch] = output.to(self.hidden.device)

    @torch.no_grad()
    def _output(
        self, layer: nn.Module, states: torch.Tensor, arguments: dict[str, Any]
    ) -> torch.Tensor:
        output = layer(states.to(self._device), **arguments)
        return output[0] if isinstance(output, tuple) else output

    def _place_of_states(self) -> str:
        """On the GPU if they are small beside what is free there: the way to the CPU takes longest."""
        if not self._device.startswith("cuda"):
            return "cpu"
        needed = self.hidden.numel() * self.hidden.element_size()
        return self._device if 8 * needed < torch.cuda.mem_get_info()[0] else "cpu"

    def _batches(self) -> Iterator[slice]:
        total = len(self._windows.ids)
        for start in range(0, total, self._per_batch):
            yield slice(start, min(start + self._per_batch, total))


class _Recorder(nn.Module):
    """Stands where a block stood: remembers what it was given and passes the hidden states on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type"):  # what decoders ask their blocks for
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.hidden = torch.empty(0)
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.hidden, self.arguments = hidden_states, arguments
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
        product = _gram(x[self._mask])
        if name in self._sums:
            self._sums[name].add_(product)
        else:
            self._sums[name] = product.double()

    def means(self) -> dict[str, torch.Tensor]:
        """Per linear (n, n) fp32; linears with the same input share the tensor. The sums are given up."""
        means = {}
        for name in list(self._sums):
            means[name] = self._sums.pop(name).div_(max(1, self._tokens)).float()
        return {name: means[leader] for name, leader in self._leaders.items() if leader in means}


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """x^T x (n, n) fp32 of (tokens, n): products of 16-bit numbers are exact in fp32, sums are the accumulator's."""
    if rows.is_cuda and rows.dtype != torch.float32:
        return torch.mm(rows.T, rows, out_dtype=torch.float32)
    rows = rows.float()
    return rows.T @ rows


def filled_blocks(
    model: PreTrainedModel, shards: Shards, device: str, dtype: torch.dtype
) -> Iterator[nn.Module]:
    """What is outside of the decoder's blocks, then one block after the other with its weights in place."""
    fill_outside(model, shards, device, dtype)
    blocks = blocks_of(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    for i, block in enumerate(blocks):
        shards.fill(model, f"{prefix}.{i}", device, dtype)
        yield block


def fill_outside(model: PreTrainedModel, shards: Shards, device: str, dtype: torch.dtype) -> None:
    """Embeddings, final norm and head; buffers follow to the device."""
    blocks = blocks_of(model)
    inside = {id(p) for p in blocks.parameters()}
    owners = {n.rpartition(".")[0] for n, p in model.named_parameters() if id(p) not in inside}
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    is_tied = not shards.has(f"{head}.weight")
    for name in owners - ({head} if is_tied else set()):
        shards.fill(model, name, device, dtype, deep=False)
    if is_tied:
        output: Any = model.get_output_embeddings()
        output.weight = model.get_input_embeddings().weight
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device.type != "meta":
                module._buffers[name] = buffer.to(device)
