"""Which tensors of a checkpoint are the experts of a mixture: one by one, or all of a layer in one tensor."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

JsonObject = dict[str, Any]
_ONE = re.compile(r"^(.*\.\d+\..*?)experts\.(\d+)\.[^.]+\.weight$")
_ALL = re.compile(
    r"^(.*\.\d+\.(?:.*\.)?)(?:experts\.\w+|input_linear\.weight|output_linear\.weight)$"
)
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")
_BLOCKS, _SCALES, _BLOCK = "_blocks", "_scales", 32  # of MXFP4: 4-bit codes, two in a byte
_MXFP4_BITS = 4 + 8 / _BLOCK
# Types in which peft 0.21 takes these names for experts wherever they are, shared experts and dense layers among them
# (peft/utils/transformers_weight_conversion.py): they get no adapter (experts/adapter.py).
_TAKEN_FOR_EXPERTS = {
    "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo",
    "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "olmoe", "qwen3_moe", "qwen3_next",
    "solar_open",
}  # fmt: skip
_NAMES_OF_EXPERTS = (".gate_proj.weight", ".up_proj.weight", ".down_proj.weight")
_GATED = 3  # matrices of an expert with a gate


class Named(Protocol):
    """A tensor's name and shape, which is all that is looked at."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Experts:
    """names: of their tensors; routers: of matrices that choose experts, or gate a shared one. count: of all layers.

    matrices: of one, as large as its smallest: three with a gate, which may be one with another.
    sides: inputs and outputs of all experts as transformers joins them, gate and up in one: an adapter of rank 1.
    bits: of a weight in MXFP4, 0 for others.
    """

    names: frozenset[str] = frozenset()
    routers: frozenset[str] = frozenset()
    per_layer: int = 0
    count: int = 0
    parameters: int = 0
    matrices: int = 3
    sides: int = 0
    bits: float = 0.0


def experts_of(tensors: Iterable[Named]) -> Experts:
    """Empty for a dense model."""
    tensors = tuple(tensors)
    single: dict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)
    fused: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    names: set[str] = set()
    for tensor in tensors:
        if (found := _ONE.match(tensor.name)) and len(tensor.shape) == 2:
            single[found[1], found[2]].append(tensor.shape)
            names.add(tensor.name)
        elif (found := _ALL.match(tensor.name)) and len(tensor.shape) >= 3:
            names.add(tensor.name)
            if not tensor.name.endswith(_SCALES):
                fused[found[1]].append(_matrices(tensor))
    if not names:
        return Experts()
    owners = {owner for owner, _ in single} | set(fused)
    numbers: dict[str, int] = defaultdict(int)
    for owner, _ in single:
        numbers[owner] += 1
    per_layer = max([*numbers.values(), *(s[0] for shapes in fused.values() for s in shapes)])
    all_shapes = [(1, *s) for shapes in single.values() for s in shapes]
    all_shapes += [s for shapes in fused.values() for s in shapes]
    return Experts(
        names=frozenset(names),
        routers=frozenset(_routers(tensors, owners, names, per_layer)),
        per_layer=per_layer,
        count=len(single) + sum(shapes[0][0] for shapes in fused.values()),
        parameters=sum(map(math.prod, all_shapes)),
        matrices=_matrices_of_one(next(iter([*single.values(), *fused.values()]))),
        bits=_MXFP4_BITS if any(name.endswith(_BLOCKS) for name in names) else 0.0,
        sides=sum(map(_sides, single.values()))
        + sum(s[0] * (s[1] + s[2]) for shapes in fused.values() for s in shapes),
    )


def _matrices(tensor: Named) -> tuple[int, ...]:
    """(E, N, K) of a joined tensor; codes of MXFP4 come in blocks of half as many bytes."""
    if tensor.name.endswith(_BLOCKS):
        experts, rows, blocks = tensor.shape[:3]
        return (experts, rows, blocks * _BLOCK)
    return tensor.shape[:3]


def _matrices_of_one(shapes: list[tuple[int, ...]]) -> int:
    sizes = [math.prod(shape) for shape in shapes]
    return max(1, sum(sizes) // max(1, min(sizes)))


def _sides(shapes: list[tuple[int, ...]]) -> int:
    """Of one expert's matrices. Gate and up, the two of the same shape, share their input."""
    total = sum(rows + columns for rows, columns in shapes)
    if len(shapes) != _GATED:
        return total
    twice = next((s for s in shapes if shapes.count(s) > 1), None)
    return total - (twice[1] if twice else 0)


def _routers(
    tensors: tuple[Named, ...], owners: set[str], names: set[str], per_layer: int
) -> Iterable[str]:
    """As experts/module.py finds them in a model: linears beside experts with one output for each, or one in all."""
    for tensor in tensors:
        is_matrix = tensor.name.endswith(".weight") and len(tensor.shape) == 2
        is_beside = any(tensor.name.startswith(owner) for owner in owners)
        if is_matrix and is_beside and tensor.shape[0] in (1, per_layer):
            yield from {tensor.name} - names


def taken_for_expert(name: str, model_type: str) -> bool:
    """Whether a linear that is no expert gets no adapter because of its name."""
    return model_type in _TAKEN_FOR_EXPERTS and name.endswith(_NAMES_OF_EXPERTS)


def experts_per_token(config: JsonObject) -> int:
    """What config.json says, 0 where it says nothing."""
    for key in _PER_TOKEN:
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**16:
            return value
    return 0
