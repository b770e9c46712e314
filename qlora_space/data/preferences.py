"""Rows for preference training (DPO): a prompt and two answers as tokens, in an Arrow stream.

Nothing trains on them yet. The prompt's tokens are the same before both answers, and the answers' are
those of ordinary training, with the token that ends the turn.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from qlora_space.data.formats.detect import Detection
from qlora_space.data.formats.examples import to_example
from qlora_space.data.messages import Messages, Preference
from qlora_space.data.rows import Row, RowProblem
from qlora_space.data.template.proof import Tokens, runs_of
from qlora_space.data.template.renderer import Renderer

_INTS = pa.list_(pa.int32())
PREFERENCE_SCHEMA = pa.schema(
    [("prompt_ids", _INTS), ("chosen_ids", _INTS), ("rejected_ids", _INTS)]
)
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class PreferenceIds:
    """One pair. Both answers follow the same prompt."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def write_preferences(
    file: Path, rows: Iterable[Row], detection: Detection, renderer: Renderer, max_length: int
) -> Counter[str]:
    """Write all usable pairs; returns how many were 'used', and how many left out by problem code."""
    counts: Counter[str] = Counter()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, PREFERENCE_SCHEMA) as writer:
        unread = iter(rows)
        while batch := list(itertools.islice(unread, _ROWS_AT_ONCE)):
            found = list(preference_ids(batch, detection, renderer, max_length))
            good = [vars(each) for each in found if isinstance(each, PreferenceIds)]
            counts.update(each.code for each in found if isinstance(each, RowProblem))
            counts["used"] += len(good)
            writer.write_batch(pa.RecordBatch.from_pylist(good, schema=PREFERENCE_SCHEMA))
    return counts


def preference_ids(
    rows: list[Row], detection: Detection, renderer: Renderer, max_length: int
) -> Iterator[PreferenceIds | RowProblem]:
    """One after the other: the tokens of a row's pair, or why there are none.

    `renderer` is one that trains answers only, as it does unless asked otherwise.
    """
    examples = [to_example(row, detection) for row in rows]
    pairs = [example for example in examples if isinstance(example, Preference)]
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    whole = [prompt + side for prompt, side in zip(prompts, sides, strict=True)]
    outcomes = iter(renderer.tokenize(whole))
    for row, example in zip(rows, examples, strict=True):
        if isinstance(example, Preference):
            made = _pair(example, next(outcomes), next(outcomes), max_length)
        elif isinstance(example, RowProblem):
            made = example
        else:
            made = RowProblem("no_preference", "has no two answers.")
        if isinstance(made, RowProblem) and not isinstance(example, RowProblem):
            made = RowProblem(made.code, f"{row.place}: {made.message}")
        yield made


def _pair(
    pair: Preference, chosen: Tokens | RowProblem, rejected: Tokens | RowProblem, max_length: int
) -> PreferenceIds | RowProblem:
    if isinstance(chosen, RowProblem):
        return chosen
    if isinstance(rejected, RowProblem):
        return rejected
    prompt_ids, chosen_ids = _split(chosen, pair.prompt)
    other_ids, rejected_ids = _split(rejected, pair.prompt)
    if prompt_ids != other_ids:
        return RowProblem("prompts_differ", "the answers change the tokens of the prompt.")
    if len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) > max_length:
        # A cut answer is not the answer that was preferred.
        return RowProblem("truncated_answer", f"it is longer than max_length {max_length}.")
    return PreferenceIds(prompt_ids, chosen_ids, rejected_ids)


def _split(tokens: Tokens, prompt: Messages) -> tuple[list[int], list[int]]:
    """At the first answer that is not one of the prompt's."""
    spans = runs_of(tokens.trained)
    start = spans[sum(message.role == "assistant" for message in prompt)][0]
    return tokens.input_ids[:start], tokens.input_ids[start : spans[-1][1]]
