"""Inspects the first rows of a dataset with a base's tokenizer: what will be trained, and what is wrong."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qlora_space.core.errors import DatasetError, HubError
from qlora_space.core.facts import AnswerFacts, DatasetFacts, ModelFacts, RowCounts, TokenLengths
from qlora_space.core.inspection import Change, Inspection, Problem
from qlora_space.core.options import Format
from qlora_space.core.request import TrainingRequest
from qlora_space.core.scoring import choose_score
from qlora_space.data.formats.detect import Detection, UnknownFormat
from qlora_space.data.formats.instruction import chosen_instruction, suggested_instruction
from qlora_space.data.formats.rules import RULE_OF
from qlora_space.data.formats.turns import parse_turns
from qlora_space.data.inspection.count_rows import EvalRows, count_rows
from qlora_space.data.inspection.dataset_checks import check_dataset, check_evaluation
from qlora_space.data.inspection.problems import PROBLEM_CODES, Findings, problem_of
from qlora_space.data.inspection.xray import Xray
from qlora_space.data.reading.hub_rows import HubFiles
from qlora_space.data.reading.sources import open_source
from qlora_space.data.reading.trees import with_trees_joined
from qlora_space.data.rows import Row, RowProblem, Source
from qlora_space.data.template.loss_mask import Tokens
from qlora_space.data.template.renderer import Renderer
from qlora_space.data.template.tokenizer import load_tokenizer
from qlora_space.data.tokenize_rows import Tokenized, detect_format, tokenize_rows
from qlora_space.plan import default_max_length

_HISTOGRAM_BINS = 40
_PREVIEW_ROWS = 10
_MAX_CELL_CHARS = 300
_ANSWERS, _MAX_ANSWER_CHARS = 200, 20_000
# For an honest file these are many times too much, and who is not honest has taken ten seconds at most.
_READING_SECONDS, _LOADING_SECONDS, _CHECKING_SECONDS = 30.0, 6.0, 1.0
_CHARS_PER_SECOND = 2**18


@dataclass(frozen=True)
class Budget:
    """How many rows are sampled, and who is asked for the seconds of CPU of each part before it starts."""

    rows: int = 2000
    allow_cpu: Callable[[float], None] = lambda seconds: None

    def allow_tokenizing(self, rows: Sequence[Row], seconds: float) -> None:
        """So long, and longer for many rows."""
        chars = sum(len(str(value)) for row in rows for value in row.values.values())
        self.allow_cpu(seconds + chars / _CHARS_PER_SECOND)


def inspect_dataset(
    request: TrainingRequest,
    base: ModelFacts,
    tokenizer_folder: Path,
    access: HubFiles | str | None,
    budget: Budget = Budget(),
    *,
    allow_local: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Inspection:
    """Read up to `budget.rows` rows. Raises DatasetError, HubError or ModelError if there is nothing to inspect.

    `access`: a token for the Hub, or who reads from it. `allow_local`: the dataset may be a path of this machine.
    `device`: where it will be trained."""
    source = _open(request, request.dataset_config, request.dataset_split, access, allow_local)
    first, is_all = source.sample(min(budget.rows, request.max_rows or budget.rows))
    try:
        columns, detection = _detect(source, first, request)
    except UnknownFormat as error:
        return _undetected(source, first, is_all, request, error)
    budget.allow_tokenizing(first, _LOADING_SECONDS)
    renderer = _renderer(tokenizer_folder, detection, request)
    tokenized = list(tokenize_rows(first, detection, renderer))
    documents, row_lengths = _documents(tokenized)
    max_length = _max_length(request, base, row_lengths, device)
    budget.allow_cpu(_READING_SECONDS)
    num_rows, is_exact = (len(first), True) if is_all else _count(source, first)
    findings = _findings(request, base, tokenized, renderer, num_rows, max_length)
    eval_split, held_out, has_all = _held_out(request, source, access, budget.rows, allow_local)
    budget.allow_tokenizing([*first, *held_out], _CHECKING_SECONDS)
    check_dataset(findings, tokenized, held_out, detection, renderer, request, num_rows)
    findings.add_notes(source.note())
    eval_rows = EvalRows(held_out, has_all, detection, renderer) if eval_split else None
    counts = count_rows(request, detection.format, tokenized, max_length, num_rows, eval_rows)
    if eval_split and not counts.held_out_rows:
        check_evaluation(findings, eval_split, held_out, detection, renderer, num_rows)
    lengths = _lengths(documents, max_length)
    answers = _answer_facts(tokenized, renderer)
    xray = Xray(renderer, max_length, request.text_overlap_tokens)
    return Inspection(
        **_as_detected(columns, detection),
        dataset=_facts(source, detection.format, num_rows, is_exact, lengths, counts, answers),
        num_rows=num_rows,
        rows_looked_at=len(tokenized),
        lengths=lengths,
        max_length=max_length,
        row_lengths=row_lengths,
        problems=findings.problems(),
        samples=xray.samples(tokenized),
        packed=xray.packed(tokenized) if request.packing else (),
        preview=tuple(_preview(row, columns) for row in first[:_PREVIEW_ROWS]),
        configs=source.configs,
        splits=source.splits,
        eval_split=eval_split,
    )


def _as_detected(columns: tuple[str, ...], detection: Detection) -> dict[str, Any]:
    return {
        "format": detection.format,
        "reason": detection.reason,
        "confidence": detection.confidence,
        "columns": columns,
        "mapping": detection.mapping,
        "parts": RULE_OF[detection.format].part_names,
        "instruction": detection.instruction,
    }


def _documents(tokenized: Sequence[Tokenized]) -> tuple[list[Tokens], tuple[int, ...]]:
    """Those that can be trained on, and their lengths in order."""
    documents = [row.outcome for row in tokenized if isinstance(row.outcome, Tokens)]
    return documents, tuple(sorted(len(tokens.input_ids) for tokens in documents))


def _detect(
    source: Source, first: Sequence[Row], request: TrainingRequest
) -> tuple[tuple[str, ...], Detection]:
    """Columns and format, and the instruction before each prompt. Raises DatasetError."""
    columns, detection = detect_format(source, first, request.format, request.columns)
    suggested = suggested_instruction(detection, [row.values for row in first])
    instruction = chosen_instruction(request.instruction, suggested)
    return columns, replace(detection, instruction=instruction)


def _renderer(folder: Path, detection: Detection, request: TrainingRequest) -> Renderer:
    tokenizer = load_tokenizer(folder)
    return Renderer(tokenizer, detection.format, request.assistant_only_loss, predict=False)


def _open(
    request: TrainingRequest,
    config: str | None,
    split: str | None,
    access: HubFiles | str | None,
    allow_local: bool,
) -> Source:
    revision = request.dataset_revision
    source = open_source(request.dataset, config, split, revision, access, allow_local=allow_local)
    return with_trees_joined(source, request.format, request.columns)


def _undetected(
    source: Source,
    first: Sequence[Row],
    is_all: bool,
    request: TrainingRequest,
    error: UnknownFormat,
) -> Inspection:
    """The rows as they are, for a person to say which column is what."""
    columns = tuple(dict.fromkeys(name for row in first for name in row.values))
    format = request.format or Format.PROMPT_COMPLETION
    given = {part: name for part, name in (request.columns or {}).items() if name in columns}
    chosen: Literal["format", "columns"] = "format" if request.format else "columns"
    has_chosen = request.format is not None or request.columns is not None
    problem = Problem(
        code="unknown_format",
        severity=PROBLEM_CODES["unknown_format"].severity,
        rows=len(first),
        message=error.what,
        fix=error.hint,
        change=Change(field=chosen, value="") if has_chosen else None,
    )
    num_rows, is_exact = (len(first), True) if is_all else _count(source, first)
    lengths = _lengths([], 0)
    return Inspection(
        dataset=_facts(source, format, num_rows, is_exact, lengths),
        format=format,
        reason="Say below which column plays which part.",
        confidence=0.0,
        columns=columns,
        mapping=given,
        parts=RULE_OF[format].part_names,
        num_rows=num_rows,
        rows_looked_at=len(first),
        lengths=lengths,
        problems=(problem, *map(problem_of, source.note())),
        samples=(),
        preview=tuple(_preview(row, columns) for row in first[:_PREVIEW_ROWS]),
        configs=source.configs,
        splits=source.splits,
    )


def _facts(
    source: Source,
    format: Format,
    num_rows: int,
    is_exact: bool,
    lengths: TokenLengths,
    counts: RowCounts | None = None,
    answers: AnswerFacts | None = None,
) -> DatasetFacts:
    return DatasetFacts(
        id=source.id,
        sha=source.sha,
        config=source.config,
        split=source.split,
        format=format.value,
        num_rows=num_rows,
        is_exact=is_exact,
        num_bytes=source.num_bytes,
        lengths=lengths,
        counts=counts,
        answers=answers,
        license=source.license,
        is_public=source.is_public,
    )


def _max_length(
    request: TrainingRequest,
    base: ModelFacts,
    row_lengths: Sequence[int],
    device: Literal["cpu", "cuda"],
) -> int:
    """The request's, else the one that the plan will choose."""
    longest = row_lengths[-1] if row_lengths else 0
    max_length = request.max_length or default_max_length(longest, base, device)
    return min(max_length, base.max_position_embeddings)


