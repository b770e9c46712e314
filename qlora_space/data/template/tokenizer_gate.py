"""What a tokenizer's files may hold: looked at before a library in Rust reads them, which builds what they ask for.

The parts and sizes are those of real tokenizers (transformers' converters make all of these). A part that grows the
text can grow it once more at the next one, a regular expression can take longer than the universe has: both are
refused by name. What is left costs as much as its size, and has its limits of time and memory in the inspector.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_space.core.bounded_json import Unreadable, is_deeper_than, parse_shallow_json
from qlora_space.core.errors import ModelError
from qlora_space.data.template.regex_gate import why_refused

_MIB = 2**20
_FILE = "tokenizer.json"
MAX_BYTES = 64 * _MIB  # Gemma 3's has 33 MB
MAX_ADDED_TOKENS = 40_000  # Emu3 has 32,768 for pictures, Gemma 3 has 6,415
_OTHER_FILES = {  # with their largest size
    "tokenizer_config.json": 16 * _MIB,
    "special_tokens_map.json": _MIB,
    "added_tokens.json": 4 * _MIB,
    "chat_template.json": _MIB,
    "chat_template.jinja": _MIB,
}
_MAX_VOCABULARY = 2**20  # XLM-V has 901,629
_MAX_MERGES = 2**21
_MAX_TOKEN_CHARS = 1024
_MAX_TEMPLATE_CHARS = _MIB
_MAX_ID = 2**31
_MAX_STEPS, _MAX_DEPTH = 32, 4
_MAX_TEXT, _MAX_PREPENDED = 256, 16
_MAX_NODES = 4096  # of a part's own lists: the templates of a post-processor
_MAX_GROWTH = 16  # of a text on its way through all parts; Replace and ByteLevel of real ones make it 8 at most
_MAX_CHARSMAP_BYTES = _MIB  # XLM-R's has 316 kB
_MAX_CHARSMAP_TEXT = 128  # bytes for one character; the longest of NFKC has 33
_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel", None)  # GPT-2's own file does not say BPE
_MAX_WORD_CHARS = 1000  # WordPiece takes the square of it
_NORMALIZERS = """NFC NFD NFKC NFKD Nmt Lowercase Strip StripAccents Replace Prepend Precompiled ByteLevel
    BertNormalizer"""
_PRE_TOKENIZERS = """BertPreTokenizer ByteLevel CharDelimiterSplit Digits Metaspace Punctuation Split UnicodeScripts
    Whitespace WhitespaceSplit"""
_POST_PROCESSORS = "BertProcessing ByteLevel RobertaProcessing TemplateProcessing"
_DECODERS = "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Strip WordPiece"
# Key in tokenizer.json: the key of a sequence's parts, and the kinds that there are besides.
_PARTS = {
    "normalizer": ("normalizers", _NORMALIZERS.split()),
    "pre_tokenizer": ("pretokenizers", _PRE_TOKENIZERS.split()),
    "post_processor": ("processors", _POST_PROCESSORS.split()),
    "decoder": ("decoders", _DECODERS.split()),
}
_KEYS = {"version", "truncation", "padding", "added_tokens", "model", *_PARTS}

JsonObject = dict[str, Any]


class _Refused(Exception):
    """What is wrong: the end of a sentence that begins with the file's name."""


def refuse_unsafe_tokenizer(folder: Path) -> None:
    """Raises ModelError that names the part of a tokenizer that no real one has."""
    for name, max_bytes in _OTHER_FILES.items():
        if (folder / name).is_file():
            _checked(folder, name, max_bytes, _check_settings)
    _checked(folder, _FILE, MAX_BYTES, _check_tokenizer)


def _checked(folder: Path, name: str, max_bytes: int, check: Any) -> None:
    file = folder / name
    try:
        size = file.stat().st_size
        if size > max_bytes:
            raise _Refused(f"has {size:,} bytes, more than the {max_bytes:,} of any real one")
        if name.endswith(".json"):
            check(parse_shallow_json(file.read_bytes()))
    except (_Refused, Unreadable) as error:
        raise ModelError(
            f"The tokenizer of {folder.name} is not read: {name} {error}.", "Choose another base."
        ) from None


