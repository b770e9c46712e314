"""How much memory a QLoRA step needs, part by part, in GiB. Pure arithmetic on facts.

Axes: T tokens at once, H hidden size, I MLP width, L layers, V vocabulary, R rank.
"""

from collections.abc import Sequence

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.targets import ALL_LINEAR, chosen_linears
from qlora_space.fast.policies import rounded_up
from qlora_space.plan.fast_memory import activation_bytes, kept_for_speed_bytes, table_bytes
from qlora_space.plan.mixtures import expert_activation_bytes
from qlora_space.plan.plan import MemoryPart
from qlora_space.plan.targets import linears_of

_GIB = 2**30
# NF4 with double quantization: 4 + 8/64 + 32/(64*256) bits per weight (QLoRA, arXiv 2305.14314, sec. 3).
_BYTES_PER_LINEAR_WEIGHT = {4: 4.127 / 8, 8: 1.0 + 4 / 4096, 16: 2.0}
_SCALE_BITS = 16  # of a group of low-bit weights; its zero point has as many bits as a weight
_FIXED_GIB = {"cuda": 0.6, "cpu": 0.9}  # CUDA context and workspaces; Python, torch and libraries
# trl 1.16 computes the loss in tiles of this size (trl/kernels/chunked_logprob.py).
_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
# For each pair of tokens, in transformers' eager attention: kept of a layer are tanh and shares (bf16) and the softmax
# (fp32); at work are these, gradients and copies (fits Gemma 2 9B at 2,048 and 8,192 tokens, docs/PERFORMANCE.md).
_SCORE_BYTES_KEPT, _SCORE_BYTES_AT_WORK, _SCORE_BYTES_FORWARD = 8, 24, 12
EAGER_SCORES_AT_ONCE = 2**22  # of a head, in evaluations
# bitsandbytes' scales of 4-bit weights, which stay on the GPU where the codes are in host memory.
_SCALE_BYTES_PER_LINEAR_WEIGHT = _BYTES_PER_LINEAR_WEIGHT[4] - 0.5
# The fast step's copies of A and of B in bf16, B with zeros beside its blocks: 1.5 numbers for each weight.
_FAST_COPY_BYTES = 3
_TUNER_STATE_BYTES = (
    8  # of a weight, which its tuner leaves room for whatever the optimizer (fast/step.py)
)
_DORA_BYTES_PER_OUTPUT = 4  # of a linear, for each token
# Of a token and a hidden channel: what torch's own way through a layer with state keeps for its backward pass, in fp32
# (tests/model/test_state_memory.py counts it).
_STATE_BYTES = {"Gated DeltaNet": 84, "Mamba": 260}
KEPT_FOR_SPEED = "kept for speed"
_ACTIVATIONS, _RUNTIME = "activations", "runtime"


def adapter_parameters(
    model: ModelFacts, r: int, expert_r: int = 0, target_modules: str = ALL_LINEAR
) -> int:
    """Weights of A and B on the linears that are adapted, in all decoder layers, and on experts."""
    if model.linear_sides and target_modules == ALL_LINEAR:
        return r * model.linear_sides + expert_r * model.expert_sides
    linears = linears_of(model)
    chosen = chosen_linears([one.name for one in linears], target_modules)
    sides = sum(one.sides for one in linears if one.name in chosen)
    return r * sides + expert_r * model.expert_sides


def bits_per_weight(bits: float, group_size: int = 64, *, is_packed: bool = False) -> float:
    """Stored bits per weight: below 4 bits, and where the base `is_packed`, codes with a scale and a zero point per
    group; else as bitsandbytes stores them. `bits` may be the mean of mixed widths."""
    if bits < 4 or is_packed:
        return bits + (_SCALE_BITS + bits) / group_size
    return 8 * _BYTES_PER_LINEAR_WEIGHT[int(bits)]


def packed_base_gib(model: ModelFacts, mean_bits: float, group_size: int) -> float:
    """Size as stored: the linears packed, everything else in 16 bits."""
    return stored_base_gib(model, bits_per_weight(mean_bits, group_size, is_packed=True))


