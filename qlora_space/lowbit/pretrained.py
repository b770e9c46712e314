"""load_quantized() and load_packed(): the base of a published adapter, by the lines of its model card."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel

from qlora_space.core.errors import HubError, ModelError
from qlora_space.lowbit.architecture import GENERATION_CONFIG, default_device, default_dtype
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit

PACKED_FOLDER = "base"  # of an adapter's repository, where its packed base was published along
_FILES = ("config.json", GENERATION_CONFIG, "model*.safetensors", "model.safetensors.index.json")


def load_quantized(
    base: str | Path,
    *,
    bits: int,
    group_size: int = 64,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    token: str | None = None,
) -> PreTrainedModel:
    """A 16-bit base by its Hub id or folder, packed to `bits` as it was in training; peft loads adapters onto it.

    device: by default the GPU where there is one. dtype: of everything that is not packed, by default the fastest of
    the device. token: None is anonymous. Raises ModelError, HubError.
    """
    device = device or default_device()
    folder = _folder_of(base, "", revision, token)
    return pack_base(folder, bits, group_size, device, dtype or default_dtype(device))


def load_packed(
    adapter: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    token: str | None = None,
) -> PreTrainedModel:
    """The packed base that was published with an adapter, by the adapter's Hub id or folder.

    device, dtype, token: as in load_quantized. Raises ModelError, HubError.
    """
    folder = _folder_of(adapter, f"{PACKED_FOLDER}/", revision, token)
    return load_lowbit(folder, device, dtype)


def _folder_of(name: str | Path, inside: str, revision: str | None, token: str | None) -> Path:
    """The folder of a base, `inside` the named folder or repository. Only JSON and safetensors are downloaded."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(str(name), [inside + pattern for pattern in _FILES], revision, token)
    if not (folder / inside / "config.json").is_file():
        raise ModelError(
            f"{name} has no {inside}config.json.", "Load the base as the adapter's card says."
        )
    return folder / inside


def _download(repo: str, patterns: list[str], revision: str | None, token: str | None) -> Path:
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, token=token or False
            )
        )
    except HFValidationError:
        raise ModelError(
            f"{repo[:100]!r} is neither a Hub id nor a folder.", "Write owner/name."
        ) from None
    except OSError as error:  # its own text and its cause hold the request, and with it the token
        raise HubError(
            f"{repo} could not be read from the Hub ({type(error).__name__}).",
            "Check the name, the revision, the network, and the token if it is private or gated.",
        ) from None
