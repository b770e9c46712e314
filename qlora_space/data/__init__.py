"""Rows of any dataset to packed tokens with a proved loss mask, and the truth about them beforehand."""

from qlora_space.data.formats.detect import Detection, detect
from qlora_space.data.formats.examples import to_example, to_trained
from qlora_space.data.formats.rules import RULES, Part, Rule
from qlora_space.data.inspection.inspect_dataset import inspect_dataset
from qlora_space.data.messages import Example, Labelled, Message, Preference, ToolCall
from qlora_space.data.packing import pack, waste_fraction
from qlora_space.data.prepare import prepare
from qlora_space.data.prepared import IGNORED_LABEL, EvalExample, Manifest, Prepared, load_prepared
from qlora_space.data.reading.sources import Source, open_source
from qlora_space.data.rows import Row, RowProblem
from qlora_space.data.template.fallback import chat_template_of
from qlora_space.data.template.proof import Tokens, prove
from qlora_space.data.template.renderer import Renderer, render_prompt
from qlora_space.data.template.tokenizer import load_tokenizer, tokenizer_hash

__all__ = [
    "IGNORED_LABEL",
    "RULES",
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