def stored_base_gib(model: ModelFacts, stored_bits: float) -> float:
    """Size with so many bits for each weight of the linears, scales included, and everything else in 16 bits."""
    rest = 16 * (model.parameters - model.linear_parameters)
    return (model.linear_parameters * stored_bits + rest) / 8 / _GIB


def mean_bits_within(model: ModelFacts, base_gib: float, group_size: int) -> float:
    """The inverse of packed_base_gib; may be below 2 and above 4."""
    rest = 16 * (model.parameters - model.linear_parameters)
    stored = (base_gib * 8 * _GIB - rest) / model.linear_parameters
    return (stored - _SCALE_BITS / group_size) / (1 + 1 / group_size)


def estimate_memory(  # noqa: PLR0913 - each argument is one choice of the plan
    model: ModelFacts,
    hardware: Hardware,
    *,
    bits: float,
    group_size: int = 64,
    is_packed: bool = False,
    r: int,
    expert_r: int = 0,
    tokens_at_once: int,
    max_length: int = 0,
    gradient_checkpointing: bool,
    optim: str,
    is_fast: bool = False,
    cpu_offload: bool = False,
    target_modules: str = ALL_LINEAR,
    use_dora: bool = False,
) -> tuple[MemoryPart, ...]:
    """The parts that are resident at the peak of a training step, largest first.

    Of the fast step this is the least: the inputs of all layers are in host memory, as is an embedding table that is
    not tied to the head. Where more memory is free it keeps more there: `kept_for_speed_gib`. max_length counts only
    for a base that caps its attention's logits: in the plain step and in evaluations.
    """
    stored_bits = bits_per_weight(bits, group_size, is_packed=is_packed)
    linear = _offloaded_bytes(model) if cpu_offload else model.linear_parameters * stored_bits / 8
    is_fp32 = hardware.device == "cpu" and not hardware.has_bf16
    wide = 2 if is_fp32 else 1
    if bits == 16:
        linear *= wide
    rest = (model.parameters - model.linear_parameters) * 2 * wide
    if is_fast:
        rest -= table_bytes(model)
    of_outputs = 1 if use_dora else 0  # DoRA's sizes: less than a rank more
    trained = adapter_parameters(model, r + of_outputs, expert_r, target_modules)
    adapter = trained * (4 + 4 + _state_bytes(optim))
    experts = expert_activation_bytes(model, tokens_at_once, expert_r)
    if is_fast:
        adapter += adapter_parameters(model, r) * _FAST_COPY_BYTES
        # Of an evaluation, which takes the plain path.
        pairs = max(max_length**2, EAGER_SCORES_AT_ONCE)
        evaluation = _scores(model, pairs) * _SCORE_BYTES_FORWARD
        training = activation_bytes(model, rounded_up(tokens_at_once), r) + experts
        activations = max(training, evaluation)
    else:
        activations = _activation_bytes(
            model, tokens_at_once, gradient_checkpointing, is_copied=bits == 16
        )
        activations += _score_bytes(model, tokens_at_once * max_length, gradient_checkpointing)
        activations = (activations + experts) * wide
        if use_dora:
            activations += _dora_bytes(model, tokens_at_once, gradient_checkpointing)
    sizes = {
        **_base_parts(model, linear),
        "embeddings and head": rest,
        "adapter, gradients, optimizer": adapter,
        _ACTIVATIONS: activations,
        _RUNTIME: _FIXED_GIB[hardware.device] * _GIB,
    }
    return _parts(sizes)


def _base_parts(model: ModelFacts, linear: float) -> dict[str, float]:
    """Bytes of the quantized weights, those of experts apart."""
    in_experts = linear * model.expert_parameters / max(1, model.linear_parameters)
    others = {"base weights": linear - in_experts}
    return {"experts": _as_stored(model, in_experts)} | others if in_experts else others


def _offloaded_bytes(model: ModelFacts) -> float:
    """On the GPU: scales, and the layer in use and the next one (fast/host_memory.py)."""
    a_layer = model.linear_parameters / model.num_hidden_layers / 2
    return model.linear_parameters * _SCALE_BYTES_PER_LINEAR_WEIGHT + 2 * a_layer


def _parts(sizes: dict[str, float]) -> tuple[MemoryPart, ...]:
    """Of bytes by name."""
    ordered = sorted(sizes.items(), key=lambda part: -part[1])
    return tuple(MemoryPart(name=name, gib=round(size / _GIB, 3)) for name, size in ordered)


