"""An inspection as HTML: rows, format, columns, findings with their fix buttons, lengths."""

from collections.abc import Iterable, Sequence
from typing import Any

from qlora_space.app.ui.form import FORMATS
from qlora_space.app.ui.render.escaped import exact
from qlora_space.app.ui.render.histogram import histogram
from qlora_space.app.ui.render.html import facts, notice, table, text
from qlora_space.core.facts import AnswerFacts, ModelFacts
from qlora_space.core.inspection import Change, Inspection, Problem
from qlora_space.core.options import Format
from qlora_space.core.request import parse_request
from qlora_space.core.scoring import SCORE_NAMES
from qlora_space.core.wording import count, counted, num_bytes, percent, visible_name
from qlora_space.plan import why_base_is_plain

_ROWS_SHOWN = 10
_SEVERITIES = ("error", "warning", "info")
_MOST_COLUMNS = 200
_DETECTED, _LIKELY = 0.9, 0.7


def dataset_facts(found: Inspection) -> str:
    rows = found.num_rows if found.dataset.is_exact else f"about {count(found.num_rows)}"
    return facts(
        [
            ("Rows", f"{rows:,}" if isinstance(rows, int) else rows),
            ("Split", found.dataset.split),
            ("Held out", _held_out(found)),
            ("Licence", found.dataset.license),
            ("Size", num_bytes(found.dataset.num_bytes) if found.dataset.num_bytes else ""),
            ("Answers scored by", _scored_by(found.dataset.answers)),
        ]
    )


def _scored_by(answers: AnswerFacts | None) -> str:
    """'Final number (187 of 200 answers come to a number)'."""
    return f"{SCORE_NAMES[answers.score]} ({answers.why})" if answers else ""


def _held_out(found: Inspection) -> str:
    """'200 rows of validation', 'about 90 rows', 'none'."""
    counts = found.dataset.counts
    if counts is None:
        return found.eval_split
    if not counts.held_out_rows and counts.is_exact:
        return "none"
    about = "" if counts.is_exact else "about "
    where = f" of {found.eval_split}" if found.eval_split else ""
    return f"{about}{counted(counts.held_out_rows, 'row')}{where}"


def format_line(found: Inspection) -> str:
    """The format, how certain it is, and why; then the column of each part."""
    name, confidence = f"{FORMATS[found.format]}.", _confidence(found.confidence)
    return (
        f'<div class="format"><p class="format-line"><strong>{text(name if found.confidence else "")}</strong> '
        f'<span class="confidence">{confidence}.</span> '
        f"{text(found.reason)}</p>{_mapping(found)}</div>"
    )


def _confidence(confidence: float) -> str:
    if confidence >= 1:
        return "Your choice"
    if confidence >= _DETECTED:
        return "Detected"
    if confidence >= _LIKELY:
        return "Likely"
    return "Best guess: please check" if confidence else "Not recognised"


def _mapping(found: Inspection) -> str:
    """One box for each part of the format; open where the format is a guess. data.js sends the choice."""
    parts = {**dict.fromkeys(found.parts), **found.mapping}
    if not parts or not found.columns:
        return ""
    boxes = "".join(
        f'<label><span>{text(part.replace("_", " "))}</span><select data-part="{exact(part)}">'
        f"{_columns(found, found.mapping.get(part, ''))}</select></label>"
        for part in parts
    )
    is_open = " open" if found.confidence < _LIKELY else ""
    summary = "Column mapping"
    return f'<details class="mapping"{is_open}><summary>{summary}</summary>{boxes}</details>'


def _columns(found: Inspection, chosen: str) -> str:
    options = "".join(
        f'<option value="{exact(c)}"{" selected" if c == chosen else ""}>{text(visible_name(c[:60]))}</option>'
        for c in dict.fromkeys((*found.columns[:_MOST_COLUMNS], *filter(None, (chosen,))))
    )
    return f'<option value="">none</option>{options}'


def findings(problems: Iterable[Problem]) -> str:
    """Findings that the same buttons fix are one notice."""
    together: dict[Any, list[Problem]] = {}
    for number, problem in enumerate(problems):
        together.setdefault(_changes(problem) or number, []).append(problem)
    return "".join(_finding(group) for group in together.values())


def _changes(problem: Problem) -> tuple[Change, ...]:
    return (problem.change,) if problem.change else ()


