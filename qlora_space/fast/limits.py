"""What the fast step can take. No torch here: a planner reads these figures before any GPU is started."""

# Values of `config.model_type` whose losses and gradients the tests compare with peft's (tests/fast/test_model.py).
MODEL_TYPES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "qwen3_moe", "mixtral"}
)
# Of one linear: kernels hold the adapters of gate and up side by side.
LARGEST_RANK = 64
# Tokens that the MLP takes at once under ActivationPolicy.OFFLOAD, which trades 0.6 % of its speed for memory
# (docs/PERFORMANCE.md).
OFFLOAD_TILE_TOKENS = 4096


class Unsupported(Exception):
    """Why the plain step is used, worded as the end of a sentence: "The plain path is used: ..."."""
