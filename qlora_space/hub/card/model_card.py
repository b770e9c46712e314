"""The model card: what the adapter is, what it changed, every setting, and how to load it."""

import math
import re
from collections.abc import Iterable, Sequence

from huggingface_hub import ModelCardData

from qlora_space.core.errors import RequestError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.card.escape import block, inline
from qlora_space.hub.card.low_bit import (
    EXPORTED,
    gate_table,
    how_to_load_low_bit,
    how_to_load_packed,
    low_bit_settings,
)
from qlora_space.hub.connection import is_repo_id
from qlora_space.plan import Plan
from qlora_space.runs.report import Report, Scores

LossPoint = tuple[int, float]
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 40
_TABLE_POINTS = 10
_MAX_ANSWERS = 4
_LICENSE = re.compile(r"[A-Za-z0-9.+_-]{1,60}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_card(
    plan: Plan,
    report: Report | None,
    request: TrainingRequest,
    metrics: list[LossPoint],
    repo: str,
    *,
    for_16_bit: bool = False,
    with_base: bool = False,
) -> str:
    """README.md of the published adapter. `metrics` is the training loss as (step, nats per token); `for_16_bit`: the
    repair of the low-bit base that it was trained on was taken out; `with_base`: its packed base lies beside it.

    Raises RequestError if `repo` is not a repository's name.
    """
    if not is_repo_id(repo):
        raise RequestError(f"{repo[:100]!r} is not a repository's name.", "Write owner/name.")
    parts = [
        f"---\n{_front_matter(plan, request)}\n---",
        f"# {inline(plan.name)}",
        _introduction(plan, request) + (EXPORTED if for_16_bit else ""),
        _before_and_after(report),
        _gate(plan, report),
        _loss_curve(metrics),
        _how_to_load(plan, repo, for_16_bit, with_base),
        _settings(plan),
        _data(plan, request),
        _answers(report),
        _limits(plan, report),
        _versions(report, for_16_bit),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(plan: Plan, request: TrainingRequest) -> str:
    on_hub = plan.base.source == "hub"
    data = ModelCardData(
        library_name="peft",
        base_model=plan.base.id if on_hub else None,
        datasets=[plan.dataset.id] if _is_hub_dataset(plan, request) else None,
        license=plan.base.license if _LICENSE.fullmatch(plan.base.license) else None,
        pipeline_tag="text-generation",
        tags=["qlora", "peft", "lora", "qlora-space"],
    )
    return data.to_yaml()


def _is_hub_dataset(plan: Plan, request: TrainingRequest) -> bool:
    """A file has another hash than a commit's, a folder is not asked for by its Hub id."""
    facts = plan.dataset
    is_same = request.dataset == facts.id and "/" in facts.id and is_repo_id(facts.id)
    return is_same and _COMMIT.fullmatch(facts.sha) is not None


def _base_name(plan: Plan) -> str:
    match plan.base.source:
        case "demo":
            return "the demo base that is built into qlora_space"
        case "local":
            return f"a local model ({inline(plan.base.architecture)})"
        case "hub":
            return f"[{inline(plan.base.id)}](https://huggingface.co/{plan.base.id})"


def _dataset_name(plan: Plan, request: TrainingRequest) -> str:
    if _is_hub_dataset(plan, request):
        return f"[{inline(plan.dataset.id)}](https://huggingface.co/datasets/{plan.dataset.id})"
    # Only the last part: the folders of the author's machine are nobody's business.
    return inline(re.split(r"[/\\]", plan.dataset.id.rstrip("/\\"))[-1])


def _introduction(plan: Plan, request: TrainingRequest) -> str:
    return (
        f"A LoRA adapter for {_base_name(plan)}, trained on {_dataset_name(plan, request)} "
        f"with {'QLoRA at ' if plan.bits < 16 else 'LoRA at '}{plan.mean_width:g} bits per base weight, "
        "by qlora_space."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if unit == "share" else f"{value:.4g}"


def _before_and_after(report: Report | None) -> str:
    if report is None or not report.scores:
        return ""
    rows = [_score_row(scores) for scores in report.scores]
    header = ["", "held-out loss", "held-out perplexity", "exact match", "general loss"]
    return (
        f"## Before and after\n\n{_table(header, rows)}\n\n"
        f"Loss in nats per token, lower is better, over {report.num_eval_rows:,} held-out rows; exact "
        f"match over {report.num_exact_match_rows:,} answers, word for word, without sampling."
    )


def _score_row(scores: Scores) -> list[str]:
    loss = scores.heldout_loss
    return [
        inline(scores.name),
        _number(loss),
        _number(math.exp(min(loss, 50.0)) if loss is not None else None),
        _number(scores.exact_match, "share"),
        _number(scores.general_loss),
    ]


def _loss_curve(metrics: list[LossPoint]) -> str:
    points = [(step, loss) for step, loss in metrics if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    rows = [[f"{step:,}", _number(loss)] for step, loss in _thinned(points, _TABLE_POINTS)]
    curve = _sparkline([loss for _, loss in _thinned(points, _SPARK_WIDTH)])
    return f"## Training loss\n\n`{curve}`\n\n{_table(['step', 'loss (nats/token)'], rows)}"


def _thinned(points: list[LossPoint], count: int) -> list[LossPoint]:
    """At most `count` points at equal distances, first and last among them."""
    if len(points) <= count:
        return points
    last = len(points) - 1
    return [points[round(i * last / (count - 1))] for i in range(count)]


def _sparkline(values: list[float]) -> str:
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _gate(plan: Plan, report: Report | None) -> str:
    if report is None or not report.gate:
        return ""
    return f"## The base before training\n\n{_table(*gate_table(plan, report.gate))}"


def _how_to_load(plan: Plan, repo: str, for_16_bit: bool, with_base: bool) -> str:
    if with_base:
        return how_to_load_packed(plan, repo)
    is_hub = plan.base.source == "hub"
    base = f'"{plan.base.id}"' if is_hub else '"path/to/the/base"'
    revision = (
        f', revision="{plan.base.sha}"' if is_hub and _COMMIT.fullmatch(plan.base.sha) else ""
    )
    if plan.is_low_bit and not for_16_bit:
        return how_to_load_low_bit(plan, repo, base, revision)
    is_as_stored = for_16_bit or bool(plan.base.quantization)
    precision, setup = _precision(16 if is_as_stored else plan.bits)
    # Others than eager would leave the cap of its attention out, or refuse.
    attention = ', attn_implementation="eager"' if plan.base.eager_attention else ""
    code = [
        "from peft import PeftModel",
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{setup[0]}",
        "",
        *setup[1:],
        f"base = AutoModelForCausalLM.from_pretrained({base}{revision}, {precision}{attention})",
        f'model = PeftModel.from_pretrained(base, "{repo}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
    ]
    return "## How to load it\n\n```python\n" + "\n".join(code) + "\n```"


def _precision(bits: int) -> tuple[str, tuple[str, ...]]:
    """The argument that loads the base as in training, and the lines before it."""
    if bits == 16:
        return 'dtype="bfloat16"', ("",)
    if bits == 8:
        made = "quantization = BitsAndBytesConfig(load_in_8bit=True)"
    else:
        made = (
            'quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",\n'
            '    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")'
        )
    return "quantization_config=quantization", (", BitsAndBytesConfig", made)


def _settings(plan: Plan) -> str:
    steps = "as many as the passes need" if plan.max_steps < 0 else f"{plan.max_steps:,}"
    rows = [
        ("base", "bits", f"{plan.bits}", "bits per weight"),
        *(low_bit_settings(plan) if plan.is_low_bit else ()),
        ("LoRA", "r", f"{plan.r}", "rank"),
        ("LoRA", "lora_alpha", f"{plan.lora_alpha}", f"scale {plan.lora_alpha / plan.r:g}"),
        ("LoRA", "lora_dropout", f"{plan.lora_dropout:g}", "share of inputs"),
        ("data", "max_length", f"{plan.max_length:,}", "tokens"),
        ("data", "packing", _yes(plan.packing), ""),
        ("data", "assistant_only_loss", _yes(plan.assistant_only_loss), ""),
        ("optimisation", "num_train_epochs", f"{plan.num_train_epochs:g}", "passes"),
        ("optimisation", "max_steps", steps, "optimizer steps"),
        ("optimisation", "learning_rate", f"{plan.learning_rate:g}", ""),
        (
            "optimisation",
            "per_device_train_batch_size",
            f"{plan.per_device_train_batch_size}",
            "rows",
        ),
        (
            "optimisation",
            "gradient_accumulation_steps",
            f"{plan.gradient_accumulation_steps}",
            "batches",
        ),
        ("optimisation", "num_processes", f"{plan.num_processes}", "GPUs"),
        ("optimisation", "lr_scheduler_type", plan.lr_scheduler_type, ""),
        ("optimisation", "warmup_steps", f"{plan.warmup_steps:g}", "steps; below 1 a share of all"),
        ("optimisation", "weight_decay", f"{plan.weight_decay:g}", ""),
        ("optimisation", "max_grad_norm", f"{plan.max_grad_norm:g}", "L2 norm"),
        ("optimisation", "optim", plan.optim, ""),
        *([("optimisation", "fp8", "yes", "base multiplied in e4m3")] if plan.fp8 else []),
        ("optimisation", "gradient_checkpointing", _yes(plan.gradient_checkpointing), ""),
        ("optimisation", "seed", f"{plan.seed}", ""),
        ("hardware", "device", inline(plan.device_label), ""),
    ]
    table = _table(["part", "setting", "value", "unit"], rows)
    return f"## Settings\n\n{table}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _data(plan: Plan, request: TrainingRequest) -> str:
    facts = plan.dataset
    rows = [
        ("dataset", _dataset_name(plan, request)),
        ("revision", f"`{facts.sha[:40]}`" if facts.sha.isalnum() else "unknown"),
        ("configuration, split", f"{inline(facts.config) or 'default'}, {inline(facts.split)}"),
        ("format", inline(facts.format)),
        ("rows", f"{'' if facts.is_exact else 'about '}{facts.num_rows:,}"),
        ("rows used", f"{plan.max_rows:,}" if plan.max_rows else "all"),
        ("held-out rows", f"{plan.num_eval_rows:,}"),
        (
            "example length",
            f"{facts.lengths.p50:,} tokens (median), {facts.lengths.max:,} (longest)",
        ),
        ("licence", inline(facts.license) or "not stated"),
    ]
    return f"## Data\n\n{_table(['', ''], rows)}"


def _answers(report: Report | None) -> str:
    if report is None or not report.answers:
        return ""
    parts = ["## Answers to held-out prompts"]
    for answer in report.answers[:_MAX_ANSWERS]:
        parts += ["Prompt", block(answer.prompt), "Base", block(answer.base)]
        parts += ["With the adapter", block(answer.adapted), "Expected", block(answer.expected)]
    return "\n\n".join(parts)


def _limits(plan: Plan, report: Report | None) -> str:
    lines = [
        "- It keeps the base's knowledge, mistakes and bias; check its answers before relying on them.",
        "- Outside the kind of text that it was trained on, it may be worse than the base.",
    ]
    if plan.bits < 16:
        lines.append(
            f"- It was trained on a {plan.bits}-bit base; on a base of another precision it may differ."
        )
    if report is not None and report.stopped_early:
        lines.append(f"- Training was stopped by hand after {report.steps:,} steps.")
    if report is None:
        lines.append("- No figures were measured on held-out rows.")
    return "## Limits\n\n" + "\n".join(lines)


def _versions(report: Report | None, for_16_bit: bool) -> str:
    if report is None:
        return ""
    rows = [(inline(name), inline(version)) for name, version in sorted(report.versions.items())]
    took = (
        f"{report.steps:,} steps, {report.trained_tokens:,} tokens, {report.train_seconds:,.0f} s of "
        f"training, {report.peak_gib:.2f} GiB at the peak."
    )
    if not for_16_bit:  # an export has other tensors than the adapter that was trained
        took += f" sha256 of its tensors (names and bytes, in order): `{inline(report.adapter_sha256)}`."
    table = f"\n\n{_table(['library', 'version'], rows)}" if rows else ""
    return f"## How it was made\n\n{took}{table}"
