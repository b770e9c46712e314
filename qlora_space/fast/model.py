"""apply(): a fast way through a peft model, proved on the spot against the plain way, or the reason why not."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from qlora_space.fast.batch import Batch, make_batch
from qlora_space.fast.head import Head
from qlora_space.fast.layer import Call, Layer, Rung
from qlora_space.fast.linear import refresh
from qlora_space.fast.offload import Offloader
from qlora_space.fast.recognise import Reason, head_of, layers_of

Tensor = torch.Tensor
# Between two bf16 computations: 8 % of the gradient and 0.1 % of the loss were seen at 36 layers of random weights.
_LARGEST_GRADIENT_DIFFERENCE = 0.2
_LARGEST_LOSS_DIFFERENCE = 0.01


@dataclass
class FastModel:
    """Computes losses with the weights of a peft model, whose modules stay as they are."""

    embed: nn.Module
    rotary: nn.Module
    layers: Sequence[Layer]
    head: Head
    rung: Rung

    def __post_init__(self) -> None:
        self._linears = [linear for layer in self.layers for linear in layer.linears]
        self._offloader = Offloader()
        self._by_type = "layer_type" in inspect.signature(self.rotary.forward).parameters

    def loss_sum(self, batch: Batch) -> Tensor:
        """Nats over the batch's trained tokens, fp32; divide by their number. Never waits for the GPU."""
        device = self.head.weight.device
        batch = batch.to(device)
        with torch.autocast(device.type, enabled=False):
            refresh(self._linears)
            call = Call(batch.documents, self._turns(batch), self.rung, self._offloader)
            x = self.embed(batch.input_ids[None])[0]
            for layer in self.layers:
                x = layer(x, call)
            return self.head.loss_sum(x, batch.rows, batch.targets)

    def _turns(self, batch: Batch) -> dict[str | None, tuple[Tensor, Tensor]]:
        """cos and sin in fp32, one half of them: the other is the same."""
        wide = torch.promote_types(self.head.weight.dtype, torch.float32)
        probe = torch.empty(1, dtype=wide, device=batch.position_ids.device)
        turns = {}
        for kind in {layer.rotary for layer in self.layers}:
            extra = (kind,) if self._by_type else ()
            pair = self.rotary(probe, batch.position_ids[None], *extra)
            turns[kind] = tuple(t[0, :, : t.shape[-1] // 2].contiguous() for t in pair)
        return turns


@dataclass(frozen=True)
class FastReport:
    """model is None on the plain path; text says what was done, or why not."""

    model: FastModel | None
    text: str


def apply(model: PeftModel, rung: Rung = Rung.LAYER, *, on_cpu: bool = False) -> FastReport:
    """Look at the model, build its fast path, compare a loss and all gradients with the plain path.

    The CPU takes the plain path unless told otherwise: there it is as fast.
    """
    try:
        fast = build(model, rung, on_cpu=on_cpu)
        loss, gradient = differences(model, fast)
        if not (gradient < _LARGEST_GRADIENT_DIFFERENCE and loss < _LARGEST_LOSS_DIFFERENCE):
            raise Reason(f"its gradients differ by {gradient:.1%} and its loss by {loss:.1%}")
    except Reason as reason:
        return FastReport(None, f"The plain path is used: {reason}.")
    count = len(fast.layers)
    text = f"{count} fused layers, {rung.name.lower()} kept; gradients within {gradient:.1%}."
    return FastReport(fast, text)


def build(model: PeftModel, rung: Rung, *, on_cpu: bool = False) -> FastModel:
    """Raises Reason."""
    base = model.get_base_model()
    decoder = getattr(base, "model", None)
    needed = ("layers", "embed_tokens", "norm", "rotary_emb")
    if not all(hasattr(decoder, n) for n in needed):
        raise Reason(f"{type(base).__name__} is not a decoder of layers")
    weight = base.get_output_embeddings().weight  # type: ignore
    if not weight.is_cuda and not on_cpu:
        raise Reason("there is no GPU")
    if weight.is_cuda and weight.dtype != torch.bfloat16:
        raise Reason("the GPU has no bf16")
    layers = layers_of(decoder, weight.dtype)  # type: ignore
    return FastModel(decoder.embed_tokens, decoder.rotary_emb, layers, head_of(base, decoder), rung)  # type: ignore


def differences(model: PeftModel, fast: FastModel) -> tuple[float, float]:
    """Relative difference of loss, and of all gradients together, on two short random documents."""
    weight = fast.head.weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(weight.shape[0], (1, 56), generator=generator)
    positions = torch.cat([torch.arange(40), torch.arange(16)])[None]
    labels = ids.masked_fill(positions == 0, -100)
    parameters = [p for layer in fast.layers for p in layer.parameters]
    batch = make_batch(ids, labels, positions)
    got = fast.loss_sum(batch) / len(batch.targets)
    got_grads = torch.autograd.grad(got, parameters)
    wanted, wanted_grads = plain_gradients(model, ids, labels, positions, parameters)
    return _relative([got.detach()], [wanted]), _relative(got_grads, wanted_grads)


def plain_gradients(model: PeftModel, ids, labels, positions, parameters):
    """Loss and gradients of peft's own way."""
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    where = weight.device
    with torch.autocast(where.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        wanted = model(
            input_ids=ids.to(where), labels=labels.to(where), position_ids=positions.to(where), use_cache=False
        ).loss  # fmt: skip
    return wanted.detach(), torch.autograd.grad(wanted, parameters)


def _relative(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = list(zip(got, wanted, strict=True))
    apart = torch.stack([(a.double() - b.double()).norm() for a, b in pairs]).norm()
    return float(apart / torch.stack([b.double().norm() for _, b in pairs]).norm())
