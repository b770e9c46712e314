"""Bases and datasets that are made to hurt whoever reads them; each with words of the sentence that refuses it.

`python benchmarks/bombs.py` measures all of them.
"""

import base64
import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from qlora_space.core.demo import BASE_FOLDER

Json = dict[str, Any]
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
NESTED_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def zygotes() -> list[psutil.Process]:
    """This process's inspectors; a test's other children, a browser say, are none."""
    found = psutil.Process().children()
    return [process for process in found if "worker inspect" in " ".join(_command(process))]


def inspections() -> list[psutil.Process]:
    return [child for zygote in zygotes() for child in _children(zygote)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


class Watch:
    """The most memory that any process of this one's inspector has, and the CPU time of all, while it is open."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._seconds: dict[int, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(0.02):
            for child in inspections():
                self._look_at(child)

    def _look_at(self, child: psutil.Process) -> None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            self.peak_mib = max(self.peak_mib, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
            self._seconds[child.pid] = sum(child.cpu_times()[:2])
        except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return


@dataclass(frozen=True)
class Bomb:
    """`make` writes it into a copy of the demo's base. `dataset`: it is a file that `make` returns."""

    name: str
    make: Callable[[Path], object]
    sentence: str
    is_costly: bool = False

    def base(self, folder: Path) -> Path:
        base = folder / "base"
        shutil.copytree(BASE_FOLDER, base)
        self.make(base)
        return base


def bombs() -> Iterator[Bomb]:
    yield from _normalizers()
    yield from _added_tokens()
    yield from _expressions()
    yield from _models()
    yield from _numbers()
    yield from _templates()
    yield from _weights()


def edit(base: Path, name: str, **changes: Any) -> None:
    """Replace entries of a JSON file."""
    file = base / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _tokenizer(name: str, sentence: str, is_costly: bool = False, **changes: Any) -> Bomb:
    return Bomb(name, lambda base: edit(base, "tokenizer.json", **changes), sentence, is_costly)


def _sequence(steps: list[Json]) -> Json:
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: Json, content: str) -> Json:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers() -> Iterator[Bomb]:
    doubling = [_replace({"String": "a"}, "aa")] * 16
    yield _tokenizer("16 doublings", "more than 16 times as long", normalizer=_sequence(doubling))
    nothing = [_replace({"Regex": "x?"}, "aa")] * 8
    yield _tokenizer("nothing replaced", "16 times as long", normalizer=_sequence(nothing))
    yield _tokenizer(
        "bytes of bytes", "16 times as long", normalizer=_sequence([{"type": "ByteLevel"}] * 12)
    )
    deep: Json = {"type": "NFC"}
    for _ in range(50):
        deep = _sequence([deep])
    yield _tokenizer("deep normalizer", "nested more than 4 deep", normalizer=deep)
    long = _sequence([{"type": "NFKD"}] * 100_000)
    yield _tokenizer("100,000 normalizers", "100,000 parts in its normalizer", normalizer=long)
    charsmap = base64.b64encode(struct.pack("<I", 1024) + bytes(1024) + b"a" * 500_000).decode()
    mapped = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    yield _tokenizer("charsmap", "500,000 bytes for one character", normalizer=mapped)
    yield _tokenizer("unknown normalizer", "of the kind 'Script'", normalizer={"type": "Script"})
    yield _tokenizer("normalizer without a kind", "of the kind 'None'", normalizer={"prepend": "a"})
    yield _tokenizer(
        "long prefix", "Prepend's prepend", normalizer={"type": "Prepend", "prepend": "a" * 9999}
    )


def _added_tokens() -> Iterator[Bomb]:
    def many(number: int) -> list[Json]:
        return [
            TOKEN | {"id": 5000 + i, "content": f"<{i}>", "special": True} for i in range(number)
        ]

    yield _tokenizer("200,000 added tokens", "200,000 added tokens", added_tokens=many(200_000))
    yield _tokenizer(
        "long added token", "content", added_tokens=[TOKEN | {"id": 1, "content": "a" * 2**20}]
    )
    decoder = {str(t["id"]): t for t in many(100_000)}
    yield Bomb(
        "100,000 in its settings",
        lambda base: edit(base, "tokenizer_config.json", added_tokens_decoder=decoder),
        "entries in 'added_tokens_decoder'",
    )


