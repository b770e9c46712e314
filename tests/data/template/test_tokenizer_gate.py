"""Tokenizers as transformers makes them pass the gate; what none of them has is refused by name.

Those that are refused are in tests/places/bombs.py too, each with what it would have cost.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import ModelError
from qlora_space.data.template.tokenizer_gate import refuse_unsafe_tokenizer
from tests.places.bombs import Bomb, bombs

FIXTURES = Path(os.environ.get("QLORA_SPACE_FIXTURES", "/nowhere"))
PIECES = [("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0)]
END = ("</s>", 1)


def _families() -> Iterator[tuple[str, Tokenizer]]:
    """The parts of transformers' converters (convert_slow_tokenizer.py) and of tokenizers without one."""
    llama = Tokenizer(models.BPE({"<unk>": 0, "▁a": 1}, [], unk_token="<unk>", byte_fallback=True))
    llama.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    llama.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    llama.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    yield "Llama 2", llama
    gemma = Tokenizer(models.BPE({"<unk>": 0}, [], unk_token="<unk>", byte_fallback=True))
    gemma.normalizer = normalizers.Replace(" ", "▁")
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    yield "Gemma", gemma
    t5 = Tokenizer(models.Unigram(PIECES, 0, False))
    t5.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(_charsmap()),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    t5.pre_tokenizer = pre_tokenizers.Metaspace()
    t5.decoder = decoders.Metaspace()
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[END])
    yield "T5", t5
    albert = Tokenizer(models.Unigram(PIECES, 0, False))
    albert.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    albert.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    yield "ALBERT", albert
    udop = Tokenizer(models.Unigram(PIECES, 0, False))
    udop.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\n\r\t]"), " "),
            normalizers.NFKC(),
            normalizers.Replace(Regex(r" +▁"), "▁"),
            normalizers.Replace(Regex(r"^▁+$"), ""),
            normalizers.Replace(Regex(r" {2,}"), "▁"),
        ]
    )
    yield "SigLIP", udop
    bert = Tokenizer(
        models.WordPiece({"[UNK]": 0}, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    bert.decoder = decoders.WordPiece()
    yield "BERT", bert
    clip = Tokenizer(models.BPE({"a": 0}, [], end_of_word_suffix="</w>", unk_token="a"))
    clip.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    clip.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    clip.post_processor = processors.RobertaProcessing(("b", 1), ("a", 0))
    clip.decoder = decoders.BPEDecoder("</w>")
    yield "CLIP", clip
    deepseek = Tokenizer(models.BPE({"a": 0}, []))
    deepseek.normalizer = normalizers.Sequence([])
    deepseek.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex("[\u4e00-\u9fa5]+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    deepseek.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="a $A", special_tokens=[("a", 0)]),
        ]
    )
    deepseek.decoder = decoders.ByteLevel()
    yield "DeepSeek, Falcon, Llama 3", deepseek


def _charsmap() -> bytes:
    """A map of sentencepiece's with nothing in it but one text."""
    return (1024).to_bytes(4, "little") + bytes(1024) + "ﷺ→صلى الله عليه وسلم\0".encode()


@pytest.mark.parametrize(("name", "tokenizer"), list(_families()))
def test_tokenizers_of_real_families_pass(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.add_special_tokens(["<|im_start|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    refuse_unsafe_tokenizer(tmp_path)


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("tokenizers/*/tokenizer.json")))
def test_real_tokenizers_pass(file: Path) -> None:
    refuse_unsafe_tokenizer(file.parent)


def _cases() -> list[Any]:
    return [pytest.param(b, id=b.name, marks=[pytest.mark.slow] * b.is_costly) for b in bombs()]


@pytest.mark.parametrize("bomb", _cases())
def test_what_rust_would_choke_on_never_reaches_it(bomb: Bomb, tmp_path: Path) -> None:
    """Of the bombs that are tokenizers: the gate alone tells them, without a limit of the kernel."""
    base = bomb.base(tmp_path)
    same = all(
        (base / name).read_bytes() == (BASE_FOLDER / name).read_bytes()
        for name in ("tokenizer.json", "tokenizer_config.json")
    )
    if same or bomb.name == "slow expression":
        pytest.skip("is no tokenizer, or one that only its time tells from others")
    with pytest.raises(ModelError, match="is not read: "):
        refuse_unsafe_tokenizer(base)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"type": "Neural", "vocab": {}}}, "of the kind 'Neural'"),
        ({"model": None}, "has no model"),
        ({"extra": 1}, "a part 'extra'"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "of the kind 'FixedLength'"),
        ({"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 99}}, "16 times"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 2**40}}}, "no number below 2^31"),
        ({"model": {"type": "Unigram", "vocab": [["a" * 5000, 0.0]]}}, "5,000 characters in a token"),
        ({"padding": {"strategy": {"Fixed": 10**12}}, "truncation": {"max_length": 10**12}}, "2^31"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [1] * 9999}}, "in TemplateProcessing"),
    ],
)  # fmt: skip
def test_each_part_has_its_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    tokenizer = json.loads((BASE_FOLDER / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | change))
    with pytest.raises(ModelError) as caught:
        refuse_unsafe_tokenizer(tmp_path)
    assert words in str(caught.value)
    assert "tokenizer.json" in str(caught.value)
