"""Writes qlora_space/plan/measured_bits.py from tables of benchmarks/lowbit_table.py.

python docs/write_measured_bits.py
"""

import json
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parent / "figures"
MODULE = Path(__file__).parents[1] / "qlora_space" / "plan" / "measured_bits.py"
_TABLES = {  # name, family, weights
    "lowbit-table-smollm2-h200-2026-11-30.json": ("SmolLM2-135M-Instruct", "llama", 134_515_008),
    "lowbit-table-gemma3-cpu-2026-12-01.json": ("Gemma 3 270M", "gemma3_text", 268_098_176),
}
_HEAD = '''"""How few bits did on bases that were measured. Written by docs/write_measured_bits.py from docs/figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeasuredWidth:
    """A way to few bits, with the adapter init that the plan chooses for it (rank 32, groups of 64), on held-out text.

    top1: share of the 16-bit base's next words. kl: nats a token to it.
    """

    bits: int
    calibrated: bool
    top1: float
    kl: float


@dataclass(frozen=True)
class MeasuredBase:
    """model_type: that of its family. parameters: all its weights."""

    name: str
    model_type: str
    parameters: int
    widths: tuple[MeasuredWidth, ...]


'''


def main() -> None:
    MODULE.write_text(module())


def module() -> str:
    """The module's text."""
    bases = "".join(f"    {_base(file, *names)},\n" for file, names in _TABLES.items())
    return f"{_HEAD}MEASURED_BASES = (\n{bases})\n"


def _base(file: str, name: str, model_type: str, parameters: int) -> str:
    rows = json.loads((FIGURES / file).read_bytes())
    chosen = [row for row in rows if _is_default(row)]
    widths = "".join(f"            {_width(row)},\n" for row in chosen)
    return (
        f'MeasuredBase(\n        "{name}",\n        "{model_type}",\n        {parameters:_},\n'
        f"        (\n{widths}        ),\n    )"
    )


def _is_default(row: dict[str, Any]) -> bool:
    """NF4, calibrated 4 bits without a repair, calibrated 3 and 2 bits with theirs (plan/low_bit.py)."""
    if row["bits"] == "nf4":
        return True
    init = "zero" if row["bits"] == "4" else "eora"
    return row["way"] == "calibrated" and (row["init"], row.get("of", init)) == (init, init)


def _width(row: dict[str, Any]) -> str:
    bits = 4 if row["bits"] == "nf4" else int(row["bits"])
    return (
        f"MeasuredWidth({bits}, {row['way'] == 'calibrated'}, {row['top1']:.4f}, {row['kl']:.3f})"
    )


if __name__ == "__main__":
    main()
