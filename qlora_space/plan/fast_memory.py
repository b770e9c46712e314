"""How much the fast step holds under each activation policy, and what it keeps where memory is free.

Arithmetic on facts. Which policy fits is decided by the functions that the tuner itself uses (fast/policies.py). Axes:
T tokens at once, R rank; layer sizes are those of LayerShape.
"""

from qlora_space.core.facts import ModelFacts
from qlora_space.fast.policies import (
    FIRST_POLICY,
    ActivationPolicy,
    LayerShape,
    best_fitting,
    own_bytes,
    policies_to_time,
    working_bytes,
)

_LIBRARY_BYTES = 2**26  # two workspaces of cuBLAS
_SANDWICH_NORMS = {"gemma2", "gemma3_text"}
# fast/head.py: rows of logits at once, and the most bytes that they take.
_CHUNK_ROWS, _CHUNK_BYTES = 1024, 2**29


def layer_shape(model: ModelFacts) -> LayerShape:
    """Of each decoder layer."""
    return LayerShape(
        hidden=model.hidden_size,
        attended=model.num_attention_heads * model.head_dim,
        keys=model.num_key_value_heads * model.head_dim,
        mlp=0 if model.num_experts else model.intermediate_size,  # experts keep nothing
        is_sandwich=model.model_type in _SANDWICH_NORMS,
    )


def table_bytes(model: ModelFacts) -> int:
    """Of an embedding table that is not the head's too: the fast step moves it to host memory."""
    return 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size * 2


def activation_bytes(
    model: ModelFacts,
    tokens: int,
    r: int,
    policy: ActivationPolicy = ActivationPolicy.OFFLOAD,
) -> int:
    """Bytes at the peak of a micro-step beside weights and adapter: what all layers keep, and the larger of the head
    and one layer in backward. Cached weights, and a cached table, are among them."""
    shape, layers = layer_shape(model), model.num_hidden_layers
    own = own_bytes([shape] * layers, policy, tokens, table_bytes(model))
    kept = own - working_bytes(shape, policy, tokens)
    if (
        policy >= ActivationPolicy.ATTENTION
    ):  # x Aᵀ of every linear, and attention's logarithms of sums
        kept += layers * tokens * (2 * 7 * r + 4 * model.num_attention_heads)
    working = max(_head_bytes(model, tokens), _backward_bytes(shape, tokens, policy))
    return kept + working + _LIBRARY_BYTES


def kept_for_speed_bytes(  # noqa: PLR0913 - bytes of one kind each
    model: ModelFacts,
    tokens: int,
    r: int,
    *,
    beside: int,
    least: int,
    free: int,
    pending: int,
    experts: int = 0,
) -> int:
    """What the fast step holds at its peak beyond `least` where `free` bytes are there, CUDA's context not counted.

    beside: bytes of weights, adapter and states, of which `pending` more are left room for; experts: of experts at
    work. Where several policies are timed, all of them count, not the one that wins. 0 where the least does not fit.
    """
    shapes, table = [layer_shape(model)] * model.num_hidden_layers, table_bytes(model)

    def own(policy: ActivationPolicy) -> int:
        return own_bytes(shapes, policy, tokens, table)

    def peak(policy: ActivationPolicy) -> int:
        return beside + experts + activation_bytes(model, tokens, r, policy)

    # As the tuner does it: the peak of the first policy gives those of all others.
    best = best_fitting(own, peak(FIRST_POLICY) + pending - own(FIRST_POLICY), free)
    tried = (FIRST_POLICY, *(policies_to_time(best) or (best,)))
    return max(0, min(max(map(peak, tried)), free) - least)


def _head_bytes(model: ModelFacts, tokens: int) -> int:
    """Last hidden states, their trained rows, the gradient; a chunk of logits."""
    fitting = _CHUNK_BYTES // (2 * model.vocab_size) // 256 * 256
    rows = max(256, min(_CHUNK_ROWS, fitting, tokens // 4))
    return 2 * (3 * tokens * model.hidden_size + rows * model.vocab_size)


def _backward_bytes(shape: LayerShape, tokens: int, policy: ActivationPolicy) -> int:
    """One layer in backward beside what the policy keeps of all: bf16 tensors of all tokens, and tensors as wide as the
    MLP for a tile of them.

    Counted in fast/layer.py: a gradient is resident throughout, and what the policy does not keep of queries, keys and
    values, before and after the rotation, and of attention's output. Where nothing stays on the GPU, so are the layer's
    input and the one before it, or all that is fetched for this layer and the one before.
    """
    hidden, attended, keys = shape.hidden, shape.attended, shape.keys
    missing = {
        shape.attended: policy < ActivationPolicy.ATTENTION,
        shape.qkv: policy < ActivationPolicy.QKV,
        shape.rotated: policy < ActivationPolicy.WEIGHTS,
    }
    common = hidden + sum(size for size, is_missing in missing.items() if is_missing)
    common += _fetched(shape, policy)
    # Gate, up and down as they are multiplied, where they are not cached.
    weights = 0 if policy is ActivationPolicy.WEIGHTS else 3 * hidden * shape.mlp
    mlp = 2 * weights + working_bytes(shape, policy, tokens) + 2 * tokens * (common + hidden)
    # The gradients of attention's output, queries, keys, values; those of queries once more in fp32, those of keys
    # and values once more as if every query had its own (cuDNN and FlashAttention 2 alike).
    gradients = 2 * (2 * attended + 2 * keys) + 4 * attended + 2 * 2 * attended
    is_freed = (
        policy >= ActivationPolicy.ALL
    )  # gate and up of this layer, which the MLP is done with
    attention = tokens * (2 * common + gradients - is_freed * 2 * shape.gate_up)
    return max(mlp, attention)


def _fetched(shape: LayerShape, policy: ActivationPolicy) -> int:
    """Elements a token of what comes back from host memory for a layer and the one before it."""
    if not policy.is_on_host:
        return 0
    size = 2 * shape.hidden
    if (
        policy > ActivationPolicy.OFFLOAD
    ):  # two layers' sums after attention, one more attention's output
        size += 2 * shape.hidden + shape.attended
    if policy is ActivationPolicy.OFFLOAD_QKV:  # of every second layer
        size += shape.qkv
    return size
