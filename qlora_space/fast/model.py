"""The whole model: embedding, layers, head, and back again, proved on the spot against peft's own way.

There is no autograd here. Forward visits the layers, each of which saves what its activation policy says (layer.py);
the head turns the last hidden states into loss and gradient at once (head.py); backward visits the layers again, last
to first, and adds the adapters' gradients to one piece of memory (gradients.py). The base is frozen, so no gradient of
a large weight is ever computed, and gradients of the inputs are needed down to the first layer's adapter only.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from qlora_space.fast.batch import Batch, make_batch
from qlora_space.fast.embedding import HostEmbedding
from qlora_space.fast.fp8 import SMALLEST_CAPABILITY
from qlora_space.fast.from_peft import head_of, layers_of
from qlora_space.fast.gradients import Gradients
from qlora_space.fast.head import Head
from qlora_space.fast.host_memory import HostPrefetcher
from qlora_space.fast.layer import Layer, StepContext
from qlora_space.fast.limits import Unsupported
from qlora_space.fast.linear import FusedLinear, adapter_copier
from qlora_space.fast.offload import Offloader
from qlora_space.fast.policies import ActivationPolicy

Tensor = torch.Tensor
# Between two bf16 computations: 8 % of the gradient and 0.1 % of the loss were seen at 36 layers of random weights.
_LARGEST_GRADIENT_DIFFERENCE = 0.2
_LARGEST_LOSS_DIFFERENCE = 0.01
_LARGEST_FP8_LOSS_DIFFERENCE, _LARGEST_FP8_GRADIENT_DIFFERENCE = 0.005, 0.5


@dataclass
class FastModel:
    """Computes losses and gradients with the weights of a peft model, whose modules stay as they are.

    embed: int64 (1, T) to (1, T, H); rotary: the model's module that gives cos and sin of position ids.
    """

    embed: nn.Module
    rotary: nn.Module
    layers: Sequence[Layer]
    head: Head
    policy: ActivationPolicy

    def __post_init__(self) -> None:
        self.linears = [linear for layer in self.layers for linear in layer.linears]
        self.gradients = Gradients([owner for layer in self.layers for owner in layer.adapters])
        self._refresh_adapters = adapter_copier(self.linears)
        self.is_in_backward = False
        self._offloader = Offloader(last=len(self.layers) - 1)
        blocks = [layer.host_block for layer in self.layers]
        self.is_base_on_host = all(block is not None for block in blocks)
        self._prefetcher = (
            HostPrefetcher(blocks, self.device) if self.is_base_on_host else None  # type: ignore[arg-type]
        )
        self._by_type = "layer_type" in inspect.signature(self.rotary.forward).parameters

    def begin_micro_step(self) -> None:
        """Gradients are there to add to, and weights are cached if the policy says so."""
        self.gradients.begin()
        if self.policy is not ActivationPolicy.WEIGHTS:
            return self.release_weights()
        for owner in self._weight_owners:
            owner.cache_weight()

    def release_weights(self) -> None:
        """Free the weights that ActivationPolicy.WEIGHTS has cached."""
        for owner in self._weight_owners:
            owner.release_weight()

    @property
    def _weight_owners(self) -> list[FusedLinear | HostEmbedding]:
        """All whose weight may be cached."""
        is_on_host = isinstance(self.embed, HostEmbedding)
        return [*self.linears, self.embed] if is_on_host else list(self.linears)  # type: ignore[list-item]

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of all adapters, fp32, layer by layer."""
        return [p for layer in self.layers for p in layer.parameters]

    @torch.no_grad()
    def loss_sum(self, batch: Batch) -> Tensor:
        """Cross-entropy in nats, summed over the batch's trained tokens: one fp32 number on the device."""
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            x, context = self._begin(batch)
            for layer in self.layers:
                x = layer.forward(x, context)[0]
            return self.head.loss_sum(x, batch.rows, batch.targets)

    @torch.no_grad()
    def add_gradients(self, batch: Batch, divisor: Tensor) -> Tensor:
        """loss_sum / divisor of a batch on the device; its gradients are added to `gradients`.

        divisor: one number on the device, in the dtype of the gradients. Never waits for the GPU. Raises
        torch.OutOfMemoryError; `is_in_backward` then says whether some gradients were written already.
        """
        self.is_in_backward = False
        try:
            with torch.autocast(self.device.type, enabled=False):
                return self._forward_backward(batch, divisor)
        finally:
            if self._prefetcher is not None:
                self._prefetcher.leave()

    def _forward_backward(self, batch: Batch, divisor: Tensor) -> Tensor:
        x, context = self._begin(batch)
        saved = []
        for layer in self.layers:
            self._enter(layer.index, layer.index + 1)
            x, activations = layer.forward(x, context)
            saved.append(activations)
            del activations  # else the last layer's stay until the end
        loss, grad = self.head.loss_and_grad(x, batch.rows, batch.targets, divisor)
        del x
        self.is_in_backward = True
        for layer in reversed(self.layers):
            self._enter(layer.index, layer.index - 1)
            grad = layer.backward(grad, saved.pop(), context, needs_dx=layer.index > 0)  # type: ignore
        self.is_in_backward = False
        return loss

    def _enter(self, index: int, following: int) -> None:
        if self._prefetcher is not None:
            self._prefetcher.enter(index, following)

    def _begin(self, batch: Batch) -> tuple[Tensor, StepContext]:
        self._refresh_adapters()
        context = StepContext(
            batch.documents, self._rotary_cos_sin(batch), self.policy, self._offloader
        )
        return self.embed(batch.input_ids[None])[0], context

    def _rotary_cos_sin(self, batch: Batch) -> dict[str | None, tuple[Tensor, Tensor]]:
        """fp32 cos and sin (T, rotated / 2) for each type of layer; transformers repeats them for the other half."""
        wide = torch.promote_types(self.head.weight.dtype, torch.float32)
        probe = torch.empty(1, dtype=wide, device=batch.position_ids.device)
        cos_sin = {}
        for kind in {layer.rotary for layer in self.layers}:
            extra = (kind,) if self._by_type else ()
            pair = self.rotary(probe, batch.position_ids[None], *extra)
            cos_sin[kind] = tuple(t[0, :, : t.shape[-1] // 2].contiguous() for t in pair)
        return cos_sin


def use_fp8(fast: FastModel, batch: Batch) -> str:
    """Multiply the base in FP8 from now on if that changes little on a batch of real rows; a sentence about it.

    Little: its loss by less than 0.5 %, and its gradients by less than half of their norm.
    """
    is_gpu = fast.device.type == "cuda"
    if is_gpu and torch.cuda.get_device_capability(fast.device) < SMALLEST_CAPABILITY:
        return "Exact products are used: this GPU has none in FP8."
    exact_loss, exact = fast_gradients(fast, batch)
    switch_fp8(fast, is_used=True)
    loss, gradients = fast_gradients(fast, batch)
    of_loss, of_gradients = relative([loss], [exact_loss]), relative(gradients, exact)
    found = (
        f"changes the loss of some rows by {of_loss:.2%} and the gradients by {of_gradients:.1%}"
    )
    if of_loss < _LARGEST_FP8_LOSS_DIFFERENCE and of_gradients < _LARGEST_FP8_GRADIENT_DIFFERENCE:
        return f"The base is multiplied in FP8, which {found}."
    switch_fp8(fast, is_used=False)
    return f"Exact products are used: FP8 {found}."


def switch_fp8(fast: FastModel, *, is_used: bool) -> None:
    """Multiply the base in FP8 from now on, or exactly."""
    for linear in fast.linears:
        linear.use_fp8(is_used=is_used)


def build_checked(
    model: PeftModel, policy: ActivationPolicy, *, on_cpu: bool = False
) -> tuple[FastModel, float]:
    """A fast way through the model, and how far its gradients are from the plain way's, relative to their norm.

    Raises Unsupported, also where the fast way stops with an error or computes something else; OutOfMemoryError.
    """
    try:
        fast = build(model, policy, on_cpu=on_cpu)
        loss, gradient = differences(model, fast)
    except (Unsupported, torch.OutOfMemoryError):
        raise
    except Exception as error:  # no compiler for the kernels, a library that has changed
        raise Unsupported(f"the fast one stopped with {type(error).__name__}") from error
    if not (gradient < _LARGEST_GRADIENT_DIFFERENCE and loss < _LARGEST_LOSS_DIFFERENCE):
        raise Unsupported(f"its gradients differ by {gradient:.1%} and its loss by {loss:.1%}")
    return fast, gradient


def build(model: PeftModel, policy: ActivationPolicy, *, on_cpu: bool = False) -> FastModel:
    """A fast way through the model, not compared with anything yet. Raises Unsupported."""
    base = model.get_base_model()
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None  # type: ignore[operator]
    needed = ("layers", "embed_tokens", "norm", "rotary_emb")
    if not all(hasattr(decoder, n) for n in needed):
        raise Unsupported(f"{type(base).__name__} is not a decoder of layers")
    weight = base.get_output_embeddings().weight  # type: ignore
    if not weight.is_cuda and not on_cpu:
        raise Unsupported("there is no GPU")
    if weight.is_cuda and weight.dtype != torch.bfloat16:
        raise Unsupported(
            f"the head is in {str(weight.dtype).removeprefix('torch.')}, not bfloat16"
        )
    layers = layers_of(decoder, weight.dtype)  # type: ignore
    head = head_of(base, decoder)  # type: ignore
    fast = FastModel(decoder.embed_tokens, decoder.rotary_emb, layers, head, policy)  # type: ignore
    _check_that_nothing_else_is_trained(model, fast)
    return fast


def _check_that_nothing_else_is_trained(model: PeftModel, fast: FastModel) -> None:
    known = {id(p) for p in fast.parameters}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    if others:
        raise Unsupported(f"{others[0]} is trained, too")


def differences(model: PeftModel, fast: FastModel) -> tuple[float, float]:
    """Relative difference of loss, and of all gradients together, on two short random documents."""
    vocabulary = fast.head.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, 56), generator=generator)
    positions = torch.cat([torch.arange(40), torch.arange(16)])[None]
    labels = ids.masked_fill(positions == 0, -100)
    try:
        got = _accumulate(fast, make_batch(ids, labels, positions))
        wanted, wanted_grads = plain_gradients(model, ids, labels, positions, fast.parameters)
        gradient = relative([p.grad for p in fast.parameters], wanted_grads)  # type: ignore[misc]
    finally:
        fast.gradients.clear()
    return relative([got], [wanted]), gradient


