"""Reading, rendering, masking, proving and packing as a ratio to the bare tokenizer on the same text.

    python benchmarks/tokenize_speed.py
    python benchmarks/tokenize_speed.py --data train.jsonl --tokenizer FOLDER --rounds 3

Both are timed in turns within one run, so that a busy machine slows both. Prints one JSON line; a
ratio of 1 would mean that everything but the tokenizer is free. The `cpu_` figures count the seconds of
the processors, the template's own process among them: they depend less on what else is running.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from qlora_space.core.demo import BASE_FOLDER, TRAIN_FILE
from qlora_space.core.errors import QloraSpaceError
from qlora_space.data import Renderer, load_tokenizer, open_source, pack
from qlora_space.data.corpus import Corpus
from qlora_space.data.template.loss_mask import Tokens
from qlora_space.data.tokenize_rows import detect_format, tokenize_rows

_ROWS_AT_ONCE = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=None, help="default: the demo's rows, 8 times")
    parser.add_argument("--tokenizer", type=Path, default=BASE_FOLDER)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or _repeated(Path(scratch) / "rows.jsonl")
        print(json.dumps(_measure(data, options, Path(scratch))))


def _repeated(file: Path) -> Path:
    file.write_bytes(TRAIN_FILE.read_bytes() * 8)
    return file


def _measure(data: Path, options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    source = open_source(str(data), allow_local=True)
    _, detection = detect_format(source, source.rows(), None, None)
    renderer = Renderer(load_tokenizer(options.tokenizer), detection.format)
    done = list(tokenize_rows(source.rows(), detection, renderer))  # also warms up
    kept = [row.outcome.input_ids for row in done if isinstance(row.outcome, Tokens)]
    backend = renderer.tokenizer.backend_tokenizer
    texts = backend.decode_batch(kept, skip_special_tokens=False)

    def bare(at_once: int = _ROWS_AT_ONCE) -> None:
        for start in range(0, len(texts), at_once):
            batch = backend.encode_batch(texts[start : start + at_once], add_special_tokens=False)
            [encoding.ids for encoding in batch]

    def ours() -> None:
        corpus = Corpus(options.max_length, scratch, "speed")
        for row in tokenize_rows(source.rows(), detection, renderer):
            corpus.add(row)
        corpus.finish()
        pack([corpus.length(index) for index in range(len(corpus))], options.max_length)
        corpus.close()

    rounds = [(_spent(bare), _spent(ours)) for _ in range(options.rounds)]
    return {
        "data": data.name,
        "rows": len(texts),
        "characters": sum(map(len, texts)),
        "tokens": sum(map(len, kept)),
        **_compared("", [(bare[0], ours[0]) for bare, ours in rounds]),
        **_compared("cpu_", [(bare[1], ours[1]) for bare, ours in rounds]),
    }


def _compared(kind: str, rounds: list[tuple[float, float]]) -> dict[str, object]:
    ratios = [bare / ours for bare, ours in rounds]
    return {
        f"{kind}bare_seconds": round(min(bare for bare, _ in rounds), 2),
        f"{kind}our_seconds": round(min(ours for _, ours in rounds), 2),
        f"{kind}ratio": round(statistics.median(ratios), 2),
        f"{kind}ratios": [round(ratio, 2) for ratio in ratios],
    }


def _spent(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processors: this process's and its template child's."""
    started, used = time.monotonic(), _cpu_seconds()
    work()
    return time.monotonic() - started, _cpu_seconds() - used


def _cpu_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _processes())


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children()]


if __name__ == "__main__":
    try:
        main()
    except QloraSpaceError as error:
        raise SystemExit(str(error)) from error
