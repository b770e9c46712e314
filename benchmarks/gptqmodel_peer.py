"""One base quantized by gptqmodel, and its EoRA: a process of an environment of its own, see lowbit_peers.py.

    python gptqmodel_peer.py BASE WINDOWS.json OUT --bits 2 --rank 32 [--default]

WINDOWS: a JSON list of lists of token ids. OUT gets quantized/, a checkpoint in GPTQ's format, and eora/, an adapter.
Groups of 64. Asymmetric with a search of ranges by squared error, or --default: as gptqmodel is if nothing is said.
"""

import argparse
import json
import os
from pathlib import Path

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # it stops on two cores otherwise

import torch
from gptqmodel import GPTQModel, QuantizeConfig  # pyright: ignore[reportMissingImports]
from gptqmodel.adapter.adapter import Lora  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--default", action="store_true")
    options = parser.parse_args()
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids)}
        for ids in json.loads(options.windows.read_text())
    ]
    quantized = options.out / "quantized"
    config = QuantizeConfig(bits=options.bits, group_size=64)
    if not options.default:
        config = QuantizeConfig(bits=options.bits, group_size=64, sym=False, mse=2.0)
    model = GPTQModel.load(str(options.base), config, dtype=torch.float32, device="cpu")
    model.quantize(rows, batch_size=4)
    model.save(str(quantized))
    GPTQModel.adapter.generate(
        adapter=Lora(rank=options.rank, path=str(options.out / "eora")),
        model_id_or_path=str(options.base),
        quantized_model_id_or_path=str(quantized),
        calibration_dataset=rows,
        batch_size=4,
        dtype=torch.bfloat16,
        device="cpu",
    )


if __name__ == "__main__":
    main()
