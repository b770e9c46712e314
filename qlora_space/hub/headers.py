"""Names, types and shapes of the tensors in safetensors files, without reading one of them.

Local headers are read by safetensors, which refuses what is damaged, larger than 100 MB, or does not fit the size of
the file. Those on the Hub are fetched as bytes and looked at before they are parsed: they are a stranger's. Which
tensors are the weights of linear layers, and how many weights a packed one holds, is found here too.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from safetensors import SafetensorError, safe_open

from qlora_space.core.bounded_json import Unreadable, parse_json
from qlora_space.core.errors import ModelError
from qlora_space.core.facts import LinearFacts
from qlora_space.core.targets import name_behind_layer
from qlora_space.hub.expert_tensors import Experts, experts_of, taken_for_expert

MAX_TENSORS = 50_000  # of one file; DeepSeek-V3 has 91,000 in 163 files
_MAX_HEADER_BYTES = 25_000_000  # as huggingface_hub has it
_FIRST_BYTES = 100_000  # holds nearly all headers whole
_MAX_DIMENSIONS, _MAX_DIMENSION, _MAX_WEIGHTS = 8, 2**31, 2**48
_LENGTH_BYTES = 8
_LAYER_NUMBER = re.compile(r"(^|\.)(\d+)\.")
_MAX_LAYERS = 2**31
_MOST_NAMES, _NAME = 64, re.compile(r"[A-Za-z0-9_.]{1,80}")  # of the linear layers of a model
_FOR_ALL_LAYERS = "per_layer_model_projection."
_TEXT_PART = "language_model."
_BESIDE_TEXT = re.compile(
    r"(^|\.)(visual|vision_\w+|audio_\w+|embed_vision|embed_audio|multi_modal_projector|mtp)\."
)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; `dtype` as safetensors names it, for example 'BF16'."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer inside a numbered decoder layer, or Gemma's one for all layers."""
        in_layer = _LAYER_NUMBER.search(self.name) is not None or _FOR_ALL_LAYERS in self.name
        is_weight = self.name.endswith(".weight") and len(self.shape) == 2
        name = self.name.replace("altup_unembed_projections", "")
        is_wide = any(part in name for part in ("embed", "lm_head", ".altup."))
        return in_layer and is_weight and not is_wide


def read_tensors(file: Path) -> tuple[Tensor, ...]:
    """The tensors in the order of their bytes, which fill the file to its end without a gap.

    Raises ModelError if the file is not safetensors, or not whole.
    """
    try:
        with safe_open(file, framework="np") as opened:
            _refuse_many(len(opened.keys()))
            slices = ((name, opened.get_slice(name)) for name in opened.offset_keys())
            return tuple(Tensor(n, s.get_dtype(), tuple(s.get_shape())) for n, s in slices)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file.name} is damaged: {error}.", "Get the file again.") from None
    except Unreadable as error:
        raise ModelError(f"{file.name} {error}.", "Choose another model.") from None


def read_remote_tensors(api: HfApi, repo: str, sha: str, name: str) -> tuple[Tensor, ...]:
    """The tensors of a file on the Hub. Raises ModelError if its header is damaged, or larger than any real one."""
    try:
        first = _fetch(api, repo, sha, name, 0, _FIRST_BYTES)
        length = int.from_bytes(first[:_LENGTH_BYTES], "little")
        if length > _MAX_HEADER_BYTES:
            raise Unreadable(f"has a header of {length:,} bytes")
        end = _LENGTH_BYTES + length
        more = _fetch(api, repo, sha, name, len(first), end) if end > len(first) else b""
        return parse_header((first + more)[_LENGTH_BYTES:end])
    except Unreadable as error:
        raise ModelError(f"{name} of {repo} {error}.", "Choose another model.") from None


