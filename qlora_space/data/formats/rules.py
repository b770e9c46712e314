"""`RULES`, the table of formats: detection, conversion, docs/DATA.md and tests all follow it."""

import re
from dataclasses import dataclass
from typing import Literal

from qlora_space.core.options import Format
from qlora_space.data.formats.marks import TRAINED_NAMES

Shape = Literal[
    "messages",
    "turns",
    "conversation",
    "text",
    "mark",
    "either",
    "answer",
    "choices",
    "marks",
    "any",
]
"""What the values of a column are. conversation: messages or turns; either: those or text; answer: either,
or several answers of which the first is taken, or tool calls. choices: several texts, alone or as
{"text": [...], "label": [...]} or {"A": ...}. mark: yes or no, 0 or 1; marks: also a list with one for
each turn."""


@dataclass(frozen=True)
class Part:
    """One part of a format, the columns that usually hold it, and the shape of its values."""

    name: str
    columns: tuple[str, ...]
    shape: Shape = "text"
    is_required: bool = True


@dataclass(frozen=True)
class Rule:
    """One format. `example` is a row as the documentation shows it."""

    format: Format
    parts: tuple[Part, ...]
    what: str
    example: str

    @property
    def part_names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)


HISTORY_NAMES = ("history", "chat_history", "dialog_history", "conversation_history", "past_turns")
ROW_WEIGHTS = ("weights", "sample_weight", "row_weight", "example_weight", "loss_masks")
_SYSTEM = Part(
    "system",
    (
        *("system", "system_prompt", "system_message", "systemprompt", "sys_prompt"),
        *("systeminstruction", "system_instruction", "instructions", "preamble", "persona_prompt"),
    ),
    "any",
    is_required=False,
)
_TOOLS = Part(
    "tools",
    ("tools", "functions", "toolconfig", "tool_config", "available_tools", "function_declarations"),
    "any",
    is_required=False,
)
_HISTORY = Part("history", HISTORY_NAMES, "any", is_required=False)
_WEIGHT = Part("weight", (*TRAINED_NAMES, *ROW_WEIGHTS), "marks", is_required=False)
_REASONING = Part(
    "reasoning",
    (
        "reasoning",
        "reasoning_content",
        "thinking",
        "rationale",
        "complex_cot",
        "cot",
        "chain_of_thought",
        "thought",
        "thoughts",
    ),
    is_required=False,
)
QUESTIONS = (
    "prompt",
    "question",
    "query",
    "instruction",
    "input",
    "problem",
    "conversations",
    "conversation",
    "messages",
    "source",
    "user",
    "document",
    "article",
    "dialogue",
    "inputs",
    "human",
    "question_stem",
    "q",
)
ANSWERS = (
    "completion",
    "chosen",
    "solution",  # with an "answer" beside it, that is only its last line
    "answer",
    "answers",
    "correct_answer",
    "response",
    "output",
    "target",
    "targets",
    "reply",
    "assistant",
    "bot",
    "summary",
    "highlights",
    "a",
    "answerkey",
    "label",
)
# Never guessed to be text to train on.
ABOUT_A_ROW = re.compile(
    r"(?:^|[_ -])(?:id|idx|index|uuid|hash|url|uri|path|file|filename|date|time|timestamp|lang|language"
    r"|license|split|meta|metadata|source|author|tags|keywords|created|updated|version|model|dataset"
    r"|subset|score|stats|embedding|embeddings|offset|num_tokens|tokens|length|count)$",
    re.IGNORECASE,
)
# Texts that a label beside them is about.
LABELLED = (
    *("text", "content", "body", "sentence", "review", "review_text", "tweet", "comment", "post"),
    *("document", "utterance", "headline"),
)
# Beside a text, what it is to be told apart by: sure, and perhaps.
LABELS = (
    *("label", "labels", "label_text", "label_name", "sentiment", "emotion", "intent", "class"),
    *("polarity", "stance", "toxicity", "toxic", "stars", "rating", "is_spam", "spam"),
)
PERHAPS_LABELS = ("category", "topic", "type", "genre", "domain", "subject", "tag", "target")
PARENT_NAMES = (
    *("parent_id", "parent", "parent_message_id", "parentid", "reply_to", "reply_to_id"),
    *("in_reply_to", "in_reply_to_id", "prev_id", "previous_id"),
)
CHOICES = ("choices", "options", "endings")
# "source" is where a row comes from, unless its "target" stands beside it.
NEEDS_ANSWER = {"source": ("target", "targets")}
# Two answers where another column says which is better, in terms that differ from dataset to dataset.
COMPARED = (
    ("conversation_a", "conversation_b"),
    ("response_a", "response_b"),
    ("human_ref_a", "human_ref_b"),
    ("response_0", "response_1"),
    ("answer_0", "answer_1"),
)
_CONVERSATIONS = (
    *("messages", "conversation", "conversations", "chat", "chat_messages", "dialog", "dialogue"),
    *("contents", "turns", "mapping"),
)

