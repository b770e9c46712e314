"""Every finding that the doctor knows: how heavy it is and what to do. docs/DATA.md lists this table."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Code:
    """`drops`: the rows are left out of training without anybody's doing."""

    what: str
    fix: str
    severity: Severity = "warning"
    drops: bool = False


CODES: dict[str, Code] = {
    "unknown_format": Code(
        "It cannot be told what is what in the rows.",
        "Say which column plays which part, or choose another format.",
        "error",
    ),
    "no_usable_row": Code(
        "No row can be trained on.",
        "Choose another format, other columns or another base.",
        "error",
    ),
    "bad_row": Code(
        "A row cannot be read.", "Correct the rows, or train without them.", drops=True
    ),
    "not_utf8": Code("A row is not UTF-8.", "Save the file as UTF-8.", drops=True),
    "wrong_encoding": Code(
        "Letters were garbled by an earlier conversion (Ã© for é).",
        "Export the data again as UTF-8: the model learns to write what it sees.",
    ),
    "not_text": Code("A turn holds an image or a sound.", "Only text is trained on.", drops=True),
    "mixed_types": Code(
        "A column holds values of several types.",
        "Make them all of one type, or map another column.",
    ),
    "empty_answer": Code("An answer is empty.", "Fill in the answers.", drops=True),
    "empty_prompt": Code(
        "A question is empty.", "Fill in the questions, or choose the format text.", drops=True
    ),
    "role_order": Code(
        "Turns are in an order that cannot be trained on.",
        "Let questions and answers alternate, beginning with a question.",
        drops=True,
    ),
    "bad_tool_call": Code(
        "The call of a tool cannot be read.",
        "Write calls as JSON with name and arguments.",
        drops=True,
    ),
    "no_tools": Code(
        "The base's template cannot write tools.",
        "Choose a base whose chat template takes tools.",
        drops=True,
    ),
    "drops_reasoning": Code(
        "The base's template leaves reasoning out.",
        "Choose a base that reasons, or put the reasoning into the answer.",
    ),
    "chosen_only": Code(
        "Of two answers only the chosen one is trained on.", "Nothing to do.", "info"
    ),
    "same_answers": Code(
        "Chosen and rejected are the same.", "Let them differ; nobody prefers either.", drops=True
    ),
    "unwanted_answer": Code(
        "The answer is labelled as not wanted.", "Nothing to do.", "info", drops=True
    ),
    "special_token": Code(
        "A text contains a special token of the model.",
        "Take the model's special tokens out of the text.",
        drops=True,
    ),
    "template_refused": Code(
        "The chat template refuses a conversation.",
        "Choose a base with another chat template.",
        drops=True,
    ),
    "unproved_mask": Code(
        "It is not certain which tokens are answers.",
        "Choose another base, or let the rows out.",
        drops=True,
    ),
    "all_masked": Code(
        "max_length ends before the answer begins.",
        "Raise max_length: no token of these answers is within it.",
        drops=True,
    ),
    "truncated_answer": Code(
        "max_length cuts an answer.", "Raise max_length to keep the end of every answer."
    ),
    "duplicate": Code("A row is there twice.", "Train on each row once, or these count double."),
    "near_duplicate": Code(
        "A row is nearly another one.",
        "Keep one of each: the others teach little, and held-out rows should be new to the model.",
    ),
    "leak": Code(
        "A held-out row is also trained on.",
        "It is taken out of the held-out rows; a share of the training rows is new to the model.",
        drops=True,
    ),
    "nothing_held_out": Code(
        "Every held-out row is also trained on.",
        "Hold out a share of the training rows instead, or nothing shows what was learned.",
    ),
    "near_leak": Code(
        "A held-out row is nearly one that is trained on.",
        "Take these rows out of one split, or hold out a share of the training rows: the evaluation "
        "looks better than it is.",
    ),
    "constant_answer": Code(
        "More than half of the answers are the same.",
        "Check the column of answers: the model learns to say always this.",
    ),
    "guessed_columns": Code(
        "Which column is which was guessed.",
        "Say which column is the question and which the answer.",
    ),
    "single_turns": Code(
        "Each row is one message of a conversation.",
        "Join the messages of a conversation into one row, or take a version of the dataset that has "
        "conversations: now each message is learned alone.",
    ),
    "too_few_rows": Code(
        "There are few rows.", "Add rows; a few hundred good ones do for most tasks."
    ),
    "too_many_epochs": Code(
        "There are too few rows for so many epochs.",
        "Take fewer epochs, or the model learns the rows by heart.",
    ),
    "no_chat_template": Code(
        "The base has no chat template.", "Choose an instruct model if you want a chat."
    ),
    "system_folded": Code(
        "The template has no system turn: it goes before the first question.",
        "Nothing to do.",
        "info",
    ),
    "prompt_differs": Code(
        "The template asks for an answer in another way than it shows one.",
        "When you use the model elsewhere, take the chat template saved with it.",
    ),
}