def _findings(
    request: TrainingRequest,
    base: ModelFacts,
    tokenized: Sequence[Tokenized],
    renderer: Renderer,
    num_rows: int,
    max_length: int,
) -> Findings:
    """What is wrong with single rows, and what the template does with them."""
    findings = Findings(
        len(tokenized),
        num_rows,
        max_length,
        base.max_position_embeddings,
        renderer.format,
        _handled(request),
    )
    findings.add_rows(tokenized, renderer)
    return findings


def _handled(request: TrainingRequest) -> frozenset[str]:
    """Codes of the problems that the request takes care of."""
    taken = {"duplicate": request.deduplicate, "truncated_answer": request.drop_truncated}
    return frozenset(code for code, is_taken in taken.items() if is_taken)


def _eval_split(request: TrainingRequest, source: Source) -> str:
    """'' if the request sets eval_fraction; else the request's, if it exists; else the source's own."""
    if request.eval_fraction is not None:
        return ""
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
    access: HubFiles | str | None,
    rows: int,
    allow_local: bool,
) -> tuple[str, list[Row], bool]:
    """The evaluation split, its first rows, and whether these are all; one with a problem if it cannot be read."""
    eval_split = _eval_split(request, source)
    if not eval_split:
        return "", [], False
    try:
        held_out = _open(request, source.config or None, eval_split, access, allow_local)
        return eval_split, *held_out.sample(rows)
    except (DatasetError, HubError) as error:
        unread = RowProblem("bad_row", error.what)
        return eval_split, [Row(1, eval_split, {}, unread)], False