def fast_gradients(fast: FastModel, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Mean loss and its gradients, as copies, in the order of `parameters`; leaves none behind."""
    loss = _accumulate(fast, batch)
    grads = [p.grad.clone() for p in fast.parameters]  # type: ignore[union-attr]
    fast.gradients.clear()
    return loss, grads


def _accumulate(fast: FastModel, batch: Batch) -> Tensor:
    """The mean loss, whose gradients are added."""
    fast.gradients.begin()
    divisor = torch.tensor(batch.num_trained, dtype=fast.gradients.flat.dtype, device=fast.device)
    return fast.add_gradients(batch.padded().to(fast.device), divisor)


def plain_gradients(model: PeftModel, ids, labels, positions, parameters):
    """Mean loss and its gradients by transformers' forward and autograd; ids, labels, positions: (B, S)."""
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    device = weight.device
    with torch.autocast(device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
        loss = model(
            input_ids=ids.to(device), labels=labels.to(device), position_ids=positions.to(device), use_cache=False
        ).loss  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss, parameters)


def relative(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Norm of all differences together over the norm of what is wanted."""
    pairs = list(zip(got, wanted, strict=True))
    difference = torch.stack([(a.double() - b.double()).norm() for a, b in pairs]).norm()
    return float(difference / torch.stack([b.double().norm() for _, b in pairs]).norm())
