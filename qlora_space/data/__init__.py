"""From a dataset's rows to packed tokens with a proved loss mask, and its problems found before training.

A row passes `reading` (files to rows), `formats` (rows to messages) and `template` (messages to tokens and
mask), all from `tokenize_rows.py`; `prepare.py` then holds out, packs (`packing.py`) and writes
(`prepared.py`). `inspection` shows and checks the same rows before a run. `order.py` says which packed rows
a training step takes.
"""

from qlora_space.data.formats.detect import Detection, detect
from qlora_space.data.formats.examples import to_example, to_trained
from qlora_space.data.formats.rules import RULES, Part, Rule
from qlora_space.data.inspection.inspect_dataset import Budget, inspect_dataset
from qlora_space.data.messages import Example, Labelled, Message, Preference, ToolCall
from qlora_space.data.packing import pack, waste_fraction
from qlora_space.data.prepare import prepare
from qlora_space.data.prepared import IGNORED_LABEL, EvalExample, Manifest, Prepared, load_prepared
from qlora_space.data.reading.sources import open_source
from qlora_space.data.rows import Row, RowProblem, Source
from qlora_space.data.template.loss_mask import Tokens, prove
from qlora_space.data.template.renderer import Renderer, render_prompt
from qlora_space.data.template.tokenizer import chat_template_of, load_tokenizer, tokenizer_hash

__all__ = [
    "IGNORED_LABEL",
    "RULES",
    "Budget",
    "Detection",
    "EvalExample",
    "Example",
    "Labelled",
    "Manifest",
    "Message",
    "Part",
    "Preference",
    "Prepared",
    "Renderer",
    "Row",
    "RowProblem",
    "Rule",
    "Source",
    "Tokens",
    "ToolCall",
    "chat_template_of",
    "detect",
    "inspect_dataset",
    "load_prepared",
    "load_tokenizer",
    "open_source",
    "pack",
    "prepare",
    "prove",
    "render_prompt",
    "to_example",
    "to_trained",
    "tokenizer_hash",
    "waste_fraction",
]
