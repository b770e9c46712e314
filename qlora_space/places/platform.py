"""ZeroGPU by its own library, which no other module but gpu_functions.py imports, and these two only where a Space has
such hardware: before whatever might touch CUDA, as it demands.
"""

import spaces  # noqa: F401, I001

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from spaces.utils import gradio_request_var
from spaces.zero.config import get_config

from qlora_space.places.lent_gpu import LentGpu


def announce() -> LentGpu:
    """Report to the platform that there are functions for its GPUs, without which it ends a Space: those of
    gpu_functions.py, which the workers import. Returns what it lends."""
    from spaces.zero import client

    client.startup_report()
    config = get_config()
    half = config["xlarge_threshold"]
    return LentGpu(
        name=config["model"],
        num_bytes=min(config["memory"], half) if half else config["memory"],
        capability=(config["sm_major"], config["sm_minor"]),
        factor=config["duration_factor"],
        compiles=_compiles(),
    )


def duration_factor() -> float:
    """How often a second of the lent GPU counts."""
    return get_config()["duration_factor"]


def _compiles() -> bool:
    """Whether Triton finds what its kernels need: a C compiler, and the assembler that comes with it."""
    triton = find_spec("triton")
    folders: Sequence[str] = (triton and triton.submodule_search_locations) or ()
    own = [Path(folder) / "backends" / "nvidia" / "bin" / "ptxas" for folder in folders]
    has_assembler = any(file.is_file() for file in own) or bool(shutil.which("ptxas"))
    compilers = (os.environ.get("CC") or "", "gcc", "clang", "cc")
    return has_assembler and any(shutil.which(name) for name in compilers if name)


def paid_by(gpu_token: str) -> None:
    """Calls that this thread makes from now on are charged to that visitor."""
    headers = _Headers({"x-ip-token": gpu_token, "x-gradio-user": "app"} if gpu_token else {})
    gradio_request_var().set(SimpleNamespace(headers=headers))  # type: ignore[arg-type]


class _Headers(dict[str, str]):
    """With attributes, as those of a request."""
