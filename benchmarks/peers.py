"""Plain trl, trl with Liger, Unsloth and the fast path on one machine, each in a process of its own.

    python benchmarks/peers.py --out peers.jsonl --shapes qwen3-8b --unsloth-path FOLDER_WITH_UNSLOTH

Weights are random (benchmarks/random_base.py), so no hub is needed. Raw lines go to --out, a Markdown table to the
screen. A mode that fails or takes longer than --timeout seconds is a line with an error. Peaks leave out paged
optimizer states (the peers'), and hold the fast path's fp32 ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_PEERS = [
    ("trl", "full"), ("liger", "full"), ("liger", "none"), ("unsloth", "full"), ("unsloth", "none"),
]  # fmt: skip


def main() -> None:
    options = _options()
    lines = []
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        for shape in options.shapes:
            folder = Path(home) / shape
            _run([str(_HERE / "random_base.py"), shape, str(folder)], options.timeout)
            for line in _lines_of(shape, folder, options):
                lines.append(line)
                with options.out.open("a") as out:
                    out.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    print(_table(lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", default="/dev/shm", help="for the weights")
    parser.add_argument("--shapes", nargs="+", default=["qwen3-0.6b", "qwen3-8b", "qwen3-14b"])
    parser.add_argument("--rows", nargs="+", default=["4x2048", "1x2048"])
    parser.add_argument("--peers", nargs="*", default=[":".join(p) for p in _PEERS])
    parser.add_argument(
        "--policies", nargs="*", default=["OFFLOAD", "OFFLOAD_QKV", "ALL", "WEIGHTS"]
    )
    parser.add_argument(
        "--unsloth-path", default="", help="put before PYTHONPATH for Unsloth alone"
    )
    parser.add_argument("--timeout", type=int, default=300)
    return parser.parse_args()


def _lines_of(shape: str, folder: Path, options: argparse.Namespace):
    if options.policies:
        command = [str(_HERE / "step.py"), str(folder), "--policies", *options.policies]
        for line in _run([*command, "--rows", *options.rows], options.timeout):
            yield {"shape": shape, "who": f"ours, {line.get('policy')}", **line}
    for peer in options.peers:
        name, recompute = peer.split(":")
        command = [str(_HERE / "peer_step.py"), name, str(folder), "--recompute", recompute]
        extra = options.unsloth_path if name == "unsloth" else ""
        for line in _run([*command, "--rows", *options.rows], options.timeout, extra):
            yield {"shape": shape, "who": f"{name}, recompute {recompute}", **line}


def _run(command: list[str], timeout: int, extra_path: str = "") -> list[dict]:
    """The JSON lines a script prints."""
    paths = [p for p in (extra_path, os.environ.get("PYTHONPATH", "")) if p]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            [sys.executable, *command], env=environment, timeout=timeout, capture_output=True, text=True
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [{"error": f"longer than {timeout} s"}]
    lines = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
    if done.returncode and not lines:
        return [{"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}]
    return lines


def _table(lines: list[dict]) -> str:
    head = "| shape | rows | who | tok/s | peak GiB | first step s |\n|---|---|---|---|---|---|"
    rows = [
        f"| {x['shape']} | {x['rows']} | {x['who']} | {x['tok_s']:,} | {x['peak_gib']} | {x['first_ms'] / 1e3:.1f} |"
        for x in sorted(lines, key=lambda x: (x["shape"], x.get("rows", ""), x.get("tok_s", 0)))
        if "tok_s" in x
    ]
    return "\n".join([head, *rows])


if __name__ == "__main__":
    main()
