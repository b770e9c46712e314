"""What inspection found, as HTML: rows, findings, lengths, and the X-ray of what is trained."""

from collections.abc import Iterable
from itertools import groupby

from qlora_space.facts import ModelFacts
from qlora_space.inspection import Inspection, Problem, SampleRow
from qlora_space.ui.charts import histogram
from qlora_space.ui.render import facts, notice, table, text
from qlora_space.ui.words import count, counted, num_bytes, percent

_ROWS_SHOWN = 10
_SAMPLES_OPEN = 2
_FORMATS = {
    "messages": "Chat messages",
    "sharegpt": "ShareGPT conversations",
    "alpaca": "Alpaca instructions",
    "prompt_completion": "Prompt and completion",
    "text": "Plain text",
}


def dataset_facts(found: Inspection) -> str:
    rows = found.num_rows if found.dataset.is_exact else f"about {count(found.num_rows)}"
    return facts(
        [
            ("Rows", f"{rows:,}" if isinstance(rows, int) else rows),
            ("Split", found.dataset.split),
            ("Held out", found.eval_split or "some of the rows"),
            ("Licence", found.dataset.license),
            ("Size", num_bytes(found.dataset.num_bytes) if found.dataset.num_bytes else ""),
        ]
    )


def format_line(found: Inspection) -> str:
    """The format, and which columns it is made of."""
    name = _FORMATS.get(found.format, found.format)
    return f'<p class="format-line"><strong>{text(name)}.</strong> {text(found.reason)}</p>'


def findings(problems: Iterable[Problem]) -> str:
    return "".join(_finding(p) for p in problems)


def _finding(problem: Problem) -> str:
    rows = (
        f'<span class="notice-rows">{counted(problem.rows, "row")}</span>' if problem.rows else ""
    )
    return notice(problem.severity, problem.message, problem.fix, rows)


def preview(found: Inspection) -> str:
    columns = list(found.columns)
    rows = [[row.get(c, "") for c in columns] for row in found.preview[:_ROWS_SHOWN]]
    return table(columns, rows, "First rows of the dataset", "preview")


def lengths(found: Inspection, max_length: int) -> str:
    """Histogram and the figures beside it."""
    values = found.lengths
    chart = histogram(values.histogram, values.max, max_length)
    return chart + facts(
        [
            ("Half are at most", f"{values.p50:,} tokens"),
            ("95 % at most", f"{values.p95:,}"),
            ("Longest", f"{values.max:,}"),
            ("Cut at the limit", percent(values.truncated_fraction)),
            ("Trained tokens", percent(values.trained_fraction)),
        ]
    )


def xray(samples: tuple[SampleRow, ...]) -> str:
    """Real rows as the model will see them: what is learned is marked and underlined."""
    if not samples:
        return ""
    legend = (
        '<p class="legend"><b>learned</b> The model is trained to write this. '
        "<i>read only</i> It sees this, and is not trained on it.</p>"
    )
    shown = "".join(_sample(row, i) for i, row in enumerate(samples[:_SAMPLES_OPEN], 1))
    rest = "".join(_sample(row, i) for i, row in enumerate(samples, 1) if i > _SAMPLES_OPEN)
    if rest:
        more = counted(len(samples) - _SAMPLES_OPEN, "more row")
        rest = f"<details><summary>Show {more}</summary>{rest}</details>"
    return f'<div class="xray">{legend}{shown}{rest}</div>'


def _sample(row: SampleRow, number: int) -> str:
    tokens = "".join(_run_of_tokens(t, group) for t, group in groupby(row.tokens, _is_trained))
    end = '<em class="cut-here">cut here: longer than the limit</em>' if row.truncated else ""
    learned = sum(t.trained for t in row.tokens)
    head = f"Row {number}: {counted(len(row.tokens), 'token')}, {learned:,} learned"
    return (
        f'<div class="xray-row"><div class="xray-head">{head}</div>'
        f'<div class="tokens" tabindex="0" role="region" aria-label="{head}">{tokens}{end}</div></div>'
    )


def _is_trained(token: object) -> bool:
    return token.trained  # type: ignore[attr-defined]


def _run_of_tokens(is_trained: bool, tokens: Iterable) -> str:
    tag = "b" if is_trained else "i"
    return "".join(f"<{tag}>{_readable(t.text)}</{tag}>" for t in tokens)


def _readable(value: str) -> str:
    """A newline is shown and also breaks the line."""
    return text(value).replace("\n", "<s>↵</s>\n")


def base_facts(model: ModelFacts) -> str:
    return facts(
        [
            ("Parameters", count(model.parameters)),
            ("Architecture", model.architecture),
            ("Reads up to", f"{count(model.max_position_embeddings)} tokens"),
            ("Licence", model.license or ("" if model.source == "demo" else "not stated")),
            ("Access", "gated, yours is granted" if model.gated else "open"),
            ("Download", num_bytes(model.file_bytes) if model.source == "hub" else ""),
            ("Chat template", "" if model.has_chat_template else "none: a plain one is used"),
        ]
    )
