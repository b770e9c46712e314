"""apply(): a fast way through a peft model, proved on the spot against the plain way, or the reason why not."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from qlora_space.fast.batch import Batch, make_batch
from qlora_space.fast.embedding import HostEmbedding
from qlora_space.fast.fp8 import SMALLEST_CAPABILITY
from qlora_space.fast.gradients import Gradients
from qlora_space.fast.head import Head
from qlora_space.fast.host_memory import Ahead
from qlora_space.fast.layer import ActivationPolicy, Call, Layer
from qlora_space.fast.linear import FusedLinear, copies_of
from qlora_space.fast.offload import Offloader
from qlora_space.fast.recognise import Reason, head_of, layers_of

Tensor = torch.Tensor
# Between two bf16 computations: 8 % of the gradient and 0.1 % of the loss were seen at 36 layers of random weights.
_LARGEST_GRADIENT_DIFFERENCE = 0.2
_LARGEST_LOSS_DIFFERENCE = 0.01
_LARGEST_FP8_LOSS_DIFFERENCE, _LARGEST_FP8_GRADIENT_DIFFERENCE = 0.005, 0.5


@dataclass
class FastModel:
    """Computes losses and gradients with the weights of a peft model, whose modules stay as they are."""

    embed: nn.Module
    rotary: nn.Module
    layers: Sequence[Layer]
    head: Head
    policy: ActivationPolicy

    def __post_init__(self) -> None:
        self.linears = [linear for layer in self.layers for linear in layer.linears]
        self.gradients = Gradients(self.linears)
        self._refresh = copies_of(self.linears)
        self.is_in_backward = False
        self._offloader = Offloader(last=len(self.layers) - 1)
        blocks = [layer.host_block for layer in self.layers]
        self.is_base_on_host = all(block is not None for block in blocks)
        self._ahead = Ahead(blocks, self.device) if self.is_base_on_host else None  # type: ignore[arg-type]
        self._by_type = "layer_type" in inspect.signature(self.rotary.forward).parameters

    def begin_micro_step(self) -> None:
        """Gradients to add to, and the weights that the policy keeps from step to step."""
        self.gradients.begin()
        for owner in self._keepers:
            owner.keep_weight() if self.policy is ActivationPolicy.WEIGHTS else owner.forget_weight()

    def forget_weights(self) -> None:
        for owner in self._keepers:
            owner.forget_weight()

    @property
    def _keepers(self) -> list[FusedLinear | HostEmbedding]:
        """Those whose weight the policy may keep in another form."""
        is_on_host = isinstance(self.embed, HostEmbedding)
        return [*self.linears, self.embed] if is_on_host else list(self.linears)  # type: ignore[list-item]

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for layer in self.layers for p in layer.parameters]

    @torch.no_grad()
    def loss_sum(self, batch: Batch) -> Tensor:
        """Nats over the batch's trained tokens, fp32; divide by their number."""
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            x, call = self._begin(batch)
            for layer in self.layers:
                x = layer.forward(x, call)[0]
            return self.head.loss_sum(x, batch.rows, batch.targets)

    @torch.no_grad()
    def add_gradients(self, batch: Batch, divisor: Tensor) -> Tensor:
        """loss_sum / divisor of a batch on the device; its gradients are added to `gradients`.

        divisor: one fp32 number on the device. Never waits for the GPU.
        """
        self.is_in_backward = False
        try:
            with torch.autocast(self.device.type, enabled=False):
                return self._there_and_back(batch, divisor)
        finally:
            if self._ahead is not None:
                self._ahead.leave()

    def _there_and_back(self, batch: Batch, divisor: Tensor) -> Tensor:
        x, call = self._begin(batch)
        kept = []
        for layer in self.layers:
            self._enter(layer.index, layer.index + 1)
            x, keeps = layer.forward(x, call)
            kept.append(keeps)
            del keeps  # else the last layer's stay until the end
        loss, grad = self.head.loss_and_grad(x, batch.rows, batch.targets, divisor)
        del x
        self.is_in_backward = True
        for layer in reversed(self.layers):
            self._enter(layer.index, layer.index - 1)
            grad = layer.backward(grad, kept.pop(), call, needs_dx=layer.index > 0)  # type: ignore
        self.is_in_backward = False
        return loss

    def _enter(self, index: int, following: int) -> None:
        if self._ahead is not None:
            self._ahead.enter(index, following)

    def _begin(self, batch: Batch) -> tuple[Tensor, Call]:
        self._refresh()
        call = Call(batch.documents, self._turns(batch), self.policy, self._offloader)
        return self.embed(batch.input_ids[None])[0], call

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