def _count(source: Source, first: Sequence[Row]) -> tuple[int, bool]:
    """Number of rows and whether it is exact; else estimated from the bytes of source and sample."""
    known = source.num_rows
    if known is not None:
        return known, True
    sample_bytes = sum(len(json.dumps(row.values, default=str)) for row in first)
    estimate = round(source.num_bytes * len(first) / max(1, sample_bytes))
    return max(estimate, len(first) + 1), False


def _answer_facts(tokenized: Sequence[Tokenized], renderer: Renderer) -> AnswerFacts | None:
    """Of the last turn of the first rows, as evaluation asks for it; None for plain text."""
    usable = (row.example for row in tokenized if isinstance(row.outcome, Tokens))
    messages = (example for example in usable if not isinstance(example, str))
    last = (example[-1].as_text for example in messages if example)
    expected = [text[:_MAX_ANSWER_CHARS] for text in itertools.islice(last, _ANSWERS)]
    if not expected:
        return None
    encode = renderer.tokenizer.backend_tokenizer.encode_batch
    sizes = [len(each.ids) for each in encode(expected, add_special_tokens=False)]
    p50, p95, longest = np.percentile(sizes, [50, 95, 100])
    chosen = choose_score(expected)
    return AnswerFacts(
        score=chosen.score, why=chosen.why, p50=int(p50), p95=int(p95), max=int(longest)
    )


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


def _preview(row: Row, columns: Sequence[str]) -> dict[str, str]:
    return {column: _cell(row.values.get(column)) for column in columns}


def _cell(value: object) -> str:
    text = _readable(value)
    return text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"


def _readable(value: object) -> str:
    """A cell for people: turns as 'user: …', other structures as 'key: value' lines."""
    if value is None:
        return ""
    turns = parse_turns(value)
    if turns:
        return "\n".join(": ".join(_readable_turn(turn)) for turn in turns)
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_readable(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return str(value)


def _readable_turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    role = turn.get("role", turn.get("from", ""))
    return str(role), _readable(turn.get("content", turn.get("value", "")))
