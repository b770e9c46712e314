"""Plans of the bases that people fine-tune: writes their table into docs/BASES.md, or prints some of its rows.

    python benchmarks/base_plans.py            on a CPU, about fifteen minutes
    python benchmarks/base_plans.py --plans    without the last two columns, half a minute
    python benchmarks/base_plans.py Qwen3 phi  prints the rows of some

A plan is made from the real shape (benchmarks/known_bases.py); a tiny checkpoint of the same class is trained,
evaluated, compared, saved and loaded again at 4 and at 2 bits.
"""

import functools
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import transformers

from benchmarks.known_bases import BASES, KnownBase, write_checkpoint
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.core.request import parse_request
from qlora_space.core.wording import count
from qlora_space.hub import model_facts
from qlora_space.plan import Plan, resolve
from qlora_space.plan.kinds import special
from tests.base_trial import STAGES, Trial, try_base
from tests.experts import tiny_mixtures
from tests.tiny_families import FAMILIES, build

PAGE = Path(__file__).parents[1] / "docs" / "BASES.md"
START, END = "<!-- plans: benchmarks/base_plans.py -->\n", "<!-- end of plans -->\n"
_HEAD = """## The bases that people fine-tune

Planned from their real shapes, without weights: one row of 2,048 tokens at once, all linear layers, rank 16 (32 at 2
bits, where the adapter is the repair, too). GiB: the least that such a run needs; a plan uses more for speed where it
is free. *host*: the base lies in the machine's memory. Written by `benchmarks/base_plans.py` on transformers
{version}; peaks that were measured on GPUs are in [PERFORMANCE.md](PERFORMANCE.md). Shapes are those of transformers'
classes, of public code, or as published (`benchmarks/known_bases.py` says which). Whether a tiny checkpoint of each
class trains is in the table of families.

"""
_TRIED = """*tiny*: a tiny checkpoint of the class is trained, evaluated, compared, saved and loaded again by the code
of its card; *gate*: at 2 bits the quality gate stops its random weights, so it is tried at 3.

"""
_BROKEN = " is broken: perplexity"  # words of the quality gate
_COLUMNS = (
    "base", "class", "what is special", "weights", "active", "4 bits: 80 GB", "24 GB", "2 bits: 80 GB", "24 GB",
    "step", "tiny, 4 bits", "tiny, 2 bits",
)  # fmt: skip
_CARDS = (
    Hardware(
        name="NVIDIA H100 80GB", device="cuda", memory_gib=79.2, free_gib=78.5, cpu_cores=16, has_fp8=True,
        disk_free_gib=900, host_free_gib=120,
    ),
    Hardware(
        name="NVIDIA GeForce RTX 4090", device="cuda", memory_gib=23.6, free_gib=23.1, cpu_cores=16, has_fp8=True,
        disk_free_gib=900, host_free_gib=60,
    ),
)  # fmt: skip
_DATA = DatasetFacts(
    id="rows", sha="0", format="messages", num_rows=10_000, is_exact=True,
    lengths=TokenLengths(p50=1800, p95=2000, max=2048, mean=1800, truncated_fraction=0, trained_fraction=0.5),
)  # fmt: skip


@dataclass(frozen=True)
class Notes:
    """Sentences that are too long for a cell, numbered."""

    sentences: list[str]

    def mark(self, sentence: str) -> str:
        """'[3]'"""
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        return f"[{self.sentences.index(sentence) + 1}]"


def facts_of(name: str, known: KnownBase) -> ModelFacts:
    """As of the checkpoint on the Hub. Raises QloraSpaceError."""
    with tempfile.TemporaryDirectory() as scratch:
        found = model_facts(str(write_checkpoint(known, Path(scratch) / "base")), None, None)
    return found.model_copy(update={"id": name, "source": "hub"})


def plan_of(base: ModelFacts, bits: int, card: Hardware) -> Plan:
    """Raises QloraSpaceError."""
    asked = {
        "bits": bits,
        "max_length": 2048,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": True,
    }
    return resolve(parse_request(asked), base, _DATA, card)