def use_fp8(fast: FastModel, batch: Batch) -> str:
    """Multiply the base in FP8 from now on if that changes little on a batch of real rows; a sentence about it."""
    if (
        fast.device.type == "cuda"
        and torch.cuda.get_device_capability(fast.device) < SMALLEST_CAPABILITY
    ):
        return "Exact products are used: this GPU has none in FP8."
    exact_loss, exact = fast_gradients(fast, batch)
    switch_fp8(fast, is_used=True)
    loss, gradients = fast_gradients(fast, batch)
    apart, turned = relative([loss], [exact_loss]), relative(gradients, exact)
    found = f"changes the loss of some rows by {apart:.2%} and the gradients by {turned:.1%}"
    if apart < _LARGEST_FP8_LOSS_DIFFERENCE and turned < _LARGEST_FP8_GRADIENT_DIFFERENCE:
        return f"The base is multiplied in FP8, which {found}."
    switch_fp8(fast, is_used=False)
    return f"Exact products are used: FP8 {found}."


def switch_fp8(fast: FastModel, *, is_used: bool) -> None:
    for linear in fast.linears:
        linear.use_fp8(is_used=is_used)


@dataclass(frozen=True)
class FastReport:
    """model is None on the plain path; text says what was done, or why not."""

    model: FastModel | None
    text: str


def apply(
    model: PeftModel, policy: ActivationPolicy = ActivationPolicy.LAYER, *, on_cpu: bool = False
) -> FastReport:
    """Look at the model, build its fast path, compare a loss and all gradients with the plain path.

    The CPU takes the plain path unless told otherwise: there it is as fast.
    """
    try:
        fast = build(model, policy, on_cpu=on_cpu)
        loss, gradient = differences(model, fast)
        if not (gradient < _LARGEST_GRADIENT_DIFFERENCE and loss < _LARGEST_LOSS_DIFFERENCE):
            raise Reason(f"its gradients differ by {gradient:.1%} and its loss by {loss:.1%}")
    except Reason as reason:
        return FastReport(None, f"The plain path is used: {reason}.")
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as error:  # no compiler for the kernels, a library that has changed: train all the same
        kind = type(error).__name__
        return FastReport(None, f"The plain path is used: the fast one stopped with {kind}.")
    count = len(fast.layers)
    return FastReport(fast, f"{count} fused layers; gradients within {gradient:.1%}.")


def build(model: PeftModel, policy: ActivationPolicy, *, on_cpu: bool = False) -> FastModel:
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
    head = head_of(base, decoder)  # type: ignore
    return FastModel(decoder.embed_tokens, decoder.rotary_emb, layers, head, policy)  # type: ignore


def differences(model: PeftModel, fast: FastModel) -> tuple[float, float]:
    """Relative difference of loss, and of all gradients together, on two short random documents."""
    vocabulary = fast.head.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, 56), generator=generator)
    positions = torch.cat([torch.arange(40), torch.arange(16)])[None]
    labels = ids.masked_fill(positions == 0, -100)
    got = _put_gradients(fast, make_batch(ids, labels, positions))
    wanted, wanted_grads = plain_gradients(model, ids, labels, positions, fast.parameters)
    apart = relative([p.grad for p in fast.parameters], wanted_grads)  # type: ignore[misc]
    _drop_gradients(fast)
    return relative([got], [wanted]), apart


def fast_gradients(fast: FastModel, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Mean loss and its gradients, as copies, in the order of `parameters`; leaves none behind."""
    loss = _put_gradients(fast, batch)
    grads = [p.grad.clone() for p in fast.parameters]  # type: ignore[union-attr]
    _drop_gradients(fast)
    return loss, grads


def _put_gradients(fast: FastModel, batch: Batch) -> Tensor:
    """The mean loss."""
    fast.gradients.begin()
    divisor = torch.tensor(batch.num_trained, dtype=fast.gradients.flat.dtype, device=fast.device)
    return fast.add_gradients(batch.padded().to(fast.device), divisor)


def _drop_gradients(fast: FastModel) -> None:
    for p in fast.parameters:
        p.grad = None


def plain_gradients(model: PeftModel, ids, labels, positions, parameters):
    """Loss and gradients of peft's own way."""
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    where = weight.device
    with torch.autocast(where.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        wanted = model(
            input_ids=ids.to(where), labels=labels.to(where), position_ids=positions.to(where), use_cache=False
        ).loss  # fmt: skip
    return wanted.detach(), torch.autograd.grad(wanted, parameters)


def relative(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = list(zip(got, wanted, strict=True))
    apart = torch.stack([(a.double() - b.double()).norm() for a, b in pairs]).norm()
    return float(apart / torch.stack([b.double().norm() for _, b in pairs]).norm())
