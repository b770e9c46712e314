"""The environment of child processes."""

import os

# Enough for Python, CUDA and the Hub's client; no token, no cloud credential.
_ALLOWED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "SPACE_ID",  # the source of our code, for model cards
    "SSL_CERT_FILE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
_ALLOWED_PREFIXES = ("QLORA_SPACE_", "TORCH", "TRITON_", "PYTORCH_", "NVIDIA_", "NCCL_", "BNB_")
_HUB_VARIABLES = (
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
)

# Whose GPU it is that a process of ZeroGPU may ask for, and how.
_ZERO_GPU = ("SPACES_ZERO_GPU", "SPACES_ZERO_DEVICE_API_URL", "CC")
_ZERO_GPU_PREFIXES = ("ZEROGPU_", "ZERO_GPU_")


def child_environment() -> dict[str, str]:
    """The variables of an allow-list, which has no secret: tokens go through pipes."""
    names = (*_ALLOWED, *_HUB_VARIABLES)
    environment = {
        k: v for k, v in os.environ.items() if k in names or k.startswith(_ALLOWED_PREFIXES)
    }
    environment |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONUNBUFFERED": "1",
        # Long spinning makes training several times slower on a busy CPU, no spinning twice as slow on an idle one
        # (docs/LOG.md).
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
    }
    return environment


def lent_gpu_environment() -> dict[str, str]:
    """`child_environment` for a process that uses GPUs that ZeroGPU lends."""
    more = {
        name: value
        for name, value in os.environ.items()
        if name in _ZERO_GPU or name.startswith(_ZERO_GPU_PREFIXES)
    }
    return child_environment() | more | {"GRADIO_ANALYTICS_ENABLED": "False"}