def _check_settings(settings: Any) -> None:
    """tokenizer_config.json and the like: only small lists, and templates of a length that a person writes."""
    if is_deeper_than(settings, 8):
        raise _Refused("is nested more than 8 deep")
    for name, value in settings.items() if isinstance(settings, dict) else ():
        _check_amount(f"entries in {name[:40]!r}", _length(value), MAX_ADDED_TOKENS)
        for text in _texts(value):
            _check_amount(f"characters in {name[:40]!r}", len(text), _MAX_TEMPLATE_CHARS)


def _check_tokenizer(tokenizer: Any) -> None:
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model"), dict):
        raise _Refused("has no model")
    if unknown := tokenizer.keys() - _KEYS:
        raise _Refused(f"has a part {min(unknown)[:40]!r}, which is not known here")
    _check_model(tokenizer["model"])
    _check_added(tokenizer.get("added_tokens"))
    for name in ("truncation", "padding"):
        _check_scalars(name, tokenizer.get(name) or {})
    steps = {name: list(_steps(name, tokenizer.get(name))) for name in _PARTS}
    for name, found in steps.items():
        _check_amount(f"parts in its {name}", len(found), _MAX_STEPS)
        for step in found:
            _check_step(name, step)
    _check_growth([*steps["normalizer"], *steps["pre_tokenizer"]])
    _check_growth(steps["decoder"])


def _check_model(model: JsonObject) -> None:
    kind = model.get("type")
    if kind not in _MODELS:
        raise _Refused(f"has a model of the kind {str(kind)[:40]!r}, which is not known here")
    vocabulary, merges = model.get("vocab"), model.get("merges") or []
    _check_scalars("model", {k: v for k, v in model.items() if k not in ("vocab", "merges")})
    if model.get("max_input_chars_per_word") not in (None, *range(_MAX_WORD_CHARS + 1)):
        raise _Refused(f"has words of more than {_MAX_WORD_CHARS:,} characters")
    if not isinstance(vocabulary, dict | list) or not isinstance(merges, list):
        raise _Refused("has no vocabulary")
    _check_amount("tokens", len(vocabulary), _MAX_VOCABULARY)
    _check_amount("merges", len(merges), _MAX_MERGES)
    if isinstance(vocabulary, dict):
        _check_ids(vocabulary.values())
    _check_token_lengths(_tokens(vocabulary))
    for pair in merges:
        if not (isinstance(pair, str) or (isinstance(pair, list) and len(pair) == 2)):
            raise _Refused("has a merge that is not one of two tokens")


def _tokens(vocabulary: Any) -> Iterator[str]:
    """Of a dict of ids, or of Unigram's pairs of token and score."""
    if isinstance(vocabulary, dict):
        yield from vocabulary
        return
    for pair in vocabulary:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise _Refused("has a token without a score")
        yield pair[0]


def _check_ids(ids: Any) -> None:
    if not all(type(number) is int and 0 <= number < _MAX_ID for number in ids):
        raise _Refused("has a token whose id is no number below 2^31")


def _check_token_lengths(tokens: Iterator[str]) -> None:
    _check_amount("characters in a token", max(map(len, tokens), default=0), _MAX_TOKEN_CHARS)


def _check_added(tokens: Any) -> None:
    if not isinstance(tokens, list | None):
        raise _Refused("has added tokens that are no list")
    _check_amount("added tokens", len(tokens or ()), MAX_ADDED_TOKENS)
    for token in tokens or ():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise _Refused("has an added token without its text")
        _check_scalars("added token", token, _MAX_TOKEN_CHARS)
    _check_ids(token.get("id") for token in tokens or ())


def _steps(name: str, part: Any, depth: int = 0) -> Iterator[JsonObject]:
    """The parts of a sequence in their order, sequences within it too."""
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else None
    inner_key, kinds = _PARTS[name]
    if kind == "Sequence" and depth < _MAX_DEPTH:
        inner = part.get(inner_key)
        _check_amount(f"parts in its {name}", _length(inner), _MAX_STEPS)
        if part.keys() != {"type", inner_key} or not isinstance(inner, list):
            raise _Refused(f"has a {name} whose sequence is none")
        for step in inner:
            yield from _steps(name, step, depth + 1)
    elif kind in kinds:
        yield part
    elif kind == "Sequence":
        raise _Refused(f"has a {name} nested more than {_MAX_DEPTH} deep")
    else:
        raise _Refused(f"has a {name} of the kind {str(kind)[:40]!r}, which no real one needs")


