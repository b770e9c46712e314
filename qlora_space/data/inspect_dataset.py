"""Looks at the first rows of a dataset with a base's tokenizer: what will be trained, and what is wrong."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qlora_space.data.doctor import examine
from qlora_space.data.documents import Tokenized, detect_format, tokenize_rows
from qlora_space.data.problems import Findings
from qlora_space.data.proof import Tokens
from qlora_space.data.rows import Row
from qlora_space.data.sources import Source, open_source
from qlora_space.data.template import Renderer
from qlora_space.data.tokenizer import load_tokenizer
from qlora_space.data.turns import parse_turns
from qlora_space.errors import DatasetError, HubError
from qlora_space.facts import DatasetFacts, ModelFacts, TokenLengths
from qlora_space.inspection import Inspection, SampleRow, Token
from qlora_space.request import TrainingRequest

_HISTOGRAM_BINS = 40
_NUM_SAMPLES = 5
_SAMPLE_TOKENS = 4096
_PREVIEW_ROWS = 10
_CELL_CHARS = 300
_UNDECODED = "\N{REPLACEMENT CHARACTER}"


def inspect_dataset(
    request: TrainingRequest,
    base: ModelFacts,
    tokenizer_folder: Path,
    token: str | None,
    rows: int = 2000,
    *,
    allow_local: bool = False,
) -> Inspection:
    """Read up to `rows` rows. `allow_local`: the dataset may be a path of this machine.

    Raises DatasetError, HubError or ModelError if there is nothing to look at.
    """
    source = open_source(
        request.dataset,
        request.dataset_config,
        request.dataset_split,
        request.dataset_revision,
        token,
        allow_local=allow_local,
    )
    limit = min(rows, request.max_rows or rows)
    first, is_all = source.sample(limit)
    columns, detection = detect_format(source, first, request.format, request.columns)
    renderer = Renderer(
        load_tokenizer(tokenizer_folder), detection.format, request.assistant_only_loss
    )
    max_length = min(
        request.max_length or base.max_position_embeddings, base.max_position_embeddings
    )
    seen = list(tokenize_rows(first, detection, renderer))
    num_rows, is_exact = (len(first), True) if is_all else _count(source, first)
    longest = base.max_position_embeddings
    findings = Findings(len(seen), num_rows, max_length, longest, detection.format)
    for row in seen:
        findings.add(row)
    findings.add_template(renderer)
    eval_split = _eval_split(request, source)
    held_out = _held_out(request, source, eval_split, token, limit, allow_local)
    examine(findings, seen, held_out, detection, request, num_rows)
    lengths = _lengths([row.outcome for row in seen if isinstance(row.outcome, Tokens)], max_length)
    return Inspection(
        dataset=DatasetFacts(
            id=source.id,
            sha=source.sha,
            config=source.config,
            split=source.split,
            format=detection.format.value,
            num_rows=num_rows,
            is_exact=is_exact,
            num_bytes=source.num_bytes,
            lengths=lengths,
            license=source.license,
        ),
        format=detection.format,
        reason=detection.reason,
        confidence=detection.confidence,
        columns=columns,
        mapping=detection.mapping,
        num_rows=num_rows,
        rows_looked_at=len(seen),
        lengths=lengths,
        problems=findings.problems(),
        samples=_samples(renderer.tokenizer, seen, max_length),
        preview=tuple(_preview(row, columns) for row in first[:_PREVIEW_ROWS]),
        configs=source.configs,
        splits=source.splits,
        eval_split=eval_split,
    )


def _eval_split(request: TrainingRequest, source: Source) -> str:
    """The user's, checked against what there is; else the source's own."""
    if request.eval_split is None:
        return source.eval_split
    if source.splits and request.eval_split not in source.splits:
        raise DatasetError(
            f"{source.id} has no split {request.eval_split[:80]!r}.",
            f"It has {', '.join(source.splits)}.",
        )
    return request.eval_split


def _held_out(
    request: TrainingRequest,
    source: Source,
    eval_split: str,
    token: str | None,
    rows: int,
    allow_local: bool,
) -> list[Row]:
    """The first rows of the evaluation split. One that cannot be read spoils only the evaluation."""
    if not eval_split:
        return []
    try:
        held_out = open_source(
            request.dataset,
            source.config or None,
            eval_split,
            request.dataset_revision,
            token,
            allow_local=allow_local,
        )
        return held_out.sample(rows)[0]
    except (DatasetError, HubError):
        return []


def _count(source: Source, first: Sequence[Row]) -> tuple[int, bool]:
    """Exact if the source knows; else from its bytes and those of the rows that were read."""
    known = source.num_rows
    if known is not None:
        return known, True
    sample_bytes = sum(len(json.dumps(row.values, default=str)) for row in first)
    estimate = round(source.num_bytes * len(first) / max(1, sample_bytes))
    return max(estimate, len(first) + 1), False


def _lengths(documents: Sequence[Tokens], max_length: int) -> TokenLengths:
    if not documents:
        return TokenLengths(p50=0, p95=0, max=0, mean=0, truncated_fraction=0, trained_fraction=0)
    lengths = np.array([len(tokens.input_ids) for tokens in documents])
    trained = sum(sum(tokens.trained) for tokens in documents)
    histogram, _ = np.histogram(lengths, _HISTOGRAM_BINS, (0, int(lengths.max())))
    return TokenLengths(
        p50=int(np.percentile(lengths, 50)),
        p95=int(np.percentile(lengths, 95)),
        max=int(lengths.max()),
        mean=float(lengths.mean()),
        truncated_fraction=float((lengths > max_length).mean()),
        trained_fraction=trained / int(lengths.sum()),
        histogram=tuple(int(count) for count in histogram),
    )


def _samples(tokenizer: Any, rows: Sequence[Tokenized], max_length: int) -> tuple[SampleRow, ...]:
    documents = (row.outcome for row in rows if isinstance(row.outcome, Tokens))
    return tuple(
        SampleRow(
            tokens=_readable(tokenizer, tokens, min(max_length, _SAMPLE_TOKENS)),
            truncated=len(tokens.input_ids) > max_length,
        )
        for tokens in itertools.islice(documents, _NUM_SAMPLES)
    )


def _readable(tokenizer: Any, tokens: Tokens, most: int) -> tuple[Token, ...]:
    """Text token by token; a character made of several tokens stands at the last of them."""
    decode = tokenizer.backend_tokenizer.decode
    shown: list[Token] = []
    context: list[int] = []
    waiting: list[int] = []
    for id, trained in zip(tokens.input_ids[:most], tokens.trained[:most], strict=True):
        waiting.append(id)
        # With the token before it: some decoders drop the space in front of a first word.
        before = decode(context, skip_special_tokens=False)
        text = decode(context + waiting, skip_special_tokens=False)[len(before) :]
        if text.endswith(_UNDECODED) and len(waiting) < 4:
            shown.append(Token(id=id, text="", trained=trained))
            continue
        shown.append(Token(id=id, text=text, trained=trained))
        context, waiting = waiting[-4:], []
    return tuple(shown)


def _preview(row: Row, columns: Sequence[str]) -> dict[str, str]:
    return {column: _cell(row.values.get(column)) for column in columns}


def _cell(value: object) -> str:
    text = _in_words(value)
    return text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"


def _in_words(value: object) -> str:
    """A cell as a person reads it: turns as 'user: …', other structures as 'key: value' lines."""
    if value is None:
        return ""
    turns = parse_turns(value)
    if turns:
        return "\n".join(": ".join(_turn_in_words(turn)) for turn in turns)
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_in_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return str(value)


def _turn_in_words(turn: Mapping[str, Any]) -> tuple[str, str]:
    role = turn.get("role", turn.get("from", ""))
    return str(role), _in_words(turn.get("content", turn.get("value", "")))
