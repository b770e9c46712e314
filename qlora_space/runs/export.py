"""Export an adapter that was initialized as the repair of a low-bit base for the 16-bit base: trained minus init."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from qlora_space.core.errors import RunError
from qlora_space.runs.folder import RunFolder

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LARGEST_DIFFERENCE = 1e-5  # relative, of a product with random inputs, in fp32


def export_for_16_bit(run: RunFolder, folder: Path) -> float:
    """Write the adapter B A - B0 A0 into `folder`, as one of twice the rank and scale 1.

    The init B0 A0 only repairs the low-bit base, which the 16-bit base does not need. Returns the largest relative
    difference between both on random inputs. Raises RunError if the init is gone or they differ.
    """
    if not (run.start_folder / _WEIGHTS).is_file():
        raise RunError("The start of this adapter is gone.", "Publish it for its low-bit base.")
    folder.mkdir(parents=True, exist_ok=True)
    for file in run.adapter_folder.iterdir():
        if file.name not in (_WEIGHTS, _CONFIG, "manifest.json"):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((run.adapter_folder / _CONFIG).read_bytes())
    r = config["r"]
    scale = config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r)
    config |= {"r": 2 * r, "lora_alpha": 2 * r, "use_rslora": False}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2))
    trained = load_file(run.adapter_folder / _WEIGHTS)
    start = load_file(run.start_folder / _WEIGHTS)
    # Experts are not repaired, so theirs start with nothing, and have ranks and scales of their own.
    exported = {name: weight for name, weight in trained.items() if _is_of_experts(name, config)}
    worst = 0.0
    for name in (n for n in trained if ".lora_A." in n and n not in exported):
        other = name.replace(".lora_A.", ".lora_B.")
        a = np.concatenate([trained[name], start[name]])
        b = np.concatenate([scale * trained[other], -scale * start[other]], axis=1)
        exported |= {name: a.astype(np.float32), other: b.astype(np.float32)}
        worst = max(worst, _difference(exported, trained, start, name, other, scale))
    if not worst < _LARGEST_DIFFERENCE:
        raise RunError(
            f"The exported adapter differs from the trained one by {worst:.1e}.",
            "Publish it for its low-bit base.",
        )
    save_file(exported, folder / _WEIGHTS, metadata={"format": "pt"})
    return worst


def _is_of_experts(name: str, config: dict[str, Any]) -> bool:
    parameters = config.get("target_parameters") or ()
    return any(f".{parameter.rpartition('.')[0]}." in name for parameter in parameters)


def _difference(exported, trained, start, a: str, b: str, scale: float) -> float:
    x = np.random.default_rng(0).standard_normal((trained[a].shape[1], 4))
    wanted = scale * (trained[b] @ (trained[a] @ x) - start[b] @ (start[a] @ x))
    got = exported[b].astype(np.float64) @ (exported[a].astype(np.float64) @ x)
    size = float(np.abs(scale * trained[b] @ (trained[a] @ x)).max())
    return float(np.abs(got - wanted).max()) / max(size, 1e-12)
