"""What the layers keep between forward and backward, in bytes, and which policy a GPU has room for. No torch here: the
tuner (autotune.py) and a planner count with the same functions.

T tokens at once; sizes are elements of a token in one layer unless they say bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from qlora_space.fast.limits import OFFLOAD_TILE_TOKENS

USABLE = 0.92  # of the memory that a process may have: the allocator cannot fill every gap


class ActivationPolicy(IntEnum):
    """What a layer keeps between forward and backward, from least memory to least work.

    OFFLOAD            the input, in pinned host memory
    OFFLOAD_ATTENTION  as ATTENTION, in pinned host memory
    OFFLOAD_QKV        as QKV in every second layer, as ATTENTION in the others, in pinned host memory
    LAYER              the input
    ATTENTION          + attention's output and the sum after it
    QKV                + queries, keys, values
    ALL                + gate and up
    WEIGHTS            + norms, rotated queries and keys; and, from step to step, the dequantized weights, and an
                       embedding table that lies in host memory
    """

    OFFLOAD = 0
    OFFLOAD_ATTENTION = 1
    OFFLOAD_QKV = 2
    LAYER = 3
    ATTENTION = 4
    QKV = 5
    ALL = 6
    WEIGHTS = 7

    @property
    def is_on_host(self) -> bool:
        return self < ActivationPolicy.LAYER


FIRST_POLICY = ActivationPolicy.LAYER  # of the first micro-step, whose peak gives those of all
_TILE_TOKENS = {ActivationPolicy.OFFLOAD: OFFLOAD_TILE_TOKENS}  # of the MLP
_COMMON_TILE_TOKENS = 8192


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer. attended: all heads of queries; keys: all heads of keys."""

    hidden: int
    attended: int
    keys: int
    mlp: int
    is_sandwich: bool  # what o and down give is normed, too

    @property
    def qkv(self) -> int:
        return self.attended + 2 * self.keys

    @property
    def rotated(self) -> int:
        return self.attended + self.keys

    @property
    def gate_up(self) -> int:
        return 2 * self.mlp

    @property
    def weights(self) -> int:
        """Elements of all its linears."""
        return self.hidden * (self.qkv + self.attended + self.gate_up + self.mlp)


def rounded_up(count: int) -> int:
    """Tokens that a micro-step takes for `count`: more by at most a sixteenth, and a multiple of 128."""
    step = max(128, power_of_two(count) // 32)
    return -(-count // step) * step


def power_of_two(count: int) -> int:
    """The smallest one that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def tile_tokens(policy: ActivationPolicy, tokens: int) -> int:
    """How many of `tokens` tokens the MLP takes at once."""
    if policy >= ActivationPolicy.ALL:
        return tokens
    return min(tokens, _TILE_TOKENS.get(policy, _COMMON_TILE_TOKENS))


def saved_bytes(shape: LayerShape, policy: ActivationPolicy, element_size: int = 2) -> int:
    """Bytes of GPU memory that a layer keeps per token between forward and backward, without those of (T, rank)."""
    size = 0 if policy.is_on_host else shape.hidden * (2 if shape.is_sandwich else 1)
    if policy >= ActivationPolicy.ATTENTION:
        size += shape.attended + shape.hidden * (2 if shape.is_sandwich else 1)
    if policy >= ActivationPolicy.QKV:
        size += shape.qkv
    if policy >= ActivationPolicy.ALL:
        size += shape.gate_up
    if policy is ActivationPolicy.WEIGHTS:
        size += 2 * shape.hidden + shape.rotated
    return size * element_size


def weight_bytes(shape: LayerShape, policy: ActivationPolicy, element_size: int = 2) -> int:
    """Bytes of GPU memory that the dequantized weights of a layer take where the policy caches them."""
    return element_size * shape.weights if policy is ActivationPolicy.WEIGHTS else 0


def working_bytes(
    shape: LayerShape, policy: ActivationPolicy, tokens: int, element_size: int = 2
) -> int:
    """Bytes of what is as wide as the MLP while one layer is in backward, beside what the policy keeps."""
    widths = shape.mlp + (shape.gate_up if policy < ActivationPolicy.ALL else 0)
    return tile_tokens(policy, tokens) * widths * element_size


def own_bytes(
    shapes: Sequence[LayerShape], policy: ActivationPolicy, tokens: int, table_bytes: int
) -> int:
    """The part of the peak that the policy decides. table_bytes: of an embedding table in host memory, or 0."""
    saved = sum(tokens * saved_bytes(s, policy) + weight_bytes(s, policy) for s in shapes)
    if policy is ActivationPolicy.WEIGHTS:
        saved += table_bytes
    return saved + max(working_bytes(s, policy, tokens) for s in shapes)


def best_fitting(own: Callable[[ActivationPolicy], int], rest: int, cap: int) -> ActivationPolicy:
    """The one that keeps most within the usable part of `cap` bytes, beside `rest` bytes that none decides."""
    fitting = [p for p in ActivationPolicy if rest + own(p) <= USABLE * cap]
    return max(fitting, default=ActivationPolicy.OFFLOAD)


def policies_to_time(best: ActivationPolicy) -> tuple[ActivationPolicy, ...]:
    """Those that are tried where `best` fits at most; none if it is clearly the fastest.

    Only whether sending activations to host memory beats computing them again depends on the bus.
    """
    if best > ActivationPolicy.LAYER:
        return ()
    is_layer = best is ActivationPolicy.LAYER
    first = ActivationPolicy.LAYER if is_layer else ActivationPolicy.OFFLOAD
    return (first, ActivationPolicy.OFFLOAD_ATTENTION, ActivationPolicy.OFFLOAD_QKV)
