"""How long a run takes. Pure arithmetic: operations over the rate that such a device reaches in practice."""

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.plan.low_bit import HEAL_STEPS, HEAL_TOKENS

# Dense bf16 TFLOP/s by the vendors' datasheets; fp16 for T4 and V100. Matched by substring, first hit.
_DATASHEET_TFLOPS = (
    ("H200", 989),
    ("H100", 989),
    ("B200", 2250),
    ("A100", 312),
    ("L40S", 362),
    ("L4", 121),
    ("A10", 125),
    ("RTX PRO 6000", 500),
    ("5090", 210),
    ("4090", 165),
    ("3090", 71),
    ("T4", 65),
    ("V100", 112),
)
_UNKNOWN_GPU_TFLOPS = 60
# The share of the datasheet that a transformers + peft + bitsandbytes + trl step reaches, and how long it waits for the
# CPU between kernels, both fitted to an H200 (docs/PERFORMANCE.md).
_GPU_EFFICIENCY = 0.5
_CPU_TFLOPS_PER_CORE = 0.03
_LAUNCH_SECONDS_PER_LAYER = {"cuda": 0.0095, "cpu": 0.004}
# Of a pass without gradients; on a GPU fitted to the evaluations of a 9B on an H100 (docs/LOG.md).
_FORWARD_LAUNCH_SECONDS_PER_LAYER = {"cuda": 0.0027, "cpu": 0.002}
# A captured pass of one token for each of 32 rows: 9.5 ms on an 8B and an H200 (docs/LOG.md), of which the layers'
# own share is an estimate.
_DECODE_SECONDS_PER_LAYER, _DECODE_SECONDS_PER_WEIGHT = 0.0001, 7.3e-13
# DoRA writes and reads every adapted weight about eight times in 32 bits in a pass, whatever the tokens: as long as the
# arithmetic of so many more (from memory bandwidth, not fitted).
_DORA_TOKENS = {"cuda": 2000, "cpu": 80}
_SHARED_EFFICIENCY = 0.95  # of several GPUs, which synchronize at every update
_BUS_BYTES_PER_SECOND = 2e10  # PCIe 4 with 16 lanes, in practice
_START_SECONDS = {"cuda": 14, "cpu": 8}  # imports, first kernels

_TOKENIZED_PER_SECOND = 500_000
# Quantizing with covariances and adapter init takes as long as so many forward passes over the calibration text,
# fitted to a 14B shape on an H100 (docs/LOWBIT.md).
_QUANTIZE_PASSES = 10
# Quantizing by the inputs takes as long as so many forward passes in fp32 over as many tokens as a layer has inputs:
# three products for each fit of scales and codes, of which there are three, and GPTQ twice (lowbit/rounding.py).
_ROUNDING_PASSES = 11
_FP32_SHARE = {"cuda": 0.07, "cpu": 1.0}  # of the rate in 16 bits; H200's datasheet
CALIBRATION_TOKENS = {"cpu": 2**15, "cuda": 2**17}
_READ_PER_SECOND = 2e9  # bytes, from a local disk


def seconds_per_step(  # noqa: PLR0913 - each argument is one choice of the plan
    model: ModelFacts,
    hardware: Hardware,
    *,
    tokens: int,
    batches: int,
    gradient_checkpointing: bool,
    is_fast: bool = False,
    num_processes: int = 1,
    cpu_offload: bool = False,
    use_dora: bool = False,
) -> float:
    """Seconds of an optimizer step of `batches` micro-batches with `tokens` tokens on each GPU.

    A frozen base costs 2 P forward and 2 P backward per token, and 2 P more when recomputed.
    """
    passes = 3 if gradient_checkpointing and not is_fast else 2
    head = model.hidden_size * model.vocab_size
    operations = 2 * passes * (model.active_parameters + head) * tokens
    if use_dora:  # also in a pass that is computed again
        builds = 2 if gradient_checkpointing else 1
        operations += 2 * builds * _DORA_TOKENS[hardware.device] * model.linear_parameters
    arithmetic = operations / (_tflops(hardware) * 1e12)
    if cpu_offload:  # 4-bit weights pass the bus twice, at the same time
        arithmetic = max(arithmetic, model.linear_parameters / _BUS_BYTES_PER_SECOND)
    if is_fast:  # its kernels do not wait for the CPU
        return batches * arithmetic / (_SHARED_EFFICIENCY if num_processes > 1 else 1.0)
    launches = model.num_hidden_layers * _LAUNCH_SECONDS_PER_LAYER[hardware.device] * passes / 2
    return batches * max(arithmetic, 0.0) + batches * launches