def _finding(problems: Sequence[Problem]) -> str:
    """The worst comes first; a fix that stands there already does not come again."""
    first, *others = sorted(problems, key=lambda problem: _SEVERITIES.index(problem.severity))
    more = "".join(
        f'<span class="notice-more">{_more(problem, first)}</span>' for problem in others
    )
    buttons = "".join(fix_button(change) for change in _changes(first))
    return notice(first.severity, first.message, first.fix, _rows(first) + more + buttons)


def _more(problem: Problem, first: Problem) -> str:
    fix = (
        "" if problem.fix == first.fix else f'<span class="notice-hint">{text(problem.fix)}</span>'
    )
    return f"{text(problem.message)} {fix}{_rows(problem)}"


def _rows(problem: Problem) -> str:
    if not problem.rows:
        return ""
    return f'<span class="notice-rows">{counted(problem.rows, "row")}</span>'


def fix_button(change: Change, label: str = "") -> str:
    """A click sets the form's field; data.js sends it."""
    return (
        f'<button type="button" class="fix" data-set="{change.field}" data-to="{exact(change.value)}">'
        f"{text(label or fix_label(change))}</button>"
    )


def fix_label(change: Change) -> str:
    """What the fix button does."""
    value = change.value
    match change.field:
        case "max_length":
            return f"Set longest example to {int(value):,} tokens"
        case "eval_fraction":
            return f"Hold out {percent(float(value))} of the training rows instead"
        case "num_train_epochs":
            return f"Set epochs to {value}"
        case "preset":
            return f"Use the preset “{value}”"
        case "deduplicate":
            return "Train on each row once"
        case "drop_truncated":
            return "Leave these rows out"
        case "instruction":
            return (
                f"Put “{value[:80]}” before each prompt" if value else "Leave the instruction out"
            )
        case "format":
            return (
                f"Read as {FORMATS[Format(value)].lower()}" if value else "Detect the format again"
            )
    columns = parse_request({"columns": value}).columns or {}
    pairs = ", ".join(f"“{column}” as {part}" for part, column in columns.items() if column)
    return f"Use {pairs}" if pairs else "Detect the columns again"


def preview(found: Inspection) -> str:
    columns = list(found.columns)
    rows = [[row.get(c, "") for c in columns] for row in found.preview[:_ROWS_SHOWN]]
    return table(columns, rows, "First rows of the dataset", "preview")


def lengths(found: Inspection) -> str:
    """The histogram with its movable limit, and figures."""
    values = found.lengths
    if not values.max:
        return ""
    is_split = found.format is Format.TEXT
    chart = histogram(values.histogram, found.row_lengths, found.max_length, is_split)
    figures = facts(
        [
            ("Half are at most", f"{values.p50:,} tokens"),
            ("95 % at most", f"{values.p95:,}"),
            ("Longest", f"{values.max:,}"),
            ("Trained tokens", percent(values.trained_fraction)),
        ]
    )
    return f'<div class="length-panel">{chart}{figures}</div>'


def _step_kind(model: ModelFacts) -> str:
    reason = why_base_is_plain(model)
    return f"plain: {reason}" if reason else "fast on a GPU, at 4 bits and fewer"


def _parameters(model: ModelFacts) -> str:
    if not model.num_experts:
        return count(model.parameters)
    active = count(model.weights_per_token)
    return f"{count(model.parameters)}, a mixture of experts with {active} active for a token"


def _stored(model: ModelFacts) -> str:
    if model.read_as:
        return f"{model.read_as}: quantized anew from it"
    if model.expert_bits:
        return "MXFP4: experts keep their 4-bit values"
    method, bits = model.quantization, model.quantized_bits
    return f"{method}, {bits} bits: kept as it is" if method else ""


def _left_out(model: ModelFacts) -> str:
    if not model.left_out_parameters:
        return ""
    what = "images and sound" if model.is_wrapper else "later tokens"
    return f"{what}, {count(model.left_out_parameters)} weights"


def base_facts(model: ModelFacts) -> str:
    """In the order in which they decide: size, licence, context; then how it is built."""
    return facts(
        [
            ("Parameters", _parameters(model)),
            ("Reads up to", f"{count(model.max_position_embeddings)} tokens"),
            ("Licence", model.license or ("" if model.source == "demo" else "not stated")),
            ("Access", "gated, yours is granted" if model.gated else "open"),
            ("Download", num_bytes(model.file_bytes) if model.source == "hub" else ""),
            ("Architecture", model.architecture),
            ("Stored as", _stored(model)),
            ("Stays out", _left_out(model)),
            ("Beside attention", model.state_carried and f"{model.state_carried}: not packed"),
            ("Training step", _step_kind(model)),
            ("Chat template", "" if model.has_chat_template else "none: a plain one is used"),
        ]
    )
