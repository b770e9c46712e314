"""Peers on the same base, calibration and held-out text: perplexity before and after the same repair.

    python benchmarks/lowbit_peers.py BASE CALIBRATION.jsonl HELDOUT.jsonl [--bits 2 3] [--rank 32]
        [--nf4] [--gptqmodel-python OTHER/bin/python --gptqmodel-folder FOLDER] [--out FILE.json]

HQQ is the package (pip install hqq==0.2.8.post1; DISABLE_CUDA=1 where there is no compiler), data-free as ours. Its
scales and zeros are 16 bits each: at groups of 64 it stores 0.2 bits a weight more than ours.

gptqmodel runs in an environment of its own (pip install torch==2.13.0, then gptqmodel==7.6.0 and optimum): GPTQ, which
goes by the calibration text, and its own EoRA; asymmetric with ranges searched, or as it is if nothing is said
(--gptqmodel searched defaults). What it made is kept in the folder and used again.
"""

import argparse
import copy
import json
import subprocess
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from lowbit_table import figures, nf4, read_windows, say
from safetensors.torch import load_file
from transformers import AutoTokenizer

from qlora_space.lowbit.adapter_init import covariance_root, damped, low_rank_correction
from qlora_space.lowbit.architecture import empty_model
from qlora_space.lowbit.evaluate import ReferenceEvaluator
from qlora_space.lowbit.gptq_format import load_gptq
from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.rounding import Inputs, quantize_by_inputs
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.stream import CalibrationStream
from qlora_space.lowbit.windows import Windows


@dataclass(frozen=True)
class Way:
    name: str
    bits: int
    bits_per_weight: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--heldout-windows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ways", nargs="*", default=["ours", "ours, calibrated", "HQQ"])
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--gptqmodel", nargs="*", default=["searched"], choices=("searched", "defaults")
    )
    parser.add_argument("--gptqmodel-python", type=Path)
    parser.add_argument("--gptqmodel-folder", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    calibration = read_windows(tokenizer, options.calibration, options.windows, options.length)
    held = read_windows(tokenizer, options.heldout, options.heldout_windows, options.length)
    ids = torch.cat([calibration, held])
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), len(calibration))
    model = empty_model(options.base)
    stream = CalibrationStream(model, Shards(options.base), windows, device, torch.float32)
    ways = [Way(n, b, size(n, b)) for b in options.bits for n in options.ways]
    weights: dict[tuple[Way, bool], dict[str, torch.Tensor]] = {}
    for block in stream:
        for inner, linear in block.linears.items():
            c = block.covariances[inner]
            root = covariance_root(c)
            for way in ways:
                q = quantized(way, linear.weight.float(), c)
                a, b = low_rank_correction(linear.weight.float() - q, root, "eora", options.rank)
                name = f"{block.name}.{inner}"
                weights.setdefault((way, False), {})[name] = q.half()
                weights.setdefault((way, True), {})[name] = (q + b @ a).half()
        say(f"{block.name} done")
    for bits, name in product(options.bits, options.gptqmodel) if options.gptqmodel_folder else ():
        way = Way(f"gptqmodel, {name}", bits, bits + (16 + bits) / 64)
        ways.append(way)
        found = gptqmodel_weights(options, bits, calibration, is_default=name == "defaults")
        weights[way, False], weights[way, True] = found
    evaluator = ReferenceEvaluator.on_heldout(windows, stream.hidden_states, model)
    rows = [{"bits": 16, "way": "", "bits_per_weight": 16.0, "before": figures(evaluator, None)}]
    if options.nf4:
        found = figures(evaluator, nf4(options.base, device, torch.float32))
        rows.append({"bits": 4, "way": "NF4", "bits_per_weight": 4.127, "before": found})
        say(rows[-1])
    for way in ways:
        row = {"bits": way.bits, "way": way.name, "bits_per_weight": way.bits_per_weight}
        for name, is_repaired in (("before", False), ("after", True)):
            row[name] = figures(evaluator, filled(model, weights[way, is_repaired]))
        rows.append(row)
        say(row)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))
    say(markdown(rows))


def markdown(rows: list[dict]) -> str:
    lines = [
        "| bits | way | bits per weight | perplexity, KL | after EoRA |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        points = (row.get(name) for name in ("before", "after"))
        cells = " | ".join(
            f"{p['ppl']:.2f}, {p['kl']:.3f} ± {p['kl_interval']:.3f}" if p else "" for p in points
        )
        lines.append(f"| {row['bits']} | {row['way']} | {row['bits_per_weight']:.2f} | {cells} |")
    return "\n".join(lines)


def gptqmodel_weights(
    options: argparse.Namespace, bits: int, calibration: torch.Tensor, *, is_default: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights as it quantized them, and with its own EoRA added; made by another process unless they are there."""
    out = options.gptqmodel_folder / f"{bits}-bit{'-default' if is_default else ''}"
    if not (out / "eora" / "adapter_config.json").is_file():
        out.mkdir(parents=True, exist_ok=True)
        windows = out / "windows.json"
        windows.write_text(json.dumps(calibration.tolist()))
        script = Path(__file__).with_name("gptqmodel_peer.py")
        command = [options.gptqmodel_python, script, options.base, windows, out]
        command += ["--bits", str(bits), "--rank", str(options.rank)]
        command += ["--default"] if is_default else []
        subprocess.run(command, check=True)
    low = load_gptq(out / "quantized", "cpu", torch.float32)
    packed = {n: m.dequantized() for n, m in low.named_modules() if isinstance(m, LowBitLinear)}
    adapter = load_file(out / "eora" / "adapter_model.safetensors")
    part = lambda name, which: adapter[f"base_model.model.{name}.lora_{which}.weight"].float()  # noqa: E731
    return packed, {name: q + part(name, "B") @ part(name, "A") for name, q in packed.items()}


def size(name: str, bits: int) -> float:
    return bits + 32 / 64 if name == "HQQ" else grid_of(bits, 64).bits_per_weight


def quantized(way: Way, weight: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """(m, n) fp32 as that way stores it, in groups of 64."""
    if way.name == "HQQ":
        from hqq.core.quantize import Quantizer

        packed, meta = Quantizer.quantize(
            weight, nbits=way.bits, channel_wise=True, group_size=64, optimize=True, axis=1,
            device=str(weight.device), compute_dtype=torch.float32,
        )  # fmt: skip
        return Quantizer.dequantize(packed, meta).float().view_as(weight)
    grid = grid_of(way.bits, 64)
    if way.name == "ours":
        return quantize(weight, grid).dequantized()
    inputs = Inputs.of(damped(covariance))
    return quantize_by_inputs(weight, inputs=inputs, grid=grid).dequantized()


@torch.no_grad()
def filled(model, weights: dict[str, torch.Tensor]):
    low = copy.deepcopy(model)
    for name, weight in weights.items():
        low.get_submodule(name).weight.copy_(weight)
    return low


if __name__ == "__main__":
    main()