def preparation_seconds(model: ModelFacts, hardware: Hardware, num_tokens: float) -> float:
    """Seconds of imports, of rendering and tokenizing `num_tokens`, and of reading and quantizing the base."""
    return (
        _START_SECONDS[hardware.device]
        + num_tokens / _TOKENIZED_PER_SECOND
        + model.file_bytes / _READ_PER_SECOND
    )


def low_bit_seconds(
    model: ModelFacts, hardware: Hardware, *, is_healed: bool, calibrated: bool
) -> float:
    """Seconds of quantizing and measuring a base that is not packed here yet, and of healing it."""
    tokens = CALIBRATION_TOKENS[hardware.device]
    operations = 2 * _QUANTIZE_PASSES * model.linear_parameters * tokens
    if calibrated:
        inputs = (model.hidden_size + model.intermediate_size) / 2
        rounding = 2 * _ROUNDING_PASSES * model.linear_parameters * inputs
        operations += rounding / _FP32_SHARE[hardware.device]
    healing = HEAL_STEPS * seconds_per_step(
        model, hardware, tokens=HEAL_TOKENS, batches=1, gradient_checkpointing=False
    )
    return operations / (_tflops(hardware) * 1e12) + (healing if is_healed else 0)


def forward_seconds(
    model: ModelFacts, hardware: Hardware, *, tokens: float, passes: int, cpu_offload: bool = False
) -> float:
    """Seconds of `passes` passes without gradients through the plain model, with `tokens` tokens in all."""
    operations = 2 * (model.active_parameters + model.hidden_size * model.vocab_size) * tokens
    bus = passes * model.linear_parameters / 2 / _BUS_BYTES_PER_SECOND if cpu_offload else 0.0
    a_layer = _FORWARD_LAUNCH_SECONDS_PER_LAYER[hardware.device]
    waiting = passes * model.num_hidden_layers * a_layer
    return max(operations / (_tflops(hardware) * 1e12), bus) + waiting


def decode_seconds(
    model: ModelFacts,
    hardware: Hardware,
    *,
    prompt_tokens: float,
    answer_tokens: float,
    passes: int,
    cpu_offload: bool = False,
) -> float:
    """Seconds of answers with `answer_tokens` tokens in all, in `passes` passes of one token for each row."""
    if hardware.device == "cpu" or cpu_offload:
        tokens = prompt_tokens + answer_tokens
        return forward_seconds(
            model, hardware, tokens=tokens, passes=passes, cpu_offload=cpu_offload
        )
    weights = model.active_parameters * _DECODE_SECONDS_PER_WEIGHT
    a_pass = model.num_hidden_layers * _DECODE_SECONDS_PER_LAYER + weights
    return forward_seconds(model, hardware, tokens=prompt_tokens, passes=1) + passes * a_pass


def _tflops(hardware: Hardware) -> float:
    if hardware.device == "cpu":
        return _CPU_TFLOPS_PER_CORE * hardware.cpu_cores
    known = (tflops for name, tflops in _DATASHEET_TFLOPS if name in hardware.name)
    return next(known, _UNKNOWN_GPU_TFLOPS) * _GPU_EFFICIENCY
