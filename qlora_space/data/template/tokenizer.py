"""A base's tokenizer, loaded from a local folder without any code of its repository, and its chat template."""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from qlora_space.core.errors import ModelError, first_line
from qlora_space.core.options import Format
from qlora_space.data.template.tokenizer_gate import refuse_unsafe_tokenizer
from qlora_space.hub.model_config import read_json
from qlora_space.hub.text_config import text_of

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
_EMBEDDINGS = "num_embeddings"
_SPARE = re.compile(r"pad|reserved|unused|extra_id", re.IGNORECASE)
# For bases without a chat template; they need no new token.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] | trim + eos_token }}"
    "{% else %}{{ m['content'] | trim + '\\n' }}{% endif %}{% endfor %}"
)
_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + m['content'] | trim + eos_token + '\\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User: ' + m['content'] | trim + '\\n' }}"
    "{% else %}{{ m['content'] | trim + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_PLAIN_FORMATS = (Format.ALPACA, Format.PREFERENCE, Format.KTO, Format.PROMPT_COMPLETION)


def load_tokenizer(folder: Path) -> Any:
    """A fast tokenizer with a pad token. Raises ModelError if there is none to load, or it has parts of no real one."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"The tokenizer of {folder.name} has no tokenizer.json.", "Choose another base."
        )
    refuse_unsafe_tokenizer(folder)
    tokenizer = _read_tokenizer(folder)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.init_kwargs[_EMBEDDINGS] = _embeddings_of(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= num_embeddings(tokenizer):
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def num_embeddings(tokenizer: Any) -> int:
    """Of the base that it came with: ids from there on have none. Very many where that is not known."""
    return getattr(tokenizer, "init_kwargs", {}).get(_EMBEDDINGS) or sys.maxsize


def _embeddings_of(folder: Path) -> int:
    """As config.json beside the tokenizer says; 0 where it does not."""
    file = folder / "config.json"
    try:
        config = text_of(read_json(file)) if file.is_file() else {}
    except ModelError:
        return 0
    stated = config.get("vocab_size")
    return stated if type(stated) is int and stated > 0 else 0


def _read_tokenizer(folder: Path) -> Any:
    # Not AutoTokenizer: that imports torch, and the web process must not.
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    # A broken tokenizer.json makes the Rust reader raise plain Exception.
    except Exception as error:
        raise ModelError(
            f"The tokenizer of {folder.name} cannot be loaded: {first_line(error)}.",
            "Choose a base with an intact tokenizer.json.",
        ) from error


def tokenizer_hash(folder: Path) -> str:
    """sha256 over the files that decide how text becomes tokens."""
    digest = hashlib.sha256()
    for name in _FILES:
        file = folder / name
        if file.is_file():
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def chat_template_of(tokenizer: Any, format: Format = Format.MESSAGES) -> str:
    """The base's own template, else ours for `format`; the one to save with an adapter."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        return template
    own = _PLAIN_TEMPLATE if format in _PLAIN_FORMATS else _CHAT_TEMPLATE
    return ("{{ bos_token }}" if adds_bos(tokenizer) else "") + own


def special_token_texts(tokenizer: Any) -> list[str]:
    """Tokens with a meaning of their own, which no dataset may write into a conversation."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({t.content for t in added if t.special} | set(tokenizer.all_special_tokens))


def added_token_texts(tokenizer: Any) -> list[str]:
    """All tokens that are matched as a whole before the text is split, except whitespace."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return sorted({text for text in added if text.strip()} | set(special_token_texts(tokenizer)))


def adds_bos(tokenizer: Any) -> bool:
    """Whether plain text gets a BOS in front."""
    ids = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _spare_token(tokenizer: Any) -> str:
    """A special token that ends nothing, for padding; EOS only where there is no other."""
    ends = (tokenizer.eos_token, tokenizer.bos_token)
    largest = num_embeddings(tokenizer)
    texts = [
        text
        for text in special_token_texts(tokenizer)
        if text not in ends and tokenizer.convert_tokens_to_ids(text) < largest
    ]
    spare = next((text for text in texts if _SPARE.search(text)), None)
    return spare or tokenizer.unk_token or tokenizer.eos_token or texts[0]