def _expressions() -> Iterator[Bomb]:
    def split(expression: str) -> Json:
        pattern = {"Regex": expression}
        return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    for expression, sentence in (
        ("(a+)+b", "repeats a repetition"),
        ("((a{1,100}){1,100}){1,100}b", "repeats a repetition"),
        (r"(\w)\1", "which no real one needs"),
        ("a|" * 4000, "8,000 characters long"),
    ):
        yield _tokenizer(f"expression {expression[:20]}", sentence, pre_tokenizer=split(expression))
    # Its shape is that of honest ones, but it takes the cube of a text's length.
    cube = r"[\s\S]*[\s\S]*[\s\S]*e(?<=x)"
    yield _tokenizer("slow expression", "more computing", is_costly=True, pre_tokenizer=split(cube))


def _models() -> Iterator[Bomb]:
    def twice(base: Path) -> None:
        text = (base / "tokenizer.json").read_text()
        second = json.dumps(_sequence([_replace({"String": "a"}, "aa")] * 16))
        (base / "tokenizer.json").write_text(text.rstrip()[:-1] + f', "normalizer": {second}}}')

    yield Bomb("two normalizers", twice, "two entries named 'normalizer'")
    words = {f"t{i}": i for i in range(1_200_000)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "t0"}
    yield _tokenizer("1,200,000 tokens", "1,200,000 tokens", is_costly=True, model=model)
    lists = b'{"model": {"vocab": [' + b"[]," * 20_000_000 + b"[]]}}"
    yield Bomb(
        "20 million lists",
        lambda base: (base / "tokenizer.json").write_bytes(lists),
        "20,000,00. lists and objects",
        is_costly=True,
    )
    yield Bomb(
        "70 MB of tokenizer",
        lambda base: (base / "tokenizer.json").write_bytes(b" " * 70_000_000),
        "70,000,000 bytes",
    )


def _numbers() -> Iterator[Bomb]:
    for change, sentence in (
        ({"vocab_size": 10**12}, "vocab_size 1,000,000,000,000"),
        ({"vocab_size": 2**30}, "weights cannot hold"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1,000,000"),
        ({"hidden_size": 10**39}, "hidden_size"),
    ):
        ((field, value),) = change.items()
        yield Bomb(
            f"{field} {value:.0e}", lambda base, c=change: edit(base, "config.json", **c), sentence
        )
    digits = '{"vocab_size": ' + "9" * 400 + "}"
    deep = '{"a": ' * 600 + "1" + "}" * 600
    for name, text, sentence in (
        ("400 digits", digits, "a number of 400 digits"),
        ("600 deep", deep, "nested more than 32 deep"),
        ("100,000 deep", '{"a": ' * 100_000, "nested too deeply"),
    ):
        yield Bomb(
            name,
            lambda base, t=text: (base / "config.json").write_text(t),
            f"config.json.*{sentence}",
        )


def _templates() -> Iterator[Bomb]:
    def template(text: str) -> Callable[[Path], object]:
        return lambda base: (base / "chat_template.jinja").write_text(text)

    yield Bomb("template that loops", template(NESTED_LOOP), "more than 2 seconds")
    yield Bomb("template that grows", template("{{ 'a' * 2000000000 }}"), "more than 512 MiB")
    yield Bomb("2 MB of template", template("a" * 2_000_000), "2,000,000 bytes")


def _weights() -> Iterator[Bomb]:
    def many_tensors(base: Path) -> None:
        header = {
            f"l.{i}.weight": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
            for i in range(100_000)
        }
        content = json.dumps(header).encode()
        weights = struct.pack("<Q", len(content)) + content + bytes(100_000)
        (base / "model.safetensors").write_bytes(weights)

    yield Bomb("100,000 tensors", many_tensors, "100,000 tensors")