def _fetch(api: HfApi, repo: str, sha: str, name: str, start: int, end: int) -> bytes:
    """Bytes of a file from `start` to before `end`."""
    url = hf_hub_url(repo, name, revision=sha, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token) | {"range": f"bytes={start}-{end - 1}"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        received = bytearray()
        for piece in response.iter_bytes():
            received += piece
            if len(received) >= end - start:  # whoever does not know ranges sends the whole file
                break
    return bytes(received[: end - start])


def parse_header(header: bytes) -> tuple[Tensor, ...]:
    """Raises Unreadable."""
    _refuse_many(header.count(b'"dtype"'))
    entries = parse_json(header, max_depth=4)
    if not isinstance(entries, dict):
        raise Unreadable("is damaged")
    return tuple(_tensor(n, entry) for n, entry in entries.items() if n != "__metadata__")


def _tensor(name: str, entry: Any) -> Tensor:
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else ("", 0)
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise Unreadable(f"has a tensor {name[:60]!r} without a shape")
    if not all(type(n) is int and 0 <= n < _MAX_DIMENSION for n in shape):
        raise Unreadable(f"has a tensor {name[:60]!r} without a shape")
    tensor = Tensor(name, str(dtype), tuple(shape))
    if tensor.size > _MAX_WEIGHTS:
        raise Unreadable(f"has a tensor {name[:60]!r} of more weights than any model")
    return tensor


def _refuse_many(tensors: int) -> None:
    if tensors > MAX_TENSORS:
        raise Unreadable(f"has {tensors:,} tensors, more than the {MAX_TENSORS:,} of any real one")


@dataclass(frozen=True)
class WeightCount:
    """How many weights of the text model there are, and how many of them are quantized in training.

    linear_parameters: those of experts included. linear_sides: inputs and outputs of the layers that are adapted, but
    experts: weights of an adapter of rank 1; linears: these by name, () where there are more names than real ones have.
    left_out: weights that text does not need, of towers for images and sound, and of heads for later tokens.
    """

    parameters: int
    linear_parameters: int
    linear_sides: int
    linears: tuple[LinearFacts, ...]
    left_out: int
    has_head: bool
    experts: Experts


def count_weights(
    tensors: tuple[Tensor, ...], num_layers: int = _MAX_LAYERS, model_type: str = ""
) -> WeightCount:
    """Sums over all files of a checkpoint, packed weights as hub/storage.py has them. `num_layers`: of the text model;
    checkpoints may have more, which predict later tokens. model_type: as config.json states it."""
    counted = text_tensors(tensors, num_layers)
    experts = experts_of(counted)
    others = tuple(t for t in counted if t.name not in experts.names)
    linears = tuple(t for t in _linears(others) if t.name not in experts.routers)
    by_name = _by_name(t for t in linears if not taken_for_expert(t.name, model_type))
    return WeightCount(
        linears=by_name if _are_usual(by_name) else (),
        parameters=sum(t.size for t in others) + experts.parameters,
        linear_parameters=sum(t.size for t in linears) + experts.parameters,
        linear_sides=sum(one.sides for one in by_name),
        left_out=sum(t.size for t in tensors) - sum(t.size for t in counted),
        has_head=any(t.name.endswith("lm_head.weight") for t in counted),
        experts=experts,
    )


def _by_name(linears: Iterable[Tensor]) -> tuple[LinearFacts, ...]:
    """What is adapted; () where a packed weight does not say its shape."""
    sides: dict[str, int] = defaultdict(int)
    for tensor in linears:
        if tensor.shape[1] == 1:
            return ()
        sides[name_behind_layer(tensor.name.removesuffix(".weight"))] += sum(tensor.shape)
    return tuple(LinearFacts(name=name, sides=size) for name, size in sides.items())


def _are_usual(linears: tuple[LinearFacts, ...]) -> bool:
    return len(linears) <= _MOST_NAMES and all(_NAME.fullmatch(one.name) for one in linears)


def text_tensors(tensors: tuple[Tensor, ...], num_layers: int) -> tuple[Tensor, ...]:
    """Without towers, and without layers beyond the last one."""
    has_text_part = any(_TEXT_PART in t.name for t in tensors)
    return tuple(
        t
        for t in tensors
        if (not has_text_part or _TEXT_PART in t.name or t.name.endswith("lm_head.weight"))
        and not _BESIDE_TEXT.search(t.name)
        and _layer_of(t.name) < num_layers
    )


def _layer_of(name: str) -> int:
    found = _LAYER_NUMBER.search(name)
    return int(found[2]) if found else -1


def _linears(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """But for `out_proj` of Mamba's blocks, whose kernels read its weight past the layer (lowbit/text_model.py)."""
    owners = {suffix: {t.name[: -len(suffix)] for t in tensors if t.name.endswith(suffix)}
              for suffix in (".A_log", ".D")}  # fmt: skip
    mamba = {f"{name}.out_proj.weight" for name in owners[".A_log"] & owners[".D"]}
    return tuple(t for t in tensors if t.is_linear and t.name not in mamba)