def _check_step(name: str, step: JsonObject) -> None:
    kind = step["type"]
    own = {"pattern", "precompiled_charsmap"} if kind != "TemplateProcessing" else {*step}
    if name == "post_processor":
        _check_amount(f"values in {kind}", _num_nodes(step), _MAX_NODES)
        return
    _check_scalars(kind, {key: value for key, value in step.items() if key not in own})
    if "pattern" in step:
        _check_pattern(kind, step["pattern"])
    if "precompiled_charsmap" in step:
        _check_charsmap(step["precompiled_charsmap"])
    _check_amount("characters that Prepend writes", _length(step.get("prepend")), _MAX_PREPENDED)


def _check_pattern(kind: str, pattern: Any) -> None:
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise _Refused(f"has a {kind} without a pattern")
    ((way, text),) = pattern.items()
    if way not in ("String", "Regex") or not isinstance(text, str) or not text:
        raise _Refused(f"has a {kind} without a pattern")
    if way == "String":
        _check_amount(f"characters in the pattern of {kind}", len(text), _MAX_TEXT)
    elif why := why_refused(text):
        raise _Refused(f"has a regular expression in {kind} that {why}: {text[:60]!r}")


def _check_charsmap(charsmap: Any) -> None:
    """sentencepiece's: the size of a trie, the trie, and the texts that it points at, each with a NUL at its end."""
    if charsmap is None:
        return
    try:
        content = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _Refused("has a Precompiled normalizer that is not base64") from None
    _check_amount("bytes in its Precompiled normalizer", len(content), _MAX_CHARSMAP_BYTES)
    trie_bytes = int.from_bytes(content[:4], "little")
    if trie_bytes % 4 or 4 + trie_bytes > len(content):
        raise _Refused("has a Precompiled normalizer that is damaged")
    longest = max(map(len, content[4 + trie_bytes :].split(b"\0")))
    _check_amount("bytes for one character in Precompiled", longest, _MAX_CHARSMAP_TEXT)


def _check_growth(steps: list[JsonObject]) -> None:
    growth = 1.0
    for step in steps:
        growth *= _growth(step)
        if growth > _MAX_GROWTH:
            raise _Refused(
                f"makes a text more than {_MAX_GROWTH} times as long, the last time by {step['type']}"
            )


def _growth(step: JsonObject) -> float:
    """How much longer a part may make a text."""
    if step["type"] == "ByteLevel":
        return 2.0  # a letter for each byte, and most of them have two bytes
    if step["type"] != "Replace":
        return 1.0
    ((way, pattern),) = step["pattern"].items()
    content = len(str(step.get("content", "")))
    # An expression may match nothing, between any two characters.
    return 1.0 + content if way == "Regex" else max(1.0, content / len(pattern))


def _check_scalars(name: str, values: Any, max_chars: int = _MAX_TEXT) -> None:
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, str):
            _check_amount(f"characters in {name}'s {key[:40]}", len(value), max_chars)
        elif isinstance(value, int) and abs(value) > _MAX_ID:
            raise _Refused(f"has a number in {name}'s {key[:40]} above 2^31")
        elif isinstance(value, dict | list) and _num_nodes(value) > _MAX_STEPS:
            raise _Refused(f"has a long list in {name}'s {key[:40]}")


def _check_amount(what: str, amount: int, most: int) -> None:
    if amount > most:
        raise _Refused(f"has {amount:,} {what}, more than the {most:,} of any real one")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | dict) else 0


def _num_nodes(value: Any) -> int:
    """Of a value that is not deep: values in it, and characters of its texts by 256."""
    if isinstance(value, str):
        return 1 + len(value) // _MAX_TEXT
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + sum(map(_num_nodes, inner))
    return 1


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
