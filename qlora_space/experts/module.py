"""PackedExperts: takes the place of an experts module of transformers, its matrices packed."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qlora_space.core.errors import ModelError
from qlora_space.experts import products
from qlora_space.experts.gate import Gate
from qlora_space.experts.products import Adapters, Experts, Gradients
from qlora_space.experts.routing import Routing, route
from qlora_space.experts.stacks import Mxfp4Stack, Nf4Stack, Stack

Tensor = torch.Tensor
DOWN = "down_proj"
_PACKED = "packed_"  # peft takes modules for linears by their last names
FIRST = ("gate_up_proj", "up_proj")  # the first product, with a gate and without


class PackedExperts(nn.Module):
    """Called as what it replaces: hidden states (T, H), the chosen experts (T, k), the router's weights (T, k).

    Made of a module on the meta device; `pack` gives it its matrices one after the other. Biases stay parameters.
    names: of the two products' parameters; shapes: of these, as transformers has them.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        module: Any = original
        self.names = parameters(original)
        self.is_transposed = bool(getattr(module, "is_transposed", False))
        self.shapes = {name: tuple(getattr(module, name).shape) for name in self.names}
        self.num_experts = self.shapes[DOWN][0]
        width = self.shapes[DOWN][1 if self.is_transposed else 2]
        for name in self.names:
            self.register_parameter(name, nn.Parameter(getattr(module, name).data, False))
            delattr(module, name)
            bias = f"{name}_bias"
            self.register_parameter(bias, getattr(module, bias, None))
        self.gate = Gate(original, width)
        self.stacks = nn.ModuleDict()

    @property
    def packed_parameters(self) -> int:
        """Weights that are packed."""
        return sum(
            torch.Size(self.shapes[name]).numel() for name in self.names if self.is_packed(name)
        )

    @property
    def packed_bytes(self) -> int:
        """Bytes of what is packed, with all scales."""
        return sum(b.numel() * b.element_size() for b in self.stacks.buffers())

    def is_packed(self, name: str) -> bool:
        """Whether the matrices of that name are here."""
        return _PACKED + name in self.stacks

    @torch.no_grad()
    def pack(self, name: str, weight: Tensor) -> None:
        """Pack the parameter (E, ...), as transformers has it, on its device. Raises ModelError."""
        if tuple(weight.shape) != self.shapes[name]:
            raise ModelError(
                f"The experts have the shape {tuple(weight.shape)}, config.json states {self.shapes[name]}.",
                "Choose another base.",
            )
        self.put(name, Nf4Stack.from_weight(weight.mT if self.is_transposed else weight))

    def expect_mxfp4(self) -> None:
        """Before a checkpoint in MXFP4 is read: have buffers of its names in the parameters' places."""
        for name in self.names:
            experts, first, second = self.shapes[name]
            rows, columns = (second, first) if self.is_transposed else (first, second)
            shape = (experts, rows, columns // Mxfp4Stack.GROUP)
            blocks = torch.empty(*shape, Mxfp4Stack.GROUP // 2, dtype=torch.uint8, device="meta")
            self.register_buffer(f"{name}_blocks", blocks)
            self.register_buffer(f"{name}_scales", blocks[..., 0])
        self.show(None)

    def take_mxfp4(self) -> None:
        """Afterwards: the codes as they were read."""
        for name in self.names:
            if isinstance(blocks := getattr(self, f"{name}_blocks", None), Tensor):
                self.put(name, Mxfp4Stack(blocks, getattr(self, f"{name}_scales")))
                delattr(self, f"{name}_blocks")
                delattr(self, f"{name}_scales")

    def put(self, name: str, stack: nn.Module) -> None:
        """Take a stack (E, N, K) for the parameter of that name; the parameter itself stays until `show(None)`."""
        self.stacks[_PACKED + name] = stack

    def show(self, device: torch.device | str | None) -> None:
        """Have frozen parameters of the original names and shapes, of 4 bytes each, or none for None."""
        for name in self.names:
            shown = None if device is None else placeholder(self.shapes[name], device)
            setattr(self, name, shown)

    def stack(self, name: str) -> Stack:
        """The matrices of that name."""
        found: Any = self.stacks[_PACKED + name]
        return found

    def dequantized(self, name: str, dtype: torch.dtype) -> Tensor:
        """The parameter of that name (E, ...), as transformers has it."""
        stack = self.stack(name)
        everyone = torch.arange(self.num_experts, device=next(self.stacks.buffers()).device)
        matrices = stack.matrices(route(everyone[:, None], self.num_experts, dtype), dtype)
        return matrices.mT if self.is_transposed else matrices

    @property
    def experts(self) -> Experts:
        """What the products need."""
        up, down = (self.stack(name) for name in self.names)
        bias = [getattr(self, f"{name}_bias") for name in self.names]
        return Experts(up, down, bias[0], bias[1], self.gate)

    def forward(
        self,
        hidden_states: Tensor,
        top_k_index: Tensor,
        top_k_weights: Tensor,
        adapters: Adapters = (None, None),
    ) -> Tensor:
        """(T, H). adapters: of the first product and of `down`."""
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        weights = [w for a in adapters if a is not None for w in (a.a, a.b)]
        with torch.autocast(device, enabled=False):
            return _Mixture.apply(
                hidden_states, top_k_weights, top_k_index, self, adapters, *weights
            )

    def route(self, index: Tensor, dtype: torch.dtype) -> list[Routing]:
        """The order of rows for the chosen experts (T, k), a tile of tokens after the other."""
        tile = self.experts.tokens_at_once(index.shape[-1], dtype.itemsize)
        return [route(piece, self.num_experts, dtype) for piece in index.split(tile)]

    def product(
        self, x: Tensor, weights: Tensor, routings: list[Routing], adapters: Adapters
    ) -> Tensor:
        """As forward, outside of autograd."""
        return products.forward(self.experts, adapters, x, weights, routings)

    def product_backward(
        self,
        dout: Tensor,
        x: Tensor,
        weights: Tensor,
        routings: list[Routing],
        adapters: Adapters,
        gradients: tuple[Gradients | None, Gradients | None],
    ) -> tuple[Tensor, Tensor]:
        """(gradient of x, gradient of weights); those of the adapters are added to `gradients`."""
        return products.backward(self.experts, adapters, gradients, dout, x, weights, routings)

    def extra_repr(self) -> str:
        return f"{self.num_experts} experts, {self.packed_parameters:,} weights packed"


def placeholder(shape: Sequence[int], device: torch.device | str) -> nn.Parameter:
    """A frozen fp32 parameter of that shape which takes 4 bytes."""
    return nn.Parameter(torch.zeros((), device=device).expand(*shape), requires_grad=False)


class _Mixture(torch.autograd.Function):
    """Keeps the inputs and the order of rows; computes the rest again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        index: Tensor,
        module: PackedExperts,
        adapters: Adapters,
        *adapter_weights: Tensor,
    ) -> Tensor:
        ctx.routing = module.route(index, x.dtype)
        ctx.module, ctx.adapters = module, adapters
        ctx.save_for_backward(x, weights)
        return module.product(x, weights, ctx.routing, adapters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        adapters: Adapters = ctx.adapters
        gradients = [
            a and Gradients(torch.zeros_like(a.a), torch.zeros_like(a.b)) for a in adapters
        ]
        dx, d_weights = ctx.module.product_backward(
            grads[0].contiguous(), x, weights, ctx.routing, adapters, (gradients[0], gradients[1])
        )
        of_adapters = [t for g in gradients if g is not None for t in (g.a, g.b)]
        return (dx, d_weights, None, None, None, *of_adapters)


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds the matrices of all experts as transformers does: in two 3-D parameters."""
    first = [getattr(module, name, None) for name in FIRST]
    pair = [p for p in (*first, getattr(module, DOWN, None)) if isinstance(p, nn.Parameter)]
    return len(pair) == 2 and all(p.dim() == 3 for p in pair)


def parameters(module: nn.Module) -> tuple[str, str]:
    """The names of the two parameters of an experts module."""
    return next(name for name in FIRST if hasattr(module, name)), DOWN


def packable(module: nn.Module) -> bool:
    """Whether PackedExperts can take its place: transformers gave it the interface, and no norm behind each expert."""
    return hasattr(module, "_apply_gate") and not getattr(module, "has_post_expert_norm", False)


def packed_experts(model: nn.Module) -> Iterator[tuple[str, PackedExperts]]:
    """All packed experts of a model, by name."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, PackedExperts))


def make_packable(model: nn.Module) -> None:
    """Put PackedExperts, empty, in the place of all fused experts of a model on the meta device.

    Raises ModelError for experts of another kind, which would silently stay in 16 bits.
    """
    fused = [(n, m) for n, m in model.named_modules() if is_fused(m)]
    for name, module in fused:
        if not packable(module):
            raise ModelError(
                f"The experts of this base ({type(module).__name__}) are of a kind that cannot be packed.",
                "Use 16 bits, or another base.",
            )
        model.set_submodule(name, PackedExperts(module))


def routers(model: nn.Module) -> list[str]:
    """Linears that choose experts, or gate a shared one, by name: small, decisive, and left in 16 bits."""
    found = []
    for name, module in model.named_modules():
        experts = [m for m in module.children() if isinstance(m, PackedExperts) or is_fused(m)]
        if not experts:
            continue
        counts = {1, *(int(getattr(m, "num_experts", 0)) for m in experts)}
        for inner, linear in module.named_modules():
            if isinstance(linear, nn.Linear) and linear.out_features in counts:
                found.append(f"{name}.{inner}" if name else inner)
    return found
