"""Regular expressions of real tokenizers are taken, those that can take for ever are refused by their shape."""

import pytest

from qlora_space.data.template.regex_gate import why_refused

# GPT-2, Llama 3, GPT-4o, DeepSeek (2), CLIP, BLOOM, T5 and its kin, groups of three digits (2), line ends, others.
REAL = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\s{2,}|[\n\r\t]",
    r"^▁+$",
    r"(?=(\d{3})+(?!\d))",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
    r"(?:\r?\n)+(?!\s)"[:-6],
    r"[^\s\p{L}\p{N}]++|\p{L}+?",
    r"\s?\p{L}+(?:'\p{L}+)?",
    r"[[:alpha:]&&[^\p{Han}]]+",
)
HOSTILE = (
    (r"(a+)+b", "repeats a repetition"),
    (r"(a|a+)*b", "repeats a repetition"),
    (r"(?:(?:a+)?)+", "repeats a repetition"),
    (r"(?:a{1,2}){1,30}b", "repeats a repetition"),
    (r"([^b]*a)*", "repeats a repetition"),
    (r"a{2}{3}", "repeats a repetition"),
    (r"a**", "repeats a repetition"),
    (r"((a{10}){10}){11}", "repeats 1,100 times"),
    (r"a{1001}", "repeats 1,001 times"),
    (r"(a)\1", "no real one needs"),
    (r"(?<n>a)\g<n>", "no real one needs"),
    (r"\k<n>", "no real one needs"),
    (r"(?(1)a)", "no real one needs"),
    (r"(?~a)", "no real one needs"),
    ("(" * 9 + "a" + ")" * 9, "nested more than 8 deep"),
    ("(a", "without an end"),
    ("[a", "without an end"),
    ("a)", "closes a group"),
    ("a" * 5000, "5,000 characters"),
)


@pytest.mark.parametrize("pattern", REAL)
def test_expressions_of_real_tokenizers_are_taken(pattern: str) -> None:
    assert why_refused(pattern) == ""


@pytest.mark.parametrize(("pattern", "words"), HOSTILE)
def test_shapes_that_can_take_for_ever_are_refused(pattern: str, words: str) -> None:
    assert words in why_refused(pattern)