def kept_for_speed_gib(
    model: ModelFacts,
    hardware: Hardware,
    parts: Sequence[MemoryPart],
    *,
    r: int,
    expert_r: int = 0,
    tokens_at_once: int,
    optim: str,
) -> float:
    """What the fast step holds beyond `parts`, its least, where there is room; given back where there is none."""
    sizes = {part.name: part.gib * _GIB for part in parts}
    runtime, activations = sizes.pop(_RUNTIME), sizes.pop(_ACTIVATIONS)
    beside = sum(sizes.values())
    kept = kept_for_speed_bytes(
        model,
        rounded_up(tokens_at_once),
        r,
        beside=round(beside),
        least=round(beside + activations),
        free=round(hardware.free_gib * _GIB - runtime),
        pending=(_TUNER_STATE_BYTES - _state_bytes(optim)) * adapter_parameters(model, r, expert_r),
        experts=expert_activation_bytes(model, tokens_at_once, expert_r),
    )
    return round(kept / _GIB, 3)


def _as_stored(model: ModelFacts, in_experts: float) -> float:
    """Bytes of the experts; those of MXFP4 are as large as they were."""
    return model.expert_parameters * model.expert_bits / 8 if model.expert_bits else in_experts


def _state_bytes(optim: str) -> int:
    """Of a weight of the adapter."""
    return 2 if "8bit" in optim else 8


def host_gib(model: ModelFacts) -> float:
    """Host memory for the packed 4-bit weights of an offloaded base."""
    return model.linear_parameters / 2 / _GIB


def _activation_bytes(
    model: ModelFacts, tokens: int, gradient_checkpointing: bool, *, is_copied: bool
) -> float:
    """Bytes saved for backward, plus one layer's working set, plus one tile of logits.

    The factors fit the peaks of Qwen3-0.6B and 8B shapes at 2,048 and 8,192 tokens with and without
    checkpointing within 8 % (docs/PERFORMANCE.md).
    is_copied: over linears that are not quantized, peft 0.21 gives each of the seven adapters a copy of its input
    (tuners/lora/layer.py, _cast_input_dtype).
    """
    heads = model.num_attention_heads * model.head_dim
    mlp = 0 if model.num_experts else model.intermediate_size  # experts keep their input alone
    state = _STATE_BYTES.get(model.state_carried, 0) * model.hidden_size
    per_layer = 8 * model.hidden_size + 6.2 * mlp + 16 * heads + state
    if is_copied:
        per_layer += 2 * (5 * model.hidden_size + heads + mlp)
    kept = 2 * model.hidden_size if gradient_checkpointing else per_layer
    logits = min(tokens, _TILE_TOKENS) * min(model.vocab_size, _TILE_VOCABULARY) * 2
    return tokens * (kept * model.num_hidden_layers + 0.8 * per_layer) + logits


def _dora_bytes(model: ModelFacts, tokens: int, gradient_checkpointing: bool) -> float:
    """Beside LoRA's activations: outputs of every linear and of its adapter in 16 bits, and five copies of the widest
    weight at work in 32 (peft 0.21, tuners/lora/dora.py; counted in what autograd keeps)."""
    mlp = 0 if model.num_experts else model.intermediate_size
    heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    outputs = heads + 2 * model.hidden_size + 2 * mlp
    layers = 1 if gradient_checkpointing else model.num_hidden_layers
    widest = model.hidden_size * max(mlp, model.num_attention_heads * model.head_dim)
    return _DORA_BYTES_PER_OUTPUT * tokens * outputs * layers + 5 * 4 * widest


def _score_bytes(model: ModelFacts, pairs: int, gradient_checkpointing: bool) -> int:
    """Of a training step."""
    kept = 0 if gradient_checkpointing else _SCORE_BYTES_KEPT * model.num_hidden_layers
    return _scores(model, pairs) * (_SCORE_BYTES_AT_WORK + kept)


def _scores(model: ModelFacts, pairs: int) -> int:
    """Attention scores of a layer, where they are materialized: no fused kernel of torch caps logits."""
    return pairs * model.num_attention_heads if model.eager_attention else 0