def row_of(name: str, known: KnownBase, notes: Notes, trials: dict[int, Trial]) -> str:
    base = facts_of(name, known)
    fits = [_need(base, bits, card, notes) for bits in (4, 2) for card in _CARDS]
    step = next(c for c in plan_of(base, 4, _CARDS[0]).choices if c.name == "step_kind")
    cells = [
        name.rpartition("/")[2],
        base.architecture,
        "; ".join(special(base)),
        count(base.parameters),
        count(base.weights_per_token) if base.num_experts else "all",
        *fits,
        step.value
        if step.value == "fast"
        else f"{step.value} {notes.mark(_why_plain(step.why, base))}",
        *(
            ("gate; at 3: " if bits == 3 else "") + _verdict(trial, notes)
            for bits, trial in trials.items()
        ),
    ]
    return f"| {' | '.join(cells)} |"


def _why_plain(why: str, base: ModelFacts) -> str:
    text = why.replace(base.architecture, "its class").replace(
        "those it knows", "those that the fast step knows"
    )
    return text[:1].upper() + text[1:]


def _need(base: ModelFacts, bits: int, card: Hardware, notes: Notes) -> str:
    try:
        plan = plan_of(base, bits, card)
    except QloraSpaceError as error:
        return f"refused {notes.mark(_general(str(error), base.id))}"
    least = f"{plan.estimate.least_gib:.1f}"
    if not plan.estimate.fits:
        return f"no: {least}"
    return f"{least}, host" if plan.cpu_offload else least


def _verdict(trial: Trial, notes: Notes) -> str:
    if trial.is_whole:
        return "all"
    if trial.refused:
        sentence = _general(trial.refused, "")
        return f"refused {notes.mark(sentence)}"
    stage = STAGES[len(trial.done)]
    return f"**{stage} crashes** {notes.mark(trial.crashed[:120])}"


def _general(sentence: str, name: str) -> str:
    """Without the name, which the row says."""
    text = (
        sentence.replace(name, "this base") if name else re.sub(r"/tmp/\S+", "this base", sentence)
    )
    first = text.split(". ")[0].rstrip(".")
    return first[:1].upper() + first[1:]


@functools.cache
def tried(family: str) -> dict[int, Trial]:
    """By bits."""
    make = functools.partial(build if family in FAMILIES else tiny_mixtures.build, family)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make(Path(scratch) / "base")
        four = try_base(folder, Path(scratch) / "4")
        low = try_base(folder, Path(scratch) / "2", bits=2, group_size=32)
        if _BROKEN in low.refused:
            low = try_base(folder, Path(scratch) / "3", bits=3, group_size=32)
    return {4: four, low.plan.bits if low.plan else 2: low}


def write_section(text: str) -> None:
    """Between its marks in docs/BASES.md, or at the end of it."""
    page = PAGE.read_text() if PAGE.is_file() else "# Bases\n\n"
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(before.rstrip() + "\n\n" + START + text + END + after)


def main() -> None:
    transformers.logging.set_verbosity_error()
    wanted = [word for word in sys.argv[1:] if word != "--plans"]
    is_tried = "--plans" not in sys.argv
    notes = Notes([])
    columns = _COLUMNS if is_tried else _COLUMNS[:-2]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, known in BASES.items():
        if not wanted or any(word in name for word in wanted):
            trials = tried(known.family) if is_tried else {}
            lines.append(row_of(name, known, notes, trials))
            print(lines[-1], flush=True)
    numbered = [f"[{i}] {sentence}." for i, sentence in enumerate(notes.sentences, 1)]
    print("\n".join(numbered))
    if not wanted:
        head = _HEAD.format(version=transformers.__version__)
        head += _TRIED if is_tried else ""
        write_section(head + "\n".join(lines) + "\n\n" + "  \n".join(numbered) + "\n")


if __name__ == "__main__":
    main()