RULES: tuple[Rule, ...] = (
    Rule(
        Format.PREFERENCE,
        (
            Part("prompt", QUESTIONS, "either", is_required=False),
            Part("input", ("input", "context"), is_required=False),
            Part(
                "chosen",
                (
                    *("chosen", "preferred", "accepted", "chosen_response", "preferred_output"),
                    *("chosen_messages", "chosen_conversation", "chosen_conversations"),
                ),
                "either",
            ),
            Part(
                "rejected",
                (
                    *("rejected", "dispreferred", "rejected_response", "non_preferred_output"),
                    *("rejected_messages", "rejected_conversation", "rejected_conversations"),
                ),
                "either",
            ),
            _SYSTEM,
            _TOOLS,
            _WEIGHT,
        ),
        "Two answers to the same question, a better and a worse one. The better one is trained on.",
        '{"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}',
    ),
    Rule(
        Format.KTO,
        (
            Part("prompt", QUESTIONS[:6], "either", is_required=False),
            Part("completion", (*ANSWERS[:-1], *_CONVERSATIONS), "either"),
            Part("label", ("label", "kto_tag", "desirable", "tag"), "mark"),
            _SYSTEM,
            _TOOLS,
            _WEIGHT,
        ),
        "An answer and whether it is desirable. Only desirable ones are trained on.",
        '{"prompt": "Say hello.", "completion": "Hello!", "label": true}',
    ),
    Rule(
        Format.MESSAGES,
        (Part("messages", _CONVERSATIONS, "messages"), _SYSTEM, _TOOLS, _WEIGHT),
        "Conversations as OpenAI writes them, with tool_calls and reasoning_content; also as JSON text.",
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}',
    ),
    Rule(
        Format.SHAREGPT,
        (
            Part("conversations", ("conversations", *_CONVERSATIONS), "turns"),
            _SYSTEM,
            _TOOLS,
            _WEIGHT,
        ),
        "Conversations with from and value, function_call and observation turns.",
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}',
    ),
    Rule(
        Format.ALPACA,
        (
            Part("instruction", ("instruction",)),
            Part("input", ("input", "context"), is_required=False),
            Part("output", ("output", "response")),
            _SYSTEM,
            _HISTORY,
            _TOOLS,
            _REASONING,
            _WEIGHT,
        ),
        "An instruction, what it is about, and the answer; earlier turns in history.",
        '{"instruction": "Translate to French.", "input": "cheese", "output": "fromage"}',
    ),
    Rule(
        Format.PROMPT_COMPLETION,
        (
            Part("prompt", QUESTIONS, "either"),
            Part("input", ("context", "passage", "input"), is_required=False),
            Part("completion", ANSWERS, "answer"),
            Part("choices", CHOICES, "choices", is_required=False),
            _HISTORY,
            _SYSTEM,
            _TOOLS,
            _REASONING,
            _WEIGHT,
        ),
        "A question, what it is about, and its answer, each a text or turns.",
        '{"prompt": "The capital of France is", "completion": "Paris."}',
    ),
    Rule(
        Format.TEXT,
        (Part("text", ("text", "content", "body", "markdown", "story", "code")), _WEIGHT),
        "Any text, learned as it is.",
        '{"text": "Once upon a time there was a cheese."}',
    ),
)
RULE_OF = {rule.format: rule for rule in RULES}
