"""Which families of bases train: writes docs/BASES.md from tiny checkpoints of transformers' own classes.

    python benchmarks/bases.py             on a CPU, about fifteen minutes
    python benchmarks/bases.py gemma3 opt  prints the rows of some families

Each is planned, loaded, trained for two steps, evaluated, compared, saved, and loaded again by the code of its card,
at 4 bits and at 3 (tests/base_trial.py).
"""

import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import transformers

from tests.base_trial import STAGES, Trial, try_base
from tests.experts import tiny_mixtures
from tests.tiny_families import FAMILIES, MIXTURES, build

PAGE = Path(__file__).parents[1] / "docs" / "BASES.md"
PLANS = "<!-- plans:"  # what follows is written by base_plans.py
_HEAD = """# Bases

Written by `benchmarks/bases.py` on transformers {version}: what happens to a tiny random checkpoint of each family,
made of the same class as the real one. *trains*: planned, loaded as planned, trained for two steps, evaluated, compared
beside its base, saved, and loaded again by the code of its card with the same logits. All else is a sentence before
Start.

What a plan says of a base, and does about it:

- **Text inside of another model** (`...ForConditionalGeneration`): the text trains; towers for images and sound are
  not loaded, not adapted, not counted. The adapter has the names of the whole class, on which
  `AutoModelForImageTextToText` and peft load it.
- **State beside attention** (Gated DeltaNet, Mamba, short convolutions), and attention in transformers that takes no
  bounds of documents: one document a row, because packed ones would leak into each other. Whether they do is tried
  after loading, whatever the base.
- **Stored packed** (FP8 by blocks, rows or tensors; compressed-tensors of 4 and 8 bits; AWQ): dequantized block by
  block while it is read, then quantized like a 16-bit checkpoint; of mixtures only FP8. In FP8 and 8 bits that
  costs NF4 next to nothing (its relative error of weights is 0.092 from 16 bits, 0.096 from FP8); 4-bit integers are
  rounded twice (0.143), which `--bits 8` avoids. NF4 as bitsandbytes saves it, GPTQ, and gpt-oss' MXFP4 are kept as
  they are. HQQ, AQLM, VPTQ, NVFP4, torchao and others are refused.
- **After loading** it is counted which weights are quantized, where adapters are and what is trained; a base that did
  not come out as planned within 1 % stops the run.

"""
_COLUMNS = ("family", "class", "layers with state", "documents in a row", "4 bits", "3 bits")
# Families by what people call them, where that is not clear from the name.
_KNOWN_AS = {
    "llama": "Llama 3.x, 8B to 70B", "llama-tied": "Llama 3.2 1B, 3B; SmolLM 2", "mistral": "Mistral 7B, Nemo",
    "ministral3-text": "Ministral 3, its text alone", "qwen2.5": "Qwen 2.5, Coder", "qwen3": "Qwen 3, 0.6B to 32B",
    "gemma3-text": "Gemma 3 270M, 1B", "gemma4-text": "Gemma 4 E2B, E4B, their text alone", "phi3": "Phi 3, 3.5, 4",
    "pythia": "Pythia (GPT-NeoX)", "falcon": "Falcon 7B", "lfm2": "LFM 2, 2.5", "nemotron-h": "Nemotron-H, dense",
    "granite4": "Granite 4 micro, tiny, dense", "gemma3": "Gemma 3 4B, 12B, 27B", "gemma4": "Gemma 4 E2B, E4B, 31B",
    "gemma4-12b": "Gemma 4 12B", "qwen3.5": "Qwen 3.5, 3.6, 0.8B to 27B", "qwen3-vl": "Qwen 3 VL",
    "qwen2.5-vl": "Qwen 2.5 VL", "qwen2-vl": "Qwen 2 VL", "mistral3": "Mistral Small 3.x, Magistral",
    "ministral3": "Ministral 3", "muse-glimmer": "Muse Glimmer", "qwen3.5-moe": "Qwen 3.5, 3.6 35B-A3B",
    "qwen3-vl-moe": "Qwen 3 VL 30B-A3B", "glm4-moe-lite": "GLM 4.7 Flash", "glm4-moe": "GLM 4.5, 4.6",
    "deepseek-v3": "DeepSeek V3, R1", "qwen3-moe": "Qwen 3 30B-A3B", "gemma4-moe": "Gemma 4 26B-A4B, its text alone",
    "qwen3-next": "Qwen 3 Next 80B-A3B", "granite4-moe": "Granite 4 small",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Of the table; `at`: how far it came, or why it is refused, by bits."""

    name: str
    trials: dict[int, Trial]

    def as_markdown(self) -> str:
        plan = self.trials[4].plan
        base = plan.base if plan else None
        cells = [
            _KNOWN_AS.get(self.name, self.name),
            base.architecture if base else "",
            base.state_carried if base else "",
            ("packed" if plan.packing else "one") if plan else "",
            *(_verdict(trial) for trial in self.trials.values()),
        ]
        return f"| {' | '.join(cells)} |"


def _verdict(trial: Trial) -> str:
    if trial.is_whole:
        return "trains"
    where = f"at {STAGES[len(trial.done)]}: "
    if trial.refused and "base is broken" not in trial.refused:
        return f"refused {'' if not trial.done else where}({_first_sentence(trial.refused)})"
    if "base is broken" in trial.refused:
        return "stopped by the gate, as random weights may be"
    return f"**crashes {where}{trial.crashed[:80]}**"


def _first_sentence(text: str) -> str:
    """Without the folder of the checkpoint."""
    words = text.split(". ")[0].split()
    return " ".join("it" if "/" in word else word for word in words).rstrip(".")


def row_of(name: str) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        make = functools.partial(build if name in FAMILIES else tiny_mixtures.build, name)
        folder = make(Path(scratch) / "base")
        four = try_base(folder, Path(scratch) / "4")
        three = try_base(folder, Path(scratch) / "3", bits=3, group_size=32)
    return Row(name, {4: four, 3: three})


def main() -> None:
    transformers.logging.set_verbosity_error()
    others = [n for n in tiny_mixtures.FAMILIES if n not in FAMILIES]
    chosen = sys.argv[1:] or [*(n for n in FAMILIES if n not in MIXTURES), *MIXTURES, *others]
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for name in chosen:
        lines.append(row_of(name).as_markdown())
        print(lines[-1], flush=True)
    if not sys.argv[1:]:
        head = _HEAD.format(version=transformers.__version__)
        _, mark, plans = PAGE.read_text().partition(PLANS) if PAGE.is_file() else ("", "", "")
        PAGE.write_text(head + "\n".join(lines) + "\n" + (f"\n{mark}{plans}" if mark else ""))


if __name__ == "__main__":
    main()
